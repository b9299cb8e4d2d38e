"""Try random programs for some time, count what comes of them, and print what fails made small."""

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fuzz import arrays, networks, vectors
from fuzz.trial import trial
from fuzz.verdicts import Counts, Outcome

KINDS: dict[str, ModuleType] = {kind.NAME: kind for kind in (arrays, vectors, networks)}


def main(
    seconds: Annotated[float, typer.Option(help="How long to go on.")] = 600,
    first: Annotated[int, typer.Option(help="Number of the first program.")] = 0,
    last: Annotated[int, typer.Option(help="Number after the last program.")] = 10**9,
    kind: Annotated[list[str] | None, typer.Option(help="Which kinds; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the counts.")] = None,
) -> None:
    """Try random programs of every kind in turn."""
    kinds = [KINDS[name] for name in kind or KINDS]
    counts = {one.NAME: Counts() for one in kinds}
    console, end = Console(), time.monotonic() + seconds
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("programs", total=seconds)
        for number in range(first, last):
            for one in kinds:
                start = time.monotonic()
                if start > end:
                    break
                verdict, program = trial(one, number)
                counts[one.NAME].add(verdict)
                if verdict.fault:
                    console.print(f"{verdict.outcome}: {one.NAME} {number}\n{verdict.text}")
                    console.print(program.source, markup=False, highlight=False)
                progress.advance(task, time.monotonic() - start)
            if time.monotonic() > end:
                break
    _show(console, counts)
    if out is not None:
        out.write_text(
            json.dumps({k: [c.outcomes, c.reasons] for k, c in counts.items()}, indent=1)
        )
    raise typer.Exit(any(count.faults for count in counts.values()))


def _show(console: Console, counts: dict[str, Counts]) -> None:
    table = Table(title="Random programs")
    table.add_column("kind")
    table.add_column("tried", justify="right")
    for outcome in Outcome:
        table.add_column(outcome.value, justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count.tried), *(str(count.outcomes[o]) for o in Outcome))
    console.print(table)
    for name, count in counts.items():
        for reason, times in count.reasons.most_common(12):
            console.print(f"{name}: {times} x {reason}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
