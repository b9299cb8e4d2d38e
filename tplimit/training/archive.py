"""The runs of a comparison in one safetensors file, without pickle."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tplimit.errors import CancellationError, DivergenceError, LimitError, Location
from tplimit.output.files import Format, Unreadable, existing
from tplimit.training.trajectory import Trajectory, unpacked

__all__ = ["SUFFIX", "read", "write"]

SUFFIX = ".safetensors"
_FORMAT = Format("tplimit.Comparison")

_KINDS = {kind.__name__: kind for kind in (DivergenceError, CancellationError)}

Made = TypeVar("Made")


def write(
    path: Path,
    limit: Trajectory | None,
    finite: Mapping[int, Trajectory],
    error: LimitError | None,
) -> None:
    """Write the runs beside `path`, under its name with another suffix.

    Raises:
        TypeError: the records contain a kind of tree that cannot be saved.
        OSError: the file cannot be written; then an older one is unchanged.
    """
    arrays: dict[str, np.ndarray] = {}

    def stored(name: str, run: Trajectory) -> dict[str, Any]:
        header, own = run.packed()
        arrays.update({f"{name}/{key}": array for key, array in own.items()})
        return header

    header = {
        "limit": None if limit is None else stored("limit", limit),
        "finite": {str(n): stored(str(n), run) for n, run in finite.items()},
        "error": None if error is None else _described(error),
    }
    _FORMAT.write(path.with_suffix(SUFFIX), arrays, {"header": json.dumps(header)})


def read(path: str | os.PathLike[str], make: Callable[..., Made]) -> Made:
    """What `make` makes of the limit, the networks by width, and why there is no limit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such file was written, or by a newer version; a JSON file alone.
    """
    target = Path(path).with_suffix(SUFFIX)
    if Path(path).exists() and not target.exists():
        raise Unreadable(
            f"{path} holds means and statistics only, and {target.name}, which has the records of "
            "every network, is not beside it (older versions wrote none): read it with json.load, "
            "or compare again"
        )
    metadata, arrays = _FORMAT.read(existing(target))

    def run(name: str, header: Any) -> Trajectory:
        start = f"{name}/"
        own = [key for key in arrays if key.startswith(start)]
        return unpacked(header, {key.removeprefix(start): arrays[key] for key in own})

    try:
        header = json.loads(metadata["header"])
        limit, finite, why = header["limit"], header["finite"], header["error"]
        return make(
            None if limit is None else run("limit", limit),
            {int(n): run(n, one) for n, one in finite.items()},
            None if why is None else _error(**why),
        )
    except Exception as error:  # whatever nonsense leads to
        raise Unreadable(
            f"{target} is damaged: no comparison was saved like this "
            f"({type(error).__name__}: {error})"
        ) from error


def _described(error: LimitError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "reason": error.reason,
        "operation": error.operation,
        "location": None if error.location is None else asdict(error.location),
        "advice": error.advice,
    }


def _error(kind: str, reason: str, operation: Any, location: Any, advice: Any) -> LimitError:
    place = None if location is None else Location(**location)
    return _KINDS[kind](reason, operation=operation, location=place, advice=advice)
