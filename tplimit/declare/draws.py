"""Random numbers that a program draws along a width.

``jax.random.bernoulli(key, p, (n,))`` is ``random_bits`` and operations entry by entry. Such a
chain is one operation, ``draw``: independent entries of a known law, as functions of their bits.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from tplimit import _jax
from tplimit._jax import Primitive, primitives as p
from tplimit.declare.bits import Chain, Number, Operation, Source
from tplimit.declare.walk import ENTRYWISE
from tplimit.program.equations import Constant, Equation, Operand, Program, Slot
from tplimit.values.exponents import EXACT_ZERO, NEVER

#: Entries of a known law along a width, from a key.
draw_p = Primitive("draw")

#: They repeat a number, and arrange no entries.
_REPEATING = ("broadcast_in_dim", "reshape", "squeeze")


class _Drawn(NamedTuple):
    """Entries as a function of the bits that some equations draw: numbers, where there are none."""

    chain: Chain
    origins: Mapping[Source, Equation] = MappingProxyType({})


def with_draws(program: Program) -> Program:
    """The same program, in which what is drawn along a width is one operation."""
    found: dict[Slot, _Drawn] = {}
    equations: list[Equation] = []
    for equation in program.equations:
        equation = replace(equation, params=jax.tree.map(_with_draws_inside, equation.params))
        drawn = _drawn(equation, found, len(equations))
        if drawn is not None:
            found[equation.outputs[0]] = drawn
            if _ends(equation, drawn):
                equation = _draw(equation, drawn)
        equations.append(equation)
    changed = replace(program, equations=tuple(equations))
    outputs = [output for output in program.outputs if isinstance(output, Slot)]
    return replace(changed, equations=tuple(changed.slice(outputs)))


def _ends(equation: Equation, drawn: _Drawn) -> bool:
    """Whether what an equation gives is a draw: bits are no value by themselves, and numbers of a
    mask are those of any mask."""
    if not drawn.origins or isinstance(drawn.chain, Source):
        return False
    return [aval.dtype.kind for aval in equation.in_avals] != ["b"]


def _with_draws_inside(parameter: Any) -> Any:
    """Programs of branches and loops have draws as well."""
    return with_draws(parameter) if isinstance(parameter, Program) else parameter


def _drawn(equation: Equation, found: dict[Slot, _Drawn], number: int) -> _Drawn | None:
    """The result of an equation as a function of random bits, if it is one."""
    name, avals = equation.primitive.name, equation.out_avals
    if equation.primitive is p.random_bits_p:
        source = Source(str(number), (), int(equation.params["bit_width"]))
        return _Drawn(source, {source: equation}) if len(avals[0].width_axes) == 1 else None
    operands = [_known(operand, found) for operand in equation.inputs]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or len(avals) != 1:
        return None
    origins = {source: one for drawn in known for source, one in drawn.origins.items()}
    if not origins and name in _REPEATING:
        return known[0]
    if name not in ENTRYWISE or any(
        one.out_avals[0].shape != avals[0].shape for one in origins.values()
    ):
        return None
    # Numbers of several draws are added as vectors are; integers are made of the bits of several.
    integers = [aval.dtype.kind in "iu" for aval in equation.in_avals]
    if len(origins) > 1 and not all(integers):
        return None
    return _Drawn(Operation.of(equation, [one.chain for one in known]), origins)


def _known(operand: Operand, found: dict[Slot, _Drawn]) -> _Drawn | None:
    if isinstance(operand, Slot):
        return found.get(operand)
    return _number(operand)


def _number(constant: Constant) -> _Drawn | None:
    """A constant as one number, if it is one and no power of the width."""
    fitted = constant.fitted
    powers = set(fitted.exponents.levels()) - {0, NEVER}
    exact = fitted.remainder == EXACT_ZERO and fitted.logs is None
    if powers or not exact or _jax.is_key(constant.aval):
        return None
    array = np.asarray(fitted.coefficient)
    same = array.size > 0 and bool(np.all(array == array.flat[0]))
    return _Drawn(Number.of(array.flat[0])) if same else None


def _draw(equation: Equation, drawn: _Drawn) -> Equation:
    """The draw that an equation ends."""
    origins = drawn.origins.values()
    return replace(
        equation, primitive=draw_p, plain=None,
        inputs=tuple(one.inputs[0] for one in origins),
        in_avals=tuple(one.in_avals[0] for one in origins),
        params={"chain": drawn.chain, "bits": [one.params for one in origins]},
    )  # fmt: skip
