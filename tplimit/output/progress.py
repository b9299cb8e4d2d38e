"""A progress bar for long runs, only where someone looks at it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

#: Tells what is being done; "training" moves the bar on by one step.
Advance = Callable[[str], None]


@contextmanager
def bar(total: int, label: str, wanted: bool) -> Iterator[Advance]:
    """A function that moves a progress bar on by one step; a bar only where someone looks at it."""
    # Of several processes that train together, one tells.
    if not (wanted and sys.stderr.isatty() and jax.process_index() == 0):
        yield lambda status: None
        return
    from rich import console, progress  # slow to import

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[status]}"),
    )
    terminal = console.Console(stderr=True)
    with progress.Progress(*columns, console=terminal, transient=True) as shown:
        task = shown.add_task(label, total=total, status="")
        yield lambda status: shown.update(task, advance=status == "training", status=status)
