"""Writes docs/command-line.md from the commands themselves: python docs/command_line.py."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo

from tplimit.commands.main import app

PAGE = Path(__file__).with_name("command-line.md")
HEAD = """# Command line

Written from the commands (`python docs/command_line.py`). `tplimit` and `python -m tplimit` are the
same. A command that is refused prints why and ends with status 1, wrong options with status 2.

```sh
tplimit demo
tplimit compare --depth 3 --activation relu --parameterization mup --lr 0.2 --widths 64,256,1024
tplimit compare --optimizer adam --lr 0.05 --steps 10
tplimit classify ip_llr --depth 3
tplimit kernels --data random --points 500 --depth 3 --activation erf --out folder
tplimit reproduce hajjar2021 --only naive_ip --quick
```

`compare` and `demo` write `comparison.png` and `result.json` into their folder, which
`tp.Comparison.load` reads. `reproduce` needs a checkout, with `pip install -e ".[experiments]"`.

"""


def page() -> str:
    parts = []
    for name, function in commands().items():
        text = " ".join((function.__doc__ or "").split())
        parts.append(f"## {name}\n\n{text}\n\n{_table(function)}")
    return HEAD + "\n".join(parts)


def commands() -> dict[str, Callable[..., None]]:
    """The functions of the commands, by what is typed."""
    assert app.registered_callback is not None
    found = {"tplimit": app.registered_callback.callback}
    for info in app.registered_commands:
        found[f"tplimit {info.callback.__name__}"] = info.callback  # type: ignore[union-attr]
    return found  # type: ignore[return-value]


def options(function: Callable[..., None]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Options and arguments of a command by what is typed, with what typer is told of them."""
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        told = parameter.annotation.__metadata__[0]
        written = "--" + name.replace("_", "-")
        typed = name.upper() if isinstance(told, ArgumentInfo) else written
        found[", ".join(told.param_decls or [typed])] = parameter, told
    return found


def _table(function: Callable[..., None]) -> str:
    rows = ["| option | what | default |", "| --- | --- | --- |"]
    for typed, (parameter, told) in options(function).items():
        what = " ".join(told.help.split()).replace("|", "\\|")
        choices = [
            f"`{choice.value}`"
            for kind in (
                parameter.annotation.__origin__,
                *get_args(parameter.annotation.__origin__),
            )
            if isinstance(kind, type) and issubclass(kind, StrEnum)
            for choice in kind
        ]
        if choices:
            what += f" One of {', '.join(choices)}."
        default = str(parameter.default)
        shown = "" if default in ("", "None", "False", str(inspect.Parameter.empty)) else default
        rows.append(f"| `{typed}` | {what} | {shown and f'`{shown}`'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
