"""How the variables of a program depend on each other: linearly, or as a maximum."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import is_key, primitives as p
from tplimit.program.equations import Aval, Constant, Equation, Operand, Program, Slot
from tplimit.program.traits import Identity, Linear, Product, kind_of, linear_places


def slots(equation: Equation) -> list[Slot]:
    """The variables that an equation reads."""
    return [operand for operand in equation.inputs if isinstance(operand, Slot)]


def avals(equation: Equation) -> dict[Slot, Aval]:
    """Shapes and dtypes of the variables of an equation."""
    operands = (*equation.inputs, *equation.outputs)
    pairs = zip(operands, (*equation.in_avals, *equation.out_avals), strict=True)
    return {slot: aval for slot, aval in pairs if isinstance(slot, Slot)}


def is_linear(equation: Equation, variables: Container[Slot]) -> bool:
    """Whether what an equation gives is linear, or affine, in the variables it reads."""
    degrees = [
        "linear" if isinstance(operand, Slot) and operand in variables else "free"
        for operand in equation.inputs
    ]
    return _combined(equation, degrees) != "other"


def degree(program: Program, variables: Iterable[Slot]) -> str:
    """How the outputs depend on variables: "zero", "free", "linear", "affine" or "other"."""
    known: dict[Operand, str] = dict.fromkeys(variables, "linear")

    def of(operand: Operand) -> str:
        if isinstance(operand, Constant):
            number = is_key(operand.aval) or np.any(operand.fitted.coefficient)
            return "free" if number else "zero"
        return known.get(operand, "free")

    for equation in program.equations:
        found = _combined(equation, [of(operand) for operand in equation.inputs])
        if found != "free":
            known.update(dict.fromkeys(equation.outputs, found))
    outputs = {of(output) for output in program.outputs} - {"zero"}
    return outputs.pop() if len(outputs) == 1 else "other" if outputs else "zero"


def _combined(equation: Equation, degrees: list[str]) -> str:
    """The degree of a result from those of the operands."""
    own = [degree for degree in degrees if degree not in ("free", "zero")]
    if isinstance(kind_of(equation.primitive), Product):
        if "zero" in degrees:
            return "zero"
        return "free" if not own else own[0] if len(own) == 1 else "other"
    together = [degrees[place] for place in linear_places(equation)]
    if not own:
        # Of any type: a conversion of 0 is 0.
        places = kind_of(equation.primitive).linear
        moved = degrees if places is None else [degrees[place] for place in places]
        return "zero" if moved and set(moved) == {"zero"} else "free"
    if "other" in own or len([degree for degree in together if degree in own]) < len(own):
        return "other"
    return "linear" if set(together) - {"zero"} == {"linear"} else "affine"


def less_its_maximum(program: Program, slot: Operand) -> int | None:
    """The axis if a variable is ``x - max(x)`` along one, as softmax and log-sum-exp have it."""
    made = {out: equation for equation in program.equations for out in equation.outputs}
    if not isinstance(slot, Slot) or slot not in made or made[slot].primitive is not p.sub_p:
        return None
    x, y = made[slot].inputs
    layout: list[Equation] = []
    while isinstance(y, Slot) and y in made and made[y].primitive is not p.reduce_max_p:
        passed = _passed_on(made, y)
        if passed is None:
            return None
        if _in_order(made[y]):
            layout.append(made[y])
        y = passed
    maximum = made.get(y) if isinstance(y, Slot) else None
    if maximum is None or maximum.inputs[0] != x or len(maximum.params["axes"]) != 1:
        return None
    (axis,) = maximum.params["axes"]
    return axis if _of_own_row(maximum.in_avals[0], axis, layout[::-1]) else None


def _of_own_row(array: Aval, axis: int, layout: Sequence[Equation]) -> bool:
    """Whether numbers of the rows of an array along an axis, so laid out, meet their own rows."""
    shape = [length for length in array.shape if isinstance(length, int)]
    if len(shape) < len(array.shape):
        return False
    rows = np.arange(math.prod(shape) // shape[axis]).reshape(shape[:axis] + shape[axis + 1 :])
    own = np.broadcast_to(np.expand_dims(rows, axis), shape)
    with jax.ensure_compile_time_eval():
        for equation in layout:
            if equation.plain is None:
                return False
            rows = np.asarray(equation.primitive.bind(jnp.asarray(rows), **equation.plain))
    return np.array_equal(np.broadcast_to(rows, shape), own)


def _passed_on(made: Mapping[Slot, Equation], slot: Slot) -> Operand | None:
    """The variable whose entries an equation passes on as they are, where they are finite."""
    equation = made[slot]
    if _in_order(equation) or isinstance(kind_of(equation.primitive), Identity):
        return equation.inputs[0]
    if equation.primitive is p.max_p:
        others = [e for e in equation.inputs if not _lowest(e)]
        return others[0] if len(others) == 1 else None
    if equation.primitive is p.select_n_p:
        which, *cases = equation.inputs
        test = made.get(which) if isinstance(which, Slot) else None
        finite = test is not None and test.primitive is p.is_finite_p
        return cases[1] if finite and test.inputs[0] == cases[1] else None  # type: ignore[union-attr]
    return None


def _in_order(equation: Equation) -> bool:
    """Whether the entries go on in their order, in another shape."""
    kind = kind_of(equation.primitive)
    return isinstance(kind, Linear) and kind.in_order


def _lowest(operand: Operand) -> bool:
    if not isinstance(operand, Constant):
        return False
    return bool(np.all(operand.fitted.coefficient == -np.inf))
