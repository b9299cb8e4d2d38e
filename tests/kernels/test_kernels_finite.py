"""Kernels against networks of finite width, with tied weights or not."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tplimit.kernels import dual, mlp, rnn

rng = np.random.default_rng(11)
LENGTHS = np.array([7, 9])
W, U, B, V = 1.0, 1.0, 0.3, 1.0


pytestmark = pytest.mark.usefixtures("float64")


def perceptron(name: str, depth: int) -> tuple[Any, Any, Callable[[int], Any], Any]:
    x = rng.normal(size=(3, 5))
    phi = dual(name).function

    def apply(theta: Any, index: Any) -> Any:
        h = jnp.asarray(x)[index]
        for i, (w, b) in enumerate(theta):
            h = 1.2 * w @ (phi(h) if i else h) / jnp.sqrt(w.shape[1]) + 0.2 * b
        return h[0]

    def shapes(n: int) -> Any:
        sizes = [5, *[n] * depth, 1]
        return [((b, a), (b,)) for a, b in itertools.pairwise(sizes)]

    kernel = mlp(depth, name, 1.2, 0.2)(x)
    return apply, jnp.arange(3), shapes, kernel


def recurrent(name: str, output: str) -> tuple[Any, Any, Callable[[int], Any], Any]:
    """Two sequences of 7 and 9 elements, the setting of the published RNN kernels (erf)."""
    x = rng.normal(size=(2, 9, 4))
    phi = dual(name).function

    def apply(theta: Any, index: Any) -> Any:
        w, u, b, v = theta
        n, length = len(b), jnp.asarray(LENGTHS)[index]

        def step(s: Any, now: Any) -> Any:
            s = phi(W * w @ s / jnp.sqrt(n) + U * u @ now / 2 + B * b)
            return s, s

        s = jax.lax.scan(step, jnp.zeros(n), jnp.asarray(x)[index])[1]
        time = jnp.arange(9)
        weights = time == length - 1 if output == "last" else (time < length) / length
        return V * v @ (weights.astype(s.dtype) @ s) / jnp.sqrt(n)

    shapes = lambda n: ((n, n), (n, 4), (n,), (n,))
    kernel = rnn(name, W, U, B, V)(x, lengths1=LENGTHS, output=output)  # type: ignore[arg-type]
    return apply, jnp.arange(2), shapes, kernel


def tangents(
    apply: Any, index: Any, shapes: Any, n: int, seeds: int, readout: bool = False
) -> np.ndarray:
    """Empirical NTKs, (seeds, points, points); of the readout alone they are NNGP kernels."""
    sizes, tree = jax.tree.flatten(shapes(n), is_leaf=lambda s: isinstance(s[0], int))

    def one(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes))
        theta = [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]
        theta = jax.tree.unflatten(tree, theta)
        theta, last = (theta[:-1], theta[-1:]) if readout else (theta[:0], theta)
        gradients = jax.jacrev(lambda t: jax.vmap(lambda i: apply((*theta, *t), i))(index))(last)
        rows = [g.reshape(len(index), -1) for g in jax.tree.leaves(gradients)]
        return sum(g @ g.T for g in rows)

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(n), seeds)))


def outputs(apply: Any, index: Any, shapes: Any, n: int, seeds: int) -> np.ndarray:
    """Initial outputs, (seeds, points)."""
    sizes, tree = jax.tree.flatten(shapes(n), is_leaf=lambda s: isinstance(s[0], int))

    def one(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes))
        theta = [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]
        return jax.vmap(lambda i: apply(jax.tree.unflatten(tree, theta), i))(index)

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(n + 1), seeds)))


CASES = {
    "relu": lambda: perceptron("relu", 3),
    "tanh": lambda: perceptron("tanh", 2),
    "rnn erf last": lambda: recurrent("erf", "last"),
    "rnn erf mean": lambda: recurrent("erf", "mean"),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_converge(case: str, which: str) -> None:
    """RMS distance to the limit falls as the root of the width, 2^6 to 2^12."""
    apply, index, shapes, kernel = CASES[case]()
    limit = np.asarray(getattr(kernel, which))
    widths, distance = 2 ** np.arange(6, 13), []
    for n in widths.tolist():
        # All entries of a network's kernel err together: many networks, where they are cheap.
        seeds = max(48, 16384 // n) if which == "nngp" else max(8, 8192 // n)
        found = tangents(apply, index, shapes, n, seeds, readout=which == "nngp")
        distance.append(np.sqrt(np.mean((found - limit) ** 2)))
    slope = np.polyfit(np.log(widths), np.log(distance), 1)[0]
    assert abs(slope + 0.5) < 0.1, distance
    assert distance[-1] < 0.05 * np.max(limit)


@pytest.mark.parametrize(
    "case",
    ["rnn erf last", *(pytest.param(c, marks=pytest.mark.slow) for c in ("relu", "rnn erf mean"))],
)
def test_covariance_and_mean_tangent(case: str) -> None:
    """At one width, in standard errors: |z| < 5 beside a bias of order 1/n."""
    apply, index, shapes, kernel = CASES[case]()
    n, seeds = 128, 400
    f = outputs(apply, index, shapes, n, 4 * seeds)
    products = f[:, :, None] * f[:, None, :]
    for samples, expected in (
        (products, kernel.nngp),
        (tangents(apply, index, shapes, n, seeds), kernel.ntk),
    ):
        error = samples.std(0) / np.sqrt(len(samples))
        bias = 2 * np.max(np.abs(expected)) / n
        assert (np.abs(samples.mean(0) - expected) < 5 * error + bias).all()


@pytest.mark.slow
def test_every_pair_of_lengths() -> None:
    """Kernels of all prefixes at once, of given lengths, and of sequences that are cut off."""
    x, y = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 4, 3))
    net = rnn("relu", 1.2, 0.8, 0.1)
    everything = net(x, y, output="all")
    assert everything.ntk.shape == (2, 3, 5, 4)
    some = net(x, y, lengths1=np.array([2, 5]), lengths2=np.array([4, 1, 3]))
    for i, t in enumerate((2, 5)):
        for j, r in enumerate((4, 1, 3)[: i + 2]):
            cut = net(x[i : i + 1, :t], y[j : j + 1, :r])
            for name in ("nngp", "ntk"):
                expected = getattr(cut, name)[0, 0]
                assert_allclose(getattr(everything, name)[i, j, t - 1, r - 1], expected, 1e-12)
                assert_allclose(getattr(some, name)[i, j], expected, 1e-12)
    for output in ("last", "mean"):
        own = net(x, output=output)  # type: ignore[arg-type]
        assert_allclose(np.diag(own.nngp), own.var1, 1e-12)
        assert_allclose(own.ntk, own.ntk.T, 1e-12)


def test_one_time_step_is_a_perceptron() -> None:
    x = rng.normal(size=(4, 1, 3))
    one, other = rnn("erf", 5.0, 1.1, 0.2, 1.1)(x), mlp(1, "erf", 1.1, 0.2)(x[:, 0])
    # The output of a perceptron has a bias, that of the recurrent network has none.
    assert_allclose(one.nngp + 0.2**2, other.nngp, 1e-13)
    assert_allclose(one.ntk + 0.2**2, other.ntk, 1e-13)


def test_what_is_beyond_the_length_does_not_matter() -> None:
    x = rng.normal(size=(2, 5, 3))
    padded = x.copy()
    padded[0, 3:] = 100.0
    lengths, net = np.array([3, 5]), rnn("erf")
    for output in ("last", "mean"):
        found = [net(a, lengths1=lengths, output=output) for a in (x, padded)]  # type: ignore
        assert_array_equal(*(k.ntk for k in found))


def test_bad_sequences() -> None:
    x, net = np.ones((2, 5, 3)), rnn("erf")
    with pytest.raises(ValueError, match="number, length, features"):
        net(x[0])
    with pytest.raises(ValueError, match="between 1 and 5"):
        net(x, lengths1=np.array([0, 5]))
    with pytest.raises(ValueError, match="lengths are 2 integers"):
        net(x, lengths1=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="without NaN"):
        net(x * np.nan)
    with pytest.raises(ValueError, match='output is "last"'):
        net(x, output="first")  # type: ignore[arg-type]
