"""Training in function space: with kernels instead of parameters."""
