"""Shared fixtures."""

import gc
from collections.abc import Iterator
from types import ModuleType

import jax
import pytest
from oracles.helpers import fast_compilation

from tplimit.caching.store import PIECES, PROGRAMS
from tplimit.kernels import import_neural_tangents


@pytest.fixture
def key() -> jax.Array:
    """A fixed key: a failure can be repeated."""
    return jax.random.key(20240)


@pytest.fixture
def float64() -> Iterator[None]:
    """For tests in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def stax() -> ModuleType:
    """The layers of neural-tangents."""
    return import_neural_tangents().stax


@pytest.fixture(autouse=True)
def _compile_fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs of tests run a few times each: less optimisation, in their processes, too."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    with fast_compilation():
        yield


@pytest.fixture
def unshared() -> Iterator[None]:
    """For tests that change what programs compute: none that was compiled is shared."""
    PROGRAMS.clear()
    PIECES.clear()
    yield
    PROGRAMS.clear()
    PIECES.clear()


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """Compiled programs of one module are of no use to the next."""
    yield
    PROGRAMS.clear()
    PIECES.clear()
    jax.clear_caches()
    gc.collect()
