"""The values that the bytes of GGUF's blocks stand for: one kind of types a file, each type a function of its blocks."""
