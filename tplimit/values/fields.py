"""What the fields of values are, told in their metadata, and what follows from it.

Every field of a value has one of the roles below. Whoever walks through values (to give other
labels to spaces and matrices, to place arrays on devices, to take one of several replicates) goes
by these, so that a new class or a new field is walked as soon as it says what it is::

    rows: Any = field(metadata=ALONG)
    row_parity: Parity = field(default=UNKNOWN, metadata=SPACES)
"""

from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any

import jax

#: Arrays laid out like the entries of a value: the width is the axis that its AXIS field tells.
ENTRIES = {"role": "entries"}
#: Arrays whose last axis is a width: coordinates ``(M,)``, or rows of them ``(k, M)``.
ALONG = {"role": "along"}
#: Arrays whose last two axes are widths: entries of a matrix ``(M_rows, M_columns)``.
PAIRS = {"role": "pairs"}
#: Arrays without a width.
FINITE = {"role": "finite"}
#: Arrays without a width that all replicates share.
COMMON = {"role": "common"}
#: Values inside: classes with roles, and tuples of them.
NESTED = {"role": "nested"}

# What follows is static: part of the compilation key.

#: A fact that names no space and no matrix.
STATIC = {"role": "static", "static": True}
#: The position of the width axis of ENTRIES, or None.
AXIS = {"role": "axis", "static": True}
#: Labels of spaces: one, None, tuples, sets, or a ``Parity``.
SPACES = {"role": "spaces", "static": True}
#: Label of a deferred matrix: its index in the bank.
STORE = {"role": "store", "static": True}

Renaming = Callable[[int], int]


def has_roles(value: Any) -> bool:
    """Whether a value, or a class, tells what its fields are."""
    return is_dataclass(value) and any("role" in f.metadata for f in fields(value))


def role(owner: Any, field: Field[Any]) -> str:
    """What a field is.

    Raises:
        TypeError: it does not say.
    """
    if "role" not in field.metadata:
        name = getattr(owner, "__name__", type(owner).__name__)
        raise TypeError(f"{name}.{field.name} does not say in its metadata what it is.")
    return str(field.metadata["role"])


def map_arrays(
    function: Callable[[Any, int | None, str], Any], tree: Any, axis: int | None = None
) -> Any:
    """``function(array, axis, role)`` for every array in a tree of values.

    ``axis`` is the position of the width axis, -1 for the last one, None where there is none. Of
    pairs it is that of the columns; the rows are before them.
    """

    def node(value: Any) -> Any:
        if not has_roles(value):
            return function(value, None, FINITE["role"])
        roles = {f.name: role(value, f) for f in fields(value)}
        own = next((getattr(value, name) for name in roles if roles[name] == "axis"), axis)
        places = {"entries": own, "along": -1, "pairs": -1, "finite": None, "common": None}
        found = {}
        for name, kind in roles.items():
            content = getattr(value, name)
            if kind == "nested":
                found[name] = map_arrays(function, content, own)
            elif kind in places:
                place = places[kind]
                found[name] = jax.tree.map(
                    lambda array, place=place, kind=kind: function(array, place, kind), content
                )
        return replace(value, **found)

    return jax.tree.map(node, tree, is_leaf=has_roles)


def relabelled(tree: Any, spaces: Renaming, stores: Renaming) -> Any:
    """The same values with other labels of spaces and of deferred matrices."""

    def node(value: Any) -> Any:
        if not has_roles(value):
            return value
        found = {}
        for field in fields(value):
            content, kind = getattr(value, field.name), role(value, field)
            if kind == "spaces":
                found[field.name] = renamed(content, spaces)
            elif kind == "store":
                found[field.name] = renamed(content, stores)
            elif kind == "nested":
                found[field.name] = relabelled(content, spaces, stores)
        return replace(value, **found)

    return jax.tree.map(node, tree, is_leaf=has_roles)


def stores_in(tree: Any) -> set[int]:
    """Labels of the deferred matrices that values refer to."""
    found: set[int] = set()

    def note(label: int) -> int:
        found.add(label)
        return label

    relabelled(tree, lambda label: label, note)
    return found


def renamed(labels: Any, name: Renaming) -> Any:
    """Labels by their new names, in the form they had: one, none, a collection or a parity."""
    if labels is None:
        return None
    if isinstance(labels, int):
        return name(labels)
    if isinstance(labels, (tuple, frozenset)):
        return type(labels)(renamed(label, name) for label in labels)
    return relabelled(labels, name, name)
