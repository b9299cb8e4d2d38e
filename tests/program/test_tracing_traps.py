"""The traps of reading plain JAX by traces at several widths, one by one.

Mixed exponents in one array, counters in predicates, numbers of the width, widths baked in as
numbers, aspect ratios. Silence is the failure: each program gives the right number, or an error
that names the line. Keys, opaque leaves and stores are in ``test_state_traps.py``.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from numpy.testing import assert_allclose
from oracles.helpers import (
    assert_same_mean,
    dense,
    error_of,
    line_of,
    sampled,
)  # fmt: skip

import tplimit as tp

Theta = dict[str, Any]

n = tp.Width("n")
m = tp.Width("m", ratio=2)
PARAMETERS = {
    "v": tp.normal((n,)),
    "w": tp.normal((n,)),
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def theta() -> Theta:
    return tp.sample(PARAMETERS, KEY, width=tp.inf, samples=1024)


@pytest.fixture(scope="module")
def wide() -> Theta:
    return tp.sample(PARAMETERS, KEY, width=4096)


def second(t: Theta) -> jax.Array:
    """A mean whose limit is 1."""
    return jnp.mean(t["v"] ** 2)


def width(t: Theta) -> int:
    return t["v"].shape[0]


def exponents(function: Callable[[Theta], Any], t: Theta) -> Any:
    found = tp.leading(function)(t).exponent
    return found.tolist() if isinstance(found, np.ndarray) else found


# Mixed exponents in one array ------------------------------------------------------------------

MIXED: dict[str, Callable[[Theta], jax.Array]] = {
    "array": lambda t: jnp.array([width(t), 1.0, width(t) ** -0.5]) * second(t),
    "stack": lambda t: jnp.stack([jnp.sum(t["v"] ** 2), second(t), second(t) / jnp.sqrt(width(t))]),
    "concatenate": lambda t: jnp.concatenate(
        [second(t)[None] * width(t), second(t)[None], second(t)[None] * width(t) ** -0.5]
    ),
    "power": lambda t: second(t) * width(t) ** np.array([1.0, 0.0, -0.5]),
    "where": lambda t: (
        second(t)
        * jnp.where(
            jnp.array([True, False, False]), width(t), jnp.array([0.0, 1.0, width(t) ** -0.5])
        )
    ),
    "select": lambda t: (
        second(t)
        * jnp.select(
            [jnp.arange(3) == 0, jnp.arange(3) == 1], [1.0 * width(t), 1.0], width(t) ** -0.5
        )
    ),
    "set": lambda t: second(t) * jnp.ones(3).at[0].set(1.0 * width(t)).at[2].set(width(t) ** -0.5),
    "scan": lambda t: lax.scan(
        lambda c, s: (c, second(t) * s), 0.0, jnp.array([width(t), 1.0, width(t) ** -0.5])
    )[1],
    "vmap": lambda t: jax.vmap(lambda s: second(t) * s)(
        jnp.array([width(t), 1.0, width(t) ** -0.5])
    ),
}


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED.keys())
def test_entries_keep_their_exponents(function: Any, theta: Theta, wide: Theta) -> None:
    """Every entry has its own exponent: none is lost beside a larger one."""
    found = tp.leading(function)(theta)
    assert list(found.exponent) == [1, 0, Fraction(-1, 2)]
    assert_allclose(found.coefficient, 1.0, atol=1e-4)
    scaled = np.asarray(found.coefficient) * 4096.0 ** np.array([1, 0, -0.5])
    assert_allclose(scaled, function(wide), rtol=0.2)


def test_rates_in_an_array(theta: Theta, wide: Theta) -> None:
    """Rates kept in one array, of different exponents, each act at their own order."""

    def run(t: Theta) -> Any:
        rates = jnp.array([1.0 * width(t), 1.0, width(t) ** 0.5])
        gradient = jnp.tanh(t["v"]) / width(t)
        return jnp.stack([jnp.mean((t["v"] + rate * gradient) ** 2) for rate in rates])

    assert_allclose(tp.limit(run)(theta), run(wide), rtol=0.1)
    assert_allclose(tp.limit(run)(theta)[1:], 1.0, atol=1e-4)


def test_batch_of_mixed_exponents_in_a_product(theta: Theta) -> None:
    """A contraction over entries of different order gives the largest, entry by entry."""

    def run(t: Theta) -> Any:
        scales = jnp.array([[1.0 * width(t), 1.0], [0.0, 2.0]])
        return scales @ jnp.array([1.0, 3.0]) * second(t)

    assert exponents(run, theta) == [1, 0]
    assert_allclose(tp.leading(run)(theta).coefficient, [1.0, 6.0], rtol=1e-5)


def test_index_that_is_not_constant_keeps_orders_apart(theta: Theta) -> None:
    """An entry picked by an argument has its own order, not the largest of the array."""

    def run(t: Theta, k: jax.Array) -> Any:
        return second(t) * jnp.array([2.0 * width(t), 3.0, width(t) ** -0.5])[k]

    limit = tp.limit(run)
    error_of(tp.DivergenceError, limit, theta, jnp.asarray(0))
    assert_allclose(limit(theta, jnp.asarray(1)), 3.0, rtol=1e-5)
    assert limit(theta, jnp.asarray(2)) == 0
    assert tp.leading(run)(theta, jnp.asarray(2)).exponent == Fraction(-1, 2)


# Counters --------------------------------------------------------------------------------------

RATES: dict[str, Callable[[Any, int], Any]] = {
    "where": lambda k, n: jnp.where(k == 0, n**1.5 / n**0.5, 0.5 * n),
    "late": lambda k, n: jnp.where(k == 2, 1.0 * n, 1.0),
    "index": lambda k, n: jnp.array([2.0 * n, 1.0, 3.0 * n, n**0.5])[k],
    "cond": lambda k, n: lax.cond(k == 0, lambda: 2.0 * n, lambda: n**0.5),
    "switch": lambda k, n: lax.switch(
        k, [lambda: 2.0 * n, lambda: 1.0, lambda: 3.0 * n, lambda: n**0.5]
    ),
    "modulo": lambda k, n: jnp.where(k % 2 == 0, 1.0 * n, 1.0),
    "decay": lambda k, n: n * 0.5**k / (1 + k),
    "loop": lambda k, n: lax.fori_loop(0, 2, lambda i, c: c * jnp.sqrt(n), 1.0),
    "join": lambda k, n: optax.join_schedules(
        [optax.constant_schedule(2.0 * n), optax.constant_schedule(1.0)], [2]
    )(k),
    "warmup": lambda k, n: optax.warmup_cosine_decay_schedule(0.0, 1.0 * n, 2, 5)(k),
    "piecewise": lambda k, n: optax.piecewise_constant_schedule(1.0 * n, {2: 0.1})(k),
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
def test_counter_in_the_state(rate: Callable[[Any, int], Any], theta: Theta, wide: Theta) -> None:
    """A rate whose power of n depends on the step counter is right at every step."""

    def step(state: tuple[Theta, Any]) -> tuple[tuple[Theta, Any], Any]:
        t, k = state
        v = t["v"] + rate(k, width(t)) * jnp.tanh(t["w"]) / width(t)
        return (t | {"v": v}, k + 1), jnp.mean(v * t["w"])

    def outputs(state: Any, step: Any) -> np.ndarray:
        found = []
        for _ in range(4):
            state, output = step(state)
            found.append(output)
        return np.array(found)

    start = jnp.zeros((), jnp.int32)
    limit = outputs((theta, start), tp.limit(step))
    finite = outputs((wide, start), jax.jit(step))
    # E[v w] and E[tanh(w) w] differ from their limits by O(n^-1/2), the rates by factors of it.
    assert_allclose(limit, finite, atol=0.1, rtol=0.05)


def test_counter_that_makes_one_step_diverge(theta: Theta) -> None:
    """The step at which the rate is too large is the one that diverges."""

    def step(state: tuple[Theta, Any]) -> tuple[tuple[Theta, Any], Any]:
        t, k = state
        v = t["v"] + jnp.where(k == 1, width(t) ** 1.5, width(t)) * jnp.tanh(t["w"]) / width(t)
        return (t | {"v": v}, k + 1), jnp.mean(v * t["w"])

    limit = tp.limit(step)
    state, output = limit((theta, jnp.zeros((), jnp.int32)))
    assert np.isfinite(output)
    error_of(tp.DivergenceError, limit, state)


def test_counter_of_a_compiled_loop_is_right_or_refused(theta: Theta) -> None:
    """In a long loop too the first iteration may have another power of n."""

    def run(t: Theta) -> Any:
        def body(v: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
            rate = jnp.where(k == 0, 2.0 * width(t), 1.0)
            v = v + rate * jnp.tanh(t["w"]) / width(t)
            return v, jnp.mean(v * t["w"])

        return lax.scan(body, t["v"], jnp.arange(20))[1]

    expected = 2 * float(tp.limit(lambda t: jnp.mean(jnp.tanh(t["w"]) * t["w"]))(theta))
    assert_allclose(tp.limit(run)(theta), expected, rtol=1e-4)


# Numbers of the width --------------------------------------------------------------------------


POWERS: dict[str, tuple[Callable[[Theta], Any], float, Any]] = {
    "n**2": (lambda t: jnp.sum(t["v"] ** 2) / width(t) ** 2, 1.0, -1),
    "size": (lambda t: jnp.sum(t["v"] ** 2) / t["W"].size, 1.0, -1),
    "1/(n-1)": (lambda t: jnp.sum(t["v"] ** 2) / (width(t) - 1), 1.0, 0),
    "ddof": (lambda t: jnp.var(t["v"], ddof=1), 1.0, 0),
    "numpy": (lambda t: second(t) / np.sqrt(width(t)), 1.0, Fraction(-1, 2)),
    "jnp": (lambda t: second(t) / jnp.sqrt(width(t)), 1.0, Fraction(-1, 2)),
    "third": (lambda t: second(t) * (3 * width(t)) ** (1 / 3), 3 ** (1 / 3), Fraction(1, 3)),
    "quarter": (lambda t: second(t) * (width(t) // 4), 0.25, 1),
    "array of n": (lambda t: second(t) * jnp.asarray(width(t)), 1.0, 1),
    "python power": (lambda t: second(t) * float(width(t)) ** -1.5, 1.0, Fraction(-3, 2)),
    "two powers": (lambda t: second(t) * (2 * width(t) + 3), 2.0, 1),
    "mean": (lambda t: jnp.mean(t["U"] ** 2) * 6, 6.0, 0),
    "count": (lambda t: (t["v"] ** 2 < 1e9).sum() * 1.0, 1.0, 1),
}


@pytest.mark.parametrize("case", POWERS.values(), ids=POWERS.keys())
def test_number_of_the_width(case: tuple[Callable[[Theta], Any], float, Any], theta: Theta) -> None:
    """Ways to compute with the width give its exact power and coefficient."""
    function, coefficient, exponent = case
    found = tp.leading(function)(theta)
    assert found.exponent == exponent
    assert_allclose(found.coefficient, coefficient, rtol=1e-5)


def test_integers_do_not_overflow_with_other_ratios() -> None:
    """``/ n**2`` and ``/ W.size`` have a limit also when the widths' ratios make traces larger."""
    third = tp.Width("k", ratio=Fraction(1, 3))
    parameters = {
        "W": tp.normal((n, m), std=n**-0.5),
        "u": tp.normal((m,)),
        "k": tp.normal((third,)),
    }
    t = tp.sample(parameters, KEY, width=tp.inf, samples=384)
    found = tp.leading(
        lambda t: jnp.stack(
            [
                jnp.sum(t["u"] ** 2) / t["W"].size,
                jnp.sum(t["u"] ** 2) / t["u"].shape[0] ** 2,
                jnp.sum(t["k"] ** 2) / t["k"].shape[0] ** 2,
            ]
        )
    )(t)
    assert found.exponent == -1
    assert_allclose(found.coefficient, [1.0, 0.5, 3.0], rtol=1e-4)


def test_thresholds_of_the_width_are_found(theta: Theta) -> None:
    """Caps and thresholds are found although no network of the tests is that wide."""

    def cap(t: Theta) -> Any:
        return jnp.sum(t["v"] ** 2) / min(width(t), 10_000)  # here

    def threshold(t: Theta) -> Any:
        return second(t) * (1.0 if width(t) > 2_000_000 else 2.0)  # here

    def logarithm(t: Theta) -> Any:
        return second(t) / np.log2(width(t))  # here

    for function in (cap, threshold, logarithm):
        error = error_of(tp.NoLimitError, tp.limit(function), theta)
        assert f"{__file__}:{line_of(function)}" in str(error)


def test_width_baked_in_as_a_number(theta: Theta) -> None:
    """A number that equals a power of a usual width is a number, and a warning says so."""

    def run(t: Theta) -> Any:
        return jnp.mean((t["v"] @ t["W"] / np.sqrt(1024)) ** 2)  # here

    with pytest.warns(UserWarning, match="1024") as warned:
        found = tp.leading(run)(theta)
    assert found.exponent == 0
    assert_allclose(found.coefficient, 1 / 1024, rtol=1e-4)
    assert f"{__file__}:{line_of(run)}" in str(warned[0].message)


def test_program_that_is_not_deterministic(theta: Theta) -> None:
    """A number that changes from call to call is found and refused with its line."""
    state = np.random.default_rng(0)

    def run(t: Theta) -> Any:
        return second(t) * state.standard_normal()  # here

    error = error_of(tp.NoLimitError, tp.limit(run), theta)
    assert "deterministic" in str(error)
    assert f"{__file__}:{line_of(run)}" in str(error)


# Aspect ratios ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio", [Fraction(1, 2), *(pytest.param(r, marks=pytest.mark.slow) for r in (2, 3))]
)
def test_aspect_ratio(ratio: Any) -> None:
    """Products with a rectangular matrix and its transpose carry the ratio of the widths."""
    k = tp.Width("k", ratio=ratio)
    parameters = {"W": tp.normal((n, k), std=n**-0.5), "v": tp.normal((n,)), "u": tp.normal((k,))}

    def run(t: Theta) -> Any:
        forward = t["v"] @ t["W"]
        back = t["W"] @ jnp.tanh(forward + t["u"])
        again = jnp.tanh(back) @ t["W"]
        return jnp.stack(
            [
                jnp.mean(forward**2),
                jnp.mean(back**2),
                jnp.mean(back * t["v"]),
                jnp.mean(again**2),
                jnp.mean(again * forward),
                t["u"].shape[0] / t["v"].shape[0],
            ]
        )

    finite = dense(run, parameters, 480, 48)
    limit = sampled(run, parameters, tp.inf, 4, 1200)
    assert_same_mean(limit, finite, 4 / 480)
    assert_allclose(limit[:, 5], float(ratio))


def test_widths_of_equal_ratio_are_different_widths() -> None:
    """Two names are two widths even where their ratio is 1."""
    k = tp.Width("k", ratio=1)
    pair = {"v": tp.normal((n,)), "u": tp.normal((k,))}
    t = tp.sample(pair, KEY, width=tp.inf, samples=64)

    def run(t: Theta) -> Any:
        return jnp.mean(t["v"] * t["u"])  # here

    error = error_of(tp.WidthError, tp.limit(run), t)
    assert f"{__file__}:{line_of(run)}" in str(error)


# --- widths that no small number divides


def width_of(t: Theta) -> int:
    return t["v"].shape[0]


UNEVEN = {
    "n % 2": lambda t: second(t) * (1 + width_of(t) % 2),
    "n % 3": lambda t: second(t) * (1 + width_of(t) % 3),
    "a thousandth": lambda t: second(t) * (1 + 1e-3 * (width_of(t) % 2)),
    "(-1)^n": lambda t: second(t) * (-1.0) ** width_of(t),
    "a choice of numbers": lambda t: second(t) * (2 if width_of(t) % 2 else 1),
    "a choice of operations": lambda t: jnp.mean(jnp.tanh(t["v"]) if width_of(t) % 2 else t["v"]),
    "an axis": lambda t: second(t) * jnp.ones(1 + width_of(t) % 5).sum(),
    "common divisors": lambda t: second(t) * np.gcd(width_of(t), 12),
    "half of a head": lambda t: jnp.mean(t["v"].reshape(4, -1) ** 2) * (1 + width_of(t) // 4 % 2),
    "in a loop": lambda t: second(t) * lax.fori_loop(0, 3, lambda i, x: x + width_of(t) % 2, 1),
}


@pytest.mark.parametrize("program", UNEVEN.values(), ids=UNEVEN)
def test_what_depends_on_divisors_of_the_width_is_refused(program: Any, theta: Theta) -> None:
    error = error_of(tp.NoLimitError, tp.limit(program), theta)
    assert "depends on the width" in str(error)
    assert Path(__file__).name in str(error)


ROUNDED = {
    "half as a length": (lambda t: jnp.mean(t["v"][: width_of(t) // 2] ** 2), 1.0),
    "half as a number": (lambda t: second(t) * ((width_of(t) // 2) / width_of(t)), 0.5),
    "the whole of halves": (lambda t: second(t) * (width_of(t) // 2 * 2) / width_of(t), 1.0),
    "heads": (lambda t: jnp.mean(t["v"].reshape(6, -1) ** 2), 1.0),
    "unequal parts": (lambda t: jnp.mean(jnp.array_split(t["v"], 2)[0] ** 2), 1.0),
}


@pytest.mark.parametrize(("program", "limit"), ROUNDED.values(), ids=ROUNDED)
def test_a_width_may_be_divided(program: Any, limit: float) -> None:
    """Rounding a part of a width changes nothing in the limit, and the next order is unknown."""
    t = tp.sample(PARAMETERS, KEY, width=tp.inf, samples=1200)
    assert_allclose(tp.limit(program)(t), limit, atol=0.2)


def test_what_rounding_adds_is_unknown(theta: Theta) -> None:
    """n(1/2 - (n // 2)/n) is 0 for even n and 1/2 for odd n."""

    def gap(t: Theta) -> jax.Array:
        n = width_of(t)
        return n * (second(t) * (n // 2 / n) - second(t) / 2)

    error_of(tp.CancellationError, tp.limit(gap), theta)


def test_a_compiled_function_without_results(theta: Theta) -> None:
    """Such as the derivative of a rectifier in a scan leaves behind."""

    def program(t: Theta) -> jax.Array:
        jax.jit(lambda v: ())(t["v"])
        return second(t)

    assert_allclose(tp.limit(program)(theta), tp.limit(second)(theta))
