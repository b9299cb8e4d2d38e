"""States of all replicates, at the end and at chosen steps; questions to them; `keep=`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import bits
from scipy import stats

import tplimit as tp
from tplimit.training import checkpoint, infinite, snapshots

N = tp.Width("n")
THETA = {
    "u": tp.normal((2, N)),
    "w": tp.normal((N, N), std=N**-0.5),
    "v": tp.normal((N,)),
}
X = jnp.asarray([[1.0, 0.5], [-0.2, 0.7]])
BATCHES = [(X * (1 + t / 10), jnp.asarray([1.0, -1.0])) for t in range(3)]
KEY = jax.random.key(1)


def predict(theta, x=X):
    hidden = jnp.tanh(jnp.tanh(x @ theta["u"]) @ theta["w"])
    return hidden @ theta["v"] / theta["v"].shape[0]


def step(theta, batch):
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    n = theta["v"].shape[0]
    rates = {"u": 0.3 * n, "w": 0.3, "v": 0.3 * n}
    return jax.tree.map(lambda p, r, d: p - r * d, theta, rates, gradient), loss


def run(width, **options):
    given = {"key": KEY, "samples": 128, "replicates": 3, "observe": predict, "progress": False}
    return tp.train(step, THETA, BATCHES, width=width, **given | options)


WIDTHS = pytest.mark.parametrize("width", [tp.inf, tp.Deferred(32), 8], ids=str)


# --- by hand


def test_states_of_networks_are_those_trained_by_hand():
    trained = run(8, keep=[0, 2, -1])
    assert list(trained.snapshots) == [0, 2, 3]
    for replicate, key in enumerate(jax.random.split(KEY, 3)):
        theta = tp.sample(THETA, key, width=8)
        for t in range(4):
            if t in trained.snapshots:
                for name, exact in theta.items():
                    found = trained.snapshots[t][replicate][name]
                    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
            if t < 3:
                theta, _ = step(theta, BATCHES[t])
    np.testing.assert_array_equal(trained.states[-1]["u"], trained.state["u"])


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
def test_states_at_infinite_width_are_those_trained_by_hand(together, monkeypatch):
    if not together:
        monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    trained = run(tp.inf, keep=[1, -1])
    one, predicted = tp.limit(step), tp.limit(predict)
    for replicate, key in enumerate(jax.random.split(KEY, 3)):
        theta = tp.sample(THETA, key, width=tp.inf, samples=128)
        theta, _ = one(theta, BATCHES[0])
        by_hand = predicted(theta)
        found = predicted(trained.snapshots[1][replicate])
        np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)
    spread = trained.evaluate(predict, step=1).stderr
    assert np.all(spread > 1e-4), "replicates are not copies of one"


@WIDTHS
@pytest.mark.parametrize("together", [1, 2**11], ids=["apart", "together"])
def test_evaluation_repeats_the_observations(width, together, monkeypatch):
    """At every step that was kept; steps after it reuse none of its memory."""
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", together)
    trained = run(width, keep=range(4))
    for t in range(-4, 4):
        found = trained.evaluate(predict, step=t)
        seen = trained.replicates.observations[:, t]
        np.testing.assert_allclose(found.replicates, seen, rtol=1e-4, atol=2e-6)
        assert found.exponents == 0
    assert found.count == 3


def test_evaluation_of_a_random_limit():
    """In a kernel regime each replicate has an initial function of its own, and keeps it."""
    p, model = tp.parameterizations.ntk, tp.mlp(1, inputs=2)
    f = lambda theta: p.predict(model)(theta, X)
    trained = tp.train(
        p.step(model, "mse", 0.5), p.theta(model), BATCHES, width=tp.inf, key=KEY, samples=256,
        replicates=2, observe=f, keep=[0, -1], progress=False,
    )  # fmt: skip
    assert trained.random
    for t in (0, -1):
        found = trained.evaluate(f, step=t).replicates
        np.testing.assert_allclose(found, trained.replicates.observations[:, t], atol=1e-5)


# --- statistics


@WIDTHS
def test_mean_error_and_interval_are_students(width):
    found = run(width).evaluate(lambda t: {"f": predict(t), "v": jnp.mean(t["v"] ** 2)})
    values = found.replicates["f"]
    np.testing.assert_allclose(found.mean["f"], values.astype(float).mean(axis=0))
    error = stats.sem(values.astype(float), axis=0)
    np.testing.assert_allclose(found.stderr["f"], error, rtol=1e-6)
    low, high = found.interval(0.9)
    exact = stats.t.interval(0.9, 2, loc=values.astype(float).mean(axis=0), scale=error)
    np.testing.assert_allclose([low["f"], high["f"]], exact, rtol=1e-6)
    assert found.mean["v"].dtype == np.float64
    assert jax.tree.structure(found.format()) == jax.tree.structure({"f": ["", ""], "v": ""})
    with pytest.raises(ValueError, match="level has to be between"):
        found.interval(1.0)


@pytest.mark.parametrize("width", [8, tp.inf], ids=str)
def test_a_run_without_records_can_be_asked(width):
    stay = lambda theta, batch: (step(theta, batch)[0], None)
    how = {"samples": 64, "replicates": 2, "key": KEY, "progress": False}
    silent = tp.train(stay, THETA, BATCHES, width=width, **how)
    assert len(silent.states) == 2
    assert np.all(np.isfinite(silent.evaluate(predict).stderr))


def test_one_replicate_has_no_error():
    found = run(tp.inf, replicates=1).evaluate(predict)
    assert np.all(np.isnan(found.stderr))
    assert np.all(np.isnan(found.interval()))
    assert all(text.endswith("(nan)") for text in found.format())


# --- several states at once


@WIDTHS
def test_questions_about_two_steps(width):
    """What has moved: both states of one replicate, jointly."""
    trained = run(width, keep=[0, -1])
    moved = lambda a, b: jnp.mean((predict(b) - predict(a)) ** 2)
    seen = trained.replicates.observations
    exact = np.mean((seen[:, -1] - seen[:, 0]) ** 2, axis=-1)
    found = trained.evaluate(moved, step=[0, -1])
    np.testing.assert_allclose(found.replicates, exact, rtol=1e-3)


def test_weights_move_as_far_as_those_of_networks():
    """Their change is of low rank: the Gaussian matrix of both states cancels."""
    norm = lambda a, b: jnp.sum((b["w"] - a["w"]) ** 2)
    limit, finite = (
        run(width, keep=[0, -1], replicates=r, samples=2**11).evaluate(norm, step=[0, -1])
        for width, r in ((tp.inf, 3), (256, 16))
    )
    assert limit.mean > 0.01
    error = np.hypot(limit.stderr, finite.stderr)
    assert abs(limit.mean - finite.mean) < 5 * error + 6 / 256 * limit.mean


def test_replicates_are_independent_of_each_other():
    """States of two replicates in one function are two networks, not one with two states."""
    for together, width in ((1, tp.Deferred(32)), (2**11, tp.Deferred(32)), (2**11, tp.inf)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(infinite, "_TOGETHER_CPU", together)
            trained = run(width)
        first, second, _ = trained.states
        both = tp.limit(lambda a, b: (predict(a), predict(b)))(first, second)
        seen = trained.replicates.observations[:2, -1]
        np.testing.assert_allclose(both, seen, rtol=1e-4 if width != tp.inf else 5e-3, atol=1e-5)


@WIDTHS
@pytest.mark.parametrize("keep", [[0, -1], [0]], ids=str)
def test_the_state_is_the_last_one_of_them(width, keep):
    trained = run(width, keep=keep)
    found = tp.limit(predict)(trained.state)
    seen = trained.replicates.observations[-1]
    np.testing.assert_allclose(found, seen[-1], rtol=1e-3, atol=1e-5)
    if -1 in keep:
        assert jax.tree.leaves(trained.state)[0] is jax.tree.leaves(trained.states[-1])[0]
        both = tp.limit(lambda a, b: predict(b) - predict(a))(
            trained.snapshots[0][-1], trained.state
        )
        np.testing.assert_allclose(both, seen[-1] - seen[0], rtol=1e-2, atol=2e-4)


@WIDTHS
def test_particles_of_states(width):
    trained = run(width)
    h = lambda theta: X @ theta["u"]
    draws = np.array([tp.particles(h)(state) for state in trained.states])
    assert draws.shape == (3, 2, {tp.inf: 128, 8: 8}.get(width, 32))
    second = trained.evaluate(lambda theta: jnp.mean(h(theta) ** 2, axis=-1)).replicates
    np.testing.assert_allclose(np.mean(draws**2, axis=-1), second, rtol=1e-4)


# --- what is not there


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(32)], ids=str)
def test_values_with_a_width_are_no_estimates(width):
    trained = run(width)
    with pytest.raises(tp.WidthError) as caught:
        trained.evaluate(lambda t: {"h": t["v"]})
    text = str(caught.value)
    assert "output['h'] of the function of evaluate" in text
    assert "tp.particles(fn)(state)" in text
    with pytest.raises(tp.WidthError) as caught:
        run(width, observe=lambda t: [t["v"]])
    assert "output[0] of observe, " in str(caught.value)
    assert "tp.particles(fn)(state)" in str(caught.value)


def test_wrong_questions():
    trained = run(8, keep=[0])
    with pytest.raises(ValueError, match=r"states at step 3 were not kept \(kept: 0\).*keep=\[3\]"):
        _ = trained.states
    with pytest.raises(ValueError, match="step=4 is out of range"):
        trained.evaluate(predict, step=4)
    with pytest.raises(TypeError, match="step='last' is no integer"):
        trained.evaluate(predict, step=["last"])
    with pytest.raises(TypeError, match="fn=3 is no function"):
        trained.evaluate(3)
    with pytest.raises(TypeError, match="is 'x', of type str"):
        trained.evaluate(lambda t: "x", step=0)
    with pytest.raises(ValueError, match=r"kept: none\).*files have none"):
        _ = run(8, keep=[]).states


@pytest.mark.parametrize(
    ("keep", "kind", "text"),
    [
        (3, TypeError, "keep=3 is no list of steps: pass steps from 0 to 3"),
        ("all", TypeError, "is no list of steps"),
        ([0.5], TypeError, "has steps that are no integers"),
        ([True], TypeError, "has steps that are no integers"),
        ([4], ValueError, "has steps that the run has not: pass steps from 0 to 3"),
        ([-5], ValueError, "has steps that the run has not"),
    ],
)
def test_wrong_keep(keep, kind, text):
    with pytest.raises(kind, match=text):
        run(8, keep=keep)


@WIDTHS
def test_large_states_are_kept_when_asked_for(width, monkeypatch):
    monkeypatch.setattr(snapshots, "UNASKED_BYTES", 100)
    assert not run(width).snapshots
    assert len(run(width, keep=[-1]).states) == 3


def test_comparisons_keep_states_when_asked_for():
    how = {
        "widths": [4],
        "seeds": 2,
        "samples": 64,
        "replicates": 2,
        "key": KEY,
        "observe": predict,
    }
    plain = tp.compare(step, THETA, BATCHES, progress=False, **how)
    assert not plain.limit.snapshots
    asked = tp.compare(step, THETA, BATCHES, progress=False, keep=[-1], **how)
    assert asked.limit.evaluate(predict).count == asked.finite[4].evaluate(predict).count == 2


# --- runs that are killed


class Killed(BaseException):
    """Stands for the end of the process."""


@WIDTHS
@pytest.mark.parametrize("keep", [None, [0, 2, -1]], ids=str)
def test_a_run_that_goes_on_has_the_states_of_all_calls(width, keep, tmp_path, monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)  # one replicate after the other
    whole = run(width, keep=keep)
    every = tp.Checkpoint(tmp_path, every=1)
    write = checkpoint._write
    for writes in (2, 5):
        left = iter(range(writes))

        def dies(path, *content, left=left):
            if next(left, None) is None:
                raise Killed
            write(path, *content)

        monkeypatch.setattr(checkpoint, "_write", dies)
        try:
            run(width, keep=keep, checkpoint=every)
        except Killed:
            continue
        break  # networks of finite width are trained together, in few writes
    monkeypatch.setattr(checkpoint, "_write", write)
    for _ in range(2):  # the second call has nothing left to do
        found = run(width, keep=keep, checkpoint=every)
        assert list(found.snapshots) == list(whole.snapshots)
        for t in whole.snapshots:
            for one, two in zip(found.snapshots[t], whole.snapshots[t], strict=True):
                for name in THETA:
                    assert bits_of(one[name]) == bits_of(two[name])
        np.testing.assert_array_equal(
            found.evaluate(predict).replicates, whole.evaluate(predict).replicates
        )


def bits_of(leaf):
    """Coordinates bit for bit; of limit values the bank may have more room."""
    if isinstance(leaf, jax.Array):
        return np.asarray(leaf).tobytes()
    return bits(leaf._value)


def test_states_that_another_run_has_left_are_not_taken(tmp_path):
    first = run(8, keep=[0, 1], checkpoint=tmp_path)
    assert set(first.snapshots) == {0, 1}
    for file in tmp_path.glob("checkpoint-*"):
        file.unlink()
    run(8, keep=[1], key=jax.random.key(9), checkpoint=tmp_path)
    # The folder now belongs to the second run, with a stale file of the first for step 0.
    again = run(8, keep=[0, 1], key=jax.random.key(9), checkpoint=tmp_path)
    assert set(again.snapshots) == {1}
    assert np.any(np.asarray(again.snapshots[1][0]["u"]) != np.asarray(first.snapshots[1][0]["u"]))


def test_damaged_states_are_lost_and_the_run_is_not(tmp_path):
    run(8, keep=[0], checkpoint=tmp_path)
    (file,) = (tmp_path / "states").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(tp.LimitWarning, match="the states at step 0 are lost"):
        found = run(8, keep=[0], checkpoint=tmp_path)
    assert not found.snapshots
    assert found.outputs.shape == (3,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(8, keep=[], checkpoint=tmp_path)
