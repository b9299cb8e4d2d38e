"""What training in function space leaves behind."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from tplimit import files
from tplimit.plotting import save_figure, trajectory_figure

__all__ = ["KernelRun"]

_FORMAT = "tplimit.KernelRun"
_VERSION = "1"


@dataclass(frozen=True, eq=False, repr=False)
class KernelRun:
    """Outputs of a network trained with a frozen kernel.

        f_t(x) = f_0(x) + sum_a Θ(x, x_a) β_t(a)

    Attributes:
        steps: the steps (or times) that were recorded, increasing; (records,).
        train: outputs at the training points, (records, points) or (records, points, outputs), with
            the axis of replicates behind the first where `f0` had one.
        test: the same at the test points.
        loss: the loss of all training points, (records,), with replicates (records, replicates).
        coefficients: β at the last record, (points,), with axes as in `train`.
    """

    steps: np.ndarray
    train: np.ndarray
    test: np.ndarray
    loss: np.ndarray
    coefficients: np.ndarray

    def __repr__(self) -> str:
        last = np.array2string(np.asarray(self.loss[-1]), precision=4, threshold=4)
        return f"KernelRun(records={len(self.steps)}, last={self.steps[-1]}, loss={last})"

    def predict(self, kernel_xt: Any, f0: Any = 0.0) -> np.ndarray:
        """Outputs at other points after the last record: f0 + Θ(x, x_a) β.

        Args:
            kernel_xt: kernel of these points with the training points, (points, training points).
            f0: the initial function at these points, with axes as in `train`.

        Raises:
            ValueError: the number of columns is not that of the training points.
        """
        kernel = np.asarray(kernel_xt)
        ndim = self.train.ndim - 1
        # Points are the first of the function's axes, or the second behind replicates.
        axis = 1 if self.loss.ndim > 1 else 0
        if kernel.ndim != 2 or kernel.shape[1] != self.coefficients.shape[axis]:
            raise ValueError(
                f"kernel_xt has shape {kernel.shape}, its columns are the "
                f"{self.coefficients.shape[axis]} training points"
            )
        found = np.tensordot(kernel, self.coefficients, (1, axis))
        return np.asarray(f0) + (np.moveaxis(found, 0, axis) if ndim > 1 else found)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write a figure of the outputs at the test points (without any, at the training points).

        The suffix of `path` chooses the format. With replicates: their mean, and a band of one
        standard deviation between them.
        """
        shown = self.test if self.test.size else self.train
        name = "test" if self.test.size else "training"
        mean, spread = shown, np.zeros_like(shown)
        if self.loss.ndim > 1:
            mean, spread = shown.mean(axis=1), shown.std(axis=1)
        title = f"outputs at {name} points"
        figure = trajectory_figure(mean, mean - spread, mean + spread, title, self.steps)
        return save_figure(figure, path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one safetensors file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _FIELDS}
        files.write(target, arrays, {"format": _FORMAT, "version": _VERSION})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KernelRun":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, or holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            metadata, arrays = files.read(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or no file of tplimit: {error}") from error
        if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
            raise ValueError(f"{path} is a safetensors file, but no kernel run of this version")
        return cls(**arrays)


_FIELDS = ("steps", "train", "test", "loss", "coefficients")
