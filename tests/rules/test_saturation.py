"""Vectors that saturate: what the share of coordinates that do not adds to averages.

Of ``f(n^(1/2) v + w)`` a share ``n^(-1/2)`` of the coordinates is not near the limits of ``f``. The
closed forms are ``p_v(0)`` times an integral over the layer. They are compared within five standard
errors: of a million such comparisons less than one fails by chance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import tplimit as tp
from tplimit.transforms.limits import raw

N = tp.Width("n")
DECLARED = {name: tp.normal((N,)) for name in "vwu"}
DENSITY = 1 / np.sqrt(2 * np.pi)


def root(t: dict[str, Any]) -> Any:
    return jnp.sqrt(t["v"].shape[0])


def inside(t: dict[str, Any], scale: float = 1.0) -> Any:
    return scale * root(t) * t["v"] + t["w"]


def product_of_two() -> float:
    """The integral of <tanh(u + w) tanh(2 u) - 1> over u."""
    noise = stats.norm.expect
    layer = lambda u: noise(lambda w: np.tanh(u + w) * np.tanh(2 * u) - 1)
    return float(integrate.quad(layer, -12, 12)[0])


PROGRAMS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "tanh": (lambda t: jnp.mean(t["w"] * jnp.tanh(inside(t))), 2),
    "sigmoid": (lambda t: jnp.mean(t["w"] * jax.nn.sigmoid(inside(t))), 1),
    "erf": (lambda t: jnp.mean(t["w"] * jax.lax.erf(inside(t))), 2),
    "a square": (lambda t: jnp.mean(jnp.tanh(root(t) * t["v"]) ** 2) - 1, -2),
    "a derivative": (lambda t: jnp.mean(jax.vmap(jax.grad(jnp.tanh))(inside(t))), 2),
    "a sign": (lambda t: jnp.mean(t["w"] * jnp.sign(inside(t))), 2),
    "a gate": (lambda t: jnp.mean(t["w"] * (inside(t) > 0)), 1),
    "a choice": (lambda t: jnp.mean(jnp.where(inside(t) > 0, t["w"], 0.0)), 1),
    "a contraction": (lambda t: t["w"] @ jnp.tanh(inside(t)) / t["v"].shape[0], 2),
    "beside the sign": (
        lambda t: jnp.mean(jnp.sign(t["v"]) * jnp.tanh(root(t) * t["v"])) - 1,
        -2 * np.log(2),
    ),
    "two in one layer": (
        lambda t: jnp.mean(jnp.tanh(inside(t)) * jnp.tanh(2 * root(t) * t["v"])) - 1,
        product_of_two(),
    ),
}


def test_an_outer_product_has_no_layer():
    """What becomes a matrix is known to leading order: <u tanh(..)> <u u> n."""
    program = lambda t: jnp.mean(jnp.outer(jnp.tanh(inside(t)) * t["v"], t["u"]) @ t["u"])
    found = tp.limit(lambda t: program(t) / t["v"].shape[0])(sampled("sobol"))
    assert abs(found - 2 * DENSITY) < 0.02


def sampled(noise: str, seed: int = 0, samples: int = 2**13) -> Any:
    return tp.sample(
        DECLARED, jax.random.key(seed), width=tp.inf, samples=samples, terms=2, noise=noise,
        init_output="zero",
    )  # fmt: skip


def limit_of(program: Callable[[Any], Any], theta: Any) -> Any:
    """The term of order 1 of a number, with its error."""
    value = raw(program)(theta)._value
    (term,) = [term for term in value.terms if term.exponents.max() == 0]
    return term


@pytest.mark.parametrize("noise", ["sobol", "random"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_closed_forms(name: str, noise: str):
    program, layer = PROGRAMS[name]
    out = limit_of(lambda t: root(t) * program(t), sampled(noise))
    assert abs(out.coefficient - DENSITY * layer) < 5 * out.stderr
    assert out.stderr < 0.2


@pytest.mark.parametrize("scale", [0.01, 0.3, 30.0])
def test_a_layer_that_is_thick_or_thin_is_no_wrong_number(scale: float):
    """It is extrapolated from widths at which it is thin."""
    program = lambda t: root(t) * jnp.mean(t["w"] * jnp.tanh(inside(t, scale)))
    out = limit_of(program, sampled("sobol"))
    assert abs(out.coefficient - 2 * DENSITY / scale) < 5 * out.stderr


@pytest.mark.parametrize(
    "program",
    [
        lambda t: jnp.mean(jnp.arctan(inside(t)) ** 2) - (np.pi / 2) ** 2,
        lambda t: jnp.mean(jnp.tanh(root(t) * t["v"] ** 2 + t["w"])) - 1,
    ],
    ids=["a tail whose integral diverges", "a square, which has no density at 0"],
)
def test_what_is_no_power_of_the_width_is_refused(program: Callable[[Any], Any]):
    with pytest.raises(tp.CancellationError, match="of order n\\^"):
        tp.limit(lambda t: root(t) * program(t))(sampled("sobol"))


def test_other_powers_and_double_precision(float64: None):
    """The share is n^(-1/3) where the vector grows like n^(1/3)."""
    third = lambda t: t["v"].shape[0] ** (1 / 3)
    program = lambda t: third(t) * jnp.mean(t["w"] * jnp.tanh(third(t) * t["v"] + t["w"]))
    out = limit_of(program, sampled("sobol"))
    assert out.coefficient.dtype == np.float64
    assert abs(out.coefficient - 2 * DENSITY) < 5 * out.stderr < 0.5
