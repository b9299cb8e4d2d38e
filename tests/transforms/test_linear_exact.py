"""Deep linear networks are exact to round-off at any number of particles.

In a linear network every vector is a combination of independent Gaussian sources, and every limit
is a second moment of them. With rows of noise that are exactly orthonormal (moment matching, over
initial vectors and all matrices jointly) averages over M particles *are* those second moments, so
that the only error left is round-off, provided the rank tolerance is at round-off too. Nothing
else could come out right by accident: a correction, a covariance or a scale that is wrong by any
amount is seen at the eighth digit.

References (none shares code with the library): the algebra of sources, `oracles.linear`; the
finite representation of the muP limit of one hidden layer (Yang & Hu, arXiv 2011.14522, section
6.1); the closed recursion for one hidden layer and one sample.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear

import tplimit as tp

N = tp.Width("n")
SAMPLES = 512
ROUND_OFF = 1e-24
"""Rank tolerance, in second moment: directions are kept down to 1e-12 of a vector's size."""

RELATIVE = 1e-8
"""Required of everything here; measured 1e-14 to 1e-15."""

Array = np.ndarray
Batch = tuple[Array, Array]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class Run(NamedTuple):
    """`f`: (steps+1, points[, outputs]); `losses`: (steps,)."""

    f: Array
    losses: Array


def predict(theta: dict[str, Any], x: jax.Array) -> jax.Array:
    h = x @ theta["U"] / jnp.sqrt(x.shape[-1])
    for W in theta["W"]:
        h = h @ W
    return h @ theta["v"] / theta["v"].shape[0]


def declared(
    hidden: int, inputs: int, outputs: int | None, stds: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, Any]:
    first, inner, readout = stds
    return {
        "U": tp.normal((inputs, N), std=first),
        "W": [tp.normal((N, N), std=inner * N**-0.5) for _ in range(hidden - 1)],
        "v": tp.normal((N,) if outputs is None else (N, outputs), std=readout),
    }


def stepper(eta: float) -> Callable[[Any, Any], Any]:
    """One step on the first rows of `x`, those that have labels; the others are only observed."""

    def step(theta: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> Any:
        x, y = batch
        n = theta["v"].shape[0]

        def loss(t: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            f = predict(t, x)
            return 0.5 * jnp.mean((f[: len(y)] - y) ** 2), f[len(y) :]

        (value, f), g = jax.value_and_grad(loss, has_aux=True)(theta)
        rates = {"U": eta * n, "W": eta, "v": eta * n}
        new = {
            name: jax.tree.map(lambda p, d, r=rates[name]: p - r * d, theta[name], g[name])
            for name in theta
        }
        return new, (value, f)

    return step


def train(
    theta: dict[str, Any],
    batches: Sequence[Batch],
    points: Array,
    eta: float,
    samples: int = SAMPLES,
    seed: int = 1,
) -> Run:
    """The limit, `batches` in turn, observed at `points` before each step and after the last."""
    limit = tp.limit(stepper(eta))
    state = tp.sample(
        theta, jax.random.key(seed), width=tp.inf, samples=samples, rank_tolerance=ROUND_OFF
    )
    f, losses = [], []
    for x, y in [*batches, batches[-1]]:
        state, (loss, seen) = limit(state, (np.vstack([x, points]), y))
        f.append(seen)
        losses.append(loss)
    return Run(np.array(f), np.array(losses)[:-1])


def data(
    steps: int = 6, sizes: Sequence[int] = (3,), inputs: int = 3, outputs: int | None = None
) -> tuple[list[Batch], Array]:
    """Minibatches that differ from step to step, and points, one of which is trained on."""
    random = np.random.default_rng(5)
    batches = []
    for t in range(steps):
        size = sizes[t % len(sizes)]
        shape = (size,) if outputs is None else (size, outputs)
        batches.append((random.standard_normal((size, inputs)), random.standard_normal(shape)))
    return batches, np.vstack([random.standard_normal((2, inputs)), batches[0][0][:1]])


def assert_exact(run: Run, expected: linear.LinearRun) -> None:
    """Relative to the largest output, at every step and point, and for the losses."""
    scale = np.abs(expected.f).max()
    assert np.abs(expected.f[-1]).max() > 0.01
    assert np.abs(run.f - expected.f).max() < RELATIVE * scale
    assert np.abs(run.losses - expected.losses).max() < RELATIVE * expected.losses.max()


@pytest.mark.parametrize(
    ("hidden", "outputs"),
    [
        (1, None),
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(2, None, marks=pytest.mark.slow),
        pytest.param(4, None, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
    ],
)
def test_minibatches_against_the_algebra_of_sources(hidden: int, outputs: int | None) -> None:
    batches, points = data(outputs=outputs)
    stds = (0.8, 1.1, 1.2)
    run = train(declared(hidden, 3, outputs, stds), batches, points, eta=0.4)
    options = dict(zip(("first_std", "hidden_std", "readout_std"), stds, strict=True))
    expected = linear.deep_linear(hidden, batches, points, eta=0.4, **options)
    assert_exact(run, expected)
    if hidden > 1:
        wrong = linear.deep_linear(hidden, batches, points, eta=0.4, correction=False, **options)
        assert np.abs(run.f - wrong.f).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [2, 4])
def test_batches_of_changing_size(hidden: int) -> None:
    """Sizes 1, 4, 2; 12 steps, so that the stacks of the matrices grow on the way."""
    batches, points = data(steps=12, sizes=(1, 4, 2))
    run = train(declared(hidden, 3, None), batches, points, eta=0.3)
    assert_exact(run, linear.deep_linear(hidden, batches, points, eta=0.3))


@pytest.mark.slow
def test_any_number_of_particles_and_any_seed() -> None:
    batches, points = data(steps=4)
    theta = declared(3, 3, None)
    expected = linear.deep_linear(3, batches, points, eta=0.4)
    for samples, seed in ((128, 1), (128, 2), (1024, 3)):
        assert_exact(train(theta, batches, points, eta=0.4, samples=samples, seed=seed), expected)


@pytest.mark.parametrize("outputs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_one_layer_is_a_finite_network(outputs: int | None) -> None:
    """The muP limit of one hidden linear layer is an ordinary network of d + k units."""
    batches, points = data(outputs=outputs)
    run = train(declared(1, 3, outputs, (0.8, 1.0, 1.2)), batches, points, eta=0.4)
    expected = linear.finite_representation(
        batches, points, eta=0.4, first_std=0.8, readout_std=1.2
    )
    assert_exact(run, expected)


def test_one_layer_and_one_sample_follow_the_closed_recursion() -> None:
    """`f` and `K = E[h^2] + E[v^2]` for 20 steps, golden to 8 decimals at steps 5, 10, 20."""
    eta, gamma, steps = 0.05, 1.0, 20
    x = np.array([[1.0, -1.0, 1.0]])  # |x|^2 = d

    def step(theta: dict[str, Any], x: jax.Array) -> Any:
        n = theta["v"].shape[0]

        def loss(t: dict[str, Any]) -> tuple[jax.Array, Any]:
            h = (x @ t["U"])[0] / jnp.sqrt(x.shape[-1])
            f = jnp.mean(t["v"] * h) / gamma
            kernel = jnp.mean(h**2) + jnp.mean(t["v"] ** 2)
            return 0.5 * (1.0 - f) ** 2, (f, kernel)

        (_, seen), g = jax.value_and_grad(loss, has_aux=True)(theta)
        return jax.tree.map(lambda p, d: p - eta * gamma**2 * n * d, theta, g), seen

    limit = tp.limit(step)
    state = tp.sample(
        {"U": tp.normal((3, N)), "v": tp.normal((N,))},
        jax.random.key(0), width=tp.inf, samples=SAMPLES, rank_tolerance=ROUND_OFF,
    )  # fmt: skip
    seen = []
    for _ in range(steps + 1):
        state, observed = limit(state, x)
        seen.append(observed)
    f, kernel = np.array(seen).T
    expected = linear.two_layer_recursion(eta, gamma, steps)
    np.testing.assert_allclose(f, expected.f, rtol=0, atol=RELATIVE)
    np.testing.assert_allclose(kernel, expected.kernel, rtol=0, atol=RELATIVE)
    for t, (value, size) in linear.TWO_LAYER_GOLDEN[eta, gamma].items():
        assert abs(f[t] - value) < 1e-8
        assert size is not None
        assert abs(kernel[t] - size) < 1e-8
