"""Kernels for NVIDIA's GPUs over the packed layout: CUDA C++ in `source/`, compiled on the user's machine by NVRTC."""
