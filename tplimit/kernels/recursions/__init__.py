"""Kernels of networks, layer by layer."""
