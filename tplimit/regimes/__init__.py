"""Regimes of parameterizations: exponents counted, and exponents measured."""
