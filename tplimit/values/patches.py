"""What is unknown on some coordinates only (``values.Patch``), from operands to results.

Functions are taken to be Lipschitz continuous: they change by as much as their arguments. An
average over the width changes by the share of the coordinates times the size of the change.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp

from tplimit.values.exponents import EXACT_ZERO, Exponent
from tplimit.values.tensors import MatrixRemainder, Patch, Tensor, along


def bound_of(value: Tensor) -> Exponent:
    """Exponent that no coordinate exceeds, whatever is unknown of it."""
    known = max(value.exponents.max(), value.remainder.max())
    return max([known, *(patch.bound for patch in value.patches)])


def reach(value: Tensor) -> Any:
    """Coordinates ``(M,)`` where something known of a vector may differ from 0; None for all."""
    rows = reach_of_rows(value)
    return None if rows is None else jnp.any(rows, 0)


def reach_of_rows(value: Tensor) -> Any:
    """The same for every index of the finite axes, ``(k, M)``."""
    terms = [term for term in value.terms if term.exponents != EXACT_ZERO]
    if value.axis is None or any(term.zeros is None for term in terms):
        return None
    length = value.shape[value.axis]
    masks = [
        jnp.moveaxis(~jnp.broadcast_to(term.zeros, value.shape), value.axis, -1).reshape(-1, length)
        for term in terms
    ]
    masks += [patch.mask[None] for patch in value.patches if patch.mask is not None]
    if not masks:
        return None
    count = math.prod(value.shape) // length
    return jnp.broadcast_to(functools.reduce(operator.or_, masks), (count, length))


def rare(value: Tensor) -> tuple[Patch, ...]:
    """What is unknown of a vector on a vanishing share of its coordinates, nobody knows where."""
    return tuple(patch for patch in value.patches if patch.mask is None)


def without_rare(value: Tensor) -> Tensor:
    """The same vector without that."""
    return replace(value, patches=tuple(p for p in value.patches if p.mask is not None))


def joined(patches: Iterable[Patch]) -> tuple[Patch, ...]:
    """Patches as one on a vanishing share of the coordinates, and two with a mask."""

    def merged(a: Patch, b: Patch) -> Patch:
        mask = None if a.mask is None else a.mask | b.mask
        return Patch(max(a.share, b.share), max(a.bound, b.bound), mask)

    return _by_bound(patches, lambda patch: (patch.mask is None,), merged)


def joined_blocks(blocks: Iterable[MatrixRemainder]) -> tuple[MatrixRemainder, ...]:
    """Those of one kind as one, or as two with masks."""

    def kind(block: MatrixRemainder) -> tuple[bool, ...]:
        unmasked = block.rows is None and block.columns is None
        masks = block.rows is None, block.columns is None
        return unmasked, *masks, block.row_share < 0, block.column_share < 0

    def merged(a: MatrixRemainder, b: MatrixRemainder) -> MatrixRemainder:
        return MatrixRemainder(
            max(a.bound, b.bound),
            max(a.row_share, b.row_share),
            max(a.column_share, b.column_share),
            None if a.rows is None else a.rows | b.rows,
            None if a.columns is None else a.columns | b.columns,
        )

    return _by_bound(blocks, kind, merged)


def _by_bound(
    unknown: Iterable[Any], kind: Callable[[Any], tuple[bool, ...]], merged: Callable[..., Any]
) -> tuple[Any, ...]:
    """One of each kind; two of those with a mask, the largest bound by itself.

    Where the largest does not reach, the next term may be known, and decide.
    """
    found: dict[tuple[bool, ...], list[Any]] = {}
    for one in unknown:
        found.setdefault(kind(one), []).append(one)
    out = []
    for key in sorted(found):
        top = max(one.bound for one in found[key])
        groups = [[one for one in found[key] if key[0] or one.bound == top]]
        groups.append([one for one in found[key] if not key[0] and one.bound != top])
        out += [functools.reduce(merged, group) for group in groups if group]
    return tuple(out)


def with_patches(out: Tensor, *patches: Patch) -> Tensor:
    """A vector of which more is unknown; a finite array has no coordinates to choose from."""
    if not patches:
        return out
    if out.axis is None:
        return replace(out, remainder=out.remainder.maximum(*(p.average for p in patches)))
    length = out.shape[out.axis]
    fitting = [p for p in patches if p.mask is None or p.mask.shape[0] == length]
    # Shares of a width are other coordinates.
    lost = [p.average for p in patches if p.mask is not None and p.mask.shape[0] != length]
    return replace(
        out, patches=joined([*out.patches, *fitting]), remainder=out.remainder.maximum(*lost)
    )


def inheriting(out: Tensor, *values: Tensor, product: bool = False) -> Tensor:
    """A result, coordinate by coordinate, with what is unknown of its operands in places."""
    if out.axis is None:
        return out
    return with_patches(out, *_inherited(values, product))


def _inherited(values: Sequence[Tensor], product: bool) -> list[Patch]:
    """What is unknown of a product, or of a sum or function."""
    found = []
    for i, value in enumerate(values):
        others = [other for j, other in enumerate(values) if j != i]
        for patch in value.patches:
            if product:
                patch = patch + sum(bound_of(other) for other in others)
                for other in others:
                    mask = reach(other) if other.remainder == EXACT_ZERO else None
                    if patch.mask is not None and mask is not None:
                        patch = replace(patch, mask=patch.mask & mask)
            found.append(patch)
    return found


def averaged(gain: Fraction, *values: Tensor) -> list[Exponent]:
    """Exponents of what a sum over a width of the product of values does not know of these."""
    return [patch.average + gain for patch in _inherited(values, product=True)]


def remainder_everywhere(value: Tensor) -> Tensor:
    """The same value, what is unknown somewhere being unknown everywhere."""
    lost = value.remainder.maximum(*(patch.average for patch in value.patches))
    return replace(value, remainder=lost, patches=())


def undecided(value: Tensor, exponents: Any, left: Any) -> Any:
    """Entries among those that are ``left`` where a patch hides terms of these exponents."""
    masks = [p.mask for p in hiding(value, exponents)]
    found = jnp.zeros((), bool)
    for mask in masks:
        found = found | (left & along(mask, value))
    return found


def hiding(value: Tensor, exponents: Any) -> list[Patch]:
    """Patches with masks that reach up to terms of these exponents."""
    levels = [level for level in exponents.levels() if level != EXACT_ZERO.value]
    return [p for p in value.patches if p.mask is not None and levels and p.bound >= min(levels)]
