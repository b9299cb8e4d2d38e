"""Warnings about programs whose formal limit is probably not what their author means."""

import warnings
from fractions import Fraction
from typing import Any

import numpy as np

from tplimit.errors import LimitWarning, warn
from tplimit.program.equations import Constant, Equation, Program, Slot
from tplimit.program.traits import Product, Quotient, kind_of

#: Widths that people write into programs.
_PLAUSIBLE = tuple(2**k for k in range(7, 15))
_POWERS = (Fraction(-1, 2), Fraction(-1), Fraction(1, 2), Fraction(1))

_TOLD: dict[Any, Any] = {}


def lint(program: Program) -> None:
    """Warn where a number that scales a width axis looks like a power of a fixed width.

    A width baked into a number (``h @ W / np.sqrt(1024)``, ``lr = 0.5 * 1024``) does not grow
    with the width, so the number has exponent 0 in the limit. Looked at are numbers that multiply
    or divide a value with a width axis, or a sum over a width.
    """
    sums: set[Slot] = set()
    for equation in program.equations:
        out_widths = any(aval.width_axes for aval in equation.out_avals)
        if any(aval.width_axes for aval in equation.in_avals) and not out_widths:
            sums.update(equation.outputs)
        kind = kind_of(equation.primitive)
        if not isinstance(kind, Quotient) and not (isinstance(kind, Product) and kind.entrywise):
            continue
        for k, operand in enumerate(equation.inputs):
            other = equation.inputs[1 - k]
            if not isinstance(operand, Constant) or not isinstance(other, Slot):
                continue
            if equation.in_avals[1 - k].width_axes or other in sums:
                _check(equation, operand)


def _check(equation: Equation, constant: Constant) -> None:
    value = constant.fitted.coefficient
    if np.ndim(value) or np.asarray(value).dtype.kind != "f":
        return
    if constant.fitted.exponents.value != 0:
        return
    number = float(value)
    for width in _PLAUSIBLE:
        for power in _POWERS:
            if abs(number - width ** float(power)) <= 1e-6 * number:
                _warn(equation, f"{number:.6g} looks like {width}**({power})")
                return


def _warn(equation: Equation, what: str) -> None:
    place = equation.location
    text = (
        f"The number {what}, a power of a fixed width. It does not change with the width, so it "
        f"is a plain number in the limit.\noperation: {equation}\nat: {place}\n"
        "Take the width from the shapes: x.shape[-1] ** -0.5."
    )
    if place is None:
        warn(LimitWarning(text))
    else:
        # Told once, as Python's filters have it, although programs are traced anew in every run.
        warnings.warn_explicit(text, LimitWarning, place.file, place.line, registry=_TOLD)
