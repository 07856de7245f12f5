"""GGUF files: their header, their tensors, their experts repacked."""
