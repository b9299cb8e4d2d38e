"""Constants are folded, by NumPy where it gives what JAX does: JAX compiles a program for each
operation and shape, which takes longer than the rest of a small program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import Primitive, is_key, primitives as p

#: Constant folding stops at arrays of this many entries.
LIMIT = 4096

_ENTRYWISE: dict[Primitive, Callable[..., Any]] = {
    p.abs_p: np.abs,
    p.add_p: np.add,
    p.max_p: np.maximum,
    p.min_p: np.minimum,
    p.mul_p: np.multiply,
    p.neg_p: np.negative,
    p.sqrt_p: np.sqrt,
    p.sub_p: np.subtract,
    p.eq_p: np.equal,
    p.ge_p: np.greater_equal,
    p.gt_p: np.greater,
    p.le_p: np.less_equal,
    p.lt_p: np.less,
    p.ne_p: np.not_equal,
}


def folded(primitive: Primitive, arrays: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """The outputs of a primitive on NumPy's arrays, as such."""
    arrays = tuple(map(np.asarray, arrays))
    plain = _plain(primitive, arrays, params)
    with jax.ensure_compile_time_eval():
        if plain is None:
            out = primitive.bind(*map(jnp.asarray, arrays), **params)
            return list(map(_kept, out)) if primitive.multiple_results else _kept(out)
        with np.errstate(all="ignore"):
            array = np.asarray(plain(*arrays))
        return array if array.size <= LIMIT else jnp.asarray(array)


def _plain(
    primitive: Primitive, arrays: tuple[np.ndarray, ...], params: dict[str, Any]
) -> Callable[..., Any] | None:
    """What NumPy does the same with, bit for bit."""
    kinds = {array.dtype.kind for array in arrays}
    known = all(array.dtype == jax.dtypes.canonicalize_dtype(array.dtype) for array in arrays)
    if not known or not kinds <= set("bif"):
        return None
    if primitive in _ENTRYWISE:
        return None if "b" in kinds else _ENTRYWISE[primitive]
    if primitive is p.div_p and kinds == {"f"}:
        return np.divide
    if primitive is p.convert_element_type_p:
        to = np.dtype(params["new_dtype"])
        rounds = kinds == {"f"} and to.kind != "f"
        return (lambda array: array.astype(to)) if to.kind in "bif" and not rounds else None
    if primitive is p.reshape_p and params["dimensions"] is None:
        return lambda array: array.reshape(params["new_sizes"])
    if primitive is p.squeeze_p:
        return functools.partial(np.squeeze, axis=params["dimensions"])
    if primitive is p.broadcast_in_dim_p and len(arrays) == 1:
        return functools.partial(_broadcast, params["shape"], params["broadcast_dimensions"])
    return None


def _broadcast(shape: tuple[int, ...], places: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    lengths = [1] * len(shape)
    for place, length in zip(places, array.shape, strict=True):
        lengths[place] = length
    return np.broadcast_to(array.reshape(lengths), shape)


def _kept(out: jax.Array) -> Any:
    return out if is_key(out) or out.size > LIMIT else np.asarray(out)
