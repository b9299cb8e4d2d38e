"""Exponents of the entries of an array."""

from fractions import Fraction

import numpy as np

from tplimit.values.exponents import Exponents


def test_the_larger_of_very_many():
    """More than NumPy takes as operands of one function."""
    many = [Exponents(np.array([Fraction(-i), Fraction(i)], dtype=object)) for i in range(100)]
    assert many[0].maximum(*many[1:]).levels() == [99, 0]
