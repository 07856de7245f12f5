"""A model's dense modules, and whole layers of it, on the native kernels."""
