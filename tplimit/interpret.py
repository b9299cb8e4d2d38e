"""The interpreter: one loop over the equations of a program, one table of rules.

A rule is a function ``rule(ctx, *values, **params)`` returning one value or a list of values.
``params`` come with lengths that grow as ``Size``; ``ctx.resolve`` makes them numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import Primitive, is_key
from tplimit.bank import Bank
from tplimit.errors import (
    CANCELLATION_ADVICE,
    CancellationError,
    LimitError,
    LimitWarning,
    NoLimitError,
    UnsupportedOperationError,
    WidthError,
)  # fmt: skip
from tplimit.gaussian import deferred
from tplimit.parity import EVEN
from tplimit.plain import continuous, evaluated
from tplimit.trace import (
    COMPLEX,
    COMPLEX_ADVICE,
    Constant,
    Equation,
    Operand,
    Program,
    Slot,
    is_complex,
)  # fmt: skip
from tplimit.values import Tensor, Value, tensor, with_parity
from tplimit.widths import NEVER, NONE, Size

Rule = Callable[..., Any]

#: Constant folding stops at arrays of this many entries.
_FOLD_LIMIT = 4096


@dataclass
class Rules:
    """Table of rules, keyed by primitive object. A primitive has a rule, is refused with a
    reason, or is probed: it may turn out to act entry by entry."""

    rules: dict[Primitive, Rule] = field(default_factory=dict)
    refused: dict[Primitive, str] = field(default_factory=dict)
    #: Of these the rule only moves entries, of values of any number of terms.
    moves: set[Primitive] = field(default_factory=set)
    #: A rule of an equation whose primitive has none, or why there is no such rule.
    probed: Callable[[Equation], Rule | str] = lambda equation: "it was not probed"
    #: From the rule of a primitive for values of one term to that for values of several.
    lifted: Callable[[Primitive, Rule], Rule] = lambda primitive, rule: rule

    def __call__(
        self, *primitives: Primitive | None, moves: bool = False
    ) -> Callable[[Rule], Rule]:
        """Decorator that enters a rule of ``primitives`` (None stands for one this JAX lacks).

        ``moves``: the rule only moves entries (``rearranging.py``), of any number of terms.
        """

        def enter(rule: Rule) -> Rule:
            for primitive in primitives:
                if primitive is not None:
                    self._new(primitive)
                    self.rules[primitive] = rule
                    if moves:
                        self.moves.add(primitive)
            return rule

        return enter

    def refuse(self, reason: str, *primitives: Primitive) -> None:
        """Say that ``primitives`` have no limit on values with a width, and why."""
        for primitive in primitives:
            self._new(primitive)
            self.refused[primitive] = reason

    def _new(self, primitive: Primitive) -> None:
        if primitive in self.rules or primitive in self.refused:
            raise ValueError(f"There is already a rule for {primitive.name}.")

    def copy(self) -> "Rules":
        known = dict(self.rules), dict(self.refused), set(self.moves)
        return Rules(*known, self.probed, self.lifted)

    def describe(self) -> str:
        """A Markdown table of the supported and the refused operations."""
        entries = [(p.name, _summary(rule)) for p, rule in self.rules.items()]
        entries += [(p.name, f"refused: {why}") for p, why in self.refused.items()]
        lines = ["| primitive | rule |", "| --- | --- |"]
        lines += [f"| `{name}` | {text} |" for name, text in sorted(entries)]
        return "\n".join(lines)


def _summary(rule: Rule) -> str:
    """First paragraph of a rule's docstring, on one line."""
    first = (rule.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.split())


def _folded(out: jax.Array) -> Any:
    return out if is_key(out) or out.size > _FOLD_LIMIT else np.asarray(out)


def _array(value: Any) -> Any:
    """Anything as a JAX array; arrays (typed keys among them) as they are."""
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


RULES = Rules()


class NeedDecision(Exception):
    """A static choice depends on the value of a finite variable that must be computed first."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot)
        self.slot = slot


@dataclass
class Check:
    """A condition on numbers, verified after the run: ``ok`` must hold, else ``error`` is raised
    (or, if it is a warning, warned)."""

    ok: Any
    error: LimitError | LimitWarning


class Context:
    """What a rule may use: the current equation, the bank, spaces, checks, recursion."""

    def __init__(
        self,
        bank: Bank | None,
        *,
        classes: Mapping[int, int] | None = None,
        decisions: Mapping[Slot, np.ndarray | None] | None = None,
        rules: Rules = RULES,
        dry: bool = False,
    ) -> None:
        self.bank = bank
        self.rules = rules
        self.dry = dry
        self.classes = dict(bank.classes if bank is not None else ()) | dict(classes or {})
        self.decisions = dict(decisions or {})
        self.checks: list[Check] = []
        self.revealed: dict[tuple[int, bool], int] = {}
        self.nested = False
        self.equation: Equation | None = None
        self.program: Program | None = None
        self._memory: dict[tuple[int, bool, int], tuple[Any, Any]] = {}
        self._rows: dict[tuple[int, int], tuple[Any, Any]] = {}
        self.items: dict[int, tuple[Any, list[Value]]] = {}
        #: What is known of values beyond their terms, by identity (see ``rules/lifted.py``).
        self.notes: dict[int, tuple[Any, Any]] = {}
        #: Of what a vector is the positive part, and what is positive where a mask holds; as notes.
        self.positive: dict[int, tuple[Any, Any]] = {}

    # Sizes and scales -----------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether the widths are true, finite ones (a deferred network), not a limit."""
        return self.bank is not None and self.bank.law.exact

    @property
    def terms(self) -> int:
        """Terms of the expansion in the width that are kept of every value."""
        return 1 if self.bank is None else self.bank.terms

    @property
    def root_n(self) -> float:
        """Square root of the number of particles per common width."""
        return 1.0 if self.bank is None else float(self.bank.n) ** 0.5

    def size(self, dim: int | Size) -> int:
        """Length of an axis in the arrays at hand."""
        if isinstance(dim, Size):
            return dim.at(self.bank.n if self.bank is not None else 1)
        return int(dim)

    def shape(self, dims: Iterable[int | Size]) -> tuple[int, ...]:
        return tuple(self.size(dim) for dim in dims)

    def scale(self, coefficient: float, power: Fraction) -> tuple[float, Fraction]:
        """``c n^p`` as coefficient and exponent; at finite width the exponent is 0."""
        if self.exact and self.bank is not None and power != 0:
            return coefficient * float(self.bank.n) ** float(power), Fraction(0)
        return coefficient, power

    def resolve(self, params: Any) -> Any:
        """Parameters with every ``Size`` replaced by the length at hand."""
        if isinstance(params, Size):
            return self.size(params)
        if isinstance(params, dict):
            return {name: self.resolve(value) for name, value in params.items()}
        if isinstance(params, (tuple, list)):
            parts = [self.resolve(part) for part in params]
            return type(params)(*parts) if hasattr(params, "_fields") else type(params)(parts)
        return params

    def bind(self, primitive: Primitive, *arrays: Any, **params: Any) -> Any:
        """Evaluate a primitive on coefficients; constants are folded."""
        params = self.resolve(params)
        concrete = all(isinstance(a, (np.ndarray, np.generic)) for a in arrays)
        if concrete and sum(np.size(a) for a in arrays) <= _FOLD_LIMIT:
            with jax.ensure_compile_time_eval():
                out = primitive.bind(*(jnp.asarray(a) for a in arrays), **params)
            return [_folded(o) for o in out] if primitive.multiple_results else _folded(out)
        return primitive.bind(*(_array(a) for a in arrays), **params)

    def rebind(self, *arrays: Any) -> Any:
        """The current equation's primitive on coefficients."""
        assert self.equation is not None
        return self.bind(self.equation.primitive, *arrays, **self.equation.params)

    # Spaces ---------------------------------------------------------------------------------

    def find(self, space: int) -> int:
        while (parent := self.classes.get(space, space)) != space:
            space = parent
        return space

    def unify(self, *spaces: int | None) -> int | None:
        """Declare that width axes are combined coordinate by coordinate."""
        roots = sorted({self.find(space) for space in spaces if space is not None})
        for other in roots[1:]:
            self.classes[other] = roots[0]
        return roots[0] if roots else None

    # Deferred matrices ----------------------------------------------------------------------

    def rows(self, value: Tensor) -> Any:
        """Coefficient as rows ``(k, M)``, finite axes first; the same object when asked again."""
        key = (id(value.coefficient), -1 if value.axis is None else value.axis)
        if key not in self._rows:
            assert value.axis is not None
            moved = jnp.moveaxis(jnp.asarray(value.coefficient), value.axis, -1)
            flat = moved.reshape(-1, moved.shape[-1])
            self._rows[key] = (value.coefficient, flat)
        return self._rows[key][1]

    def query(
        self,
        index: int,
        transposed: bool,
        rows: Any,
        cores: Sequence[Any] = (),
        unmet: np.ndarray | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Images of rows ``(B, n_in)`` under ``G / sqrt(n_in)`` (or transposed) and under cores in
        the bases of ``G``; reveals and remembers.

        Returns: the images, that of ``G`` first, and with several terms their changes at finite
        width, over ``n^(-1/2)``.
        """
        assert self.bank is not None
        view = self.bank.view(index, transposed)
        rows = rows.astype(view.X.dtype)
        count = int(rows.shape[0])
        side = (index, transposed)
        self.revealed[side] = self.revealed.get(side, 0) + count
        if self.dry or not count:
            coordinates = jnp.zeros((count, view.capacity), rows.dtype)
            images = [jnp.zeros((count, view.Y.shape[1]), rows.dtype)] * (1 + len(cores))
            changes = images if self.terms > 1 else []
        else:
            earlier = [] if self.exact else self.bank.noise_rows(index, transposed, self._roots())
            answer = deferred.query(
                view, rows, self.bank.law, earlier,
                source=self.bank.source(index, transposed), cores=cores,
                multipliers=self._multipliers(index, transposed),
                unmet=None if unmet is None else jnp.asarray(unmet),
            )  # fmt: skip
            self.bank = self.bank.with_view(index, transposed, answer.store)
            images, changes = [answer.image, *answer.updates], answer.fluctuations
            coordinates = answer.coordinates
        self.remember(index, transposed, rows, coordinates)
        return images, changes

    def _multipliers(self, index: int, transposed: bool) -> deferred.Multipliers | None:
        if self.terms == 1 or self.bank is None:
            return None
        out, into = self.bank.store_spaces[index]
        if transposed:
            out, into = into, out
        view = self.bank.view(index, transposed)
        return deferred.Multipliers(
            self.multipliers(into, view.X.shape[1]), self.multipliers(out, view.Y.shape[1]),
            self.bank.n,
        )  # fmt: skip

    def multipliers(self, space: int, size: int) -> Any:
        """Weights of the coordinates of a space in central-limit terms (0 where these are left
        out)."""
        assert self.bank is not None
        if not self.bank.fluctuating:
            return jnp.zeros(size)
        return self.bank.multipliers(self.find(space), size)

    def closed(self) -> Bank | None:
        """The bank as it leaves the call, knowing which spaces have been combined."""
        if self.bank is None:
            return None
        return replace(self.bank, classes=tuple(sorted(self._roots().items())))

    def _roots(self) -> dict[int, int]:
        return {space: self.find(space) for space in self.classes}

    def remember(self, index: int, transposed: bool, rows: Any, coordinates: Any) -> None:
        self._memory[(index, transposed, id(rows))] = (rows, coordinates)

    def recall(self, index: int, transposed: bool, rows: Any) -> Any | None:
        """Coordinates of rows that were a query's input, or None."""
        found = self._memory.get((index, transposed, id(rows)))
        return None if found is None else found[1]

    def coordinates(self, index: int, transposed: bool, rows: Any) -> Any:
        """Coordinates of rows in the revealed basis, revealing what is new."""
        found = self.recall(index, transposed, rows)
        if found is None:
            rows = rows.astype(self.bank.view(index, transposed).X.dtype)  # type: ignore[union-attr]
            self.query(index, transposed, rows)
            found = self.recall(index, transposed, rows)
        return found

    # Failures -------------------------------------------------------------------------------

    def error(
        self,
        reason: str,
        kind: type[LimitError] | type[LimitWarning] = UnsupportedOperationError,
        advice: str = "",
    ) -> Any:
        """An error or a warning that names the current operation and the user's line."""
        equation = self.equation
        return kind(
            reason,
            operation=None if equation is None else str(equation),
            location=None if equation is None else equation.location,
            advice=advice or None,
        )

    def refuse_later(self, value: Tensor, error: LimitError, significant: Any) -> Tensor:
        """Refuse when the run is over: then it is known whether a coefficient only vanishes.

        Returns a placeholder of NaN, so that the run can go on to its end.
        """
        vanishes = self.error(
            f"{error.reason.rstrip('.')}, by a coefficient that is zero within the sampling error.",
            CancellationError,
            CANCELLATION_ADVICE,
        )
        self.checks.append(Check(significant, vanishes))
        self.checks.append(Check(jnp.asarray(False), error))
        shape, dtype = np.shape(value.coefficient), jnp.result_type(float)
        return tensor(jnp.full(shape, jnp.nan, dtype), axis=value.axis, space=value.space)

    def fail(
        self, reason: str, kind: type[LimitError] = UnsupportedOperationError, advice: str = ""
    ) -> NoReturn:
        raise self.error(reason, kind, advice)

    def check(self, ok: Any, error: LimitError | LimitWarning) -> None:
        """Require a condition on numbers; verified when the run is over."""
        if isinstance(ok, (bool, np.bool_, np.ndarray)) and bool(np.all(ok)):
            return
        self.checks.append(Check(jnp.all(ok), error))

    # Recursion ------------------------------------------------------------------------------

    def run(self, program: Program, inputs: Sequence[Value]) -> list[Value]:
        """Interpret a nested program with this context."""
        outer, nested = (self.program, self.equation), self.nested
        self.nested = True
        try:
            return evaluate(self, program, inputs)
        finally:
            (self.program, self.equation), self.nested = outer, nested

    def decided(self, operand: Operand) -> np.ndarray | None:
        """The value of a finite variable, computed before the run if that is possible."""
        if not isinstance(operand, Slot) or self.nested:
            return None
        if operand in self.decisions:
            return self.decisions[operand]
        raise NeedDecision(operand)

    def child(self, bank: Bank | None) -> "Context":
        """A context for the body of a compiled loop, with a bank of its own."""
        inner = Context(
            bank, classes=self.classes, decisions=self.decisions, rules=self.rules, dry=self.dry
        )
        inner.classes = self.classes
        inner.nested, inner.equation = True, self.equation
        return inner


def constant_value(ctx: Context, constant: Constant) -> Tensor:
    """A number or array of the program as a value."""
    fitted, aval = constant.fitted, constant.aval
    axes = aval.width_axes
    array: Any = fitted.coefficient
    exponents, remainder = fitted.exponents, fitted.remainder
    if ctx.exact:
        array, remainder = fitted.last, NONE
        exponents = exponents.map(lambda e: NEVER if e == NEVER else Fraction(0))
    if len(axes) == 1:
        array = np.broadcast_to(array, ctx.shape(aval.shape))
        return with_parity(tensor(array, exponents, remainder, axes[0]), EVEN)
    if len(axes) > 1:
        raise WidthError("A constant array with two width axes is not supported.")
    return tensor(array, exponents, remainder)


def evaluate(ctx: Context, program: Program, inputs: Sequence[Value]) -> list[Value]:
    """Interpret ``program`` on values."""
    environment: dict[Slot, Value] = dict(zip(program.inputs, inputs, strict=True))

    def read(operand: Operand) -> Value:
        if isinstance(operand, Slot):
            return environment[operand]
        return constant_value(ctx, operand)

    ctx.program = program
    for equation in program.equations:
        ctx.equation = equation
        values = [read(operand) for operand in equation.inputs]
        outputs = apply(ctx, equation, values)
        environment.update(zip(equation.outputs, outputs, strict=True))
    ctx.equation = None
    return [read(operand) for operand in program.outputs]


def apply(ctx: Context, equation: Equation, values: Sequence[Value]) -> list[Value]:
    """One equation: plainly where no width and no power of n is involved, else by its rule."""
    primitive = equation.primitive
    out = evaluated(ctx.bind, equation, values)
    if out is not None:
        return out
    rule = ctx.rules.rules.get(primitive)
    if rule is None:
        out = continuous(ctx.bind, equation, values)
        if out is not None:
            return out
    if rule is None and primitive in ctx.rules.refused:
        ctx.fail(f"{primitive.name}: {ctx.rules.refused[primitive]}", NoLimitError)
    if any(is_complex(aval) for aval in equation.in_avals):
        ctx.fail(COMPLEX, advice=COMPLEX_ADVICE)
    if rule is None:
        rule = _found(ctx, equation)
    elif ctx.terms > 1 and primitive not in ctx.rules.moves:
        rule = ctx.rules.lifted(primitive, rule)
    try:
        outputs = rule(ctx, *values, **equation.params)
    except WidthError as error:
        if error.location is None:
            ctx.fail(error.reason, WidthError, error.advice or "")
        raise
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _found(ctx: Context, equation: Equation) -> Rule:
    """The rule of an operation that is in no table, if it acts entry by entry."""
    primitive = equation.primitive
    if primitive.name.startswith("random_"):
        raise ctx.error(
            "A random key or its use depends on a width.",
            NoLimitError,
            "Derive keys from numbers that do not depend on the width; for random vectors use "
            "parameters made with tp.normal.",
        )
    found = ctx.rules.probed(equation)
    if not isinstance(found, str):
        return found
    raise ctx.error(
        f"There is no rule for the operation {primitive.name} on values that depend on a width, "
        f"and it is not known to act entry by entry: {found}.",
        UnsupportedOperationError,
        "Rewrite it with supported operations (tplimit.RULES.describe() lists them), or enter a "
        "rule: @tplimit.RULES(primitive).",
    )
