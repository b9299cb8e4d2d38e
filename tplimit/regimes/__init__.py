"""Regimes of parameterizations: exponents counted, and exponents measured."""

from tplimit.regimes.counted import classify, region
from tplimit.regimes.measured import classify_step
from tplimit.regimes.regime import Regime

__all__ = ["Regime", "classify", "classify_step", "region"]
