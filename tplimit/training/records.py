"""Records of a run, and the bias of their means from too few particles."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tplimit.output import estimates

__all__ = ["BIAS_SHARE", "Bias", "Records"]

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
    def between(cls, full: Any, half: Any) -> "Bias":
        """The bias of a trajectory, by comparison with one that has half its particles."""

        def subtract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return estimates.mean(b) - estimates.mean(a)

        def spread(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.hypot(estimates.standard_error(a), estimates.standard_error(b))

        pairs = full.replicates, half.replicates
        estimate, stderr = Records.zip(subtract, *pairs), Records.zip(spread, *pairs)
        own = [_flat(records) for records in (full.stderr, estimate, stderr)]
        known = own[0] > 0
        errors, bias, noise = (array[known] for array in own)
        if full.count < 2 or not errors.size:
            return cls(estimate, stderr, math.nan, False)
        limit = estimates.t_quantile(1 - _FALSE_ALARM / (2 * errors.size), full.count - 1)
        square = float(np.mean((bias**2 - noise**2) / errors**2))
        significant = bool(np.any(np.abs(bias) > limit * noise))
        return cls(estimate, stderr, math.sqrt(max(square, 0.0)), significant)


def _flat(records: Records) -> np.ndarray:
    leaves = jax.tree.leaves((records.outputs, records.observations))
    real = [np.ravel(leaf) for leaf in leaves if not np.iscomplexobj(leaf)]
    return np.concatenate(real) if real else np.zeros(0)
