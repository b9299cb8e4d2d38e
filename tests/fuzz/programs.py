"""Random programs as straight lines of steps, and how a program that fails is made small."""

import itertools
import linecache
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Step:
    """A line `name = template`, the operands standing for `{0}`, `{1}`."""

    name: str
    template: str
    operands: tuple[str, ...] = ()

    @property
    def expression(self) -> str:
        return self.template.format(*self.operands)

    def renamed(self, old: str, new: str) -> "Step":
        return replace(self, operands=tuple(new if o == old else o for o in self.operands))


@dataclass(frozen=True)
class Program:
    """A function of the arguments in `head`; the last step is what it returns."""

    head: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def source(self) -> str:
        *steps, result = self.steps
        lines = [f"{step.name} = {step.expression}" for step in steps]
        body = [*self.head[1:], *lines, f"return {result.expression}"]
        return "\n    ".join([self.head[0], *body]) + "\n"

    @property
    def largest(self) -> "Program":
        """The largest number among what the steps give."""
        names = tuple(step.name for step in self.steps[:-1]) or ("x",)
        every = ", ".join(f"{{{place}}}" for place in range(len(names)))
        last = Step("", f"jnp.max(jnp.abs(jnp.stack([{every}])))", names)
        return Program(self.head, (*self.steps[:-1], last))

    @property
    def function(self) -> Callable[..., Any]:
        """The program, compiled so that errors name its lines."""
        file = f"<program {next(_NUMBERS)}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        scope: dict[str, Any] = {"jax": jax, "jnp": jnp}
        exec(compile(self.source, file, "exec"), scope)
        found: Callable[..., Any] = scope["f"]
        return found


def seed_of(kind: str, number: int) -> str:
    """What the program of a kind with this number is drawn from."""
    return f"{kind} {number}"


#: Templates, and how often each is taken.
Choices = Sequence[str]


def choose(draw: random.Random, names: Sequence[str], one: Choices, two: Choices) -> Step:
    """A step that acts on what was made last, and often on something before it."""
    recent = names[-3:]
    if draw.random() < 0.6:
        return Step(f"t{len(names)}", draw.choice(one), (draw.choice(recent),))
    return Step(f"t{len(names)}", draw.choice(two), (draw.choice(recent), draw.choice(names)))


def smaller(program: Program) -> Iterator[Program]:
    """Programs with one step less, or with a simpler one."""
    *steps, result = program.steps
    if result.template != "{0}":
        for operand in result.operands:
            yield replace(
                program, steps=(*steps, replace(result, template="{0}", operands=(operand,)))
            )
    for place in reversed(range(len(steps))):
        step = steps[place]
        others = [*steps[:place], *steps[place + 1 :], result]
        used = any(step.name in s.operands for s in others)
        for new in step.operands if used else ("",):
            yield replace(program, steps=tuple(s.renamed(step.name, new) for s in others))
        for simple in ("{0}", "{0} * 1.0"):
            if step.operands and step.template != simple:
                changed = replace(step, template=simple, operands=step.operands[:1])
                yield replace(program, steps=(*steps[:place], changed, *steps[place + 1 :], result))


def smallest(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A program that still fails, of which no smaller one does."""
    while True:
        found = next((p for p in smaller(program) if _holds(fails, p)), None)
        if found is None:
            return program
        program = found


def _holds(fails: Callable[[Program], bool], program: Program) -> bool:
    try:
        return fails(program)
    except Exception:  # a step less may leave nothing that runs
        return False
