"""The forward pass of a training step: which variables it has, and their values in the limit.

What the second output of a step is computed by is its forward pass. Of its operations those that
are not linear in the batch are taken for nonlinearities: what they act on are preactivations, what
they return are activations. Finite sums over a width that feed no later layer are the outputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from tplimit._jax import primitives as p
from tplimit.errors import LimitError, Location
from tplimit.program import dependence
from tplimit.program.equations import Aval, Equation, Program, Slot
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.opaque import LimitValue
from tplimit.values.exponents import HALF, NEVER, Exponent
from tplimit.values.tensors import Matrices, Tensor

__all__ = ["Forward", "Pass", "Sum", "largest"]


@dataclass(frozen=True, eq=False)
class _Watched:
    """Variables of a forward pass.

    Attributes:
        before, after: arguments and results of nonlinearities, vectors along a width.
        outputs: finite values.
        products: matrices of the program, the vectors that they are multiplied with, the results,
            and these after all factors.
        order: of ``before`` and ``outputs`` together, the sums of the layers, in the program.
        enters: for each leaf of the state that is read, by its number, where in that order it
            first has an effect, and the first of ``after`` on which it has one, or None.
    """

    before: list[Slot]
    after: list[Slot]
    outputs: list[Slot]
    products: list[tuple[Slot, Slot, Slot, Slot]]
    order: list[int]
    enters: dict[int, tuple[int, int | None]]

    @property
    def slots(self) -> list[Slot]:
        others = [slot for product in self.products for slot in product]
        return [*self.before, *self.after, *self.outputs, *others]


class Sum(NamedTuple):
    """A preactivation, or an output, and where it is computed."""

    value: Tensor
    place: Location | None

    def __str__(self) -> str:
        name = "the outputs" if self.value.finite else "the preactivations"
        return name if self.place is None else f"{name} at {self.place.file}:{self.place.line}"


@dataclass(frozen=True)
class Pass:
    """Values of a forward pass, in the order of the program.

    Attributes:
        before, after: what nonlinearities act on and return, vectors along a width.
        outputs: finite values.
        products: matrices of the program, the vectors that they are multiplied with, the results,
            and these after all factors.
        sums: ``before`` and ``outputs``.
        enters: for leaves of the state, by number, the first sum and the first of ``after`` that
            depend on them.
    """

    before: list[Tensor]
    after: list[Tensor]
    outputs: list[Tensor]
    products: list[tuple[Matrices, Tensor, Tensor, Tensor]]
    sums: list[Sum]
    enters: dict[int, tuple[int, int | None]]

    @property
    def hidden(self) -> Exponent:
        """Largest exponent of a preactivation or activation."""
        return largest([*self.before, *self.after])

    @property
    def largest(self) -> Exponent:
        return max(self.hidden, largest(self.outputs))

    @property
    def random_weights(self) -> list[Exponent]:
        """Exponents of what the initial hidden matrices contribute to preactivations."""
        return [
            part.random.exponents.max()
            + HALF
            + x.exponents.max()
            # Factors after the product, such as n^(-1/2).
            + (end.exponents.max() - out.exponents.max())
            for matrices, x, out, end in self.products
            for matrix in matrices.items.flat
            for part in matrix.parts
            if part.random is not None and out.exponents.max() != NEVER
        ]


def largest(values: Iterable[Tensor]) -> Exponent:
    return max((value.exponents.max() for value in values), default=NEVER)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Found:
    """Values of watched variables, as outputs of a program."""

    values: list[Any]
    watched: _Watched = field(metadata={"static": True})

    def seen(self) -> Pass:
        watched = self.watched
        leaves = dict(zip(watched.slots, self.values, strict=True))
        products = [tuple(leaves[slot]._value for slot in one) for one in watched.products]
        before, after, outputs = (
            [leaves[slot]._value for slot in slots]
            for slots in (watched.before, watched.after, watched.outputs)
        )
        both = [Sum(leaves[slot]._value, leaves[slot]._origin) for slot in _sums(watched)]
        return Pass(before, after, outputs, products, both, watched.enters)


def _sums(watched: _Watched) -> list[Slot]:
    both = [*watched.before, *watched.outputs]
    return [both[i] for i in watched.order]


class Forward:
    """The forward pass of a step, looked at; nothing is compiled.

    Args:
        step: plain JAX, `(state, batch) -> (state, out)`.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        def outs(states: list[Any], batch: Any) -> list[Any]:
            return [_pair(step(state, batch))[1] for state in states]

        self._step = Evaluator(step, change=_beside, jit=False)
        self._alone = Evaluator(outs, change=_instead, jit=False)

    def step(self, state: Any, batch: Any) -> tuple[Any, Pass]:
        """What the step returns, and its forward pass.

        Raises:
            LimitError: the step has no limit, or no network is found in it.
            ValueError: there are NaN or infinite values.
        """
        out, found = self._step((state, batch), {})
        _check_values([*found.values, *jax.tree.leaves(out[1])])
        return out, found.seen()

    def passes(self, states: Sequence[Any], batch: Any) -> list[Pass]:
        """The forward passes of several states, jointly, and no step."""
        found = self._alone((list(states), batch), {})
        _check_values([value for one in found for value in one.values])
        return [one.seen() for one in found]


def _check_values(leaves: Sequence[LimitValue]) -> None:
    """NaN has no exponent. Vectors may hold infinities, where a mask takes entries out."""
    for leaf in leaves:
        value = leaf._value
        if not isinstance(value, Tensor):
            continue
        numbers = [np.asarray(term.coefficient) for term in value.terms]
        if any(np.any(np.isnan(x)) or (value.finite and np.any(np.isinf(x))) for x in numbers):
            raise ValueError(
                "the forward pass has NaN or infinite values at infinite width.\n"
                f"at: {leaf._origin}\n"
                "Is there a 0/0, a root or a logarithm without value, or is the learning rate so "
                "large that training diverges within the steps that are run?"
            )


def _pair(result: Any) -> Any:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise LimitError(
            "The step does not return a pair.", advice="Return (state, loss), as for tp.train."
        )
    return result


def _beside(program: Program, tree: Any, out_tree: Any, leaves: Any) -> tuple[Program, Any]:
    """The program of a step with the watched variables as outputs besides."""
    (state, batch), _ = jax.tree.unflatten(tree, list(program.inputs))
    _, out = _pair(jax.tree.unflatten(out_tree, list(program.outputs)))
    watched = _watched(program, state, batch, out)
    outputs = (*program.outputs, *watched.slots)
    more = replace(program, outputs=outputs, out_avals=_avals(program, outputs))
    return more, jax.tree_util.treedef_tuple((out_tree, _tree(watched)))


def _instead(program: Program, tree: Any, out_tree: Any, leaves: Any) -> tuple[Program, Any]:
    """The program of the outputs of several states, with their watched variables instead."""
    (states, batch), _ = jax.tree.unflatten(tree, list(program.inputs))
    outs = jax.tree.unflatten(out_tree, list(program.outputs))
    found = [_watched(program, state, batch, out) for state, out in zip(states, outs, strict=True)]
    slots = tuple(slot for watched in found for slot in watched.slots)
    fewer = replace(
        program,
        outputs=slots,
        out_avals=_avals(program, slots),
        equations=tuple(program.slice(slots)),
    )
    return fewer, jax.tree.structure([_found(watched) for watched in found])


def _found(watched: _Watched) -> _Found:
    return _Found([0] * len(watched.slots), watched)


def _tree(watched: _Watched) -> Any:
    return jax.tree.structure(_found(watched))


def _avals(program: Program, slots: Sequence[Any]) -> tuple[Aval, ...]:
    known: dict[Any, Aval] = dict(zip(program.outputs, program.out_avals, strict=True))
    for equation in program.equations:
        known |= dependence.avals(equation)
    return tuple(known[slot] for slot in slots)


def _watched(program: Program, state: Any, batch: Any, out: Any) -> _Watched:
    """The variables of the forward pass from a state and a batch to an output."""
    targets = [slot for slot in jax.tree.leaves(out) if isinstance(slot, Slot)]
    forward = program.slice(targets)
    data = _data(forward, jax.tree.leaves(batch))
    before, after, chains, products = [], [], [], []
    for e in forward:
        ours = [s for s in dependence.slots(e) if s in data]
        if not ours:
            continue
        if dependence.is_linear(e, data):
            chains += [s for s in e.outputs if _is_contraction(e)]
            products += _products(forward, e, data)
            continue
        before += [s for s in ours if len(dependence.avals(e)[s].width_axes) == 1]
        after += [s for s in e.outputs if len(dependence.avals(e)[s].width_axes) == 1]
    # Parts of an activation, such as the mask of a choice, need not move where it does.
    summed = _summed(forward, data)
    after = [s for s in after if s in summed] or after
    ends = _unique(_end(forward, data, slot) for slot in chains)
    vectors = _vectors(forward)
    if not after:
        before = after = [slot for slot in ends if slot in vectors]
    feeding = _feeding(forward, data, vectors)
    outputs = [slot for slot in ends if slot not in vectors and slot not in feeding]
    if not outputs:
        raise LimitError(
            "No output of a network was found: what the step returns besides the state does not "
            "depend on a sum over a width.",
            advice="Return the loss, or the outputs, as the second value: (state, loss).",
        )
    before, after = _unique(before), _unique(after)
    order = _in_order(forward, [*before, *outputs])
    leaves = jax.tree.leaves(state)
    enters = _enters(forward, leaves, [[*before, *outputs][i] for i in order], after)
    return _Watched(before, after, outputs, products, order, enters)


def _in_order(forward: Sequence[Equation], slots: Sequence[Slot]) -> list[int]:
    """Numbers of variables in the order in which they are computed."""
    made = {slot: i for i, e in enumerate(forward) for slot in e.outputs}
    return sorted(range(len(slots)), key=lambda i: made.get(slots[i], -1))


def _enters(
    forward: Sequence[Equation], leaves: Sequence[Any], sums: Sequence[Slot], after: Sequence[Slot]
) -> dict[int, tuple[int, int | None]]:
    """Where leaves of a state first have an effect."""
    found = {}
    for number, leaf in enumerate(leaves):
        reached = {leaf} if isinstance(leaf, Slot) else set()
        for e in forward:
            if reached.intersection(dependence.slots(e)):
                reached.update(e.outputs)
        first = [i for i, slot in enumerate(sums) if slot in reached]
        moved = [i for i, slot in enumerate(after) if slot in reached]
        if first:
            found[number] = first[0], moved[0] if moved else None
    return found


def _unique(slots: Iterable[Slot]) -> list[Slot]:
    return list(dict.fromkeys(slots))


def _data(forward: Sequence[Equation], inputs: Sequence[Any]) -> set[Any]:
    """Variables that depend on the batch; all of them where the batch is none."""
    found = {slot for slot in inputs if isinstance(slot, Slot)}
    if not found:
        return {slot for e in forward for slot in e.outputs}
    for e in forward:
        if found.intersection(dependence.slots(e)):
            found.update(e.outputs)
    return found


def _is_contraction(e: Equation) -> bool:
    """Whether an equation sums over an axis, of a width or of the inputs."""
    return e.primitive in (p.dot_general_p, p.reduce_sum_p) and any(
        aval.width_axes for aval in e.in_avals
    )


def _summed(forward: Sequence[Equation], data: set[Any]) -> set[Slot]:
    """Variables that are summed, perhaps after shifts and factors: what layers see."""
    found: set[Slot] = set()
    for e in reversed(forward):
        if _is_contraction(e) or (dependence.is_linear(e, data) and found.intersection(e.outputs)):
            found.update(dependence.slots(e))
    return found


def _products(
    forward: Sequence[Equation], e: Equation, data: set[Any]
) -> list[tuple[Slot, Slot, Slot, Slot]]:
    if e.primitive is not p.dot_general_p:
        return []
    read, shapes, (out,) = dependence.slots(e), dependence.avals(e), e.outputs
    matrices = [slot for slot in read if len(shapes[slot].width_axes) == 2]
    end = _end(forward, data, out)
    return [(matrix, x, out, end) for matrix in matrices[:1] for x in read if x in data]


def _end(forward: Sequence[Equation], data: set[Any], slot: Slot) -> Slot:
    """The variable after shifts and factors that do not depend on the batch."""
    users = [e for e in forward if slot in dependence.slots(e)]
    if len(users) != 1 or len(users[0].outputs) != 1:
        return slot
    (user,) = users
    alone = [s for s in dependence.slots(user) if s in data] == [slot]
    moving = user.primitive not in (p.dot_general_p, p.reduce_sum_p)
    if not alone or not moving or not dependence.is_linear(user, data):
        return slot
    return _end(forward, data, user.outputs[0])


def _vectors(forward: Sequence[Equation]) -> set[Slot]:
    return {slot for e in forward for slot in e.outputs if dependence.avals(e)[slot].width_axes}


def _feeding(forward: Sequence[Equation], data: set[Any], vectors: set[Slot]) -> set[Any]:
    """Variables from which vectors are computed."""
    found: set[Any] = set(data & vectors)
    for e in reversed(forward):
        if found.intersection(e.outputs):
            found.update(dependence.slots(e))
    return found
