"""Matrices with two width axes: sums of parts, and how each part acts on vectors."""
