"""The neural signature kernel: closed forms, networks of finite width, and the limit itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import iv

import tplimit as tp
from tplimit.kernels import signature

STEPS = 40
TIMES = np.linspace(0, 1, STEPS + 1)
#: Two smooth paths in the plane.
X = np.stack([np.sin(2 * TIMES), TIMES**2], axis=1)
Y = np.stack([np.cos(3 * TIMES), TIMES + 0.3 * np.sin(5 * TIMES)], axis=1)
SIGMAS = {"sigma_a": 1.2, "sigma_b": 0.5, "sigma_0": 0.8}
RELU = {"activation": "relu", **SIGMAS}
ALARM = 1e-4


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_linear_paths_have_a_bessel_function():
    """I_0(2 sqrt(1.3)) within 0.2 % on 400 x 400, and an error that halves with the step."""
    errors = {}
    for n in (100, 200, 400, 800):
        line = np.linspace(0, 1, n + 1)[:, None]
        errors[n] = float(signature(line, 1.3 * line)) / iv(0, 2 * 1.3**0.5) - 1
    assert iv(0, 2 * 1.3**0.5) == pytest.approx(2.7888, abs=1e-4)
    assert abs(errors[400]) < 2e-3
    for n in (100, 200, 400):
        assert 1.95 < errors[n] / errors[2 * n] < 2.05


def test_the_identity_is_the_signature_kernel():
    """Its iterated integrals: K of the concatenation of a path and its reverse is 1, by Chen."""
    back_and_forth = np.concatenate([X, X[-2::-1]])
    errors = [abs(float(signature(back_and_forth, Y, refine=r)) - 1) for r in (4, 8)]
    assert errors[1] < 0.03 and 1.8 < errors[0] / errors[1] < 2.2
    # To second order in small paths: 1 + <x, y> + terms of the second level.
    small = 1e-3
    k = float(signature(small * X, small * Y)) - 1
    assert k == pytest.approx(small**2 * (X[-1] - X[0]) @ (Y[-1] - Y[0]), rel=1e-5)


def test_refinement_interpolates():
    assert float(signature(X[::8], Y[::8], refine=8, **RELU)) == pytest.approx(
        float(
            signature(
                *(np.stack([np.interp(TIMES, TIMES[::8], c) for c in p[::8].T], 1) for p in (X, Y)),
                **RELU,
            )
        ),
        rel=1e-12,
    )


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "activation", ["relu", *(pytest.param(a, marks=pytest.mark.slow) for a in ("erf", "tanh"))]
)
def test_batches_symmetry_and_grids(activation, shared):
    how = {"activation": activation, "shared": shared, **SIGMAS}
    paths = np.stack([X, Y, X - Y])
    k = signature(paths, **how)
    np.testing.assert_allclose(k, k.T, rtol=1e-12)
    assert np.linalg.eigvalsh(k)[0] > 0
    np.testing.assert_allclose(signature(X, paths, **how), k[0], rtol=1e-12)
    np.testing.assert_allclose(signature(paths, Y, **how), k[:, 1], rtol=1e-12)
    grid = signature(X, Y, grid=True, **how)
    assert grid.shape == ((STEPS + 1,) * (2 if shared else 1))
    assert float(grid.ravel()[0]) == pytest.approx(0.64)
    assert float(grid.ravel()[-1]) == pytest.approx(float(k[0, 1]))
    if shared:  # a shorter path is a part of the grid
        np.testing.assert_allclose(signature(X[:11], Y[:21], **how), grid[10, 20], rtol=1e-12)


def test_moments_are_those_of_the_sources():
    """One step of the scheme, with the formulas for relu and erf written out."""
    a, b, c = 0.9, 0.4, 1.1
    k = b / np.sqrt(a * c)
    expected = {
        "relu": np.sqrt(a * c) / (2 * np.pi) * (np.sqrt(1 - k * k) + (np.pi - np.arccos(k)) * k),
        "erf": 2 / np.pi * np.arcsin(b / np.sqrt((a + 0.5) * (c + 0.5))),
    }
    for name, value in expected.items():
        found, _ = tp.kernels.dual(name).moments(*map(jnp.asarray, (b, a, c)))
        assert float(found) == pytest.approx(value, rel=1e-12)


# --- networks


CASES = [
    pytest.param(True, [64, 128, 256, 512], 24, marks=pytest.mark.slow),
    pytest.param(False, [256, 512, 1024, 2048], 100, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shared", "widths", "seeds"), CASES, ids=["shared", "fresh"])
def test_wide_networks_have_this_covariance(shared, widths, seeds):
    """Readout covariances: within 4 standard errors, and fluctuations that fall as N^-1/2."""
    expected = np.array(signature(np.stack([X, Y]), shared=shared, **RELU))[[0, 0, 1], [0, 1, 1]]
    keys = jax.random.split(jax.random.key(0), seeds)
    spread = []
    for width in widths:
        run = jax.jit(functools.partial(network, width=width, shared=shared))
        found = np.array(jax.lax.map(run, keys), float)
        spread.append(found.std(axis=0, ddof=1))
    z = (found.mean(axis=0) - expected) / (spread[-1] / seeds**0.5)
    assert np.abs(z).max() < 4
    slopes = np.polyfit(np.log(widths), np.log(spread), 1)[0]
    # Of Gaussian fluctuations log(spread) has the standard error 1 / sqrt(2 seeds).
    error = 1 / (2 * seeds) ** 0.5 / np.log(2) / 5**0.5
    assert np.abs(slopes + 0.5).max() < 4 * error


def network(key, width, shared):
    """Covariances (x, x), (x, y), (y, y) over the readout of one network, in float32."""
    matrices, biases, start, fresh = jax.random.split(key, 4)
    dtype = jnp.float32
    A = 1.2 * jax.random.normal(matrices, (2, width, width), dtype) / width**0.5 if shared else None
    b = 0.5 * jax.random.normal(biases, (2, width), dtype)

    def step(state, here):
        key, dx = here  # dx (paths, channels)
        x = jax.nn.relu(state)
        if shared:
            images = jnp.einsum("kij,pj->pki", A, x) + b
        else:
            # A fresh matrix is met by these two vectors only: their images have this law.
            one, two = jax.random.split(key)
            white = jax.random.normal(one, (2, 2, width), dtype)
            root = 1.2 * jnp.linalg.cholesky(x @ x.T / width + 1e-7 * jnp.eye(2, dtype=dtype))
            images = jnp.einsum("pq,qki->pki", root, white)
            images += 0.5 * jax.random.normal(two, (2, width), dtype)
            images *= STEPS**0.5
        return state + jnp.einsum("pki,pk->pi", images, dx), None

    start = jnp.tile(0.8 * jax.random.normal(start, (width,), dtype), (2, 1))
    dx = jnp.diff(jnp.stack([X, Y], axis=1).astype(dtype), axis=0)
    state, _ = jax.lax.scan(step, start, (jax.random.split(fresh, STEPS), dx))
    return (state @ state.T / width)[jnp.array([0, 0, 1]), jnp.array([0, 1, 1])]


@pytest.mark.slow
def test_the_limit_of_the_program_is_the_kernel():
    """The residual network in plain JAX at infinite width; its weights are queried at all steps."""
    n = tp.Width("n")
    theta = {
        "A": [tp.normal((n, n), std=1.2 * n**-0.5) for _ in range(2)],
        "b": [tp.normal((n,), std=0.5) for _ in range(2)],
        "start": tp.normal((n,), std=0.8),
    }

    def covariance(theta):
        states = []
        for path in (X[::8], Y[::8]):
            state = theta["start"]
            for dx in np.diff(path, axis=0):
                x = jax.nn.relu(state)
                state = state + sum(
                    (A @ x + b) * float(d)
                    for A, b, d in zip(theta["A"], theta["b"], dx, strict=True)
                )
            states.append(state)
        return jnp.stack([states[0] @ states[1], states[0] @ states[0]]) / states[0].shape[0]

    limit = tp.limit(covariance)
    found = np.array(
        [limit(tp.sample(theta, jax.random.key(s), width=tp.inf, samples=2**11)) for s in range(6)],
        float,
    )
    expected = np.array([signature(X[::8], Y[::8], **RELU), signature(X[::8], **RELU)])
    z = (found.mean(axis=0) - expected) / (found.std(axis=0, ddof=1) / 6**0.5)
    assert np.abs(z).max() < stats.t.isf(ALARM / 4, 5)
    assert found.std(axis=0).max() < 0.02


# --- derivatives, types, errors


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.slow), False])
def test_derivatives_are_differences(shared):
    """In the paths and in the standard deviations, on the diagonal too."""

    def along(e, other):
        how = RELU | {"sigma_a": 1.2 + e}
        moved = X + e * Y
        return signature(moved, moved if other is None else other, shared=shared, **how)

    for other in (None, Y) if shared else (None,):
        e, along_e = 1e-5, jax.jit(jax.value_and_grad(lambda e, y=other: along(e, y)))
        difference = (along_e(e)[0] - along_e(-e)[0]) / (2 * e)
        assert float(along_e(0.0)[1]) == pytest.approx(float(difference), rel=1e-6)


def test_float32_without_the_flag():
    with jax.enable_x64(False):
        k = signature(X, Y, **RELU)
    assert k.dtype == "f4"
    assert float(k) == pytest.approx(float(signature(X, Y, **RELU)), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": X[:1]}, "two points or more"),
        ({"x": X[:, 0]}, "paths have the axes"),
        ({"x": X * np.nan}, "x has entries that are not finite"),
        ({"y": Y[:, :1]}, "x has 2 channels and y has 1"),
        ({"refine": 0}, "refine=0 is out of range"),
        ({"shared": False, "y": Y[:-1]}, "at the same times"),
        ({"shared": True, "times": TIMES}, "does not depend on the times"),
        ({"shared": False, "times": TIMES[::-1]}, "times have to be increasing"),
        ({"shared": False, "times": TIMES[:3]}, r"times has shape \(3,\)"),
        ({"activation": "tan"}, "unknown activation 'tan'"),
    ],
)
def test_bad_input(change, text):
    with pytest.raises(ValueError, match=text):
        signature(**{"x": X, "y": Y, **RELU} | change)


def test_times_count_only_relatively():
    """Twice the time at the same path: half the increments of the covariance."""
    one = signature(X, Y, shared=False, sigma_0=0.0, sigma_a=0.0, sigma_b=0.5)
    two = signature(X, Y, shared=False, sigma_0=0.0, sigma_a=0.0, sigma_b=0.5, times=2 * TIMES)
    assert float(two) == pytest.approx(float(one) / 2, rel=1e-12)
