"""Shared fixtures."""

import gc
from collections.abc import Iterator

import jax
import pytest
from helpers import fast_compilation


@pytest.fixture
def key() -> jax.Array:
    """A fixed key: a failure can be repeated."""
    return jax.random.key(20240)


@pytest.fixture
def compile_fast() -> Iterator[None]:
    """For tests whose programs run once: less optimisation."""
    with fast_compilation():
        yield


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """Compiled programs of one module are of no use to the next."""
    yield
    jax.clear_caches()
    gc.collect()
