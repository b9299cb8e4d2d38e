"""Functions and values of a user's own file, as the command line names them: `file.py:name`."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["function", "load", "observer"]


def load(text: str, option: str) -> Any:
    """What a file calls by a name. The file is run once, whatever is asked of it.

    Raises:
        ValueError: the text is no `file.py:name`, there is no such file, it fails when it is run,
            or has no such name.
    """
    path, colon, name = text.rpartition(":")
    if not colon or not name or not path.endswith(".py"):
        file = text if text.endswith(".py") else "file.py"
        raise ValueError(f"{option} {text}: write {option} {file}:name, a name of that file")
    module = _module(Path(path), option)
    if not hasattr(module, name):
        known = [one for one in vars(module) if not one.startswith("_")]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {path}:{near[0]}?" if near else f"it has {', '.join(known)}"
        raise ValueError(f"{option} {text}: {path} has no {name}; {hint}")
    return getattr(module, name)


def function(text: str, option: str) -> Callable[..., Any]:
    """A function of a file.

    Raises:
        ValueError: as `load`, and where it is no function.
    """
    found = load(text, option)
    if not callable(found):
        raise ValueError(
            f"{option} {text} is a {type(found).__name__}: name a function of the file"
        )
    return found


def observer(text: str, option: str, points: Any) -> Callable[[Any], Any]:
    """A function of the state; one of the state and of points is given these points.

    Raises:
        ValueError: as `function`, and where it takes something else.
    """
    found = function(text, option)
    needed = [
        p for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if len(needed) == 1:
        return found
    if len(needed) == 2 and points is not None:
        return lambda state: found(state, points)
    raise ValueError(
        f"{option} {text} takes {len(needed)} arguments: write a function of the state, or of the "
        "state and of test points where --data are points"
    )


def _module(path: Path, option: str) -> ModuleType:
    name = f"_tplimit_{path.resolve().as_posix()}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ValueError(f"{option}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Files beside it can be imported, as where it is run by itself.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if Path(frame.filename) == path]
        at = f":{own[-1]}" if own else ""
        raise ValueError(f"{path}{at} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
