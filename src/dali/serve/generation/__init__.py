"""What is generated, whatever protocol asks for it."""
