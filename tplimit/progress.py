"""A progress bar for long runs, only where someone looks at it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Tells what is being done; "training" moves the bar on by one step.
Advance = Callable[[str], None]


@contextmanager
def bar(total: int, label: str, wanted: bool) -> Iterator[Advance]:
    """A function that moves a progress bar on by one step; a bar only where someone looks at it."""
    console = Console(stderr=True)
    # Of several processes that train together, one tells.
    wanted = wanted and jax.process_index() == 0
    if not (wanted and sys.stderr.isatty() and console.is_terminal):
        yield lambda status: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(label, total=total, status="")
        yield lambda status: shown.update(task, advance=status == "training", status=status)
