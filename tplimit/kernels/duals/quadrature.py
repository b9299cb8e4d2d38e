"""Expectations ``E[φ(u) φ(v)]`` of any function over a Gaussian pair, by quadrature.

Smooth functions are expanded in Hermite polynomials, ``φ(σ z) = Σ_k a_k(σ) h_k(z)``, so that
``E[φ(u) φ(v)] = Σ_k a_k(σ_1) a_k(σ_2) c^k`` with the correlation ``c``; what is left out is at most
``|c|^K`` times the geometric mean of the tails ``E[φ²] - Σ a_k²`` (Cauchy-Schwarz). So are
functions with kinks at 0, whose tails decay as a power of K, where ``|c|`` is not close to 1. Pairs
for which that is too much have the double integral taken over the pieces into which the kinks cut
the plane, by Gauss-Legendre rules, as all pairs do where there are kinks elsewhere. With kinks and
``c = ±1`` the integral is a single one, and near there a linear function of ``c``: a correlation
that is lost to quadrature, by 1e-9, would be an angle of 5e-5 in the next layer.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tplimit.kernels.duals.correlation import correlation, over, root, sine
from tplimit.kernels.duals.kinks import Function, Kinks, derivative, find

#: Terms of Hermite series.
TERMS = 512
#: Half range, in standard deviations, and nodes per half of one-dimensional rules.
_REACH, _NODES = 14.0, 320
#: Half range of double integrals, and the mass of the normal law beyond it, 3e-12.
_REACH_2D = 7.0
_MASS_BEYOND = math.erfc(_REACH_2D / math.sqrt(2))
#: Nodes of double integrals between two cuts of a function with kinks, and of a smooth one.
_NODES_2D, _NODES_SMOOTH = 24, 96
#: How close to ±1 a correlation has one-dimensional integrals: what is left out is 1e-11.
_CLOSE = 1e-7
#: Pairs whose double integrals are held at once.
_BATCH = 32


@functools.cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


@functools.cache
def _hermite() -> tuple[np.ndarray, np.ndarray]:
    """Nodes (Q,), and weights (Q, TERMS) that give the Hermite coefficients of values there."""
    x, w = _legendre(_NODES)
    z = _REACH * np.concatenate([-x[::-1], x])
    weights = _REACH * np.concatenate([w[::-1], w]) / np.sqrt(2 * np.pi)
    # Hermite functions h_k(z) exp(-z²/4) stay bounded, the polynomials do not.
    functions = [np.exp(-(z**2) / 4), z * np.exp(-(z**2) / 4)]
    for k in range(1, TERMS - 1):
        functions.append((z * functions[k] - np.sqrt(k) * functions[k - 1]) / np.sqrt(k + 1))
    return z, (weights * np.exp(-(z**2) / 4) * np.stack(functions)).T


def _panels(points: Array, nodes: int) -> tuple[Array, Array]:
    """Composite nodes and weights for the normal density between consecutive ``points``.

    ``points`` (..., P + 1) ascending; both results (..., P * nodes).
    """
    x, w = (jnp.asarray(a, points.dtype) for a in _legendre(nodes))
    length = points[..., 1:] - points[..., :-1]
    z = points[..., :-1, None] + length[..., None] * x
    weights = length[..., None] * w * jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (a.reshape(*points.shape[:-1], -1) for a in (z, weights))  # type: ignore[return-value]


def _on_a_line(f: Function, g: Function, kinks: Sequence[float], std1: Array, std2: Array) -> Array:
    """Summands (..., Q) of ``E[f(σ_1 z) g(σ_2 z)]``, elementwise in both σ, of any sign."""
    ends = jnp.broadcast_to(jnp.asarray(_REACH, std1.dtype), (*std1.shape, 1))
    at = lambda t, std: over(jnp.asarray(t, std.dtype), std)[..., None]
    cuts = [at(t, std) for t in (*kinks, 0.0) for std in (std1, std2)[: 1 + (std1 is not std2)]]
    points = jnp.concatenate([-ends, *(jnp.clip(cut, -ends, ends) for cut in cuts), ends], axis=-1)
    z, weights = _panels(jnp.sort(points, axis=-1), _NODES // 2)
    return weights * f(std1[..., None] * z) * g(std2[..., None] * z)


def second_moment(function: Function, kinks: Sequence[float], var: Array) -> Array:
    """``E[φ(σ z)²]``, elementwise in the variance; infinite where the integrand does not decay."""
    std = root(var)
    terms = _on_a_line(function, function, kinks, std, std)
    total = terms.sum(-1)
    edge = jnp.maximum(terms[..., 0], terms[..., -1])
    return jnp.where(edge > 1e-9 * total, jnp.inf, total)


def _beyond(function: Function, var: Array) -> Array:
    """The part of ``E[φ(σ z)²]`` outside of the range of double integrals."""
    ends = jnp.asarray([[-_REACH, -_REACH_2D], [_REACH_2D, _REACH]], var.dtype)
    z, weights = _panels(ends, _NODES // 2)
    values = function(root(var)[..., None] * z.reshape(-1))
    return jnp.sum(weights.reshape(-1) * values**2, axis=-1)


def _coefficients(function: Function, var: Array) -> Array:
    """Hermite coefficients ``a_k``, shape (TERMS, *var.shape)."""
    z, weights = (jnp.asarray(a, var.dtype) for a in _hermite())
    values = function(root(var)[..., None] * z)
    return jnp.moveaxis(jnp.matmul(values, weights, precision="highest"), -1, 0)


def hermite_series(a: Array, b: Array, c: Array) -> Array:
    """``Σ_k a_k b_k c^k`` by Horner's rule."""

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total * c + pair[0] * pair[1], None

    shape = jnp.broadcast_shapes(a.shape[1:], b.shape[1:], c.shape)
    return lax.scan(add, jnp.zeros(shape, c.dtype), (a, b), reverse=True, unroll=16)[0]


def pieces(
    f: Function,
    g: Function,
    kinks: Sequence[float],
    nodes: int,
    c: Array,
    std1: Array,
    std2: Array,
    slopes: tuple[Function, Function] | None = None,
) -> Array:
    """``E[f(u) g(v)]`` for one pair (scalars), with the plane cut at the kinks of both.

    With ``u = σ_1 x`` and ``v = σ_2 (c x + s y)`` the inner integral over ``y`` is cut where ``v``
    meets a kink. It is then a smooth function of ``x`` that changes, near each kink ``t``, on the
    scale ``s / c`` around ``t / (σ_2 c)``: the outer integral is cut at the ends of that layer, and
    at the kinks of ``u``. A smooth function is only cut at 0, where nodes are then dense. Where
    ``s = 0`` it is a single integral, and near there that and its derivative ``E[f'(u) g'(v)]`` in
    the covariance (Price's theorem).

    Args:
        nodes: between two cuts.
        slopes: f' and g', unless f or g jumps.
    """
    dtype = c.dtype
    tiny = jnp.asarray(float(jnp.finfo(dtype).tiny) ** 0.5, dtype)
    reach = jnp.asarray(_REACH_2D, dtype)
    s = sine(c)
    slope, depth = jnp.where(jnp.abs(c) < tiny, tiny, c), jnp.maximum(s, tiny)
    cut = lambda points: jnp.sort(jnp.clip(jnp.stack([-reach, *points, reach]), -reach, reach))
    outer, inner = (
        [over(jnp.asarray(t, dtype), std) for t in kinks or (0.0,)] for std in (std1, std2)
    )
    layers = [(t + sign * reach * s) / slope for t in inner for sign in (-1, 1)]
    x, weights = _panels(cut([*outer, *(layers if kinks else [])]), nodes)
    cuts = jax.vmap(lambda x: cut([(t - c * x) / depth for t in inner]))(x)
    y, inner_weights = _panels(cuts, nodes)
    mean = jnp.sum(inner_weights * g(std2 * (c * x[:, None] + s * y)), axis=-1)
    signed = jnp.copysign(std2, c)
    single, close = jnp.sum(_on_a_line(f, g, kinks, std1, signed)), s == 0
    if slopes is not None:
        slope_there = jnp.sum(_on_a_line(*slopes, kinks, std1, signed))
        single = single - (1 - jnp.abs(c)) * std1 * signed * slope_there
        close = _close(c)
    return jnp.where(close, single, jnp.sum(weights * f(std1 * x) * mean))


def _close(c: Array) -> Array:
    return (sine(c) == 0) | (1 - jnp.abs(c) < _CLOSE)


def _where(
    bad: Array, value: Array, one: Callable[..., Array], arguments: Sequence[Array]
) -> Array:
    """``value``, but ``one(*arguments)`` of each bad pair; the cost is that of these."""
    size = bad.size
    padding = -size % _BATCH
    flat = [jnp.pad(a.reshape(-1), (0, padding)) for a in (bad, value, *arguments)]
    order = jnp.argsort(~flat[0], stable=True)  # the bad ones first

    def batch(chunk: Sequence[Array]) -> Array:
        bad, value, *arguments = chunk
        better = lambda: jnp.where(bad, jax.vmap(one)(*arguments), value)
        return lax.cond(bad.any(), better, lambda: value)

    def all_batches() -> Array:
        found = lax.map(batch, [a[order].reshape(-1, _BATCH) for a in flat])
        return jnp.zeros_like(flat[1]).at[order].set(found.reshape(-1))

    return lax.cond(bad.any(), all_batches, lambda: flat[1])[:size].reshape(bad.shape)


@dataclass(frozen=True)
class Quadrature:
    """Expectations of the derivatives of a function over a Gaussian pair.

    Attributes:
        function: φ.
        kinks: where it or its first derivatives jump.
    """

    function: Function
    kinks: Kinks

    def __call__(self, cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
        """``E[φ(u) φ(v)]`` and ``E[φ'(u) φ'(v)]``."""
        return _expectation(self, 0, cov, var1, var2), _expectation(self, 1, cov, var1, var2)

    def diagonal(self, var: Array) -> tuple[Array, Array]:
        """Both at ``cov = var1 = var2 = var``."""
        return self.moment(0, var), self.moment(1, var)

    def moment(self, order: int, var: Array) -> Array:
        """``E[φ^(order)(u)²]``."""
        return second_moment(derivative(self.function, order), self.kinks.points, var)

    def expectation(self, order: int, cov: Array, var1: Array, var2: Array) -> Array:
        """``E[φ^(order)(u) φ^(order)(v)]``; infinite where a second moment is."""
        f = derivative(self.function, order)
        value, bad, _, scale = self._series(order, cov, var1, var2)
        slope = derivative(self.function, order + 1) if order < self.kinks.order else None
        value = self._by_pieces(f, f, cov, var1, var2, value, bad, slope=slope)
        return jnp.where(jnp.isfinite(scale), value, jnp.inf)

    def error(self, order: int, cov: Array, var1: Array, var2: Array) -> Array:
        """An estimate of the error of `expectation`, without that of rounding.

        What the series leaves out at most, or the change from a rule with fewer nodes and what lies
        beyond its range.
        """
        f = derivative(self.function, order)
        value, bad, left_out, scale = self._series(order, cov, var1, var2)
        zero = jnp.zeros_like(value)
        fine, coarse = (
            self._by_pieces(f, f, cov, var1, var2, zero, bad, share) for share in (1.0, 0.875)
        )
        beyond = root(_beyond(f, var1) * _beyond(f, var2)) + _MASS_BEYOND * scale
        return jnp.where(bad, jnp.abs(fine - coarse) + beyond, left_out)

    def _series(
        self, order: int, cov: Array, var1: Array, var2: Array
    ) -> tuple[Array, Array, Array, Array]:
        """The sum, whether it will not do, a bound on what it leaves out, the size of its value."""
        f = derivative(self.function, order)
        c = correlation(cov, var1, var2)
        first, second = (self.moment(order, var) for var in (var1, var2))
        scale = jnp.broadcast_to(root(first * second), c.shape)
        # The rule for the coefficients is cut at 0 and nowhere else.
        if not set(self.kinks.points) <= {0.0}:
            return jnp.zeros_like(c), jnp.ones_like(c, bool), jnp.full_like(c, jnp.inf), scale
        a, b = _coefficients(f, var1), _coefficients(f, var2)
        tail = root((first - jnp.sum(a * a, 0)) * (second - jnp.sum(b * b, 0)))
        left_out = tail * jnp.abs(c) ** TERMS
        bad = left_out > _tolerance(scale) * scale
        if self.kinks.points:
            bad |= _close(c)
        return hermite_series(a, b, c), bad, left_out, scale

    def _by_pieces(
        self,
        f: Function,
        g: Function,
        cov: Array,
        var1: Array,
        var2: Array,
        value: Array | None = None,
        bad: Array | None = None,
        share: float = 1.0,
        slope: Function | None = None,
    ) -> Array:
        """``E[f(u) g(v)]`` of the bad pairs, or of all; ``slope``: of f = g, unless it jumps."""
        c, std1, std2 = jnp.broadcast_arrays(correlation(cov, var1, var2), root(var1), root(var2))
        if value is None or bad is None:
            value, bad = jnp.zeros_like(c), jnp.ones(c.shape, bool)
        nodes = round(share * (_NODES_2D if self.kinks.points else _NODES_SMOOTH))
        slopes = None if slope is None else (slope, slope)
        one = functools.partial(pieces, f, g, self.kinks.points, nodes, slopes=slopes)
        bad, value = jnp.broadcast_arrays(bad, value)
        return _where(bad, value, one, (c, std1, std2))


def _tolerance(like: Array) -> float:
    """The relative error that a series may have, well above that of rounding."""
    return float(jnp.finfo(like.dtype).eps) ** 0.75


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _expectation(rule: Quadrature, order: int, cov: Array, var1: Array, var2: Array) -> Array:
    return rule.expectation(order, cov, var1, var2)


@_expectation.defjvp
def _expectation_jvp(rule: Quadrature, order: int, primals: Any, tangents: Any) -> Any:
    """By Price's theorem, with f = φ^(order):

    ``∂/∂cov E[f f] = E[f' f']`` and ``∂/∂var1 E[f f] = E[f''(u) f(v)] / 2``, the latter from
    ``E[u f'(u) f(v)] = var1 E[f''(u) f(v)] + cov E[f' f']``. Where f jumps this misses a term, and
    the quadrature itself is differentiated, whose pieces move with the kinks.
    """
    if order >= rule.kinks.order or not rule.kinks.points:
        return jax.jvp(functools.partial(rule.expectation, order), primals, tangents)
    (cov, var1, var2), (dcov, dvar1, dvar2) = primals, tangents
    f, slope = (derivative(rule.function, k) for k in (order, order + 1))
    across = _expectation(rule, order + 1, cov, var1, var2)
    weighted = lambda x: x * slope(x)
    first = rule._by_pieces(weighted, f, cov, var1, var2)
    second = rule._by_pieces(f, weighted, cov, var1, var2)
    tangent = across * dcov
    tangent += over(first - cov * across, 2 * var1) * dvar1
    tangent += over(second - cov * across, 2 * var2) * dvar2
    return _expectation(rule, order, cov, var1, var2), tangent


def quadrature(
    name: str, function: Callable[[Any], Any], elementwise: Callable[[Any], Any] | None = None
) -> Quadrature:
    """The quadrature for a function, with its kinks.

    Args:
        elementwise: the function that is integrated, by default ``function`` itself, of which the
            kinks are found and whether it acts elementwise.

    Raises:
        ActivationError: see `kinks.find`.
    """
    return Quadrature(elementwise or function, find(name, function))
