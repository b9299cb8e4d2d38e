"""Dual activations: expectations over Gaussian pairs."""
