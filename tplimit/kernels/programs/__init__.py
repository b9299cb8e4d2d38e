"""Kernels of a program of one's own: read off it, or by particles."""
