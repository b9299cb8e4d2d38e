"""What a run says of itself: in memory, in files, as a dict, a table, a bibliography."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import tplimit as tp
from tplimit.output.citations import METHOD
from tplimit.output.files import checksum
from tplimit.training.trajectory import Records

ROOT = Path(__file__).parents[2]
N = tp.Width("n")
THETA = {"v": tp.normal((N,))}
KEY = jax.random.key(7)


def step(theta, y):
    return theta, {"loss": jnp.mean(theta["v"] ** 2) * y, "pair": jnp.stack([y, 2 * y])}


def run(width=tp.inf, **options):
    given = {"key": KEY, "samples": 64, "replicates": 2, "progress": False} | options
    given.setdefault("observe", lambda theta: jnp.mean(jnp.tanh(theta["v"]) ** 2))
    return tp.train(step, THETA, [1.0, 2.0, 3.0], width=width, **given)


def same(one, two):
    for part in ("outputs", "observations"):
        pairs = zip(
            *(jax.tree.leaves(getattr(r.replicates, part)) for r in (one, two)), strict=True
        )
        for a, b in pairs:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


# --- the record


def test_a_run_says_how_it_was_made(tmp_path):
    before = datetime.now(UTC)
    found = run(noise="random", terms=2, rank_tolerance=1e-6)
    record = found.record
    assert {k: record[k] for k in ("samples", "noise", "terms", "replicates", "steps")} == {
        "samples": 64, "noise": "random", "terms": 2, "replicates": 2, "steps": 3,
    }  # fmt: skip
    assert record["dtype"] == "float32"
    assert record["rank_tolerance"] == 1e-6
    assert record["width"] == "inf"
    assert record["versions"]["tplimit"] == tp.__version__
    assert record["versions"]["jax"] == jax.__version__
    assert 0 < record["seconds"] < 600
    elapsed = datetime.fromisoformat(record["date"]) - before
    assert -2 < elapsed.total_seconds() < 600
    key = record["key"]
    again = jax.random.wrap_key_data(np.array(key["data"], np.uint32), impl=key["impl"])
    assert again == KEY
    # The record is enough for the same numbers.
    same(found, run(noise="random", terms=2, rank_tolerance=1e-6, key=again))


def test_precision_is_told(float64):
    assert run().record["dtype"] == "float64"


def test_what_a_run_has_turned_to_is_told():
    """Not what it was asked for: more terms where one does not decide."""
    drawn = lambda theta: theta["v"].sum() / theta["v"].shape[0] ** 0.5
    assert run(observe=drawn).record["terms"] == 2
    assert run().record["terms"] == 1


@pytest.mark.parametrize("width", [{"n": 8}, tp.Deferred(16)], ids=str)
def test_what_has_no_meaning_is_none(width):
    record = run(width).record
    assert (record["samples"], record["noise"], record["terms"]) == (None, None, None)
    assert record["width"] == ({"sizes": {"n": 8}} if isinstance(width, dict) else {"deferred": 16})


@pytest.mark.parametrize("width", [8, {"n": 8}, tp.Deferred(16), tp.inf], ids=str)
def test_files_hold_the_record(width, tmp_path):
    made = run(width)
    loaded = tp.Trajectory.load(made.save(tmp_path / "run.safetensors"))
    assert loaded.record == made.record
    same(loaded, made)
    with safe_open(tmp_path / "run.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["made"])["versions"]["tplimit"] == tp.__version__


def test_files_of_older_versions_load(tmp_path):
    """They have neither a record nor what they were made by."""
    path = run().save(tmp_path / "run.safetensors")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    del header["record"]
    old = {"header": json.dumps(header), "format": metadata["format"], "version": "2"}
    save_file(arrays, path, metadata=old | {"checksum": checksum(old, arrays)})
    loaded = tp.Trajectory.load(path)
    assert loaded.record == {}
    same(loaded, run())
    assert "sobol" not in tp.cite(loaded).lower()


def test_comparisons_hold_the_records_of_all_runs(tmp_path):
    found = tp.compare(
        step, THETA, [1.0], widths=[4, 8], seeds=2, samples=64, replicates=2, key=KEY,
        progress=False,
    )  # fmt: skip
    saved = json.loads(found.save(tmp_path / "result.json").read_text())
    assert saved["record"]["samples"] == 64
    assert saved["finite_records"]["8"]["replicates"] == 2
    assert saved["finite_records"]["4"]["key"] != saved["finite_records"]["8"]["key"]


def test_runs_in_function_space_have_one(tmp_path):
    made = tp.kernels.train(np.eye(2), np.eye(2), np.ones(2), "mse", lr=0.1, steps=1)
    assert made.record["dtype"] == "float64"
    assert made.record["seconds"] >= 0
    loaded = tp.kernels.KernelRun.load(made.save(tmp_path / "run.safetensors"))
    assert loaded.record == made.record
    np.testing.assert_array_equal(loaded.train, made.train)


# --- wrong suffixes


def test_another_suffix_is_warned_of(tmp_path):
    made = run()
    with pytest.warns(tp.LimitWarning, match=r"safetensors file(.|\n)*Name it run.safetensors"):
        path = made.save(tmp_path / "run.csv")
    same(tp.Trajectory.load(path), made)
    made.save(tmp_path / "run")
    kernel = tp.kernels.train(np.eye(2), np.eye(2), np.ones(2), "mse", lr=0.1, steps=1)
    with pytest.warns(tp.LimitWarning, match="Name it run.safetensors"):
        kernel.save(tmp_path / "run.npz")
    found = tp.compare(
        step, THETA, [1.0], widths=[4], seeds=2, samples=64, key=KEY, progress=False
    )  # fmt: skip
    with pytest.warns(tp.LimitWarning, match="Name it result.json"):
        found.save(tmp_path / "result.npz")


# --- for papers


def trajectory(outputs, observations=None):
    return tp.Trajectory(Records(outputs, observations), Records(0, 0), 8)


VALUES = np.array([[-0.5222, 1.0], [-0.5224, 3.0], [-0.5232, 2.0], [-0.5226, 2.0]])


def test_format():
    f = np.stack([VALUES * 0 + 0.5, VALUES], axis=1)  # replicate, step, point
    made = trajectory({"loss": VALUES.astype(np.float32)}, {"f": f})
    assert made.format() == {"f": ["-0.5226(2)", "2.0(4)"]}
    assert made.format(0) == {"f": ["0.5", "0.5"]}
    assert made.format(None)["f"] == [["0.5", "0.5"], ["-0.5226(2)", "2.0(4)"]]
    assert made.format(-1, which="outputs", digits=2) == {"loss": "2.00(41)"}
    assert made.format(latex=True) == {"f": ["$-0.5226(2)$", "$2.0(4)$"]}
    with pytest.raises(ValueError, match="step=2 is out of range"):
        made.format(2)
    with pytest.raises(ValueError, match="which='loss' is not known"):
        made.format(which="loss")
    with pytest.raises(ValueError, match="digits=3"):
        made.format(digits=3)
    with pytest.raises(TypeError, match="real numbers"):
        trajectory(VALUES + 1j).format()
    counts = trajectory(np.array([[3], [3]]))
    assert counts.format() == "3"


def test_to_dict_is_ready_for_json():
    f = np.stack([VALUES, VALUES * np.nan], axis=1)
    made = trajectory({"loss": (VALUES, None)}, {"f": f, "z": VALUES + 1j})
    found = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    np.testing.assert_allclose(found["outputs"]["loss"][0], made.outputs["loss"][0])
    np.testing.assert_allclose(found["stderr_outputs"]["loss"][0], made.stderr.outputs["loss"][0])
    assert found["observations"]["f"][1] == [None, None]
    assert found["observations"]["z"][0] == [pytest.approx(-0.5226), 1.0]
    assert found["replicates"] == 4
    assert run().to_dict()["record"]["samples"] == 64
    assert run().to_dict()["exponents_observations"] == "0"


def test_to_pandas():
    f = np.stack([VALUES, VALUES + 1, VALUES + 2], axis=1)
    made = trajectory({"loss": VALUES}, f)
    table = made.to_pandas(0.9)
    assert len(table) == 2 + 3 * 2
    row = table[(table.record == "observations") & (table.step == 2) & (table.entry == "1")].iloc[0]
    low, high = (end.observations[2, 1] for end in made.interval(0.9))
    assert row["mean"] == made.observations[2, 1] == 4.0
    assert (row["stderr"], row["low"], row["high"]) == (made.stderr.observations[2, 1], low, high)
    assert set(table.leaf) == {"['loss']", ""}


def test_pandas_is_no_dependency(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        trajectory(VALUES).to_pandas()


# --- citations


def entries(text):
    """Entries by key, with their fields; braces have to match."""
    assert text.count("{") == text.count("}")
    found = {}
    for kind, key, body in re.findall(r"@(\w+)\{(\w+),\n(.*?)\n\}", text, re.DOTALL):
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, re.MULTILINE))
        found[key] = fields | {"kind": kind}
    return found


def test_the_method_is_cited():
    text = tp.cite()
    found = entries(text)
    assert set(found) == {"tplimit", *METHOD, "jax2018"}
    assert found["tplimit"]["version"] == tp.__version__
    for entry in found.values():
        assert {"author", "title", "year"} <= set(entry)
    assert "Hajjar" in text
    assert "Golikov" in text
    assert repr(text) == str(text)
    # For programs the same is in CITATION.cff.
    for key in METHOD:
        assert f"arXiv:{found[key]['eprint']}" in (ROOT / "CITATION.cff").read_text()


def test_results_add_what_they_used():
    sobol = {"joe2008", "matousek1998"}
    assert sobol <= set(entries(tp.cite(run())))
    assert not sobol & set(entries(tp.cite(run(noise="random"))))
    assert not sobol & set(entries(tp.cite(run(8))))
    kernel = tp.ntk(lambda t, x: x @ t["u"], {"u": tp.normal((2,))}, np.eye(2), method="particles")
    fit = tp.kernels.train(np.eye(2), np.eye(2), np.ones(2), "mse", lr=0.1, steps=1)
    for result in (kernel, fit):
        assert "jacot2018" in entries(tp.cite(result))
    for wrong in (3, "ntk", tp.Trajectory):
        with pytest.raises(TypeError, match="does not say what it used"):
            tp.cite(wrong)
