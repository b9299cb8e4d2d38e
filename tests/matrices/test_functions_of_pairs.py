"""Functions of pairs of coordinates: entrywise functions of matrices without a Gaussian part.

``sum_b psi(x_a, y_b) z_b / n`` is an average over pairs of particles: exact beside NumPy on dense
matrices of the same particles, beside closed forms, and beside networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    **{name: tp.normal((n,)) for name in "uvwz"},
    "U": tp.normal((3, n)),
    "V": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
}


def sampled(noise="random", samples=512, terms=1, key=0):
    return tp.sample(
        DECLARED, jax.random.key(key), width=tp.inf, samples=samples, noise=noise, terms=terms
    )


def one(t):
    return jnp.outer(t["u"], t["v"])


def three(t):
    return t["U"].T @ t["V"]


FUNCTIONS = {
    "tanh": lambda t: jnp.tanh(three(t)),
    "absolute value": lambda t: jnp.abs(three(t)),
    "sign": lambda t: jnp.sign(three(t)),
    "square": lambda t: three(t) ** 2,
    "root": lambda t: jnp.sqrt(three(t) ** 2 + 0.1),
    "inverse root": lambda t: jax.lax.rsqrt(three(t) ** 2 + 0.1),
    "exponential": lambda t: jnp.exp(-(three(t) ** 2)),
    "logarithm": lambda t: jnp.log(1 + three(t) ** 2),
    "power": lambda t: jnp.abs(three(t)) ** 1.5,
    "maximum": lambda t: jnp.maximum(three(t), one(t)),
    "minimum of a number": lambda t: jnp.minimum(three(t), 0.3),
    "clip": lambda t: jnp.clip(three(t), -0.5, 1.0),
    "chosen": lambda t: jnp.where(three(t) > 0.2, one(t), -three(t)),
    "mask": lambda t: (three(t) > one(t)).astype(float),
    "both": lambda t: ((three(t) > 0) & (one(t) < 0.5)).astype(float),
    "quotient": lambda t: one(t) / (1 + three(t) ** 2),
    "product": lambda t: one(t) * jnp.tanh(three(t)),
    "rows": lambda t: t["w"][:, None] * jnp.tanh(three(t)),
    "columns": lambda t: jnp.tanh(three(t) + t["w"]),
    "over columns": lambda t: jnp.abs(one(t)) / (1 + t["w"] ** 2),
    "sum": lambda t: jnp.tanh(three(t)) + 2 * one(t) - jnp.abs(one(t)),
    "transposed": lambda t: jnp.tanh(three(t)).T,
    "chain": lambda t: jnp.sin(jnp.tanh(three(t)) * one(t)) ** 3,
    "rounded": lambda t: jnp.floor(three(t)),
    "stack": lambda t: jnp.tanh(jnp.stack([three(t), one(t)])).sum(0),
}
USES = {
    "applied": lambda f, t: f(t) @ t["z"] / t["z"].shape[0],
    "from the left": lambda f, t: t["z"] @ f(t) / t["z"].shape[0],
    "rows": lambda f, t: f(t).sum(1) / t["z"].shape[0],
    "columns": lambda f, t: f(t).mean(0),
    "of low rank": lambda f, t: (f(t) @ one(t)) @ t["v"] / t["z"].shape[0] ** 2,
    "twice": lambda f, t: f(t) @ (f(t) @ t["z"]) / t["z"].shape[0] ** 2,
    "product": lambda f, t: (f(t) @ f(t)) @ t["z"] / t["z"].shape[0] ** 2,
    "weighed": lambda f, t: (t["W"] + f(t) / t["z"].shape[0]) @ t["z"] - t["W"] @ t["z"],
}


def particles(value):
    """The leading coefficients of a vector at all particles."""
    return np.asarray(value._value.terms[0].coefficient)


def of_particles(t):
    """The same parameters as arrays: at a finite width that is the number of particles."""
    return {name: jnp.asarray(particles(t[name])) for name in "uvwzUV"} | {
        "W": jnp.zeros((512, 512))
    }


@pytest.mark.parametrize(
    ("name", "use"),
    [(name, "applied") for name in FUNCTIONS]
    + [(name, use) for name in ("tanh", "sign", "rows") for use in USES if use != "applied"],
)
def test_beside_dense_matrices_of_the_same_particles(name, use):
    """Averages over all pairs of particles, to round-off."""
    theta, function = sampled(), FUNCTIONS[name]
    found = particles(tp.limit(lambda t: USES[use](function, t))(theta))
    exact = USES[use](function, of_particles(theta))
    assert_allclose(found, exact, atol=3e-4 * float(jnp.max(jnp.abs(exact))))


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", ["tanh", "sign", "quotient", "chosen", "columns", "square"])
def test_beside_networks(name, terms):
    """``mean(tanh(f(t) z / n)^2)``. 16 networks; a false alarm in 10^5."""

    def function(t):
        return jnp.mean(jnp.tanh(FUNCTIONS[name](t) @ (1 + t["v"]) / t["z"].shape[0]) ** 2)

    limits = [tp.limit(function)(sampled("sobol", 1024, terms, key)) for key in range(8)]
    networks = [
        function(tp.sample(DECLARED, jax.random.key(100 + key), width=512)) for key in range(16)
    ]
    error = np.hypot(np.std(networks) / 4, np.std(limits) / 8**0.5)
    # Networks of width n have a bias of order 1/n.
    assert abs(np.mean(networks) - np.mean(limits)) < 4.5 * error + 8 / 512


def test_closed_form():
    """``E_b[sign(u v_b) v_b] = sign(u) (2/pi)^(1/2)``."""
    theta = sampled("sobol", 4096)
    found = tp.limit(lambda t: jnp.sign(one(t)) @ t["v"] / t["z"].shape[0])(theta)
    assert_allclose(
        particles(found), np.sign(particles(theta["u"])) * (2 / np.pi) ** 0.5, rtol=5e-3
    )


def test_sign_of_rank_one_is_of_rank_one():
    theta = sampled()
    entries = tp.limit(lambda t: jnp.sign(one(t)) @ t["z"] / t["z"].shape[0])(theta)
    vectors = tp.limit(
        lambda t: jnp.outer(jnp.sign(t["u"]), jnp.sign(t["v"])) @ t["z"] / t["z"].shape[0]
    )(theta)
    assert_allclose(particles(entries), particles(vectors), atol=1e-6)


def test_what_is_linear_equals_low_rank():
    theta = sampled()
    entries = tp.limit(lambda t: jnp.maximum(three(t), -1e9) @ t["z"] / t["z"].shape[0])(theta)
    low = tp.limit(lambda t: three(t) @ t["z"] / t["z"].shape[0])(theta)
    assert_allclose(particles(entries), particles(low), atol=2e-6)


def test_deferred_is_exact():
    """At a finite width pairs are all pairs of coordinates."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.Deferred(64))
    found = tp.limit(lambda t: jnp.tanh(three(t)) @ t["z"])(theta)
    dense = {name: jnp.asarray(particles(theta[name])) for name in "UVz"}
    exact = jnp.tanh(dense["U"].T @ dense["V"]) @ dense["z"]
    assert_allclose(particles(found), exact, atol=2e-4)


@pytest.mark.parametrize("function", [jnp.tanh, jnp.abs, jnp.sign, jnp.square])
def test_functions_of_a_gaussian_matrix_are_refused(function):
    def program(t):
        return function(t["W"] + 0.1 * one(t) / t["z"].shape[0]) @ t["z"]  # here

    with pytest.raises(tp.UnsupportedOperationError, match="Gaussian part") as caught:
        tp.limit(program)(sampled())
    assert f"{__file__}:{program.__code__.co_firstlineno + 1}" in str(caught.value)


@pytest.mark.parametrize("function", [jnp.sign, lambda g: g / jnp.sqrt(g**2)])
def test_of_nothing_but_an_accident_no_sign_is_taken(function):
    """A matrix whose factor is zero in truth, within the sampling error."""

    def program(t):
        zero = jnp.mean(jnp.abs(t["u"])) - jnp.mean(jnp.abs(t["v"]))
        return function(zero * one(t)) @ t["z"] / t["z"].shape[0]

    for noise in ("random", "sobol"):
        with pytest.raises(tp.LimitError, match=r"zero within the sampling error|equal within"):
            tp.limit(program)(sampled(noise))


def test_orders():
    """``n^-1/2 sqrt(g^2)`` with ``g`` of order ``n^-1``: a power more in what sums over a width."""

    def program(t):
        size = t["z"].shape[0]
        gradient = one(t) / size
        return jnp.mean((jnp.sqrt(gradient**2) / size**0.5) @ (1 + t["z"]))

    found = tp.leading(program)(sampled("sobol", 2048))
    assert found.exponent == -0.5
    assert abs(found.coefficient - 2 / np.pi) < 5 * found.stderr


# --- exact zeros


def alive(t):
    """Of rank 3; entries of units that are alive in no common row are exactly zero."""
    return jax.nn.relu(t["U"]).T @ jax.nn.relu(t["V"])


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("function", [jnp.sign, jnp.sqrt, lambda g: g / (jnp.sqrt(g**2) + 1e-8)])
def test_entries_that_are_exactly_zero(function, terms):
    """A sign, a root, Adam's quotient: beside NumPy, where a twentieth of the entries is zero."""
    theta = sampled(terms=terms)
    found = tp.limit(lambda t: function(alive(t)) @ t["z"] / t["z"].shape[0])(theta)
    dense = of_particles(theta)
    exact = function(alive(dense)) @ dense["z"] / 512
    assert 0.02 < np.mean(alive(dense) == 0) < 0.5
    assert_allclose(particles(found), exact, atol=3e-4)


def test_zeros_in_bases_are_no_round_off():
    """A matrix that has left a call stands in revealed bases, whose round-off is no value."""
    theta = sampled()

    def kept(t):
        columns = jax.nn.relu(t["V"])
        rows = jax.nn.relu(t["U"])
        return rows.T @ columns, columns @ t["W"].T + rows

    matrix, _ = tp.limit(kept)(theta)
    (part,) = matrix._value.items.item().parts
    assert type(part).__name__ == "ProjectedUpdate"
    dense = of_particles(theta)
    for function in (jnp.sign, lambda g: g / (jnp.sqrt(g**2) + 1e-8)):
        found = tp.limit(lambda t, m, f=function: f(m) @ t["z"] / t["z"].shape[0])(theta, matrix)
        exact = function(alive(dense)) @ dense["z"] / 512
        assert_allclose(particles(found), exact, atol=2e-3)


@pytest.mark.parametrize("below", ["outer product", "function of pairs"])
def test_what_is_below_decides_where_the_leading_part_is_zero(below):
    """``sign(relu(u) v^2 + n^-1/2 w^2 z^2)`` is 1, also where ``u < 0``."""

    def program(t):
        size = t["z"].shape[0]
        small = jnp.outer(t["w"] ** 2, t["z"] ** 2)
        small = small if below == "outer product" else jnp.tanh(small)
        g = jnp.outer(jax.nn.relu(t["u"]), t["v"] ** 2) + size**-0.5 * small
        return jnp.mean(jnp.sum(jnp.sign(g), 1) / size)

    for terms in (1, 2):
        try:
            found = tp.limit(program)(sampled("sobol", 1024, terms))
        except tp.CancellationError:
            continue  # the reason is true: the next term decides
        assert found == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "low rank", "pairs"])
def test_a_case_that_is_not_chosen_leaves_nothing(kind):
    """As in RAdam, whose root is that of a negative number in the first steps."""
    matrices = {
        "gaussian": lambda t: t["W"],
        "low rank": lambda t: one(t) / t["z"].shape[0],
        "pairs": lambda t: jnp.tanh(one(t)) / t["z"].shape[0],
    }

    def program(t, c):
        matrix = matrices[kind](t)
        return jnp.mean((jnp.where(c > 0, jnp.sqrt(c) * matrix, matrix) @ t["v"]) ** 2)

    theta = sampled()
    bare, scaled = (tp.limit(program)(theta, c) for c in (-1.0, 4.0))
    assert_allclose(scaled, 4 * bare, rtol=1e-5)


# --- averages over fewer particles


FEW = 64


def thinned(pair_samples=FEW, samples=512, noise="random", terms=1, key=0):
    return tp.sample(
        DECLARED, jax.random.key(key), width=tp.inf, samples=samples, noise=noise, terms=terms,
        pair_samples=pair_samples,
    )  # fmt: skip


def over_few(theta):
    """The same parameters, of which only the first few columns count."""
    weights = jnp.where(jnp.arange(512) < FEW, 512 / FEW, 0.0)
    return of_particles(theta), weights


#: Functions ``psi`` of the entries, and what averages over few particles give in NumPy.
OVER_FEW = {
    "applied": (
        lambda f, t: f(t) @ t["z"] / t["z"].shape[0],
        lambda a, t, w: a @ (w * t["z"]) / 512,
    ),
    "from the left": (
        lambda f, t: t["z"] @ f(t) / t["z"].shape[0],
        lambda a, t, w: (w * t["z"]) @ a / 512,
    ),
    "twice": (
        lambda f, t: f(t) @ (f(t) @ t["z"]) / t["z"].shape[0] ** 2,
        lambda a, t, w: (a * w) @ ((a * w) @ t["z"]) / 512**2,
    ),
    "there and back": (
        lambda f, t: f(t).T @ (f(t) @ t["z"]) / t["z"].shape[0] ** 2,
        lambda a, t, w: (a.T * w) @ ((a * w) @ t["z"]) / 512**2,
    ),
    "product": (
        lambda f, t: (f(t) @ f(t)) @ t["z"] / t["z"].shape[0] ** 2,
        lambda a, t, w: ((a * w) @ a) @ (w * t["z"]) / 512**2,
    ),
    "gram matrix": (
        lambda f, t: t["z"] @ (f(t) @ f(t).T) / t["z"].shape[0] ** 2,
        lambda a, t, w: ((a * w) @ a.T).T @ (w * t["z"]) / 512**2,
    ),
    "rows": (lambda f, t: f(t).mean(1), lambda a, t, w: a @ w / 512),
    "norm": (
        lambda f, t: jnp.sum(f(t) ** 2) / jnp.float32(t["z"].shape[0]) ** 2,
        lambda a, t, w: jnp.mean(a**2 @ w) / 512,
    ),
}


@pytest.mark.parametrize("use", OVER_FEW)
@pytest.mark.parametrize("name", ["tanh", "over columns", "rows", "chain", "chosen"])
def test_averages_over_few_particles(name, use):
    """Over the first ``K`` of them, from both sides: NumPy with weights, to round-off. (Parts of
    low rank are averaged over all.)"""
    theta, function = thinned(), FUNCTIONS[name]
    of_limit, of_arrays = OVER_FEW[use]
    found = tp.limit(lambda t: of_limit(function, t))(theta)
    found = np.asarray(found) if use == "norm" else particles(found)
    arrays, weights = over_few(theta)
    exact = of_arrays(function(arrays), arrays, weights)
    assert_allclose(found, exact, atol=3e-4 * float(jnp.max(jnp.abs(exact))))


def met(name, t):
    """``mean(x (f(t) y) / n)`` with vectors in the directions of the factors: linear in ``f``."""
    x, y = t["U"][0] + t["u"], t["V"][0] + t["v"]
    return jnp.mean(x * (FUNCTIONS[name](t) @ y) / t["z"].shape[0])


@pytest.mark.parametrize("noise", ["sobol", "random"])
@pytest.mark.parametrize("name", ["tanh", "sign", "quotient"])
def test_thinning_is_unbiased_within_its_bars(name, noise):
    """24 keys beside all pairs of the same particles; a false alarm in 10^4 tests."""
    few, every = (
        [tp.leading(lambda t: met(name, t))(thinned(k, 2048, noise, key=key)) for key in range(24)]
        for k in (512, None)
    )
    gaps = [float(a.coefficient - b.coefficient) for a, b in zip(few, every, strict=True)]
    spread = np.std(gaps, ddof=1)
    assert abs(np.mean(gaps)) < 4 * spread / 24**0.5
    assert np.median([float(one.stderr) for one in few]) > spread / 1.5


def test_thinning_is_for_one_term():
    """Central-limit terms have their joint law with all particles only."""
    with pytest.raises(ValueError, match="pair_samples is for one term"):
        thinned(128, 512, "sobol", 2)
    with pytest.raises(ValueError, match="pair_samples is for one term"):
        tp.train(
            lambda t, _: (t, met("tanh", t)), DECLARED, jnp.zeros(1), width=tp.inf, samples=512,
            pair_samples=128, key=jax.random.key(0), fluctuations=True, progress=False,
        )  # fmt: skip


def test_room_for_thinned_pairs():
    theta = thinned(2**9, 2**14, "sobol")
    mean = tp.limit(lambda t: jnp.mean(jnp.sum(three(t) ** 2, 1) / t["z"].shape[0]))(theta)
    assert abs(mean - 3) < 0.1
    with pytest.raises(tp.RoomError, match="smaller pair_samples"):
        tp.limit(lambda t: jnp.mean(jnp.tanh(three(t)) @ t["v"]))(thinned(2**13, 2**14, "sobol"))


def test_thinned_shares_are_whole():
    """Widths of ratio 1/2 and few particles of many; a number that does not divide is refused."""
    half = tp.Width("half", ratio=0.5)
    declared = {"u": tp.normal((n,)), "v": tp.normal((half,)), "z": tp.normal((half,))}

    def program(t):
        return jnp.mean(t["u"] * (jnp.tanh(jnp.outer(t["u"], t["v"])) @ t["v"]) / len(t["v"]))

    theta = tp.sample(
        declared, jax.random.key(0), width=tp.inf, samples=512, pair_samples=4, noise="random"
    )
    u, v = (particles(theta[name]) for name in "uv")
    exact = np.mean(u * (np.tanh(np.outer(u, v[:2])) @ v[:2]) / 2)
    assert float(tp.limit(program)(theta)) == pytest.approx(exact, rel=1e-4)
    with pytest.raises(ValueError, match="pair_samples=100 does not divide samples=512"):
        thinned(100)
