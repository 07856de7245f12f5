"""What one engine step is, and what a sequence keeps between steps."""
