"""Runs that blow up are warned of once, with the step; those that come back are not."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.training.comparison import Comparison
from tplimit.training.divergence import Watch, growth_began
from tplimit.training.history import History
from tplimit.training.trajectory import Records

N = tp.Width("n")
THETA = {"v": tp.normal((N,), std=0.01, mean=1.0)}
WIDTHS = [16, tp.Deferred(16), tp.inf]


def descent(rate):
    """Gradient descent on a quadratic: the error is multiplied by 1 - rate at every step."""

    def step(theta, _):
        value = jnp.mean(theta["v"]) - 3.0
        return {"v": theta["v"] - rate * value}, {"loss": value**2, "t": jnp.int32(7)}

    return step


def caught(run):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = run()
    return result, found


def train(step, steps, width=16, **how):
    how = {"key": jax.random.key(0), "samples": 64, "progress": False} | how
    return tp.train(step, THETA, [None] * steps, width=width, **how)


# --- which growth is a divergence


def began(sizes):
    """The first step at which a divergence is seen, or None."""
    largest = np.maximum.accumulate(np.maximum(np.asarray(sizes, float), 1.0))
    steps = range(1, len(largest) + 1)
    return next((t - 1 for t in steps if growth_began(largest[:t]) is not None), None)


T = np.arange(400.0)
DIVERGING = {
    "slow": 1.1**T,
    "doubling": 2.0 ** T[:60],
    "squaring": 1.5 ** (2.0 ** T[:8]),
    "momentum": 1.2**T * np.abs(np.cos(T)),
    "minibatches": 1.3**T * np.exp(np.random.default_rng(0).normal(size=len(T))),
    "after training": np.exp(-T) + 1e-9 * 3.0 ** np.maximum(T - 50, 0),
}
HARMLESS = {
    "counter": 1e5 * T,
    "cubes": T**3,
    "large": np.full(400, 1e12),
    "large loss that falls": 1e30 * 0.9**T,
    "to a distant target": 1e9 * (1 - 0.9**T),
    "to a distant target, slowly": 1e9 * (1 - 0.999**T),
    "out of a saddle": 1 / (1 + 1e12 * np.exp(-0.5 * T)),
    "catapult": np.exp(8 - np.abs(T - 20) / 2),
    "catapult after convergence": 1e-12 + np.exp(5 - np.abs(T - 200)),
    "another scale": np.where(T < 100, 1.0, 1e9),
    "scales in turn": np.where(T % 10 < 5, 1.0, 1e9),
    "rates": 1e-7 * 10 ** (T / 50),
    "heavy tails": np.abs(np.random.default_rng(1).standard_cauchy(size=400)),
}


@pytest.mark.parametrize("name", DIVERGING)
def test_growth_without_return_is_seen_before_it_overflows(name):
    step = began(DIVERGING[name])
    assert step is not None
    assert DIVERGING[name][step] < 1e12


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_large_or_comes_back_is_no_divergence(name):
    assert began(HARMLESS[name]) is None


# --- training


@pytest.mark.parametrize("width", WIDTHS, ids=["finite", "deferred", "limit"])
def test_a_run_that_diverges_is_warned_of_once_at_the_users_line(width):
    run, (warning,) = caught(lambda: train(descent(5.0), 80, width, replicates=2))
    text = str(warning.message)
    assert warning.category is tp.LimitWarning and warning.filename == __file__
    loss = run.replicates.outputs["loss"]
    step = int(text.split("at step ")[1].split()[0])
    assert 1e6 <= loss[:, step].max() / loss[0, 0] < 1e9  # 16 at each step
    assert text.startswith(run.label) and "outputs['loss'] has grown to" in text
    # float32 has overflowed later, which needs no second warning.
    assert np.isnan(loss[:, -1]).all()


@pytest.mark.parametrize("width", WIDTHS, ids=["finite", "deferred", "limit"])
def test_a_run_that_converges_is_not_warned_of(width):
    assert not caught(lambda: train(descent(1.9), 80, width))[1]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_the_first_record_that_is_not_finite_is_named(value):
    def step(theta, t):
        return theta, [jnp.where(t < 3, 1.0, jnp.float32(value)) * jnp.ones(4)]

    def observe(theta):
        return {"mean": jnp.mean(theta["v"])}

    _, (warning,) = caught(
        lambda: tp.train(
            step, THETA, jnp.arange(5), width=8, key=jax.random.key(0), observe=observe,
            replicates=2, progress=False,
        )
    )  # fmt: skip
    text = str(warning.message)
    assert f"width 8: at step 3 (replicate 0, 1) outputs[0] is {value}, after at most 1" in text


def test_a_value_without_a_number_from_the_start_is_named():
    def observe(theta):
        return jnp.mean(theta["v"]) / 0.0 - jnp.inf

    _, (warning,) = caught(lambda: train(descent(0.5), 3, observe=observe))
    assert "at step 0 (replicate 0) observations is nan from the beginning" in str(warning.message)


def test_only_the_replicates_that_diverge_are_named():
    watch, history = Watch("width 8"), History()
    rates = np.array([0.5, 3.0, 1.0])

    def look():
        for t in range(40):
            history.observations.append(None)
            history.outputs.append(rates**t)
            watch.look(history)

    _, (warning,) = caught(look)
    assert "step 13 (replicate 1) outputs" in str(warning.message)


def test_later_parts_have_the_numbers_of_their_replicates():
    fine, bad = np.ones((2, 3)), np.array([[1.0, 1.0, 1.0], [1.0, 1.0, np.nan]])
    history = History(pieces=[Records(fine, None), Records(bad, None)])
    with pytest.warns(tp.LimitWarning, match=r"step 2 \(replicate 3\) outputs is nan"):
        Watch("width 8").look(history)


def test_a_fluctuation_is_named():
    history = History(pieces=[Records((np.ones((1, 2)), np.array([[1.0, np.nan]])), None)])
    with pytest.warns(tp.LimitWarning, match=r"fluctuations\.outputs is nan, after"):
        Watch("infinite width", fluctuations=True).look(history)


def test_it_is_named_while_the_run_goes_on():
    steps = []

    def stopping(theta, t):
        jax.debug.callback(lambda t: steps.append(int(t)), t, ordered=False)
        return descent(5.0)(theta, t)

    with warnings.catch_warnings():
        warnings.simplefilter("error", tp.LimitWarning)
        with pytest.raises(tp.LimitWarning, match="has grown"):
            tp.train(stopping, THETA, range(60), width=8, key=jax.random.key(0), progress=False)
    jax.effects_barrier()
    assert max(steps) < 10


def test_what_fails_after_a_divergence_is_not_blamed_on_the_program():
    def clipped(theta, _):
        value = jnp.mean(theta["v"]) - 3.0
        value = jnp.where(jnp.abs(value) > 1.0, value * 1.1, value)  # a NaN decides nothing
        return {"v": theta["v"] - 5.0 * value}, value

    with (
        pytest.warns(tp.LimitWarning, match="outputs has grown"),
        pytest.raises(tp.DivergenceError, match="has diverged, as was warned of, and then"),
    ):
        train(clipped, 80, tp.inf)


def test_a_resumed_run_says_it_again_with_the_same_step(tmp_path):
    run = lambda: train(descent(5.0), 20, replicates=2, checkpoint=tmp_path)
    first, second = caught(run)[1], caught(run)[1]
    assert len(first) == len(second) == 1
    assert str(first[0].message) == str(second[0].message)


def test_compare_names_every_width_once():
    comparison, found = caught(
        lambda: tp.compare(
            descent(5.0), THETA, [None] * 60, widths=[8, 16], seeds=3, key=jax.random.key(0),
            samples=64, replicates=2, progress=False,
        )
    )  # fmt: skip
    labels = [str(w.message).partition(":")[0] for w in found]
    assert labels == ["infinite width", "width 8", "width 16"]
    assert {w.filename for w in found} == {__file__}
    text = str(comparison)
    assert "no slope: the distance is not finite at width 8, 16" in text
    assert "records are not finite at infinite width, replicates 0, 1" in text


# --- what is reported of such runs


def trajectory(values, width):
    return tp.Trajectory(Records(values, None), Records(0, None), width)


@pytest.fixture
def one_seed_lost():
    """Records of (seed, step, point); the last step of seed 1 at width 64 is lost."""
    draw = np.random.default_rng(0).normal
    finite = {n: 1 + n**-0.5 * draw(size=(4, 3, 2)) for n in (64, 256)}
    finite[64][1, 2] = np.nan, np.inf
    limit = trajectory(np.ones((2, 3, 2)) + 1e-3 * draw(size=(2, 3, 2)), tp.inf)
    return Comparison(limit, {n: trajectory(x, n) for n, x in finite.items()})


def test_a_comparison_says_what_is_lost(one_seed_lost):
    comparison = one_seed_lost
    assert comparison.not_finite == {64: [1]}
    assert math.isnan(comparison.rms[64]) and math.isfinite(comparison.rms[256])
    for number in (comparison.bias[64], comparison.rms_stderr[64], comparison.slope):
        assert math.isnan(number)
    assert math.isnan(comparison.slope_stderr)
    assert np.isfinite(comparison.z_scores).all()  # at width 256
    np.testing.assert_array_equal(np.isnan(comparison.extrapolated_z)[:, 0], [False, False, True])
    text = str(comparison)
    assert "records are not finite at width 64, replicates 1" in text
    assert "no slope: the distance is not finite at width 64" in text
    assert "of 6 comparisons\n" in text and text.endswith(
        "of 4 comparisons; 2 entries are not finite"
    )
    row = next(line for line in text.splitlines() if " 64 " in line)
    assert row.count("nan") == 5 and "noise" not in row
    assert comparison.to_dict()["not_finite"] == {"64": [1]}
    assert comparison.to_dict()["slope"] is None


def test_statistics_and_figures_of_a_blown_up_run(tmp_path, one_seed_lost):
    values = np.array([[1.0, 1e30, 1e200, np.inf, np.nan], [2.0, 1e40, -1e300, -np.inf, np.nan]])
    run = trajectory(values, 16)
    assert np.isnan(run.outputs[3:]).all() and np.isnan(run.stderr.outputs[3:]).all()
    assert run.plot(tmp_path / "run.png").stat().st_size > 1000
    lost = trajectory(np.full((2, 3), np.nan), 16)
    assert lost.plot(tmp_path / "lost.png").stat().st_size > 1000
    assert one_seed_lost.plot(tmp_path / "comparison.png").stat().st_size > 1000
    everything = Comparison(trajectory(np.full((2, 3), np.nan), tp.inf), {16: lost})
    assert everything.plot(tmp_path / "everything.png").stat().st_size > 1000
    assert "nothing to compare; 3 entries are not finite" in str(everything)


def test_what_is_no_number_has_no_standard_error():
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=64)
    found = tp.leading(lambda t: jnp.log(-jnp.mean(t["v"] ** 2)))(theta)
    assert np.isnan(found.coefficient) and np.isnan(found.stderr)
    found = tp.leading(lambda t: jnp.array([1.0, jnp.nan]) + 0 * jnp.mean(t["v"]))(theta)
    np.testing.assert_array_equal(np.isnan(found.stderr), [False, True])


def test_a_kernel_that_overflows_has_no_standard_error():
    theta = {"U": tp.normal((1, N)), "v": tp.normal((N,), std=1e15 * N**-0.5)}
    x = jnp.array([[1e5], [1.0]])
    kernel = tp.nngp(lambda t, x: jax.nn.relu(x @ t["U"]) @ t["v"], theta, x)
    np.testing.assert_array_equal(np.isnan(kernel.stderr), ~np.isfinite(kernel.value))
    assert np.isnan(kernel.stderr[0, 0]) and kernel.stderr[1, 1] == 0


def test_training_in_function_space_names_the_bound():
    theta, y = np.diag([4.0, 1.0]), np.array([1.0, -1.0])
    run = lambda **how: tp.kernels.train(theta, None, y, "mse", 1.5, 20, progress=False, **how)
    _, found = caught(run)
    assert "lr = 1.5 is beyond 2 n / λ_max = 1" in str(found[0].message)
    assert all("λ_max = 1" in str(w.message) and w.filename == __file__ for w in found)
    # Outputs are finite in float32 when their squares, the loss, are not.
    steps = 70
    _, found = caught(
        lambda: tp.kernels.train(
            theta, None, y, lambda f, y: 0.5 * jnp.mean((f - y) ** 2), 1.5, steps,
            progress=False, dtype=np.float32,
        )
    )  # fmt: skip
    assert "to inf: the learning rate is too large" in str(found[-1].message)
