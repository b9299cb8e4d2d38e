"""Programs registered for tests, and the oracle: a limit against averages of ordinary networks.

A *program* is a plain JAX function of its parameters with finite outputs. Its limit at M particles
must equal the average over seeds of the same function at a finite width n, up to both sampling
errors and the bias O(1/n); at ``tp.Deferred(n)`` the law is that of width n, without bias.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import tplimit as tp
from tplimit.training import encoding

PyTree = Any
Array = NDArray[np.float64]

WIDTH = 480  # divisible by the heads and ratios of all programs
SIGMAS = 4.5
BIAS = 4.0


@dataclass(frozen=True)
class Program:
    """A function of parameters, their declaration, and what it may cost.

    Attributes:
        run: ``run(theta) -> pytree of finite arrays``.
        declaration: pytree of declared parameters.
        bias: the bias at width n is taken to be at most ``bias / n`` times the size of an output.
        slow: left to the slow tests.
        deferred: whether the fast tests run it at ``tp.Deferred`` too.
    """

    run: Callable[[PyTree], PyTree]
    declaration: PyTree
    bias: float = BIAS
    slow: bool = False
    deferred: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


PROGRAMS: list[Program] = []


def program(declaration: PyTree, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: enter a function in the list of programs."""

    def enter(run: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        PROGRAMS.append(Program(run, declaration, **options))
        return run

    return enter


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """Programs of the tests run a few times each: compiling costs more than running."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def flat(tree: PyTree) -> jax.Array:
    """All outputs as one vector."""
    return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


@functools.lru_cache(maxsize=2)
def _dense_parameters(leaves: tuple[Any, ...], tree: Any, n: int, seeds: int) -> PyTree:
    declaration = jax.tree.unflatten(tree, leaves)
    keys = jax.random.split(jax.random.key(1), seeds)
    drawn = [tp.sample(declaration, key, width=n) for key in keys]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)


def dense(run: Callable[..., Any], declaration: PyTree, n: int, seeds: int) -> Array:
    """Outputs ``(seeds, k)`` of ordinary networks of width ``n``."""
    leaves, tree = jax.tree.flatten(declaration)
    thetas = _dense_parameters(tuple(leaves), tree, n, seeds)
    batched = jax.jit(lambda thetas: jax.lax.map(lambda t: flat(run(t)), thetas, batch_size=8))
    return np.asarray(batched(thetas), float)


def sampled(
    run: Callable[..., Any], declaration: PyTree, width: Any, seeds: int, samples: int = 1024
) -> Array:
    """Outputs ``(seeds, k)`` at ``tp.inf`` or ``tp.Deferred(n)``."""
    limited = tp.limit(run)
    rows = []
    for seed in range(seeds):
        key = jax.random.key(1000 + seed)
        theta = tp.sample(declaration, key, width=width, samples=samples)
        rows.append(np.asarray(flat(limited(theta)), float))
    return np.array(rows)


def standard_error(rows: Array) -> Array:
    return rows.std(axis=0, ddof=1) / np.sqrt(len(rows))


def assert_same_mean(first: Array, second: Array, slack: float = 0.0) -> None:
    """Means agree within ``SIGMAS`` standard errors and ``slack`` times the outputs' size."""
    error = np.hypot(standard_error(first), standard_error(second))
    size = np.abs(second.mean(axis=0)) + second.std(axis=0)
    allowed = SIGMAS * error + slack * size + 1e-6
    difference = np.abs(first.mean(axis=0) - second.mean(axis=0))
    assert np.all(np.isfinite(difference)), f"not finite: {first.mean(0)} and {second.mean(0)}"
    worst = int(np.argmax(difference / allowed))
    assert np.all(difference <= allowed), (
        f"output {worst}: {first.mean(0)[worst]:.5g} and {second.mean(0)[worst]:.5g} differ by "
        f"{difference[worst]:.2g}, allowed {allowed[worst]:.2g}"
    )


def error_of(kind: type[Exception], function: Callable[..., Any], *args: Any) -> Exception:
    """The exception of class ``kind`` (exactly) that ``function(*args)`` raises."""
    with pytest.raises(kind) as caught:
        function(*args)
    found = caught.type.__name__
    assert caught.type is kind, f"{found} instead of {kind.__name__}: {caught.value}"
    return caught.value


def line_of(function: Callable[..., Any], marker: str = "# here") -> int:
    """Number of the line of ``function`` that carries ``marker``."""
    code = function.__code__
    with open(code.co_filename, encoding="utf-8") as file:
        lines = file.read().splitlines()
    for number in range(code.co_firstlineno, len(lines) + 1):
        if marker in lines[number - 1]:
            return number
    raise AssertionError(f"no line of {function.__name__} carries {marker!r}")


def tree_difference(first: PyTree, second: PyTree) -> float:
    """Largest absolute difference of two pytrees of arrays."""
    pairs: Sequence[Any] = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def bits(tree: Any) -> Any:
    """Everything in a tree, limit values with their banks included, to be compared with ==."""
    leaves, structure = jax.tree.flatten(tree)
    code, arrays = encoding.encode(leaves)
    arrays = {name: array.tobytes() for name, array in arrays.items()}
    table: list[Any] = []

    def expanded(code: Any) -> Any:
        # Constants such as exponents may or may not be one object; what they say counts.
        if isinstance(code, dict):
            return {name: expanded(entry) for name, entry in code.items()}
        if not isinstance(code, list):
            return arrays[code] if isinstance(code, str) and code in arrays else code
        return table[code[1]] if code[:1] == ["shared"] else [expanded(entry) for entry in code]

    for entry in code["table"]:
        table.append(expanded(entry))
    return structure, expanded(code["value"])


def assert_same(one: Any, two: Any) -> None:
    """Two trajectories are equal bit for bit, in all that they hold."""
    for part in ("outputs", "observations"):
        assert bits(getattr(one.replicates, part)) == bits(getattr(two.replicates, part))
        assert bits(getattr(one.exponents, part)) == bits(getattr(two.exponents, part))
    assert one.width == two.width
    assert (one.random, one.directions) == (two.random, two.directions)
    assert bits(one.fluctuations) == bits(two.fluctuations)
    assert bits(one.state) == bits(two.state)
