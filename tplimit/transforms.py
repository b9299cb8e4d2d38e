"""``limit`` and ``leading``: plain JAX functions evaluated at infinite width.

``tp.limit(step)(theta, batch)``: the function is traced once (``trace.py``), interpreted on the
limit values (``interpret.py``), and the result compiled. Exponents and classes are part of the
compilation key; arrays are not.
"""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import matrices
from tplimit.bank import Bank, merged
from tplimit.errors import (
    CANCELLATION_ADVICE, DIVERGENCE_ADVICE, OPAQUE, OPAQUE_ADVICE,
    CancellationError, DivergenceError, LimitError, Location,
)  # fmt: skip
from tplimit.algebra import ZERO_SIGMAS, significant
from tplimit.interpret import Context, NeedDecision, evaluate
from tplimit.trace import Aval, Program, Slot, trace
from tplimit.values import Core, Gaussian, LowRank, Matrices, Matrix, Tensor, Value, tensor
from tplimit.widths import NEVER, Dim, Exponent, Exponents, Size


#: Rows that stores have room for at first.
_CAPACITY = 64


class Lineage:
    """Where a bank comes from: a chain of versions, by identity."""

    __slots__ = ("parents",)

    def __init__(self, *parents: "Lineage") -> None:
        self.parents = parents

    def ancestors(self) -> set[int]:
        """Identities of this version and all before it."""
        seen: set[int] = set()
        stack: list[Lineage] = [self]
        while stack:
            version = stack.pop()
            if id(version) not in seen:
                seen.add(id(version))
                stack.extend(version.parents)
        return seen


@dataclass(frozen=True)
class Revealed:
    """A bank as users' values share it, with its lineage and bounds on the rows in use."""

    bank: Bank
    lineage: Lineage
    used: dict[tuple[int, bool], int] = field(default_factory=dict)


class LimitValue:
    """A parameter or result at infinite (or deferred) width. Opaque outside limited functions.

    It is a leaf of pytrees. Use it through ``tp.limit(fn)(value)``.
    """

    __slots__ = ("_aval", "_origin", "_revealed", "_value")

    def __init__(
        self,
        value: Value,
        aval: Aval,
        revealed: Revealed | None,
        origin: Location | None = None,
    ) -> None:
        self._value = value
        self._aval = aval
        self._revealed = revealed
        self._origin = origin

    def __repr__(self) -> str:
        return f"LimitValue({self._aval})"

    def __jax_array__(self) -> NoReturn:
        raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)


def _opaque(self: LimitValue, *args: Any) -> NoReturn:
    raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)


for _name in (
    "add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg pos abs "
    "getitem len iter float int bool lt le gt ge"
).split():
    setattr(LimitValue, f"__{_name}__", _opaque)


@dataclass(frozen=True)
class Leading:
    """Leading asymptotics ``coefficient * n**exponent`` of a finite output.

    Attributes:
        coefficient: array of coefficients.
        exponent: exact exponent, a ``Fraction`` (``-inf`` for an exact zero), or an object
            array of them where entries differ.
        stderr: sampling error of the coefficient estimated from the spread over the particles,
            0 where it is exact. Replicates (``tp.train``) give a sharper and safer estimate.
    """

    coefficient: jax.Array
    exponent: Any
    stderr: jax.Array

    def __repr__(self) -> str:
        return f"Leading({self.coefficient} +- {self.stderr}, n^{self.exponent})"


@dataclass
class _Plan:
    """A compiled way to run a program on inputs of one form."""

    run: Callable[..., Any]
    revealed: dict[tuple[int, bool], int]
    errors: list[LimitError]


class Evaluator:
    """A user's function with its programs and compiled plans."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.programs: dict[Any, tuple[Program, Any]] = {}
        self.plans: dict[Any, _Plan] = {}
        self.deciding: dict[int, list[Slot]] = {}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs as a pytree of ``LimitValue``."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        for leaf in leaves:
            if hasattr(leaf, "tplimit_parameter"):
                raise LimitError(
                    "A parameter that was only declared is passed to a limited function.",
                    advice="Sample it first: theta = tp.sample(theta, key, width=tp.inf).",
                )
        revealed, values = _gathered(leaves)
        avals = [_aval_of(leaf) for leaf in leaves]
        program, out_tree = self.program(tree, avals, leaves)
        out, new = self.run(program, values, revealed)
        origins = _origins(program)
        wrapped = [
            LimitValue(value, aval, new, origin)
            for value, aval, origin in zip(out, program.out_avals, origins, strict=True)
        ]
        return jax.tree.unflatten(out_tree, wrapped)

    def program(self, tree: Any, avals: list[Aval], leaves: list[Any]) -> tuple[Program, Any]:
        weak = tuple(_weak(leaf) for leaf in leaves)
        key = (tree, tuple((a.shape, str(a.dtype)) for a in avals), weak)
        if key not in self.programs:
            sizes = [d.ratio for a in avals for d in a.shape if isinstance(d, Size)]
            multiple = math.lcm(1, *(ratio.denominator for ratio in sizes))

            def flat(*inputs: Any) -> Any:
                args, kwargs = jax.tree.unflatten(tree, inputs)
                return self.function(*args, **kwargs)

            def arguments(n: int) -> list[Any]:
                return [
                    jax.ShapeDtypeStruct(_lengths(a.shape, n), a.dtype, weak_type=w)
                    for a, w in zip(avals, weak, strict=True)
                ]

            self.programs[key] = trace(flat, arguments, multiple)
        return self.programs[key]

    def run(
        self, program: Program, values: list[Value], revealed: Revealed | None
    ) -> tuple[list[Value], Revealed | None]:
        decisions, plan = self.plan(program, values, revealed)
        bank = None
        if revealed is not None:
            revealed = _with_room(revealed, plan.revealed)
            bank = revealed.bank
        values = [_fitted(value, bank) for value in values]
        out, new_bank, oks = plan.run(bank, values)
        if oks:
            _raise_failed(oks, plan.errors)
        if revealed is None:
            return out, None
        used = dict(revealed.used)
        for side, count in plan.revealed.items():
            used[side] = used.get(side, 0) + count
        return out, Revealed(new_bank, Lineage(revealed.lineage), used)

    def plan(
        self, program: Program, values: list[Value], revealed: Revealed | None
    ) -> tuple[dict[Slot, Any], _Plan]:
        bank = None if revealed is None else revealed.bank
        form = (id(program), _form(values), _form(bank))
        slots = self.deciding.setdefault(id(program), [])
        while True:
            decisions = {slot: _decision(program, slot, values) for slot in slots}
            key = (form, tuple(None if d is None else (d.shape, d.tobytes()) for d in decisions.values()))
            if key in self.plans:
                return decisions, self.plans[key]
            try:
                self.plans[key] = _planned(program, values, bank, decisions)
            except NeedDecision as need:
                slots.append(need.slot)


def _form(tree: Any) -> Any:
    """What compilation depends on, save the capacity of the stores."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.ndim(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


def _planned(
    program: Program, values: list[Value], bank: Bank | None, decisions: dict[Slot, Any]
) -> _Plan:
    """Interpret once without numbers, to learn spaces and rows; then prepare compilation."""
    found: dict[str, Any] = {}

    def dry(bank: Bank | None, values: list[Value]) -> list[Value]:
        ctx = Context(bank, decisions=decisions, dry=True)
        out = _evaluated(ctx, program, values)
        found["classes"], found["revealed"] = ctx.classes, ctx.revealed
        return out

    jax.eval_shape(dry, bank, values)
    errors: list[LimitError] = []

    def run(bank: Bank | None, values: list[Value]) -> Any:
        ctx = Context(bank, classes=found["classes"], decisions=decisions)
        out = _evaluated(ctx, program, values)
        errors[:] = [check.error for check in ctx.checks]
        return out, ctx.bank, [check.ok for check in ctx.checks]

    return _Plan(jax.jit(run), found["revealed"], errors)


def _evaluated(ctx: Context, program: Program, values: list[Value]) -> list[Value]:
    out = evaluate(ctx, program, values)
    return [matrices.absorbed(ctx, v) if isinstance(v, Matrices) else v for v in out]


def _raise_failed(oks: Sequence[Any], errors: list[LimitError]) -> None:
    for ok, error in zip(jax.device_get(list(oks)), errors, strict=True):
        if not ok:
            raise type(error)(
                error.reason,
                operation=error.operation,
                location=error.location,
                advice=error.advice,
            )


def _decision(program: Program, slot: Slot, values: list[Value]) -> np.ndarray | None:
    """A finite variable computed from the finite inputs before the run, or None."""
    equations = program.slice([slot])
    inputs = {s for e in equations for s in e.inputs if isinstance(s, Slot)} | {slot}
    inputs &= set(program.inputs)
    by_slot = dict(zip(program.inputs, values, strict=True))
    for used in inputs:
        value = by_slot[used]
        plain = isinstance(value, Tensor) and value.finite and value.exact and value.noise is None
        if not plain or value.exponents.max() not in (0, NEVER):
            return None
    if any(aval.width_axes for e in equations for aval in (*e.in_avals, *e.out_avals)):
        return None
    ordered = tuple(sorted(inputs, key=lambda s: s.index))
    part = Program(ordered, (slot,), tuple(equations), (), ())
    try:
        (out,) = evaluate(Context(None), part, [by_slot[s] for s in ordered])
    except LimitError:
        return None
    assert isinstance(out, Tensor)
    return np.asarray(out.coefficient)


def _with_room(revealed: Revealed, rows: dict[tuple[int, bool], int]) -> Revealed:
    """Stores with room for the rows that a call may reveal; capacity doubles when full."""
    bank = revealed.bank
    if not bank.stores:
        return revealed

    def needed(used: dict[tuple[int, bool], int]) -> int:
        return max((used.get(side, 0) + count for side, count in rows.items()), default=0)

    if needed(revealed.used) <= bank.capacity:
        return revealed
    counts = jax.device_get([(store.r, store.t) for store in bank.stores])
    used = {}
    for index, (r, t) in enumerate(counts):
        used[(index, False)], used[(index, True)] = int(r), int(t)
    capacity = max(bank.capacity, _CAPACITY)
    while capacity < needed(used):
        capacity *= 2
    return Revealed(bank.grown(capacity), revealed.lineage, used)


def _fitted(value: Value, bank: Bank | None) -> Value:
    """Cores padded to the capacity of the stores."""
    if bank is None or not isinstance(value, Matrices):
        return value

    def pad(matrix: Matrix) -> Matrix:
        return _replace_parts(matrix, cores=tuple(padded(core) for core in matrix.cores))

    def padded(core: Core) -> Core:
        extra = bank.capacity - core.core.shape[0]
        if extra <= 0:
            return core
        return Core(jnp.pad(core.core, (0, extra)), core.exponent, core.store, core.transposed)

    return value.map(pad)


def _replace_parts(matrix: Matrix, **parts: Any) -> Matrix:
    from dataclasses import replace

    return replace(matrix, **parts)


# Entering: banks of the arguments, and their values with labels of the joint bank.


def _gathered(leaves: list[Any]) -> tuple[Revealed | None, list[Value]]:
    """One bank for all limit values among the arguments; the newest of related ones."""
    found: list[Revealed] = []
    for leaf in leaves:
        if isinstance(leaf, LimitValue) and leaf._revealed is not None:
            if all(leaf._revealed.lineage is not other.lineage for other in found):
                found.append(leaf._revealed)
    tips = _tips(found)
    if not tips:
        return None, [_plain(leaf) for leaf in leaves]
    if len(tips) == 1:
        values = [leaf._value if isinstance(leaf, LimitValue) else _plain(leaf) for leaf in leaves]
        return tips[0], values
    laws = {(tip.bank.n, tip.bank.law) for tip in tips}
    if len(laws) > 1:
        raise LimitError("Values sampled at different widths, samples or noise are combined.")
    bank, shifts = merged([tip.bank for tip in tips])
    ancestors = [tip.lineage.ancestors() for tip in tips]
    used: dict[tuple[int, bool], int] = {}
    for tip, (stores, _) in zip(tips, shifts, strict=True):
        used |= {(index + stores, side): count for (index, side), count in tip.used.items()}
    values = []
    for leaf in leaves:
        if not isinstance(leaf, LimitValue):
            values.append(_plain(leaf))
            continue
        own = leaf._revealed
        shift = (0, 0)
        if own is not None:
            place = next(i for i, ids in enumerate(ancestors) if id(own.lineage) in ids)
            shift = shifts[place]
        values.append(_shifted(leaf._value, *shift))
    return Revealed(bank, Lineage(*(tip.lineage for tip in tips)), used), values


def _tips(found: list[Revealed]) -> list[Revealed]:
    """The newest versions; two that share an ancestor are a fork, which has no joint law."""
    if len(found) <= 1:
        return found
    ancestors = [revealed.lineage.ancestors() for revealed in found]
    tips = [
        i for i, revealed in enumerate(found)
        if not any(id(revealed.lineage) in ids for j, ids in enumerate(ancestors) if j != i)
    ]  # fmt: skip
    for k, i in enumerate(tips):
        for j in tips[k + 1 :]:
            if ancestors[i] & ancestors[j]:
                raise LimitError(
                    "Two values come from the same sample but from different calls: each call "
                    "has revealed the random matrices in its own way, so they have no joint law.",
                    advice="Compute both in one function: tp.limit(lambda ...: (first, second)).",
                )
    return [found[i] for i in tips]


def _shifted(value: Value, stores: int, spaces: int) -> Value:
    if isinstance(value, Tensor):
        space = None if value.space is None else value.space + spaces
        return Tensor(value.terms, value.remainder, value.axis, space, value.noise, value.zeros)

    def shift(matrix: Matrix) -> Matrix:
        def label(space: int | None) -> int | None:
            return None if space is None else space + spaces

        return _replace_parts(
            matrix,
            row_space=label(matrix.row_space),
            column_space=label(matrix.column_space),
            gaussians=tuple(
                Gaussian(g.scale, g.store + stores, g.transposed) for g in matrix.gaussians
            ),
            cores=tuple(
                Core(c.core, c.exponent, c.store + stores, c.transposed) for c in matrix.cores
            ),
            low_rank=tuple(LowRank(p.rows, p.columns, p.scale) for p in matrix.low_rank),
        )

    return value.map(shift)


def _plain(leaf: Any) -> Tensor:
    if isinstance(leaf, LimitValue):
        assert isinstance(leaf._value, Tensor)
        return leaf._value
    return tensor(leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf))


def _aval_of(leaf: Any) -> Aval:
    if isinstance(leaf, LimitValue):
        return leaf._aval
    shaped = jax.typeof(leaf) if isinstance(leaf, jax.Array) else jax.typeof(jnp.asarray(leaf))
    return Aval(tuple(shaped.shape), shaped.dtype)


def _weak(leaf: Any) -> bool:
    if isinstance(leaf, (bool, int, float, complex)):
        return True
    return bool(getattr(leaf, "weak_type", False)) if isinstance(leaf, jax.Array) else False


def _lengths(shape: Sequence[Dim], n: int) -> tuple[int, ...]:
    return tuple(dim.at(n) if isinstance(dim, Size) else dim for dim in shape)


def _origins(program: Program) -> list[Location | None]:
    made = {slot: e.location for e in program.equations for slot in e.outputs}
    return [made.get(out) if isinstance(out, Slot) else None for out in program.outputs]


# Leaving: what users see of the outputs.


def to_limit(leaf: LimitValue) -> Any:
    """The limit of a finite output as an array; vectors and matrices stay opaque.

    Raises:
        DivergenceError: an entry grows with the width.
        CancellationError: the leading coefficient vanishes and the next term is not known.
    """
    value = leaf._value
    if not isinstance(value, Tensor) or not value.finite:
        return leaf
    if value.exponents.max() > 0:
        _raise_growing(leaf, value)
    if value.remainder.max() >= 0:
        raise CancellationError(
            f"The limit of an output is not known: the unknown part is of order "
            f"n^{value.remainder.max()}.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    keep = np.asarray(value.exponents.array == 0, dtype=bool)
    if keep.all():
        return jnp.asarray(value.coefficient)
    return jnp.where(keep, value.coefficient, jnp.zeros((), value.dtype))


def _raise_growing(leaf: LimitValue, value: Tensor) -> NoReturn:
    top = value.exponents.max()
    grows = value.exponents.mask(top)
    zero = np.asarray(jnp.abs(value.coefficient)) <= (
        0 if value.noise is None else ZERO_SIGMAS * np.asarray(value.noise)
    )
    if np.all(zero | ~np.broadcast_to(grows, zero.shape)):
        raise CancellationError(
            f"An output is of order n^{top} with a coefficient that is zero within the sampling "
            "error: its true order and its limit are not known.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    raise DivergenceError(
        f"An output grows like n^{top}.", location=leaf._origin, advice=DIVERGENCE_ADVICE
    )


def to_leading(leaf: LimitValue) -> Any:
    """Coefficient and exponent of a finite output; vectors and matrices stay opaque.

    Raises:
        CancellationError: the leading coefficient is zero within the sampling error.
    """
    value = leaf._value
    if not isinstance(value, Tensor) or not value.finite:
        return leaf
    hidden = value.exponents.map(lambda e, r: r >= e and r != NEVER, value.remainder)
    if np.any(np.asarray(hidden.array, dtype=bool)) or not bool(significant(value)):
        raise CancellationError(
            f"The leading term of an output is not known: its coefficient at "
            f"n^{value.exponents} is zero within the sampling error.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    noise = jnp.zeros(value.shape, value.dtype) if value.noise is None else value.noise
    return Leading(jnp.asarray(value.coefficient), _exponent(value.exponents), noise)


def exponent_of(leaf: LimitValue) -> Any:
    """Exponent of a value: a ``Fraction``, ``-inf`` for zero, or an object array of them."""
    if not isinstance(leaf._value, Tensor):
        raise LimitError("A matrix has no single exponent.")
    return _exponent(leaf._value.exponents)


def _exponent(exponents: Exponents) -> Exponent | np.ndarray:
    return exponents.value if exponents.uniform else exponents.array


_EVALUATORS: "weakref.WeakKeyDictionary[Any, Evaluator]" = weakref.WeakKeyDictionary()


def _evaluator(function: Callable[..., Any]) -> Evaluator:
    try:
        return _EVALUATORS.setdefault(function, Evaluator(function))
    except TypeError:  # not hashable or no weak references: nothing to share
        return Evaluator(function)


def _transformed(function: Callable[..., Any], convert: Callable[[LimitValue], Any]) -> Any:
    evaluator = _evaluator(function)

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(convert, evaluator(args, kwargs))

    return limited


def limit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that evaluates the infinite-width limit of ``function``.

    ``function`` is plain JAX. Its arguments are values from ``tp.sample(..., width=tp.inf)`` (or
    ``tp.Deferred(n)``) and ordinary arrays, in any pytrees. Finite outputs are ordinary arrays:
    the limits, 0 where the output vanishes with the width. Outputs with a width axis are opaque
    values for further limited functions. The call is compiled and cached by itself.

    Each call knows what the values it receives have revealed of the random matrices, and forgets
    what it reveals unless it returns values with a width.

    Raises:
        DivergenceError: a finite output grows with the width.
        CancellationError: terms cancel and this version does not know the next ones.
        NoLimitError, UnsupportedOperationError, WidthError: with the line of the operation.

    Source: Master Theorem, G. Yang, *Tensor Programs III*, arXiv 2009.10685.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> tp.limit(lambda v: (v * v).mean())(v).round(3)
        Array(1., dtype=float32)
    """
    return _transformed(function, to_limit)  # type: ignore[no-any-return]


def leading(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``tp.limit``; finite outputs are ``tp.Leading(coefficient, exponent, stderr)``.

    Raises:
        CancellationError: a leading coefficient is zero within its sampling error, so that the
            true exponent is not known.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> tp.leading(lambda v: (v * v).sum())(v).exponent
        Fraction(1, 1)
    """
    return _transformed(function, to_leading)  # type: ignore[no-any-return]


def raw(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``tp.limit``, but every output stays a ``LimitValue`` with its exponents."""
    return _transformed(function, lambda leaf: leaf)  # type: ignore[no-any-return]


