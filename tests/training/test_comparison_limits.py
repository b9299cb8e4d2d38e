"""What `tp.compare` does with a finished limit, a random one, and none; files of a comparison."""

import functools
import json
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tplimit as tp
from tplimit.errors import DivergenceError, Location, warn
from tplimit.training import archive, compare
from tplimit.training.comparison import Comparison
from tplimit.training.laws import _squared_norm, compare_laws
from tplimit.training.trajectory import Records

N = tp.Width("n")
THETA = {"v": tp.normal((N,))}
KEY = jax.random.key(0)
HOW = {"key": KEY, "progress": False}


def square(theta, _):
    return theta, jnp.mean(theta["v"] ** 2)


def trajectory(values, width, **more):
    zero = Records(*(jax.tree.map(lambda _: Fraction(0), x) for x in (values, None)))
    return tp.Trajectory(Records(values, None), zero, width, **more)


def compared(limit, finite, **more):
    return Comparison(
        trajectory(limit, tp.inf, **more), {n: trajectory(x, n) for n, x in finite.items()}
    )


# --- a finished limit


@pytest.fixture(scope="module")
def run():
    return tp.train(square, THETA, [None] * 2, width=tp.inf, samples=64, replicates=2, **HOW)


def test_a_finished_limit_is_used_again(run, tmp_path, monkeypatch):
    """Networks are those of a comparison that makes its own; nothing is trained at infinity."""
    program = square, THETA, [None] * 2
    how = {"widths": [16, 32], "seeds": 3, **HOW}
    own = tp.compare(*program, samples=64, replicates=2, **how)
    seen = []

    @functools.wraps(tp.train)
    def train(*args, width, **options):
        seen.append(width)
        return tp.train(*args, width=width, **options)

    monkeypatch.setattr(compare, "train", train)
    loaded = tp.Trajectory.load(run.save(tmp_path / "run.safetensors"))
    for limit in (run, loaded):
        again = tp.compare(*program, limit=limit, **how)
        assert again.limit is limit
        for n in (16, 32):
            np.testing.assert_array_equal(again.finite[n].outputs, own.finite[n].outputs)
    assert seen == [16, 32] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"limit": 3}, TypeError, "limit=3 is no run: pass what tp.train"),
        ({"batches": [None] * 3}, ValueError, "a run of 2 steps, batches are 3"),
        ({"samples": 64}, ValueError, "finished, samples would change nothing"),
        ({"replicates": 2, "terms": 2}, ValueError, "finished, replicates, terms would"),
        ({"observe": lambda t: t["v"].mean()}, ValueError, r"observations None, .* array\(\)"),
        (
            {"step": lambda t, _: (t, {"a": jnp.ones(3)})},
            ValueError,
            r"outputs array\(\), networks would record {a: array\(3,\)}",
        ),
        (
            {"limit": trajectory(np.ones((2, 2)), 16)},
            ValueError,
            "limit is a run at width 16: pass one of",
        ),
    ],
    ids=["no run", "steps", "samples", "options", "observe", "step", "finite"],
)
def test_a_limit_that_does_not_fit(change, error, message, run):
    given = {"step": square, "theta": THETA, "batches": [None] * 2, "limit": run} | change
    with pytest.raises(error, match=message):
        tp.compare(**given, widths=[16], seeds=2, **HOW)


def test_another_program_at_a_finite_width_is_refused_with_a_loaded_limit(run, tmp_path):
    def step(theta, _):
        n = theta["v"].shape[0]
        return theta, jnp.mean(theta["v"] ** (2 if n > 1000 else 4))

    loaded = tp.Trajectory.load(run.save(tmp_path / "run"))
    with pytest.raises(tp.NoLimitError, match=r"test_comparison_limits\.py"):
        tp.compare(step, THETA, [None] * 2, widths=[16], seeds=2, limit=loaded, **HOW)


def test_runs_by_hand_have_to_fit():
    with pytest.raises(ValueError, match=r"array\(3, 2\) at infinite width, array\(3, 1\) at wid"):
        compared(np.ones((2, 3, 2)), {16: np.ones((2, 3, 1))})


# --- distances by step, by entry, relative


def test_distances_of_known_differences():
    """F - L is c_t e_p n^-1/2: roots of sums of squares, by hand."""
    c, e = np.array([0.0, 1.0, 2.0]), np.array([3.0, 4.0])
    limit = np.full((2, 3, 2), 5.0)
    finite = {n: 5 + np.outer(c, e)[None] * np.ones((4, 1, 1)) / n**0.5 for n in (16, 64)}
    found = compared(limit, finite)
    np.testing.assert_allclose(found.rms_by_step[16], c * math.sqrt(12.5) / 4)
    np.testing.assert_allclose(found.rms_by_entry[64], e * math.sqrt(5 / 3) / 8)
    np.testing.assert_allclose(found.rms[16], math.sqrt(12.5 * 5 / 3) / 4)
    assert found.size == 5.0
    np.testing.assert_allclose(found.relative[16], found.rms[16] / 5)
    assert f"{found.relative[64]:.4g}" in str(found)
    assert found.to_dict()["rms_by_step"]["16"] == found.rms_by_step[16].tolist()
    by_step, by_entry = str(found.table("step")), str(found.table(by="entry"))
    assert f"{found.rms_by_step[64][2]:.4g}" in by_step and "n = 16" in by_step
    assert f"outputs[1] │  {found.rms_by_entry[16][1]:.4g}" in by_entry
    with pytest.raises(ValueError, match="'step' or 'entry'"):
        found.table("seed")


def test_long_tables_show_what_they_leave_out():
    limit = np.zeros((2, 50, 30))
    found = compared(limit, {16: np.ones((2, 50, 1)) * np.arange(30.0)})
    assert "20 of 50 steps, evenly" in found.table("step")
    text = found.table("entry")
    assert "20 of 30 entries, the farthest" in text
    assert "outputs[29]" in text and "outputs[9]" not in text
    assert math.isnan(found.relative[16])  # of a limit that is 0


def test_leaves_of_different_sizes_share_their_steps():
    limit = {"a": np.zeros((2, 3)), "b": [np.zeros((2, 3, 3))]}
    finite = {"a": np.full((2, 3), 2.0), "b": [np.zeros((2, 3, 3))]}
    found = compared(limit, {16: finite})
    np.testing.assert_allclose(found.rms_by_step[16], 1.0)
    assert found.rms_by_entry[16]["a"] == 2 and not found.rms_by_entry[16]["b"][0].any()


def test_errors_by_step_cover():
    """Over 300 draws of 8 seeds the spread of `rms_by_step` is its error, to a fifth."""
    g = np.random.default_rng(1)
    draws = [compared(np.zeros((1, 2, 5)), {4: g.normal(size=(8, 2, 5))}) for _ in range(300)]
    spread = np.std([d.rms_by_step[4] for d in draws], axis=0)
    errors = np.sqrt(np.mean([d.rms_by_step_stderr[4] ** 2 for d in draws], axis=0))
    np.testing.assert_allclose(errors, spread, rtol=0.2)


# --- powers of the width


def test_powers_of_known_growth():
    g = np.random.default_rng(0)
    noise = 1 + 0.01 * g.normal(size=(6, 3, 2))
    steps = np.array([0.0, 0.5, -1.0])[:, None]
    finite = {n: trajectory(noise * n**steps, n) for n in (16, 64, 256)}
    found = Comparison(None, finite, DivergenceError("grows like n^(1/2)"))
    np.testing.assert_allclose(found.powers.outputs, [0, 0.5, -1], atol=1e-9)
    assert found.powers.observations is None
    assert (found.powers_stderr.outputs > 0).all() and (found.powers_stderr.outputs < 0.02).all()


def test_errors_of_powers_cover():
    """The spread over 300 draws is the error, to a fifth."""
    g = np.random.default_rng(1)

    def draw():
        values = {n: n**0.5 * g.normal(size=(8, 1, 5)) for n in (16, 64, 256)}
        return Comparison(None, {n: trajectory(x, n) for n, x in values.items()})

    draws = [draw() for _ in range(300)]
    powers = np.array([d.powers.outputs[0] for d in draws])
    errors = np.array([d.powers_stderr.outputs[0] for d in draws])
    assert abs(powers.mean() - 0.5) < 4 * powers.std() / 300**0.5  # false alarms: 6e-5
    assert 0.8 < np.sqrt(np.mean(errors**2)) / powers.std() < 1.2


def grows(theta, _):
    """A mean that grows like n^(1/2) from the second step on."""
    n = theta["v"].shape[0]
    return {"v": theta["v"] * n**0.5}, {"size": jnp.sqrt(jnp.mean(theta["v"] ** 2))}


def test_a_program_that_diverges_shows_its_networks(tmp_path):
    with pytest.warns(tp.LimitWarning, match="trained all the same") as caught:
        found = tp.compare(
            grows, THETA, [None] * 3, widths=[16, 64, 256], seeds=8, samples=64, **HOW
        )
    assert {w.filename for w in caught} == {__file__}
    assert found.limit is None and isinstance(found.error, tp.DivergenceError)
    power = found.powers.outputs["size"]
    error = found.powers_stderr.outputs["size"]
    np.testing.assert_array_less(np.abs(power - [0, 0.5, 1]), 5 * error)  # false alarms: < 1e-3
    text = str(found)
    assert "no limit is known" in text and "outputs['size']" in text and "n^1.0" in text
    assert found.error.reason in text
    assert repr(found) == "Comparison(widths=[16, 64, 256], no limit)"
    for name in ("rms", "slope", "relative", "bias", "z_scores", "law", "size"):
        with pytest.raises(tp.DivergenceError):
            getattr(found, name)
    saved = json.loads(found.save(tmp_path / "result.json").read_text())
    assert saved["limit"] is None and "rms" not in saved
    loaded = Comparison.load(tmp_path / "result.json")
    assert str(loaded) == text
    assert loaded.error.location == found.error.location
    assert found.plot(tmp_path / "figure.png").stat().st_size > 5000


def test_what_grows_and_is_random_is_shown_too(tmp_path):
    """Its leading coefficient vanishes: the power of n in the networks is that of the root."""
    with pytest.warns(tp.LimitWarning, match="No limit is known") as caught:
        found = tp.compare(
            lambda t, _: (t, jnp.sum(t["v"]) * t["v"].shape[0]),
            THETA, [None], widths=[16, 256], seeds=64, samples=64, terms=1, **HOW,
        )  # fmt: skip
    assert {w.filename for w in caught} == {__file__}
    assert isinstance(found.error, tp.CancellationError)
    z = (found.powers.outputs - 1.5) / found.powers_stderr.outputs
    assert np.abs(z).max() < 4  # false alarms: 1e-4
    loaded = Comparison.load(found.save(tmp_path / "result.json"))
    assert isinstance(loaded.error, tp.CancellationError)


def test_programs_without_a_rule_are_still_refused():
    with pytest.raises(tp.LimitError):
        tp.compare(
            lambda t, _: (t, jnp.linalg.svd(jnp.outer(t["v"], t["v"]))[1][0]),
            THETA, [None], widths=[8], seeds=2, samples=64, **HOW,
        )  # fmt: skip


# --- laws


def test_the_norm_of_a_covariance_is_unbiased():
    """Of 5 draws: over 4000 samples in standard errors (false alarms: 6e-5); moved, the same."""
    g = np.random.default_rng(0)
    root = g.normal(size=(3, 3))
    truth = np.sum((root.T @ root) ** 2)
    draws = g.normal(size=(4000, 5, 3)) @ root + [1.0, -2.0, 3.0]
    found = np.array([_squared_norm(x @ x.T) for x in draws])
    assert abs(found.mean() - truth) < 4 * found.std() / 4000**0.5
    moved = draws[0] - draws[0].mean(axis=0)
    np.testing.assert_allclose(_squared_norm(moved @ moved.T), found[0], rtol=1e-8)


def test_laws_by_hand():
    """Means, one entry against scipy, and what is the same number everywhere."""
    g = np.random.default_rng(0)
    a, b = g.normal(size=(9, 3)), g.normal(size=(7, 3)) + np.array([0, 0, 5])
    a[:, 1] = b[:, 1] = 2.0
    law = compare_laws(a, b, lambda x: x)
    assert law.entries == 2 and np.isnan(law.ks_p[1]) and law.mean_z[1] == 0
    for i in (0, 2):
        assert law.ks_p[i] == stats.ks_2samp(a[:, i], b[:, i]).pvalue
        welch = stats.ttest_ind(a[:, i], b[:, i], equal_var=False)
        np.testing.assert_allclose(abs(law.mean_z[i]), stats.norm.isf(welch.pvalue / 2), rtol=1e-6)
    assert law.ks_p[2] == pytest.approx(law.least_p)  # apart altogether
    assert law.fixed == 0


def test_p_values_of_equal_laws_are_uniform_and_others_are_found():
    """200 draws: shares below 0.1 within 4 binomial errors (false alarms: 1e-4, thrice)."""
    g = np.random.default_rng(0)

    def law(scale):
        mix = g.normal(size=(4, 6))
        return compare_laws(
            g.normal(size=(12, 4)) @ mix, scale * g.normal(size=(12, 4)) @ mix, lambda x: x
        )

    equal = [law(1.0) for _ in range(200)]
    covariance = np.mean([one.covariance_p < 0.1 for one in equal])
    assert abs(covariance - 0.1) < 4 * (0.09 / 200) ** 0.5
    assert np.mean([one.ks_p[0] < 0.1 for one in equal]) < 0.1 + 4 * (0.09 / 200) ** 0.5
    other = [law(4.0) for _ in range(20)]
    assert np.mean([one.covariance_p < 0.05 for one in other]) > 0.5


def test_the_distance_of_covariances_vanishes():
    g = np.random.default_rng(0)
    limit = g.normal(size=(400, 2))
    near, far = (compare_laws(s * g.normal(size=(400, 2)), limit, lambda x: x) for s in (1, 2))
    # |4 C - C| / |C| = 3, to the spread of 400 networks.
    assert near.covariance < 0.3 and abs(far.covariance - 3) < 0.6
    assert far.covariance_p == pytest.approx(1 / 500)


@pytest.fixture(scope="module")
def random_limit():
    """The initial output of a network in a kernel regime is Gaussian."""
    x = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    theta = {"u": tp.normal((2, N)), "v": tp.normal((N,))}

    def step(theta, _):
        return theta, jnp.tanh(x @ theta["u"]) @ theta["v"] / theta["v"].shape[0] ** 0.5

    with pytest.warns(tp.LimitWarning, match="compared so") as caught:
        found = tp.compare(
            step, theta, [None], widths=[16, 256], seeds=32, replicates=32, samples=64, **HOW
        )
    assert {w.filename for w in caught} == {__file__}
    return found


def test_a_random_limit_is_compared_in_law(random_limit, tmp_path):
    found = random_limit
    assert found.random and repr(found) == "Comparison(widths=[16, 256], random limit)"
    law = found.law[256]
    assert law.entries == 2
    # One run of a fixed key: 4 numbers, false alarm 1e-3 each.
    assert np.min(law.ks_p) > 1e-3 and law.covariance_p > 0.002
    assert np.abs(law.mean_z).max() < 3.3
    text = str(found)
    assert "theory" not in text and "RMS distance" not in text and "2 entries" in text
    for name in ("rms", "relative", "slope", "rms_by_step", "size"):
        with pytest.raises(ValueError, match="random function"):
            getattr(found, name)
    assert "largest |z| of the means" in found.table("step")
    saved = found.to_dict()
    assert saved["law"]["256"]["entries"] == 2 and "rms" not in saved
    assert found.plot(tmp_path / "figure.png").stat().st_size > 5000
    loaded = Comparison.load(found.save(tmp_path / "result"))
    assert str(loaded) == text


def test_a_limit_that_is_a_number_has_no_law():
    with pytest.raises(ValueError, match="not a law"):
        _ = compared(np.ones((2, 1)), {16: np.ones((2, 1))}).law


def test_averages_beside_a_random_limit_are_named():
    g = np.random.default_rng(0)
    values = g.normal(size=(8, 1, 2)) * [1.0, 1e-3]
    found = compared(values, {16: g.normal(size=(8, 1, 2))}, random=True)
    assert found.law[16].fixed == 1 and "1 entries vary in the limit" in str(found)


# --- files


def test_files_hold_everything(tmp_path):
    g = np.random.default_rng(0)
    limit, finite = ({"f": g.normal(size=(3, 2, 2)).astype(np.float32), "k": None} for _ in "ab")
    found = compared(limit, {16: finite}, record={"samples": 64})
    for name in ("a.json", "new/b.safetensors", "c"):
        path = found.save(tmp_path / name)
        stem = path.with_suffix("")
        for way in (path, stem.with_suffix(".safetensors")):
            loaded = Comparison.load(way)
            assert loaded.to_dict() == found.to_dict()
            got, made = loaded.finite[16].replicates.outputs, finite
            assert got["f"].dtype == np.float32
            np.testing.assert_array_equal(got["f"], made["f"])
    assert json.loads((tmp_path / "new" / "b.json").read_text())["widths"] == [16]


def test_wrong_files(tmp_path):
    found = compared(np.ones((2, 2)), {16: np.ones((2, 2))})
    with pytest.raises(FileNotFoundError):
        Comparison.load(tmp_path / "missing.json")
    path = found.save(tmp_path / "result.json")
    arrays = path.with_suffix(".safetensors")
    kept = arrays.read_bytes()
    arrays.write_bytes(kept[:-1])
    with pytest.raises(ValueError, match="truncated"):
        Comparison.load(path)
    arrays.unlink()
    with pytest.raises(ValueError, match="holds means and statistics only"):
        Comparison.load(path)
    trajectory(np.ones((2, 2)), 16).save(arrays)
    with pytest.raises(ValueError, match="no Comparison of tplimit"):
        Comparison.load(path)
    archive._FORMAT.write(arrays, {"16/outputs": np.ones(3)}, {"header": '{"limit": null}'})
    with pytest.raises(ValueError, match="no comparison was saved like this"):
        Comparison.load(path)


def test_an_error_is_saved_whole(tmp_path):
    why = DivergenceError(
        "grows", operation="dot", location=Location("a.py", 3, "f"), advice="Rescale."
    )
    found = Comparison(None, {16: trajectory(np.ones((2, 2)), 16)}, why)
    loaded = Comparison.load(found.save(tmp_path / "result.json")).error
    assert str(loaded) == str(why) and loaded.location == why.location


def test_bias_is_in_the_file(tmp_path):
    run = tp.train(
        square, THETA, [None], width=tp.inf, samples=64, replicates=2, bias_check=True, **HOW
    )
    loaded = tp.Trajectory.load(run.save(tmp_path / "run"))
    assert loaded.bias.estimate.outputs == run.bias.estimate.outputs
    assert loaded.bias.significant == run.bias.significant


# --- warnings name the user's line


def test_warnings_through_libraries_name_the_users_line():
    """The user calls JAX and this calls tplimit: neither's line is shown."""
    with pytest.warns(tp.LimitWarning) as caught:
        jax.tree.map(warn, tp.LimitWarning("said from inside"))
    assert [w.filename for w in caught] == [__file__]


def test_warnings_of_samples_name_the_users_line():
    for call in (
        lambda: tp.sample(THETA, KEY, width=tp.inf, samples=63),
        lambda: tp.train(square, THETA, [None], width=tp.inf, samples=63, **HOW),
        lambda: tp.compare(square, THETA, [None], widths=[8], seeds=1, samples=63, **HOW),
    ):
        with pytest.warns(tp.LimitWarning, match="no power of two") as caught:
            call()
        assert {w.filename for w in caught} == {__file__}
