"""What training in function space leaves behind."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from tplimit.output.files import Format, Unreadable, existing, warn_of_suffix
from tplimit.output.provenance import provenance

__all__ = ["Ensemble", "KernelRun", "recorded"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Saved:
    """A dataclass of arrays that can be written to a file.

    Attributes:
        record: versions, date (UTC), precision, kind of device, and of a run the seconds it took;
            empty in files of older versions.
    """

    record: Mapping[str, Any] = field(default_factory=provenance)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all arrays, and `record`, to one safetensors file.

        Warns:
            LimitWarning: the name has the suffix of another kind of file.
        """
        target = Path(path)
        warn_of_suffix(target, ".safetensors", "for tables write the arrays")
        record = {"record": json.dumps(dict(self.record))}
        arrays = {name: getattr(self, name) for name in _arrays(type(self))}
        _format(type(self)).write(target, arrays, record)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated or damaged, holds something else, or is of a newer
                version.

        Warns:
            LimitWarning: it is of a version that wrote no checksum.
        """
        metadata, arrays = _format(cls).read(existing(path))
        if arrays.keys() != set(_arrays(cls)):
            raise Unreadable(f"{path} is damaged: it has other arrays than a {cls.__name__}")
        return cls(**arrays, record=json.loads(metadata.get("record", "{}")))

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of the sources, for `tplimit.cite`."""
        return ("jacot2018", "lee2019")


def recorded(dtype: Any) -> dict[str, Any]:
    """The record of what is computed now, in this precision."""
    return provenance() | {"dtype": np.dtype(dtype).name}


def _arrays(cls: type[Saved]) -> list[str]:
    return [one.name for one in fields(cls) if one.name != "record"]


def _format(cls: type) -> Format:
    return Format(f"tplimit.{cls.__name__}", version=2, unchecked=1)


@dataclass(frozen=True, eq=False, repr=False)
class KernelRun(Saved):
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
        from tplimit.output.figures import (  # Matplotlib is slow to import
            save_figure,
            trajectory_figure,
        )

        shown = self.test if self.test.size else self.train
        name = "test" if self.test.size else "training"
        mean, spread = shown, np.zeros_like(shown)
        if self.loss.ndim > 1:
            mean, spread = shown.mean(axis=1), shown.std(axis=1)
        title = f"outputs at {name} points"
        figure = trajectory_figure(mean, mean - spread, mean + spread, title, self.steps)
        return save_figure(figure, path)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Saved):
    """Mean and covariance of the outputs of networks that differ in their initial function.

    Attributes:
        steps: the steps (or times) that were recorded; (records,).
        mean: (records, points) or (records, points, outputs), training points first.
        covariance: between points, (records, points, points) or (records, outputs, points, points).
        stderr: standard error of the mean, 0 where it is exact; shape of `mean`.
        training_points: how many of the points were trained.
    """

    steps: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    stderr: np.ndarray
    training_points: np.ndarray

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of the sources, for `tplimit.cite`."""
        return ("jacot2018", "lee2019", "lee2018")

    def __repr__(self) -> str:
        exact = "sampled" if np.any(self.stderr) else "exact"
        return f"Ensemble(records={len(self.steps)}, points={self.mean.shape[1]}, {exact})"

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the outputs, with the shape of `mean`."""
        variance = np.diagonal(self.covariance, axis1=-2, axis2=-1)
        variance = np.moveaxis(variance, 1, 2) if self.mean.ndim > 2 else variance
        return np.sqrt(np.maximum(variance, 0.0))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write a figure: mean and one standard deviation at the test points (or all points)."""
        from tplimit.output.figures import (  # Matplotlib is slow to import
            save_figure,
            trajectory_figure,
        )

        first = int(self.training_points)
        first = 0 if first == self.mean.shape[1] else first
        mean, std = self.mean[:, first:], self.std[:, first:]
        title = "mean and standard deviation over initial functions"
        return save_figure(trajectory_figure(mean, mean - std, mean + std, title, self.steps), path)
