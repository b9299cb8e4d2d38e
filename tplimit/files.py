"""Files of named arrays: no pickle, and never half a file."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def write(path: Path, arrays: dict[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a file that is either complete or absent, whenever the process or machine stops."""
    partial = path.with_name(path.name + ".partial")
    save_file(arrays, partial, metadata=dict(metadata))
    _to_disk(partial)
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of a file.

    Raises:
        safetensors.SafetensorError: it is truncated, or no such file.
    """
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, arrays
