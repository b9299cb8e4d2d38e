"""`tplimit reproduce`: verdicts, records, pages, errors; with experiments made up for the test."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from tplimit.commands import main
from tplimit.reproduction.reproduce import (
    Interval,
    Result,
    Row,
    at_least,
    at_most,
    experiments,
    power_law,
)

numbers = st.floats(-1e3, 1e3)
errors = st.floats(0.0, 10.0)


# Verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "measured", "stderr", "tolerance", "verdict"),
    [
        (1.0, 1.05, None, 0.1, "holds"),
        (1.0, 1.15, None, 0.1, "does not hold"),
        (1.0, 1.05, 0.02, 0.1, "holds"),
        (1.0, 1.05, 0.04, 0.1, "undecided"),  # 1.13 is possible
        (1.0, 1.05, 5.0, 0.1, "undecided"),  # a poor measurement confirms nothing
        (1.0, 1.20, 0.04, 0.1, "does not hold"),
        (0.0, 0.0, None, 0.0, "holds"),
        (0.0, 1e-9, None, 0.0, "does not hold"),
        (at_most(2), 1.9, 0.04, 0.0, "holds"),
        (at_least(2), 1.9, 0.04, 0.0, "does not hold"),
        (Interval(0, 1), 0.5, 0.3, 0.0, "undecided"),
        ("trivial", "trivial", None, 0.0, "holds"),
        ("trivial", "unstable", None, 0.0, "does not hold"),
    ],
)
def test_verdicts(predicted, measured, stderr, tolerance, verdict):
    assert Row("c", predicted, measured, stderr, tolerance).verdict == verdict


@given(numbers, numbers, errors, st.floats(1e-3, 10.0))
def test_a_smaller_error_never_loses_a_verdict(predicted, measured, stderr, tolerance):
    verdict = Row("c", predicted, measured, stderr, tolerance).verdict
    if verdict != "undecided":
        assert Row("c", predicted, measured, stderr / 2, tolerance).verdict == verdict


@given(numbers, numbers, errors, st.floats(1e-3, 10.0))
def test_a_number_with_a_tolerance_is_an_interval(predicted, measured, stderr, tolerance):
    interval = Interval(predicted - tolerance, predicted + tolerance)
    row = Row("c", predicted, measured, stderr, tolerance)
    assert row.verdict == Row("c", interval, measured, stderr).verdict


def test_false_alarms_of_the_rule():
    """A true prediction with tolerance 3 standard errors: undecided 32 %, refused 6e-7."""
    draws = np.random.default_rng(0).normal(0.0, 1.0, 20_000)
    verdicts = [Row("c", 0.0, x, stderr=1.0, tolerance=3.0).verdict for x in draws]
    expected = math.erfc(1 / 2**0.5) * len(draws)
    assert "does not hold" not in verdicts
    assert abs(verdicts.count("undecided") - expected) < 5 * expected**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", "trivial", 1.0), "c: a number cannot be compared with a statement"),
        (("c", 1.0, "trivial"), "c: a number cannot be compared with a statement"),
        (("c", 1.0, math.nan), "c: measured has to be a finite number, not nan"),
        (("c", math.inf, 1.0), "c: predicted has to be a finite number, not inf"),
        (("c", 1.0, 1.0, math.nan, 0.1), "c: stderr has to be a finite number"),
        (("c", 1.0, 1.0, 0.1), "c: an estimate is never exact, it needs a tolerance"),
    ],
)
def test_rows_that_cannot_be_judged(arguments, message):
    with pytest.raises(ValueError, match=message):
        Row(*arguments)


def test_power_law_and_its_error():
    """Noise of one standard deviation 0.1 in the logs: slopes scatter by their standard error."""
    random, widths = np.random.default_rng(1), (64, 128, 256, 512)
    fits = [
        power_law({n: np.exp(-1.5 * np.log(n) + 0.1 * random.normal(size=16)) for n in widths})
        for _ in range(400)
    ]
    slopes, stderrs = np.array(fits).T
    assert abs(slopes.mean() + 1.5) < 4 * slopes.std() / 20
    assert abs(stderrs.mean() / slopes.std() - 1) < 0.15
    assert math.isnan(power_law({64: [1.0], 128: [2.0]})[1])


# Scripts, records and pages -----------------------------------------------------------------------

GOOD = '''"""Two is even.

The remainder of the docstring, with *Markdown*. Source: Euclid, VII.6.
"""
import numpy as np
from tplimit.output.figures import panels
from tplimit.reproduction import Result, Row, at_most
from . import _numbers


def draw(figure):
    (axes,) = panels(figure, 1)
    axes.plot([0, 1])


def run(quick):
    rows = [
        Row("remainder | of _two_", 0, _numbers.TWO % 2),
        Row("parity", "odd", "even", note="printed so"),
        Row("size", at_most(3.0), np.float32(2.5), stderr=0.5),
    ]
    data = {"x": np.array([1.0, np.nan, 1 / 3]), "n": {64: np.int32(1)}}
    return Result(rows, data, {"quick": quick, "widths": [64, 128], "η": 0.5}, draw)
'''
BAD = '"""It fails."""\n\n\ndef run(quick):\n    raise ValueError("no such number")\n'
NO_DATA = '"""It has no data."""\n\n\ndef run(quick):\n    import no_such_module_xyz\n'


def make(root: Path, name: str = "euclid", two: int = 2) -> Path:
    folder = root / "experiments" / name
    folder.mkdir(parents=True)
    for file, text in {
        "__init__.py": '"""Elements.\n\nAn introduction.\n"""\n',
        "_numbers.py": f'"""Helpers."""\n\nTWO = {two}\n',
        "bad.py": BAD,
        "even.py": GOOD,
        "no_data.py": NO_DATA,
    }.items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


def reproduce(folder: Path, *arguments: str):
    return CliRunner().invoke(main.app, ["reproduce", "--folder", str(folder), *arguments])


def test_a_page_with_its_numbers_and_figure(folder, tmp_path):
    out = tmp_path / "out"
    result = reproduce(folder, "euclid", "--only", "even", "--quick", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "[1/1] even: Two is even." in result.output
    assert "1 hold, 1 do not hold, 1 are undecided" in result.output
    record = json.loads((out / "euclid" / "even.json").read_text())
    assert record["quick"] is True
    assert record["setting"] == {"quick": True, "widths": [64, 128], "η": 0.5}
    assert record["data"] == {"x": [1.0, None, 0.333333], "n": {"64": 1}}
    assert [row["verdict"] for row in record["rows"]] == ["holds", "does not hold", "undecided"]
    assert record["rows"][2]["predicted"] == {"low": None, "high": 3.0}
    assert set(record["versions"]) == {"tplimit", "jax", "numpy"}
    assert (out / "euclid" / "even.png").stat().st_size > 1000
    page = (out / "euclid.md").read_text()
    for line in (
        "# Elements.",
        "An introduction.",
        "## Two is even.",
        "The remainder of the docstring, with *Markdown*. Source: Euclid, VII.6.",
        r"| remainder \| of \_two\_ | 0 | 0 | holds |  |",
        "| parity | odd | even | **does not hold** | printed so |",
        "| size | ≤ 3 | 2.5 ± 0.5 | **undecided** |  |",
        "![Two is even.](euclid/even.png)",
    ):
        assert line in page.splitlines(), line
    assert "Of 3 rows 1 hold, 1 do not hold, 1 are undecided." in page
    assert "in the **quick** setting" in page
    # The page is a function of the records alone, and says so by being reproducible.
    assert experiments(folder)["euclid"].page(out / "euclid") == page


def test_a_failing_script_does_not_lose_the_others(folder, tmp_path):
    result = reproduce(folder, "euclid", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "failed: ValueError: no such number (line 5 of bad.py)" in result.output
    assert "No module named 'no_such_module_xyz'" in result.output
    assert 'pip install -e ".[experiments]"' in result.output
    page = (tmp_path / "euclid.md").read_text()
    assert "**The script failed**: ValueError: no such number (line 5 of bad.py)" in page
    assert "| parity | odd | even |" in page
    assert "quick" not in page.split("## Two is even.")[1].split("Setting")[0]
    assert not (tmp_path / "euclid" / "bad.png").exists()


def test_one_script_again_keeps_the_rest_of_the_page(folder, tmp_path):
    reproduce(folder, "euclid", "--only", "even", "--out", str(tmp_path))
    reproduce(folder, "euclid", "--only", "bad", "--quick", "--out", str(tmp_path))
    page = (tmp_path / "euclid.md").read_text()
    assert page.index("## It fails.") < page.index("## Two is even.")
    assert "It has no data" not in page


def test_what_there_is(folder):
    result = reproduce(folder)
    assert result.exit_code == 0
    assert "euclid: Elements." in result.output
    assert "even: Two is even." in result.output
    assert "_numbers" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gauss"], "unknown experiment 'gauss': there are euclid"),
        (["euclid", "--only", "evn,bad"], "euclid has no script evn: it has bad, even, no_data"),
        (["euclid", "--folder", "/no/such"], "no folder /no/such: experiments are no part of the"),
    ],
)
def test_wrong_names(folder, arguments, message):
    result = reproduce(folder, *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_experiments_of_the_same_name_elsewhere(tmp_path):
    """What is imported is the chosen folder, with its own helpers."""
    for two in (2, 3):
        root = make(tmp_path / str(two), two=two)
        experiment = experiments(root)["euclid"]
        record = experiment.run("even", tmp_path / str(two) / "out", quick=True)
        assert record["rows"][0]["measured"] == two % 2


def test_a_picture_that_cannot_be_drawn_is_a_failure(folder, tmp_path):
    script = folder / "euclid" / "even.py"
    script.write_text(GOOD.replace("axes.plot([0, 1])", "axes.set_title('$}$')"), encoding="utf-8")
    (tmp_path / "even.png").write_text("an older picture")
    record = experiments(folder)["euclid"].run("even", tmp_path, quick=True)
    assert "ValueError" in record["error"]
    assert not (tmp_path / "even.png").exists()


def test_what_json_cannot_hold_is_refused(folder, tmp_path):
    (folder / "euclid" / "even.py").write_text(GOOD.replace("np.int32(1)", "object()"))
    record = experiments(folder)["euclid"].run("even", tmp_path, quick=True)
    assert "cannot go into JSON" in record["error"]


def test_a_result_needs_rows_only():
    assert Result([]).draw is None
