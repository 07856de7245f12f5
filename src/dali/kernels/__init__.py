"""Expert feed-forward kernels and the byte layout they stream."""
