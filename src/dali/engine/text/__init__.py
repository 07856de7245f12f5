"""A sequence's text: tokens in, final text out."""
