"""Claims of the literature against what is measured here: scripts, records, generated pages.

An experiment is a folder of scripts, one per claim, such as `experiments/hajjar2021/`. The
docstring of a script states the claim, its first line being the title, and names the source; its
function `run(quick)` returns a `Result`. Files that start with an underscore are shared helpers,
which scripts import as `from . import _name`; the docstring of `__init__.py` introduces the page.
"""

import ast
import dataclasses
import importlib
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tplimit.caching.store import PROGRAMS
from tplimit.output.figures import save_figure
from tplimit.output.files import write_text
from tplimit.reproduction.measurements import Measurement
from tplimit.reproduction.verdicts import AGREES, RULE, Interval, Row, summary

__all__ = ["Experiment", "Result", "experiments", "rows_of"]

# Legible, and small enough to be kept under version control.
_DPI, _PALETTE = 110, 128
# Behind the headings of what `quick` has written.
_QUICK = " (quick: a test of the script, not a measurement)"


@dataclass(frozen=True)
class Result:
    """What a script returns.

    Args:
        rows: the claims with their verdicts.
        data: named numbers and arrays behind them, which go into the JSON file.
        setting: widths, seeds, learning rates and whatever else the numbers depend on.
        draw: draws the picture into an empty Matplotlib figure; see `output.figures.panels`.
    """

    rows: Sequence[Row]
    data: Mapping[str, Any] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    draw: Callable[[Figure], None] | None = None


# Experiments and their scripts --------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A folder of scripts."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def introduction(self) -> str:
        """The docstring of the folder; its first line is the title of the page."""
        return _docstring(self.folder / "__init__.py")

    @property
    def scripts(self) -> dict[str, str]:
        """By name in order, the docstrings of the scripts. Nothing is imported."""
        files = sorted(self.folder.glob("[!_]*.py"))
        return {file.stem: _docstring(file) for file in files}

    def choose(self, only: Sequence[str]) -> list[str]:
        """The names of the scripts to run; all of them where `only` is empty.

        Raises:
            ValueError: there is no such script.
        """
        unknown = [name for name in only if name not in self.scripts]
        if unknown:
            raise ValueError(
                f"{self.name} has no script {', '.join(unknown)}: "
                f"it has {', '.join(self.scripts) or 'none'}"
            )
        return list(only) or list(self.scripts)

    def load(self, script: str) -> ModuleType:
        """Import a script as a part of the package that its folder is."""
        with _importable(self.folder):
            return importlib.import_module(f"{self.name}.{script}")

    def run(self, script: str, out: Path, quick: bool) -> dict[str, Any]:
        """Run one script and write `out/<script>.json` and `.png`; returns the record.

        A script that raises gives a record with "error" in place of "rows", and no picture.
        """
        out.mkdir(parents=True, exist_ok=True)
        picture = out / f"{script}.png"
        start = time.monotonic()
        # What earlier scripts compiled takes memory, and holds constants of their precision.
        PROGRAMS.clear()
        jax.clear_caches()
        try:
            result = self.load(script).run(quick)
            outcome = {
                "rows": [_encode_row(row) for row in result.rows],
                "setting": _plain(result.setting),
                "data": _plain(result.data),
            }
            picture.unlink(missing_ok=True)
            if result.draw is not None:
                figure = Figure(layout="constrained", facecolor="white", dpi=_DPI)
                result.draw(figure)
                _shrink(save_figure(figure, picture, dpi=_DPI))
        except Exception as error:
            # Whatever goes wrong in one script, the others run.
            picture.unlink(missing_ok=True)
            outcome = {"error": _explain(error, self.folder)}
        record = {
            "script": script,
            "quick": quick,
            "seconds": round(time.monotonic() - start, 1),
            "versions": {name: version(name) for name in ("tplimit", "jax", "numpy")},
            "backend": jax.default_backend(),
            **outcome,
        }
        write_text(out / f"{script}.json", _json(record))
        return record

    def page(self, out: Path) -> str:
        """The page in Markdown of all records of this experiment in the folder `out`."""
        records = [
            json.loads(file.read_text(encoding="utf-8"))
            for file in (out / f"{script}.json" for script in self.scripts)
            if file.is_file()
        ]
        title, _, rest = self.introduction.partition("\n")
        rows = [row for record in records for row in rows_of(record)]
        quick = any(record["quick"] for record in records)
        parts = [
            f"# {title}{_QUICK * quick}",
            rest.strip(),
            f"Written by `tplimit reproduce {self.name}` from the numbers in `{self.name}/*.json`; "
            "a test keeps it so.",
            RULE,
            f"Of {len(rows)} rows {summary(rows)}.",
            *(self._section(record, out / f"{record['script']}.png") for record in records),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _section(self, record: Mapping[str, Any], picture: Path) -> str:
        script = record["script"]
        title, _, rest = self.scripts[script].partition("\n")
        how = f"`{script}.py`"
        parts = [f"## {title}{_QUICK * record['quick']}", rest.strip()]
        if "error" in record:
            parts += [f"**The script failed**: {_escape(record['error'])}"]
        else:
            parts += [_table(rows_of(record))]
        if picture.is_file():
            parts += [f"![{title}]({self.name}/{picture.name})"]
        setting = "; ".join(f"{k}: {_setting(v)}" for k, v in record.get("setting", {}).items())
        parts += [f"*Setting*: {setting}. ({how})" if setting else f"({how})"]
        return "\n\n".join(part for part in parts if part)


def experiments(folder: str | Path) -> dict[str, Experiment]:
    """By name, the experiments in a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: experiments are no part of the installed package, run "
            "this in a checkout of tplimit, or give --folder"
        )
    inside = sorted(path.parent for path in root.glob("*/__init__.py"))
    return {path.name: Experiment(path) for path in inside}


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """The rows of a record that `Experiment.run` wrote; none where the script failed."""
    return [_decode_row(row) for row in record.get("rows", ())]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within it the folder is an importable package, and not one of the same name elsewhere."""
    other = sys.modules.get(folder.name)
    if other is not None and list(getattr(other, "__path__", ())) != [str(folder)]:
        for name in [m for m in sys.modules if m.split(".")[0] == folder.name]:
            del sys.modules[name]
    sys.path.insert(0, str(folder.parent))
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or file.stem


def _shrink(picture: Path) -> None:
    """A third of the bytes: line drawings have few colours."""
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(_PALETTE)
    small.save(picture, optimize=True)


def _explain(error: Exception, folder: Path) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        text += ': pip install -e ".[experiments]" installs what the experiments need'
    inside = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent == folder
    ]  # fmt: skip
    if inside:
        text += f" (line {inside[-1].lineno} of {Path(inside[-1].filename).name})"
    return text


# Text ---------------------------------------------------------------------------------------------


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_setting(v)}" for k, v in value.items())
    return _escape(f"{value:g}" if isinstance(value, float) else str(value))


def _escape(text: str) -> str:
    """Text that Markdown takes as it is, in a cell of a table too."""
    for sign in "\\|*_<`":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _table(rows: Sequence[Row]) -> str:
    cells = [row.cells() for row in rows]
    # The last columns are left out where no row has anything in them.
    head = [
        name for name in (cells[0] if cells else ())
        if name not in ("p", "note") or any(row[name] for row in cells)
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in cells:
        line = {name: _escape(row[name]) for name in head}
        if row["verdict"] != AGREES:
            line["verdict"] = f"**{line['verdict']}**"
        lines.append(list(line.values()))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# JSON ---------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Arrays as lists with six digits, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{value!r} is no number, string, array, list or dict: it cannot go into JSON")


def _json(record: Mapping[str, Any]) -> str:
    """The record as text: arrays in one line at the end, the rest one entry in a line."""
    head = {k: v for k, v in record.items() if k != "data"}
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False)
    data = json.dumps(record.get("data", {}), allow_nan=False, ensure_ascii=False)
    return f'{text[:-2]},\n "data": {data}\n}}\n'


def _encode_row(row: Row) -> dict[str, Any]:
    """The fields, what follows from them for those who read the file, and None for infinities."""
    code = dataclasses.asdict(row) | {"z": row.z, "verdict": row.verdict}
    if isinstance(row.predicted, Interval):
        ends = dataclasses.asdict(row.predicted)
        code["predicted"] = {k: v if math.isfinite(v) else None for k, v in ends.items()}
    if row.z is not None and math.isinf(row.z):
        code["z"] = None
    return code


def _decode_row(code: Mapping[str, Any]) -> Row:
    fields = {k: v for k, v in code.items() if k not in ("z", "verdict")}
    if isinstance(fields["predicted"], dict):
        ends = {k: v for k, v in fields["predicted"].items() if v is not None}
        fields["predicted"] = Interval(**ends)
    if isinstance(fields["measured"], dict):
        fields["measured"] = Measurement(**fields["measured"])
    return Row(**fields)
