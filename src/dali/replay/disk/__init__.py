"""Experts on disk in a replay: a lane that reads them, and the pool in RAM that it reads them into."""
