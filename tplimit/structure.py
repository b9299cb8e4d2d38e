"""How the variables of a program depend on each other: linearly, or not."""

from collections.abc import Container, Iterable

from tplimit._jax import primitives as p
from tplimit.trace import Aval, Equation, Operand, Program, Slot

#: Operations that only move numbers, add them up, or change their type.
MOVES = frozenset(
    {
        p.broadcast_in_dim_p, p.convert_element_type_p, p.copy_p, p.dynamic_slice_p, p.gather_p,
        p.neg_p, p.reduce_sum_p, p.reshape_p, p.rev_p, p.slice_p, p.squeeze_p, p.transpose_p,
    }
)  # fmt: skip
SUMS = frozenset({p.add_p, p.add_jaxvals_p, p.concatenate_p, p.sub_p})
PRODUCTS = frozenset({p.mul_p, p.dot_general_p})


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
    """How the outputs depend on variables: "free", "linear", "affine" or "other"."""
    known: dict[Operand, str] = dict.fromkeys(variables, "linear")

    def of(operand: Operand) -> str:
        return known.get(operand, "free") if isinstance(operand, Slot) else "free"

    for equation in program.equations:
        found = _combined(equation, [of(operand) for operand in equation.inputs])
        if found != "free":
            known.update(dict.fromkeys(equation.outputs, found))
    outputs = {of(output) for output in program.outputs}
    return outputs.pop() if len(outputs) == 1 else "other"


def _combined(equation: Equation, degrees: list[str]) -> str:
    """The degree of a result from those of the operands."""
    own = [degree for degree in degrees if degree != "free"]
    if not own:
        return "free"
    if equation.primitive in SUMS:
        if "other" in own:
            return "other"
        return "linear" if own == degrees and set(own) == {"linear"} else "affine"
    if len(own) == 1 and equation.primitive in PRODUCTS | MOVES:
        return own[0]
    # A quotient is linear in what is divided.
    return (
        own[0] if equation.primitive is p.div_p and degrees[0] != "free" == degrees[1] else "other"
    )
