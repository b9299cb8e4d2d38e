"""Errors of users' programs: named where the library knows more, else as they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.helpers import line_of

import tplimit as tp

n = tp.Width("n")
THETA = {"U": tp.normal((2, n)), "v": tp.normal((n,), std=1 / n)}
X = jnp.asarray([[1.0, -0.5], [0.4, 1.2]])
WIDTHS = (8, tp.Deferred(16), tp.inf)


def step(theta: Any, batch: Any) -> Any:
    return theta, (jnp.tanh(X @ theta["U"]) @ theta["v"]).sum()


def sample(theta: Any = THETA, width: Any = tp.inf, **options: Any) -> Any:
    return tp.sample(theta, jax.random.key(0), width=width, **{"samples": 64} | options)


def train(**options: Any) -> Any:
    given = {"step": step, "theta": THETA, "batches": [0, 1], "width": tp.inf, "samples": 64}
    return tp.train(**given | {"key": jax.random.key(0), "progress": False} | options)


# What functions of the user's return -------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            {"a": [1.0, "x"]},
            r"output\[1\]\['a'\]\[1\] of .*\.py:\d+\) is 'x', of type",
        ),
        (np.array(["a"]), r"output\[1\] of .* is an array of shape \(1,\) and dtype <U1"),
        (object(), r"output\[1\] of .* is <object"),
        (jax.random.key(0), r"output of .* is a random key.*jax.random.key_data"),
    ],
    ids=["str", "array of str", "object", "key"],
)
def test_outputs_are_arrays(width, output, text):
    with pytest.raises(TypeError, match=text):
        train(step=lambda theta, batch: (theta, output), width=width)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_observations_are_arrays(width):
    look = lambda theta: {"h": ("x", theta["v"].sum())}
    with pytest.raises(TypeError, match=r"\['h'\]\[0\] of .*\.py:\d+\) is 'x'"):
        train(step=step, observe=look, width=width)


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(16)], ids=str)
def test_a_record_with_a_width_is_named(width):
    look = lambda theta: {"h": [theta["v"].sum(), 2 * theta["v"]]}
    line = look.__code__.co_firstlineno
    with pytest.raises(tp.WidthError) as caught:
        train(step=step, observe=look, width=width)
    text = str(caught.value)
    assert "output['h'][1] of" in text
    assert "has a width, LimitValue(float32[n])" in text
    assert f"at: {__file__}:{line}" in text
    with pytest.raises(tp.WidthError, match=r"output\['U'\] of .* has a width"):
        train(step=lambda theta, batch: (theta, theta), width=width)
    # At finite width it is an array as any other.
    assert train(step=step, observe=look, width=8).observations["h"][1].shape == (3, 8)


def complex_constant(theta: Any) -> Any:
    return jnp.abs((theta["v"] * 1j).sum())


def complex_data(theta: Any) -> Any:
    return jnp.abs((theta["v"] * jnp.exp(1j * X[0, 0])).sum())


def transform_of_features(theta: Any) -> Any:
    return jnp.abs(jnp.fft.fft(X @ theta["U"] @ theta["v"])).sum()


def complex_average(theta: Any) -> Any:
    return jnp.abs(theta["v"].mean() / theta["v"].shape[0] * (1 + 2j))


@pytest.mark.parametrize(
    "program", [complex_constant, complex_data, transform_of_features, complex_average]
)
def test_complex_numbers_that_depend_on_a_width_are_named(program):
    with pytest.raises(tp.LimitError, match=r"[Cc]omplex") as caught:
        tp.limit(program)(sample())
    assert f"{__file__}:" in str(caught.value)


def test_complex_numbers_apart_from_widths_are_computed():
    """Features from a Fourier transform of the data, for instance."""
    f = lambda t, x: jnp.mean(t["v"]) + jnp.abs(jnp.fft.fft(x)).sum()
    np.testing.assert_allclose(tp.limit(f)(sample(), X[0]), np.abs(np.fft.fft(X[0])).sum())
    with pytest.raises(tp.LimitError, match=r"[Cc]omplex"):
        tp.limit(lambda t, c: jnp.abs((t["v"] * c).sum()))(sample(), 1j)


# What is raised at a trial width -----------------------------------------------------------------


class ShapeError(Exception):
    """As a library of modules may define one, apart from JAX's."""


def module(theta: Any) -> Any:
    """Declares a weight of 64 rows, as a module that was initialised at width 64."""
    if theta["v"].shape != (64,):
        raise ShapeError(f"expected shape (64,) but got shape {theta['v'].shape}")
    return theta["v"].mean()


def checked(theta: Any) -> Any:
    assert theta["v"].shape[0] == 64, f"{theta['v'].shape[0]} rows"
    return theta["v"].mean()


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(16)], ids=str)
@pytest.mark.parametrize(("program", "kind"), [(module, ShapeError), (checked, AssertionError)])
def test_a_shape_error_of_any_library_is_quoted(width, program, kind):
    with pytest.raises(tp.WidthError, match=rf"{kind.__name__} at a trial width: .*\d+") as caught:
        tp.limit(program)(sample(width=width))
    assert isinstance(caught.value.__cause__, kind)
    assert f"at: {__file__}:" in str(caught.value)


def missing_argument(theta: Any) -> Any:
    return step(theta)


def missing_name(theta: Any) -> Any:
    return theta["v"].mean() + undefined


def missing_key(theta: Any) -> Any:
    return theta["w5760"].mean()


def own_error(theta: Any) -> Any:
    raise ShapeError("only 3 layers at address 0x5760")


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (missing_argument, TypeError),
        (missing_name, NameError),
        (missing_key, KeyError),
        (own_error, ShapeError),
    ],
)
def test_other_errors_of_the_users_come_out_as_they_are(program, kind):
    with pytest.raises(kind) as caught:
        tp.limit(program)(sample())
    assert not isinstance(caught.value, tp.LimitError)


# Programs that ended in errors of the library's own ----------------------------------------------

MATRIX = {"W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,)), "u": tp.normal((n,))}


def second_moment(matrix: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jnp.mean((matrix(t) @ (t["u"] + 1)) ** 2)


def centralised(t: Any) -> Any:
    gradient = {"W": t["v"][:, None] * t["u"] / t["v"].shape[0]}
    return optax.centralize().update(gradient, optax.EmptyState())[0]["W"]


MATRICES: dict[str, tuple[Callable[[Any], Any], float]] = {
    "columns": (lambda t: t["W"] - t["W"].mean(0), 2.0),
    "rows": (lambda t: t["W"] - t["W"].mean(1, keepdims=True), 1.0),
    "number": (lambda t: t["W"] - t["W"].mean(), 2.0),
    "added": (lambda t: t["W"] + (1 + t["v"][:, None]) / t["v"].shape[0], 4.0),
    "taken from": (lambda t: t["v"] / t["v"].shape[0] - t["W"], 2.0),
    "optax.centralize": (centralised, 1.0),
}


@pytest.mark.parametrize("terms", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_vectors_and_numbers_are_added_to_matrices(terms):
    """Each against its value by hand: E[(W (u + 1))²] = E[(u + 1)²] = 2, for instance."""
    programs = {name: second_moment(matrix) for name, (matrix, _) in MATRICES.items()}
    theta = sample(theta=MATRIX, samples=2**9, terms=terms)
    found = tp.limit(lambda t: {name: f(t) for name, f in programs.items()})(theta)
    for name, (_, exact) in MATRICES.items():
        assert float(found[name]) == pytest.approx(exact, rel=2e-2), name


@pytest.mark.parametrize(
    "program",
    [
        lambda t: jnp.where(t["v"] > 0, t["W"], 0.0).mean(),
        lambda t: jnp.maximum(t["W"], t["v"]).mean(),
    ],
    ids=["where", "maximum"],
)
def test_functions_of_a_gaussian_matrix_are_refused_by_name(program):
    with pytest.raises(tp.UnsupportedOperationError, match="of a matrix with a Gaussian part"):
        tp.limit(program)(sample(theta=MATRIX))


def test_integers_that_follow_the_width_stay_integers_at_a_true_one():
    """As in `jnp.eye(n)`, which counts rows."""
    sizes = lambda t: (jnp.zeros((), int) + t["v"].shape[0]) * jnp.mean(t["v"] ** 0)
    assert float(tp.limit(sizes)(sample(width=tp.Deferred(16)))) == 16


def levels(theta: Any) -> Any:
    """Entries of orders n^0 and n^-1."""
    size = jnp.mean(theta["v"] ** 2)
    return jnp.stack([size, size / theta["v"].shape[0]])


@pytest.mark.parametrize(
    ("program", "places"),
    [
        (lambda t: jnp.pad(levels(t), 1), ([1], [2])),
        (lambda t: jnp.diag(levels(t)), ([0, 0], [1, 1])),
        (lambda t: jnp.pad(levels(t), 1, constant_values=0.0)[::-1], ([2], [1])),
    ],
    ids=["pad", "diag", "reversed"],
)
def test_entries_of_several_orders_are_padded(program, places):
    found = tp.leading(program)(sample(theta=MATRIX, samples=256))
    for place, order in zip(places, (0, -1), strict=True):
        assert found.exponent[tuple(place)] == order
        assert found.coefficient[tuple(place)] == pytest.approx(1, rel=1e-3)
    others = np.ones(found.exponent.shape, bool)
    for place in places:
        others[tuple(place)] = False
    assert not np.any(np.asarray(found.coefficient)[others])


def test_padding_of_another_order():
    padded = lambda t: jnp.pad(levels(t)[1:], 1, constant_values=2.0)
    found = tp.leading(padded)(sample(theta=MATRIX, samples=256))
    assert found.exponent.tolist() == [0, -1, 0]
    np.testing.assert_allclose(found.coefficient, [2, 1, 2], rtol=1e-3)


def clipped(x: Any, t: Any) -> Any:
    small = x[0] / t["v"].shape[0]
    larger = jnp.where(x > small, x, small)
    return jnp.where(larger > 0, small, x)


def without_nan(x: Any, t: Any) -> Any:
    return jnp.nan_to_num(jnp.stack([x[0], x[1] / t["v"].shape[0]]))


@pytest.mark.parametrize(
    ("program", "exact"), [(clipped, [1.0, 1.0]), (without_nan, [1.0, 2.0])], ids=["where", "nan"]
)
def test_choices_that_hang_on_choices(program, exact):
    """Which power a value has follows from a predicate that follows from another."""
    width = 10**4
    finite = program(jnp.asarray([1.0, 2.0]), {"v": jnp.ones(width)})
    found = tp.leading(program)(jnp.asarray([1.0, 2.0]), sample())
    np.testing.assert_allclose(found.coefficient, exact)
    powers = np.broadcast_to(np.asarray(found.exponent, float), (2,))
    np.testing.assert_allclose(found.coefficient * width**powers, finite, rtol=1e-5)


# Where an error happens -------------------------------------------------------------------------


def step_of_lion(theta: Any) -> Any:
    optimizer = optax.lion(0.1)
    # A penalty in the loss goes through the signs.
    gradient = jax.grad(lambda t: jnp.tanh(t["W"] @ t["v"]) @ t["v"] + jnp.sum(t["W"] ** 2))(theta)
    updates, _ = optimizer.update(gradient, optimizer.init(theta), theta)  # here
    return jnp.mean((optax.apply_updates(theta, updates)["W"] @ theta["v"]) ** 2)


def norm_of_a_library(theta: Any) -> Any:
    return optax.safe_norm(theta["W"], 0.0)  # here


@pytest.mark.parametrize("program", [step_of_lion, norm_of_a_library])
def test_inside_of_a_library_the_line_that_calls_it_is_named(program):
    declared = {"W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}
    with pytest.raises(tp.LimitError) as caught:
        tp.limit(program)(sample(declared))
    place = caught.value.location
    assert (place.file, place.line) == (__file__, line_of(program))
    assert place.function == program.__name__
    assert place.within.startswith("optax")
    assert f"within {place.within}" in str(caught.value)
