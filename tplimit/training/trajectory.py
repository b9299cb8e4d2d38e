"""What a training run leaves behind: the records of every replicate, statistics, a file."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.arguments import Deferred
from tplimit.errors import LimitWarning, warn
from tplimit.output import estimates
from tplimit.output.estimates import Estimate
from tplimit.output.files import Format, Unreadable, existing, warn_of_suffix
from tplimit.training.evaluation import evaluated
from tplimit.training.portable import (
    decode,
    decode_width,
    encode,
    encode_width,
    frame,
    plain,
    read_exponents,
    store_array,
    store_exponents,
)
from tplimit.training.records import BIAS_SHARE, Bias, Records

__all__ = ["Records", "Trajectory", "unpacked", "width_label"]

_FORMAT = Format("tplimit.Trajectory", version=2, unchecked=1)


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
        state: the state after the last step, of the last replicate; `states` are those of all.
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
        snapshots: by step, a tuple with the states of all replicates: at the steps that `keep` of
            `tplimit.train` names, by default after the last one. Step t is before step t + 1 is
            made, as in `observations`. They are not saved in files.
        record: how the numbers were made, as numbers, texts, lists and dicts: samples, key, terms,
            noise, steps, replicates, width, dtype, versions, date (UTC, of the start), seconds (of
            this call), kind of device. It is in every file; empty in those of older versions.

    Mean and standard error over the replicates are float64 (complex128 for complex records), with
    the leading axis T or T + 1.
    """

    replicates: Records
    exponents: Records
    width: Any
    state: Any = None
    directions: tuple[int, ...] = ()
    bias: Bias | None = None
    fluctuations: Records | None = None
    random: bool = False
    snapshots: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        label, steps = width_label(self.width), self.steps
        revealed = f", directions={list(self.directions)}" if self.directions else ""
        revealed += ", random limit" if self.random else ""
        return f"Trajectory(width={label}, replicates={self.count}, steps={steps}{revealed})"

    @property
    def count(self) -> int:
        """The number R of replicates."""
        leaves = jax.tree.leaves((self.replicates.outputs, self.replicates.observations))
        return len(leaves[0]) if leaves else 0

    @property
    def steps(self) -> int:
        """The number T of steps."""
        for part, more in (("outputs", 0), ("observations", 1)):
            for leaf in jax.tree.leaves(getattr(self.replicates, part)):
                return int(leaf.shape[1]) - more
        return int(self.record.get("steps", 0))  # nothing was recorded

    @property
    def part(self) -> str:
        """The records that figures and tables show: "observations", or "outputs" without any."""
        return "observations" if jax.tree.leaves(self.replicates.observations) else "outputs"

    @property
    def outputs(self) -> Any:
        """Mean over the replicates of what each step returned, leading axis T."""
        return jax.tree.map(estimates.mean, self.replicates.outputs)

    @property
    def observations(self) -> Any:
        """Mean over the replicates of what was observed, leading axis T + 1."""
        return jax.tree.map(estimates.mean, self.replicates.observations)

    @property
    def stderr(self) -> Records:
        """Standard errors of the means, `std / sqrt(R)` with R - 1 degrees of freedom.

        They are NaN for one replicate. At integer widths they are those of the average over random
        initialisations, at infinite width those of the Monte Carlo error.
        """
        return self.replicates.map(estimates.standard_error)

    def interval(self, level: float = 0.95) -> tuple[Records, Records]:
        """Lower and upper ends of confidence intervals of the means, by Student's t.

        mean ± t_{R-1}((1 + level)/2)·stderr. NaN for one replicate.

        Raises:
            ValueError: `level` is not strictly between 0 and 1.
        """
        lower, upper = estimates.interval(level, self.count)
        return self.replicates.map(lower), self.replicates.map(upper)

    @property
    def states(self) -> tuple[Any, ...]:
        """The states of all replicates after the last step.

        Raises:
            ValueError: they were not kept.
        """
        return self._states_at(-1)

    def _states_at(self, step: Any) -> tuple[Any, ...]:
        last = self.steps
        at = arguments.whole("step", step, least=-last - 1, most=last, example=-1)
        at = at if at >= 0 else last + 1 + at
        if at not in self.snapshots:
            kept = ", ".join(map(str, self.snapshots)) or "none"
            raise ValueError(
                f"the states at step {at} were not kept (kept: {kept}): pass keep=[{at}] to "
                "tp.train or tp.compare. Unasked tp.train keeps the last ones, up to 1 GiB, "
                "tp.compare none; files have none"
            )
        return self.snapshots[at]

    def evaluate(self, fn: Callable[..., Any], *, step: int | Sequence[int] = -1) -> Estimate:
        """What a function of the state gives after training, or at other steps that were kept.

        The same functions as `observe`, at every width: plain JAX, from a state to a tree of
        arrays without a width (tp.particles is for distributions). Each replicate is evaluated by
        itself; at infinite width these are limits.

        Args:
            fn: from a state to a tree of arrays; from as many states as there are steps, all of
                one replicate, where `step` lists several (what has moved: `step=[0, -1]`).
            step: a step of `snapshots`, -1 is the last one.

        Returns:
            `Estimate`, with `mean`, `stderr` and `interval()` over replicates, by Student's t. If
            `random`, they are over initial functions.

        Raises:
            ValueError: no states were kept at this step.
            WidthError: `fn` returns a value with a width, at infinite or deferred width.
            LimitError: it has no limit; see the subclasses.

        >>> import jax, jax.numpy as jnp, tplimit as tp
        >>> n = tp.Width("n")
        >>> run = tp.train(
        ...     lambda theta, _: ({"v": 2 * theta["v"]}, 0.0),
        ...     {"v": tp.normal((n,))},
        ...     [0, 1],
        ...     width=tp.inf,
        ...     key=jax.random.key(0),
        ...     samples=256,
        ...     replicates=4,
        ...     keep=[0, -1],
        ... )
        >>> run.evaluate(lambda theta: (theta["v"] ** 2).mean()).mean.round(3)
        np.float64(16.0)
        >>> moved = run.evaluate(lambda a, b: ((b["v"] - a["v"]) ** 2).mean(), step=[0, -1])
        >>> moved.mean.round(3)
        np.float64(9.0)
        """
        arguments.function("fn", fn, "(state) -> arrays")
        steps = step if isinstance(step, Sequence) else [step]
        return evaluated(fn, list(zip(*map(self._states_at, steps), strict=True)), self.width)

    def format(
        self, step: int | None = -1, *, which: str | None = None, digits: int = 1,
        latex: bool = False,
    ) -> Any:  # fmt: skip
        """Means with standard errors as papers print them: `-0.5226(2)` is -0.5226 ± 0.0002.

        The number in brackets is the standard error (of the mean over replicates) in units of the
        last digit; both are rounded, half to even. Where the error is 10 or more, or both are below
        1e-4, a power of ten is taken out: `1.23(4)e+03`. Records that are equal in all replicates
        have no error bar and are printed in full; those of one replicate are followed by `(nan)`.

        Args:
            step: which record, -1 is the last one; None: all of them, as lists.
            which: "observations" or "outputs"; by default observations, where there are any.
            digits: significant digits of the standard error, 1 or 2.
            latex: as `$-0.5226(2)$`, `$1.23(4) \\times 10^{3}$`.

        Returns:
            The tree of the records with a string for each number, in nested lists for arrays.

        Raises:
            ValueError: an argument is out of range.
            TypeError: complex records.

        >>> import numpy as np
        >>> f = np.array([[-0.5222], [-0.5224], [-0.5232], [-0.5226]])
        >>> run = Trajectory(Records(f, None), Records(0, None), 64)
        >>> run.format(), run.format(digits=2, latex=True)
        ('-0.5226(2)', '$-0.52260(22)$')
        """
        part = self.part if which is None else arguments.one_of("which", which, _PARTS)

        def texts(x: np.ndarray) -> Any:
            length = x.shape[1]
            at: Any = slice(None)
            if step is not None:
                at = arguments.whole("step", step, least=-length, most=length - 1, example=-1)
            return estimates.formatted(x[:, at], digits, latex)

        return jax.tree.map(texts, getattr(self.replicates, part))

    def to_dict(self) -> dict[str, Any]:
        """Means, standard errors, records of the run: numbers, lists and dicts, ready for JSON.

        `None` stands for NaN and infinities; exponents are texts such as "-1/2"; a complex number
        is a pair. The records of single replicates are `replicates`.

        >>> import numpy as np
        >>> run = Trajectory(Records(np.ones((2, 3)), None), Records(0, None), 64)
        >>> run.to_dict()["outputs"]
        [1.0, 1.0, 1.0]
        """
        trees = {"": self, "stderr": self.stderr, "exponents": self.exponents}
        found: dict[str, Any] = {
            f"{name}_{part}".lstrip("_"): plain(getattr(tree, part))
            for name, tree in trees.items()
            for part in _PARTS
        }
        return found | {
            "width": encode_width(self.width),
            "replicates": self.count,
            "random": self.random,
            "record": plain(self.record),
        }

    def to_pandas(self, level: float = 0.95) -> Any:
        """A `pandas.DataFrame` with one row for each number that was recorded, at each step.

        Columns: `record` ("outputs" or "observations"), `leaf` (its path in the tree), `entry` (its
        indices in the leaf, "" for a number), `step`, `mean`, `stderr`, `low` and `high` (the ends
        of the confidence interval). pandas is no dependency of tplimit.

        Raises:
            ModuleNotFoundError: pandas is not installed.

        >>> import numpy as np
        >>> run = Trajectory(Records({"loss": np.ones((2, 3))}, None), Records(0, None), 64)
        >>> run.to_pandas()["mean"].tolist()
        [1.0, 1.0, 1.0]
        """
        return frame(self, self.interval(level), _PARTS)

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of what the run used, for `tplimit.cite`."""
        sobol = self.record.get("noise") == "sobol"
        return ("joe2008", "matousek1998") if sobol else ()

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
        """Write the learning curves of `tplimit.plot_curves`: what was observed, or the outputs.

        The suffix of `path` chooses the format; missing folders are made. Bands are 95 % confidence
        intervals.

        Raises:
            ValueError: there is no floating-point record.
        """
        from tplimit.output.figures import save_figure  # Matplotlib is slow to import
        from tplimit.training.figures import plot_curves

        axes = plot_curves(self)
        axes.set_title(self.label, loc="left", fontsize=9)
        return save_figure(axes.figure, path)  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        """The width in words, for figures and tables."""
        return width_label(self.width)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write records, exponents, width and `record` to one safetensors file, without pickle.

        The name ends in `.safetensors`, or in nothing. States are not saved: they may be
        limit values and gigabytes of weights. Records have to be trees of dicts with string keys,
        lists, tuples and None.

        Raises:
            TypeError: the records contain another kind of tree.
            OSError: the file cannot be written; then an older one is unchanged.

        Warns:
            LimitWarning: the name has the suffix of another kind of file.
        """
        header, arrays = self.packed()
        target = Path(path)
        warn_of_suffix(target, ".safetensors", "for a table write run.to_pandas().to_csv(path)")
        _FORMAT.write(target, arrays, {"header": json.dumps(header)})
        return target

    def packed(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What is saved, as JSON and named arrays; `unpacked` is the inverse.

        Raises:
            TypeError: the records contain a kind of tree that cannot be saved.
        """
        arrays: dict[str, np.ndarray] = {}

        def stored(name: str, records: Records | None) -> Any:
            return records and _encode_records(records, arrays, store_array, name)

        header = {
            "replicates": stored("", self.replicates),
            "exponents": _encode_records(self.exponents, arrays, store_exponents),
            "fluctuations": stored("fluctuations ", self.fluctuations),
            "bias": self.bias
            and {
                "estimate": stored("bias ", self.bias.estimate),
                "stderr": stored("stderr of bias ", self.bias.stderr),
                "share": self.bias.share,
                "significant": self.bias.significant,
            },
            "width": encode_width(self.width),
            "directions": list(self.directions),
            "random": self.random,
            "record": dict(self.record),
        }
        return header, arrays

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trajectory":
        """Read a file that `save` wrote. It has no states.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, damaged, no trajectory, or of a newer version.

        Warns:
            LimitWarning: it is of a version that wrote no checksum.
        """
        metadata, arrays = _FORMAT.read(existing(path))
        try:
            return unpacked(json.loads(metadata["header"]), arrays)
        except Exception as error:  # whatever nonsense leads to
            raise Unreadable(
                f"{path} is damaged: no trajectory was saved like this "
                f"({type(error).__name__}: {error})"
            ) from error


_PARTS = ("outputs", "observations")


def unpacked(header: Any, arrays: Mapping[str, np.ndarray]) -> Trajectory:
    """A trajectory from what `Trajectory.packed` gave; anything else raises some exception."""

    def records(name: str, read: Any) -> Records:
        return Records(*(decode(header[name][part], read) for part in _PARTS))

    replicates, fluctuations = records("replicates", arrays.__getitem__), None
    if header.get("fluctuations") is not None:
        fluctuations = records("fluctuations", arrays.__getitem__)
    exponents, bias = records("exponents", read_exponents), None
    if header.get("bias") is not None:
        found = header["bias"]
        estimate, stderr = (
            Records(*(decode(found[name][part], arrays.__getitem__) for part in _PARTS))
            for name in ("estimate", "stderr")
        )
        bias = Bias(estimate, stderr, float(found["share"]), bool(found["significant"]))
    for each in (replicates, fluctuations or replicates):
        _check_axes(each)
        jax.tree.map(lambda *leaves: None, vars(each), vars(exponents))  # raises where they differ
    directions = header.get("directions", [])
    random = header.get("random", False)
    record = header.get("record", {})
    if not (all(type(count) is int for count in directions) and type(random) is bool):
        raise ValueError("directions or random have another type")
    if type(record) is not dict:
        raise ValueError("the record has another type")
    return Trajectory(
        replicates,
        exponents,
        decode_width(header["width"]),
        directions=tuple(directions),
        bias=bias,
        fluctuations=fluctuations,
        random=random,
        record=record,
    )


def _check_axes(records: Records) -> None:
    """All records have the same replicates, and observations are one more than steps."""
    outputs = {leaf.shape[:2] for leaf in jax.tree.leaves(records.outputs)}
    observations = [leaf.shape[:2] for leaf in jax.tree.leaves(records.observations)]
    if len(outputs | {(count, steps - 1) for count, steps in observations}) > 1:
        raise ValueError("the records have different numbers of replicates or steps")


def width_label(width: Any) -> str:
    """A width in words."""
    if isinstance(width, Deferred):
        return f"deferred width {width.n}"
    if isinstance(width, Mapping):
        return "width " + ", ".join(f"{name}={size}" for name, size in width.items())
    return f"width {width}" if isinstance(width, int) else "infinite width"


def _encode_records(
    records: Records, arrays: dict[str, np.ndarray], store: Any, name: str = ""
) -> dict[str, Any]:
    return {part: encode(getattr(records, part), name + part, arrays, store) for part in _PARTS}
