"""Calls of tools in an answer: one file a form in which models write them."""
