"""Claims of papers measured again, and their pages."""

from tplimit.reproduction.reproduce import (
    Experiment,
    Interval,
    Result,
    Row,
    at_least,
    at_most,
    experiments,
    power_law,
)

__all__ = [
    "Experiment",
    "Interval",
    "Result",
    "Row",
    "at_least",
    "at_most",
    "experiments",
    "power_law",
]
