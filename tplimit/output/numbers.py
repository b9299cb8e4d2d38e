"""Numbers with their standard errors as papers print them: -0.5226(2)."""

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

__all__ = ["shorthand"]

# Numbers are written out from 10^_SMALL on, and below as a multiple of a power of ten.
_SMALL = -4
# Enough for all digits of any double.
_CONTEXT = Context(prec=1200, rounding=ROUND_HALF_EVEN)


def shorthand(
    value: float,
    stderr: float,
    digits: int = 1,
    latex: bool = False,
    exact: Callable[[float], Any] = float,
) -> str:
    """A number and its standard error in short: the error in units of the last digit.

    `stderr` is rounded to one or two significant digits, `value` to the same decimal place, both
    half to even: -0.52258 ± 0.00021 is `-0.5226(2)`, with two digits `-0.52258(21)`. What is
    printed is off by half a unit at most, so less than the printed error. Where the error is 10 or
    larger, or value and error are both below 1e-4, a power of ten is taken out, `1.23(4)e+03`, in
    LaTeX `1.23(4) \\times 10^{3}`: no digit is printed that is not known.

    Without an error bar (0, where all replicates agree; NaN, of one replicate; infinite) the
    number is printed in full, as `exact` (its dtype) prints it, followed by nothing, `(nan)` or
    `(inf)`.

    Raises:
        ValueError: digits are not 1 or 2, or the error is negative.
    """
    if digits not in (1, 2):
        raise ValueError(f"digits={digits!r} of a standard error: pass 1 or 2")
    if stderr < 0:
        raise ValueError(f"a standard error is not negative, got {stderr}")
    if not (math.isfinite(value) and math.isfinite(stderr) and stderr > 0):
        unknown = "" if stderr == 0 else f"({float(stderr)})"
        text = str(exact(value))
        return f"${_latex(text)}{_latex(unknown)}$" if latex else text + unknown
    number, error = Decimal(float(value)), Decimal(float(stderr))
    place = _place(error, digits)
    error = _rounded(error, place)
    number = _rounded(number, place)
    number = abs(number) if number == 0 else number  # no -0.0(1)
    top = max(number.adjusted() if number else place, error.adjusted())
    power = top if place > 0 or top < _SMALL else 0
    shown = number.scaleb(-power, _CONTEXT)
    text = f"{shown:.{max(power - place, 0)}f}({int(error.scaleb(-place, _CONTEXT))})"
    if power:
        text += f" \\times 10^{{{power}}}" if latex else f"e{power:+03d}"
    return f"${text}$" if latex else text


def _place(error: Decimal, digits: int) -> int:
    """The power of ten of the last digit that is printed."""
    place = error.adjusted() - digits + 1
    # 0.0096 is 0.01: rounding may make one digit more.
    return place + (_rounded(error, place).adjusted() > error.adjusted())


def _rounded(number: Decimal, place: int) -> Decimal:
    scaled = number.scaleb(-place, _CONTEXT).to_integral_value(ROUND_HALF_EVEN)
    return scaled.scaleb(place, _CONTEXT)


def _latex(text: str) -> str:
    """What Python prints of a number, as a formula."""
    for plain, formula in {"nan": r"\mathrm{nan}", "inf": r"\infty"}.items():
        if plain in text:
            return text.replace(plain, formula)
    head, _, power = text.partition("e")
    return f"{head} \\times 10^{{{int(power)}}}" if power else head
