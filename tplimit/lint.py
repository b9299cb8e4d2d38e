"""Warnings about programs whose formal limit is probably not what their author means."""

import warnings
from fractions import Fraction

import numpy as np

from tplimit.errors import LimitWarning
from tplimit.trace import Constant, Equation, Program

#: Widths that people write into programs.
_PLAUSIBLE = tuple(2**k for k in range(7, 15))
_POWERS = (Fraction(-1, 2), Fraction(-1))


def lint(program: Program) -> None:
    """Warn where a number that multiplies a width axis looks like a power of a fixed width.

    A width baked into a number (``W @ h / np.sqrt(1024)``) does not grow with the width, so the
    number has exponent 0 in the limit.
    """
    for equation in program.equations:
        if equation.primitive.name not in ("mul", "div"):
            continue
        for operand, other in zip(equation.inputs, equation.in_avals[::-1], strict=True):
            if isinstance(operand, Constant) and other.width_axes:
                _check(equation, operand, inverse=equation.primitive.name == "div")


def _check(equation: Equation, constant: Constant, *, inverse: bool) -> None:
    value = constant.fitted.coefficient
    if np.ndim(value) or np.asarray(value).dtype.kind != "f":
        return
    if constant.fitted.exponents.value != 0:
        return
    number = 1 / float(value) if inverse else float(value)
    for width in _PLAUSIBLE:
        for power in _POWERS:
            if abs(number - width ** float(power)) <= 1e-6 * number:
                warnings.warn(
                    f"The number {float(value):.6g} looks like {width}**{power}, a power of a "
                    "fixed width; it does not change with the width, so it is a plain number in "
                    "the limit.\n"
                    f"operation: {equation}\nat: {equation.location}\n"
                    "Take the width from the shapes: x.shape[-1] ** -0.5.",
                    LimitWarning,
                    stacklevel=2,
                )
                return
