"""Powers of the width as they are told: what is known of an exponent, and how it is written."""

from typing import Literal, NamedTuple

from tplimit.values.exponents import NEVER, Exponent

__all__ = ["MARKS", "Known", "Power", "in_words"]

Known = Literal["exact", "bound", "generic"]

#: How an exponent is marked, and what is known where it has the mark.
MARKS: dict[Known, tuple[str, str]] = {
    "exact": ("", "exact, nothing is assumed"),
    "bound": ("≤ ", "a bound, the exponent is this or smaller"),
    "generic": ("~ ", "generic, this if no symmetry makes a coefficient vanish, else smaller"),
}


def in_words(exponent: Exponent) -> str:
    """A power of the width.

    >>> from fractions import Fraction
    >>> in_words(Fraction(-1, 2)), in_words(Fraction(1)), in_words(NEVER)
    ('n^(-1/2)', 'n^1', '0')
    """
    if exponent == NEVER:
        return "0"
    text = str(exponent)
    return f"n^{text}" if text.isdigit() else f"n^({text})"


class Power(NamedTuple):
    """A power of the width, and what is known of it: it is exact, a bound, or generic.

    >>> print(Power(-1, "bound"))
    ≤ n^(-1)
    """

    exponent: Exponent
    known: Known = "exact"

    def __str__(self) -> str:
        mark = "" if self.exponent == NEVER else MARKS[self.known][0]
        return mark + in_words(self.exponent)
