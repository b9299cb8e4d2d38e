"""Closed forms of ``E[φ(u) φ(v)]`` and ``E[φ'(u) φ'(v)]`` for a centred Gaussian pair.

Every function takes ``cov = E[u v]``, ``var1 = E[u²]``, ``var2 = E[v²]``, which broadcast, and
returns both expectations, so that what they share is computed once. ``φ'`` is the derivative almost
everywhere, that of `jax.grad`: that of a step is 0. Sources: Williams, *Computing with Infinite
Networks* (1996) for erf; Cho and Saul, *Kernel Methods for Deep Learning* (2009) for powers of
relu; Tsuchida, Roosta-Khorasani and Gallagher for leaky relu (arXiv 1711.09090) and gelu (arXiv
2002.08517); Daniely, Frostig and Singer (arXiv 1602.05897) for Hermite expansions.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit.kernels.duals.correlation import (
    angle,
    correlation,
    determinant,
    rectified,
    root,
    wedge,
)

#: (cov, var1, var2) -> (E[φ φ], E[φ' φ']).
Moments = Callable[[Array, Array, Array], tuple[Array, Array]]


def identity(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ(x) = x."""
    return cov, jnp.ones_like(cov)


def piecewise_linear(negative: float, positive: float) -> Moments:
    """φ(x) = ``negative`` x for x < 0, ``positive`` x for x > 0: relu, leaky relu, abs."""
    # φ(x) = mean x + half |x|, and E[u |v|] = 0.
    mean, half = (positive + negative) / 2, (positive - negative) / 2
    linear, bent = mean**2, half**2 * 2 / math.pi

    def moments(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
        both, omega = wedge(cov, var1, var2)
        return linear * cov + bent * both, linear + bent * omega

    return moments


def relu_power(degree: int) -> Moments:
    """φ(x) = max(x, 0)^degree; the step function (0 or 1) for degree 0."""
    if degree == 1:
        return piecewise_linear(0.0, 1.0)

    def moments(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
        c, scale = correlation(cov, var1, var2), root(var1 * var2)
        value = scale**degree * rectified(degree, c)
        if degree == 0:
            return value, jnp.zeros_like(value)
        return value, degree**2 * scale ** (degree - 1) * rectified(degree - 1, c)

    return moments


def sign(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ(x) = sign(x): (2/π) arcsin(c); its derivative is 0 almost everywhere."""
    omega = wedge(cov, var1, var2)[1]
    return 2 / jnp.pi * omega, jnp.zeros_like(omega)


def erf(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ = erf: (2/π) arcsin(2 cov / sqrt((1 + 2 var1)(1 + 2 var2)))."""
    delta = jnp.sqrt(1 + 2 * (var1 + var2) + 4 * determinant(cov, var1, var2))
    return 2 / jnp.pi * angle(2 * cov, delta), 4 / jnp.pi / delta


def gelu(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ(x) = x Φ(x), with Φ the normal distribution function (not its tanh approximation)."""
    square = 1 + var1 + var2 + determinant(cov, var1, var2)
    delta = jnp.sqrt(square)
    share_of_circle = 0.25 + angle(cov, delta) / (2 * jnp.pi)
    product = var1 * var2
    share = (1 - product) / ((1 + var1) * (1 + var2))
    bent = product + cov * cov * share
    half = 2 * jnp.pi * delta
    slope = share_of_circle + cov * (1 + 2 * share + bent / square) / half
    return cov * share_of_circle + bent / half, slope


def _exponentials(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """``E[exp(i(u - v))]`` and ``E[exp(i(u + v))]``."""
    mean = (var1 + var2) / 2
    return jnp.exp(cov - mean), jnp.exp(-cov - mean)


def sin(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ = sin: exp(-(var1 + var2)/2) sinh(cov)."""
    less, more = _exponentials(cov, var1, var2)
    return (less - more) / 2, (less + more) / 2


def cos(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ = cos: exp(-(var1 + var2)/2) cosh(cov)."""
    return sin(cov, var1, var2)[::-1]


def exp(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ = exp: exp((var1 + var2)/2 + cov)."""
    value = jnp.exp((var1 + var2) / 2 + cov)
    return value, value


def gaussian(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """φ(x) = exp(-x²): ((1 + 2 var1)(1 + 2 var2) - 4 cov²)^(-1/2)."""
    square = 1 + 2 * (var1 + var2) + 4 * determinant(cov, var1, var2)
    value = 1 / jnp.sqrt(square)
    return value, 4 * cov * value / square


def polynomial(coefficients: Sequence[float]) -> Moments:
    """φ(x) = Σ_n coefficients[n] x^n: Σ_k cov^k α_k(var1) α_k(var2).

    ``α_k(var) = Σ_n coefficients[n] n! / (√(k!) m! 2^m) var^m`` with ``m = (n - k)/2``, summed over
    even n - k, is the k-th Hermite coefficient of φ(√var z) over var^(k/2).
    """
    value = _hermite_table(tuple(coefficients))
    slope = _hermite_table(tuple(np.polynomial.polynomial.polyder(coefficients)))

    def moments(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
        return _power_series(value, cov, var1, var2), _power_series(slope, cov, var1, var2)

    return moments


Table = tuple[tuple[float, ...], ...]


@functools.cache
def _hermite_table(coefficients: tuple[float, ...]) -> Table:
    """Coefficients of α_k in ascending powers of the variance, for every k."""
    table = []
    for k in range(len(coefficients)):
        terms = []
        for pairs, n in enumerate(range(k, len(coefficients), 2)):
            ways = math.factorial(n) / (math.factorial(pairs) * 2**pairs)
            terms.append(float(coefficients[n]) * ways / math.sqrt(math.factorial(k)))
        table.append(tuple(terms))
    return tuple(table)


def _power_series(table: Table, cov: Array, var1: Array, var2: Array) -> Array:
    def horner(terms: Sequence[float], x: Array) -> Array:
        return functools.reduce(lambda total, a: total * x + a, reversed(terms), jnp.zeros_like(x))

    total = jnp.zeros_like(cov + var1 + var2)
    for terms in reversed(table):
        total = total * cov + horner(terms, var1) * horner(terms, var2)
    return total
