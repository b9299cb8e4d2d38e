"""Power laws around a reference width, and mean field with corrected initialisation.

G-DS: Golikov, arXiv 2006.06574. G-GT: Golikov, arXiv 2003.05884.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings

REFERENCE = 32
MODEL = tp.mlp(1, inputs=5, activation="leaky_relu")
X = np.random.default_rng(0).normal(size=(6, 5))
Y = np.sign(X[:, 0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def phi(z):
    return np.where(z > 0, z, 0.01 * z)


def ordinary(w, a, factor, rates, steps, keep_initial=0.0):
    """Gradient descent on the logistic loss, written out: f = Σ_r a_r φ(w_r·x).

    `a` is multiplied by `factor` before training; `rates` are those of input and output weights.
    """
    initial = phi(X @ w) @ a * keep_initial
    a, seen = a * factor, []
    for _ in range(steps + 1):
        h = X @ w
        f = phi(h) @ a + initial
        seen.append(f)
        chi = -Y / (1 + np.exp(Y * f)) / len(Y)
        grad_a = phi(h).T @ chi
        grad_w = X.T @ (chi[:, None] * np.where(h > 0, 1, 0.01) * a)
        a, w = a - rates[1] * grad_a, w - rates[0] * grad_w
    return np.array(seen)


def trajectory(p, theta, steps=3, lr=0.3):
    predict, step, state = p.predict(MODEL), p.step(MODEL, "logistic", lr), theta
    seen = [predict(state, X)]
    for _ in range(steps):
        state, _ = step(state, (X, Y))
        seen.append(predict(state, X))
    return np.array(seen)


@pytest.mark.parametrize(
    ("p", "q_sigma", "q_a", "q_w"),
    [
        (scalings.golikov(-1, 1), -1, 1, 1),
        (scalings.golikov(-0.5, 0), -0.5, 0, 0),
        (scalings.sym_default, -0.5, 0.5, 0.5),
        (scalings.intermediate(0.75), -0.75, 0.5, 0.5),
        (scalings.golikov(-0.5, q_a=1, q_w=0), -0.5, 1, 0),
        (scalings.golikov(-0.66, 0.5), -0.66, 0.5, 0.5),
    ],
    ids=["MF", "NTK", "sym-default", "intermediate", "default", "triangle"],
)
def test_realisation_in_an_ordinary_network(p, q_sigma, q_a, q_w):
    """Default initialisation at width d; output weights times ρ^(q_σ + 1/2); the table of rates."""
    p, d, lr = p(reference=REFERENCE), 128, 0.3
    rho = d / REFERENCE
    theta = tp.sample(p.theta(MODEL), jax.random.key(0), width=d)
    w, a = np.array(theta["W1"]), np.array(theta["W2"]) * rho**-0.5  # a of default scale d^-1/2
    rates = lr * rho**q_w, lr * rho ** (q_a + 2 * q_sigma)
    expected = ordinary(w, a, rho ** (q_sigma + 0.5), rates, 3)
    np.testing.assert_allclose(trajectory(p, theta), expected, rtol=1e-9, atol=1e-12)


def test_initial_laws_are_those_of_the_reference_network():
    p = scalings.golikov(-1, 1, reference=16)
    theta = tp.sample(p.theta(MODEL), jax.random.key(1), width=20000)
    for name, fan_in in (("W1", 5), ("W2", 16)):
        assert abs(float(jnp.std(theta[name])) * fan_in**0.5 - 1) < 0.03
    deep = scalings.sym_default(reference=25).factors("std", tp.mlp(3, inputs=4))
    np.testing.assert_allclose(deep, [1 / 2, 1 / 5, 1 / 5, 1 / 5])
    assert scalings.sym_default.reference == scalings.ic_mean_field.reference == 128


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nothing_depends_on_the_exponents_at_the_reference_width(depth):
    model = tp.mlp(depth, inputs=5, activation="leaky_relu")
    every = [
        scalings.golikov(-1, 1), scalings.golikov(-0.5, 0), scalings.sym_default,
        scalings.intermediate(0.8), scalings.ic_mean_field, scalings.golikov(0, -0.5, q_v=3),
    ]  # fmt: skip
    runs = []
    for p in every:
        p = p(reference=REFERENCE)
        state = tp.sample(p.theta(model), jax.random.key(2), width=REFERENCE)
        for _ in range(3):
            state, _ = p.step(model, "logistic", 0.3)(state, (X, Y))
        runs.append(np.asarray(p.predict(model)(state, X)))
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_rates_of_hidden_matrices():
    """ΔV = -η ρ^(q_v + q_σ) ∇_V loss for effective matrices; MF is naive-IP, NTK has ρ^-1."""
    for q_sigma, q_v, rate in ((-1, 1, 0), (-0.5, -0.5, -1)):
        p = scalings.golikov(q_sigma, q_v)
        a, c = (p.exponents(which, 2)[1] for which in ("a", "c"))
        assert -2 * a - c == rate
    naive, mean_field = scalings.naive_ip, scalings.golikov(-1, 1)
    assert mean_field.exponents("a", 3) == naive.exponents("a", 3)
    assert mean_field.exponents("c", 3) == naive.exponents("c", 3)
    with pytest.raises(ValueError, match="needs q_tilde, or both q_a and q_w"):
        scalings.golikov(-1, q_a=1)


# IC-MF --------------------------------------------------------------------------------------------


def test_corrected_mean_field_is_the_formula_of_the_source():
    """f = ρ^-1 Σ A^k φ(w^k·x) + (ρ^-1/2 - ρ^-1) Σ A^0 φ(w^0·x), trained at this f."""
    p, d, lr = scalings.ic_mean_field(reference=REFERENCE), 96, 0.3
    rho = d / REFERENCE
    theta = tp.sample(p.theta(MODEL), jax.random.key(3), width=d)
    w, a = np.array(theta["W1"]), np.array(theta["W2"])
    correction = rho**-0.5 - rho**-1
    expected = ordinary(w, a, rho**-1, (lr * rho, lr / rho), 3, keep_initial=correction)
    found = trajectory(p, theta)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # f_0 is the function of the network before its output weights were rescaled.
    np.testing.assert_allclose(found[0], phi(X @ w) @ a * rho**-0.5, rtol=1e-10)
    plain = trajectory(scalings.golikov(-1, 1, reference=REFERENCE), theta)
    assert np.abs(found - plain).max() > 0.05


def test_the_initial_function_stays_in_the_state():
    p = scalings.ic_mean_field(reference=REFERENCE)
    theta = tp.sample(p.theta(MODEL), jax.random.key(4), width=64)
    state, step = theta, jax.jit(p.step(MODEL, "logistic", 0.5, optax.sgd(1.0, momentum=0.9)))
    for _ in range(3):
        state, _ = step(state, (X, Y))
        for name, value in theta.items():
            np.testing.assert_array_equal(state["origin"][name], value)
            assert np.abs(state[name] - value).max() > 1e-3


def test_corrected_mean_field_of_a_deep_network():
    """f_t - f_0 of the uncorrected network of the same weights, plus the default's f_0."""
    model = tp.mlp(2, inputs=5, activation="tanh")
    p = scalings.ic_mean_field(reference=REFERENCE)
    theta = tp.sample(p.theta(model), jax.random.key(5), width=64)
    state, _ = p.step(model, "logistic", 0.5)(theta, (X, Y))
    network = p(initial_a=None).predict(model)
    default = tp.Parameterization(
        (0, 0.5, 0.5), 0, 0, input_scale=1.0, reference=REFERENCE
    ).predict(model)
    expected = network(state, X) - network(theta, X) + default(theta, X)
    np.testing.assert_allclose(p.predict(model)(state, X), expected, rtol=1e-12)


def test_properties_of_the_limits():
    """G-DS, properties: initial logits, kernels and their movement over ρ, at fixed d*."""
    sizes = {}
    for p in (scalings.golikov(-1, 1), scalings.golikov(-0.5, 0), scalings.ic_mean_field):
        for d in (128, 8192):
            q = p(reference=REFERENCE)
            runs = []
            for seed in range(24):
                theta = tp.sample(q.theta(MODEL), jax.random.key(seed), width=d)
                runs.append(trajectory(q, theta, steps=1, lr=1.0))
            f = np.array(runs)
            sizes[p.name, p.initial_a is not None, p.a[1], d] = np.sqrt(
                [np.mean(f[:, 0] ** 2), np.mean((f[:, 1] - f[:, 0]) ** 2)]
            )
    fall = lambda key: sizes[(*key, 8192)] / sizes[(*key, 128)]
    mean_field, ntk = fall(("golikov", False, 1)), fall(("golikov", False, 0.5))
    corrected = fall(("ic_mean_field", True, 1))
    np.testing.assert_allclose(mean_field[0], 1 / 8, rtol=0.25)
    for ratio in (ntk[0], corrected[0], mean_field[1], ntk[1], corrected[1]):
        np.testing.assert_allclose(ratio, 1, atol=0.25)
