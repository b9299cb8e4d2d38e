"""A program as it is read at all widths at once: equations between variables and constants."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tplimit import _jax
from tplimit.errors import Location
from tplimit.program.powers import Fitted
from tplimit.values.exponents import NEVER, Dim, Size


@dataclass(frozen=True)
class Aval:
    """Shape (width axes as ``Size``) and dtype of a variable."""

    shape: tuple[Dim, ...]
    dtype: Any

    @property
    def width_axes(self) -> tuple[int, ...]:
        return tuple(i for i, dim in enumerate(self.shape) if isinstance(dim, Size))

    def __str__(self) -> str:
        name = "key" if _jax.is_key(self) else np.dtype(self.dtype).name
        return f"{name}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Slot:
    """A variable of a program, by number."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A number or array of the program, fitted over the widths."""

    fitted: Fitted
    aval: Aval


Operand = Slot | Constant


@dataclass(frozen=True)
class Equation:
    """One operation. In ``params`` lengths that grow are ``Size`` and jaxprs are ``Program``;
    ``plain`` are the parameters as JAX has them, where they do not depend on the width."""

    primitive: Any
    inputs: tuple[Operand, ...]
    outputs: tuple[Slot, ...]
    params: dict[str, Any]
    plain: dict[str, Any] | None
    in_avals: tuple[Aval, ...]
    out_avals: tuple[Aval, ...]
    location: Location | None = field(compare=False)

    def __str__(self) -> str:
        operands = ", ".join(map(str, self.in_avals))
        return f"{self.primitive.name}({operands})"


@dataclass(frozen=True)
class Program:
    """A user's function, read at all widths at once."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Operand, ...]
    equations: tuple[Equation, ...]
    in_avals: tuple[Aval, ...]
    out_avals: tuple[Aval, ...]

    def slice(self, targets: Sequence[Slot]) -> list[Equation]:
        """The equations needed for ``targets``, in order."""
        needed = set(targets)
        kept: list[Equation] = []
        for equation in reversed(self.equations):
            if needed.intersection(equation.outputs):
                kept.append(equation)
                needed.update(slot for slot in equation.inputs if isinstance(slot, Slot))
        return kept[::-1]

    @property
    def sizes(self) -> set[Size]:
        """The widths that its arrays have, those of inner programs among them."""
        found = {
            size
            for equation in self.equations
            for aval in (*equation.in_avals, *equation.out_avals)
            for size in aval.shape
            if isinstance(size, Size)
        }
        for equation in self.equations:
            for inner in jax.tree.leaves(list(equation.params.values())):
                found |= inner.sizes if isinstance(inner, Program) else set()
        return found | {d for a in self.in_avals for d in a.shape if isinstance(d, Size)}

    @property
    def locations(self) -> list[Location | None]:
        """The place of every equation, those of inner programs among them."""
        places = []
        for equation in self.equations:
            places.append(equation.location)
            for inner in jax.tree.leaves(list(equation.params.values())):
                places += inner.locations if isinstance(inner, Program) else []
        return places


def grows(value: Any) -> bool:
    """Whether a length or a number somewhere in parameters depends on the width."""
    if isinstance(value, Size):
        return True
    if isinstance(value, dict):
        return any(grows(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return any(grows(part) for part in value)
    if not isinstance(value, Program):
        return False
    operands = [operand for e in value.equations for operand in e.inputs] + [*value.outputs]
    constants = [operand for operand in operands if isinstance(operand, Constant)]
    powers = any(
        set(c.fitted.exponents.levels()) - {0, NEVER} or c.fitted.logs is not None
        for c in constants
    )
    avals = [aval for e in value.equations for aval in (*e.in_avals, *e.out_avals)]
    widths = any(aval.width_axes for aval in avals)
    return powers or widths or any(e.plain is None for e in value.equations)
