"""What has to be decided before a run: finite variables that are computed from finite inputs.

A power of the width may hang on a predicate, ``jnp.where(step == 0, n**0.5, 1.0)``. The part of the
program that computes it is evaluated first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import LimitError
from tplimit.gaussian.bank import Bank
from tplimit.interpreter.context import Context
from tplimit.interpreter.loop import evaluate
from tplimit.interpreter.width_free import is_plain
from tplimit.program.equations import Program, Slot
from tplimit.values.tensors import Tensor, Value

#: Terms of the expansion in the width: more where fewer do not decide.
_TERMS = (1, 2, 4)


class ReplicatesDiffer(Exception):
    """Replicates decide differently what has to be known before a run."""


class Decisions:
    """Finite variables computed from the finite inputs before a run.

    Attributes:
        made: what was asked for so far; None for what cannot be known.
    """

    def __init__(
        self, program: Program, values: list[Value], axes: tuple[int | None, ...] | None
    ) -> None:
        self.program = program
        self.values = dict(zip(program.inputs, values, strict=True))
        self.axes = axes
        self.made: dict[Slot, np.ndarray | None] = {}

    @property
    def key(self) -> tuple[Any, ...]:
        """What compilation depends on."""
        return tuple(
            (slot, None if made is None else (made.shape, made.tobytes()))
            for slot, made in self.made.items()
        )

    def __call__(self, slot: Slot) -> np.ndarray | None:
        """The value of a finite variable, or None.

        Raises:
            ReplicatesDiffer: it has not the same value in all replicates.
        """
        if slot not in self.made:
            self.made[slot] = self._computed(slot)
        return self.made[slot]

    def _computed(self, slot: Slot) -> np.ndarray | None:
        equations = self.program.slice([slot])
        inputs = {s for e in equations for s in e.inputs if isinstance(s, Slot)} | {slot}
        inputs &= set(self.program.inputs)
        if not all(is_plain(self.values[used]) for used in inputs):
            return None
        if any(aval.width_axes for e in equations for aval in (*e.in_avals, *e.out_avals)):
            return None
        ordered = tuple(sorted(inputs, key=lambda s: s.index))
        part = Program(ordered, (slot,), tuple(equations), (), ())
        with jax.ensure_compile_time_eval():  # a plan may be in the making
            arguments = [self._argument(s) for s in ordered]
            for terms in _TERMS:
                context = Context(Bank(terms=terms), decide=self)
                try:
                    (out,) = evaluate(context, part, arguments)
                except LimitError:
                    continue
                wrong = [check for check in context.checks if not np.all(check.ok)]
                if not any(isinstance(check.error, LimitError) for check in wrong):
                    assert isinstance(out, Tensor)
                    return np.asarray(out.coefficient)
        return None

    def _argument(self, slot: Slot) -> Value:
        value = self.values[slot]
        if self.axes is None:
            return value
        place = dict(zip(self.program.inputs, self.axes, strict=True))
        return value if place[slot] is None else _common(value)


def _common(value: Value) -> Value:
    """A plain value without its axis of replicates, along which it must be constant."""

    def first(array: Any) -> Any:
        array = np.asarray(array)
        if np.any(array != array[:1]):
            raise ReplicatesDiffer
        return jnp.asarray(array[0])

    return jax.tree.map(first, value)
