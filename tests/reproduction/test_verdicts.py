"""Verdicts of claims, and the statistics of what was measured behind them."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from tplimit.output.statistics import power, weighted_power
from tplimit.reproduction import (
    Interval,
    Measurement,
    Row,
    at_least,
    at_most,
    average,
    combination,
    exponent_row,
    jackknife,
    power_law,
)

numbers = st.floats(-1e3, 1e3)
errors = st.just(0.0) | st.floats(1e-6, 10.0)
MANY = 10**6  # degrees of freedom: 1.96 standard errors


def measured(value, stderr, degrees=MANY):
    return Measurement(value, stderr, degrees)


@pytest.mark.parametrize(
    ("predicted", "found", "tolerance", "verdict"),
    [
        (1.0, measured(1.05, 0.03), 0.1, "agrees"),
        (1.0, measured(1.05, 0.02), 0.1, "within the tolerance but different"),
        (1.0, measured(1.05, 0.02, degrees=2), 0.1, "agrees"),  # 4.3 standard errors
        (1.0, measured(1.05, 0.06), 0.1, "undecided"),
        (1.0, measured(1.05, 5.0), 0.1, "undecided"),  # a poor measurement confirms nothing
        (1.0, measured(1.05, None, None), 0.1, "error not known"),
        (1.0, measured(1.12, 0.02), 0.1, "does not hold"),
        (1.0, measured(2.0, 0.2), 0.1, "does not hold"),  # imprecise, but far away
        (0.0, measured(0.0, 0.0), 0.0, "agrees"),
        (1.0, 1.05, 0.1, "within the tolerance but different"),
        (1.0, 1.15, 0.1, "does not hold"),
        (0.0, 0.0, 0.0, "agrees"),
        (0.0, 1e-9, 0.0, "does not hold"),
        (at_most(2), measured(1.9, 0.04), 0.0, "agrees"),
        (at_most(2), measured(1.9, 0.04, degrees=2), 0.0, "undecided"),
        (at_least(2), measured(1.9, 0.04), 0.0, "does not hold"),
        (at_least(2), measured(1.9, None, None), 0.0, "error not known"),
        (at_least(2), 2.1, 0.0, "agrees"),
        (Interval(0, 1), measured(0.5, 0.3), 0.0, "undecided"),
        ("trivial", "trivial", 0.0, "agrees"),
        ("trivial", "unstable", 0.0, "does not hold"),
    ],
)
def test_verdicts(predicted, found, tolerance, verdict):
    assert Row("c", predicted, found, tolerance).verdict == verdict


@given(numbers, numbers, errors, st.floats(1e-3, 10.0))
def test_the_interval_and_z_say_the_same(predicted, value, stderr, tolerance):
    """|z| < 1.96 is the 95 % interval around the number, whatever the degrees of freedom."""
    for degrees in (1, 4, 50):
        row = Row("c", predicted, measured(value, stderr, degrees), tolerance)
        low, high = row.measured.interval()
        if not math.isclose(abs(row.z), 1.959964, rel_tol=1e-3):
            assert (abs(row.z) < 1.959964) == (low <= predicted <= high)
        agrees = low <= predicted <= high and high - value <= tolerance
        assert (row.verdict == "agrees") == agrees


def test_z_is_from_the_nearer_bound():
    row = Row("c", Interval(0.0, 1.0), measured(0.9, 0.05))
    assert row.z == pytest.approx(-2.0, rel=1e-4)
    assert Row("c", at_least(2.0), measured(2.5, 0.1)).z == pytest.approx(5.0, rel=1e-4)
    assert Row("c", 1.0, 2.0).z is None
    assert Row("c", 1.0, measured(1.1, None, None), 1.0).z is None


@pytest.mark.parametrize("seeds", [3, 8])
def test_a_true_prediction_is_called_different_in_one_row_of_twenty(seeds):
    """4000 samples of the normal law: a share of 0.05 within 4 of its standard deviations."""
    draws = np.random.default_rng(seeds).normal(size=(4000, seeds))
    rows = [Row("c", 0.0, average(values), tolerance=100.0) for values in draws]
    different = np.mean([row.verdict == "within the tolerance but different" for row in rows])
    assert abs(different - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5
    assert np.mean([row.verdict == "agrees" for row in rows]) == 1 - different


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", "trivial", 1.0), "c: a number cannot be compared with a statement"),
        (("c", 1.0, "trivial"), "c: a number cannot be compared with a statement"),
        (("c", 1.0, math.nan), "c: measured has to be a finite number, not nan"),
        (("c", math.inf, 1.0), "c: predicted has to be a finite number, not inf"),
        (("c", 1.0, measured(1.0, 0.1)), "c: an estimate is never exact, it needs a tolerance"),
        (("c", 1.0, measured(1.0, None, None)), "c: an estimate is never exact"),
    ],
)
def test_rows_that_cannot_be_judged(arguments, message):
    with pytest.raises(ValueError, match=message):
        Row(*arguments)


def test_measurements_that_are_none():
    with pytest.raises(ValueError, match="value has to be a finite number, not nan"):
        Measurement(math.nan, 0.1, 3)
    with pytest.raises(ValueError, match="stderr has to be a finite number, not nan"):
        Measurement(1.0, math.nan, 3)
    with pytest.raises(ValueError, match="a standard error has degrees of freedom"):
        Measurement(1.0, 0.1, None)


# Measurements -------------------------------------------------------------------------------------


def test_one_seed_has_no_error():
    assert average([2.0]) == Measurement(2.0, None, None)
    assert power_law({64: [1.0], 128: [2.0, 2.1]}).stderr is None
    assert (average([2.0]) - average([1.0, 1.1])).stderr is None


def test_combination_is_welch():
    """The difference of two means with their standard error and degrees of freedom, by scipy."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=5), 3 * random.normal(size=9)
    found = average(a) - average(b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert found.degrees == pytest.approx(expected.df)
    assert found.interval() == pytest.approx((low, high))
    alike = combination((1.0, 2.0), (measured(1.0, 0.0, 3), measured(2.0, 0.0, 7)))
    assert alike == Measurement(5.0, 0.0, 3)


def test_jackknife_of_means_is_their_standard_error():
    random = np.random.default_rng(1)
    a, b = random.normal(size=50), random.normal(size=20)
    found = jackknife(lambda x, y: float(x[0].mean() - y[0].mean()), (a,), (b,))
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.stderr == pytest.approx((average(a) - average(b)).stderr)
    assert jackknife(lambda x: float(x[0].mean()), (a,), at=7.0).value == 7.0


# Fits of exponents --------------------------------------------------------------------------------

WIDTHS = (64, 128, 256, 512)
SEEDS = dict(zip(WIDTHS, (32, 24, 16, 8), strict=True))


def noisy(count, spread, bend=0.0, seed=1):
    """Squares of sizes n^-3/2, of normal noise in the logs: by width, (seeds, count)."""
    random = np.random.default_rng(seed)
    size = lambda n: -1.5 * np.log(n) + bend * (n == WIDTHS[0])
    return {
        n: np.exp(2 * (size(n) + spread * random.normal(size=(seeds, count))))
        for n, seeds in SEEDS.items()
    }


def test_intervals_of_exponents_cover_and_p_is_uniform():
    """2000 fits: intervals cover in 95 %, p < 0.05 in 5 %; within 1.5 %, 3 standard deviations."""
    fits = weighted_power(noisy(2000, 0.1))
    of_each = zip(*(np.asarray(x) for x in fits[:3]), strict=True)
    ends = np.array([Measurement(*entry).interval() for entry in of_each])
    covered = (ends[:, 0] < -1.5) & (ends[:, 1] > -1.5)
    assert abs(covered.mean() - 0.95) < 0.015
    assert abs(np.mean(fits.p < 0.05) - 0.05) < 0.015
    assert abs(np.mean(fits.p < 0.5) - 0.5) < 0.04


def test_a_bent_line_is_found_out():
    """One width 0.15 above the power, at errors of 2 to 4 %: found out in four of five fits."""
    fits = weighted_power(noisy(500, 0.1, bend=0.15))
    assert np.mean(fits.p < 0.05) > 0.8


def test_weights_are_better_than_none():
    """Widths of unequal error: the weighted fit scatters less, the seeds being the same."""
    squares = noisy(500, 0.2)
    squares[64] = squares[64] ** 3 * 64.0**6  # three times the scatter of the logs, same power
    weighted, plain = weighted_power(squares).exponent, power(squares)[0]
    assert weighted.std() < 0.8 * plain.std()


def test_the_geometric_mean_is_not_moved_by_tails():
    """Log-normal sizes whose spread falls with the width: the root mean square bends, it does not.

    log RMS is larger by the variance 64 / n of the logs, so that its exponent is below -3/2.
    """
    random = np.random.default_rng(3)
    sizes = {
        n: np.exp(-1.5 * np.log(n) + (64 / n) ** 0.5 * random.normal(size=400)) for n in WIDTHS
    }
    row = exponent_row("c", -1.5, sizes, 0.2)
    assert row.verdict == "does not hold"
    assert "geometric mean −1.5" in row.note
    assert "(agrees); two largest widths" in row.note
    assert power_law(sizes, typical=True).value == pytest.approx(-1.5, abs=0.1)
    assert exponent_row("c", row.measured.value, sizes, 0.2).note == ""


def test_sizes_without_scatter_are_fitted_exactly():
    exact = power_law({n: [n**-0.5] * 2 for n in WIDTHS})
    assert exact.value == pytest.approx(-0.5)
    assert exact.stderr == pytest.approx(0.0, abs=1e-12)
