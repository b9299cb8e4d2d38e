"""`tp.train` at infinite and deferred width: the same records, exponents, replicates and states."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp
from tplimit.training import checkpoint, infinite

N = tp.Width("n")
THETA = {"u": tp.normal((2, N)), "v": tp.full((N,), 0.0)}
X, Y = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32), np.array([1.0, -1.0], np.float32)
BATCHES = [(X, Y)] * 3


def predict(theta, x):
    return x @ theta["u"] @ theta["v"] / theta["v"].shape[0]


def step(theta, batch):
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    rate = 0.3 * theta["v"].shape[0]
    return jax.tree.map(lambda p, g: p - rate * g, theta, gradient), {"loss": loss, "y": y}


def observe(theta):
    n = theta["v"].shape[0]
    return {"f": predict(theta, X), "small": predict(theta, X) / n**0.5}


def run(key, width=tp.inf, **options):
    given = {"samples": 128, "observe": observe, "progress": False} | options
    return tp.train(step, THETA, BATCHES, width=width, key=key, **given)


def exact():
    """The linear mean-field network: K = UᵀU/n, w = Uv/n, q = |v|²/n obey a closed recursion.

    With g = ∂loss/∂f and s = Xᵀg: f = X w and U moves by -rate s vᵀ/n, v by -rate Uᵀs/n.
    """
    k, w, q, fs = np.eye(2), np.zeros(2), 0.0, []
    for _ in range(4):
        fs.append(X @ w)
        s = 0.3 * X.T.astype(float) @ (2 * (X @ w - Y) / 2)
        # U' = U - s vᵀ and v' = v - Uᵀ s, with averages over the width in K, w, q.
        w_next = w - q * s - k @ s + s * (w @ s)
        k_next = k - np.outer(w, s) - np.outer(s, w) + q * np.outer(s, s)
        q = q - 2 * s @ w + s @ k @ s
        k, w = k_next, w_next
    return np.array(fs)


def test_linear_network_is_exact_and_exponents_are_recorded(key):
    trajectory = run(key, replicates=2)
    np.testing.assert_allclose(trajectory.observations["f"], exact(), atol=2e-5)
    assert trajectory.replicates.observations["f"].shape == (2, 4, 2)
    assert trajectory.replicates.outputs["loss"].shape == (2, 3)
    np.testing.assert_array_equal(trajectory.outputs["y"], [Y] * 3)
    assert np.all(trajectory.stderr.observations["f"] < 1e-5)
    # A vanishing quantity has the limit 0, and its order is kept.
    assert not trajectory.observations["small"].any()
    assert np.all(np.asarray(trajectory.exponents.observations["small"]) == Fraction(-1, 2))
    assert np.all(np.asarray(trajectory.exponents.observations["f"]) == 0)


def test_state_and_init(key):
    def with_count(state, batch):
        theta, _ = state
        new, out = step(theta, batch)
        return (new, jax.tree.map(jnp.subtract, new, theta)), out

    trajectory = tp.train(
        with_count, THETA, BATCHES, width=tp.inf, key=key, samples=128, progress=False,
        init=lambda theta: (theta, jax.tree.map(jnp.zeros_like, theta)),
        observe=lambda state: predict(state[0], X),
    )  # fmt: skip
    np.testing.assert_allclose(trajectory.observations, exact(), atol=2e-5)
    f = tp.limit(predict)(trajectory.state[0], X)
    np.testing.assert_allclose(f, trajectory.observations[-1], atol=2e-5)


def test_deterministic_in_the_key(key):
    deferred = tp.Deferred(32)
    once, again, other = run(key, deferred), run(key, deferred), run(jax.random.key(1), deferred)
    np.testing.assert_array_equal(once.observations["f"], again.observations["f"])
    assert (once.observations["f"] != other.observations["f"]).any()
    assert once.width == deferred


def test_a_deferred_network_is_one_function(key):
    """What an observation reveals of a random matrix holds for all later observations."""
    theta = {"w": tp.normal((N, N), std=N**-0.5), "u": tp.normal((N,)), "v": tp.normal((N,))}
    look = lambda t: t["v"] @ (t["w"] @ t["u"])
    stay = lambda t, _: (t, 0.0)
    options = {"width": tp.Deferred(16), "key": key, "progress": False, "observe": look}
    values = tp.train(stay, theta, [0, 1, 2], **options).observations
    assert values[0] != 0
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_divergence_is_an_error(key):
    grows = lambda theta, _: (theta, jnp.sum(theta["u"] ** 2))
    with pytest.raises(tp.DivergenceError):
        tp.train(grows, THETA, [0], width=tp.inf, key=key, samples=256, progress=False)


def test_compare_ends_where_the_theory_says(key):
    comparison = tp.compare(
        step, THETA, BATCHES, widths=[64, 256], seeds=8, key=key, samples=128, replicates=2,
        observe=lambda theta: predict(theta, X), progress=False,
    )  # fmt: skip
    assert set(comparison.finite) == {64, 256}
    assert comparison.limit.width == tp.inf
    np.testing.assert_allclose(comparison.limit.observations, exact(), atol=2e-5)
    # 2 widths of 8 seeds: the slope's error is about 0.2, so this fails by chance in 1e-4 of keys.
    assert abs(comparison.slope + 0.5) < 4 * comparison.slope_stderr
    assert comparison.rms[256] < comparison.rms[64]


# Replicates in one call ------------------------------------------------------------------------


def apart(monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    monkeypatch.setattr(infinite, "_TOGETHER", 1)


@pytest.mark.slow
@pytest.mark.parametrize("width", [tp.inf, pytest.param(tp.Deferred(40), marks=pytest.mark.slow)])
def test_replicates_in_one_call_are_those_one_by_one(key, width, monkeypatch):
    """A hidden matrix, biases and momentum, with stores that grow: the same to round-off."""
    theta = {
        "U": tp.normal((2, N)),
        "W": tp.normal((N, N), std=N**-0.5),
        "b": tp.normal((N,)),
        "v": tp.normal((N,)),
    }

    def f(t, x):
        return jnp.tanh(jnp.tanh(x @ t["U"] + t["b"]) @ t["W"]) @ t["v"] / t["v"].shape[0]

    def momentum(state, batch):
        t, speed, count = state
        g = jax.grad(lambda t: jnp.mean((f(t, batch[0]) - batch[1]) ** 2))(t)
        speed = jax.tree.map(lambda s, d: 0.5 * s + d, speed, g)
        n = t["v"].shape[0]
        rate = jnp.where(count == 0, 0.2, 0.3)
        rates = {"U": rate * n, "W": rate, "b": rate * n, "v": rate * n}
        return ({k: t[k] - rates[k] * speed[k] for k in t}, speed, count + 1), count

    def trained():
        return tp.train(
            momentum, theta, [(X, Y)] * 50, width=width, key=key, samples=128, replicates=3,
            init=lambda t: (t, jax.tree.map(jnp.zeros_like, t), 0),
            observe=lambda state: f(state[0], X), rank_tolerance=0.0,
        )  # fmt: skip

    together = trained()
    apart(monkeypatch)
    single = trained()
    np.testing.assert_allclose(together.observations, single.observations, atol=2e-4)
    np.testing.assert_array_equal(together.outputs, single.outputs)
    last = [tp.limit(f)(run.state[0], X) for run in (together, single)]
    np.testing.assert_allclose(*last, atol=2e-4)
    np.testing.assert_allclose(last[0], together.replicates.observations[-1, -1], atol=2e-4)


def test_replicates_that_decide_differently_are_computed_one_by_one(key):
    """The power of a rate depends on the sign of a random number, another one in each replicate."""
    theta = {"c": tp.normal((1,)), "v": tp.normal((N,))}

    def scaled(t, _):
        n = t["v"].shape[0]
        return t, jnp.mean(t["v"] ** 2) * jnp.where(t["c"][0] > 0, 1.0, n**-0.5)

    result = tp.train(
        scaled, theta, [None], width=tp.inf, key=key, samples=64, replicates=6, progress=False
    )
    values = result.replicates.outputs[:, 0]
    assert set(np.round(values, 3)) == {0.0, 1.0}


def test_a_counter_decides_alike_in_all_replicates(key):
    """In NovoGrad it says in which step a norm is that of the first gradient: known before a run,
    with several replicates in one call as well."""
    optimizer = optax.novograd(0.1)

    def step(state, _):
        theta, inner = state
        root = theta["v"].shape[0] ** 0.5
        loss, g = jax.value_and_grad(lambda t: (jnp.mean(t["v"] ** 2) - 2) ** 2)(theta)
        updates, inner = optimizer.update({"v": g["v"] * root}, inner, theta)
        return (optax.apply_updates(theta, {"v": updates["v"] * root}), inner), loss

    run = tp.train(
        step, {"v": tp.normal((N,))}, [None] * 3, init=lambda t: (t, optimizer.init(t)),
        width=tp.inf, samples=1024, replicates=3, key=key, progress=False,
    )  # fmt: skip
    # |v| grows by the rate at every step: both norms are those of a multiple of v.
    np.testing.assert_allclose(run.outputs[:2], [1, (1.1**2 - 2) ** 2], rtol=1e-3)


def test_a_run_that_fell_back_to_single_replicates_is_resumed(key, tmp_path, monkeypatch):
    """The decision that differs comes at the second step, when there is a checkpoint already."""
    theta = {"c": tp.normal((1,)), "v": tp.normal((N,))}

    def step(t, batch):
        n = t["v"].shape[0]
        power = jnp.where((t["c"][0] > 0) | (batch < 1), 1.0, n**-0.5)
        return t, jnp.mean(t["v"] ** 2) * power

    def run(**how):
        return tp.train(
            step, theta, [0, 1, 1, 1], width=tp.inf, key=key, samples=64, replicates=4,
            progress=False, **how,
        )  # fmt: skip

    class Killed(BaseException): ...

    write, writes = checkpoint._write, []

    def mortal(*args):
        writes.append(args)
        if len(writes) == 9:
            raise Killed
        write(*args)

    monkeypatch.setattr(checkpoint, "_write", mortal)
    with pytest.raises(Killed):
        run(checkpoint=tp.Checkpoint(tmp_path, every=1))
    resumed = run(checkpoint=tp.Checkpoint(tmp_path, every=1))
    np.testing.assert_array_equal(resumed.replicates.outputs, run().replicates.outputs)
    # It went on in the middle: four replicates of four steps and an end are 20 writes.
    assert 9 < len(writes) - 9 < 20


def test_parts_are_alike():
    """A divisor of the number of replicates, within the bound, so that one compilation serves."""
    assert [infinite._together(r, 256) for r in (1, 4, 7, 8, 12, 16)] == [1, 4, 7, 8, 6, 8]
    assert infinite._together(8, 2**14) == 1
