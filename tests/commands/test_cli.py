"""The command line: options, files, errors as text."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import tplimit as tp
from tplimit.commands import data, main, study
from tplimit.commands.optimizers import Optimizer
from tplimit.errors import DivergenceError
from tplimit.regimes.regime import MEANINGS
from tplimit.training.comparison import Comparison

SMALL = ["--widths", "8,16", "--seeds", "2", "--replicates", "1", "--steps", "1", "--samples", "64"]
TINY = [*SMALL, "--depth", "1", "--train", "4", "--test", "2"]


def invoke(*arguments: str):
    return CliRunner().invoke(main.app, list(arguments))


def plain(text: str) -> str:
    """Without colours, boxes and line breaks, which depend on the terminal."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text))


def test_compare_writes_its_files(tmp_path):
    result = invoke("compare", *TINY, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "RMS distance" in result.output
    assert "fitted slope" in result.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["study"]["data"] == "digits"
    assert record["widths"] == [8, 16]
    assert set(record["rms"]) == {"8", "16"}
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000


@pytest.fixture
def studies(monkeypatch) -> list[main.Study]:
    """What the command line would run; the run itself fails."""
    seen = []

    def fake(study: main.Study) -> Comparison:
        seen.append(study)
        raise DivergenceError("grows like n^1/2")

    monkeypatch.setattr(main, "run_study", fake)
    return seen


def test_demo_is_the_main_job(tmp_path, studies):
    invoke("demo", "--out", str(tmp_path))
    invoke("demo", *SMALL, "--out", str(tmp_path))
    widths = (64, 128, 256, 512, 1024, 2048, 4096)
    assert studies == [
        main.Study(depth=2, activation="tanh", train=32, steps=20, widths=widths, seeds=8),
        main.Study(widths=(8, 16), seeds=2, replicates=1, steps=1, samples=64),
    ]
    assert studies[0].parameterization == "mup"
    assert studies[0].data == "digits"


def test_compare_passes_its_options_on(tmp_path, studies):
    result = invoke(
        "compare", "--depth", "3", "--activation", "relu", "--parameterization", "standard",
        "--data", "random", "--train", "6", "--test", "2", "--steps", "5", "--batch-size", "3",
        "--lr", "0.1", "--widths", "4,8", "--seeds", "3", "--samples", "32", "--replicates", "2",
        "--seed", "7", "--optimizer", "adam", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert studies == [
        main.Study(
            depth=3, activation="relu", parameterization="standard",
            data="random", train=6, test=2, steps=5, batch_size=3, lr=0.1, widths=(4, 8),
            seeds=3, samples=32, replicates=2, seed=7, optimizer=Optimizer.adam,
        )
    ]  # fmt: skip
    # Errors of tplimit are text for the user, not tracebacks.
    assert result.exit_code == 1
    assert "tplimit: grows like n^1/2" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "--activation", "tan"], 1, "unknown activation 'tan'"),
        (["compare", "--batch-size", "5"], 1, "batch size 5 has to divide the 32 training points"),
        (["compare", "--train", "9000"], 1, "points wanted, the two classes have"),
        (["demo", "--widths", "64,many"], 2, "give integers with commas"),
        (["demo", "--widths", "64,64"], 2, "positive and all different"),
        (["demo", "--seeds", "1"], 2, "--seeds"),
        (["compare", "--lr", "nan"], 1, "--lr=nan is not finite"),
        (["compare", "--lr", "inf"], 1, "--lr=inf is not finite"),
        (["compare", "--lr", "-0.1"], 1, "--lr=-0.1 is not positive"),
        (["compare", "--lr", "fast"], 2, "--lr"),
        (["compare", "--seed", "-1"], 2, "--seed"),
        (["compare", "--parameterization", "other"], 2, "use one of golikov, hp, hpz, ic_mean_fie"),
        (["compare", "--parameterization", "golikov"], 2, "write for instance 'golikov(-0.5, 0)'"),
        (["compare", "--parameterization", "golikov(1)"], 2, "golikov needs q_tilde, or both q_a"),
        (["compare", "--parameterization", "intermediate(0.7"], 2, "is no call of intermediate"),
        (["compare", "--parameterization", "mup(2)"], 2, "is no call of mup"),
        (["compare", "--optimizer", "muon"], 2, "'muon' is not one of 'adagrad', 'adam',"),
        (["classify", "ip_llr", "--optimizer", "adam"], 1, "Take one that treats all steps alike"),
        (["compare", "--parameterization", "ip_bias"], 1, "ip_bias scales biases: give --bias all"),
    ],
)
def test_wrong_options(arguments, code, message):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert message in plain(result.output)
    assert "Traceback" not in result.output


SLOW_NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("hp", "ip_bias", "ic_mean_field", "golikov(-1, 1)")
]


@pytest.mark.filterwarnings("ignore:The limit is a random function:tplimit.LimitWarning")
@pytest.mark.parametrize("name", ["ip_llr", *SLOW_NAMES])
def test_compare_takes_every_parameterization(tmp_path, name):
    """Those with a first step of their own, and those that are made from exponents."""
    arguments = [*TINY, "--data", "random", "--bias", "all", "--out", str(tmp_path)]
    result = invoke("compare", "--parameterization", name, *arguments)
    assert result.exit_code == 0, result.output
    study = json.loads((tmp_path / "result.json").read_text())["study"]
    assert (study["parameterization"], study["bias"]) == (name, "all")


def test_samples_are_chosen_by_the_run(monkeypatch, tmp_path):
    """Functions of pairs of particles take fewer than 2^14."""
    seen = []

    def fake(step, theta, batches, *, samples, **options):
        seen.append(samples)
        raise DivergenceError("grows like n^1/2")

    monkeypatch.setattr(study, "compare", fake)
    for options in ([], ["--samples", "64"]):
        invoke("compare", "--data", "random", "--optimizer", "adam", *options)
    assert seen == [None, 64]


@pytest.mark.slow
@pytest.mark.parametrize("name", Optimizer)
def test_compare_takes_every_optimizer(tmp_path, name):
    """On hidden matrices, for several steps. Signs take more samples."""
    small = [
        *SMALL,
        "--steps",
        "3",
        "--samples",
        "512",
        "--train",
        "4",
        "--test",
        "2",
        "--data",
        "random",
    ]
    result = invoke("compare", *small, "--lr", "0.05", "--optimizer", name, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["study"]["optimizer"] == name
    assert record["rms"]["16"] < 2


def test_an_optimizer_sees_pixels_that_vary(monkeypatch):
    """Gradients of the weights of others are 0, of which no sign is known."""
    digits = data.varying(data.digits(train=32, test=8))
    assert digits.x.shape == (32, 48)
    assert digits.x_test.shape == (8, 48)
    seen = []
    monkeypatch.setattr(study, "compare", lambda step, theta, *_, **__: seen.append(theta))
    for optimizer in (None, Optimizer.adam):
        main.run_study(main.Study(optimizer=optimizer))
    assert [theta["W1"].shape[0] for theta in seen] == [64, 48]


@pytest.mark.slow
def test_adam_on_digits(tmp_path):
    arguments = ["--optimizer", "adam", "--lr", "0.02", "--depth", "1", "--samples", "256"]
    result = invoke("compare", *TINY[:8], *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", Optimizer)
def test_optimizers_have_the_rate_one(name):
    """Gradients of 1: the first update, but for weight decay, is known."""
    optimizer = name.transformation()
    updates, _ = optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))
    known = {"rmsprop": -(0.1**-0.5), "adagrad": -(1.1**-0.5), "nadam": -(1 + 0.9 * 0.1 / 0.19)}
    expected = known.get(name, -1.0)
    np.testing.assert_allclose(updates, expected, rtol=2e-3)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    result = invoke("demo", *SMALL)
    assert result.exit_code == 1
    assert 'pip install "tplimit[demo]"' in plain(result.output)


def test_digits_are_balanced_and_scaled():
    digits = data.digits(train=32, test=8)
    assert digits.x.shape == (32, 64)
    assert digits.x_test.shape == (8, 64)
    assert digits.y.sum() == digits.y_test.sum() == digits.y[:2].sum() == 0
    assert abs(digits.x.mean(axis=0)).max() < 1e-6
    assert abs((digits.x**2).mean() - 1) < 1e-5
    assert digits.x.dtype == digits.y.dtype == "float32"


def test_minibatches_cycle_through_the_data():
    points = data.random_points(train=4, test=1, inputs=2)
    batches = study.minibatches(points, 2, 3)
    assert [b[1].tolist() for b in batches] == [
        points.y[:2].tolist(), points.y[2:].tolist(), points.y[:2].tolist(),
    ]  # fmt: skip


def test_versions_are_told():
    assert re.fullmatch(
        rf"tplimit {tp.__version__}, jax {jax.__version__}\n", invoke("--version").output
    )


def test_every_exponent_has_a_meaning():
    """Counted ones with one hidden layer and more; measured ones are fewer."""
    for depth in (1, 2):
        regime = tp.classify(tp.parameterizations.ntk, tp.mlp(depth, inputs=3))
        shown = plain(invoke("classify", "ntk", "--depth", str(depth)).output)
        for name in regime.exponents:
            meaning = MEANINGS.get(re.sub(r"_\d+$", "_l", name)) or MEANINGS[name]
            pattern = rf"{name} +[~≤]? ?n?\^?\S+ +{re.escape(meaning)}"
            assert re.search(pattern, shown), (name, shown)


def test_classify_prints_the_regime():
    shown = plain(invoke("classify", "ntk", "--depth", "3", "--activation", "relu").output)
    assert "name ┃" not in shown
    assert re.search(r"name kernel", shown)
    assert "r ~ 1/2" in shown
    assert "df_1 ~ n^0" in shown
    assert "f_0 n^0" in shown
    # What the signs and the marks mean is said once.
    assert shown.count("A positive power grows with the width n") == 1
    assert shown.count("~: generic, this if no symmetry makes a coefficient vanish") == 1


@pytest.mark.slow
def test_classify_may_run_the_program():
    shown = plain(invoke("classify", "naive_ip", "--depth", "1", "--run").output)
    assert "┃ counted ┃ measured ┃" in shown
    assert re.search(r"name MF mean-field", shown)


def test_classify_counts_with_an_optimizer():
    shown = plain(invoke("classify", "naive_ip", "--depth", "3", "--optimizer", "sign").output)
    assert "naive_ip, 3 hidden layers, tanh, sign" in shown
    assert re.search(r"name mean-field", shown)
    assert re.search(r"name trivial", plain(invoke("classify", "naive_ip", "--depth", "3").output))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "regime"), [("mup", "MF mean-field"), ("ntk", "NTK kernel")])
def test_classify_may_run_an_optimizer(name, regime):
    shown = plain(invoke("classify", name, "--depth", "1", "--optimizer", "adam", "--run").output)
    assert re.search(f"name {regime}", shown)


def test_classify_names_what_it_does_not_know():
    result = invoke("classify", "nothing")
    assert result.exit_code == 1
    assert "unknown parameterization 'nothing'" in plain(result.output)


@pytest.mark.filterwarnings("ignore:No limit is known to compare with:tplimit.LimitWarning")
def test_compare_shows_what_diverges(tmp_path):
    """The table of powers and the files, and the exit status of a failure."""
    arguments = [
        *TINY,
        "--data",
        "random",
        "--parameterization",
        "standard",
        "--out",
        str(tmp_path),
    ]
    result = invoke("compare", *arguments)
    assert result.exit_code == 1, result.output
    assert "no limit is known" in result.output and "power of n" in result.output
    assert "Traceback" not in result.output
    assert json.loads((tmp_path / "result.json").read_text())["limit"] is None
    assert Comparison.load(tmp_path / "result.json").limit is None
