"""Claims of papers measured again, and their pages."""

from tplimit.reproduction.measurements import (
    Measurement,
    average,
    combination,
    jackknife,
    power_law,
)
from tplimit.reproduction.reproduce import Experiment, Result, experiments
from tplimit.reproduction.verdicts import Interval, Row, at_least, at_most, exponent_row

__all__ = [
    "Experiment",
    "Interval",
    "Measurement",
    "Result",
    "Row",
    "at_least",
    "at_most",
    "average",
    "combination",
    "experiments",
    "exponent_row",
    "jackknife",
    "power_law",
]
