"""Points of a vector that are moved, repeated, left out, or summed over: patches and pooling.

A convolution is a dense layer of patches, whose places are points as those of a batch are. What is
moved is told by numbers: an array of the shape of the vector without its coordinates, in which
every entry is the number of a point of the Gaussian vector behind it, -1 for nothing. A last axis
has the points that are summed. A quadratic form over the points, a kernel, follows by the numbers.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit._jax import primitives as p
from tplimit.kernels.programs.fields import Field, Gaussian, Number, Power, Value
from tplimit.program.equations import Equation
from tplimit.program.traits import Linear, kind_of
from tplimit.values.exponents import Size

#: Kernels over more points than this are left to particles.
MOST_POINTS = 2**13


def numbers_of(x: Field) -> np.ndarray:
    """The points of a vector, as numbers."""
    if x.points is not None:
        return x.points
    lengths = [d for axis, d in enumerate(x.shape) if axis != x.axis]
    return np.arange(np.prod(lengths, dtype=int)).reshape(*lengths, 1)


def moved(e: Equation, values: list[Value] | Any) -> Field | None:
    """A vector of which an operation moves the points, or sums over some; None if it does not.

    The operation is applied to the numbers of points, the axis of the coordinates having length 1.
    """
    x, *others = values
    widths = [{d for d in a.shape if isinstance(d, Size)} for a in (e.in_avals[0], e.out_avals[0])]
    if widths[0] != widths[1]:
        return None
    if not isinstance(x, Field) or not all(isinstance(value, Number) for value in others):
        return None
    if x.axis is not None and not isinstance(x.shape[x.axis], Size):
        if x.shape[x.axis] != 1:
            return None
        x = replace(x, axis=None)
    numbers = numbers_of(x)
    if x.axis is not None:
        numbers = np.expand_dims(numbers, x.axis)
    if e.primitive is p.reduce_sum_p:
        axes = e.params["axes"]
        if x.axis in axes:
            return None
        left = [axis for axis in range(len(x.shape)) if axis not in axes]
        numbers = np.transpose(numbers, (*left, *axes, numbers.ndim - 1))
        numbers = numbers.reshape(*numbers.shape[: len(left)], -1)
    else:
        found = _of_each(e, numbers, others)
        if found is None:
            return None
        numbers = found
    axis = next(iter(e.out_avals[0].width_axes), None)
    if axis is not None:
        numbers = np.take(numbers, 0, axis=axis)
    return replace(x, points=numbers, axis=axis, shape=e.out_avals[0].shape)


def _of_each(e: Equation, numbers: np.ndarray, others: list[Any]) -> np.ndarray | None:
    """The operation on the numbers of the points that are summed, one after the other."""
    kind = kind_of(e.primitive)
    if not isinstance(kind, Linear) or not kind.moves or kind.places not in ((0,), (0, 1)):
        return None
    arrays = [value.array for value in others]
    if e.primitive is p.pad_p:
        if np.any(arrays[0]):
            return None
        arrays = [np.int32(-1)]
    elif kind.places != (0,):
        return None
    params = jax.tree.map(lambda v: 1 if isinstance(v, Size) else v, e.params)
    with jax.ensure_compile_time_eval():
        given = [jnp.asarray(array) for array in arrays]
        each = [
            e.primitive.bind(jnp.asarray(numbers[..., k], jnp.int32), *given, **params)
            for k in range(numbers.shape[-1])
        ]
    return None if e.primitive.multiple_results else np.stack(list(map(np.asarray, each)), axis=-1)


def settled(x: Field) -> Field:
    """A Gaussian vector whose points have been summed or left empty is one of its own."""
    if x.function is not None or x.points is None:
        return x
    places = x.points.reshape(-1, 1, x.points.shape[-1])
    g = x.gaussian
    gaussian = Gaussian(over_places(g.K, places), over_places(g.Theta, places), g.parts)
    return replace(x, gaussian=gaussian, points=None)


def only_moved(x: Field) -> bool:
    """Whether every point is one of the Gaussian vector."""
    return x.points is None or (x.points.shape[-1] == 1 and bool((x.points >= 0).all()))


def over_places(kernel: Power, places: np.ndarray) -> Power:
    """A kernel of sums of points ``places[i, q]``, summed over ``q``: ``(P', Q, m)``."""
    array = jnp.pad(kernel.array, ((0, 1), (0, 1)))  # nothing is the last point
    total = sum(_between(array, places[:, q]) for q in range(places.shape[1]))
    return Power(jnp.asarray(total), kernel.exponent)


def _between(array: Array, places: np.ndarray) -> Array:
    if places.shape[1] == 1:
        at = places[:, 0]
        return array[at][:, at]
    counts = np.zeros((len(places), len(array)), array.dtype)
    np.add.at(counts, (np.arange(len(places))[:, None], places), 1)
    once = jnp.matmul(counts, array, precision="highest")
    return jnp.matmul(once, counts.T, precision="highest")


__all__ = ["MOST_POINTS", "moved", "numbers_of", "only_moved", "over_places", "settled"]
