"""The README's code runs as printed, and generated pages are current."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from tplimit.interpreter.table import RULES

ROOT = Path(__file__).parent.parent


def blocks_of(page: str) -> list[str]:
    """The code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(page: str) -> dict[str, object]:
    """Run the code of a page, one block after the other; returns its names."""
    names: dict[str, object] = {}
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), names)
    return names


def test_readme_code_runs_as_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(blocks_of("README.md")) == 3
    names = run("README.md")
    printed = capsys.readouterr().out
    finite, infinite = map(float, printed.splitlines()[0].split())
    assert abs(finite - infinite) < 0.05
    assert "slope" in printed
    assert names["kernel"].method == "closed_form"  # type: ignore[attr-defined]
    np.testing.assert_allclose(names["kernel"], names["exact"].ntk, rtol=1e-5)  # type: ignore[attr-defined]


def test_the_example_of_training_in_function_space(capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/function-space.md")
    assert float(capsys.readouterr().out.split()[0]) < 0.02


def test_the_examples_of_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    """A parameterization's step, and one's own."""
    blocks = blocks_of("docs/optimizers.md")
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "optimizers.md", "exec"), {})
        losses = [float(number) for number in capsys.readouterr().out.strip(" []\n").split()]
        assert len(losses) == 5
        assert losses[-1] < 0.6 * losses[0]


def test_the_examples_of_modules(capsys: pytest.CaptureFixture[str]) -> None:
    """Four libraries, in few lines each, and dropout."""
    run("docs/modules.md")
    first, losses, *shapes = capsys.readouterr().out.splitlines()
    assert first == "truncated normal n**-1/2"
    limit, finite = np.fromstring(losses.replace("[", " ").replace("]", " "), sep=" ").reshape(2, 3)
    np.testing.assert_allclose(finite, limit, atol=0.15)
    assert shapes[:3] == ["(8, 8)"] * 3
    first, *_, last = np.fromstring(shapes[3].strip("[]"), sep=" ")
    assert 0 < last < first


def test_the_examples_of_results(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions, distributions, numbers for papers, records."""
    monkeypatch.chdir(tmp_path)
    run("docs/results.md")
    printed = capsys.readouterr().out
    assert re.search(r"'-?\d\.\d+\(\d\)'", printed)
    assert "11 entries" in printed


def test_the_examples_of_observables(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels, movement, sharpness, densities, and their figures."""
    monkeypatch.chdir(tmp_path)
    run("docs/observables.md")
    assert {path.stem for path in tmp_path.iterdir()} == {"density", "kernels", "sharpness"}
    printed = capsys.readouterr().out
    found = re.findall(
        r"^(\d\.\d+)\(\d+\) \['(\d\.\d+)\(\d+\)', '\d\.\d+\(\d+\)'\]$", printed, re.M
    )
    limit, finite = map(float, found[0])
    assert abs(limit - finite) < 0.1


def test_the_examples_of_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, convergence, spectra, planes of regimes."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "figures.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "figures.md", "exec"), names)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == set(re.findall(r'savefig\("(.*\.png)"\)', page))
    shown = re.findall(r"\]\(figures/(.*?)\)", page)
    assert len(shown) == 3
    assert all(name in written and (ROOT / "docs" / "figures" / name).exists() for name in shown)


def test_the_table_of_operations_is_current() -> None:
    """Whatever JAX it was written with."""
    script = runpy.run_path(str(ROOT / "docs" / "operations.py"))
    assert script["page"]() == script["PAGE"].read_text(), "run python docs/operations.py"
    names = {script["name_of"](line) for line in RULES.describe().splitlines()[2:]}
    assert {p.name for p in RULES.known()} == names
