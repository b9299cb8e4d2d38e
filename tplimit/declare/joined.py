"""Parameters with an axis of length ``k + n``: their pieces, side by side."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SideBySide:
    """An array as its parts along an axis, such as a kernel ``(k + n, n)`` of an input and a state
    side by side. A part has a width there or an integer length.

    Functions of parameters see one array; the parts are leaves of the tree in its place.

    Attributes:
        parts: declarations, or limit values.
        axis: along which they stand.
    """

    parts: tuple[Any, ...]
    axis: int = field(metadata={"static": True})


def _is_joined(leaf: Any) -> bool:
    return isinstance(leaf, SideBySide)


def put_together(tree: Any) -> Any:
    """The same tree with one array where there were parts of one."""

    def whole(leaf: Any) -> Any:
        return jnp.concatenate(leaf.parts, leaf.axis) if _is_joined(leaf) else leaf

    return jax.tree.map(whole, tree, is_leaf=_is_joined)


def of_parts(function: Callable[..., Any], declared: Any) -> tuple[Callable[..., Any], Any]:
    """A function of parameters and other arguments as one of the parts of these, and the parts:
    for what takes parameters one by one, such as derivatives."""
    if not any(map(_is_joined, jax.tree.leaves(declared, is_leaf=_is_joined))):
        return function, declared
    leaves, tree = jax.tree.flatten(declared)

    def of_leaves(leaves: Any, *others: Any) -> Any:
        return function(put_together(jax.tree.unflatten(tree, leaves)), *others)

    return of_leaves, leaves


def lengths_in(tree: Any) -> dict[int, tuple[int, ...]]:
    """How axes are cut that arrays in a tree are put together along, by their lengths."""
    found = [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_joined) if _is_joined(leaf)]
    cuts = [tuple(part.shape[leaf.axis] for part in leaf.parts) for leaf in found]
    return {sum(lengths): lengths for lengths in cuts}


def taken_apart(tree: Any, lengths: dict[int, tuple[int, ...]]) -> Any:
    """The same tree with parts in the place of arrays that have an axis of such a length."""

    def parts(leaf: Any) -> Any:
        axes = [axis for axis, length in enumerate(jnp.shape(leaf)) if length in lengths]
        if len(axes) != 1:
            return leaf
        return SideBySide(_cut(leaf, axes[0], lengths[leaf.shape[axes[0]]]), axes[0])

    return jax.tree.map(parts, tree) if lengths else tree


def _cut(array: Any, axis: int, lengths: Sequence[int]) -> tuple[Any, ...]:
    ends = itertools.accumulate(lengths, initial=0)
    return tuple(
        lax.slice_in_dim(array, start, end, axis=axis) for start, end in itertools.pairwise(ends)
    )
