"""Plans: ways to run a program on values of one form, rehearsed once and then compiled."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.caching.store import Store
from tplimit.gaussian import noise
from tplimit.gaussian.bank import Bank
from tplimit.interpreter import doubts
from tplimit.interpreter.cancellation import Held, Name, Sums
from tplimit.interpreter.context import SEVERAL, Check, Context
from tplimit.program.equations import Program, Slot
from tplimit.transforms import sharding
from tplimit.transforms.decisions import Decisions
from tplimit.transforms.effort import ENTRIES, compiled, pays
from tplimit.transforms.opaque import Revealed
from tplimit.transforms.rehearsal import interpreted, rehearsed
from tplimit.values.exponents import Size
from tplimit.values.fields import COMMON, map_arrays
from tplimit.values.tensors import Value


@dataclass
class Plan:
    """A way to run a program on inputs of one form.

    Attributes:
        function: what is compiled, of stores, the rest of the bank, and values.
        revealed: rows asked of each matrix.
        form: that of the inputs.
        cancelled: whether some of its sums are taken to cancel.
        work: that of a query in one call (see ``effort.py``).
        divided: whether its arrays are divided among devices.
        sources: what the terms of its outputs depend on (see ``rehearsal.Learnt``).
        calls: how often it was called with no word on how many calls there will be.
        programs: those compiled, by whether they may reuse the memory of the stores, and are
            optimised.
        compiled: for which (reuse, optimised, capacity) there has been a call.
    """

    function: Callable[..., Any]
    revealed: dict[int, int]
    form: Any
    cancelled: bool
    work: float
    divided: bool
    sources: tuple[tuple[int, ...], ...]
    calls: int = 0
    programs: dict[tuple[bool, bool], Callable[..., Any]] = field(default_factory=dict)
    compiled: set[tuple[bool, bool, int]] = field(default_factory=set)

    def program(self, consume: bool, work: float) -> Callable[..., Any]:
        """The compiled function, which if it is to ``consume`` may reuse the memory of the
        stores, for so much work."""
        key = (consume, pays(work))
        if key not in self.programs:
            self.programs[key] = compiled(self.function, work, donated=consume, whole=self.divided)
        return self.programs[key]


#: Compiled plans kept of one program: for other forms of the values, and other decisions.
_MOST = 16


@dataclass
class Planning:
    """A program with its plans, for all evaluators that traced an equal one.

    ``deciding`` are the finite variables whose values have to be known before a run; ``refuted``
    are sums that a rehearsal took to cancel and a run did not, by the form of the values.
    """

    program: Program
    deciding: list[Slot] = field(default_factory=list)
    refuted: dict[Any, set[Name]] = field(default_factory=dict)
    plans: Store[Plan] = field(default_factory=lambda: Store(_MOST))


def plan_for(
    planning: Planning,
    values: list[Value],
    revealed: Revealed | None,
    axes: tuple[int | None, ...] | None,
) -> Plan:
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
) -> Plan:
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
        spaces = learnt.spaces.copied()
        offset = None if sums is None else np.zeros(SEVERAL)
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
    work = 0 if bank is None else bank.n * _rows(program) * _replicates(values, axes)
    if bank is not None and learnt.asked.pairs:
        entries = bank.n * (bank.pair_samples or bank.n) * learnt.asked.pairs
        work += entries // ENTRIES * _replicates(values, axes)
    divided = bank is not None and bank.mesh is not None
    cancelled = bool(learnt.cancelled)
    function = _mapped(run, bank, axes)
    return Plan(function, revealed, form, cancelled, work, divided, learnt.sources)


def _rows(program: Program) -> int:
    """The most vectors that stand in one array."""
    arrays = (a for e in program.equations for a in (*e.in_avals, *e.out_avals) if a.width_axes)
    return max(
        (math.prod(d for d in a.shape if not isinstance(d, Size)) for a in arrays), default=1
    )


def _replicates(values: list[Value], axes: tuple[int | None, ...] | None) -> int:
    if axes is None:
        return 1
    arrays = (jax.tree.leaves(v) for v, axis in zip(values, axes, strict=True) if axis == 0)
    return next((len(leaves[0]) for leaves in arrays if leaves), 1)


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
