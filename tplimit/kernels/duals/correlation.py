"""Functions of the angle between two centred Gaussian variables, stable at correlation ±1.

``(u, v)`` is a Gaussian pair with ``E[u v] = cov``, ``E[u²] = var1``, ``E[v²] = var2``; ``cov`` and
the variances broadcast. With ``c = cov / sqrt(var1 var2)`` the angle is ``θ = arccos(c)``. Rounding
may make ``|c|`` exceed 1; it is then 1. Derivatives that are infinite at ``|c| = 1`` are 0 there,
which is right where ``c`` stays at 1, as on the diagonal of a Gram matrix.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tangents = tuple[Array, Array, Array]


def over(a: Array, b: Array) -> Array:
    """``a / b``, and 0 where ``b = 0``, with its derivatives."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def root(x: Array) -> Array:
    """``sqrt(max(x, 0))`` with derivative 0 where it vanishes."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@functools.cache
def _arctangent(degree: int) -> tuple[float, ...]:
    """Coefficients of ``arctan(t) / t`` in powers of t² for ``|t| <= tan(π/8)``."""
    chebyshev = np.polynomial.Chebyshev.interpolate(
        lambda y: np.arctan(np.sqrt(y)) / np.sqrt(y), degree, domain=[0.0, _EIGHTH**2]
    )
    return tuple(chebyshev.convert(kind=np.polynomial.Polynomial).coef.tolist())


#: tan(π/8)
_EIGHTH = math.sqrt(2) - 1


@jax.custom_jvp
def angle(y: Array, x: Array) -> Array:
    """``arctan2(y, x)`` for ``x >= 0``, and 0 for ``x = y = 0``.

    On processors XLA calls the C library for every element of ``arctan2``, which would be most of
    the time of a relu or erf kernel; this is made of operations that it vectorises.
    """
    y, x = jnp.broadcast_arrays(y, x)
    size = jnp.abs(y)
    small, large = jnp.minimum(size, x), jnp.maximum(size, x)
    # arctan(t) = π/4 + arctan((t - 1) / (t + 1))
    reduced = small > _EIGHTH * large
    above = jnp.where(reduced, small - large, small)
    below = jnp.where(reduced, small + large, large)
    t = above / jnp.where(below == 0, 1, below)
    square = t * t
    degree = 12 if jnp.finfo(t.dtype).bits > 32 else 6
    total = functools.reduce(
        lambda total, a: total * square + a, reversed(_arctangent(degree)), jnp.zeros_like(t)
    )
    found = t * total + jnp.where(reduced, jnp.pi / 4, 0)
    found = jnp.where(size > x, jnp.pi / 2 - found, found)
    return jnp.where(y < 0, -found, found)


@angle.defjvp
def _angle_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (y, x), (dy, dx) = primals, tangents
    return angle(y, x), over(x * dy - y * dx, x * x + y * y)


@jax.custom_jvp
def determinant(cov: Array, var1: Array, var2: Array) -> Array:
    """``max(var1 var2 - cov², 0)``, exactly 0 where ``|c| = 1`` within rounding.

    Rounding of ``c`` near 1 by ``eps`` is one of the angle by its root: equal points would differ.
    """
    scale = jnp.sqrt(var1 * var2)
    found = (scale - cov) * (scale + cov)
    return jnp.where(found > 8 * jnp.finfo(found.dtype).eps * scale * scale, found, 0)


@determinant.defjvp
def _determinant_jvp(
    primals: tuple[Array, Array, Array], tangents: Tangents
) -> tuple[Array, Array]:
    (cov, var1, var2), (dcov, dvar1, dvar2) = primals, tangents
    return determinant(cov, var1, var2), var2 * dvar1 + var1 * dvar2 - 2 * cov * dcov


@jax.custom_jvp
def wedge(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    """``s + cov ω`` and ``ω = arcsin(c)``, with ``s = sqrt(var1 var2 - cov²)``.

    ``E[|u| |v|] = (2/π) (s + cov ω)`` and ``E[sign u sign v] = (2/π) ω``.
    """
    s = jnp.sqrt(determinant(cov, var1, var2))
    omega = angle(cov, s)
    return s + cov * omega, omega


@wedge.defjvp
def _wedge_jvp(primals: tuple[Array, Array, Array], tangents: Tangents) -> Any:
    (cov, var1, var2), (dcov, dvar1, dvar2) = primals, tangents
    out = wedge(cov, var1, var2)
    s = root(determinant(cov, var1, var2))
    relative = (over(dvar1, var1) + over(dvar2, var2)) / 2
    return out, (out[1] * dcov + s * relative, over(dcov - cov * relative, s))


def correlation(cov: Array, var1: Array, var2: Array) -> Array:
    """``c`` within ±1; 0 where a variance is 0."""
    c = over(cov, root(var1 * var2))
    return jnp.where(jnp.abs(c) > 1, jnp.sign(c), c)


@functools.cache
def _polynomials(degree: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Coefficients of A and B, in ascending powers of c, of ``J_p = A(c) (π - θ) + B(c) sin θ``.

    From ``J_p = s^(2p+1) (d/dc)^p ((π - θ) / s)``, ``s = sin θ`` (Cho and Saul, *Kernel Methods for
    Deep Learning*, 2009): ``A' = (1 - c²) ∂A + (2p + 1) c A``, ``B' = A + (1 - c²) ∂B + 2p c B``.
    """
    if degree == 0:
        return (1,), (0,)
    p = degree - 1
    a, b = _polynomials(p)

    def shifted(poly: tuple[int, ...], factor: int) -> list[int]:
        """``(1 - c²) ∂poly + factor c poly``."""
        out = [0] * (degree + 1)
        for k, x in enumerate(poly):
            if k:
                out[k - 1] += k * x
            if x:
                out[k + 1] += (factor - k) * x
        return out

    first, second = shifted(a, 2 * p + 1), shifted(b, 2 * p)
    return tuple(first), tuple(y + (a[k] if k < len(a) else 0) for k, y in enumerate(second))


def sine(c: Array) -> Array:
    """``sin θ``, exactly 0 where ``|c| = 1`` within rounding."""
    return root(determinant(c, jnp.ones_like(c), jnp.ones_like(c)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def rectified(degree: int, c: Array) -> Array:
    """``E[relu(u)^p relu(v)^p]`` for unit variances: ``J_p(θ) / 2π``."""
    s = sine(c)
    reflected = jnp.pi / 2 + angle(c, s)  # π - θ
    a, b = (
        functools.reduce(lambda total, x: total * c + x, reversed(poly), jnp.zeros_like(c))
        for poly in _polynomials(degree)
    )
    return (a * reflected + b * s) / (2 * jnp.pi)


@rectified.defjvp
def _rectified_jvp(degree: int, primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (c,), (dc,) = primals, tangents
    if degree == 0:
        return rectified(0, c), over(dc, 2 * jnp.pi * sine(c))
    return rectified(degree, c), degree**2 * rectified(degree - 1, c) * dc
