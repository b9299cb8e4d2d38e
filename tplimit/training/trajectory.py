"""What a training run leaves behind: the records of every replicate, statistics, a file."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tplimit.arguments import Deferred, inf
from tplimit.errors import LimitWarning, warn
from tplimit.output.files import Format, Unreadable, existing

__all__ = ["Records", "Trajectory", "width_label"]

_FORMAT = Format("tplimit.Trajectory", version=2, unchecked=1)

#: A bias of this many standard errors lowers the coverage of a 95 % interval to 92 %.
BIAS_SHARE = 0.5
_FALSE_ALARM = 1e-3


@dataclass(frozen=True, eq=False)
class Records:
    """A pair of trees: what `step` returned beside the state, and what `observe` returned."""

    outputs: Any
    observations: Any

    def map(self, fn: Any) -> "Records":
        """`fn` applied to every leaf."""
        return Records(jax.tree.map(fn, self.outputs), jax.tree.map(fn, self.observations))

    @classmethod
    def zip(cls, fn: Any, *records: "Records") -> "Records":
        """`fn` applied to the leaves of several records."""
        return cls(
            jax.tree.map(fn, *[r.outputs for r in records]),
            jax.tree.map(fn, *[r.observations for r in records]),
        )


@dataclass(frozen=True, eq=False)
class Bias:
    """Bias of the means of a run from its finite number of particles.

    Attributes:
        estimate, stderr: of every record, like `Trajectory.observations` and `.outputs`.
        share: root mean square over the records of bias / standard error of the run, with the
            noise of the estimate subtracted.
        significant: whether some record's bias differs from 0, by Student's t and Bonferroni's
            correction with false-alarm rate 1e-3.
    """

    estimate: Records
    stderr: Records
    share: float
    significant: bool

    @classmethod
    def between(cls, full: "Trajectory", half: "Trajectory") -> "Bias":
        """The bias of `full`, by comparison with a run that has half its particles."""

        def subtract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return _mean(b) - _mean(a)

        def spread(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.hypot(_standard_error(a), _standard_error(b))

        pairs = full.replicates, half.replicates
        estimate, stderr = Records.zip(subtract, *pairs), Records.zip(spread, *pairs)
        own = [_flat(records) for records in (full.stderr, estimate, stderr)]
        known = own[0] > 0
        errors, bias, noise = (array[known] for array in own)
        if full.count < 2 or not errors.size:
            return cls(estimate, stderr, math.nan, False)
        limit = _t_quantile(1 - _FALSE_ALARM / (2 * errors.size), full.count - 1)
        square = float(np.mean((bias**2 - noise**2) / errors**2))
        significant = bool(np.any(np.abs(bias) > limit * noise))
        return cls(estimate, stderr, math.sqrt(max(square, 0.0)), significant)


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy import stats  # slow to import

    return float(stats.t.ppf(probability, degrees))


def _flat(records: Records) -> np.ndarray:
    leaves = jax.tree.leaves((records.outputs, records.observations))
    real = [np.ravel(leaf) for leaf in leaves if not np.iscomplexobj(leaf)]
    return np.concatenate(real) if real else np.zeros(0)


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """The records of a training run of T steps with R replicates, as NumPy arrays.

    Args:
        replicates: raw records; every leaf of `.outputs` has the leading axes (R, T), every leaf of
            `.observations` (R, T + 1): before each step and after the last. Dtypes are those that
            the program computed in.
        exponents: the powers of n of the records (`Fraction`, or -inf for an exact 0), largest over
            steps and replicates: one number per leaf, or an object array of the leaf's shape.
            They are 0 for integer widths.
        width: the width of the run.
        state: the state after the last step, of the last replicate only.
        directions: how many directions have been revealed of each random matrix at the end, in the
            order of the parameters, of the last replicate. Time and memory follow this number.
        bias: estimated O(1/M) bias of the means from a run with M/2 particles, or None.
        fluctuations: the terms of order n^-1/2 of all records, or None. One replicate has those of
            one random network: networks of width n are distributed like limit + n^-1/2
            fluctuation, to leading order, so that n times the covariance over networks is that
            over replicates.
        random: whether the limit depends on the draw of the initial function, another one in each
            replicate: then means and standard errors are those over initial functions. So it is
            in kernel regimes, however many terms were asked for, and not with `init_output="zero"`.
            The first steps of the run tell, by a second draw. Where two terms were asked for and
            one decides, that moves numbers within their sampling error and counts as random, too.

    Mean and standard error over the replicates are float64 (complex128 for complex records), with
    the leading axis T or T + 1.
    """

    replicates: Records
    exponents: Records
    width: Any
    state: Any = None
    directions: tuple[int, ...] = ()
    bias: "Bias | None" = None
    fluctuations: Records | None = None
    random: bool = False

    def __repr__(self) -> str:
        first = jax.tree.leaves((self.replicates.outputs, self.replicates.observations))[:1]
        steps = first[0].shape[1] if first else 0
        label = width_label(self.width)
        revealed = f", directions={list(self.directions)}" if self.directions else ""
        revealed += ", random limit" if self.random else ""
        return f"Trajectory(width={label}, replicates={self.count}, steps={steps}{revealed})"

    @property
    def count(self) -> int:
        """The number R of replicates."""
        leaves = jax.tree.leaves((self.replicates.outputs, self.replicates.observations))
        return len(leaves[0]) if leaves else 0

    @property
    def outputs(self) -> Any:
        """Mean over the replicates of what each step returned, leading axis T."""
        return jax.tree.map(_mean, self.replicates.outputs)

    @property
    def observations(self) -> Any:
        """Mean over the replicates of what was observed, leading axis T + 1."""
        return jax.tree.map(_mean, self.replicates.observations)

    @property
    def stderr(self) -> Records:
        """Standard errors of the means, `std / sqrt(R)` with R - 1 degrees of freedom.

        They are NaN for one replicate. At integer widths they are those of the average over random
        initialisations, at infinite width those of the Monte Carlo error.
        """
        return self.replicates.map(_standard_error)

    def interval(self, level: float = 0.95) -> tuple[Records, Records]:
        """Lower and upper ends of confidence intervals of the means, by Student's t.

        mean ± t_{R-1}((1 + level)/2)·stderr. NaN for one replicate.

        Raises:
            ValueError: `level` is not strictly between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level has to be between 0 and 1, got {level}")
        quantile = _t_quantile((1 + level) / 2, self.count - 1) if self.count > 1 else np.nan
        lower, upper = (
            self.replicates.map(lambda x, s=sign: _mean(x) + s * quantile * _standard_error(x))
            for sign in (-1, 1)
        )
        return lower, upper

    def with_bias_from(self, half: "Trajectory") -> "Trajectory":
        """The same trajectory with the bias that a run with half the particles shows.

        A bias b/M makes the means at M/2 and at M differ by b/M: the bias of this trajectory.

        Warns:
            LimitWarning: the bias is significant, and not small against the standard error.
        """
        bias = Bias.between(self, half)
        if bias.significant and bias.share > BIAS_SHARE:
            warn(
                LimitWarning(
                    f"The bias from the finite number of samples is {bias.share:.2g} standard "
                    "errors (root mean square over the records): the error bars are too small. "
                    f"Use {max(2, math.ceil(bias.share / BIAS_SHARE))} times as many samples, with "
                    "fewer replicates."
                )
            )
        return replace(self, bias=bias)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write a figure of the observations (of the outputs where nothing was observed).

        The suffix of `path` chooses the format; missing folders are made. Bands are 95 % confidence
        intervals. The figure shows the first floating-point leaf, up to eight of its entries.

        Raises:
            ValueError: there is no floating-point record.
        """
        from tplimit.output.figures import (  # Matplotlib is slow to import
            save_figure,
            trajectory_figure,
        )

        lower, upper = self.interval()
        part = "observations" if jax.tree.leaves(self.replicates.observations) else "outputs"
        triple = zip(
            *(jax.tree.leaves(getattr(r, part)) for r in (self, lower, upper)), strict=True
        )
        for mean, low, high in triple:
            if mean.dtype == np.float64:
                figure = trajectory_figure(mean, low, high, title=f"{part}, {self.label}")
                return save_figure(figure, path)
        raise ValueError("nothing to plot: the run recorded no real number")

    @property
    def label(self) -> str:
        """The width in words, for figures and tables."""
        return width_label(self.width)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write records, exponents and width to one safetensors file; no pickle is involved.

        The state is not saved: it may hold limit values and megabytes of weights. Records have to
        be trees of dicts with string keys, lists, tuples and None.

        Raises:
            TypeError: the records contain another kind of tree.
            OSError: the file cannot be written; then an older one is unchanged.
        """
        arrays: dict[str, np.ndarray] = {}
        header = {
            "replicates": _encode_records(self.replicates, arrays, _store_array),
            "exponents": _encode_records(self.exponents, arrays, _store_exponents),
            "fluctuations": None
            if self.fluctuations is None
            else _encode_records(self.fluctuations, arrays, _store_array, "fluctuations "),
            "width": _encode_width(self.width),
            "directions": list(self.directions),
            "random": self.random,
        }
        target = Path(path)
        _FORMAT.write(target, arrays, {"header": json.dumps(header)})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trajectory":
        """Read a file that `save` wrote. The state is None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, damaged, no trajectory, or of a newer version.

        Warns:
            LimitWarning: it is of a version that wrote no checksum.
        """
        metadata, arrays = _FORMAT.read(existing(path))
        try:
            return _from_header(json.loads(metadata["header"]), arrays)
        except Exception as error:  # whatever nonsense leads to
            raise Unreadable(
                f"{path} is damaged: no trajectory was saved like this "
                f"({type(error).__name__}: {error})"
            ) from error


_PARTS = ("outputs", "observations")


def _from_header(header: Any, arrays: dict[str, np.ndarray]) -> Trajectory:
    """A trajectory from what `save` wrote; anything else raises some exception."""

    def records(name: str, read: Any) -> Records:
        return Records(*(_decode(header[name][part], read) for part in _PARTS))

    replicates, fluctuations = records("replicates", arrays.__getitem__), None
    if header.get("fluctuations") is not None:
        fluctuations = records("fluctuations", arrays.__getitem__)
    exponents = records("exponents", _read_exponents)
    for each in (replicates, fluctuations or replicates):
        _check_axes(each)
        jax.tree.map(lambda *leaves: None, vars(each), vars(exponents))  # raises where they differ
    directions = header.get("directions", [])
    random = header.get("random", False)
    if not (all(type(count) is int for count in directions) and type(random) is bool):
        raise ValueError("directions or random have another type")
    return Trajectory(
        replicates,
        exponents,
        _decode_width(header["width"]),
        directions=tuple(directions),
        fluctuations=fluctuations,
        random=random,
    )


def _check_axes(records: Records) -> None:
    """All records have the same replicates, and observations are one more than steps."""
    outputs = {leaf.shape[:2] for leaf in jax.tree.leaves(records.outputs)}
    observations = [leaf.shape[:2] for leaf in jax.tree.leaves(records.observations)]
    if len(outputs | {(count, steps - 1) for count, steps in observations}) > 1:
        raise ValueError("the records have different numbers of replicates or steps")


# Runs that blow up have been warned of when they did; their statistics are NaN or infinite.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def _mean(x: np.ndarray) -> np.ndarray:
    return np.mean(x, axis=0, dtype=np.result_type(x.dtype, np.float64))


@quiet
def _standard_error(x: np.ndarray) -> np.ndarray:
    if len(x) < 2:
        return np.full(x.shape[1:], np.nan)
    wide = x.astype(np.result_type(x.dtype, np.float64))
    return np.std(wide, axis=0, ddof=1) / np.sqrt(len(x))


def width_label(width: Any) -> str:
    """A width in words."""
    if isinstance(width, Deferred):
        return f"deferred width {width.n}"
    if isinstance(width, Mapping):
        return "width " + ", ".join(f"{name}={size}" for name, size in width.items())
    return f"width {width}" if isinstance(width, int) else "infinite width"


def _encode_width(width: Any) -> Any:
    if isinstance(width, Deferred):
        return {"deferred": _encode_width(width.n)}
    if isinstance(width, Mapping):
        return {"sizes": dict(width)}
    return width if isinstance(width, int) else "inf"


def _decode_width(code: Any) -> Any:
    if isinstance(code, dict) and "deferred" in code:
        return Deferred(code["deferred"])
    if isinstance(code, dict):
        return {name: _decode_width(size) for name, size in code["sizes"].items()}
    if code != "inf" and type(code) is not int:
        raise TypeError(f"{code!r} is no width")
    return inf if code == "inf" else code


def _encode_records(
    records: Records, arrays: dict[str, np.ndarray], store: Any, name: str = ""
) -> dict[str, Any]:
    return {part: _encode(getattr(records, part), name + part, arrays, store) for part in _PARTS}


def _encode(tree: Any, name: str, arrays: dict[str, np.ndarray], store: Any) -> Any:
    """`tree` as JSON: nodes are `[kind, children]`, leaves `["leaf", what `store` returned]`."""
    if tree is None:
        return ["none", None]
    if type(tree) is dict:
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"cannot save {name}: a dict with keys that are no strings")
        return [
            "dict",
            {key: _encode(value, f"{name}.{key}", arrays, store) for key, value in tree.items()},
        ]
    if type(tree) in (list, tuple):
        children = [_encode(value, f"{name}.{i}", arrays, store) for i, value in enumerate(tree)]
        return [type(tree).__name__, children]
    if isinstance(tree, (np.ndarray, np.generic, Fraction, float)):
        return ["leaf", store(tree, name, arrays)]
    raise TypeError(
        f"cannot save {name}, a {type(tree).__name__}: let step and observe return dicts with "
        "string keys, lists or tuples of arrays"
    )


def _decode(code: Any, read: Any) -> Any:
    kind, content = code
    if kind == "none":
        return None
    if kind == "dict":
        return {key: _decode(value, read) for key, value in content.items()}
    if kind == "leaf":
        return read(content)
    children = [_decode(value, read) for value in content]
    return {"list": list, "tuple": tuple}[kind](children)


def _store_array(leaf: Any, name: str, arrays: dict[str, np.ndarray]) -> str:
    arrays[name] = np.asarray(leaf)
    return name


def _store_exponents(leaf: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    values = np.asarray(leaf, dtype=object)
    return {"shape": list(values.shape), "values": [str(value) for value in values.flat]}


def _read_exponents(content: Any) -> Any:
    values = [float(v) if "inf" in v else Fraction(v) for v in content["values"]]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    array = array.reshape(content["shape"])
    return array if array.ndim else array.item()
