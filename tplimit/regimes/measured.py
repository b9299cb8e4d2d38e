"""What a training step does as the width grows, from running the interpreter on it.

`classify_step` knows no layers. It reads from the program which of its variables are
preactivations, activations and outputs of a network, runs a few steps at infinite width, and
compares the series of these variables from step to step.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit._jax import primitives as p
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.declare.parameters import Parameter
from tplimit.errors import LimitError
from tplimit.matrices.scaled_gaussian import ScaledGaussian
from tplimit.program import dependence
from tplimit.program.tracing import Aval, Equation, Program, Slot
from tplimit.regimes.regime import Regime, regime_of
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.opaque import LimitValue
from tplimit.transforms.sampling import sample
from tplimit.values.exponents import HALF, NEVER, Exponent, Exponents
from tplimit.values.tensors import Matrices, Tensor

__all__ = ["classify_step"]

#: Differences below this many units of round-off are none.
_ROUND_OFF = 300


def classify_step(
    step: Callable[[Any, Any], Any],
    theta: Any,
    batch: Any,
    *,
    key: jax.Array | None = None,
    init: Callable[[Any], Any] | None = None,
    steps: int = 3,
    samples: int = 2**10,
) -> Regime:
    """The regime of any training step, by running its first steps at infinite width.

    `step(state, batch)` returns a new state and the loss (or any values computed by the forward
    pass), as for `tplimit.train`; the same batch is used in every step. Of the operations that the
    second output needs, those that are not linear in the batch are taken for nonlinearities: what
    they act on are preactivations, what they return are activations. The finite results of sums
    over a width that no later layer uses are the outputs f.

    Unlike `classify` this knows the program with its coefficients: it sees what symmetry cancels,
    activations with any behaviour at 0, optimizers, normalisation. It sees nothing that takes more
    than `steps` steps to show. In a network without nonlinearities preactivations are products
    with their scale, so scale after the product: `(x @ W) / n**0.5`.

    Args:
        step: plain JAX, `(state, batch) -> (state, out)`; `out` must depend on the outputs.
        theta: declared parameters.
        batch: arrays of one batch.
        key: random key of the draw, by default `jax.random.key(0)`.
        init: `theta -> state`, by default the state is theta.
        steps: steps that are run.
        samples: Monte Carlo particles; coefficients only have to be told from 0.

    Returns: as `classify`. `exponents` has, of those that occur: `f_0`, `df_1` and `df` (outputs
        and their increments), `h` (largest of any preactivation or activation), `r` (minus the
        largest exponent of an increment of an activation). Where all known terms of an increment
        vanish, its exponent is the bound that its remainder gives.

    Raises:
        TypeError: an argument is of another kind, such as an integer as `key`.
        ValueError: an argument is out of range; an array of `batch` or `theta` is empty or holds
            NaN or infinity, or the forward pass of one of the steps does.
        LimitError: `out` depends on no output of a network; or what the program itself raises
            (`CancellationError` where two terms do not decide).

    >>> import jax, jax.numpy as jnp, tplimit as tp
    >>> model = tp.mlp(1, inputs=2)
    >>> batch = jnp.ones((1, 2)), jnp.ones((1,))
    >>> scaling = tp.parameterizations.mup
    >>> regime = tp.classify_step(scaling.step(model, "mse", 0.1), scaling.theta(model), batch)
    >>> regime.feature_learning, regime.name
    (True, 'mean-field')
    """
    key = jax.random.key(0) if key is None else arguments.key(key)
    arguments.function("step", step, "(state, batch) -> (state, output)")
    if init is not None:
        arguments.function("init", init, "(theta) -> state")
    theta, steps = arguments.theta(declarations(theta)), arguments.whole("steps", steps, example=3)
    arguments.arrays("batch", batch, "pass arrays and numbers")
    for name, tree in (("theta", theta), ("batch", batch)):
        _check_numbers(name, tree)
    # Tiny residuals of repeated vectors would be new directions: changes where there are none.
    state = sample(theta, key, width=inf, samples=samples, terms=2, rank_tolerance=0.0)
    if init is not None:
        state = Evaluator(init)((state,), {})
    watcher, passes = _Watcher(step), []
    for _ in range(steps + 1):
        try:
            (state, _), seen = watcher(state, batch)
        except LimitError as error:
            passes.append(_growing(step, state, batch, error))
            break
        passes.append(seen)
        if seen.largest > 0:
            break
    return _regime(passes)


def _check_numbers(name: str, tree: Any) -> None:
    """What follows from an empty batch, from NaN or infinity tells nothing of the program."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name_of_leaf = name + jax.tree_util.keystr(path)
        if isinstance(leaf, Parameter):  # its scales are finite
            continue
        if not jax.dtypes.issubdtype(jax.dtypes.result_type(leaf), np.number):
            continue
        numbers = np.asarray(leaf)
        if numbers.size == 0:
            raise ValueError(f"{name_of_leaf} is empty, its shape is {numbers.shape}")
        if np.any(lost := ~np.isfinite(numbers)):
            where = np.argwhere(lost)[0]
            at = f" at {where.tolist()}" if where.size else ""
            raise ValueError(
                f"{name_of_leaf} holds {numbers[tuple(where)]}{at}: give finite numbers"
            )


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


def _growing(step: Callable[..., Any], state: Any, batch: Any, error: LimitError) -> "_Pass":
    """The forward pass of a step that has no limit, if that is because something grows."""
    try:
        _, seen = _Watcher(step, forward=True)(state, batch)
    except LimitError:
        raise error from None
    if seen.largest <= 0:
        raise error
    return seen


@dataclass(frozen=True, eq=False)
class _Watched:
    """Variables of the forward pass.

    Attributes:
        before, after: arguments and results of nonlinearities, vectors along a width.
        outputs: finite values.
        products: matrices of the program, the vectors that they are multiplied with, the results,
            and these after all factors.
    """

    before: list[Slot]
    after: list[Slot]
    outputs: list[Slot]
    products: list[tuple[Slot, Slot, Slot, Slot]]

    @property
    def slots(self) -> list[Slot]:
        others = [slot for product in self.products for slot in product]
        return [*self.before, *self.after, *self.outputs, *others]


@dataclass(frozen=True)
class _Pass:
    """Values of the watched variables in one forward pass."""

    before: list[Tensor]
    after: list[Tensor]
    outputs: list[Tensor]
    products: list[tuple[Matrices, Tensor, Tensor, Tensor]]

    @property
    def hidden(self) -> Exponent:
        """Largest exponent of a preactivation or activation."""
        return _largest([*self.before, *self.after])

    @property
    def largest(self) -> Exponent:
        return max(self.hidden, _largest(self.outputs))

    @property
    def random_weights(self) -> list[Exponent]:
        """Exponents of what the initial hidden matrices contribute to preactivations."""
        return [
            part.scale.exponents.max()
            + HALF
            + x.exponents.max()
            # Factors after the product, such as n^(-1/2).
            + (end.exponents.max() - out.exponents.max())
            for matrices, x, out, end in self.products
            for matrix in matrices.items.flat
            for part in matrix.parts
            if isinstance(part, ScaledGaussian) and out.exponents.max() != NEVER
        ]


def _largest(values: Iterable[Tensor]) -> Exponent:
    return max((value.exponents.max() for value in values), default=NEVER)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Found:
    """Values of watched variables, as outputs of a program."""

    values: list[Any]
    watched: _Watched = field(metadata={"static": True})


class _Watcher:
    """A step that also returns the watched variables.

    ``forward``: or nothing but these, of the forward pass alone.
    """

    def __init__(self, step: Callable[..., Any], forward: bool = False) -> None:
        self.forward = forward
        self.evaluator = Evaluator(step, change=self._extended, jit=False)

    def __call__(self, state: Any, batch: Any) -> Any:
        out, found = self.evaluator((state, batch), {})
        _check_values([*found.values, *jax.tree.leaves(None if self.forward else out[1])])
        watched = found.watched
        values = {slot: leaf._value for slot, leaf in zip(watched.slots, found.values, strict=True)}
        products = [tuple(values[slot] for slot in one) for one in watched.products]
        before, after, outputs = (
            [values[slot] for slot in slots]
            for slots in (watched.before, watched.after, watched.outputs)
        )
        return out, _Pass(before, after, outputs, products)

    def _extended(
        self, program: Program, tree: Any, out_tree: Any, leaves: list[Any]
    ) -> tuple[Program, Any]:
        """The program with the watched variables as outputs besides, or with nothing else."""
        watched = _watched(program, tree, out_tree, leaves)
        slots, by_slot = watched.slots, dict[Slot, Aval]()
        for equation in program.equations:
            by_slot |= dependence.avals(equation)
        outputs = (*program.outputs, *slots)
        avals = (*program.out_avals, *(by_slot[slot] for slot in slots))
        first, equations = 0, program.equations
        if self.forward:
            first, equations = len(program.outputs), tuple(program.slice(slots))
            out_tree = jax.tree.structure(None)
        more = replace(
            program, outputs=outputs[first:], out_avals=avals[first:], equations=equations
        )
        found = jax.tree.structure(_Found([0] * len(slots), watched))
        return more, jax.tree_util.treedef_tuple((out_tree, found))


# --- which variables are watched


def _watched(program: Program, tree: Any, out_tree: Any, leaves: Sequence[Any]) -> _Watched:
    args, _ = jax.tree.unflatten(tree, list(program.inputs))
    outs = jax.tree.unflatten(out_tree, list(program.outputs))
    if not isinstance(outs, (tuple, list)) or len(outs) != 2:
        raise LimitError(
            "The step does not return a pair.", advice="Return (state, loss), as for tp.train."
        )
    targets = [slot for slot in jax.tree.leaves(outs[1]) if isinstance(slot, Slot)]
    forward = program.slice(targets)
    data = _data(forward, jax.tree.leaves(args[1]))
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
    return _Watched(_unique(before), _unique(after), outputs, products)


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


# --- what became of them


def _regime(passes: list[_Pass]) -> Regime:
    start, later = passes[0], passes[1:]
    stable = all(one.largest <= 0 for one in passes)
    moved = [_moved(start.after, one.after) for one in later]
    change = [_moved(start.outputs, one.outputs) for one in later]
    exponents: dict[str, Exponent] = {
        "f_0": _largest(start.outputs),
        "h": max(one.hidden for one in passes),
    }
    if later:
        exponents |= {"df_1": change[0], "df": max(change), "r": -max(moved)}
    regime = regime_of(stable, exponents)
    return replace(regime, name=regime.name or _name(passes))


def _name(passes: list[_Pass]) -> str:
    start, last = passes[0], passes[-1]
    all_move = all(_moved([a], [b]) == 0 for a, b in zip(start.after, last.after, strict=True))
    random = last.random_weights
    if all_move and all(e < 0 for e in random):
        return "mean-field"
    return "muP-like" if all_move and all(e == 0 for e in random) else "feature learning"


def _moved(start: Sequence[Tensor], end: Sequence[Tensor]) -> Exponent:
    """Largest exponent of the differences of values."""
    return max((_difference(a, b) for a, b in zip(start, end, strict=True)), default=NEVER)


def _difference(a: Tensor, b: Tensor) -> Exponent:
    """Exponent of the largest term that differs beyond round-off."""
    unknown = [value.remainder.max() for value in (a, b)]
    unknown += [patch.average for value in (a, b) for patch in value.patches]
    levels = {level for v in (a, b) for term in v.terms for level in term.exponents.levels()}
    eps = float(jnp.finfo(jnp.result_type(a.dtype, float)).eps)
    for level in sorted(levels - {NEVER}, reverse=True):
        if level <= max(unknown):
            break
        x, y = (np.asarray(_coefficient(value, level), np.float64) for value in (a, b))
        size = np.sqrt(np.mean(x**2)) + np.sqrt(np.mean(y**2))
        if np.sqrt(np.mean((x - y) ** 2)) > _ROUND_OFF * eps * size:
            return level
    return max(unknown)


def _coefficient(value: Tensor, level: Exponent) -> Any:
    found = jnp.zeros(value.shape, value.dtype)
    for term in value.terms:
        here: Exponents = term.exponents
        found = found + jnp.where(here.mask(level), jnp.asarray(term.coefficient), 0)
    return found
