"""Particles shared between devices: how the arrays of limit values lie on a mesh.

Only the particle axis is divided, over all axes of the mesh together; everything finite is on
every device. Averages over a width become sums over devices, all else is local.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tplimit.bank import Bank
from tplimit.errors import WidthError
from tplimit.gaussian.deferred import Store
from tplimit.low_rank import LowRank
from tplimit.values import Tensor


def for_particles(mesh: Mesh, samples: int) -> Mesh:
    """The mesh as it is used here: the compiler places what follows from the particles.

    ``jax.make_mesh`` makes axes of another type by default.

    Raises:
        WidthError: ``samples`` is no multiple of the number of devices.
    """
    if samples % mesh.size:
        raise WidthError(
            f"{samples} samples cannot be divided evenly among {mesh.size} devices.",
            advice=f"Use a multiple of {mesh.size}; powers of two are best.",
        )
    return Mesh(mesh.devices, mesh.axis_names)


def layout(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every array in a tree of values and banks, as a tree of the same form."""

    def place(array: Any, axis: int | None) -> Any:
        if array is None:
            return None
        shape = np.shape(array)
        spec: list[Any] = [None] * len(shape)
        if axis is not None and axis < len(shape) and shape[axis] % mesh.size == 0:
            spec[axis] = mesh.axis_names
        return NamedSharding(mesh, PartitionSpec(*spec))

    def node(value: Any) -> Any:
        if isinstance(value, Tensor):
            return jax.tree.map(lambda array: place(array, value.axis), value)
        if isinstance(value, LowRank):
            scale = jax.tree.map(lambda array: place(array, None), value.scale)
            return replace(
                value,
                rows=place(value.rows, 1),
                columns=place(value.columns, 1),
                scale=scale,
                row_mask=place(value.row_mask, 0),
                column_mask=place(value.column_mask, 0),
            )
        if isinstance(value, Store):
            finite = jax.tree.map(lambda array: place(array, None), value)
            return replace(finite, X=place(value.X, 1), Y=place(value.Y, 1))
        if isinstance(value, Bank):
            return replace(
                value,
                stores=tuple(node(store) for store in value.stores),
                anchors=tuple(place(anchor, 1) for anchor in value.anchors),
                directions=place(value.directions, None),
                orders=tuple(place(order, 0) for order in value.orders),
                key=place(value.key, None),
            )
        return place(value, None)

    kinds = (Tensor, LowRank, Bank)
    return jax.tree.map(node, tree, is_leaf=lambda value: isinstance(value, kinds))


def constrained(mesh: Mesh | None, tree: Any) -> Any:
    """A tree of values and banks that is being computed, laid out on the mesh."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout(mesh, tree))


def placed(mesh: Mesh | None, tree: Any) -> Any:
    """A tree of values and banks, moved onto the mesh."""
    return tree if mesh is None else jax.device_put(tree, layout(mesh, tree))
