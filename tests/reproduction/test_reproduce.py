"""`tplimit reproduce`: records, pages, errors; with experiments made up for the test."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tplimit.commands import main
from tplimit.reproduction import Result, experiments

GOOD = '''"""Two is even.

The remainder of the docstring, with *Markdown*. Source: Euclid, VII.6.
"""
import numpy as np
from tplimit.output.figures import panels
from tplimit.reproduction import Measurement, Result, Row, at_most
from . import _numbers


def draw(figure):
    (axes,) = panels(figure, 1)
    axes.plot([0, 1])


def run(quick):
    rows = [
        Row("remainder | of _two_", 0, _numbers.TWO % 2),
        Row("parity", "odd", "even", note="printed so"),
        Row("size", at_most(3.0), Measurement(np.float32(2.5), 0.5, 6)),
        Row("slope", 1, Measurement(1.1, 0.02, 30, p=0.04), 0.2),
        Row("one seed", 1, Measurement(1.1, None, None), 0.2),
    ]
    data = {"x": np.array([1.0, np.nan, 1 / 3]), "n": {64: np.int32(1)}}
    return Result(rows, data, {"quick": quick, "widths": [64, 128], "η": 0.5}, draw)
'''
COUNTS = (
    "1 agree, 1 are within the tolerance but different, 1 do not hold, 1 are undecided, "
    "1 have an error that is not known"
)
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
    assert COUNTS in result.output.replace("\n", " ")
    record = json.loads((out / "euclid" / "even.json").read_text())
    assert record["quick"] is True
    assert record["setting"] == {"quick": True, "widths": [64, 128], "η": 0.5}
    assert record["data"] == {"x": [1.0, None, 0.333333], "n": {"64": 1}}
    verdicts = [row["verdict"] for row in record["rows"]]
    assert verdicts == [
        "agrees",
        "does not hold",
        "undecided",
        "within the tolerance but different",
        "error not known",
    ]
    assert record["rows"][2]["predicted"] == {"low": None, "high": 3.0}
    assert record["rows"][2]["measured"] == {"value": 2.5, "stderr": 0.5, "degrees": 6, "p": None}
    assert set(record["versions"]) == {"tplimit", "jax", "numpy"}
    assert (out / "euclid" / "even.png").stat().st_size > 1000
    page = (out / "euclid.md").read_text()
    for line in (
        "# Elements. (quick: a test of the script, not a measurement)",
        "An introduction.",
        "## Two is even. (quick: a test of the script, not a measurement)",
        "The remainder of the docstring, with *Markdown*. Source: Euclid, VII.6.",
        "| claim | predicted | measured | z | p | verdict | note |",
        r"| remainder \| of \_two\_ | 0 | 0 | exact |  | agrees |  |",
        "| parity | odd | even |  |  | **does not hold** | printed so |",
        "| size | ≤ 3 | 2.5 ± 0.5 | −0.9 |  | **undecided** |  |",
        "| slope | 1 ± 0.2 | 1.1 ± 0.02 | 4.2 | 0.04 | **within the tolerance but different** |  |",
        "| one seed | 1 ± 0.2 | 1.1 | not known |  | **error not known** |  |",
        "![Two is even.](euclid/even.png)",
    ):
        assert line in page.splitlines(), line
    assert f"Of 5 rows {COUNTS}." in page
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
    assert "quick" not in page.split("*Setting*")[0]
    assert not (tmp_path / "euclid" / "bad.png").exists()


def test_one_script_again_keeps_the_rest_of_the_page(folder, tmp_path):
    reproduce(folder, "euclid", "--only", "even", "--out", str(tmp_path))
    reproduce(folder, "euclid", "--only", "bad", "--quick", "--out", str(tmp_path))
    page = (tmp_path / "euclid.md").read_text()
    assert page.index("## It fails. (quick") < page.index("## Two is even.\n")
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
