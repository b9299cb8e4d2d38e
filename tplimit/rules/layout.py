"""Operations that move entries without changing them: along finite axes they pass through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import matrices
from tplimit._jax import primitives as p
from tplimit._jax import split_p
from tplimit.algebra import frame
from tplimit.errors import NoLimitError
from tplimit.interpret import RULES, Context
from tplimit.rules.contraction import permuted
from tplimit.values import Matrices, Tensor, Value, demoted, map_items, tensor
from tplimit.widths import NONE, Exponents, Size

_ORDER = "The coordinates along a width are exchangeable: they have no order and no first one."


def moved(ctx: Context, value: Tensor, *indices: Any) -> Tensor:
    """The current primitive on coefficient, exponents and masks alike."""
    assert ctx.equation is not None
    axes = ctx.equation.out_avals[0].width_axes
    axis = axes[0] if axes else None

    def move(array: Any) -> Any:
        return None if array is None else ctx.rebind(array, *indices)

    coefficient = move(value.coefficient)
    value = _movable(value, indices)
    exponents = _moved_exponents(ctx, value.exponents, value, axis, indices)
    remainder = _moved_exponents(ctx, value.remainder, value, axis, indices)
    noise = value.noise
    if noise is not None:
        noise = move(jnp.broadcast_to(noise, value.shape))
    zeros = None if axis is None or p.scatter_add_p is ctx.equation.primitive else move(value.zeros)
    space = value.space if axis is not None and _same_width(ctx, axis) else None
    return tensor(coefficient, exponents, remainder, axis, space, noise, zeros)


def _movable(value: Tensor, indices: Any) -> Tensor:
    """Exponents that differ per entry can only follow indices that are known."""
    known = all(isinstance(i, (np.ndarray, np.generic)) for i in indices)
    return value if known else demoted(value)


def _same_width(ctx: Context, axis: int) -> bool:
    assert ctx.equation is not None
    out = ctx.equation.out_avals[0].shape[axis]
    return any(out in aval.shape for aval in ctx.equation.in_avals[:1])


def _moved_exponents(
    ctx: Context, exponents: Exponents, value: Tensor, axis: int | None, indices: Any
) -> Exponents:
    if exponents.uniform:
        return exponents
    levels = sorted(set(exponents.array.flat))
    code = {level: number for number, level in enumerate(levels)}
    codes = np.broadcast_to(
        np.vectorize(code.__getitem__, otypes=[np.int32])(exponents.array), value.shape
    )
    assert ctx.equation is not None
    params = ctx.resolve(ctx.equation.params)
    with jax.ensure_compile_time_eval():
        out = np.asarray(
            ctx.equation.primitive.bind(jnp.asarray(codes), *map(jnp.asarray, indices), **params)
        )
    if axis is not None:
        out = np.take(out, [0], axis=axis)
    return Exponents(np.array(levels, dtype=object)[out])


@RULES(p.broadcast_in_dim_p)
def broadcast(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Repetition along new axes. A finite number along a width is a constant vector."""
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    if isinstance(value, Matrices):
        return _broadcast_matrices(ctx, value)
    if len(aval.width_axes) > 2:
        ctx.fail("An array with three width axes.")
    if len(aval.width_axes) == 2:
        return _broadcast_to_matrix(ctx, value)
    if value.vanishes:
        return _zeros(ctx, value)
    return moved(ctx, value)


def _zeros(ctx: Context, value: Tensor) -> Tensor:
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    axis = aval.width_axes[0] if aval.width_axes else None
    zeros = np.broadcast_to(np.zeros((), value.dtype), ctx.shape(aval.shape))
    return tensor(zeros, NONE, NONE, axis, value.space)


def _broadcast_to_matrix(ctx: Context, value: Tensor) -> Matrices:
    assert ctx.equation is not None
    aval, source = ctx.equation.out_avals[0], ctx.equation.params["broadcast_dimensions"]
    first, second = aval.width_axes
    rows, columns = aval.shape[first], aval.shape[second]
    assert isinstance(rows, Size) and isinstance(columns, Size)
    shape = tuple(int(d) for d in aval.shape if not isinstance(d, Size))
    items = np.empty(shape, dtype=object)
    if not value.shape:
        for index in np.ndindex(shape):
            items[index] = matrices.constant(ctx, rows, columns, value)
        return Matrices(items, (first, second))
    if value.axis is None or len(value.shape) > 1 or shape:
        ctx.fail("This array is broadcast along two width axes.")
    ones = jnp.ones((1, ctx.size(columns if source[value.axis] == first else rows)), value.dtype)
    constant = tensor(ones, axis=1)
    row = tensor(value.coefficient[None], value.exponents, value.remainder, 1, value.space)
    left, right = (row, constant) if source[value.axis] == first else (constant, row)
    items[()] = matrices.outer(ctx, left, right, rows, columns, 1)
    return Matrices(items, (first, second))


def _broadcast_matrices(ctx: Context, value: Matrices) -> Matrices:
    assert ctx.equation is not None
    params = ctx.equation.params
    target, source = params["shape"], params["broadcast_dimensions"]
    axes = (source[value.axes[0]], source[value.axes[1]])
    finite_out = [i for i in range(len(target)) if i not in axes]
    at = {source[axis]: i for i, axis in enumerate(value.finite_axes)}
    view = value.items.reshape(
        [value.items.shape[at[i]] if i in at else 1 for i in finite_out]
    )
    shape = [int(target[i]) for i in finite_out]
    return Matrices(np.broadcast_to(view, shape).copy(), axes)


@RULES(p.transpose_p)
def transpose(ctx: Context, value: Value, permutation: tuple[int, ...]) -> Value:
    """Axes in a new order."""
    return permuted(value, list(permutation))


@RULES(p.reshape_p)
def reshape(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Merging and splitting of axes. A width may be split into (finite, width), as in heads,
    or merged from it; its coordinates may not be put in another order."""
    assert ctx.equation is not None
    old, new = ctx.equation.in_avals[0].shape, ctx.equation.out_avals[0].shape
    _check_reshape(ctx, old, new)
    if isinstance(value, Matrices):
        return _reshape_matrices(ctx, value)
    return moved(ctx, _merged_levels(value, new))


def _merged_levels(value: Tensor, new: tuple[Any, ...]) -> Tensor:
    """Exponents may differ along finite axes only, also after a merge with a width."""
    merged = value.axis is not None and value.axis > 0 and len(new) < len(value.shape)
    return demoted(value) if merged and not value.exponents.uniform else value


def _check_reshape(ctx: Context, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    widths = [d for d in old if isinstance(d, Size)], [d for d in new if isinstance(d, Size)]
    bad = any(d.power != 1 for side in widths for d in side) or len(widths[0]) != len(widths[1])
    if not bad:
        bad = [_tail(old, k) for k in range(len(widths[0]))] != [
            _tail(new, k) for k in range(len(widths[1]))
        ]
    if bad:
        ctx.fail(
            "A width is reshaped into something else than a width.",
            NoLimitError,
            "Only (finite, width) groups may be merged or split, as in reshape(b, heads, n // heads).",
        )


def _tail(shape: tuple[Any, ...], number: int) -> int:
    """Product of the finite lengths between a width axis and the next one (or the end)."""
    positions = [i for i, d in enumerate(shape) if isinstance(d, Size)]
    end = len(shape)
    if number + 1 < len(positions):
        end = positions[number + 1]
        return 0 if end - positions[number] > 1 else 1
    return int(np.prod([d for d in shape[positions[number] + 1 : end]], dtype=int))


def _reshape_matrices(ctx: Context, value: Matrices) -> Matrices:
    assert ctx.equation is not None
    new = ctx.equation.out_avals[0]
    axes = new.width_axes
    old_sizes = [ctx.equation.in_avals[0].shape[i] for i in value.axes]
    if [new.shape[i] for i in axes] != old_sizes:
        ctx.fail("A width axis of a matrix is split or merged.")
    shape = tuple(int(d) for d in new.shape if not isinstance(d, Size))
    return Matrices(value.items.reshape(shape), (axes[0], axes[1]))


@RULES(p.squeeze_p)
def squeeze(ctx: Context, value: Value, dimensions: tuple[int, ...]) -> Value:
    """Removal of axes of length one."""
    if not isinstance(value, Matrices):
        return moved(ctx, value)
    left = [axis for axis in range(value.ndim) if axis not in dimensions]
    gone = tuple(i for i, axis in enumerate(value.finite_axes) if axis in dimensions)
    axes = (left.index(value.axes[0]), left.index(value.axes[1]))
    return Matrices(np.squeeze(value.items, gone) if gone else value.items, axes)


@RULES(p.rev_p)
def reverse(ctx: Context, value: Value, dimensions: tuple[int, ...]) -> Value:
    """Reversal along finite axes."""
    if isinstance(value, Matrices):
        _finite_only(ctx, value, dimensions)
        flips = tuple(i for i, axis in enumerate(value.finite_axes) if axis in dimensions)
        return Matrices(np.flip(value.items, flips), value.axes)
    if value.axis in dimensions:
        ctx.fail(f"A width is reversed. {_ORDER}", NoLimitError)
    return moved(ctx, value)


def _finite_only(ctx: Context, value: Matrices, dimensions: Any) -> None:
    if any(axis in dimensions for axis in value.axes):
        ctx.fail(f"A width axis of a matrix is indexed. {_ORDER}", NoLimitError)


@RULES(p.slice_p)
def slice_(ctx: Context, value: Value, **params: Any) -> Value:
    """A part along finite axes, or a share of a width such as one gate of (3n)."""
    assert ctx.equation is not None
    starts, limits, strides = (
        params["start_indices"], params["limit_indices"], params["strides"]
    )  # fmt: skip
    shape = ctx.equation.in_avals[0].shape
    for axis, dim in enumerate(shape):
        if isinstance(dim, Size) and (starts[axis] != 0 or limits[axis] != dim):
            _check_share(ctx, starts[axis], limits[axis])
        if isinstance(dim, Size) and strides is not None and strides[axis] != 1:
            ctx.fail(f"A strided slice along a width. {_ORDER}", NoLimitError)
    if isinstance(value, Matrices):
        if any(shape[a] != ctx.equation.out_avals[0].shape[a] for a in value.axes):
            ctx.fail("A slice of a matrix along a width.")
        index = tuple(
            slice(starts[a], limits[a], 1 if strides is None else strides[a])
            for a in value.finite_axes
        )
        return Matrices(value.items[index], value.axes)
    return moved(ctx, value)


def _check_share(ctx: Context, start: Any, limit: Any) -> None:
    if (start == 0 or isinstance(start, Size)) and isinstance(limit, Size):
        return
    ctx.fail(
        f"Single coordinates of a width are taken (from {start} to {limit}). {_ORDER}",
        NoLimitError,
        "Average over the width, or keep this part in a separate parameter of finite size.",
    )


@RULES(split_p)
def split(ctx: Context, value: Value, sizes: tuple[Any, ...], axis: int) -> list[Value]:
    """Parts along a finite axis, or shares of a width such as the gates of (3n)."""
    assert ctx.equation is not None
    if isinstance(value, Matrices):
        _finite_only(ctx, value, (axis,))
        place = value.finite_axes.index(axis)
        ends = list(np.cumsum(sizes)[:-1])
        return [Matrices(part, value.axes) for part in np.split(value.items, ends, axis=place)]
    if value.axis == axis and not all(isinstance(size, Size) for size in sizes):
        _check_share(ctx, 1, 1)
    ends = np.cumsum([0, *(ctx.size(size) for size in sizes)])
    parts: list[Value] = []
    for start, end, size in zip(ends[:-1], ends[1:], sizes, strict=True):
        index = tuple(
            slice(int(start), int(end)) if i == axis else slice(None)
            for i in range(len(value.shape))
        )
        parts.append(_indexed(value, index, axis, whole=value.axis != axis))
    return parts


def _indexed(value: Tensor, index: tuple[Any, ...], axis: int, *, whole: bool) -> Tensor:
    def pick(array: Any) -> Any:
        return None if array is None else jnp.asarray(array)[index]

    def part(exponents: Exponents) -> Exponents:
        if exponents.uniform or not whole:
            return exponents
        return Exponents(exponents.array[index])

    noise = None if value.noise is None else jnp.broadcast_to(value.noise, value.shape)
    space = value.space if whole else None
    return tensor(
        pick(value.coefficient), part(value.exponents), part(value.remainder), value.axis, space,
        pick(noise), pick(value.zeros),
    )  # fmt: skip


@RULES(p.concatenate_p)
def concatenate(ctx: Context, *values: Value, dimension: int) -> Value:
    """Arrays put side by side; each keeps its exponents. Widths side by side make (k n)."""
    if any(isinstance(value, Matrices) for value in values):
        return _concatenate_matrices(ctx, values, dimension)
    tensors = [value for value in values if isinstance(value, Tensor)]
    axis = next((value.axis for value in tensors if value.axis is not None), None)
    along_width = axis == dimension
    if along_width:
        tensors = [demoted(value) for value in tensors]
        level = max(value.exponents.value for value in tensors)
        lower = [value.exponents.value for value in tensors if value.exponents.value < level]
        rest = max([*lower, *(value.remainder.max() for value in tensors)])
        parts = [jnp.asarray(v.coefficient) * (v.exponents.value == level) for v in tensors]
        out = ctx.rebind(*parts)
        return tensor(out, Exponents(level), Exponents(rest), axis, None)
    space = frame(ctx, *tensors)[1]
    out = ctx.rebind(*(value.coefficient for value in tensors))

    def joined(parts: list[Exponents]) -> Exponents:
        if all(part == parts[0] for part in parts) and parts[0].uniform:
            return parts[0]
        shapes = [tuple(1 if i == axis else d for i, d in enumerate(v.shape)) for v in tensors]
        full = [np.broadcast_to(e.array, s) for e, s in zip(parts, shapes, strict=True)]
        return Exponents(np.concatenate(full, axis=dimension))

    def stacked(arrays: list[Any]) -> Any:
        if all(array is None for array in arrays):
            return None
        full = [
            jnp.zeros(v.shape, jnp.result_type(*[a for a in arrays if a is not None]))
            if a is None else jnp.broadcast_to(a, v.shape)
            for a, v in zip(arrays, tensors, strict=True)
        ]  # fmt: skip
        return jnp.concatenate(full, axis=dimension)

    return tensor(
        out, joined([v.exponents for v in tensors]), joined([v.remainder for v in tensors]),
        axis, space, stacked([v.noise for v in tensors]), stacked([v.zeros for v in tensors]),
    )  # fmt: skip


def _concatenate_matrices(ctx: Context, values: tuple[Value, ...], dimension: int) -> Matrices:
    if not all(isinstance(value, Matrices) for value in values):
        ctx.fail("Matrices and other arrays are concatenated.")
    arrays = [value for value in values if isinstance(value, Matrices)]
    _finite_only(ctx, arrays[0], (dimension,))
    place = arrays[0].finite_axes.index(dimension)
    items = np.concatenate([value.items for value in arrays], axis=place)
    return Matrices(items, arrays[0].axes)


@RULES(p.pad_p)
def pad(ctx: Context, value: Value, filler: Value, padding_config: Any) -> Value:
    """Padding along finite axes."""
    assert isinstance(filler, Tensor)
    if isinstance(value, Matrices):
        return _pad_matrices(ctx, value, filler, padding_config)
    if value.axis is not None and tuple(padding_config[value.axis]) != (0, 0, 0):
        ctx.fail("A width is padded: its coordinates would no longer be alike.", NoLimitError)
    if not filler.vanishes and filler.exponents != value.exponents:
        ctx.fail("Padding with a value of another order in the width.")
    out = moved(ctx, value, filler.coefficient)
    return out


def _pad_matrices(ctx: Context, value: Matrices, filler: Tensor, config: Any) -> Matrices:
    if not filler.vanishes:
        ctx.fail("A matrix is padded with something else than zeros.")
    assert ctx.equation is not None
    out = ctx.equation.out_avals[0]
    shape = tuple(int(d) for d in out.shape if not isinstance(d, Size))
    matrix = next(iter(value.items.flat))
    items = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        items[index] = matrices.zero(matrix.rows, matrix.columns)
    for index in np.ndindex(value.items.shape):
        target = tuple(
            int(config[axis][0]) + i * (1 + int(config[axis][2]))
            for axis, i in zip(value.finite_axes, index, strict=True)
        )
        items[target] = value.items[index]
    return Matrices(items, value.axes)


def _index_number(ctx: Context, value: Value) -> int | None:
    assert isinstance(value, Tensor)
    constant = value.constant
    return None if constant is None else int(constant)


@RULES(p.dynamic_slice_p)
def dynamic_slice(ctx: Context, value: Value, *starts: Value, slice_sizes: Any) -> Value:
    """A part along finite axes, at a position computed by the program."""
    assert ctx.equation is not None
    shape = ctx.equation.in_avals[0].shape
    for dim, size in zip(shape, slice_sizes, strict=True):
        if isinstance(dim, Size) and size != dim:
            _check_share(ctx, "a computed place", size)
    if isinstance(value, Matrices):
        numbers = [_index_number(ctx, starts[axis]) for axis in value.finite_axes]
        if any(number is None for number in numbers):
            ctx.fail("A stack of matrices is indexed by a number that is not known before the run.")
        index = tuple(
            slice(k, k + int(slice_sizes[axis]))
            for axis, k in zip(value.finite_axes, _clamped(value, numbers, slice_sizes), strict=True)
        )
        return Matrices(value.items[index], value.axes)
    return moved(ctx, value, *_indices(starts))


def _clamped(value: Matrices, numbers: list[int | None], sizes: Any) -> list[int]:
    lengths = value.items.shape
    return [
        min(max(int(k or 0), 0), length - int(sizes[axis]))
        for k, length, axis in zip(numbers, lengths, value.finite_axes, strict=True)
    ]


def _indices(values: tuple[Value, ...]) -> list[Any]:
    return [value.coefficient for value in values if isinstance(value, Tensor)]


@RULES(p.dynamic_update_slice_p)
def dynamic_update_slice(ctx: Context, value: Value, update: Value, *starts: Value) -> Value:
    """Replacement of a part along finite axes."""
    assert ctx.equation is not None
    shape, part = ctx.equation.in_avals[0].shape, ctx.equation.in_avals[1].shape
    if any(isinstance(d, Size) and d != e for d, e in zip(shape, part, strict=True)):
        ctx.fail(f"A part of a width is replaced. {_ORDER}", NoLimitError)
    if isinstance(value, Matrices):
        numbers = [_index_number(ctx, starts[axis]) for axis in value.finite_axes]
        if not isinstance(update, Matrices) or any(number is None for number in numbers):
            ctx.fail("A stack of matrices is indexed by a number that is not known before the run.")
        items = value.items.copy()
        at = _clamped(value, numbers, {a: part[a] for a in value.finite_axes})
        index = tuple(slice(k, k + s) for k, s in zip(at, update.items.shape, strict=True))
        items[index] = update.items
        return Matrices(items, value.axes)
    assert isinstance(update, Tensor)
    indices = _indices(starts)
    if value.exponents.uniform and value.exponents == update.exponents:
        first, second = value, update
        exponents = value.exponents
    else:
        first, second = demoted(value), demoted(update)
        exponents = first.exponents.maximum(second.exponents)
    axis, space = frame(ctx, first, second)
    lost = min(first.exponents.value, second.exponents.value)
    rest = first.remainder.maximum(second.remainder)
    if first.exponents != second.exponents:
        rest = rest.maximum(lost)
    rest = Exponents(rest.max())
    arrays = [jnp.asarray(v.coefficient) * (v.exponents == exponents) for v in (first, second)]
    dtype = value.dtype
    out = ctx.rebind(arrays[0].astype(dtype), arrays[1].astype(dtype), *indices)
    return tensor(out, exponents, rest, axis, space)


@RULES(p.gather_p)
def gather(ctx: Context, value: Value, index: Value, **params: Any) -> Value:
    """Entries along finite axes at computed indices (embedding, minibatch)."""
    assert ctx.equation is not None and isinstance(index, Tensor)
    numbers = params["dimension_numbers"]
    shape, sizes = ctx.equation.in_avals[0].shape, params["slice_sizes"]
    for axis, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        if isinstance(dim, Size) and (size != dim or axis in numbers.start_index_map):
            if size != dim:
                _check_share(ctx, "a computed place", size)
    if isinstance(value, Matrices):
        return _gather_matrices(ctx, value, index, params)
    return moved(ctx, value, index.coefficient)


def _gather_matrices(ctx: Context, value: Matrices, index: Tensor, params: Any) -> Matrices:
    constant = index.constant
    if constant is None:
        ctx.fail("A stack of matrices is indexed by numbers that are not known before the run.")
    assert ctx.equation is not None
    codes = np.arange(value.items.size).reshape(value.items.shape)
    for axis in sorted(value.axes):
        codes = np.expand_dims(codes, axis)
    numbers = dict(params)
    numbers["slice_sizes"] = tuple(1 if a in value.axes else s for a, s in enumerate(params["slice_sizes"]))
    with jax.ensure_compile_time_eval():
        out = np.asarray(ctx.equation.primitive.bind(jnp.asarray(codes), jnp.asarray(constant), **numbers))
    axes = ctx.equation.out_avals[0].width_axes
    out = np.squeeze(out, axes)
    flat = value.items.reshape(-1)
    return Matrices(map_items(lambda k: flat[int(k)], out.astype(object)), (axes[0], axes[1]))


@RULES(p.scatter_add_p, p.scatter_p)
def scatter(ctx: Context, value: Value, index: Value, update: Value, **params: Any) -> Value:
    """Entries added to (or put at) computed indices along finite axes."""
    assert ctx.equation is not None
    if isinstance(value, Matrices) or isinstance(update, Matrices):
        return matrices.unsupported(ctx, "a scatter into a stack")
    assert isinstance(index, Tensor)
    shape = ctx.equation.in_avals[0].shape
    scattered = params["dimension_numbers"].scatter_dims_to_operand_dims
    if any(isinstance(shape[axis], Size) for axis in scattered):
        full = [d for d in ctx.equation.in_avals[2].shape if isinstance(d, Size)]
        if full != [shape[a] for a in scattered if isinstance(shape[a], Size)]:
            ctx.fail(f"Single coordinates of a width are set. {_ORDER}", NoLimitError)
    first, second = demoted(value), demoted(update)
    axis, space = frame(ctx, first, tensor(0.0, axis=first.axis, space=second.space))
    exponents = first.exponents.maximum(second.exponents)
    rest = first.remainder.maximum(second.remainder)
    if first.exponents != second.exponents:
        rest = rest.maximum(min(first.exponents.value, second.exponents.value))
    arrays = [jnp.asarray(v.coefficient) * (v.exponents == exponents) for v in (first, second)]
    out = ctx.rebind(arrays[0].astype(value.dtype), index.coefficient, arrays[1].astype(value.dtype))
    return tensor(out, exponents, Exponents(rest.max()), axis, space)


@RULES(p.iota_p)
def iota(ctx: Context, *dynamic: Value, **params: Any) -> Value:
    """Counting along a finite axis."""
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    if aval.width_axes:
        ctx.fail(f"Coordinates of a width are numbered. {_ORDER}", NoLimitError)
    with jax.ensure_compile_time_eval():
        return tensor(np.asarray(p.iota_p.bind(**ctx.resolve(params))))


