"""A progress bar for long runs, only where someone looks at it."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

#: What is told when a step is done.
STEP = "training"

#: Tells what is being done; ``STEP`` moves the bar on by one step.
Advance = Callable[[str], None]


class Pace:
    """How long steps take, apart from compilation and what else comes between them.

    >>> pace = Pace(total=100)
    >>> for status, now in [("compiling", 0.0), (STEP, 9.0), (STEP, 10.0), (STEP, 11.0)]:
    ...     pace.tell(status, now)
    >>> pace.left()  # 97 steps of a second
    'about 2 min left'
    """

    def __init__(self, total: int) -> None:
        self.todo, self.steps = total, list[float]()
        self._last: float | None = None

    def tell(self, status: str, now: float) -> None:
        """What has begun, or a `STEP` that is done, at a time."""
        if status == STEP:
            self.todo -= 1
            if self._last is not None:
                self.steps.append(now - self._last)
        # Only a step right after another one took the time between them.
        self._last = now if status == STEP else None

    def left(self) -> str:
        """In words; nothing before a step was measured, or when all are done."""
        if not self.steps or self.todo <= 0:
            return ""
        seconds = self.todo * statistics.median(self.steps)
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        minutes = seconds / 60
        return (
            f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"
        )


@contextmanager
def bar(total: int, label: str, wanted: bool) -> Iterator[Advance]:
    """A function that moves a progress bar on by one step; a bar only where someone looks at it."""
    # Of several processes that train together, one tells.
    if not (wanted and sys.stderr.isatty() and jax.process_index() == 0):
        yield lambda status: None
        return
    from rich import console, progress, table, text  # slow to import

    pace = Pace(total)

    class Left(progress.ProgressColumn):
        """How long the steps that are left will take."""

        def render(self, task: progress.Task) -> text.Text:
            return text.Text(pace.left())

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
        Left(table_column=table.Column(no_wrap=True)),
        Doing(table_column=table.Column(no_wrap=True)),
    )
    terminal = console.Console(stderr=True)
    with progress.Progress(*columns, console=terminal, transient=True) as shown:
        task = shown.add_task(label, total=total, status="", since=0.0)

        def advance(status: str) -> None:
            pace.tell(status, time.monotonic())
            shown.update(task, advance=status == STEP, status=status, since=time.monotonic())

        yield advance
