"""Convolutions and windows over finite axes, written as other operations.

A convolution is one contraction of the patches of an array with a kernel, over offsets and channels
at once; a pooled array is a sum or an extremum of patches. *Patches* are taken by a table of places
along every axis, ``table[o, k]``: which entry stands at place ``k`` of window ``o``, with -1 for
padding and for what a dilation leaves free. Strides, dilations and all kinds of padding are in
these tables, which are constants, so that what has rules (gather, dot_general, sums, extrema) does
the rest. Along a width there is no order, hence no window: there an operation stays as it is.

Of equal entries the first one is the largest, in the order of rows, as derivatives in reverse have
it (``select_and_scatter_add``). Forward, XLA takes one that hangs on how it orders the reduction.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import primitives as p

#: Axes of an array with their tables of places.
Tables = Mapping[int, np.ndarray]
#: Of every operand the axes that are widths; with how many shares that have just been put side by
#: side, as ``jax.vmap`` does it with the kernels of a convolution, else 1.
Widths = Sequence[Mapping[int, int]]

#: What stands at a place where there is no entry.
_NOTHING = -1


# --- patches


def table_of(
    length: int, window: int, stride: int, padding: tuple[int, int], dilation: int, base: int
) -> np.ndarray:
    """Places of an axis by windows and offsets; ``base`` is the dilation of the axis itself."""
    dilated = max(base * (length - 1) + 1, 0) + sum(padding)
    count = max(dilated - dilation * (window - 1) - 1 + stride, 0) // stride
    at = stride * np.arange(count)[:, None] + dilation * np.arange(window) - padding[0]
    there = (at % base == 0) & (at >= 0) & (at < base * length)
    return np.where(there, at // base, _NOTHING)


def patches(array: Any, tables: Tables) -> Any:
    """Every axis with a table as two: windows, and places in them. Nothing is zero."""
    for axis in sorted(tables, reverse=True):  # those before it stay where they are
        array = _by_table(array, axis, tables[axis])
    return array


def _by_table(array: Any, axis: int, table: np.ndarray) -> Any:
    length = array.shape[axis]
    if table.size == length and np.array_equal(table.ravel(), np.arange(length)):
        return _split(array, axis, *table.shape)
    if (table == _NOTHING).any():
        config = [(0, int(i == axis), 0) for i in range(array.ndim)]
        array = lax.pad(array, jnp.zeros((), array.dtype), config)
        table = np.where(table == _NOTHING, length, table)
    rest = (i for i in range(array.ndim + 1) if i not in (axis, axis + 1))
    return lax.gather(
        array,
        table[..., None].astype(np.int32),
        lax.GatherDimensionNumbers(tuple(rest), (axis,), (axis,)),
        tuple(1 if i == axis else d for i, d in enumerate(array.shape)),
        mode="promise_in_bounds",
    )


def _split(array: Any, axis: int, *lengths: int) -> Any:
    return lax.reshape(array, (*array.shape[:axis], *lengths, *array.shape[axis + 1 :]))


def _merged(array: Any, axis: int) -> Any:
    """An axis and the next one as one."""
    first, second = array.shape[axis : axis + 2]
    return lax.reshape(array, (*array.shape[:axis], first * second, *array.shape[axis + 2 :]))


def _places(tables: Tables) -> list[int]:
    """Where in patches the axes are that run through the places of the windows."""
    return [axis + k + 1 for k, axis in enumerate(sorted(tables))]


# --- convolutions


def _convolution(equation: Any, widths: Widths) -> Callable[..., Any] | None:
    params = equation.params
    spec = params["dimension_numbers"]
    both = zip((spec.lhs_spec, spec.rhs_spec), widths, strict=True)
    if any(axis in wide for axes, wide in both for axis in axes[2:]):
        return None
    shares = widths[0].get(spec.lhs_spec[0], 1), widths[1].get(spec.rhs_spec[0], 1)
    # A matrix is not split into groups, unless it came from there: what comes of it is.
    groups = params["feature_group_count"] * params["batch_group_count"]
    whole = set(spec.rhs_spec[:2]) <= set(widths[1]) and shares[1] != groups
    return functools.partial(_convolved, equation.outvars[0].aval, params, whole, shares)


def _convolved(
    out: Any, params: dict[str, Any], whole: bool, shares: tuple[int, int], x: Any, kernel: Any
) -> Any:
    """A convolution as a contraction of patches; ``whole``: the kernel is not split into groups.

    Axes go by names: windows ``o0, o1, ..`` and places in them ``p0, ..`` along space, ``batch``,
    ``channel``, ``output`` and ``group``.
    """
    if 0 in out.shape:
        return jnp.zeros(out.shape, out.dtype)
    spec = params["dimension_numbers"]
    space = spec.lhs_spec[2:]
    lengths = [x.shape[axis] for axis in space], [kernel.shape[axis] for axis in spec.rhs_spec[2:]]
    settings = "window_strides", "padding", "rhs_dilation", "lhs_dilation"
    each = zip(*lengths, *(params[name] for name in settings), strict=True)
    x = patches(x, {axis: table_of(*one) for axis, one in zip(space, each, strict=True)})
    windows, places = ([f"{kind}{k}" for k in range(len(space))] for kind in "op")
    ours = _names(spec.lhs_spec, "batch", "channel", *windows)
    for window, place in zip(windows, places, strict=True):
        ours.insert(ours.index(window) + 1, place)
    theirs = _names(spec.rhs_spec, "output", "channel", *places)
    wanted = _names(spec.out_spec, "batch", "output", *windows)
    groups, batches = params["feature_group_count"], params["batch_group_count"]
    contracted = functools.partial(
        _contracted, precision=params["precision"], dtype=params["preferred_element_type"]
    )
    if groups * batches == 1:
        if shares[0] > 1:
            x, ours = _in_groups(x, ours, "batch", shares[0], "of batch")
        if shares[1] > 1:
            kernel, theirs = _in_groups(kernel, theirs, "output", shares[1], "of output")
        met, found = contracted(x, ours, kernel, theirs)
        together = [name for name in wanted if f"of {name}" in found]
        for name in together:
            wanted.insert(wanted.index(name), f"of {name}")
        met = _in_order_of(met, found, wanted)
        for name in together:
            met = _merged(met, wanted.index(name) - 1)
            wanted.remove(f"of {name}")
        return met
    x, ours = _in_groups(x, ours, "batch" if batches > 1 else "channel", groups * batches)
    if whole:  # all outputs of all groups, then of each group its own ones
        met, found = contracted(x, ours, kernel, theirs)
        met, found = _in_groups(met, found, "output", groups * batches, "own")
        met = _diagonal(met, found.index("group"), found.index("own"))
        found = ["group", *(name for name in found if name not in ("group", "own"))]
    else:
        met, found = contracted(x, ours, *_in_groups(kernel, theirs, "output", groups * batches))
    at = wanted.index("output")
    return _merged(_in_order_of(met, found, [*wanted[:at], "group", *wanted[at:]]), at)


def _names(spec: Sequence[int], *names: str) -> list[str]:
    """Names of the axes at these places."""
    return [name for _, name in sorted(zip(spec, names, strict=True))]


def _in_order_of(array: Any, names: list[str], wanted: list[str]) -> Any:
    return lax.transpose(array, [names.index(name) for name in wanted])


def _contracted(
    x: Any, ours: list[str], y: Any, theirs: list[str], precision: Any, dtype: Any
) -> tuple[Any, list[str]]:
    """Products with each group by itself, summed over all other axes that both have."""
    batch = [name for name in ours if name in theirs and name == "group"]
    over = [name for name in ours if name in theirs and name != "group"]
    at = lambda names: ([ours.index(n) for n in names], [theirs.index(n) for n in names])
    met = lax.dot_general(x, y, (at(over), at(batch)), precision, dtype)
    free = [name for name in (*ours, *theirs) if name not in (*batch, *over)]
    return met, [*batch, *free]


def _in_groups(
    array: Any, names: list[str], axis: str, groups: int, name: str = "group"
) -> tuple[Any, list[str]]:
    place = names.index(axis)
    split = _split(array, place, groups, array.shape[place] // groups)
    return split, [*names[:place], name, *names[place:]]


def _diagonal(array: Any, first: int, second: int) -> Any:
    """The entries with equal places along two axes, along a new first axis."""
    places = np.repeat(np.arange(array.shape[first], dtype=np.int32)[:, None], 2, axis=1)
    return lax.gather(
        array,
        places,
        lax.GatherDimensionNumbers(
            tuple(range(1, array.ndim - 1)), (first, second), (first, second)
        ),
        tuple(1 if i in (first, second) else d for i, d in enumerate(array.shape)),
        mode="promise_in_bounds",
    )


# --- windows


def _tables(shape: Sequence[int], params: dict[str, Any], wide: Sequence[int]) -> Tables | None:
    """The tables of the axes that windows run along; None where one of them is a width."""
    ones = (1,) * len(shape)
    settings = (
        params["window_dimensions"], params["window_strides"], params["padding"],
        params.get("window_dilation", ones), params.get("base_dilation", ones),
    )  # fmt: skip
    trivial = 1, 1, (0, 0), 1, 1
    tables = {}
    for axis, (length, window, stride, padding, dilation, base) in enumerate(
        zip(shape, *settings, strict=True)
    ):
        if (window, stride, tuple(padding), base) == (*trivial[:3], 1):
            continue
        if axis in wide:
            return None
        tables[axis] = table_of(length, window, stride, tuple(padding), dilation, base)
    return tables


def _windows(
    write: Callable[..., Any], empty: bool, equation: Any, widths: Widths
) -> Callable[..., Any] | None:
    """``write`` with the tables of an equation; ``empty``: also where a window holds no entry."""
    windowed = equation.invars[-1].aval  # of a derivative its operand is the last one
    out = equation.outvars[0].aval
    tables = _tables(windowed.shape, equation.params, sorted({a for one in widths for a in one}))
    if tables is None:
        return None
    if 0 in out.shape or any(0 in table.shape for table in tables.values()):
        return lambda *operands: jnp.zeros(out.shape, out.dtype)
    if not empty and any((table == _NOTHING).all(axis=1).any() for table in tables.values()):
        return None
    return functools.partial(write, tables, equation)


def _sums(tables: Tables, equation: Any, x: Any) -> Any:
    return _summed(patches(x, tables), _places(tables))


def _summed(x: Any, axes: Sequence[int]) -> Any:
    return lax.reduce(x, np.zeros((), x.dtype), lax.add, axes) if axes else x


def _extrema(tables: Tables, equation: Any, x: Any) -> Any:
    """Where nothing is, an entry of the same window stands once more."""
    filled = {axis: _filled(table) for axis, table in tables.items()}
    extremum = jnp.max if equation.primitive is p.reduce_window_max_p else jnp.min
    return extremum(patches(x, filled), axis=tuple(_places(tables)))


def _filled(table: np.ndarray) -> np.ndarray:
    there = table != _NOTHING
    order = np.where(there, np.arange(table.shape[1]), np.argmax(there, axis=1)[:, None])
    return np.take_along_axis(table, np.maximum.accumulate(order, axis=1), axis=1)


def _selected_entries(tables: Tables, equation: Any, entries: Any, x: Any) -> Any:
    """``select_and_gather_add``: of every window the entry where ``x`` is largest."""
    marks = _marks(x, tables, equation.params["select_prim"] is p.ge_p)
    return _summed(marks * patches(entries, tables), _places(tables))


def _put_back(tables: Tables, equation: Any, values: Any, x: Any) -> Any:
    """``select_and_scatter_add``: the value of every window added where ``x`` is largest in it."""
    marks = _marks(x, tables, equation.params["select_prim"] is p.ge_p)
    found = marks * lax.expand_dims(values, _places(tables))
    for axis in sorted(tables):
        found = _merged(found, axis)
    windows = {axis: _inverse(table, x.shape[axis]) for axis, table in tables.items()}
    return _summed(patches(found, windows), _places(windows))


def _inverse(table: np.ndarray, length: int) -> np.ndarray:
    """For every entry of an axis the places, as one number, where a table has it."""
    places = [np.flatnonzero(table.ravel() == entry) for entry in range(length)]
    most = max(map(len, places))
    pad = lambda found: np.pad(found, (0, most - len(found)), constant_values=_NOTHING)
    return np.stack([pad(found) for found in places])


def _marks(x: Any, tables: Tables, largest: bool) -> Any:
    """1 at the first largest entry of every window, 0 elsewhere, in the shape of patches."""

    def side_by_side(chosen: dict[int, np.ndarray], left: Sequence[int]) -> Any:
        """Windows with nothing at the same places are marked together: what stands there in the
        place of nothing must not be as large as anything."""
        if not left:
            return _first_largest(x, chosen, tables, largest)
        axis, *others = left
        kinds = [tuple(row) for row in tables[axis] != _NOTHING]
        ends = [k for k in range(1, len(kinds)) if kinds[k] != kinds[k - 1]]
        parts = [
            side_by_side({**chosen, axis: rows}, others) for rows in np.split(tables[axis], ends)
        ]
        place = _places(tables)[sorted(tables).index(axis)] - 1
        return parts[0] if len(parts) == 1 else lax.concatenate(parts, place)

    return side_by_side({}, sorted(tables))


def _first_largest(x: Any, chosen: Tables, tables: Tables, largest: bool) -> Any:
    """Marks of windows that have entries at the same places."""
    there = {axis: np.flatnonzero(rows[0] != _NOTHING) for axis, rows in chosen.items()}
    x = patches(x, {axis: rows[:, there[axis]] for axis, rows in chosen.items()})
    axes = _places(chosen)
    order = [*axes, *(axis for axis in range(x.ndim) if axis not in axes)]
    x = lax.transpose(x, order)
    lengths, x = x.shape[: len(axes)], lax.collapse(x, 0, len(axes))
    extremum = jnp.max if largest else jnp.min
    equal = lax.eq(x, extremum(x, axis=0, keepdims=True))
    if len(x) > 1:
        before = lax.cumsum(equal.astype(x.dtype), axis=0)
        equal = equal & (before < 1.5)
    marks = lax.reshape(equal.astype(x.dtype), (*lengths, *x.shape[1:]))
    marks = lax.transpose(marks, np.argsort(order))
    for axis, place in zip(sorted(tables), axes, strict=True):
        marks = _spread(marks, place, there[axis], tables[axis].shape[1])
    return marks


def _spread(marks: Any, axis: int, places: np.ndarray, length: int) -> Any:
    """What stands at these places along an axis, zeros at the others."""
    table = np.full((length, 1), _NOTHING)
    table[places, 0] = np.arange(len(places))
    return lax.squeeze(_by_table(marks, axis, table), (axis + 1,))


def _in_order(equation: Any, widths: Widths) -> Callable[..., Any] | None:
    """A reshape that reads its operand in another order of the axes."""
    order = equation.params["dimensions"]
    if order is None:
        return None
    return lambda x: lax.reshape(lax.transpose(x, order), equation.params["new_sizes"])


#: How operations are written as others: functions that give a program of the operands, or None.
WRITTEN: dict[Any, Callable[[Any, Widths], Callable[..., Any] | None]] = {
    p.conv_general_dilated_p: _convolution,
    p.reduce_window_sum_p: functools.partial(_windows, _sums, True),
    p.reduce_window_max_p: functools.partial(_windows, _extrema, False),
    p.reduce_window_min_p: functools.partial(_windows, _extrema, False),
    p.select_and_gather_add_p: functools.partial(_windows, _selected_entries, False),
    p.select_and_scatter_add_p: functools.partial(_windows, _put_back, False),
    p.reshape_p: _in_order,
}


__all__ = ["WRITTEN", "Widths"]
