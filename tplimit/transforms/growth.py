"""What becomes of the parameters of a training step, and which of them makes something grow.

The state after some steps is compared with the initial one, and with states in which all is as
after these steps but one parameter, which is as it was: what changes is what its training does.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import LimitError
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.forward import Forward, Pass
from tplimit.transforms.opaque import LimitValue, aval_of
from tplimit.values.exponents import NEVER, Exponent, Exponents
from tplimit.values.powers import Power, in_words
from tplimit.values.tensors import Tensor, exactly

__all__ = ["Fault", "Part", "Row", "Steps", "difference", "greatest", "leaves_of", "moved"]

#: Differences below this many units of round-off are none.
_ROUND_OFF = 300

#: What of a parameter is too large: its initial values, the rate of every step or of the first, or
#: the initial values that a kept initial function is made with.
Part = Literal["initial", "rate", "first", "kept"]


class Row(NamedTuple):
    """What becomes of one parameter: powers of the width at the last step that was looked at.

    Attributes:
        parameter: its name.
        initial: entries of the initial value p_0.
        change: entries of p_t - p_0.
        layer: what p_t - p_0 adds to the sum that it enters, such as (W_t - W_0) x_t.
        outputs: what it adds to the outputs through that.
        features: how far the activations of its layer have moved, x_t - x_0; None where it feeds
            the outputs.
    """

    parameter: str
    initial: Power
    change: Power
    layer: Power
    outputs: Power
    features: Power | None


class Fault(NamedTuple):
    """What grows first, and because of which parameter.

    Attributes:
        step: steps that were made before; 0 is the initial network.
        parameter: its name.
        part: what of it is too large.
        what: what grows.
        power: as which power of the width, by this parameter.
    """

    step: int
    parameter: str
    part: Part
    what: str
    power: Power

    def __str__(self) -> str:
        when = "At the start" if self.step == 0 else f"After step {self.step}"
        which, rate = {
            "initial": ("initial values", "them"),
            "kept": ("initial multiplier", "it"),
            "rate": ("update", "its learning rate"),
            "first": ("update", "its first learning rate"),
        }[self.part]
        return (
            f"{when} {self.what} grow like {self.power} by the {which} of {self.parameter}: "
            f"lower {rate} by {in_words(-self.power.exponent)}."
        )


class Steps:
    """The first steps of a training, looked at until something grows.

    Attributes:
        start, state: the first state, and the last one of which the forward pass is known.
        passes: forward passes before the first, the second, .. step.
    """

    def __init__(self, step: Callable[..., Any], state: Any, root: str) -> None:
        self.start = self.state = state
        self.passes: list[Pass] = []
        self._forward = Forward(step)
        self._root, self._batch = root, None

    @property
    def grows(self) -> bool:
        return bool(self.passes) and self.passes[-1].largest > 0

    def run(self, batches: Sequence[Any]) -> None:
        """A forward pass for each batch, and the steps between them, as long as nothing grows.

        Raises:
            LimitError: a step has no limit, although nothing in its forward pass grows.
            ValueError: there are NaN or infinite values.
        """
        for t, batch in enumerate(batches):
            self._batch = batch
            try:
                (after, _), seen = self._forward.step(self.state, batch)
            except LimitError as error:
                self.passes.append(self._growing(error))
                return
            self.passes.append(seen)
            if self.grows or t == len(batches) - 1:
                return
            self.state = after

    def _growing(self, error: LimitError) -> Pass:
        """The forward pass of a step that has no limit, if that is because something grows."""
        try:
            (seen,) = self._forward.passes([self.state], self._batch)
        except LimitError:
            raise error from None
        if seen.largest <= 0:
            raise error
        return seen

    def rows(self) -> tuple[Row, ...]:
        """What has become of each parameter that the forward pass reads.

        Raises:
            LimitError: the states with and without one parameter's training have no joint limit.
        """
        paths = self._parameters
        first, last, *others = self._seen(self.start, self.state, *map(self._without, paths))
        sizes = _sizes([(self._before[path], self._after[path]) for path in paths])
        rows = []
        for path, other, (initial, change) in zip(paths, others, sizes, strict=True):
            entered, moves = last.enters[self._number[path]]
            features = None if moves is None else difference(first.after[moves], last.after[moves])
            adds = difference(last.sums[entered].value, other.sums[entered].value)
            outputs = moved(last.outputs, other.outputs)
            rows.append(Row(self._root + path, initial, change, adds, outputs, features))
        return tuple(rows)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters, those of the rows."""
        return [self._root + path for path in self._parameters]

    def faults(self) -> tuple[Fault, ...]:
        """What makes the first of the sums grow that do; nothing where none does.

        These are updates of the parameters that enter the sum. If it does not grow by them, it is
        by updates below, by what they do to its inputs: to its initial weights times these. If it
        grows by neither, or is that of a network which was not trained, it is by the initial values
        that enter it.

        Raises:
            LimitError: as `rows`.
        """
        seen = self.passes[-1]
        growing = (i for i, one in enumerate(seen.sums) if one.value.exponents.max() > 0)
        number = next(growing, None)
        if number is None:
            return ()
        enters = {path: seen.enters[self._number[path]][0] for path in self._parameters}
        own = [path for path, sum_ in enters.items() if sum_ == number]
        below = [path for path, sum_ in enters.items() if sum_ < number]
        step, name = len(self.passes) - 1, str(seen.sums[number])

        def by_updates(base: Any, paths: Sequence[str], kept: Sequence[str]) -> list[Fault]:
            """What makes `base` grow among updates, beside those that are `kept` out of it."""
            with_all, *others = self._seen(base, *(self._without(*kept, path) for path in paths))
            values = [one.sums[number].value for one in others]
            powers = [difference(with_all.sums[number].value, value) for value in values]
            return [
                Fault(step, self._root + path, "rate", name, power)
                for path, power in zip(paths, powers, strict=True)
                if power.exponent > 0
            ]

        found: list[Fault] = []
        if step:
            found = by_updates(self.state, own, [])
            found = found or by_updates(self._without(*own), below, own)
        if not found:
            size = Power(seen.sums[number].value.exponents.max())
            found = [Fault(step, self._root + path, "initial", name, size) for path in own]
        return tuple(found)

    def _seen(self, *states: Any) -> list[Pass]:
        return self._forward.passes(states, self._batch)

    def _without(self, *paths: str) -> Any:
        """The last state without the training of some parameters."""
        leaves, tree = jax.tree.flatten(self.state)
        for path in paths:
            leaves[self._number[path]] = self._before[path]
        return jax.tree.unflatten(tree, leaves)

    @property
    def _parameters(self) -> list[str]:
        """Leaves of real numbers that the forward pass reads."""
        read = set(self.passes[-1].enters)
        return [
            path
            for path, leaf in self._after.items()
            if path in self._before
            and self._number[path] in read
            and jnp.issubdtype(aval_of(leaf).dtype, jnp.inexact)
        ]

    @functools.cached_property
    def _before(self) -> dict[str, Any]:
        return leaves_of(self.start)

    @functools.cached_property
    def _after(self) -> dict[str, Any]:
        return leaves_of(self.state)

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        """Of each leaf of the last state its place among them."""
        return {path: number for number, path in enumerate(self._after)}


def leaves_of(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def _sizes(pairs: list[tuple[Any, Any]]) -> list[tuple[Power, Power]]:
    """Powers of the entries of p_0, and of p_t - p_0: roots of means of squares."""

    def squares(pairs: list[tuple[Any, Any]]) -> Any:
        return [(jnp.mean(a**2), jnp.mean((b - a) ** 2)) for a, b in pairs]

    def root(leaf: LimitValue) -> Power:
        assert isinstance(leaf._value, Tensor)
        power = difference(leaf._value, zero)
        return power._replace(exponent=power.exponent / 2)

    zero = exactly(np.zeros((), np.float32))
    found = Evaluator(squares, jit=False)((pairs,), {})
    return [(root(a), root(b)) for a, b in found]


def moved(start: Sequence[Tensor], end: Sequence[Tensor]) -> Power:
    """The largest power of the differences of values."""
    return greatest(difference(a, b) for a, b in zip(start, end, strict=True))


def greatest(powers: Iterable[Power]) -> Power:
    """The largest; what is exact is as large as the bound of the same exponent."""
    return max(powers, key=lambda p: (p.exponent, p.known == "exact"), default=Power(NEVER))


def difference(a: Tensor, b: Tensor) -> Power:
    """The power of the largest term that differs beyond round-off; else a bound."""
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
            return Power(level)
    bound = max(unknown)
    return Power(bound, "exact" if bound == NEVER else "bound")


def _coefficient(value: Tensor, level: Exponent) -> Any:
    found = jnp.zeros(value.shape, value.dtype)
    for term in value.terms:
        here: Exponents = term.exponents
        found = found + jnp.where(here.mask(level), jnp.asarray(term.coefficient), 0)
    return found
