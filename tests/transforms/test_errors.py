"""Bad programs give their named error with the user's file and line; nothing guesses a number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles.helpers import error_of, line_of

import tplimit as tp

Theta = dict[str, Any]

n = tp.Width("n")
m = tp.Width("m", ratio=2)
PARAMETERS = {
    "v": tp.normal((n,)),
    "w": tp.normal((n,)),
    "u": tp.normal((m,)),
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
}
NTK = {"U": tp.normal((3, n)), "W": tp.normal((n, n)), "v": tp.normal((n, 2))}
X = jnp.asarray([[1.0, 0.2, -0.3], [0.1, -1.0, 0.5]])
Y = jnp.asarray([[1.0, -1.0], [0.5, 0.0]])

BAD: list[tuple[Callable[[Theta], Any], type[Exception]]] = []


def bad(kind: type[Exception]) -> Callable[[Callable[[Theta], Any]], Callable[[Theta], Any]]:
    """Enter a program with the error it must give; the line is marked with ``# here``."""

    def enter(function: Callable[[Theta], Any]) -> Callable[[Theta], Any]:
        BAD.append((function, kind))
        return function

    return enter


@pytest.fixture(scope="module")
def theta() -> Theta:
    return tp.sample(PARAMETERS, jax.random.key(0), width=tp.inf, samples=512)


@pytest.fixture(scope="module")
def ntk() -> Theta:
    return tp.sample(NTK, jax.random.key(0), width=tp.inf, samples=512)


# Order along a width ---------------------------------------------------------------------------


@bad(tp.NoLimitError)
def sort(t: Theta) -> Any:
    return jnp.sort(t["v"]).mean()  # here


@bad(tp.NoLimitError)
def sort_of_a_nonlinearity(t: Theta) -> Any:
    h = jnp.tanh(t["v"])
    return jnp.sum(
        jnp.sort(h)  # here
    )


@bad(tp.NoLimitError)
def argmax(t: Theta) -> Any:
    return jnp.argmax(t["v"])  # here


@bad(tp.NoLimitError)
def argsort(t: Theta) -> Any:
    return t["v"][jnp.argsort(t["w"])].mean()  # here


@bad(tp.NoLimitError)
def largest_quantile(t: Theta) -> Any:
    return jnp.quantile(t["v"], 1.0)  # here


@bad(tp.NoLimitError)
def maximum(t: Theta) -> Any:
    return jnp.max(t["v"])  # here


@bad(tp.NoLimitError)
def top_k(t: Theta) -> Any:
    return lax.top_k(t["v"], 3)[0]  # here


@bad(tp.NoLimitError)
def first_coordinate(t: Theta) -> Any:
    return t["v"][0]  # here


@bad(tp.NoLimitError)
def last_coordinate(t: Theta) -> Any:
    return t["v"][-1]  # here


@bad(tp.NoLimitError)
def middle_coordinate(t: Theta) -> Any:
    return t["v"][t["v"].shape[0] // 2]  # here


@bad(tp.NoLimitError)
def first_coordinate_of_vectors(t: Theta) -> Any:
    return t["U"][:, 0]  # here


@bad(tp.NoLimitError)
def coordinate_at_an_index(t: Theta) -> Any:
    return t["v"][jnp.asarray([3, 1])]  # here


@bad(tp.NoLimitError)
def row_of_a_matrix(t: Theta) -> Any:
    return jnp.mean(t["W"][0] ** 2)  # here


@bad(tp.NoLimitError)
def diagonal(t: Theta) -> Any:
    return jnp.diag(t["W"]).sum()  # here


@bad(tp.NoLimitError)
def trace(t: Theta) -> Any:
    return jnp.trace(t["W"])  # here


@bad(tp.NoLimitError)
def all_but_one(t: Theta) -> Any:
    return t["v"][1:].mean()  # here


@bad(tp.NoLimitError)
def every_other(t: Theta) -> Any:
    return t["v"][::2].mean()  # here


@bad(tp.NoLimitError)
def roll(t: Theta) -> Any:
    return jnp.mean(jnp.roll(t["v"], 1) * t["v"])  # here


@bad(tp.NoLimitError)
def flip(t: Theta) -> Any:
    return jnp.mean(t["v"][::-1] * t["v"])  # here


@bad(tp.NoLimitError)
def cumsum(t: Theta) -> Any:
    return jnp.cumsum(t["v"]).mean()  # here


@bad(tp.NoLimitError)
def cumprod(t: Theta) -> Any:
    return jnp.cumprod(t["v"]).mean()  # here


@bad(tp.NoLimitError)
def positions(t: Theta) -> Any:
    return jnp.mean(jnp.arange(t["v"].shape[0]) * t["v"])  # here


@bad(tp.NoLimitError)
def positions_in_numpy(t: Theta) -> Any:
    return jnp.mean(np.arange(t["v"].shape[0]) * t["v"])  # here


@bad(tp.NoLimitError)
def identity_matrix(t: Theta) -> Any:
    return t["v"] @ jnp.eye(t["v"].shape[0]) @ t["v"]  # here


@bad(tp.NoLimitError)
def one_coordinate_set(t: Theta) -> Any:
    return t["v"].at[0].set(0.0).mean()  # here


@bad(tp.UnsupportedOperationError)
def fourier_transform(t: Theta) -> Any:
    return jnp.abs(jnp.fft.fft(t["v"])).mean()  # here


@bad(tp.NoLimitError)
def loop_over_neurons(t: Theta) -> Any:
    return lax.scan(lambda c, x: (c + x, None), 0.0, t["v"])[0]  # here


@bad(tp.NoLimitError)
def as_many_iterations_as_neurons(t: Theta) -> Any:
    return lax.fori_loop(0, t["v"].shape[0], lambda i, c: c + 1.0, 0.0)  # here


@bad(tp.UnsupportedOperationError)
def matrix_drawn_inside(t: Theta) -> Any:
    return (jax.random.normal(jax.random.key(0), t["W"].shape) @ t["v"]).mean()  # here


# Shapes ----------------------------------------------------------------------------------------


@bad(tp.NoLimitError)
def width_in_pairs(t: Theta) -> Any:
    return t["v"].reshape(-1, 2)[:, 0].mean()  # here


@bad(tp.NoLimitError)
def ravelled_matrix(t: Theta) -> Any:
    return t["W"].ravel().mean()  # here


@bad(tp.NoLimitError)
def repeated_coordinates(t: Theta) -> Any:
    return jnp.repeat(t["v"], 2).mean()  # here


@bad(tp.WidthError)
def two_widths_added(t: Theta) -> Any:
    return (t["v"] + t["u"]).mean()  # here


@bad(tp.WidthError)
def two_widths_multiplied(t: Theta) -> Any:
    return t["v"] @ t["u"]  # here


@bad(tp.WidthError)
def width_against_finite_axis(t: Theta) -> Any:
    return jnp.mean(t["v"] * jnp.ones(7))  # here


@bad(tp.WidthError)
def wrong_orientation(t: Theta) -> Any:
    return jnp.mean(X @ t["W"])  # here


# Matrices --------------------------------------------------------------------------------------


@bad(tp.UnsupportedOperationError)
def product_of_matrices(t: Theta) -> Any:
    return jnp.mean((t["v"] @ (t["W"] @ t["W"])) ** 2)  # here


@bad(tp.UnsupportedOperationError)
def nonlinearity_of_a_matrix(t: Theta) -> Any:
    return jnp.mean((t["v"] @ jnp.tanh(t["W"])) ** 2)  # here


@bad(tp.UnsupportedOperationError)
def sign_of_a_matrix(t: Theta) -> Any:
    return jnp.mean((t["v"] @ jnp.sign(t["W"])) ** 2)  # here


@bad(tp.UnsupportedOperationError)
def comparison_of_a_matrix(t: Theta) -> Any:
    return jnp.mean(t["W"] > 0)  # here


@bad(tp.UnsupportedOperationError)
def function_of_a_matrix(t: Theta) -> Any:
    return jnp.sum(jnp.tanh(t["W"]))  # here


@bad(tp.UnsupportedOperationError)
def all_pairs_of_neurons(t: Theta) -> Any:
    return jnp.mean(jnp.maximum(t["v"][:, None], t["w"][None, :]))  # here


@bad(tp.NoLimitError)
def singular_values(t: Theta) -> Any:
    return jnp.linalg.svd(t["W"], compute_uv=False).mean()  # here


@bad(tp.NoLimitError)
def linear_system_with_a_width(t: Theta) -> Any:
    return jnp.mean(jnp.linalg.solve(t["W"], t["v"]))  # here


# Dependence on the width -----------------------------------------------------------------------


@bad(tp.NoLimitError)
def logarithm_of_the_width(t: Theta) -> Any:
    return jnp.mean(t["v"] ** 2) * np.log(t["v"].shape[0])  # here


@bad(tp.NoLimitError)
def logarithm_of_the_width_in_jax(t: Theta) -> Any:
    return jnp.mean(t["v"] ** 2) * jnp.log(t["v"].shape[0])  # here


@bad(tp.NoLimitError)
def capped_width(t: Theta) -> Any:
    return jnp.sum(t["v"] ** 2) / min(t["v"].shape[0], 10_000)  # here


@bad(tp.NoLimitError)
def branch_on_the_width(t: Theta) -> Any:
    h = jnp.tanh(t["v"])
    if h.shape[0] > 10_000:
        h = jnp.sin(h)  # here
    return h.mean()


@bad(tp.NoLimitError)
def depth_by_the_width(t: Theta) -> Any:
    h = t["v"]
    for _ in range(int(np.log10(h.shape[0]))):
        h = jnp.tanh(h)  # here
    return h.mean()


@bad(tp.NoLimitError)
def key_from_the_width(t: Theta) -> Any:
    key = jax.random.fold_in(jax.random.key(0), t["v"].shape[0])  # here
    return jax.random.normal(key) + jnp.mean(t["v"] ** 2)


@bad(tp.UnsupportedOperationError)
def while_loop_over_vectors(t: Theta) -> Any:
    h = lax.while_loop(lambda h: jnp.mean(h**2) > 0.1, lambda h: h / 2, t["v"])  # here
    return jnp.mean(h**2)


@bad(tp.DivergenceError)
def standard_readout(t: Theta) -> Any:
    return t["v"] @ t["v"]  # here


@bad(tp.DivergenceError)
def standard_preactivations(t: Theta) -> Any:
    root = t["v"].shape[0] ** 0.5
    return jnp.mean((root * t["v"] @ t["W"]) ** 2)  # here


@bad(tp.NoLimitError)
def exponential_of_what_diverges(t: Theta) -> Any:
    return jnp.mean(jnp.exp(t["v"] * t["v"].shape[0] ** 0.5))  # here


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[0].__name__)
def test_error_names_the_line(case: tuple[Callable[[Theta], Any], type], theta: Theta) -> None:
    """Each bad program gives its class of error, whose text has the user's file and line."""
    function, kind = case
    error = error_of(kind, tp.limit(function), theta)
    assert f"at: {__file__}:{line_of(function)} ({function.__name__}" in str(error)
    assert isinstance(error, tp.LimitError)


@pytest.mark.parametrize("case", BAD[:3], ids=lambda case: case[0].__name__)
def test_error_inside_jit_names_the_line(case: Any, theta: Theta) -> None:
    """The line is the user's, not that of a jit, checkpoint or vmap around it."""
    function, kind = case
    for wrap in (jax.jit, jax.checkpoint):
        assert f"{__file__}:{line_of(function)}" in str(
            error_of(kind, tp.limit(wrap(function)), theta)
        )


def test_error_of_a_deferred_network_names_the_line() -> None:
    """The same at a deferred width."""
    theta = tp.sample(PARAMETERS, jax.random.key(0), width=tp.Deferred(64))
    error = error_of(tp.NoLimitError, tp.limit(sort), theta)
    assert f"{__file__}:{line_of(sort)}" in str(error)


def test_equal_programs_have_lines_of_their_own(theta: Theta) -> None:
    """A program that was read and refused before is refused at the line where it stands now."""

    def again(t: Theta) -> Any:
        return jnp.sort(t["v"]).mean()  # here

    for function in (sort, again, sort):
        error = error_of(tp.NoLimitError, tp.limit(function), theta)
        assert f"{__file__}:{line_of(function)}" in str(error)
