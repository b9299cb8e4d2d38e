"""Numbers with their standard errors in short: a table made by hand, and what is printed holds."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st

from tplimit.output.numbers import shorthand

NAN, INF = math.nan, math.inf

TABLE = [
    # value, standard error, one digit, two digits
    (-0.52258, 0.00021, "-0.5226(2)", "-0.52258(21)"),
    (0.52258, 0.00021, "0.5226(2)", "0.52258(21)"),
    (1.0, 0.1, "1.0(1)", "1.00(10)"),
    (123.456, 4.2, "123(4)", "123.5(42)"),
    (12.345, 1.23, "12(1)", "12.3(12)"),
    (0.0, 0.5, "0.0(5)", "0.00(50)"),
    (1234.0, 42.0, "1.23(4)e+03", "1234(42)"),
    (1234.0, 420.0, "1.2(4)e+03", "1.23(42)e+03"),
    (3.0, 40.0, "0(4)e+01", "3(40)"),
    (7.0, 40.0, "1(4)e+01", "7(40)"),
    # Rounding up makes a digit more, in the error and in the value.
    (0.5, 0.00096, "0.500(1)", "0.50000(96)"),
    (0.5, 0.000996, "0.500(1)", "0.5000(10)"),
    (0.9996, 0.001, "1.000(1)", "0.9996(10)"),
    (99.96, 0.1, "100.0(1)", "99.96(10)"),
    # Half to even, of the exact binary numbers: 0.25 and 2.5 are ties.
    (0.25, 0.5, "0.2(5)", "0.25(50)"),
    (0.75, 0.5, "0.8(5)", "0.75(50)"),
    (0.0, 0.25, "0.0(2)", "0.00(25)"),
    # No minus before a zero.
    (-1e-9, 0.1, "0.0(1)", "0.00(10)"),
    # Powers of ten.
    (-1.2345e-7, 5.4e-10, "-1.235(5)e-07", "-1.2345(54)e-07"),
    (1e-9, 5e-6, "0(5)e-06", "0.0(50)e-06"),
    (2e-5, 0.001, "0.000(1)", "0.0000(10)"),
    (0.0001234, 0.0000021, "0.000123(2)", "0.0001234(21)"),
    (6.02214076e23, 1.5e15, "6.02214076(2)e+23", "6.022140760(15)e+23"),
    (1e300, 1e285, "1.000000000000000(1)e+300", "1.0000000000000001(10)e+300"),
    # Without an error bar.
    (0.1, 0.0, "0.1", "0.1"),
    (0.1, NAN, "0.1(nan)", "0.1(nan)"),
    (0.1, INF, "0.1(inf)", "0.1(inf)"),
    (NAN, NAN, "nan(nan)", "nan(nan)"),
    (NAN, 0.0, "nan", "nan"),
    (-INF, 0.1, "-inf(0.1)", "-inf(0.1)"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "stderr", "one", "two"), TABLE)
def test_table(value, stderr, one, two):
    assert shorthand(value, stderr) == one
    assert shorthand(value, stderr, 2) == two


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (-0.52258, 0.00021, "$-0.5226(2)$"),
        (1234.0, 42.0, r"$1.23(4) \times 10^{3}$"),
        (-1.2345e-7, 5.4e-10, r"$-1.235(5) \times 10^{-7}$"),
        (0.5, 0.0, "$0.5$"),
        (1e-7, 0.0, r"$1 \times 10^{-7}$"),
        (0.5, NAN, r"$0.5(\mathrm{nan})$"),
        (1e-7, NAN, r"$1 \times 10^{-7}(\mathrm{nan})$"),
        (INF, 0.0, r"$\infty$"),
    ],
)
def test_latex(value, stderr, text):
    assert shorthand(value, stderr, latex=True) == text


def test_what_has_no_error_is_printed_as_its_dtype_does():
    value = float(np.float32(0.1))
    assert shorthand(value, 0.0) == "0.10000000149011612"
    assert shorthand(value, 0.0, exact=np.float32) == "0.1"


@pytest.mark.parametrize("digits", [0, 3, -1, 1.5, None])
def test_digits_are_one_or_two(digits):
    with pytest.raises(ValueError, match=r"digits=.*pass 1 or 2"):
        shorthand(1.0, 0.1, digits)


def test_errors_are_not_negative():
    with pytest.raises(ValueError, match="not negative"):
        shorthand(1.0, -0.1)


def read(text: str) -> tuple[Fraction, Fraction]:
    """The two numbers that were printed, exactly."""
    found = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?\((\d+)\)(?:e([+-]\d+))?", text)
    assert found is not None, text
    sign, whole, decimals, error, power = found.groups()
    decimals = decimals or ""
    unit = Fraction(10) ** (int(power or 0) - len(decimals))
    value = int(whole + decimals) * unit
    return (-value if sign else value), int(error) * unit


REAL = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(REAL, st.floats(min_value=1e-300, max_value=1e300), st.sampled_from([1, 2]))
@example(0.9999999, 0.0995, 2)
@example(-5e-324, 1e-300, 1)
@example(1.7e308, 1e-300, 2)
@settings(max_examples=300, deadline=None)
def test_the_printed_interval_holds_the_value(value, stderr, digits):
    text = shorthand(value, stderr, digits)
    number, error = read(text)
    unit = error / int(re.search(r"\((\d+)\)", text)[1])
    # Both are rounded to the same place, and the error has so many digits.
    assert abs(number - Fraction(value)) <= unit / 2 < error
    assert abs(error - Fraction(stderr)) <= unit / 2
    assert len(str(error / unit)) == digits
    assert not text.startswith("-0.0(")


@given(REAL, st.floats(min_value=1e-12, max_value=1e12))
@settings(max_examples=200, deadline=None)
def test_what_was_printed_prints_the_same_again(value, stderr):
    """Once rounded nothing changes (up to ties that decimal numbers have in binary)."""
    number, error = read(shorthand(value, stderr))
    assume(abs(number) < 10**12 * error)  # a double holds it
    assert shorthand(float(number), float(error)) == shorthand(value, stderr)
