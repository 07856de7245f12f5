"""Measuring this machine with dali's own kernels: `dali bench hw`."""
