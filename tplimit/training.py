"""Training at any width: run a plain JAX step over batches and record what it returns."""

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tplimit._jax import random_key
from tplimit.checkpoint import Checkpoint, Checkpoints
from tplimit.errors import CancellationError, LimitError
from tplimit.evaluation import Evaluator, ReplicatesDiffer
from tplimit.leaves import LimitValue, replicate, revealed_directions
from tplimit.networks import pair, train_networks
from tplimit.parameters import Parameter
from tplimit.progress import bar
from tplimit.sampling import Deferred, inf, law_of, sample, series_options
from tplimit.trajectory import Records, Trajectory, width_label
from tplimit.transforms import (
    MORE_TERMS,
    consuming,
    exponent_of,
    raw,
    to_limit,
    to_series,
)

__all__ = ["train"]

Step = Callable[[Any, Any], tuple[Any, Any]]

# Replicates of the limit are computed in one call while they have at most so many coordinates. Of
# CPUs batched matrix products are slow: one call is 5 times faster with 8 replicates of 256
# particles, as fast with 1024, and 2.5 times slower with 16384.
_TOGETHER_CPU, _TOGETHER = 2**11, 2**18


def train(
    step: Step,
    theta: Any,
    batches: Any,
    *,
    width: Any,
    key: jax.Array,
    samples: int = 2**14,
    replicates: int = 1,
    init: Callable[[Any], Any] | None = None,
    observe: Callable[[Any], Any] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    noise: str = "sobol",
    rank_tolerance: float | None = None,
    mesh: Mesh | None = None,
    bias_check: bool = False,
    terms: int | None = None,
    init_output: str = "sample",
    fluctuations: bool = False,
) -> Trajectory:
    """Run `state, output = step(state, batch)` over the batches at any width.

        state_0 = init(theta_0),    (state_{t+1}, output_t) = step(state_t, batch_t)

    The same plain JAX functions serve every width. At an integer width (or {name: integer}) the
    replicates are independent networks, trained together as ordinary arrays; at `tplimit.inf` and
    `tplimit.Deferred(n)` they are independent samplings of the limit, small ones in one call, large
    ones one after the other. Every run traces the functions anew, whatever they have closed over;
    programs that were compiled before, for these functions or others, are not compiled again.

    Args:
        step: from (state, batch) to (state, output).
        theta: a tree of declarations: `tplimit.normal`, `tplimit.full`, ...
        batches: a list (or a finite iterator, read at once) of batches, each passed to `step` as it
            is; or one array whose first axis are the steps.
        width: an integer, {name: integer}, `tplimit.Deferred(n)` or `tplimit.inf`.
        key: a JAX key; equal keys give equal results. Replicate r uses entry r of
            `jax.random.split(key, replicates)`.
        samples: Monte Carlo particles per width axis, at infinite width.
        replicates: the number R of independent runs, from which standard errors come.
        init: from theta to the first state, for instance to add optimizer state; default: theta.
        observe: from a state to a tree of arrays, called before each step and after the last.
        progress: show a bar while it runs, if the standard error stream is a terminal (in the first
            of several processes).
        checkpoint: a folder, or `tplimit.Checkpoint(folder, every=steps)`. State and records are
            saved there at intervals; the same call goes on from what it finds there, bit for bit
            as if it had never stopped, and returns at once if the run is done. Other functions
            `step`, `init` or `observe` than those of the earlier call cannot be noticed. The mesh
            may be another one; then the numbers agree to round-off.
        noise, rank_tolerance, mesh: as in `tplimit.sample`, at infinite and deferred width.
        bias_check: at infinite width, run twice as many replicates with half the samples as well
            (about the same time again) and warn where the O(1/M) bias of the mean is not small
            against its standard error. See `Trajectory.bias`.
        terms: terms of the expansion in the width that are kept at infinite width. By default one;
            where leading terms vanish, as in kernel regimes, the run begins again with two.
        init_output: with several terms, `"sample"`: the random initial function of a wide network,
            another one in each replicate, so that the spread over replicates is mostly not an
            error (`Trajectory.random`); `"zero"`: the limit with initial function 0.
        fluctuations: keep the terms of order n^-1/2 as well, see `Trajectory.fluctuations`.

    Returns:
        `Trajectory`: records as NumPy arrays with axes (replicate, step, ...), means, errors.

    Raises:
        TypeError: `batches` is a tuple or dict (ambiguous), or no batches at all; `step` does not
            return (state, output). With `checkpoint`: records are another kind of tree than dicts,
            lists and tuples.
        ValueError: no batch, stacked arrays of unequal length, `replicates` below 1 (2 with
            bias_check), fluctuations where there are none (finite width, one term), or records
            whose shapes change from step to step. With `checkpoint`: the folder holds another run
            (key, width, batches, ... differ), a newer format, or no readable file; the structure
            of the state changes while it trains; the mesh is shared by several processes.
        WidthError: `width` is no width.
        LimitError: the program has no limit; see its subclasses.

    >>> import jax, jax.numpy as jnp, tplimit as tp
    >>> n = tp.Width("n")
    >>> def step(theta, y):
    ...     loss = lambda t: (jnp.mean(t["v"]) - y) ** 2
    ...     value, g = jax.value_and_grad(loss)(theta)
    ...     lr = 0.25 * theta["v"].shape[0]
    ...     return jax.tree.map(lambda w, d: w - lr * d, theta, g), value
    >>> run = tp.train(step, {"v": tp.full((n,), 0.0)}, jnp.ones(3), width=8, key=jax.random.key(0))
    >>> run.outputs.tolist()
    [1.0, 0.25, 0.0625]
    """
    batches = _batches(batches)
    replicates = operator.index(replicates)
    if replicates < 1:
        raise ValueError(f"replicates has to be at least 1, got {replicates}")
    keys = jax.random.split(random_key(key), replicates)
    _check_declared(theta)
    width = _whole(width)
    # What is no option is refused at every width.
    law = law_of(width, noise, rank_tolerance)
    series_options(law, 1 if terms is None else terms, init_output)
    if bias_check and replicates < 2:
        raise ValueError("bias_check compares with the standard error: use replicates=2 or more")
    if checkpoint is not None and mesh is not None and mesh.is_multi_process:
        raise ValueError(
            "checkpoint does not work with a mesh over several processes: the particles are never "
            "gathered in one. Leave checkpoint out, or use a mesh of the devices of one process"
        )
    run = {"theta": theta, "batches": batches, "width": width, "key": key, "samples": samples}
    run |= {"replicates": replicates, "noise": noise, "rank_tolerance": rank_tolerance}
    run |= {"terms": terms, "init_output": init_output, "fluctuations": fluctuations}
    checkpoints = Checkpoints(checkpoint, run)
    if fluctuations and width != inf:
        raise ValueError("fluctuations are those around the limit: use width=tp.inf")
    if fluctuations and (terms == 1 or init_output == "zero"):
        raise ValueError(
            "fluctuations are the second of two terms: leave terms and init_output as they are"
        )
    if _is_finite(width):
        plain = (init or _identity, step, observe or _nothing)
        return train_networks(plain, theta, batches, width, keys, progress, checkpoints)
    functions = _Functions(init, step, observe)
    terms = 2 if terms is None and fluctuations else terms
    limit = Limit(width, samples, noise, rank_tolerance, mesh, terms, init_output, fluctuations)
    if not bias_check or isinstance(width, Deferred):
        return _train_limit(functions, theta, batches, limit, keys, progress, checkpoints)
    # The cheap side first: what cannot be run with half the samples is refused at once.
    half = replace(limit, samples=samples // 2)
    more = jax.random.split(jax.random.fold_in(key, replicates), 2 * replicates)
    unsaved = Checkpoints(None, {})
    cheap = _train_limit(functions, theta, batches, half, more, progress, unsaved)
    trajectory = _train_limit(functions, theta, batches, limit, keys, progress, checkpoints)
    if trajectory.random:
        raise ValueError(
            "bias_check cannot tell the bias of a random limit, whose replicates have initial "
            'functions of their own: use init_output="zero"'
        )
    return trajectory.with_bias_from(cheap)


class _Functions:
    """The functions of a run, each traced once for all of its parts and attempts."""

    def __init__(self, init: Any, step: Any, observe: Any) -> None:
        self.init = None if init is None else Evaluator(init)
        self.step = Evaluator(step)
        self.observe = None if observe is None else Evaluator(observe)
        self.observe_and_keep = Evaluator(lambda state: (state, observe(state)))

    def observer(self, calls: int, keep: bool, many: bool) -> Callable[[Any], tuple[Any, Any]]:
        """A function from a state to (state, observation).

        A network of finite width is one function: what an observation reveals of its weights has
        to hold for all that follow, so the state must `keep` it; and so it is for the terms that
        tell how one wide network differs from another. In the limit averages do not depend on it,
        and forgetting is cheaper.
        """
        if self.observe is None:
            return lambda state: (state, None)
        if keep:
            return consuming(self.observe_and_keep, calls, replicated=many)
        forget = raw(self.observe, many)
        return lambda state: (state, forget(state))


@dataclass(frozen=True)
class Limit:
    """How limit values are sampled: the arguments of `tplimit.sample`."""

    width: Any
    samples: int
    noise: str
    rank_tolerance: float | None
    mesh: Mesh | None
    terms: int | None = None
    init_output: str = "sample"
    fluctuations: bool = False

    @property
    def coordinates(self) -> int:
        """Coordinates of a vector at the common width."""
        return self.width.n if isinstance(self.width, Deferred) else self.samples

    def sample(self, theta: Any, key: jax.Array) -> Any:
        return sample(
            theta, key, width=self.width, samples=self.samples, noise=self.noise,
            rank_tolerance=self.rank_tolerance, mesh=self.mesh,
            terms=self.terms or 1, init_output=self.init_output,
        )  # fmt: skip

    @property
    def keeps_reveals(self) -> bool:
        """Whether what an observation reveals has to hold for all that follow."""
        return isinstance(self.width, Deferred) or (self.terms or 1) > 1


def _check_declared(theta: Any) -> None:
    """Sampled parameters would be the same in every replicate, whatever the width and the key."""
    leaves = jax.tree.leaves(theta)
    declared = any(isinstance(leaf, Parameter) for leaf in leaves)
    if declared and not any(isinstance(leaf, LimitValue) for leaf in leaves):
        return
    raise LimitError(
        "theta is sampled already, or declares no parameter.",
        advice="Pass the declarations (tp.normal, ...) as theta: tp.train samples them itself, "
        "once for every replicate.",
    )


def _identity(theta: Any) -> Any:
    return theta


def _nothing(state: Any) -> None:
    return None


def _is_finite(width: Any) -> bool:
    """Whether networks of this width are ordinary arrays; `sample` refuses what is no width."""
    return not isinstance(width, Deferred) and width != inf


def _whole(width: Any) -> Any:
    """NumPy's integers as Python's, which files and figures can name."""
    if isinstance(width, Mapping):
        return {name: _whole(size) for name, size in width.items()}
    return int(width) if isinstance(width, np.integer) else width


# --- batches


def _batches(batches: Any) -> list[Any]:
    """One entry per step."""
    if isinstance(batches, (tuple, Mapping)):
        raise TypeError(
            f"batches is a {type(batches).__name__}: is it one batch, a list of batches, or arrays "
            "stacked over steps? For stacked arrays X and Y write list(zip(X, Y)); for one step "
            "with (x, y) write [(x, y)]"
        )
    if isinstance(batches, str) or not np.iterable(batches):
        raise TypeError(
            f"batches is of type {type(batches).__name__}: give a list of batches, or arrays "
            "stacked along a leading axis"
        )
    batches = list(batches)
    if not batches:
        raise ValueError("batches is empty: there is no step to make")
    return batches


# --- infinite and deferred width


def _train_limit(
    functions: "_Functions",
    theta: Any,
    batches: list[Any],
    limit: Limit,
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
    together: int | None = None,
) -> Trajectory:
    try:
        return _train_terms(functions, theta, batches, limit, keys, progress, checkpoints, together)
    except CancellationError:
        if limit.terms is not None or isinstance(limit.width, Deferred):
            raise
    # Leading terms vanish: begin again with the next ones, and say so if these do not help.
    checkpoints.discard()
    more = replace(limit, terms=MORE_TERMS)
    run = (functions, theta, batches, more, keys, progress, checkpoints, together)
    return replace(_train_terms(*run), random=limit.init_output == "sample")


def _train_terms(
    functions: "_Functions",
    theta: Any,
    batches: list[Any],
    limit: Limit,
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
    together: int | None,
) -> Trajectory:
    together = together or checkpoints.together() or _together(len(keys), limit.coordinates)
    parts = [keys[i : i + together] for i in range(0, len(keys), together)]

    def start(part: jax.Array) -> Any:
        state = limit.sample(theta, part if len(part) > 1 else part[0])
        return raw(functions.init, len(part) > 1)(state) if functions.init else state

    history = checkpoints.history([len(part) for part in parts])
    done = len(history.pieces)
    if done == len(parts):
        state = checkpoints.restore(start(parts[-1]))
    steps = len(batches) * (len(parts) - done) - len(history.outputs)
    with bar(steps, width_label(limit.width), progress) as advance:
        for part in parts[done:]:
            many = len(part) > 1
            state = checkpoints.restore(start(part))
            left = len(batches) - len(history.outputs)
            move = consuming(functions.step, left, lambda: advance("compiling"), many)
            look = functions.observer(left + 1, limit.keeps_reveals, many)
            for batch in batches[len(history.outputs) :]:
                try:
                    state, seen = look(state)
                    try:
                        state, output = pair(move(state, batch))
                    except CancellationError:
                        _numbers(seen, many, limit)  # if it diverges already, that is the cause
                        raise
                except ReplicatesDiffer:
                    # Each has to be compiled for its own decisions.
                    checkpoints.discard()
                    one = (functions, theta, batches, limit, keys, progress, checkpoints, 1)
                    return _train_terms(*one)
                # Numbers at once, so that a program without a limit is refused at its first step.
                history.observations.append(_numbers(seen, many, limit))
                history.outputs.append(_numbers(output, many, limit))
                history.raise_exponents("observations", _exponents(seen))
                history.raise_exponents("outputs", _exponents(output))
                checkpoints.save(state, history)
                advance("training")
            state, seen = look(state)
            history.observations.append(_numbers(seen, many, limit))
            history.raise_exponents("observations", _exponents(seen))
            history.finish_part()
            checkpoints.save(state, history)
    if len(parts[-1]) > 1:
        state = replicate(state, -1)
    records, fluctuations = history.records(), None
    if limit.fluctuations:
        records, fluctuations = (
            Records(records.outputs[part], records.observations[part]) for part in (0, 1)
        )
    directions = revealed_directions(state)
    return Trajectory(
        records, history.exponents(), limit.width, state, directions, fluctuations=fluctuations
    )


def _together(replicates: int, coordinates: int) -> int:
    """How many replicates share a call: a divisor of their number, so that all calls are alike."""
    bound = _TOGETHER_CPU if jax.default_backend() == "cpu" else _TOGETHER
    most = max(1, bound // coordinates)
    return max(size for size in range(1, replicates + 1) if replicates % size == 0 and size <= most)


def _numbers(record: Any, many: bool, limit: Limit) -> Any:
    """A record as arrays with the leading axis replicate; with fluctuations, a pair of such."""
    kinds: list[Any] = [to_limit]
    if limit.fluctuations:
        kinds.append(lambda leaf: to_series(leaf).at(Fraction(-1, 2)))
    found = []
    for kind in kinds:
        arrays = jax.tree.map(lambda leaf, kind=kind: np.array(kind(leaf)), record)
        found.append(arrays if many else jax.tree.map(lambda array: array[None], arrays))
    return tuple(found) if limit.fluctuations else found[0]


def _exponents(record: Any) -> Any:
    return jax.tree.map(exponent_of, record)
