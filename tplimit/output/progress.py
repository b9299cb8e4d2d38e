"""A progress bar for long runs, only where someone looks at it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

#: What is told when a step is done.
STEP = "training"

#: Tells what is being done; ``STEP`` moves the bar on by one step.
Advance = Callable[[str], None]


@contextmanager
def bar(total: int, label: str, wanted: bool) -> Iterator[Advance]:
    """A function that moves a progress bar on by one step; a bar only where someone looks at it."""
    # Of several processes that train together, one tells.
    if not (wanted and sys.stderr.isatty() and jax.process_index() == 0):
        yield lambda status: None
        return
    from rich import console, progress, table, text  # slow to import

    class Doing(progress.ProgressColumn):
        """What is being done, and since when if that is no step: the wait is seen to go on."""

        def render(self, task: progress.Task) -> text.Text:
            status, since = task.fields["status"], task.fields["since"]
            waited = "" if status == STEP else f", {time.monotonic() - since:.0f} s"
            return text.Text(status + waited if status else "")

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        Doing(table_column=table.Column(no_wrap=True)),
    )
    terminal = console.Console(stderr=True)
    with progress.Progress(*columns, console=terminal, transient=True) as shown:
        task = shown.add_task(label, total=total, status="", since=0.0)

        def advance(status: str) -> None:
            shown.update(task, advance=status == STEP, status=status, since=time.monotonic())

        yield advance
