"""Recorded routing: the file format, what other tools write, how local a model's routing is."""
