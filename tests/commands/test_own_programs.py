"""The command line with a user's program and data, and what it says."""

import json
import re

import numpy as np
import pytest
from test_cli import invoke, plain

from tplimit.commands import data, programs
from tplimit.output.progress import STEP, Pace
from tplimit.training.comparison import Comparison

PROGRAM = """
import jax, jax.numpy as jnp, tplimit as tp
import beside

n = tp.Width("n")
theta = {"U": tp.normal((3, n)), "v": tp.normal((n,), std=n**-1)}
batches = [(jnp.ones((2, 3)), jnp.ones(2))] * 2
number = 3


def make(n):
    keys = jax.random.split(jax.random.key(0))
    return {"U": jax.random.normal(keys[0], (3, n)), "v": jax.random.normal(keys[1], (n,)) / n}


def predict(theta, x):
    return jnp.tanh(x @ theta["U"]) @ theta["v"]


def three(theta, x, y):
    return x


def step(theta, batch):
    loss = lambda t: 0.5 * jnp.mean((predict(t, batch[0]) - batch[1]) ** 2)
    value, g = jax.value_and_grad(loss)(theta)
    n = theta["v"].shape[0]
    return {"U": theta["U"] - beside.rate * n * g["U"], "v": theta["v"] - 0.1 / n * g["v"]}, value


def init(theta):
    return theta


def diverging(theta, batch):
    new, value = step(theta, batch)
    return {"U": new["U"], "v": theta["v"] + (new["v"] - theta["v"]) * theta["v"].shape[0]}, value
"""
SMALL = ["--widths", "8,16", "--seeds", "2", "--replicates", "1", "--samples", "128"]
POINTS = ["--train", "4", "--test", "2", "--steps", "2"]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("rate = 0.1\n")
    path = tmp_path / "net.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(6, 3)), np.sign(rng.normal(size=(6, 1)))], axis=1)
    np.savetxt(tmp_path / "points.csv", rows, delimiter=",", header="a,b,c,y", comments="")
    np.savez(tmp_path / "points.npz", x=rows[:, :3], y=rows[:, 3])
    return tmp_path / "points.csv"


def compare(file, out, *more, theta="theta"):
    program = ["--step", f"{file}:step", "--theta", f"{file}:{theta}", "--out", str(out)]
    return invoke("compare", *program, *SMALL, *more)


@pytest.mark.parametrize("theta", ["theta", "make"])
def test_compare_runs_a_program_of_ones_own(tmp_path, file, table, theta):
    """Declared parameters, or a function of the width that makes them; the outputs at points."""
    result = compare(
        file, tmp_path / "out", "--data", str(table), *POINTS, "--observe", f"{file}:predict",
        theta=theta,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["study"]["step"] == f"{file}:step"
    run = Comparison.load(tmp_path / "out" / "result.json").limit
    assert run.observations.shape == (3, 2)


def test_batches_may_be_ones_own(tmp_path, file):
    more = "--data", f"{file}:batches", "--init", f"{file}:init"
    result = compare(file, tmp_path / "out", *more)
    assert result.exit_code == 0, result.output
    assert Comparison.load(tmp_path / "out" / "result.json").limit.outputs.shape == (2,)


@pytest.mark.filterwarnings("always::tplimit.LimitWarning")
def test_what_diverges_is_said_with_the_line_of_the_program_and_no_other(tmp_path, file, table):
    """Warnings are messages, without a line of the library's source."""
    program = ["--step", f"{file}:diverging", "--theta", f"{file}:theta", *SMALL, *POINTS]
    more = ["--observe", f"{file}:predict", "--out", str(tmp_path / "out")]
    result = invoke("compare", *program, "--data", str(table), *more)
    assert result.exit_code == 1, result.output
    text = plain(result.output)
    assert "tplimit: warning: No limit is known to compare with" in text
    assert "by the update of theta['v']: lower its learning rate by n^(-1)." in text
    assert re.search(r"net\.py:\d+", text)
    assert "LimitWarning" not in text and "warnings.warn" not in text


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_built_in_networks_take_files(tmp_path, table, kind):
    points = str(table.with_suffix(f".{kind}"))
    arguments = ["--depth", "1", "--data", points, *SMALL, *POINTS, "--out", str(tmp_path / "out")]
    result = invoke("compare", *arguments)
    assert result.exit_code == 0, result.output


def test_files_are_read_in_order(tmp_path, table):
    found, other = (data.of_file(str(table.with_suffix(f".{k}")), 4, 2) for k in ("csv", "npz"))
    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    np.testing.assert_allclose(found.x, rows[:4, :3], rtol=1e-6)
    np.testing.assert_allclose(found.y_test, rows[4:, 3], rtol=1e-6)
    for one, two in zip(found, other, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    np.savez(tmp_path / "both.npz", x=np.ones((3, 2)), y=np.ones(3), x_test=np.zeros((2, 2)),
             y_test=np.zeros(2))  # fmt: skip
    both = data.of_file(str(tmp_path / "both.npz"), 3, 1)
    assert (both.x.shape, both.x_test.tolist()) == ((3, 2), [[0.0, 0.0]])
    np.testing.assert_array_equal(data.points_of(str(tmp_path / "both.npz")), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--step", "FILE"], "write --step FILE:name, a name of that file"),
        (["--step", "step"], "write --step file.py:name"),
        (["--step", "nothing.py:step"], "there is no file nothing.py"),
        (["--step", "FILE:stop"], "has no stop; did you mean FILE:step?"),
        (["--step", "FILE:zzz"], "has no zzz; it has jax, jnp, tp, beside, n, theta"),
        (["--step", "FILE:number"], "is a int: name a function"),
        (["--step", "FILE:step", "--theta", "FILE:theta", "--lr", "0.1"],
         "--lr is of the built-in networks: leave it out"),
        (["--step", "FILE:step", "--theta", "FILE:theta", "--observe", "FILE:three"],
         "takes 3 arguments: write a function of the state"),
        (["--step", "FILE:step", "--theta", "FILE:theta", "--data", "x.txt"],
         "or batches as --data file.py:name"),
        (["--theta", "FILE:theta"], "write --step file.py:step too"),
        (["--data", "CSV", "--train", "9"], "has 6 points, --train 9 --test 8 are more"),
        (["--data", "nothing.csv"], "nothing.csv"),
        (["--data", "x.txt"], "write digits, random, or a file that ends in .csv or .npz"),
        (["--data", "BAD"], "has z, and no x and no y: write it with numpy.savez(path, x=x, y=y)"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_what_to_write(tmp_path, file, table, more, message):
    np.savez(tmp_path / "bad.npz", z=np.ones(2))
    names = {"FILE": str(file), "CSV": str(table), "BAD": str(tmp_path / "bad.npz")}

    def named(text):
        for short, long in names.items():
            text = text.replace(short, long)
        return text

    more = list(map(named, more))
    if "--step" in more and "--theta" not in more:
        more += ["--theta", f"{file}:theta"]
    result = invoke("compare", *more)
    assert result.exit_code == 1, result.output
    assert plain(named(message)).strip() in plain(result.output), result.output
    assert "Traceback" not in result.output


def test_step_needs_theta(file):
    assert "write --theta file.py:theta too" in plain(
        invoke("compare", "--step", f"{file}:step").output
    )


def test_a_file_that_fails_is_named_with_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(
        ValueError, match=r"broken\.py:2 fails: ZeroDivisionError: division by zero"
    ):
        programs.load(f"{path}:x", "--theta")


def test_classify_explains():
    shown = plain(invoke("classify", "standard", "--depth", "3", "--explain").output)
    assert "by the update of W2: lower its learning rate by n^(-1/2)." in shown
    assert "With that it is muP-like" in shown
    assert "lower its" not in plain(invoke("classify", "standard", "--depth", "3").output)


def test_the_time_that_is_left_is_that_of_steps():
    """Compilation between two steps is none of it."""
    pace = Pace(total=5)
    assert pace.left() == ""
    for status, now in [(STEP, 10.0), ("compiling step 2", 11.0), (STEP, 20.0), (STEP, 22.0)]:
        pace.tell(status, now)
    assert pace.steps == [2.0]
    assert pace.left() == "about 4 s left"
