"""The code of all pages runs and prints what stands there; nothing public lacks its place."""

import importlib.util
import inspect
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tplimit as tp
from tplimit import errors
from tplimit.interpreter.table import RULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def loaded(path: Path) -> ModuleType:
    """A script beside the pages as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = loaded(DOCS / "pages.py")
#: Pages whose results have tests of their own below.
OWN = {
    "README.md",
    *(f"docs/{name}.md" for name in ("figures", "function-space", "modules", "observables")),
    *(f"docs/{name}.md" for name in ("optimizers", "regimes", "results")),
}
REST = [name for page in PAGES.pages() if (name := PAGES.name(page)) not in OWN]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page writes is gone with the test."""
    monkeypatch.chdir(tmp_path)


def run(page: str, names: dict[str, Any] | None = None) -> str:
    """Run a page; compare what it prints with what it shows; all that is printed."""
    shown = [block.printed for block in PAGES.blocks(ROOT / page)]
    printed = list(PAGES.run(ROOT / page, names))
    assert len(printed) == len(shown) > 0
    for now, then in zip(printed, shown, strict=True):
        if then is not None:
            assert_alike(now, then)
    return "".join(printed)


def assert_alike(now: str, then: str) -> None:
    """The same words, and numbers that differ by two units of the last digit or 5 % at most."""
    words = [
        re.split(r"[\s━┃│─┏┓┗┛┡┩╇┳┴└┘]+", NUMBER.sub("#", text).strip()) for text in (now, then)
    ]
    assert words[0] == words[1]
    for a, b in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
        mantissa, _, power = b.partition("e")
        digit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        whole = "." not in mantissa and not power
        assert abs(float(a) - float(b)) <= 0.05 * abs(float(b)) + (whole or 2) * digit, (now, then)


def test_alike() -> None:
    """Words and numbers count, spaces and lines of tables do not."""
    assert_alike("a  0.5003(3) ┃ 12", "a 0.5001(2) │ 12")
    for other in ("b 0.5001(2) 12", "a 0.5601(2) 12", "a 0.5001(2) 15", "a 0.5001(2)"):
        with pytest.raises(AssertionError):
            assert_alike("a 0.5001(2) 12", other)


def test_readme_code_runs_as_printed() -> None:
    names: dict[str, Any] = {}
    printed = run("README.md", names)
    assert len(PAGES.blocks(ROOT / "README.md")) == 3
    result = names["result"]
    assert Path("figure.png").stat().st_size > 10_000
    assert -0.75 < result.slope < -0.3
    assert result.rms[1024] < 0.5 * result.rms[64]
    assert np.max(np.abs(result.z_scores)) < 5
    assert result.limit.outputs[-1] < 0.5 * result.limit.outputs[0]
    assert "n^1" in printed  # the squared norm of a matrix
    assert names["kernel"].method == "closed_form"
    np.testing.assert_allclose(names["kernel"], names["exact"].ntk, rtol=1e-5)
    assert re.search(r"-?\d\.\d+\(\d\)", printed)


def test_the_example_of_training_in_function_space() -> None:
    assert float(run("docs/function-space.md").split()[0]) < 0.02


def test_the_examples_of_optimizers() -> None:
    """A parameterization's step, and one's own."""
    printed = run("docs/optimizers.md")
    found = [np.array(text.split(), float) for text in re.findall(r"\[([^]]*)\]", printed)]
    assert len(found) == 2
    for losses in found:
        assert len(losses) == 5
        assert losses[-1] < 0.6 * losses[0]


def test_the_examples_of_modules() -> None:
    """Four libraries, in few lines each, a recurrent cell, and dropout."""
    first, *lines = run("docs/modules.md").splitlines()
    assert first == "truncated normal n**-1/2"
    assert lines[1:4] == ["(8, 8)"] * 3
    for losses in (lines[0], lines[4]):
        limit, finite = np.fromstring(re.sub(r"[][]", " ", losses), sep=" ").reshape(2, 3)
        np.testing.assert_allclose(finite, limit, rtol=0.25)
        assert limit[-1] < 0.8 * limit[0]
    first, *_, last = np.fromstring(lines[5].strip("[]"), sep=" ")
    assert 0 < last < first


def test_the_examples_of_results() -> None:
    """Questions, distributions, numbers for papers, records."""
    printed = run("docs/results.md")
    assert re.search(r"'-?\d\.\d+\(\d\)'", printed)
    assert "11 entries" in printed


def test_the_examples_of_observables() -> None:
    """Kernels, movement, sharpness, densities, and their figures."""
    printed = run("docs/observables.md")
    assert {path.stem for path in Path().iterdir()} == {"density", "kernels", "sharpness"}
    found = re.findall(
        r"^(\d\.\d+)\(\d+\) \['(\d\.\d+)\(\d+\)', '\d\.\d+\(\d+\)'\]$", printed, re.M
    )
    limit, finite = map(float, found[0])
    assert abs(limit - finite) < 0.1


def test_the_examples_of_figures() -> None:
    """Runs, convergence, spectra, planes of regimes."""
    run("docs/figures.md")
    written = {path.name for path in Path().iterdir()}
    page = (DOCS / "figures.md").read_text()
    assert written == set(re.findall(r'savefig\("(.*\.png)"\)', page))
    assert len(PAGES.figures(DOCS / "figures.md")) == 7


def test_the_examples_of_regimes(capsys: pytest.CaptureFixture[str]) -> None:
    """What moves in kernel regimes; what mends a parameterization, and a program."""
    page = (DOCS / "regimes.md").read_text()
    blocks = [block.code for block in PAGES.blocks(DOCS / "regimes.md")]
    told = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert (len(blocks), len(told)) == (3, 2)
    exec(compile(blocks[0], "regimes.md", "exec"), {})
    printed = capsys.readouterr().out
    assert told[0] in printed
    assert printed.splitlines()[-4:] == ["W1 0 1", "W2 0 0", "W3 -1/2 -1", "muP-like"]
    exec(compile(blocks[1], "net.py", "exec"), {})
    printed = capsys.readouterr().out
    for line in told[1].splitlines():
        assert re.sub(r"net\.py:\d+", "", line) in re.sub(r"net\.py:\d+", "", printed)
    assert printed.count("theta['v']: lower its learning rate by n^(-1/2).") == 2
    assert "outputs at step 1 grows like n^1." in printed
    exec(compile(blocks[2], "regimes.md", "exec"), {})


@pytest.mark.parametrize("page", REST)
def test_pages_print_what_they_show(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    run(page)
    for figure in PAGES.figures(ROOT / page):
        assert Path(figure.name).stat().st_size > 5_000


@pytest.mark.parametrize("page", map(PAGES.name, PAGES.pages()))
def test_figures_are_of_the_code_beside_them(page: str) -> None:
    """Else `python docs/pages.py` draws them anew."""
    assert not PAGES.stale(ROOT / page)


def test_no_figure_is_left_over_and_all_are_in_the_gallery() -> None:
    drawn = {figure for page in PAGES.pages() for figure in PAGES.figures(page)}
    assert drawn == set(PAGES.FIGURES.glob("*.png"))
    gallery = (DOCS / "gallery.md").read_text()
    assert {path.name for path in drawn} == set(re.findall(r"\bfigures/(\S+\.png)", gallery))


def test_public_names_have_their_place() -> None:
    """By itself, or in a module that is documented as a whole, by its `__all__`."""
    page = (DOCS / "api.md").read_text()
    written = set(re.findall(r"^\.\. (?:auto)?(?:class|function|data):: ([\w.]+)", page, re.M))
    whole = set(re.findall(r"^\.\. automodule:: tplimit\.(\w+)\n   :members:\n", page, re.M))
    assert whole == {"kernels", "observables"}
    (refusals,) = re.findall(r"automodule:: tplimit\.errors\n   :members: (.*)", page)
    there = written | whole | {"parameterizations"} | set(refusals.split(", "))
    assert set(tp.__all__) - there == set()
    assert set(tp.parameterizations.__all__) - there == set()
    for name in written & set(tp.__all__) - {"inf"}:  # nothing without a text
        assert inspect.getdoc(getattr(tp, name))


def test_names_that_pages_mention_exist() -> None:
    """Fields of instances apart: what begins with `tp.` and is looked up in modules and classes."""
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for name in set(re.findall(r"\btp\.([A-Za-z_.]+\w)", page.read_text())):
            value: Any = tp
            for part in name.split("."):
                assert hasattr(value, part), f"{page.name}: tp.{name}"
                value = getattr(value, part)


def test_errors_have_their_entries() -> None:
    """A section each with a program that raises it, and a line in the table of messages.

    The last line of every message names the section, by the anchor that a heading has on the page.
    """
    text = (DOCS / "errors.md").read_text()
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LimitError | errors.LimitWarning)
    }
    assert set(tp.__all__) & set(kinds) == set(kinds) - {"OpaqueAttributeError"}
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    table = "".join(re.findall(r"^\|.*\n", text, re.M))
    for name, kind in kinds.items():
        assert f"`{name}`" in table
        section = sections[name]
        page, anchor = kind.entry().split("#")
        assert (page, anchor) == ("errors.html", name.lower())
        assert str(kind("why", advice="what")).splitlines()[1:] == [
            "what",
            f"documentation: {page}#{anchor}",
        ]
        assert "```python" in section
        shown = "looks like" if name == "LimitWarning" else f"{name}: "
        assert any(shown in text for text in re.findall(r"```text\n(.*?)```", section, re.S))


def test_the_table_of_operations_is_current() -> None:
    """Whatever JAX it was written with."""
    script = runpy.run_path(str(DOCS / "operations.py"))
    assert script["page"]() == script["PAGE"].read_text(), "run python docs/operations.py"
    names = {script["name_of"](line) for line in RULES.describe().splitlines()[2:]}
    assert {p.name for p in RULES.known()} == names


def test_the_page_of_the_command_line_is_current() -> None:
    script = loaded(DOCS / "command_line.py")
    assert script.page() == script.PAGE.read_text(), "run python docs/command_line.py"
    assert len(script.commands()) == 6
    assert {"--optimizer", "--batch-size"} <= set(
        script.options(script.commands()["tplimit compare"])
    )


def test_every_page_is_in_the_contents() -> None:
    trees = re.findall(r"```\{toctree\}.*?\n\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    listed = [name for tree in trees for name in tree.split()]
    assert len(listed) == len(set(listed))
    there = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in DOCS.rglob("*.md")
        if "_build" not in page.parts
    }
    assert set(listed) == there - {"index"}


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    assert all((ROOT / link).is_file() for link in links)
