"""Pages that are tables of what came of trials: made row by row, of all or of some."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tplimit as tp

#: The first cells of a row, which name what is tried.
Name = tuple[str, ...]


def made(
    page: Path,
    head: str,
    columns: Sequence[str],
    trials: Mapping[Name, Callable[[], Sequence[str]]],
) -> None:
    """Write a page, again after every trial. Those named on the command line (by any of the cells
    that name them) are tried, without names all; the rows of others stay as they were."""
    parser = argparse.ArgumentParser(description=f"Writes {page.name}.")
    parser.add_argument("names", nargs="*", help="first cells of the rows to make; all by default")
    wanted = set(parser.parse_args().names)
    unknown = wanted - {cell for name in trials for cell in name}
    if unknown:
        parser.error(f"there are no rows of {', '.join(sorted(unknown))}")
    rows = _written(page, trials)
    for name, trial in trials.items():
        if not wanted or wanted & {*name}:
            rows[name] = [*name, *trial()]
            print(*rows[name], sep=" | ", flush=True)
            known = [rows[name] for name in trials if name in rows]
            lines = [columns, ["---"] * len(columns), *known]
            page.write_text(head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def _written(page: Path, trials: Mapping[Name, object]) -> dict[Name, Sequence[str]]:
    """The rows that the page has."""
    text = page.read_text() if page.exists() else ""
    cells = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    lengths = {len(name) for name in trials}
    return {name: row for row in cells for size in lengths if (name := tuple(row[:size])) in trials}


def refused(error: tp.LimitError) -> str:
    """A refusal as a cell."""
    return f"refused: {' '.join(error.reason.split())}".replace("|", "\\|")
