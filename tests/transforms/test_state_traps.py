"""The traps of random state: keys, opaque leaves, stores that are shared or forked."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from oracles.helpers import error_of

import tplimit as tp

Theta = dict[str, Any]

n = tp.Width("n")
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


def second(t: Theta) -> jax.Array:
    """A mean whose limit is 1."""
    return jnp.mean(t["v"] ** 2)


# Keys ------------------------------------------------------------------------------------------


def _pairs(a: Theta, b: Theta) -> jax.Array:
    x, y = a["v"] @ a["W"], b["v"] @ b["W"]
    return jnp.stack([jnp.mean(a["v"] * b["v"]), jnp.mean(x * y), jnp.mean(x**2), jnp.mean(y**2)])


def test_equal_keys_give_equal_draws(theta: Theta) -> None:
    """Two samples with one key are one sample; where they meet, they are equal or refused."""
    again = tp.sample(PARAMETERS, KEY, width=tp.inf, samples=1024)
    single = tp.limit(lambda t: jnp.mean(jnp.tanh(t["v"] @ t["W"]) ** 2))
    assert single(theta) == single(again)
    try:
        found = tp.limit(_pairs)(theta, again)
    except tp.LimitError as error:
        assert "key" in str(error)
    else:
        assert_allclose(found, 1.0, atol=1e-3)


def test_different_keys_give_independent_draws(theta: Theta) -> None:
    """Two independent samples can be combined in one program."""
    other = tp.sample(PARAMETERS, jax.random.key(1), width=tp.inf, samples=1024)
    assert_allclose(tp.limit(_pairs)(theta, other), [0, 0, 1, 1], atol=0.15)

    def both(a: Theta, b: Theta) -> Any:
        h = jnp.tanh(jnp.tanh(a["v"] @ a["W"]) @ b["W"])
        return jnp.stack([jnp.mean(h**2), jnp.mean((b["W"] @ h) * jnp.tanh(a["v"] @ a["W"]))])

    finite = [
        both(*(tp.sample(PARAMETERS, jax.random.key(s), width=1024) for s in (2 * i, 2 * i + 1)))
        for i in range(4)
    ]
    assert_allclose(tp.limit(both)(theta, other), np.mean(finite, 0), atol=0.04)


def test_keys_in_programs(theta: Theta) -> None:
    """Finite random numbers are drawn as usual, from a key inside or an argument."""
    key = jax.random.key(3)

    def run(t: Theta, key: jax.Array) -> Any:
        inside = jax.random.normal(jax.random.fold_in(jax.random.key(1), 2), (2,))
        order = jax.random.permutation(jax.random.split(key)[0], 4)
        return jnp.concatenate([inside, order, jax.random.uniform(key, (2,))]) * second(t)

    expected = run({"v": jnp.ones(4)}, key)
    assert_allclose(tp.limit(run)(theta, key), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: jax.random.fold_in(jax.random.key(0), n),
        lambda n: jax.random.key(n),
        lambda n: jax.random.PRNGKey(n),
        lambda n: jax.random.split(jax.random.key(0), n // 480)[1],
    ],
    ids=["fold_in", "key", "PRNGKey", "split"],
)
def test_key_of_the_width_is_refused(make: Callable[[int], Any], theta: Theta) -> None:
    """A key that depends on the width would be another one at every width."""
    with pytest.raises(tp.NoLimitError):
        tp.limit(lambda t: jax.random.normal(make(t["v"].shape[0])) + second(t))(theta)


# Opaque leaves ---------------------------------------------------------------------------------

OUTSIDE: dict[str, Callable[[Theta], Any]] = {
    "add": lambda t: t["v"] + 1,
    "subtract from": lambda t: 1 - t["v"],
    "numpy scalar": lambda t: np.float32(2) * t["v"],
    "jax array": lambda t: jnp.ones(3) @ t["U"],
    "matmul": lambda t: t["v"] @ t["W"],
    "negate": lambda t: -t["v"],
    "power": lambda t: t["v"] ** 2,
    "compare": lambda t: t["v"] < 1,
    "index": lambda t: t["v"][0],
    "length": lambda t: len(t["v"]),
    "iterate": lambda t: list(t["v"]),
    "float": lambda t: float(t["v"]),
    "bool": lambda t: bool(t["v"]),
    "numpy": lambda t: np.sin(t["v"]),
    "asarray": lambda t: np.asarray(t["v"]),
    "jnp": lambda t: jnp.sin(t["v"]),
    "jnp.asarray": lambda t: jnp.asarray(t["v"]),
    "jnp.sum": lambda t: jnp.sum(t["v"]),
    "method": lambda t: t["v"].sum(),
    "shape": lambda t: t["v"].shape,
    "transpose": lambda t: t["W"].T,
    "at": lambda t: t["v"].at[0].set(0),
    "jit": lambda t: jax.jit(lambda t: t["v"] * 2)(t),
    "grad": lambda t: jax.grad(lambda t: jnp.sum(t["v"]))(t),
    "vmap": lambda t: jax.vmap(lambda v: v)(t["v"]),
    "tree map": lambda t: jax.tree.map(lambda p: p - 0.1 * p, t),
    "zeros like": lambda t: jax.tree.map(jnp.zeros_like, t),
    "adam": lambda t: optax.adam(1e-3).init(t),
    "momentum": lambda t: optax.sgd(0.1, momentum=0.9).init(t),
    "global norm": lambda t: optax.tree.norm(t),
    "updates": lambda t: optax.apply_updates(t, t),
}


@pytest.mark.parametrize("function", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_opaque_outside_of_limited_functions(function: Any, theta: Theta) -> None:
    """Outside, every use as an array is an error that says to go through ``tp.limit``."""
    with pytest.raises(tp.LimitError, match=r"tp\.limit"):
        function(theta)


def test_what_works_outside(theta: Theta) -> None:
    """Limit values are leaves that can be compared by identity, hashed, printed and copied."""
    v = theta["v"]
    assert v == v
    assert len({v, theta["w"]}) == 2
    assert str(v) == "LimitValue(float32[n])"
    assert not hasattr(v, "shape")
    assert not hasattr(v, "dtype")
    assert len(jax.tree.leaves(theta)) == 4
    assert jax.block_until_ready(theta)["v"] is v
    assert tp.limit(second)(copy.deepcopy(theta)) == tp.limit(second)(theta)


def test_optimizer_state_through_limit(theta: Theta) -> None:
    """``tp.limit(optimizer.init)`` is the way the error names, and it works."""
    state = tp.limit(optax.sgd(0.1, momentum=0.9).init)(theta)
    leaves = jax.tree.leaves(state)
    assert len(leaves) == 4
    total = tp.limit(lambda s: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(s)))(state)
    assert total == 0


# Stores ----------------------------------------------------------------------------------------


def _advance(t: Theta, x: float) -> Theta:
    return t | {"v": t["v"] + jnp.tanh(t["w"] * x) @ t["W"]}


@pytest.mark.slow
def test_old_and_new_values_share_their_matrices(theta: Theta) -> None:
    """A value and its ancestors can meet: the newest state of the matrices is taken."""
    advance = tp.limit(_advance)
    product = tp.limit(lambda a, b: jnp.mean(a["v"] * b["v"]))
    first = advance(theta, 1.0)
    second_ = advance(first, 0.5)
    assert_allclose(product(theta, first), 1.0, atol=1e-3)
    assert_allclose(product(first, theta), product(theta, first), rtol=1e-6)
    assert product(first, second_) > 1.0
    assert_allclose(
        tp.limit(lambda a, b: jnp.mean((a["w"] @ a["W"]) * (b["w"] @ b["W"])))(theta, second_),
        1.0,
        atol=1e-3,
    )


def test_forked_values_are_refused(theta: Theta) -> None:
    """Two descendants of one sample by different calls have no joint law."""
    advance = tp.limit(_advance)
    product = tp.limit(lambda a, b: jnp.mean(a["v"] * b["v"]))
    first, other = advance(theta, 1.0), advance(theta, 2.0)
    assert "different calls" in str(error_of(tp.LimitError, product, first, other))
    cousin = advance(first, 1.0)
    error_of(tp.LimitError, product, cousin, other)
    error_of(tp.LimitError, product, other, cousin)
    joint = tp.limit(lambda t: (_advance(t, 1.0), _advance(t, 2.0)))(theta)
    assert np.isfinite(product(*joint))


def test_calls_forget_what_they_reveal(theta: Theta) -> None:
    """A call without opaque outputs leaves its arguments as they are."""
    reveal = tp.limit(lambda t: jnp.mean(jnp.tanh(t["v"] @ t["W"]) ** 2))
    before = reveal(theta)
    for _ in range(3):
        assert reveal(theta) == before
