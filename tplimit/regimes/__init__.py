"""Regimes of parameterizations: exponents counted, and exponents measured."""

from tplimit.regimes.counted import Regime, classify, region
from tplimit.regimes.measured import classify_step

__all__ = ["Regime", "classify", "classify_step", "region"]
