"""What the variables of a program are while its kernel is read off (`recognition`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit.declare.parameters import Parameter


@dataclass(frozen=True)
class Power:
    """``n^exponent array``; zeros of any exponent give way to others."""

    array: Array
    exponent: Any = Fraction(0)

    def __add__(self, other: "Power") -> "Power":
        if self.exponent == other.exponent:
            return Power(self.array + other.array, self.exponent)
        return max(self, other, key=lambda one: one.exponent)

    def times(self, factor: Any, exponent: Any = 0) -> "Power":
        return Power(self.array * factor, self.exponent + exponent)


@dataclass(frozen=True)
class Number:
    """``n^exponent array``, known: data and constants."""

    array: Any
    exponent: Any = Fraction(0)


ONE = Number(1.0)


@dataclass(frozen=True)
class Weights:
    """A declared parameter, times a number; ``axes`` are its own axes in the order they are in."""

    parameter: Parameter
    place: int
    axes: tuple[int | None, ...]
    factor: Number = ONE


@dataclass(frozen=True)
class Gaussian:
    """A centred Gaussian vector for each point.

    Attributes:
        K, Theta: kernels (P, P) over the points.
        parts: weights of the products and biases that it is a sum of. Vectors with none in common
            are independent: each product has fresh weights.
    """

    K: Power
    Theta: Power
    parts: frozenset[int]


@dataclass(frozen=True)
class Field:
    """A pointwise function of a Gaussian vector, ``(P, .., n)`` or ``(P, ..)``.

    Attributes:
        gaussian: the vector.
        function: the function, None for the vector itself.
        name: of a function that is known, for its closed form.
        inner: number in front of the argument of a function with a name.
        factor: number that the function is multiplied with.
        axis: place of the axis of the coordinates, None for a single one.
        shape: with points along the other axes, in order.
        points: numbers of points of the Gaussian vector where they are others (`positions`).
    """

    gaussian: Gaussian
    function: Callable[[Any], Any] | None
    name: str | None
    axis: int | None
    shape: tuple[Any, ...]
    inner: Number = ONE
    factor: Number = ONE
    points: np.ndarray | None = None


Value = Number | Weights | Field


def scaled(a: Number, b: Number) -> Number:
    return Number(a.array * b.array, a.exponent + b.exponent)


def folded(x: Field) -> Field:
    """A multiple of a Gaussian vector as a Gaussian vector of its own."""
    if x.function is not None or x.factor is ONE:
        return x
    c, power, g = jnp.square(x.factor.array), 2 * x.factor.exponent, x.gaussian
    gaussian = replace(g, K=g.K.times(c, power), Theta=g.Theta.times(c, power))
    return replace(x, gaussian=gaussian, factor=ONE)
