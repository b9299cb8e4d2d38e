"""Boundary layers: what a vector that saturates is on the coordinates that do not.

Of ``f(n^a v + w)``, where ``f`` has limits at infinity, a share ``n^-a`` of the coordinates is not
near them: those where ``v`` is of order ``n^-a``. Averages change by as much,

    <g(f(n^a v + w))> = <g(f(v oo))> + n^-a p_v(0) int <g(f(u + w)) - g(f(u oo))>_{v=0} du + ...

The last term is what the average at a finite ``n`` differs by, times ``n^a``, as ``n`` grows. So
the particles are evaluated at two finite widths besides, by every operation that acts on
coordinates (``Facts.layer``), and where an average is taken the difference is extrapolated.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.errors import LimitError
from tplimit.interpreter import doubts
from tplimit.interpreter.context import Context
from tplimit.program.traits import Relation, Smooth
from tplimit.values import patches
from tplimit.values.exponents import ORDER_ONE, Exponent, Exponents
from tplimit.values.tensors import Layer, Tensor, Value, knowing, tensor

#: How much larger than the thickness of the layer a vector is at the first width, at least: where
#: it is small the layer is thick, where it is large few particles are in it. Vectors of order 1
#: have the same widths. At the second width it is twice as large.
_LEAST, _USUAL = 3.0, 8.0

#: Error of the extrapolation, in units of what it adds.
_EXTRAPOLATION = 0.25

#: A function saturates if it is as near to its limit at this argument as a share of its inverse.
_FAR, _NEAR = 1e3, 0.1

Run = Callable[..., Any]


def followed(ctx: Context, run: Run, values: Sequence[Value], outputs: list[Value]) -> list[Value]:
    """Results of an operation, with what they are at finite widths where that is known.

    ``run`` is the operation on values of one term.
    """
    operands = [value for value in values if isinstance(value, Tensor)]
    vectors = [value for value in operands if not value.finite]
    if len(operands) < len(values) or any(map(_unexplained, vectors)):
        return outputs
    found = [out for out in outputs if isinstance(out, Tensor) and patches.rare(out)]
    layer = _common(ctx, vectors) if len(found) == len(outputs) else None
    shares = [patch.share for out in found for patch in patches.rare(out)]
    if layer is None or max(shares) > layer.share:
        return outputs
    arrays = []
    for number in range(2):
        there = _aside(ctx, run, [_plain(v, _at_width(v, layer, number)) for v in operands])
        if there is None or any(out.axis is None or out.exponents != ORDER_ONE for out in there):
            return outputs
        arrays.append([out.coefficient for out in there])
    both = zip(*arrays, strict=True)
    return [knowing(o, layer=layer._replace(arrays=a)) for o, a in zip(found, both, strict=True)]


def average(ctx: Context, run: Run, *values: Tensor) -> Tensor | None:
    """What boundary layers add to a sum over a width of a vector, or of the product of two.

    ``run`` is the sum of values of one term. None where it is not known.
    """
    known = [value.facts.layer for value in values if value.facts.layer is not None]
    if not known or any(map(_unexplained, values)) or not _alike(known):
        return None
    layer, rare = known[0], [replace(v, patches=patches.rare(v)) for v in values]
    level = max(patches.averaged(Fraction(1), *rare))
    sizes, errors = [], []
    for number, width in enumerate(layer.widths):
        found = _aside(ctx, functools.partial(_difference, run, layer, number), values)
        if found is None:
            return None
        scale = _power(width, 1 - level)
        sizes.append(scale * found[0].coefficient)
        errors.append(scale * found[0].stderr)
    # What is left is smaller by the share of the layer, half as large at the second width.
    total = 2 * sizes[1] - sizes[0]
    error = jnp.hypot(jnp.hypot(errors[0], 2 * errors[1]), _EXTRAPOLATION * (total - sizes[1]))
    error = jnp.where(_all_thin(known), error, jnp.inf)
    return tensor(total, Exponents(level), Exponents(level + layer.share), stderr=error)


# --- layers


def _common(ctx: Context, vectors: Sequence[Tensor]) -> Layer | None:
    """The layer that the result of an operation is followed in: that of its operands, or a new
    one where it saturates, or decides by a vector that grows and has a density at 0."""
    known = [vector.facts.layer for vector in vectors if vector.facts.layer is not None]
    if not _alike(known):
        return None
    thin = _all_thin(known)
    grown = [vector for vector in vectors if vector.exponents.max() > 0]
    jumps = isinstance(ctx.kind, Relation) or ctx.equation.primitive is p.sign_p
    if not grown or not (jumps or (isinstance(ctx.kind, Smooth) and _saturates(ctx.kind))):
        return known[0]._replace(thin=thin) if known else None
    whole = all(vector.exponents.uniform and vector.parity.fresh for vector in grown)
    levels = {vector.exponents.max() for vector in grown}
    if not whole or len(levels) > 1:
        return None
    (level,) = levels
    ratio = functools.reduce(jnp.minimum, [_over_thickness(vector) for vector in grown])
    if known:
        thin = thin & (_power(known[0].widths[0], level) * ratio >= _LEAST)
        return known[0]._replace(thin=thin)
    doublings = jnp.ceil(jnp.log2(_LEAST / (_USUAL * ratio)))
    size = _USUAL * 2 ** jnp.maximum(0, doublings)
    widths = (_power(size, 1 / level), _power(2 * size, 1 / level))
    return Layer(widths, -Fraction(level), thin, ())


def _over_thickness(vector: Tensor) -> Any:
    """Size of the growing term of a vector over that of the others and of where functions vary."""

    def size(term: Any) -> Any:
        return jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(term.coefficient)), vector.axis))

    first, *others = vector.terms
    beside = sum((size(term) for term in others), jnp.ones((), vector.dtype))
    return jnp.min(size(first) / beside)


@functools.cache
def _saturates(kind: Smooth) -> bool:
    """Whether a function goes to finite limits so fast that the layer has a finite content."""
    if kind.limits is None or not np.all(np.isfinite(kind.limits)):
        return False
    with jax.ensure_compile_time_eval():
        ends = np.asarray(kind.function(jnp.asarray([-_FAR, _FAR])), float)
    return bool(np.all(np.abs(ends - np.asarray(kind.limits)) * _FAR < _NEAR))


def _alike(layers: Sequence[Layer]) -> bool:
    return all(layer.share == layers[0].share for layer in layers)


def _all_thin(layers: Sequence[Layer]) -> Any:
    """Whether layers are evaluated at the same widths, and are thin there."""
    same = [layer.widths[0] == layers[0].widths[0] for layer in layers[1:]]
    return functools.reduce(operator.and_, [*same, *(layer.thin for layer in layers)], True)


def _unexplained(value: Tensor) -> bool:
    return bool(patches.rare(value)) and value.facts.layer is None


# --- values at finite widths


def _at_width(value: Tensor, layer: Layer, number: int) -> Any:
    """A value at one of the finite widths: as it was followed, or the sum of its terms."""
    own = value.facts.layer
    return _series(value, layer, number) if own is None else own.arrays[number]


def _series(value: Tensor, layer: Layer, number: int) -> Any:
    if value.dtype.kind != "f":
        return value.coefficient
    total: Any = 0
    for term in value.terms:
        for level in term.exponents.levels():
            mask = term.exponents.mask(level)
            scaled = jnp.asarray(term.coefficient) * _power(layer.widths[number], level)
            total = total + (scaled if mask.ndim == 0 else jnp.where(mask, scaled, 0))
    return jnp.asarray(total, value.dtype)


def _power(width: Any, exponent: Exponent) -> Any:
    return jnp.zeros(()) if exponent == -np.inf else width ** float(exponent)


def _difference(run: Run, layer: Layer, number: int, *values: Tensor) -> Tensor:
    """A sum, or sum of products, at a finite width less that of the series."""
    exact = [_plain(v, _at_width(v, layer, number)) for v in values]
    series = [_plain(v, _series(v, layer, number)) for v in values]
    parts = []
    for place, value in enumerate(values):
        if value.facts.layer is not None:
            gap = _plain(value, exact[place].coefficient - series[place].coefficient)
            parts.append(run(*series[:place], gap, *exact[place + 1 :]))
    total, error = (sum(getattr(x, name) for x in parts) for name in ("coefficient", "stderr"))
    return tensor(total, stderr=error)


def _plain(value: Tensor, array: Any) -> Tensor:
    return tensor(jnp.asarray(array), axis=value.axis, space=value.space)


def _aside(ctx: Context, run: Run, values: Sequence[Tensor]) -> list[Any] | None:
    """Results of values of one term, of which nothing need hold; None where there are none."""
    try:
        with doubts.aside(ctx):
            out = run(*values)
    except LimitError:
        return None
    return list(out) if isinstance(out, (list, tuple)) else [out]
