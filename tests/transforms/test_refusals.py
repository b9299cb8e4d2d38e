"""Numbers that are not known, divergence, and arguments that do not fit, are refused by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from oracles.helpers import error_of, line_of
from test_errors import NTK, PARAMETERS, Theta, X, Y, n

import tplimit as tp
from tplimit.transforms.limits import raw, to_leading, to_limit


@pytest.fixture(scope="module")
def theta() -> Theta:
    return tp.sample(PARAMETERS, jax.random.key(0), width=tp.inf, samples=512)


@pytest.fixture(scope="module")
def ntk() -> Theta:
    return tp.sample(NTK, jax.random.key(0), width=tp.inf, samples=512)


# Divergence in the course of training ----------------------------------------------------------


def test_unstable_training_diverges(theta: Theta) -> None:
    """The rate of muP times n makes the second output diverge."""

    def train(t: Theta) -> Any:
        width = t["v"].shape[0]

        def f(t: Theta) -> jax.Array:
            return jnp.tanh(jnp.tanh(X @ t["U"]) @ t["W"]) @ t["v"] / width  # here

        g = jax.grad(lambda t: 0.5 * jnp.mean((f(t) - 1.0) ** 2))(t)
        return f(t | {"v": t["v"] - width**2 * g["v"]})

    error = error_of(tp.DivergenceError, tp.limit(train), theta)
    assert f"{__file__}:{line_of(train)}" in str(error)
    assert "n^1" in str(error)


# What one term does not decide -----------------------------------------------------------------


def one_term(function: Any, convert: Any = to_limit) -> Any:
    """Without the second attempt, with more terms, that `tp.limit` makes."""
    return lambda *args: jax.tree.map(convert, raw(function)(*args))


def ntk_output(t: Theta) -> jax.Array:
    root = t["W"].shape[0] ** 0.5
    h = jnp.tanh(jnp.tanh(X @ t["U"]) @ t["W"] / root)
    return h @ t["v"] / root


def squares(t: Theta) -> jax.Array:
    return 0.5 * jnp.mean((ntk_output(t) - Y) ** 2)


def softmax(t: Theta) -> jax.Array:
    return -jnp.trace(jax.nn.log_softmax(ntk_output(t)))


@pytest.mark.parametrize("convert", [to_limit, to_leading], ids=lambda f: f.__name__)
@pytest.mark.parametrize("loss", [squares, softmax], ids=lambda loss: loss.__name__)
def test_ntk_is_refused(loss: Any, convert: Any, ntk: Theta) -> None:
    """NTK-parameterized outputs and losses give a named error with the line."""
    for function in (ntk_output, loss):
        error = error_of(tp.CancellationError, one_term(function, convert), ntk)
        assert __file__ in str(error) and "terms=" in str(error)
    assert np.isfinite(tp.limit(loss)(ntk))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("loss", [squares, softmax], ids=lambda loss: loss.__name__)
def test_ntk_training_is_refused(loss: Any, steps: int, ntk: Theta) -> None:
    """So do training steps, whatever they end in."""

    def train(t: Theta) -> Any:
        for _ in range(steps):
            t = jax.tree.map(lambda p, g: p - g, t, jax.grad(loss)(t))
        return t, ntk_output(t)

    assert __file__ in str(error_of(tp.CancellationError, one_term(train), ntk))


def test_ntk_training_with_optax_is_refused(ntk: Theta) -> None:
    """The same with the losses of optax, and for the size of an update, which is hidden by f."""

    def loss(t: Theta) -> jax.Array:
        return optax.softmax_cross_entropy(ntk_output(t), jax.nn.one_hot(jnp.arange(2), 2)).mean()

    def moved(t: Theta) -> jax.Array:
        return jnp.sum(jax.grad(squares)(t)["v"] ** 2)

    error_of(tp.CancellationError, one_term(jax.grad(loss)), ntk)
    error_of(tp.CancellationError, one_term(moved), ntk)
    error_of(tp.CancellationError, one_term(moved, to_leading), ntk)


UNKNOWN: dict[str, Callable[[Theta], Any]] = {
    "inverse": lambda t: 1 / t["v"].mean(),
    "its sign": lambda t: t["v"].mean() / jnp.abs(t["v"].mean()),
    "sign": lambda t: jnp.sign(t["v"].mean()),
    "comparison": lambda t: jnp.where(t["v"].mean() > 0, 1.0, -1.0),
    "one entry": lambda t: jnp.where(jnp.stack([t["v"].mean(), 1.0]) > 0, 1.0, -1.0),
    "one entry's sign": lambda t: jnp.sign(jnp.ones(2).at[0].set(t["v"].mean())),
    "through a vector": lambda t: jnp.sign((t["v"].mean() * t["v"] ** 2).mean()),
    "through a query": lambda t: 1 / jnp.mean((t["v"].mean() * t["v"] @ t["W"]) ** 2),
    "argmax": lambda t: jnp.argmax((t["U"] ** 2).mean(-1)),
    "argmax of zeros": lambda t: jnp.argmax(jnp.stack([*t["U"].mean(-1), -1.0])),
    "floor": lambda t: jnp.floor((t["v"] ** 2).mean()),
    "integer": lambda t: (t["v"] ** 2).mean().astype(int),
    "branch": lambda t: lax.cond(t["v"].mean() > 0, lambda: 1.0, lambda: 0.0),
    "cancelled constant": lambda t: 1 / ((jnp.float32(1) + 1 / t["v"].shape[0]) - 1),
    "where it is small": lambda t: (1 / jnp.where(t["v"] > 0, 1.0 * t["v"].shape[0], 1.0)).mean(),
    "dead neurons": lambda t: (1 / (jax.nn.relu(t["v"]) + 1 / t["v"].shape[0])).mean(),
    "saturation": lambda t: jnp.mean(jnp.tanh(t["v"] * (t["v"] @ t["w"]))),
    "bounded": lambda t: 1 / (1 + (t["v"] @ t["w"] / t["v"].shape[0] ** 0.5) ** 2),
    "fluctuation": lambda t: t["v"].sum() / t["v"].shape[0] ** 0.5,
    "cancelled sums": lambda t: (t["v"] + t["v"].shape[0]).sum() - t["v"].shape[0] ** 2,
}


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_number_is_refused(function: Callable[[Theta], Any], theta: Theta) -> None:
    """What depends on a coefficient that vanishes is refused, never read off round-off."""
    assert __file__ in str(error_of(tp.CancellationError, one_term(function), theta))


LEADING: dict[str, Callable[[Theta], Any]] = {
    "mean": lambda t: t["v"].mean(),
    "independent": lambda t: t["v"] @ t["w"],
    "times a vector": lambda t: (t["v"].mean() * t["v"] ** 2).mean(),
    "query": lambda t: t["v"] @ t["W"] @ t["w"],
    "square": lambda t: jnp.mean((t["v"].mean() * t["w"] @ t["W"]) ** 2),
    "set": lambda t: jnp.zeros(1).at[0].set(t["v"].mean()),
    "clipped": lambda t: jnp.clip(t["v"] / t["v"].shape[0], -1, 1).mean(),
}


@pytest.mark.parametrize("function", LEADING.values(), ids=LEADING.keys())
def test_leading_refuses_a_vanishing_coefficient(function: Any, theta: Theta) -> None:
    """``tp.leading`` prints no coefficient that is zero within its sampling error."""
    error_of(tp.CancellationError, one_term(function, to_leading), theta)


# Exact zeros -----------------------------------------------------------------------------------

ZEROS: dict[str, Callable[[Theta], Any]] = {
    "finite": lambda t: (lambda f: f - f)(jnp.mean(t["v"] ** 2)),
    "vector": lambda t: (t["v"] - t["v"]).sum(),
    "query": lambda t: (lambda h: jnp.mean((h - h) ** 2))(t["v"] @ t["W"]),
    "matrix": lambda t: jnp.mean((t["v"] @ (t["W"] - t["W"])) ** 2),
    "in jit": lambda t: jax.jit(lambda a, b: a - b)(t["v"], t["v"]).sum(),
    "product": lambda t: (0.0 * t["v"]).sum(),
    "of a constant": lambda t: jax.grad(lambda v: jnp.float32(2.0))(t["v"]).sum(),
}


@pytest.mark.parametrize("function", ZEROS.values(), ids=ZEROS.keys())
def test_difference_of_a_variable_is_exactly_zero(function: Any, theta: Theta) -> None:
    """``x - x`` is 0, with leading exponent minus infinity."""
    assert np.all(np.asarray(tp.limit(function)(theta)) == 0)
    leading = tp.leading(function)(theta)
    assert np.all(np.asarray(leading.coefficient) == 0)
    assert leading.exponent == -np.inf


# Arguments -------------------------------------------------------------------------------------


def test_declared_but_unsampled_parameters() -> None:
    """A declaration is no value; the error says to sample it."""
    error = error_of(tp.LimitError, tp.limit(lambda t: t["v"].mean()), PARAMETERS)
    assert "tp.sample" in str(error)


def test_undeclared_ratio() -> None:
    """Two widths need a declared ratio; the error gives the code to write."""
    pair = {"v": tp.normal((n,)), "k": tp.normal((tp.Width("k"),))}
    with pytest.raises(tp.WidthError, match=r'tp\.Width\(".", ratio='):
        tp.sample(pair, jax.random.key(0), width=tp.inf, samples=64)
    with pytest.raises(tp.WidthError, match="ratio"):
        tp.sample(pair, jax.random.key(0), width=tp.Deferred(64))
    with pytest.raises(tp.WidthError, match="k"):
        tp.sample(pair, jax.random.key(0), width={"n": 8})


def test_one_width_with_two_ratios() -> None:
    """A width has one ratio."""
    pair = (tp.normal((tp.Width("n", ratio=2),)), tp.normal((tp.Width("n", ratio=3),)))
    with pytest.raises(tp.WidthError, match="two ratios"):
        tp.sample(pair, jax.random.key(0), width=tp.inf, samples=64)


@pytest.mark.parametrize("width", [0, -4, 2.5, "n", None, True], ids=str)
def test_what_is_no_width(width: Any) -> None:
    """Only positive integers, ``{name: integer}``, ``tp.Deferred`` and ``tp.inf`` are widths."""
    with pytest.raises(tp.WidthError):
        tp.sample({"v": tp.normal((n,))}, jax.random.key(0), width=width)


def test_indivisible_width() -> None:
    """Half a width must be a whole number, at every kind of width."""
    half = {"v": tp.normal((n / 2,)), "w": tp.normal((n,))}
    for width in (7, tp.Deferred(7)):
        with pytest.raises(tp.WidthError, match="whole"):
            tp.sample(half, jax.random.key(0), width=width)
    with pytest.raises(tp.WidthError, match="whole"):
        tp.sample(half, jax.random.key(0), width=tp.inf, samples=7)


def test_values_of_different_samples_sizes() -> None:
    """Particles of different number or kind cannot be combined."""
    few, many, deferred = (
        tp.sample({"v": tp.normal((n,))}, jax.random.key(i), **options)
        for i, options in enumerate(
            [
                {"width": tp.inf, "samples": 64},
                {"width": tp.inf, "samples": 128},
                {"width": tp.Deferred(64)},
            ]
        )
    )
    product = tp.limit(lambda a, b: jnp.mean(a["v"] * b["v"]))
    for other in (many, deferred):
        error_of(tp.LimitError, product, few, other)


def test_arguments_that_are_no_arrays(theta: Theta) -> None:
    """Strings, widths and other objects as arguments give a LimitError."""
    for other in ("tanh", n, object()):
        with pytest.raises(tp.LimitError):
            tp.limit(lambda t, x: t["v"].mean())(theta, other)


# Options of sampling -----------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [float("nan"), -1e-3, 1.0, 2.0])
def test_a_rank_tolerance_is_a_share(tolerance: float) -> None:
    """With 1 or NaN no direction would be revealed, and every product be 0."""
    for width in (8, tp.inf, tp.Deferred(8)):
        with pytest.raises(ValueError, match=r"rank_tolerance=.*from 0 \(round-off\) to below 1"):
            tp.sample(
                tp.normal((tp.Width("n"),)),
                jax.random.key(0),
                width=width,
                rank_tolerance=tolerance,
            )


def test_an_unknown_noise_is_refused_at_every_width() -> None:
    for width in (8, tp.inf):
        with pytest.raises(ValueError, match="noise='sobl' is not known"):
            tp.sample(tp.normal((tp.Width("n"),)), jax.random.key(0), width=width, noise="sobl")


def test_a_batch_without_rows_has_no_images() -> None:
    n = tp.Width("n")
    theta = {"U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5)}
    state = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=64)

    def kernel(t: Any, x: Any) -> Any:
        h = jnp.tanh(x @ t["U"]) @ t["W"]
        return h @ h.T / h.shape[-1]

    assert tp.limit(kernel)(state, jnp.zeros((0, 3))).shape == (0, 0)


@pytest.mark.parametrize("width", [8, tp.inf])
def test_keys_and_meshes_of_another_kind_are_named(width):
    declared = tp.normal((n,))
    with pytest.raises(TypeError, match=r"key=0 is no random key: pass jax.random.key\(0\)"):
        tp.sample(declared, 0, width=width)
    with pytest.raises(TypeError, match="key=0 is no random key"):
        tp.train(lambda s, b: (s, b), declared, [1.0], width=width, key=0)
    with pytest.raises(TypeError, match="mesh=4 is no mesh"):
        tp.sample(declared, jax.random.key(0), width=tp.inf, mesh=4)
    assert tp.sample(declared, jax.random.PRNGKey(0), width=8).shape == (8,)
