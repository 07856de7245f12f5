"""Tokens that are guessed before the model is asked, and checked by it several in one step."""
