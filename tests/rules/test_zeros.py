"""Orders of the zeros of vectors, and the share of coordinates that a next term decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp

n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "uvw"}
EPS = 1e-2, 1e-4

ORDERS = {
    "drawn": (lambda t: 3 * t["v"], 1),
    "square": (lambda t: t["v"] ** 2, 2),
    "square of a square": (lambda t: jnp.square(jnp.square(t["v"])), 4),
    "cube": (lambda t: t["v"] ** 3, 3),
    "power": (lambda t: jnp.abs(t["v"]) ** 2.5, 3),
    "power that is no number": (lambda t: jnp.abs(t["v"]) ** (2 + jnp.abs(t["u"])), 8),
    "along an axis": (lambda t: jnp.prod(jnp.stack([t["v"], t["v"]]), 0), 8),
    "product": (lambda t: t["v"] * t["u"], 2),
    "absolute value": (lambda t: jnp.abs(t["v"]), 1),
    "root of a square": (lambda t: jnp.sqrt(t["v"] ** 2), 1),
    "square of a function": (lambda t: jnp.tanh(t["v"]) ** 2, 2),
    "square elsewhere": (lambda t: (t["v"] - 0.5) ** 2, 2),
    "touching": (lambda t: jnp.cos(t["v"]) - 1, 2),
    "smeared": (lambda t: t["v"] ** 2 - t["u"], 1),
    "sign times": (lambda t: jnp.sign(t["v"]) * t["u"], 1),
    "positive times": (lambda t: jax.nn.sigmoid(t["v"]) * t["u"], 2),
    "square of a function that is never 0": (lambda t: (jnp.exp(t["v"]) - 1) ** 2, 2),
    "square of an inverse": (lambda t: (1 / (1 + jnp.exp(t["v"])) - 0.5) ** 2, 2),
    "dead units": (lambda t: jax.nn.relu(t["v"]), 1),
    "of a mask": (lambda t: (t["v"] > 0) * t["u"], 1),
    "smeared dead units": (lambda t: jax.nn.relu(t["v"]) + t["u"], 1),
    "at its least value": (lambda t: jnp.cosh(t["v"]) - 1, 2),
    "over": (lambda t: t["u"] ** 2 / (1 + t["v"] ** 2), 2),
    "moved": (lambda t: jnp.stack([t["v"] ** 2, t["v"] ** 2])[:, :, None].reshape(2, -1)[0], 2),
    "the larger": (lambda t: jnp.maximum(t["v"] ** 2, t["v"] ** 4), 4),
    "chosen": (lambda t: jnp.where(t["u"] > 0, t["v"] ** 2, t["w"]), 2),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_zeros(name, terms):
    """A share eps^(1/order) of the coordinates is below eps: at least as many as there are."""
    function, order = ORDERS[name]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    value = tp.limit(function)(theta)._value
    assert value.terms[0].parity.marginal.order == order
    drawn = {k: jax.random.normal(jax.random.key(i), (2**21,)) for i, k in enumerate("uvw")}
    size = np.abs(np.asarray(function(drawn)))
    shares = [np.mean((size > 0) & (size < eps)) for eps in EPS]
    measured = np.log(shares[0] / shares[1]) / np.log(EPS[0] / EPS[1])
    # From 8 on nothing is claimed.
    assert measured > 1 / order - 0.05 or order == 8


def width(t):
    return t["v"].shape[0]


SHARES = {
    "sign of a square": lambda t: jnp.mean(jnp.sign(width(t) ** 0.5 * t["v"] ** 2 + t["w"])),
    "comparison": lambda t: 2 * jnp.mean(width(t) ** 0.5 * t["v"] ** 2 > t["w"]) - 1,
    "square elsewhere": lambda t: jnp.mean(jnp.sign(width(t) ** 0.5 * (t["v"] - 1) ** 2 + t["w"])),
    "touching": lambda t: -jnp.mean(jnp.sign(width(t) ** 0.5 * (jnp.cos(t["v"]) - 1) + t["w"])),
    "never 0 less a number": lambda t: jnp.mean(
        jnp.sign(width(t) ** 0.5 * (jnp.exp(t["v"]) - 1) ** 2 + t["w"])
    ),
    "index": lambda t: (
        1 - jnp.mean(jnp.argmax(jnp.stack([width(t) ** 0.5 * t["v"] ** 2, t["w"]]), 0))
    ),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", SHARES)
def test_share_at_a_square_is_not_taken_for_a_smaller_one(name, terms):
    """It is n^(-1/4), as networks have it, where a bounded density would give n^(-1/2)."""
    function = SHARES[name]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    # Single precision loses a few coordinates at the zero.
    assert tp.limit(function)(theta) == pytest.approx(1, abs=3e-3)
    with pytest.raises(tp.LimitError, match=r"of the rest only|not known"):
        tp.limit(lambda t: width(t) ** 0.25 * (function(t) - 1))(theta)
    missing = []
    for size in (2**10, 2**18):
        networks = [tp.sample(DECLARED, jax.random.key(k), width=size) for k in range(8)]
        missing.append(np.mean([1 - function(network) for network in networks]))
    assert np.log(missing[0] / missing[1]) / np.log(2**8) == pytest.approx(0.25, abs=0.03)


def test_share_at_a_bounded_density():
    """|v| sqrt(n) + w has another sign on a share n^(-1/2): times n^(1/4) that is nothing."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024)

    def function(t):
        signs = jnp.sign(width(t) ** 0.5 * jnp.abs(t["v"]) + t["w"])
        return width(t) ** 0.25 * (jnp.mean(signs) - 1)

    assert tp.limit(function)(theta) == 0


AWAY = {
    "softsign": lambda t: jax.nn.soft_sign(t["v"]),
    "rational": lambda t: t["v"] / (1 + t["w"] ** 2),
    "inverse": lambda t: t["v"] * (1 + jnp.abs(t["w"])) ** -1,
    "swish": lambda t: jax.nn.silu(t["v"]),
    "square": lambda t: t["v"] / (1 + jax.lax.square(t["w"])),
    "three": lambda t: t["v"] / (0.5 + 0.1 * t["w"] ** 2 + jax.nn.relu(t["u"])),
    "larger": lambda t: t["v"] / jnp.maximum(t["w"], 0.1),
    "root": lambda t: t["v"] / jnp.sqrt(0.1 + t["w"] ** 2 + t["u"] ** 2),
}
NEAR = {
    "inverse": lambda t: 1 / t["w"],
    "less a number": lambda t: t["v"] / (t["w"] ** 2 - 1),
    "of a difference": lambda t: t["v"] / (jnp.exp(t["w"]) - 1),
    "power": lambda t: jnp.abs(t["w"]) ** -0.5,
    "poles": lambda t: jnp.tan(t["w"]),
    "of no sign": lambda t: t["v"] / (1 + t["u"] ** 2 / t["w"]),
    "less than a number": lambda t: t["v"] / (1 + jnp.minimum(t["w"] ** 2, -3.0)),
    "chosen below 0": lambda t: t["v"] / (1 + jnp.where(t["u"] > 0, t["w"] ** 2, -3.0)),
    "a negative quotient": lambda t: t["v"] / (1 + t["w"] ** 2 / -2.0),
    "double exponential": lambda t: jnp.exp(t["w"] ** 2),
}


@pytest.mark.parametrize(("programs", "heavy"), [(AWAY, False), (NEAR, True)])
def test_tails(programs, heavy):
    """Quotients by what is away from 0 have all moments that the numerators have."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256)
    for function in programs.values():
        assert tp.limit(function)(theta)._value.terms[0].parity.marginal.heavy == heavy
