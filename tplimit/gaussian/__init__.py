"""Gaussian mathematics of the limit; knows nothing of jaxprs."""
