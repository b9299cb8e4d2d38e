"""Evaluation of a user's function on limit values: traced, interpreted, compiled.

An evaluator traces its function once for arguments of a form, so that there is a new one for every
run. What has been compiled belongs to the program that was traced, not to the function, and equal
programs share it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from tplimit import _jax, arguments
from tplimit.caching.store import kept
from tplimit.declare import joined
from tplimit.declare.draws import with_draws
from tplimit.errors import LimitError, LimitWarning, Location, warn
from tplimit.interpreter.cancellation import Held, Name
from tplimit.interpreter.context import Check
from tplimit.interpreter.table import RULES
from tplimit.program.equations import Aval, Program, Slot
from tplimit.program.lint import lint
from tplimit.program.tracing import WIDTHS, failed_at_width, trace
from tplimit.transforms.effort import Calls, pays
from tplimit.transforms.opaque import LimitValue, Lineage, Revealed, aval_of, beside, gathered, weak
from tplimit.transforms.plans import Plan, Planning, plan_for
from tplimit.transforms.rehearsal import terms_of
from tplimit.transforms.room import fitted, with_room
from tplimit.values.exponents import Dim, Size
from tplimit.values.tensors import Tensor, Value

#: From a program, the structures of its arguments and of its outputs, and the leaves of the
#: arguments to another program of the same arguments, and the structure of its outputs.
Change = Callable[[Program, Any, Any, list[Any]], tuple[Program, Any]]


class Evaluator:
    """A user's function as it is when it is first called, with its programs.

    Args:
        function: plain JAX.
        change: what is evaluated instead of the program of the function; default: the program.
        jit: whether to compile. What is run once or twice takes longer to compile than to run.
        records: whether the outputs are records of a run. If they hang on a decision that is not
            sure that is a warning: other replicates decide otherwise, and show what hangs on it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        change: Change | None = None,
        jit: bool = True,
        records: bool = False,
    ) -> None:
        self.function, self.change, self.jit, self.records = function, change, jit, records
        self.programs: dict[Any, tuple[Program, Any]] = {}
        self.plannings: dict[int, Planning] = {}

    def __call__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        last: bool = False,
        calls: Calls | None = None,
        on_compile: Callable[[], None] | None = None,
        replicated: bool = False,
    ) -> Any:
        """Outputs as a pytree of ``LimitValue``.

        Args:
            last: the arguments are not used again: the memory of their stores may be reused.
            calls: how many such calls follow one another, if that is known; stores then get no
                more room than all of these can need.
            on_compile: called before a run that has to be compiled.
            replicated: arrays of limit values have a leading axis of independent replicates, and
                so have those of the outputs; other arguments are common to all.
        """
        leaves, tree = jax.tree.flatten((args, kwargs))
        for leaf in leaves:
            if hasattr(leaf, "tplimit_parameter"):
                raise LimitError(
                    "A parameter that was only declared is passed to a limited function.",
                    advice="Sample it first: theta = tp.sample(theta, key, width=tp.inf).",
                )
        program, out_tree, values, revealed = self._read(beside(leaves), tree)
        axes = _axes(leaves) if replicated else None
        call = _Call(last, calls, on_compile, axes)
        (out, new), sources = self.run(program, values, revealed, call)
        random = _random(leaves, values, sources) or [()] * len(out)
        # A finite value needs no bank, and must not keep one alive.
        wrapped = [
            LimitValue(value, aval, None if _is_finite(value) else new, origin, drawn)
            for value, aval, origin, drawn in zip(
                out, program.out_avals, _origins(program), random, strict=True
            )
        ]
        return jax.tree.unflatten(out_tree, wrapped)

    def asks(self, *args: Any, replicated: bool = False) -> dict[int, int]:
        """How many rows a call with these arguments asks of each matrix; nothing is run.

        Raises:
            LimitError: already without its numbers the program is known to have no limit.
        """
        leaves, tree = jax.tree.flatten((args, {}))
        program, _, values, revealed = self._read(beside(leaves), tree)
        axes = _axes(leaves) if replicated else None
        return self.plan(program, values, revealed, axes).revealed

    def _read(
        self, leaves: list[Any], tree: Any
    ) -> tuple[Program, Any, list[Value], Revealed | None]:
        """The function as a program, and what it is given."""
        revealed, values = gathered(leaves)
        exact = revealed is not None and revealed.bank.law.exact
        also = (revealed.bank.n,) if revealed is not None and exact else ()
        program, out_tree = self.program(tree, [aval_of(leaf) for leaf in leaves], leaves, also)
        return program, out_tree, values, revealed

    def align(self, args: tuple[Any, ...], widths: Sequence[int]) -> None:
        """Raise where the function is another program at one of these widths than in the limit."""
        leaves, tree = jax.tree.flatten((args, {}))
        self.program(tree, [aval_of(leaf) for leaf in leaves], leaves, tuple(widths))

    def program(
        self, tree: Any, avals: list[Aval], leaves: list[Any], also: tuple[int, ...] = ()
    ) -> tuple[Program, Any]:
        """The function read as a program, the same at the widths ``also``."""
        weaknesses = tuple(weak(leaf) for leaf in leaves)
        key = (tree, tuple((a.shape, str(a.dtype)) for a in avals), weaknesses, also)
        if key not in self.programs:
            sizes = [d.ratio for a in avals for d in a.shape if isinstance(d, Size)]
            multiple = math.lcm(1, *(ratio.denominator for ratio in sizes))

            def flat(*inputs: Any) -> Any:
                parts = jax.tree.unflatten(tree, inputs)
                args, kwargs = joined.put_together(parts)
                out = arguments.returned(self.function, self.function(*args, **kwargs))
                return joined.taken_apart(out, joined.lengths_in(parts))

            def inputs_at(n: int) -> list[Any]:
                return [
                    jax.ShapeDtypeStruct(_lengths(a.shape, n), a.dtype, weak_type=w)
                    for a, w in zip(avals, weaknesses, strict=True)
                ]

            with _jax.traced_anew():
                program, out_tree = trace(flat, inputs_at, multiple, also)
                program = with_draws(program)
                _apart(flat, avals, weaknesses, multiple)
            lint(program)
            if self.change is not None:
                program, out_tree = self.change(program, tree, out_tree, leaves)
            self.programs[key] = program, out_tree
        return self.programs[key]

    def run(
        self, program: Program, values: list[Value], revealed: Revealed | None, call: "_Call"
    ) -> tuple[tuple[list[Value], Revealed | None], tuple[tuple[int, ...], ...]]:
        """Outputs with their bank, and what their terms depend on."""
        planning = self.planning(program)
        while True:
            plan = self.plan(program, values, revealed, call.axes)
            out, refuted = self._run(plan, program, values, revealed, call)
            if not refuted:
                return out, plan.sources
            planning.refuted.setdefault(plan.form, set()).update(refuted)

    def _run(
        self,
        plan: Plan,
        program: Program,
        values: list[Value],
        revealed: Revealed | None,
        call: "_Call",
    ) -> tuple[tuple[list[Value], Revealed | None], list[Name]]:
        """Outputs by a plan, and the sums that it wrongly takes to cancel."""
        bank = None
        if revealed is not None:
            revealed = with_room(revealed, plan.revealed, call.calls)
            bank = revealed.bank
        values = [fitted(value, bank) for value in values]
        stores = () if bank is None else bank.stores
        rest = None if bank is None else replace(bank, stores=())
        capacity = 0 if bank is None else bank.capacity
        consume = call.last and not plan.cancelled  # else it may have to run once more
        if call.calls is None:
            plan.calls += 1
        work = plan.work * (plan.calls if call.calls is None else call.calls.alike)
        if any(map(_jax.is_traced, jax.tree.leaves((stores, rest, values)))):
            work = math.inf  # it becomes part of another program, whose calls nobody knows
        run = plan.program(consume, work)
        key = (consume, pays(work), capacity)
        if key not in plan.compiled:
            plan.compiled.add(key)
            if call.on_compile is not None:
                call.on_compile()
        with nullcontext() if self.jit else jax.disable_jit():
            results = (run if self.jit else plan.function)(stores, rest, values)
        out, new_bank, checks, held = results
        refuted = _refuted(held)
        if refuted:
            return (out, None), refuted
        if checks:
            planned = self.planning(program).program
            _verify(checks, planned, program, self.records)
        if revealed is None or new_bank is None:
            return (out, None), []
        if bank is not None:
            new_bank = replace(new_bank, noise=bank.noise)
        used = dict(revealed.used)
        for index, count in plan.revealed.items():
            used[index] = used.get(index, 0) + count
        return (out, Revealed(new_bank, Lineage(revealed.lineage), used)), []

    def plan(
        self,
        program: Program,
        values: list[Value],
        revealed: Revealed | None,
        axes: tuple[int | None, ...] | None,
    ) -> Plan:
        """What a run of the program with such values does.

        Raises:
            LimitError: already without its numbers the program is known to have no limit.
        """
        planning = self.planning(program)
        try:
            return plan_for(planning, values, revealed, axes)
        except LimitError as error:
            if planning.program is program:
                raise
            raise _at_its_line(error, planning.program, program) from None

    def planning(self, program: Program) -> Planning:
        if id(program) not in self.plannings:
            planning = kept("plans", lambda: Planning(program), program, RULES.state())
            self.plannings[id(program)] = planning
        return self.plannings[id(program)]


@dataclass(frozen=True)
class _Call:
    """How a program is called (see ``Evaluator.__call__``).

    ``axes``: for each argument 0 where it has an axis of replicates, else None.
    """

    last: bool = False
    calls: Calls | None = None
    on_compile: Callable[[], None] | None = None
    axes: tuple[int | None, ...] | None = None


def _axes(leaves: list[Any]) -> tuple[int | None, ...]:
    return tuple(0 if isinstance(leaf, LimitValue) else None for leaf in leaves)


def _apart(
    flat: Callable[..., Any], avals: list[Aval], weak: tuple[bool, ...], multiple: int
) -> None:
    """Trace once with every named width of another length: they must not be combined."""
    sizes = [d for a in avals for d in a.shape if isinstance(d, Size) and d.name]
    names = sorted({size.name for size in sizes})
    if len(names) < 2:
        return
    base = WIDTHS[0] // 24 * multiple  # small: products of lengths stay far from 2^31
    factors = {name: base * (k + 1) for k, name in enumerate(names)}
    inputs = [
        jax.ShapeDtypeStruct(
            tuple((d.at(factors.get(d.name, base)) if isinstance(d, Size) else d) for d in a.shape),
            a.dtype,
            weak_type=w,
        )
        for a, w in zip(avals, weak, strict=True)
    ]
    try:
        jax.eval_shape(flat, *inputs)
    except LimitError:
        raise
    except Exception as error:
        raise failed_at_width(
            error,
            f"Different widths ({', '.join(names)}) are combined coordinate by coordinate.",
            "Give both axes the same width, or connect them by a matrix.",
        ) from error


def _random(
    leaves: Sequence[Any], values: Sequence[Value], sources: Sequence[Sequence[int]]
) -> list[tuple[bool, ...]]:
    """Which terms of outputs are other numbers for every draw of the fluctuations."""
    drawn, bit = 1, 2
    for leaf, value in zip(leaves, values, strict=True):
        random = leaf._random if isinstance(leaf, LimitValue) else ()
        for number in range(terms_of(value)):
            drawn |= bit if number < len(random) and random[number] else 0
            bit *= 2
    return [tuple(bool(mask & drawn) for mask in masks) for masks in sources]


def _is_finite(value: Value) -> bool:
    return isinstance(value, Tensor) and value.finite


def _refuted(held: Sequence[Held]) -> list[Name]:
    """The sums that were taken to cancel and do not; none can be told while JAX is tracing."""
    if any(_jax.is_traced(one.ok) for one in held):
        return []
    found = jax.device_get([one.ok for one in held])
    return [one.name for one, ok in zip(held, found, strict=True) if not np.all(ok)]


def _verify(checks: Sequence[Check], planned: Program, program: Program, records: bool) -> None:
    """Raise (or warn of) the conditions that did not hold in a run."""
    held = jax.device_get([check.ok for check in checks])
    failed = [check for check, ok in zip(checks, held, strict=True) if not np.all(ok)]
    if not failed:
        return
    for check in sorted(failed, key=lambda check: check.doubt):
        error = _at_its_line(check.error, planned, program)
        if check.doubt and records:
            error = LimitWarning(
                "A record hangs on a decision that is not sure within the sampling error of one "
                "replicate; the spread over replicates shows it.",
                operation=error.operation,
                location=error.location,
                advice="More samples= make it surer.",
            )
        if isinstance(error, LimitError):
            raise error
        warn(error)


def _at_its_line(
    error: LimitError | LimitWarning, planned: Program, program: Program
) -> LimitError | LimitWarning:
    """An error of the program that was planned, at the line of the equal one that is run."""
    places = dict(zip(map(id, planned.locations), program.locations, strict=True))
    return error.at(places.get(id(error.location), error.location))


def _lengths(shape: Sequence[Dim], n: int) -> tuple[int, ...]:
    return tuple(dim.at(n) if isinstance(dim, Size) else dim for dim in shape)


def _origins(program: Program) -> list[Location | None]:
    made = {slot: e.location for e in program.equations for slot in e.outputs}
    return [made.get(out) if isinstance(out, Slot) else None for out in program.outputs]
