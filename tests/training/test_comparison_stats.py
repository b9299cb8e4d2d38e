"""Statistics of `Comparison` on synthetic records whose answers are known."""

import dataclasses
import inspect
import io
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import tplimit as tp
from tplimit.training.comparison import Comparison
from tplimit.training.options import Options
from tplimit.training.trajectory import Records

WIDTHS = (64, 256, 1024)
SHAPE = (4, 3)  # steps and points


def trajectory(values, width, part="observations"):
    records = {"outputs": None, "observations": None} | {part: values}
    zero = {k: jax.tree.map(lambda _: Fraction(0), v) for k, v in records.items()}
    return tp.Trajectory(Records(**records), Records(**zero), width)


def synthetic(seed=0, seeds=8, replicates=5, noise=1.0, bias=0.0, power=-0.5, limit_noise=0.01):
    g = np.random.default_rng(seed)
    truth = g.normal(size=SHAPE)
    limit = truth + limit_noise * g.normal(size=(replicates, *SHAPE))
    finite = {
        n: truth + bias / n + noise * n**power * g.normal(size=(seeds, *SHAPE)) for n in WIDTHS
    }
    return Comparison(trajectory(limit, tp.inf), {n: trajectory(x, n) for n, x in finite.items()})


def test_rms_is_unbiased_in_the_noise_of_the_limit():
    # The limit's own error is as large as the distance: without subtraction the square doubles.
    squares = [
        synthetic(s, noise=0.64, limit_noise=0.01 * np.sqrt(5) * 2).rms[1024] ** 2
        for s in range(300)
    ]
    mean, error = np.mean(squares), np.std(squares) / np.sqrt(300)
    assert abs(mean - 0.02**2) < 4 * error  # false alarms: 6e-5
    assert abs(mean - 2 * 0.02**2) > 10 * error


@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_slope_and_its_error(power):
    runs = [synthetic(s, power=power, limit_noise=1e-6) for s in range(200)]
    slopes = np.array([r.slope for r in runs])
    assert abs(slopes.mean() - power) < 4 * slopes.std() / np.sqrt(200) + 2e-3
    # The jackknife's error is the spread of the slope over repetitions.
    errors = np.array([r.slope_stderr for r in runs])
    assert 0.85 < np.sqrt(np.mean(errors**2)) / slopes.std(ddof=1) < 1.2


def test_slope_of_exact_powers():
    finite = {n: trajectory(np.full((2, 1, 1), n**-0.75), n) for n in WIDTHS}
    comparison = Comparison(trajectory(np.zeros((2, 1, 1)), tp.inf), finite)
    np.testing.assert_allclose(comparison.slope, -0.75)
    assert comparison.slope_stderr < 1e-7
    np.testing.assert_allclose(list(comparison.rms.values()), [n**-0.75 for n in WIDTHS])


def test_bias_subtracts_the_fluctuations():
    runs = [synthetic(s, noise=1.0, bias=2.0, limit_noise=1e-3) for s in range(200)]
    squares = np.array([r.bias[64] ** 2 for r in runs])
    assert abs(squares.mean() - (2 / 64) ** 2) < 4 * squares.std() / np.sqrt(200)
    assert runs[0].rms[64] > 2 * np.sqrt(squares.mean())


def test_z_scores_are_standard_normal():
    # Few seeds and replicates: an uncorrected t would put 12 % of the entries beyond 2, not 4.6 %.
    z = np.concatenate(
        [synthetic(s, seeds=4, replicates=3, limit_noise=0.02).z_scores.ravel() for s in range(400)]
    )
    share = np.mean(np.abs(z) < 2)
    assert abs(share - 0.9545) < 0.015
    assert abs(np.mean(z)) < 4 / np.sqrt(len(z))


def test_z_scores_find_a_difference():
    assert np.abs(synthetic(bias=400.0).z_scores).max() > 5


def test_extrapolation_removes_the_bias_that_z_scores_see():
    runs = [synthetic(s, seeds=32, bias=400.0, limit_noise=1e-3) for s in range(40)]
    plain = np.concatenate([r.z_scores.ravel() for r in runs])
    fitted = np.concatenate([r.extrapolated_z.ravel() for r in runs])
    assert np.mean(np.abs(plain) < 2) < 0.01
    assert abs(np.mean(np.abs(fitted) < 2) - 0.9545) < 0.05


def test_z_score_of_one_entry_by_hand():
    finite, limit = np.array([1.0, 1.4, 1.2, 1.6]), np.array([0.9, 1.1, 1.0])
    comparison = Comparison(
        trajectory(limit.reshape(3, 1), tp.inf), {64: trajectory(finite.reshape(4, 1), 64)}
    )
    welch = stats.ttest_ind(finite, limit, equal_var=False)
    expected = stats.norm.isf(welch.pvalue / 2)
    np.testing.assert_allclose(comparison.z_scores, [expected], rtol=1e-6)
    assert np.isnan(comparison.extrapolated_z).all()
    assert np.isnan(comparison.slope)


def test_trees_of_records_keep_their_shape():
    def tree(count, offset):
        return {"a": np.ones((count, 3, 2)) + offset, "b": [np.zeros((count, 5), np.float32)]}

    g = np.random.default_rng(0).normal(size=(4, 1, 1))
    comparison = Comparison(
        trajectory(tree(3, g[:3]), tp.inf, "outputs"),
        {n: trajectory(tree(4, g), n, "outputs") for n in WIDTHS},
    )
    z = comparison.z_scores
    assert z["a"].shape == (3, 2)
    assert z["b"][0].tolist() == [0.0] * 5  # exact agreement
    assert comparison.to_dict()["z_scores"]["count"] == 6


def test_one_seed_has_no_error_and_one_replicate_no_correction():
    comparison = synthetic(seeds=1, replicates=1)
    assert np.isnan(comparison.z_scores).all()
    assert np.isnan(comparison.slope_stderr)
    assert np.isfinite(comparison.slope)
    assert np.isfinite(synthetic(seeds=4, replicates=1).z_scores).all()
    assert "nan" in str(comparison)


def test_table_is_text_and_rich():
    comparison = synthetic()
    text = str(comparison.table())
    assert text == str(comparison)
    assert f"{comparison.rms[256]:.4g}" in text
    assert f"fitted slope {comparison.slope:.3f}" in text
    assert "z at width 1024: max |z| =" in text
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison.table())
    assert "RMS distance" in console.export_text()


def test_files(tmp_path):
    comparison = synthetic()
    result = json.loads(comparison.save(tmp_path / "new" / "result.json").read_text())
    assert result["slope"] == comparison.slope
    assert result["rms"] == {str(n): v for n, v in comparison.rms.items()}
    assert np.shape(result["finite"]["64"]) == SHAPE
    assert comparison.plot(tmp_path / "figure.png").stat().st_size > 10_000
    missing = synthetic(seeds=1)
    assert json.loads(missing.save(tmp_path / "x.json").read_text())["slope_stderr"] is None
    assert missing.plot(tmp_path / "y.png").exists()


@pytest.mark.parametrize("widths", [[], [8, 8]])
def test_wrong_widths(widths, key):
    step = lambda theta, batch: (theta, batch)
    theta = {"v": tp.normal((tp.Width("n"),))}
    with pytest.raises(ValueError, match="at least one and all different"):
        tp.compare(step, theta, [0], widths=widths, seeds=2, key=key)


# --- options


def test_compare_takes_what_train_takes(tmp_path):
    """Options go to every run; a checkpoint has a folder for each, and gives back what it holds."""
    n = tp.Width("n")

    def step(theta, _):
        return theta, jnp.mean(theta["v"] ** 2)

    arguments = (step, {"v": tp.normal((n,))}, [None] * 2)
    options = {
        "widths": [16, 32], "seeds": 2, "key": jax.random.key(0), "replicates": 2, "samples": 64,
        "noise": "random", "terms": 2, "init_output": "zero", "rank_tolerance": 1e-4,
        "observe": lambda t: jnp.mean(t["v"]), "progress": False, "checkpoint": tmp_path,
    }  # fmt: skip
    first, again = tp.compare(*arguments, **options), tp.compare(*arguments, **options)
    assert {folder.name for folder in tmp_path.iterdir()} == {
        "infinite-width", "width-16", "width-32"
    }  # fmt: skip
    np.testing.assert_array_equal(first.limit.outputs, again.limit.outputs)
    np.testing.assert_array_equal(first.finite[16].outputs, again.finite[16].outputs)
    for name, near in (("sample", "samples"), ("width", "widths")):
        with pytest.raises(TypeError, match=f"no option {name}; did you mean {near}"):
            tp.compare(*arguments, **options, **{name: 64})


def test_no_option_of_train_is_unknown_to_compare():
    """By name: a new option of one is an option of the other."""
    own = inspect.signature(tp.compare).parameters
    passed_on = inspect.signature(tp.train).parameters.keys() - own.keys()
    assert own["options"].kind is inspect.Parameter.VAR_KEYWORD
    assert {"samples", "noise", "terms", "mesh", "bias_check", "observe", "init"} <= passed_on
    assert {field.name for field in dataclasses.fields(Options)} - {"width"} <= {*passed_on, *own}
