"""A jaxpr evaluated in double precision, whatever precision it is written in.

What rounding leaves of two ways to compute one thing is then far below whatever else is small. The
common operations are NumPy's, which have nothing to compile; all others are JAX's, in the precision
of the program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit._jax import primitives as p

#: From arrays, and the parameters of an equation, to an array.
Operation = Callable[..., Any]

Environment = dict[_jax.Var, Any]

#: Iterations of a loop that are evaluated one by one.
_LONGEST = 1000


def evaluated(jaxpr: Any, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a jaxpr: floating-point numbers as float64, whatever else as it is."""
    body, consts = _jax.open_jaxpr(jaxpr)
    with np.errstate(all="ignore"):
        return _run(body, consts, list(map(double, inputs)))


def double(array: Any) -> Any:
    """A NumPy array of the same numbers; keys stay what they are."""
    if isinstance(array, jax.Array) and _jax.is_key(array):
        return array
    array = np.asarray(array)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _run(body: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    environment: Environment = dict(zip(body.constvars, map(double, consts), strict=True))
    environment.update(zip(body.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return double(atom.val) if isinstance(atom, _jax.Literal) else environment[atom]

    for equation in _needed(body):
        outputs = _applied(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in body.outvars]


def _needed(body: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    wanted = {atom for atom in body.outvars if not isinstance(atom, _jax.Literal)}
    found = []
    for equation in reversed(body.eqns):
        if wanted.isdisjoint(equation.outvars):
            continue
        found.append(equation)
        wanted.update(atom for atom in equation.invars if not isinstance(atom, _jax.Literal))
    return found[::-1]


def _applied(equation: Any, arrays: list[Any]) -> list[Any]:
    inner = _jax.inner_program(equation)
    if inner is not None:
        body, consts = _jax.open_jaxpr(inner)
        return _run(body, consts, arrays)
    primitive = equation.primitive
    if primitive is p.scan_p and equation.params["length"] <= _LONGEST:
        return _scan(equation.params, arrays)
    if primitive is p.cond_p:
        return _cond(equation.params, arrays)
    if primitive is p.while_p:
        return _while(equation.params, arrays) or _unknown(equation)
    operation = OPERATIONS.get(primitive)
    if operation is not None and not any(isinstance(array, jax.Array) for array in arrays):
        return [np.asarray(operation(*arrays, **equation.params))]
    return _by_jax(equation, arrays)


def _by_jax(equation: Any, arrays: list[Any]) -> list[Any]:
    given = [
        array if isinstance(array, jax.Array) else jnp.asarray(array, atom.aval.dtype)
        for array, atom in zip(arrays, equation.invars, strict=True)
    ]
    try:
        out = equation.primitive.bind(*given, **equation.params)
    except Exception:  # an operation may have nothing that evaluates it here
        return _unknown(equation)
    return list(map(double, out if equation.primitive.multiple_results else [out]))


def _unknown(equation: Any) -> list[Any]:
    """Outputs of which nothing is known: no number."""
    avals = [var.aval for var in equation.outvars]
    return [
        np.full(a.shape, np.nan)
        if jnp.issubdtype(a.dtype, jnp.floating)
        else np.zeros(a.shape, a.dtype)
        for a in avals
    ]


# --- programs inside


def _scan(params: dict[str, Any], arrays: list[Any]) -> list[Any]:
    body, _ = _jax.open_jaxpr(params["jaxpr"])
    if not params["length"]:
        count, carried = _jax.scan_layout(params)
        empty = [np.zeros((0, *v.aval.shape), v.aval.dtype) for v in body.outvars[carried:]]
        return [*arrays[count : count + carried], *empty]
    return turn_by_turn(params, arrays, _run, lambda array, i: array[i], np.stack)


def turn_by_turn(
    params: dict[str, Any],
    inputs: Sequence[Any],
    run: Callable[..., list[Any]],
    part: Callable[[Any, int], Any],
    stacked: Callable[[Sequence[Any]], Any],
) -> list[Any]:
    """Outputs of a scan on values of whatever kind.

    Args:
        run: the outputs of a jaxpr, from it, its constants and inputs.
        part: what a value along the loop is in a turn.
        stacked: the value along the loop, from those of the turns in order.
    """
    count, carried = _jax.scan_layout(params)
    consts, carry, xs = inputs[:count], inputs[count : count + carried], inputs[count + carried :]
    body = _jax.open_jaxpr(params["jaxpr"])
    order = range(params["length"])
    rows: dict[int, list[Any]] = {}
    for i in reversed(order) if params["reverse"] else order:
        out = run(*body, [*consts, *carry, *(part(x, i) for x in xs)])
        carry, rows[i] = out[:carried], out[carried:]
    columns = zip(*(rows[i] for i in order), strict=True)
    return [*carry, *(stacked(column) for column in columns)]


def _while(params: dict[str, Any], arrays: list[Any]) -> list[Any] | None:
    """The final state, or None of a loop that does not come to its end soon: with other numbers
    than it was made for it may never do so."""
    test, body = (_jax.open_jaxpr(params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    first, second = params["cond_nconsts"], params["body_nconsts"]
    tested, given, state = arrays[:first], arrays[first : first + second], arrays[first + second :]
    for _ in range(_LONGEST):
        if not _run(*test, [*tested, *state])[0]:
            return state
        state = _run(*body, [*given, *state])
    return None


def _cond(params: dict[str, Any], arrays: list[Any]) -> list[Any]:
    index, *operands = arrays
    branches = params["branches"]
    chosen = branches[int(np.clip(index, 0, len(branches) - 1))]
    return _run(*_jax.open_jaxpr(chosen), operands)


# --- operations


def _plain(function: Operation) -> Operation:
    """An operation whose parameters do not say what it computes."""
    return lambda *arrays, **_: function(*arrays)


def _converted(x: Any, new_dtype: Any, **_: Any) -> Any:
    if jnp.issubdtype(new_dtype, jnp.floating):
        return x.astype(np.float64)
    if x.dtype.kind == "f":  # as XLA does, which does not wrap around
        kind = np.iinfo(new_dtype) if np.dtype(new_dtype).kind in "iu" else None
        x = x if kind is None else np.clip(np.nan_to_num(x), float(kind.min), float(kind.max))
    return x.astype(new_dtype)


def _divided(x: Any, y: Any, **_: Any) -> Any:
    if x.dtype.kind == "f":
        return x / y
    return np.where(y == 0, -1, np.trunc(x / np.where(y == 0, 1, y))).astype(x.dtype)


def _broadcast(x: Any, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    lengths = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        lengths[place] = x.shape[axis]
    return np.broadcast_to(x.reshape(lengths), shape)


def _contracted(x: Any, y: Any, dimension_numbers: Any, **_: Any) -> Any:
    (left, right), (batch, other) = dimension_numbers
    # Letters of each axis: of batches, of sums, and of what is left, in the order of the result.
    names = iter(range(x.ndim + y.ndim))
    a, b = [-1] * x.ndim, [-1] * y.ndim
    for i, j in [*zip(batch, other, strict=True), *zip(left, right, strict=True)]:
        a[i] = b[j] = next(names)
    shared = [a[i] for i in batch]
    a = [next(names) if name < 0 else name for name in a]
    b = [next(names) if name < 0 else name for name in b]
    rest = [name for i, name in enumerate(a) if i not in (*left, *batch)]
    more = [name for i, name in enumerate(b) if i not in (*right, *other)]
    return np.einsum(x, a, y, b, [*shared, *rest, *more], optimize=True)


def _iota(*_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
    line = np.arange(shape[dimension], dtype=dtype)
    lengths = [-1 if axis == dimension else 1 for axis in range(len(shape))]
    return double(np.broadcast_to(line.reshape(lengths), shape))


def _padded(x: Any, value: Any, padding_config: Any, **_: Any) -> Any:
    shape = [
        low + high + size + max(size - 1, 0) * inner
        for size, (low, high, inner) in zip(x.shape, padding_config, strict=True)
    ]
    # What negative padding cuts off is padded first.
    front = [max(-low, 0) for low, _, _ in padding_config]
    back = [max(-high, 0) for _, high, _ in padding_config]
    whole = np.full([n + f + b for n, f, b in zip(shape, front, back, strict=True)], value, x.dtype)
    place = tuple(
        slice(max(low, 0), max(low, 0) + size + max(size - 1, 0) * inner, inner + 1)
        for size, (low, _, inner) in zip(x.shape, padding_config, strict=True)
    )
    whole[place] = x
    return whole[tuple(slice(f, f + n) for n, f in zip(shape, front, strict=True))]


def _start(x: Any, sizes: Any, starts: Sequence[Any]) -> tuple[slice, ...]:
    places = [
        int(np.clip(start, 0, length - size))
        for start, length, size in zip(starts, x.shape, sizes, strict=True)
    ]
    return tuple(slice(place, place + size) for place, size in zip(places, sizes, strict=True))


def _written(x: Any, update: Any, *starts: Any, **_: Any) -> Any:
    out = x.copy()
    out[_start(x, update.shape, starts)] = update
    return out


def _chosen(which: Any, *cases: Any, **_: Any) -> Any:
    if len(cases) == 1:
        return cases[0]
    return np.choose(which.astype(int), cases) if len(cases) > 2 else np.where(which, *cases[::-1])


def _slice(x: Any, start_indices: Any, limit_indices: Any, strides: Any = None, **_: Any) -> Any:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _along(function: Operation) -> Operation:
    return lambda x, axes, **_: function(x, axis=tuple(axes))


def _cumulated(function: Operation) -> Operation:
    def apply(x: Any, axis: int, reverse: bool, **_: Any) -> Any:
        return np.flip(function(np.flip(x, axis), axis), axis) if reverse else function(x, axis)

    return apply


def _special(name: str) -> Operation:
    def apply(*arrays: Any, **_: Any) -> Any:
        from scipy import special

        return getattr(special, name)(*arrays)

    return apply


def _logical(whole: Operation, bits: Operation) -> Operation:
    return lambda *arrays, **_: (whole if arrays[0].dtype == bool else bits)(*arrays)


_ENTRYWISE: dict[Any, Operation] = {
    p.neg_p: np.negative, p.sign_p: np.sign, p.abs_p: np.abs, p.floor_p: np.floor,
    p.ceil_p: np.ceil, p.exp_p: np.exp, p.exp2_p: np.exp2, p.expm1_p: np.expm1, p.log_p: np.log,
    p.log1p_p: np.log1p, p.sqrt_p: np.sqrt, p.rsqrt_p: lambda x: 1 / np.sqrt(x),
    p.cbrt_p: np.cbrt, p.sin_p: np.sin, p.cos_p: np.cos, p.tan_p: np.tan, p.sinh_p: np.sinh,
    p.cosh_p: np.cosh, p.tanh_p: np.tanh, p.asinh_p: np.arcsinh, p.acosh_p: np.arccosh,
    p.atanh_p: np.arctanh, p.asin_p: np.arcsin, p.acos_p: np.arccos, p.atan_p: np.arctan,
    p.atan2_p: np.arctan2, p.square_p: np.square, p.is_finite_p: np.isfinite, p.add_p: np.add,
    p.add_jaxvals_p: np.add, p.sub_p: np.subtract, p.mul_p: np.multiply, p.max_p: np.maximum,
    p.min_p: np.minimum,
    p.rem_p: np.fmod, p.pow_p: np.power, p.eq_p: np.equal, p.ne_p: np.not_equal, p.lt_p: np.less,
    p.le_p: np.less_equal, p.gt_p: np.greater, p.ge_p: np.greater_equal, p.copy_p: np.asarray,
    p.clamp_p: lambda low, x, high: np.minimum(np.maximum(x, low), high),
    p.logistic_p: _special("expit"), p.erf_p: _special("erf"), p.erfc_p: _special("erfc"),
    p.lgamma_p: _special("gammaln"), p.digamma_p: _special("digamma"),
    p.not_p: _logical(np.logical_not, np.bitwise_not),
    p.and_p: _logical(np.logical_and, np.bitwise_and),
    p.or_p: _logical(np.logical_or, np.bitwise_or),
    p.xor_p: _logical(np.logical_xor, np.bitwise_xor),
}  # fmt: skip

#: The operations that NumPy evaluates, by primitive.
OPERATIONS: dict[Any, Operation] = {
    **{primitive: _plain(function) for primitive, function in _ENTRYWISE.items()},
    p.div_p: _divided,
    p.integer_pow_p: lambda x, y, **_: x ** (float(y) if x.dtype.kind == "f" else y),
    p.convert_element_type_p: _converted,
    p.select_n_p: _chosen,
    p.broadcast_in_dim_p: _broadcast,
    p.reshape_p: lambda x, new_sizes, **_: x.reshape(new_sizes),
    p.squeeze_p: lambda x, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    p.transpose_p: lambda x, permutation, **_: x.transpose(permutation),
    p.rev_p: lambda x, dimensions, **_: np.flip(x, tuple(dimensions)),
    p.concatenate_p: lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    p.slice_p: _slice,
    p.dynamic_slice_p: lambda x, *starts, slice_sizes, **_: x[_start(x, slice_sizes, starts)],
    p.dynamic_update_slice_p: _written,
    p.pad_p: _padded,
    p.iota_p: _iota,
    p.dot_general_p: _contracted,
    p.reduce_sum_p: _along(np.sum),
    p.reduce_max_p: _along(np.max),
    p.reduce_min_p: _along(np.min),
    p.reduce_prod_p: _along(np.prod),
    p.reduce_and_p: _along(np.all),
    p.reduce_or_p: _along(np.any),
    p.cumsum_p: _cumulated(np.cumsum),
    p.cumprod_p: _cumulated(np.cumprod),
    p.cummax_p: _cumulated(np.maximum.accumulate),
    p.cummin_p: _cumulated(np.minimum.accumulate),
}
if _jax.one_minus_square_p is not None:
    OPERATIONS[_jax.one_minus_square_p] = _plain(lambda x: (1 - x) * (1 + x))
if _jax.stack_p is not None:
    OPERATIONS[_jax.stack_p] = lambda *xs, axis, **_: np.stack(xs, axis)
