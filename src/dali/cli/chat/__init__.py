"""Asking a model: one answer, a conversation of several, and the loop that holds it over a terminal."""
