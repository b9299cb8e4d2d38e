"""Arithmetic of values of one term, and of several."""
