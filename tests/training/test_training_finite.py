"""`tp.train` at integer widths: records, seeds, batches, chunks, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.training import finite

N = tp.Width("n")
THETA = {"u": tp.normal((2, N)), "v": tp.normal((N,))}


def predict(theta, x):
    return jnp.tanh(x @ theta["u"]) @ theta["v"] / theta["v"].shape[0]


def step(theta, batch):
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    rate = 0.3 * theta["v"].shape[0]
    return jax.tree.map(lambda p, g: p - rate * g, theta, gradient), {"loss": loss, "y": y}


def batches(steps, size=3):
    generator = np.random.default_rng(0)
    return [
        (generator.normal(size=(size, 2)).astype(np.float32), np.float32(np.arange(size) - 1))
        for _ in range(steps)
    ]


TEST = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32)


def observe(theta):
    return (predict(theta, TEST), theta["v"][0])


def run(key, width=8, steps=4, **options):
    given = {"observe": observe, "progress": False} | options
    return tp.train(step, THETA, batches(steps), width=width, key=key, **given)


def test_records_are_those_of_a_plain_loop(key):
    trajectory = run(key, replicates=2)
    plain_step, plain_observe = jax.jit(step), jax.jit(observe)
    for r, own in enumerate(jax.random.split(key, 2)):
        theta = tp.sample(THETA, own, width=8)
        for t, batch in enumerate(batches(4)):
            seen, first = plain_observe(theta)
            raw = trajectory.replicates
            np.testing.assert_allclose(raw.observations[0][r, t], seen, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(raw.observations[1][r, t], first, rtol=1e-4)
            theta, out = plain_step(theta, batch)
            np.testing.assert_allclose(raw.outputs["loss"][r, t], out["loss"], rtol=1e-4)
            np.testing.assert_array_equal(raw.outputs["y"][r, t], out["y"])
        last = plain_observe(theta)[0]
        np.testing.assert_allclose(raw.observations[0][r, 4], last, rtol=1e-4, atol=1e-6)
    # The state is that of the last replicate.
    np.testing.assert_allclose(trajectory.state["u"], theta["u"], rtol=1e-3, atol=1e-5)
    assert trajectory.outputs["y"].shape == (4, 3)
    assert trajectory.observations[0].shape == (5, 2)
    assert trajectory.replicates.outputs["loss"].dtype == np.float32
    assert trajectory.width == 8


def test_statistics(key):
    trajectory = run(key, replicates=5)
    raw = trajectory.replicates.outputs["loss"].astype(float)
    np.testing.assert_allclose(trajectory.outputs["loss"], raw.mean(0))
    error = raw.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(trajectory.stderr.outputs["loss"], error)
    low, high = trajectory.interval(0.95)
    t = 2.7764451  # of Student's distribution with 4 degrees of freedom, from a table
    np.testing.assert_allclose(high.outputs["loss"] - low.outputs["loss"], 2 * t * error, rtol=1e-6)
    assert trajectory.exponents.outputs == {"loss": 0, "y": 0}
    with pytest.raises(ValueError, match="level has to be between 0 and 1"):
        trajectory.interval(95)


def test_one_replicate_has_no_error(key):
    trajectory = run(key)
    assert np.isnan(trajectory.stderr.outputs["loss"]).all()
    assert np.isnan(trajectory.interval()[0].observations[0]).all()
    assert np.isfinite(trajectory.outputs["loss"]).all()


def test_deterministic_in_the_key(key):
    once, again, other = run(key), run(key), run(jax.random.key(1))
    np.testing.assert_array_equal(once.outputs["loss"], again.outputs["loss"])
    assert (once.outputs["loss"] != other.outputs["loss"]).any()


def test_chunks_change_nothing(key, monkeypatch):
    together = run(key, replicates=5)
    monkeypatch.setattr(finite, "_CHUNK_BYTES", 2 * 4 * 4 * 3 * 8)  # two networks of 96 bytes
    apart = run(key, replicates=5)
    np.testing.assert_allclose(
        together.replicates.outputs["loss"], apart.replicates.outputs["loss"], rtol=1e-5
    )


def test_init_adds_optimizer_state_without_copies_being_donated_twice(key):
    def momentum(state, batch):
        theta, velocity, average = state
        new, out = step(theta, batch)
        velocity = jax.tree.map(lambda v, a, b: 0.9 * v + a - b, velocity, new, theta)
        theta = jax.tree.map(jnp.add, theta, velocity)
        average = jax.tree.map(lambda a, t: 0.5 * (a + t), average, theta)
        return (theta, velocity, average), out

    trajectory = tp.train(
        momentum, THETA, batches(3), width=8, key=key, progress=False,
        init=lambda theta: (theta, jax.tree.map(jnp.zeros_like, theta), theta),
        observe=lambda state: state[0]["v"],
    )  # fmt: skip
    start = tp.sample(THETA, jax.random.split(key, 1)[0], width=8)
    # Observations are copies: later steps that reuse the memory must not change them.
    np.testing.assert_array_equal(trajectory.observations[0], start["v"])
    first = step(start, batches(1)[0])[0]["v"]
    np.testing.assert_allclose(trajectory.observations[1], first, rtol=1e-5)


def test_batches_may_be_an_iterator_or_one_array(key):
    listed = batches(4)
    options = {"width": 8, "key": key, "progress": False}
    iterated = tp.train(step, THETA, iter(listed), **options)
    reference = run(key).outputs["loss"]
    np.testing.assert_array_equal(iterated.outputs["loss"], reference)
    rows = tp.train(lambda t, b: (t, b.sum()), THETA, jnp.ones((3, 2)), **options)
    assert rows.outputs.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ((np.ones((3, 2)), np.ones(3)), TypeError, r"write list\(zip\(X, Y\)\)"),
        ([], ValueError, "batches is empty"),
        (np.ones((0, 2)), ValueError, "batches is empty"),
        ({"x": np.ones((3, 2)), "y": np.ones(3)}, TypeError, r"write list\(zip\(X, Y\)\)"),
        (np.float32(1.0), TypeError, "batches="),
        (None, TypeError, "batches=None is of type NoneType"),
        ("abc", TypeError, "batches='abc' is of type str"),
    ],
)
def test_wrong_batches(wrong, error, message, key):
    with pytest.raises(error, match=message):
        tp.train(step, THETA, wrong, width=4, key=key)


@pytest.mark.parametrize("width", ["8", 8.0, None, True])
def test_wrong_width(width, key):
    with pytest.raises(tp.WidthError, match="is not a width"):
        run(key, width=width)


def test_wrong_replicates(key):
    with pytest.raises(ValueError, match="replicates=0 is out of range"):
        run(key, replicates=0)


def test_records_of_changing_shape_are_refused(key):
    unequal = [*batches(2), *batches(1, size=2)]
    with pytest.raises(ValueError, match="is the last batch smaller"):
        tp.train(step, THETA, unequal, width=4, key=key, progress=False)


def test_widths_by_name(key):
    m = tp.Width("m", ratio=2)
    theta = {"w": tp.normal((N, m))}
    shape = lambda theta, _: (theta, jnp.array(theta["w"].shape))
    out = tp.train(shape, theta, [0], width={"n": 3, "m": 5}, key=key, progress=False).outputs
    assert out.tolist() == [[3, 5]]


def test_no_records_are_fine(key):
    trajectory = tp.train(lambda t, b: (t, None), THETA, [0, 1], width=4, key=key, progress=False)
    assert trajectory.outputs is None
    assert trajectory.state["v"].shape == (4,)


def test_compiles_once(key):
    calls = []

    def counted(theta, batch):
        calls.append(1)
        return step(theta, batch)

    tp.train(counted, THETA, batches(5), width=8, key=key, replicates=2, progress=False)
    assert len(calls) == 1


def test_is_silent_unless_someone_looks(key, capsys):
    run(key, progress=True)
    assert capsys.readouterr() == ("", "")
