"""Shared fixtures."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest
from oracles.helpers import fast_compilation

from tplimit.caching.store import PIECES, PROGRAMS
from tplimit.kernels import import_neural_tangents

#: Names of tests that take long, by measure (`.ci/slow.py`).
SLOW = Path(__file__).parent / "slow.txt"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that were found to be slow; a name that no test has any more is an error."""
    listed = set(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    whole = {item.nodeid.split("::")[0] for item in items}
    if not any("::" in arg for arg in config.args):
        names = {item.nodeid for item in items}
        gone = [n for n in sorted(listed - names) if n.split("::")[0] in whole]
        if gone:
            raise pytest.UsageError(f"{SLOW.name} lists tests that do not exist: {gone}")


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
