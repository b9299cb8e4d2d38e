"""Operations in no table that act entry by entry: found out by evaluating them on small arrays.

A version of JAX brings new primitives, and users have their own. An operation acts *entry by entry*
if every entry of its output is one function of the entries at the same place (and of scalars): so
changing, permuting or leaving out other entries changes nothing. Such a function has the limit

    f(c_1 + O(n^rho), ..., c_k + O(n^rho)) = f(c_1, ..., c_k) + O(n^rho)

wherever it is continuous, the continuous mapping theorem. What more a smooth function allows,
expansions at 0 and in several terms, is granted where its derivatives reproduce its values. What it
does at infinity is never guessed.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import Primitive, entry_function
from tplimit.algebra import arithmetic, functions, knowledge
from tplimit.caching.store import kept
from tplimit.errors import NEXT_TERM_ADVICE, RULE_ADVICE, CancellationError, NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.equations import Equation
from tplimit.program.traits import Kind, Smooth
from tplimit.rules.entrywise import of_entries
from tplimit.rules.terms import leading_of, zero_with
from tplimit.values.exponents import NEVER, ORDER_ONE
from tplimit.values.sampling_errors import ZERO_SIGMAS
from tplimit.values.tensors import Tensor, tensor

#: Entries of the arrays on which an operation is probed.
_ENTRIES = 48
#: A function is smooth if its Taylor polynomials say so at all points of this range.
_RANGE, _STEP = 64.0, 1 / 32
#: What a value is moved by to see a jump at it: in units of round-off, or of its standard error.
_ULPS, _SIGMAS = 32.0, ZERO_SIGMAS
_MOVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Entrywise(Kind):
    """Found by probing: a function that an operation applies to every entry.

    Attributes:
        name: of the primitive.
        apply: the operation, on arrays.
        dtype: of its first operand.
    """

    name: str
    apply: Callable[..., Any]
    dtype: Any

    @functools.cached_property
    def smooth_at_zero(self) -> bool:
        """Whether its Taylor polynomial at 0 reproduces it nearby: no kink, jump or pole there."""

        def reproduced() -> bool:
            if not np.isfinite(self.apply(jnp.zeros((), self.dtype))):
                return False
            series = np.array(arithmetic.taylor(self.apply, self.dtype))
            points = np.array([k / 32 for k in (-4, -2, -1, 1, 2, 4)], self.dtype)
            values = np.asarray(self.apply(jnp.asarray(points)), float)
            error = values - np.polynomial.polynomial.polyval(points.astype(float), series)
            rounding = _eps(self.dtype) * abs(series[0])
            return _all_below(error, 1e-4 * np.max(np.abs(values - series[0])) + 16 * rounding)

        return _succeeds(reproduced)

    @functools.cached_property
    def smooth(self) -> bool:
        """Whether it is finite, and its Taylor polynomials reproduce it, all over a range."""

        def reproduced() -> bool:
            x = jnp.arange(-_RANGE, _RANGE, _STEP, self.dtype)
            if not np.all(np.isfinite(self.apply(x))):
                return False
            terms = [
                np.asarray(derivative, float) * _STEP**k / math.factorial(k)
                for k, derivative in enumerate(jax.jit(self._derivatives)(x))
            ]
            size = sum(map(np.abs, terms[1:]))
            for side in (-1, 1):
                values = np.asarray(self.apply(x + side * jnp.asarray(_STEP, self.dtype)), float)
                error = values - sum(term * side**k for k, term in enumerate(terms))
                change = np.abs(values - terms[0]) + size
                if not _all_below(error, 1e-3 * change + 16 * _eps(self.dtype) * np.abs(values)):
                    return False
            return True

        return _succeeds(reproduced)

    def _derivatives(self, x: Any) -> list[Any]:
        """Values and the first three derivatives."""
        functions = [self.apply]
        for _ in range(3):
            functions.append(arithmetic.derivative(functions[-1]))
        return [function(x) for function in functions]


def _all_below(error: Any, bound: Any) -> bool:
    return bool(np.all(np.isfinite(error)) and np.all(np.abs(error) <= bound))


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _succeeds(test: Callable[[], bool]) -> bool:
    """A test that evaluates foreign code, which may raise anything: then it is not passed."""
    try:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            return test()
    except Exception:
        return False


# --- probing


def probed(equation: Equation) -> Entrywise | str:
    """What an operation is that is in no table, or why nobody knows."""
    if len(equation.out_avals) != 1:
        return "it gives several arrays"
    if equation.plain is None:
        return "a parameter depends on the width"
    out = equation.out_avals[0]
    if not all(_fits(aval.shape, out.shape) for aval in equation.in_avals):
        return "the shapes of operands and result differ"
    full = tuple(aval.shape != () for aval in equation.in_avals)
    dtypes = tuple(np.dtype(aval.dtype) for aval in equation.in_avals)
    return found_for(equation.primitive, equation.plain, dtypes, full, len(out.shape))


def _fits(shape: tuple[Any, ...], out: tuple[Any, ...]) -> bool:
    """Whether an operand is a scalar, or an array of the shape of the result; axes of length 1 are
    repeated, by JAX itself."""
    same = len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))
    return shape == () or same


def found_for(
    primitive: Primitive,
    params: dict[str, Any],
    dtypes: Sequence[Any],
    full: Sequence[bool],
    rank: int,
) -> Entrywise | str:
    """The function that an operation applies to every entry, or why it is none.

    Args:
        primitive, params: the operation.
        dtypes: of the operands.
        full: which operands are arrays; the others are scalars.
        rank: number of axes of the arrays.
    """
    if primitive.multiple_results:
        return "it gives several arrays"
    if not dtypes or any(dtype.kind not in "fiub" and not _is_small(dtype) for dtype in dtypes):
        return "it takes no real numbers"
    probe = functools.partial(_found, primitive, params, tuple(dtypes), tuple(full), rank)
    return kept("entrywise", probe, primitive, params, tuple(dtypes), tuple(full), rank)


def _is_small(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))  # bfloat16 and its like


def _found(
    primitive: Primitive, params: Any, dtypes: Any, full: tuple[bool, ...], rank: int
) -> Entrywise | str:
    whole = full if any(full) and rank else (True,) * len(full)
    shape = (2,) * (rank - 1) + (_ENTRIES,)
    shapes = [shape if array else () for array in whole]
    points = [_points(dtypes[k], shapes[k], k) for k in range(len(dtypes))]
    try:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            apply = entry_function(primitive, params, points)
            if isinstance(apply, str):
                return apply
            reason = _seen(apply, points, whole)
    except Exception as error:  # foreign code may raise anything
        return f"evaluated on small arrays it raises {type(error).__name__}"
    return reason or Entrywise(primitive.name, apply, dtypes[0])


def _points(dtype: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers on both sides of 0 and of 1, inside and outside of the domains of most functions."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    thirds = rng.integers(0, 3, shape)
    choices = [2 * rng.normal(size=shape), rng.uniform(0, 1, shape), rng.uniform(1, 5, shape)]
    return np.choose(thirds, choices).astype(dtype)


def _seen(apply: Callable[..., Any], points: list[np.ndarray], full: tuple[bool, ...]) -> str:
    """What shows that an operation does not act entry by entry; empty if nothing does."""
    shape = next(p.shape for p, f in zip(points, full, strict=True) if f)
    rng = np.random.default_rng(len(points))

    compiled = jax.jit(apply)

    def run(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        arrays = [change(p) if f else p for p, f in zip(points, full, strict=True)]
        return np.asarray(compiled(*arrays))

    base = run(lambda x: x)
    if base.shape != shape:
        return "the shapes of operands and result differ"
    if base.dtype.kind not in "iub" and not _is_small(base.dtype):
        return "it gives no real numbers"
    # As compiled, and afresh: an implementation may consult what is not among its operands.
    again = [run(lambda x: x), *(np.asarray(apply(*map(jnp.asarray, points))) for _ in range(2))]
    if not all(_same(base, other) for other in again):
        return "it gives different results for the same operands"
    order = rng.permutation(base.size)
    shuffled = run(lambda x: x.reshape(-1)[order].reshape(shape))
    if not _same(shuffled, base.reshape(-1)[order].reshape(shape)):
        return "entries depend on their places"
    for share in (0.1, 0.5, 0.9):
        moved = rng.random(shape) < share
        moved.flat[0], moved.flat[-1] = True, False
        others = run(lambda x: np.where(moved, x.reshape(-1)[order].reshape(shape), x))  # noqa: B023
        if not _same(others[~moved], base[~moved]):
            return "entries depend on each other"
    if not _same(run(lambda x: x[..., : _ENTRIES // 3]), base[..., : _ENTRIES // 3]):
        return "entries depend on the number of entries"
    return ""


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, but for the round-off of different ways of vectorisation."""
    if a.dtype.kind in "iub" or a.shape != b.shape:
        return np.array_equal(a, b)
    a, b = a.astype(float), b.astype(float)
    return np.allclose(a, b, rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(b), initial=0), equal_nan=True)


# --- the rule

_entrywise = RULES.of_kind(Entrywise)
_entrywise.matrices(of_entries)


def _found_of(ctx: Context) -> Entrywise:
    kind = ctx.kind
    assert isinstance(kind, Entrywise)
    return kind


@_entrywise.several
def of_series(ctx: Context, *values: Tensor, **_: Any) -> Tensor:
    """Expanded where the function has derivatives, else on the leading terms."""
    found, value = _found_of(ctx), values[0]
    if len(values) > 1 or not _expands(found, value):
        return leading_of(ctx, *values)
    out = functions.smooth(ctx, lambda x: of_one_term(ctx, x), value, found.apply, "neither")
    return zero_with(value, out) if arithmetic.taylor(found.apply)[0] == 0 else out


def _expands(found: Entrywise, value: Tensor) -> bool:
    """Whether a function has derivatives where the leading terms of a value are."""
    if value.dtype.kind != "f" or value.exponents.max() > 0:
        return False
    return found.smooth_at_zero if value.exponents.max() < 0 else found.smooth


@_entrywise.one
def of_one_term(ctx: Context, *values: Tensor, **_: Any) -> Tensor:
    """``f(c + O(n^rho)) = f(c) + O(n^rho)`` where nothing jumps."""
    found = _found_of(ctx)
    levels = {level for value in values for level in value.exponents.levels()}
    if max(levels) > 0:
        _refuse(ctx, f"{found.name} of a value that grows like n^{max(levels)}: what it does at "
                "infinity is not known")  # fmt: skip
    if any(value.remainder.max() > 0 for value in values):
        ctx.fail(f"{found.name} of a value whose unknown part grows.", CancellationError)
    value = values[0]
    single = len(values) == 1 and value.dtype.kind == "f"
    if levels - {0, NEVER} and not (single and found.smooth_at_zero):
        why = "it is not smooth at 0" if single else "only its values at order 1 are known"
        _refuse(ctx, f"{found.name} of a value that vanishes like n^{min(levels)}: {why}")
    arrays = [jnp.asarray(value.coefficient) for value in values]
    axis, space = arithmetic.common_axis(ctx, *values)
    _no_jump(ctx, found, values, arrays, axis)
    # Where a value vanishes, or is known to be zero, there is more to tell than numbers.
    if single and (levels != {0} or value.zeros is not None) and found.smooth_at_zero:
        return arithmetic.apply_function(ctx, value, Smooth(found.apply), found.name)
    out = found.apply(*arrays)
    remainder = values[0].remainder.maximum(*(value.remainder for value in values[1:]))
    return tensor(out, ORDER_ONE, remainder, axis, space, _stderr(found, values, arrays, out))


def _refuse(ctx: Context, reason: str) -> None:
    ctx.fail(f"{reason} (the operation has no rule of its own).", NoLimitError, RULE_ADVICE)


def _around(found: Entrywise, arrays: list[Any], place: int, reach: Any) -> tuple[Any, Any]:
    """Values where one operand is moved by up to a reach, and the steps between them."""
    moved = []
    for move in _MOVES:
        operand = arrays[place] + jnp.asarray(move * reach).astype(arrays[place].dtype)
        moved.append(found.apply(*arrays[:place], operand, *arrays[place + 1 :]))
    stacked = jnp.stack(moved).astype(jnp.result_type(float))
    return stacked, jnp.abs(jnp.diff(stacked, axis=0))


def _no_jump(
    ctx: Context, found: Entrywise, values: Sequence[Tensor], arrays: list[Any], axis: int | None
) -> None:
    """Check, when the run is over, that no inexact value is at a jump or at the end of a domain.

    A step of the function that makes up most of its change nearby, however near, is a jump. Of a
    vector a few coordinates may be there by accident; a tie (zeros of a rectifier) may not.
    """
    for place, value in enumerate(values):
        noisy = value.stderr is not None and axis is None
        if (value.exact and not noisy) or value.dtype.kind == "b":
            continue
        reach = _SIGMAS * value.stderr if noisy else _least(arrays[place])
        near, steps = _around(found, arrays, place, reach)
        size = 1e-4 * (1 + jnp.abs(near[len(_MOVES) // 2]))
        largest = jnp.max(steps, axis=0)
        jumps = (largest > jnp.sum(steps, axis=0) / 2) & (largest > size)
        known = jnp.isfinite(near)
        jumps = jumps | (jnp.any(known, axis=0) & ~jnp.all(known, axis=0))
        fine = ~knowledge.beyond_accident(jumps, replace(value, axis=axis))
        error = ctx.error(
            f"{found.name} of a value at which it jumps, or beyond which it is not defined, within "
            "what is known of the value.",
            CancellationError,
            NEXT_TERM_ADVICE,
        )
        ctx.check(fine, error)


def _least(array: Any) -> Any:
    """The smallest distance that round-off does not hide."""
    if array.dtype.kind in "iu":
        return np.float32(_ULPS)
    return _ULPS * _eps(array.dtype) * jnp.maximum(jnp.abs(array), 1)


def _stderr(found: Entrywise, values: Sequence[Tensor], arrays: list[Any], out: Any) -> Any:
    """Standard error of the result: how much it varies within those of the operands."""
    if out.dtype.kind in "iub":
        return None
    stderrs = []
    for place, value in enumerate(values):
        if value.stderr is not None:
            _, steps = _around(found, arrays, place, _SIGMAS * value.stderr)
            stderrs.append(jnp.sum(steps, axis=0) / (2 * _SIGMAS))
    return arithmetic.combined_stderr(*stderrs)


RULES.probed = probed
