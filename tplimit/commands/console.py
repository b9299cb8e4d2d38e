"""What a command says besides its results: errors and warnings, as text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

__all__ = ["failed", "plain_warnings"]


def failed(error: Exception) -> typer.Exit:
    """The end of a command with an error of which the message is told."""
    # The message is for the user; a traceback would only hide it.
    _say(f"tplimit: {error}", "red")
    return typer.Exit(1)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings inside are told by their message alone: the line is one of the command's own."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        _say(f"tplimit: warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _say(text: str, style: str) -> None:
    console = Console(stderr=True)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
