"""Compiled programs are kept by what was traced: equal programs are compiled once, others apart."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles.helpers import error_of, fast_compilation

import tplimit as tp
from tplimit import _jax
from tplimit.caching.identity import identity
from tplimit.caching.store import PROGRAMS, Store, compiled
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.limits import raw

N = tp.Width("n")

n = tp.Width("n")
ONES = {"v": tp.full((n,), 1.0)}
NETWORK = {"U": tp.normal((2, n)), "v": tp.normal((n,))}
POINT = jnp.array([[3.0, 4.0]])
RUN: dict[str, Any] = {"key": jax.random.key(0), "samples": 256, "progress": False}
WIDTHS = pytest.mark.parametrize("width", [64, tp.Deferred(64), tp.inf], ids=str)


@pytest.fixture
def compilations() -> Iterator[list[float]]:
    """The compilations since the test began."""
    found: list[float] = []

    def listen(name: str, duration: float, **details: Any) -> None:
        if name.endswith("backend_compile_duration"):
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def mean(t: Any) -> Any:
    return jnp.mean(t["v"])


def parameters() -> Any:
    return tp.sample(ONES, jax.random.key(0), width=tp.inf, samples=256)


# --- what is compiled


def descent(lr: float) -> Callable[[Any, Any], Any]:
    def step(t: Any, x: Any) -> Any:
        loss = lambda t: jnp.mean((jnp.tanh(t["v"]) * x[0, 0]).mean() - 1) ** 2
        value, g = jax.value_and_grad(loss)(t)
        return jax.tree.map(lambda p, d: p - lr * p.shape[-1] * d, t, g), value

    return step


def everything(width: Any, lr: float = 0.1, key: int = 0) -> Any:
    """A run with functions of its own."""
    options = RUN | {"replicates": 2, "width": width, "key": jax.random.key(key)}
    start, look = (lambda t: dict(t)), (lambda t: jnp.mean(t["v"] ** 2))
    run = tp.train(descent(lr), ONES, [POINT] * 3, init=start, observe=look, **options)
    return np.concatenate([run.outputs, run.observations])


@WIDTHS
def test_the_same_text_compiles_nothing(width: Any, compilations: list[float]) -> None:
    """Closures made anew: no compilation, and the same numbers bit for bit."""
    first = everything(width)
    assert compilations
    compilations.clear()
    np.testing.assert_array_equal(everything(width), first)
    everything(width, key=1)
    assert not compilations
    # Another number in it is another program.
    assert not np.array_equal(everything(width, 0.2), first)
    assert compilations


@pytest.mark.parametrize("bent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_limits_and_kernels_compile_nothing_again(bent: bool, compilations: list[float]) -> None:
    """Recognised kernels are compiled for what was recognised, activations for what they do."""

    def run() -> tuple[float, float]:
        phi = (lambda h: jnp.maximum(h, 0) / (1 + h**2)) if bent else lambda h: jnp.maximum(h, 0)
        apply = lambda t, x: phi(x @ t["U"]) @ t["v"] / t["v"].shape[0] ** 0.5
        kernel = tp.kernels.nngp(apply, NETWORK, POINT, method="closed_form")
        return float(tp.limit(lambda t: 2 * mean(t))(parameters())), float(kernel.value[0, 0])

    first = run()
    compilations.clear()
    assert run() == first
    assert not compilations


def test_a_limit_in_a_loop_compiles_once(compilations: list[float]) -> None:
    """tp.limit(step) written in the loop is traced every time, and compiled like one outside."""
    step = lambda t, x: ({"v": t["v"] * x}, mean(t))
    for count in range(4):
        theta = parameters() if count == 0 else theta
        if count == 2:  # the first state and the ones after it have other forms
            compilations.clear()
        theta, output = tp.limit(step)(theta, 2.0)
    assert float(output) == 8
    assert not compilations


def test_a_run_traces_each_function_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step, nor for every group of replicates."""
    calls = []

    def step(t: Any, x: Any) -> Any:
        calls.append(0)
        return {"v": t["v"] * x}, mean(t)

    counts = []
    for width, length in ((64, 3), (64, 30), (tp.inf, 3), (tp.inf, 30)):
        calls.clear()
        tp.train(step, ONES, [0.5] * length, width=width, **RUN)
        counts.append(len(calls))
    assert counts[0] == counts[1] == 1
    assert counts[2] == counts[3]
    monkeypatch.setattr("tplimit.training.infinite._TOGETHER_CPU", 256)
    calls.clear()
    tp.train(step, ONES, [0.5] * 3, width=tp.inf, replicates=3, **RUN)
    assert len(calls) == counts[2]


def test_errors_of_a_shared_program_name_the_line_that_runs() -> None:
    """A condition that fails in a run is compiled with a program, its line is not."""

    def first(t: Any) -> Any:
        return 1 / jnp.mean(t["v"])

    def second(t: Any) -> Any:
        return 1 / jnp.mean(t["v"])

    theta = tp.sample(NETWORK, jax.random.key(0), width=tp.inf, samples=256)
    count = len(PROGRAMS)
    for function in (first, second, first):
        error = error_of(tp.CancellationError, raw(function), theta)
        line = function.__code__.co_firstlineno + 1
        assert f"{__file__}:{line} ({function.__qualname__}" in str(error)
    assert len(PROGRAMS) == count + 1  # they do share it


# --- the store


def test_a_store_keeps_what_was_used_last() -> None:
    store: Store[str] = Store(2)
    for key in "abab":
        store.get(key, key.upper)
    assert store.get("c", lambda: "c") == "c"  # a goes
    assert store.get("b", lambda: "new") == "B"
    assert store.get("a", lambda: "new") == "new"
    assert len(store) == 2


def test_a_store_is_bounded_in_weight() -> None:
    store: Store[int] = Store(100, heaviest=10)
    for key in range(6):
        store.get(key, int, weight=4)
        assert store.weight <= 10
    assert len(store) == 2
    store.get("heavy", int, weight=11)  # not kept, and drives nothing out
    assert len(store) == 2


def test_programs_with_large_constants_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that functions have closed over are not held for ever."""
    monkeypatch.setattr(PROGRAMS, "heaviest", PROGRAMS.weight + 10_000)
    held = []
    for seed in range(4):
        data = jax.random.normal(jax.random.key(seed), (1000,))
        held.append(weakref.ref(data))
        compiled(lambda x, data=data: x + data)(jnp.zeros(1000))
    del data
    gc.collect()
    assert sum(reference() is not None for reference in held) <= 2
    assert PROGRAMS.weight <= PROGRAMS.heaviest
    assert len(PROGRAMS) <= PROGRAMS.most


# --- what is the same


def traced(function: Callable[..., Any], *args: Any) -> Any:
    return identity(_jax.traced(function, *args or (jnp.ones(3),))[0])


def limited_program(function: Callable[..., Any]) -> Any:
    (found,) = _programs(function)
    return identity(found)


def _programs(function: Callable[..., Any]) -> list[Any]:
    evaluator = Evaluator(function)
    evaluator((parameters(),), {})
    return [program for program, _ in evaluator.programs.values()]


SAME: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda x: 2 * x + jnp.nan,
    "jit": jax.jit(lambda x: x + 1),
    "relu": jax.nn.relu,
    "gradient": lambda x: jax.grad(lambda x: jnp.sum(jax.checkpoint(jnp.sin)(x) ** 2))(x),
    "scan": lambda x: lax.scan(lambda c, y: (c * 2, y), x, x),
    "while": lambda x: lax.while_loop(lambda x: x[0] > 0, lambda x: x - 1, x),
    "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "random": lambda x: x + jax.random.normal(jax.random.key(3), (3,)),
    "scatter": lambda x: x.at[0].add(1),
    "callback": lambda x: jax.pure_callback(np.sin, x, x),
    "reduce": lambda x: lax.reduce(x, 0.0, lambda a, b: 2 * a + b, (0,)),
    "solve": lambda x: lax.custom_linear_solve(lambda v: 2 * v, x, lambda _, b: b / 2),
    "search": lambda x: jnp.interp(x, x, x),
    "constant": lambda x: x + jnp.asarray(np.linspace(0, 1, 300))[:3],
}


@pytest.mark.parametrize("function", SAME.values(), ids=SAME)
def test_the_same_text_is_the_same_program(function: Callable[[Any], Any]) -> None:
    assert traced(function) == traced(function)
    assert traced(function) != traced(lambda x: jax.tree.map(lambda y: y * 2, function(x)))


DIFFERENT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sign of zero": (lambda x: x * 0.0, lambda x: x * -0.0),
    "last digit": (lambda x: x * np.float32(0.1), lambda x: x * np.nextafter(np.float32(0.1), 1)),
    "dtype": (lambda x: x + np.zeros(3, np.int8), lambda x: x + np.zeros(3, np.int16)),
    "weak type": (lambda x: jnp.asarray(1.0), lambda x: jnp.asarray(1.0, jnp.float32)),
    "shape": (lambda x: jnp.zeros(2), lambda x: jnp.zeros((2, 1))),
    "parameter": (lambda x: lax.cumsum(x), lambda x: lax.cumsum(x, reverse=True)),
    "body": (
        lambda x: lax.scan(lambda c, y: (c, y), x, x),
        lambda x: lax.scan(lambda c, y: (y[None] * c, y), x, x),
    ),
    "order": (lambda x: (x, x + 1), lambda x: (x + 1, x)),
    "operands": (lambda x: x[0] - x[1], lambda x: x[1] - x[0]),
    "key": (
        lambda x: jax.random.normal(jax.random.key(0)),
        lambda x: jax.random.normal(jax.random.key(1)),
    ),
    "callback": (
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.pure_callback(np.cos, x, x),
    ),
    "large constant": (
        lambda x: x + np.arange(1000.0)[-3:].sum() + jnp.asarray(np.arange(1000.0))[:3],
        lambda x: x + np.arange(1000.0)[-3:].sum() + jnp.asarray(np.arange(1000.0) * 2)[:3],
    ),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_programs_that_differ_are_told_apart(pair: Any) -> None:
    assert traced(pair[0]) != traced(pair[1])


def test_numbers_are_compared_bit_for_bit_and_by_type() -> None:
    """Unlike ==, for which 1, 1.0 and True are equal, and 0.0 and -0.0; NaN equals itself."""
    values = [1, 1.0, True, np.float32(1), 0.0, -0.0, 0, (0,), [0], np.nan, -np.inf, None, "1"]
    keys = [identity({"value": value}) for value in values]
    assert [keys.index(identity({"value": value})) for value in values] == list(range(len(values)))


def test_programs_of_limits_differ_by_powers_of_the_width() -> None:
    """Equal at the first trial width, and not at others."""
    first = lambda t: jnp.mean(t["v"]) * t["v"].shape[0] / 5760
    second = lambda t: jnp.mean(t["v"]) * (t["v"].shape[0] / 5760) ** 2
    assert limited_program(first) != limited_program(second)
    assert limited_program(first) == limited_program(first)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts memory maps on Linux")
def test_many_programs_do_not_use_up_the_memory_maps():
    """LLVM ends a process that has none left. Once as many training steps are kept as may be, a new
    one takes the place of an old one; and all of them take less than half of what there is."""
    theta = {"U": tp.normal((3, N)), "W": tp.normal((N, N), std=N**-0.5), "v": tp.normal((N,))}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=64)
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    counts = []
    for k in range(PROGRAMS.most + 50):

        def step(t, k=k):
            def loss(t):
                h = jnp.tanh(jnp.tanh(jnp.ones((2, 3)) @ t["U"]) @ t["W"])
                return jnp.mean((h @ t["v"] / t["v"].shape[0] - k) ** 2)

            return jax.tree.map(lambda w, g: w - g, t, jax.grad(loss)(t)), loss(t)

        with fast_compilation():
            jax.block_until_ready(tp.limit(step)(sampled)[1])
        counts.append(len(Path("/proc/self/maps").read_text().splitlines()))
    filling, full = counts[PROGRAMS.most - 5] - counts[5], counts[-1] - counts[PROGRAMS.most + 5]
    assert full < 0.1 * filling
    assert counts[-1] < most / 2
