"""Evaluation of a user's function on limit values: traced, interpreted, compiled.

An evaluator traces its function once for arguments of a form, so that there is a new one for every
run. What has been compiled belongs to the program that was traced, not to the function, and equal
programs share it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax, arguments
from tplimit.caching.store import Store, kept
from tplimit.errors import LimitError, LimitWarning, Location, warn
from tplimit.gaussian import noise
from tplimit.gaussian.bank import Bank
from tplimit.interpreter import doubts
from tplimit.interpreter.cancellation import Held, Name, Sums
from tplimit.interpreter.context import SEVERAL, Check, Context
from tplimit.interpreter.spaces import Spaces
from tplimit.interpreter.table import RULES
from tplimit.program.lint import lint
from tplimit.program.tracing import WIDTHS, Aval, Program, Slot, failed_at_width, trace
from tplimit.transforms import sharding
from tplimit.transforms.decisions import Decisions
from tplimit.transforms.opaque import LimitValue, Lineage, Revealed, aval_of, beside, gathered, weak
from tplimit.transforms.rehearsal import interpreted, rehearsed
from tplimit.values.exponents import Dim, Size
from tplimit.values.fields import COMMON, map_arrays
from tplimit.values.tensors import Matrices, Tensor, Value

#: Pairs that stores have room for at first, and the multiple that capacities are rounded up to.
_CAPACITY, _ROUND = 128, 16


@dataclass
class _Plan:
    """A compiled way to run a program on inputs of one form.

    ``run`` and ``consume`` are the same; the second may reuse the memory of the stores.
    ``form`` is that of the inputs, ``cancelled`` tells whether some of its sums are taken to
    cancel, ``compiled`` for which (consume, capacity) there has been a call.
    """

    run: Callable[..., Any]
    consume: Callable[..., Any]
    revealed: dict[int, int]
    form: Any
    cancelled: bool
    compiled: set[tuple[bool, int]] = field(default_factory=set)


#: Compiled plans kept of one program: for other forms of the values, and other decisions.
_PLANS = 16


@dataclass
class _Planning:
    """A program with its plans, for all evaluators that traced an equal one.

    ``deciding`` are the finite variables whose values have to be known before a run; ``refuted``
    are sums that a rehearsal took to cancel and a run did not, by the form of the values.
    """

    program: Program
    deciding: list[Slot] = field(default_factory=list)
    refuted: dict[Any, set[Name]] = field(default_factory=dict)
    plans: Store[_Plan] = field(default_factory=lambda: Store(_PLANS))


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
        self.plannings: dict[int, _Planning] = {}

    def __call__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        last: bool = False,
        calls: int = 0,
        on_compile: Callable[[], None] | None = None,
        replicated: bool = False,
    ) -> Any:
        """Outputs as a pytree of ``LimitValue``.

        Args:
            last: the arguments are not used again: the memory of their stores may be reused.
            calls: how many such calls follow one another, this one included, if that is known;
                stores then get no more room than all of these can need.
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
        leaves = beside(leaves)
        revealed, values = gathered(leaves)
        avals = [aval_of(leaf) for leaf in leaves]
        exact = revealed is not None and revealed.bank.law.exact
        also = (revealed.bank.n,) if revealed is not None and exact else ()
        program, out_tree = self.program(tree, avals, leaves, also)
        call = _Call(last, calls, on_compile)
        if replicated:
            call = replace(call, axes=tuple(_axis(leaf) for leaf in leaves))
        out, new = self.run(program, values, revealed, call)
        origins = _origins(program)
        # A finite value needs no bank, and must not keep one alive.
        wrapped = [
            LimitValue(value, aval, None if _is_finite(value) else new, origin)
            for value, aval, origin in zip(out, program.out_avals, origins, strict=True)
        ]
        return jax.tree.unflatten(out_tree, wrapped)

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
                args, kwargs = jax.tree.unflatten(tree, inputs)
                return arguments.returned(self.function, self.function(*args, **kwargs))

            def inputs_at(n: int) -> list[Any]:
                return [
                    jax.ShapeDtypeStruct(_lengths(a.shape, n), a.dtype, weak_type=w)
                    for a, w in zip(avals, weaknesses, strict=True)
                ]

            with _jax.traced_anew():
                program, out_tree = trace(flat, inputs_at, multiple, also)
                _apart(flat, avals, weaknesses, multiple)
            lint(program)
            if self.change is not None:
                program, out_tree = self.change(program, tree, out_tree, leaves)
            self.programs[key] = program, out_tree
        return self.programs[key]

    def run(
        self, program: Program, values: list[Value], revealed: Revealed | None, call: "_Call"
    ) -> tuple[list[Value], Revealed | None]:
        planning = self.planning(program)
        while True:
            plan = _plan(planning, values, revealed, call.axes)
            out, refuted = self._run(plan, program, values, revealed, call)
            if not refuted:
                return out
            planning.refuted.setdefault(plan.form, set()).update(refuted)

    def _run(
        self,
        plan: _Plan,
        program: Program,
        values: list[Value],
        revealed: Revealed | None,
        call: "_Call",
    ) -> tuple[tuple[list[Value], Revealed | None], list[Name]]:
        """Outputs by a plan, and the sums that it wrongly takes to cancel."""
        bank = None
        if revealed is not None:
            revealed = _with_room(revealed, plan.revealed, call.calls)
            bank = revealed.bank
        values = [_fitted(value, bank) for value in values]
        stores = () if bank is None else bank.stores
        rest = None if bank is None else replace(bank, stores=())
        capacity = 0 if bank is None else bank.capacity
        consume = call.last and not plan.cancelled  # else it may have to run once more
        if (consume, capacity) not in plan.compiled:
            plan.compiled.add((consume, capacity))
            if call.on_compile is not None:
                call.on_compile()
        with nullcontext() if self.jit else jax.disable_jit():
            results = (plan.consume if consume else plan.run)(stores, rest, values)
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

    def planning(self, program: Program) -> _Planning:
        if id(program) not in self.plannings:
            planning = kept("plans", lambda: _Planning(program), program, RULES.state())
            self.plannings[id(program)] = planning
        return self.plannings[id(program)]


def _plan(
    planning: _Planning,
    values: list[Value],
    revealed: Revealed | None,
    axes: tuple[int | None, ...] | None,
) -> _Plan:
    program = planning.program
    bank = None if revealed is None else revealed.bank
    form = (_form(values), _repeated(values), _form(bank), axes)
    refuted = frozenset(planning.refuted.get(form, ()))
    decisions = Decisions(program, values, axes)
    for slot in planning.deciding:
        decisions(slot)
    make = functools.partial(_planned, program, values, bank, decisions, axes, form, refuted)
    plan = planning.plans.get((form, refuted, decisions.key), make)
    new = [slot for slot in decisions.made if slot not in planning.deciding]
    if new:  # asked for the first time
        planning.deciding += new
        return planning.plans.get((form, refuted, decisions.key), lambda: plan)
    return plan


@dataclass(frozen=True)
class _Call:
    """How a program is called (see ``Evaluator.__call__``).

    ``axes``: for each argument 0 where it has an axis of replicates, else None.
    """

    last: bool = False
    calls: int = 0
    on_compile: Callable[[], None] | None = None
    axes: tuple[int | None, ...] | None = None


def _axis(leaf: Any) -> int | None:
    return 0 if isinstance(leaf, LimitValue) else None


def _mapped(
    function: Callable[..., Any], bank: Bank | None, axes: tuple[int | None, ...] | None
) -> Callable[..., Any]:
    """A function of stores, the rest of the bank, and values, applied to all replicates."""
    if axes is None:
        return function
    rest = None
    if bank is not None:
        place = {COMMON["role"]: None}
        rest = map_arrays(lambda _, axis, role: place.get(role, 0), replace(bank, stores=()))
    return jax.vmap(function, in_axes=(0, rest, list(axes)))


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


def _is_finite(value: Value) -> bool:
    return isinstance(value, Tensor) and value.finite


def _form(tree: Any) -> Any:
    """What compilation depends on, save the capacity of the stores."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.ndim(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


def _repeated(values: list[Value]) -> tuple[int, ...]:
    """For each array of the values the first place where it stands: what is equal may cancel."""
    places: dict[int, int] = {}
    return tuple(places.setdefault(id(leaf), i) for i, leaf in enumerate(jax.tree.leaves(values)))


def _planned(
    program: Program,
    values: list[Value],
    bank: Bank | None,
    decisions: Decisions,
    axes: tuple[int | None, ...] | None,
    form: Any,
    refuted: frozenset[Name],
) -> _Plan:
    """Rehearse a program, and prepare its compilation."""
    learnt = rehearsed(program, values, bank, decisions, axes, refuted)
    made = dict(decisions.made)  # the values that they were made of are not kept

    # What finite results have revealed is forgotten, and the stores need not be written.
    written = any(aval.width_axes for aval in program.out_avals)

    def run(
        stores: Any, rest: Bank | None, values: list[Value]
    ) -> tuple[list[Value], Bank | None, list[Check], list[Held]]:
        bank = None if rest is None else replace(rest, stores=stores)
        mesh = None if bank is None else bank.mesh
        sums = None if learnt.cancelled is None else Sums(learnt.cancelled)
        spaces, offset = Spaces(learnt.spaces.classes), None if sums is None else np.zeros(SEVERAL)
        ctx = Context(bank, spaces=spaces, decide=made.get, sums=sums, offset=offset)
        # Bases stay orthonormal only if products of matrices have all digits, on GPUs too.
        with noise.divided(mesh is not None), jax.default_matmul_precision("highest"):
            out = interpreted(ctx, program, values)
        held = [] if sums is None else sums.held
        doubts.settle(ctx, out)
        results = out, ctx.ledger.closed() if written else None, ctx.checks, held
        return sharding.constrained(mesh, results)

    revealed: dict[int, int] = {}
    for (index, _), count in learnt.asked.rows.items():
        revealed[index] = revealed.get(index, 0) + count
    all_runs = _mapped(run, bank, axes)
    consuming = jax.jit(all_runs, donate_argnums=0)
    return _Plan(jax.jit(all_runs), consuming, revealed, form, bool(learnt.cancelled))


def _refuted(held: Sequence[Held]) -> list[Name]:
    """The sums that were taken to cancel and do not; none can be told while JAX is tracing."""
    if any(_jax.is_traced(one.ok) for one in held):
        return []
    found = jax.device_get([one.ok for one in held])
    return [one.name for one, ok in zip(held, found, strict=True) if not np.all(ok)]


def _verify(checks: Sequence[Check], planned: Program, program: Program, records: bool) -> None:
    """Raise (or warn of) the conditions that did not hold in a run.

    The errors are those of the program that was planned; their lines are those of the equal one
    that was run.
    """
    held = jax.device_get([check.ok for check in checks])
    failed = [check for check, ok in zip(checks, held, strict=True) if not np.all(ok)]
    if not failed:
        return
    places = dict(zip(map(id, planned.locations), program.locations, strict=True))
    for check in sorted(failed, key=lambda check: check.doubt):
        location = check.error.location
        error = check.error.at(places.get(id(location), location))
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


def _with_room(revealed: Revealed, rows: dict[int, int], calls: int) -> Revealed:
    """Stores with room for the pairs that a call may reveal; capacity doubles when full.

    The bounds in ``revealed`` are replaced by the true counts only when they exceed the capacity,
    since reading these waits for the call before.
    """
    bank = revealed.bank
    if not bank.stores:
        return revealed

    def needed(used: dict[int, int], times: int) -> int:
        return max((used.get(i, 0) + times * count for i, count in rows.items()), default=0)

    if needed(revealed.used, 1) <= bank.capacity:
        return revealed
    counts = jax.device_get([store.count for store in bank.stores])
    used = {index: int(np.max(count)) for index, count in enumerate(counts)}
    capacity = max(bank.capacity, _CAPACITY)
    while capacity < needed(used, 1):
        capacity *= 2
    if calls and bank.capacity < needed(used, calls) < capacity:
        capacity = -(-needed(used, calls) // _ROUND) * _ROUND
    return Revealed(_grown(bank, capacity), revealed.lineage, used)


def _grown(bank: Bank, capacity: int) -> Bank:
    if bank.mesh is None:
        return bank.grown(capacity)
    # Compiled with its layout: operation by operation every device would hold whole stacks.
    grow = jax.jit(lambda bank: sharding.constrained(bank.mesh, bank.grown(capacity)))
    return grow(bank)


def _fitted(value: Value, bank: Bank | None) -> Value:
    """Matrices whose parts are padded to the capacity of the stores."""
    if bank is None or not isinstance(value, Matrices):
        return value
    return value.map(
        lambda matrix: replace(
            matrix, parts=tuple(part.fitted(bank.capacity) for part in matrix.parts)
        )
    )


def _lengths(shape: Sequence[Dim], n: int) -> tuple[int, ...]:
    return tuple(dim.at(n) if isinstance(dim, Size) else dim for dim in shape)


def _origins(program: Program) -> list[Location | None]:
    made = {slot: e.location for e in program.equations for slot in e.outputs}
    return [made.get(out) if isinstance(out, Slot) else None for out in program.outputs]
