"""Answers that have to be of a grammar: what a token may be, step by step."""
