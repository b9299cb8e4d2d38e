"""Pages that are tables of what came of trials: made row by row, of all or of some."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tplimit as tp

#: The first cells of a row, which name what is tried.
Name = tuple[str, ...]


class Table(NamedTuple):
    """What stands above a table, the names of its columns, which no other one of the page has, and
    trials that make the cells after the name of a row."""

    head: str
    columns: Sequence[str]
    trials: Mapping[Name, Callable[[], Sequence[str]]]


def made(page: Path, *tables: Table) -> None:
    """Write a page, again after every trial. Those named on the command line (by any of the cells
    that name them) are tried, without names all; the rows of others stay as they were."""
    parser = argparse.ArgumentParser(description=f"Writes {page.name}.")
    parser.add_argument("names", nargs="*", help="first cells of the rows to make; all by default")
    wanted = set(parser.parse_args().names)
    unknown = wanted - {cell for table in tables for name in table.trials for cell in name}
    if unknown:
        parser.error(f"there are no rows of {', '.join(sorted(unknown))}")
    written = [_written(page, table) for table in tables]
    for table, rows in zip(tables, written, strict=True):
        for name, trial in table.trials.items():
            if not wanted or wanted & {*name}:
                rows[name] = [*name, *trial()]
                print(*rows[name], sep=" | ", flush=True)
                page.write_text("\n".join(map(_shown, tables, written)))


def _shown(table: Table, rows: Mapping[Name, Sequence[str]]) -> str:
    known = [rows[name] for name in table.trials if name in rows]
    lines = [table.columns, ["---"] * len(table.columns), *known]
    return table.head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _written(page: Path, table: Table) -> dict[Name, Sequence[str]]:
    """The rows that the page has of a table."""
    lines = (page.read_text() if page.exists() else "").splitlines()
    cells = [line[2:-2].split(" | ") if line.startswith("| ") else None for line in lines]
    first = [*table.columns]
    rows = cells[cells.index(first) + 1 :] if first in cells else []
    end = rows.index(None) if None in rows else len(rows)
    lengths = {len(name) for name in table.trials}
    return {
        name: row
        for row in rows[:end] if row
        for size in lengths if (name := tuple(row[:size])) in table.trials
    }  # fmt: skip


class Beside(NamedTuple):
    """A limit beside networks: two cells of a row, and the limit."""

    slope: str
    z: str
    limit: tp.Trajectory
    #: Seconds of the limit, compilation included, and of all networks.
    seconds: tuple[float, float]


def beside(run: Callable[..., tp.Trajectory], seeds: Mapping[int, int], **sampled: Any) -> Beside:
    """Train a limit, with these options, and networks: so many of each width. They are compared by
    what is observed after each step; z leaves out the initial values.

    Raises:
        LimitError: there is no limit.
    """
    start = time.perf_counter()
    limit = run(tp.inf, **sampled)
    middle = time.perf_counter()
    networks = {width: run(width, replicates=count) for width, count in seeds.items()}
    compared = tp.Comparison(limit, networks)
    z = np.nanmax(np.abs(compared.z_scores[1:]))
    slope = "random" if compared.random else f"{compared.slope:.2f} ± {compared.slope_stderr:.2f}"
    return Beside(slope, f"{z:.1f}", limit, (middle - start, time.perf_counter() - middle))


def refused(error: tp.LimitError) -> str:
    """A refusal as a cell."""
    return f"refused: {' '.join(error.reason.split())}".replace("|", "\\|")
