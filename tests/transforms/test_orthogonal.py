"""Orthogonal matrices: deferred Haar matrices beside dense ones, and orthonormal rows.

`O^T O = 1` holds to round-off, whatever is asked in whatever order. At small width the deferred
matrix has the law of a dense one; in the limit programs agree with wide networks, in two terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp

WIDTH = tp.Width("n")
THETA = {
    "O": tp.orthogonal((WIDTH, WIDTH)),
    "E": tp.orthogonal((3, WIDTH)),
    "U": tp.normal((3, WIDTH)),
    "v": tp.normal((WIDTH,)),
    "w": tp.normal((WIDTH,), std=1 / WIDTH),
}
X = jax.random.normal(jax.random.key(5), (4, 3))
Y = jnp.sin(X[:, 0])


def mean_square(x):
    return jnp.mean(x**2, axis=-1)


def there_and_back(t):
    """Queries of both sides of one matrix, of what it has given and of new vectors."""
    O, v = t["O"], jnp.tanh(t["v"])
    y = O @ v
    z = jax.nn.relu(y) @ O
    r = O @ jnp.abs(z)
    return v, y, z, r, O


def identities(t):
    """Pairs of vectors that are the same."""
    v, y, z, r, O = there_and_back(t)
    return [
        (y @ O, v),
        (O @ z, jax.nn.relu(y)),
        (r @ O, jnp.abs(z)),
        (O @ (z + v), jax.nn.relu(y) + y),
    ]  # fmt: skip


def norms(t):
    v, y, z, r, O = there_and_back(t)
    s = O @ jnp.cos(r)
    squares = [mean_square(v), mean_square(y), mean_square(jax.nn.relu(y)), mean_square(z)]
    return jnp.stack([*squares, mean_square(jnp.cos(r)), mean_square(s)])


@pytest.mark.parametrize("terms", [1, 2])
def test_round_off_of_identities_does_not_lead(terms):
    """``O^T O x`` is x in the run alone; with other factors the next terms cancel as they have to:
    ``E (O^T O x - x / 2)^2 = E x^2 / 4``."""
    few = {name: THETA[name] for name in "Ov"}
    theta = tp.sample(few, jax.random.key(1), width=tp.inf, samples=512, terms=terms)
    apart = lambda t, s: mean_square(t["O"].T @ (t["O"] @ t["v"]) - s * t["v"])
    with pytest.raises(tp.CancellationError, match="cancel but for round-off"):
        tp.limit(lambda t: apart(t, 1.0))(theta)
    np.testing.assert_allclose(tp.limit(lambda t: apart(t, 0.5))(theta), 0.25, rtol=1e-3)


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(7), tp.Deferred(64), 64])
def test_inner_products_are_kept(width):
    options = {"samples": 512} if width == tp.inf else {}
    theta = tp.sample(THETA, jax.random.key(1), width=width, **options)
    if width == tp.inf:
        pairs = tp.particles(identities)(theta)
        distances = [np.mean((one - other) ** 2) for one, other in pairs]
    else:
        distances = tp.limit(lambda t: [mean_square(a - b) for a, b in identities(t)])(theta)
    assert np.all(np.asarray(distances) < 1e-9)
    pairs = np.asarray(tp.limit(norms)(theta)).reshape(3, 2)
    np.testing.assert_allclose(pairs[:, 1], pairs[:, 0], rtol=2e-5)


def traces(t):
    """Of small matrices: what distinguishes a Haar matrix from others."""
    O, v = t["O"], t["v"]
    y = O @ v
    z = jnp.tanh(y) @ O
    return jnp.stack([jnp.mean(y * v), mean_square(O @ y * v), jnp.mean(z * v), jnp.mean(y**4),
                      mean_square(jax.nn.relu(z)), jnp.mean((O @ z) * v * y)])  # fmt: skip


def test_law_at_small_width():
    """Deferred and dense, n = 5: means of six numbers and of their squares, within 4.5 standard
    errors (false alarms: 1e-4)."""
    keys = jax.random.split(jax.random.key(2), 6000)
    dense = jax.lax.map(lambda k: traces(tp.sample(THETA, k, width=5)), keys, batch_size=500)
    found = []
    for key in jax.random.split(jax.random.key(3), 1500):
        found.append(tp.limit(traces)(tp.sample(THETA, key, width=tp.Deferred(5))))
    samples = [np.asarray(x, np.float64) for x in (dense, found)]
    for power in (1, 2):
        first, second = (x**power for x in samples)
        error = np.hypot(*(x.std(0, ddof=1) / len(x) ** 0.5 for x in (first, second)))
        assert np.all(np.abs(first.mean(0) - second.mean(0)) < 4.5 * error)


def recurrent(t):
    h, squares = jnp.zeros((4, t["v"].shape[0])), []
    for turn in range(4):
        h = jnp.tanh(h @ t["O"] + X @ t["U"] * (turn + 1) / 3)
        squares.append(mean_square(h))
    return jnp.stack(squares)


def loss(t):
    h = jax.nn.relu(X @ t["U"])
    for _ in range(2):
        h = jnp.tanh(1.5 * h @ t["O"])
    return jnp.mean((h @ t["w"] - Y) ** 2)


def step(t, _):
    n = t["v"].shape[0]
    rates = {"O": 1, "E": 0, "U": n, "v": 0, "w": 1 / n}
    value, grads = jax.value_and_grad(loss)(t)
    return {name: t[name] - 0.5 * rates[name] * grads[name] for name in t}, value


def trained(t):
    losses = []
    for _ in range(3):
        t, value = step(t, None)
        losses.append(value)
    return jnp.stack(losses)


PROGRAMS = {
    "autoencoder": lambda t: mean_square(jax.nn.relu(t["O"] @ t["v"]) @ t["O"]),
    "one direction is kept": lambda t: jnp.mean(
        jnp.tanh(jnp.tanh(t["O"] @ t["v"]) @ t["O"]) * t["v"]
    ),
    "orthonormal rows": lambda t: mean_square(jnp.tanh(X @ t["E"] * t["v"].shape[0] ** 0.5)),
    "recurrent": recurrent,
    "trained": trained,
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_beside_networks(name):
    """Within 5 standard errors of both and a bias of 4/n."""
    program, n = PROGRAMS[name], 128
    found = tp.leading(program)(tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=4096))
    network = jax.jit(lambda key: program(tp.sample(THETA, key, width=n)))
    values = np.asarray([network(key) for key in jax.random.split(jax.random.key(1), 32)])
    error = values.std(0, ddof=1) / 32**0.5
    assert np.all(np.asarray(found.exponent) == 0)
    gap = np.abs(found.coefficient - values.mean(0))
    assert np.all(gap < 5 * np.hypot(found.stderr, error) + 4 / n), (found, values.mean(0), error)


def averages(t):
    v, y, z, r, _ = there_and_back(t)
    return jnp.stack([mean_square(v), mean_square(y), jnp.mean(jax.nn.relu(y)), mean_square(z),
                      jnp.mean(r * y), mean_square(jnp.tanh(r))])  # fmt: skip


def test_fluctuations():
    """Covariance of the second terms over 400 keys and that of 400 networks of width 256: entries
    within 5 standard errors (Wick), which a Gaussian matrix misses: `|O v| = |v|` exactly."""
    keys = jax.random.split(jax.random.key(4), 400)
    network = jax.jit(lambda key: averages(tp.sample(THETA, key, width=256)))
    finite = 256 * np.cov(np.asarray([network(key) for key in keys], np.float64).T)
    theta = {name: THETA[name] for name in ("O", "v")}
    second = []
    for key in keys:
        series = tp.series(averages)(tp.sample(theta, key, width=tp.inf, samples=256, terms=2))
        second.append(series.terms[1][1])
    second = np.asarray(second, np.float64)
    np.testing.assert_allclose(second[:, 1], second[:, 0], atol=1e-4)
    found = np.cov(second.T)
    size = np.sqrt((np.outer(np.diag(finite), np.diag(finite)) + finite**2) / 400)
    assert np.all(np.abs(found - finite) < 5 * 2**0.5 * size)


def test_refused():
    n, m = WIDTH, tp.Width("m", ratio=2)
    for shape in [(n,), (n, m), (n, 2 * n)]:
        with pytest.raises(tp.WidthError, match="orthogonal matrix of shape"):
            tp.orthogonal(shape)
    with pytest.raises(tp.LimitError, match="one term only"):
        tp.sample(THETA, jax.random.key(0), width=tp.inf, terms=2, samples=64)
