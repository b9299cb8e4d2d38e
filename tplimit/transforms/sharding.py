"""Particles shared between devices: how the arrays of limit values lie on a mesh.

Only the particle axis is divided, over all axes of the mesh together; everything finite is on
every device. Averages over a width become sums over devices, all else is local.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tplimit.errors import WidthError
from tplimit.values.fields import map_arrays


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


def layout(mesh: Mesh, tree: Any, leading: int = 0) -> Any:
    """The sharding of every array in a tree of values and banks, as a tree of the same form.

    ``leading`` is the number of axes of replicates before those of the values.
    """

    def place(array: Any, axis: int | None, role: str) -> NamedSharding:
        shape = np.shape(array)
        spec: list[Any] = [None] * len(shape)
        if axis is not None and axis >= 0:
            axis += leading
        if axis is not None and axis < len(shape) and shape[axis] % mesh.size == 0:
            spec[axis] = mesh.axis_names
        return NamedSharding(mesh, PartitionSpec(*spec))

    return map_arrays(place, tree)


def constrained(mesh: Mesh | None, tree: Any) -> Any:
    """A tree of values and banks that is being computed, laid out on the mesh."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout(mesh, tree))


def placed(mesh: Mesh, tree: Any, leading: int = 0) -> Any:
    """A tree of values and banks, moved onto the mesh (see ``layout``)."""
    return jax.device_put(tree, layout(mesh, tree, leading))
