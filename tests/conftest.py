"""Fixtures of all tests."""

import jax
import pytest


@pytest.fixture
def key() -> jax.Array:
    """A fixed key: a failure can be repeated."""
    return jax.random.key(20240)
