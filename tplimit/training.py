"""Training at any width: run a plain JAX step over batches and record what it returns."""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tplimit import arguments
from tplimit.arguments import Deferred, inf
from tplimit.checkpoint import Checkpoint, Checkpoints
from tplimit.divergence import Watch
from tplimit.errors import CancellationError, LimitWarning, WidthError
from tplimit.evaluation import Evaluator, ReplicatesDiffer
from tplimit.leaves import replicate, revealed_directions, with_other_draws
from tplimit.networks import pair, train_networks
from tplimit.progress import bar
from tplimit.sampling import drawn, is_limit, width_of
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

# So many steps show whether records depend on the draw of the initial function.
_TELLING = 2


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
            `step`, `init` or `observe` than those of the earlier call cannot be noticed, unless
            they record another kind of tree. The mesh may be another one; then the numbers agree
            to round-off.
        noise, rank_tolerance, mesh: as in `tplimit.sample`, at infinite and deferred width.
        bias_check: at infinite width, run twice as many replicates with half the samples as well
            (about the same time again) and warn where the O(1/M) bias of the mean is not small
            against its standard error. See `Trajectory.bias`.
        terms: terms of the expansion in the width that are kept at infinite width. By default one;
            where leading terms vanish, as in kernel regimes, the run begins again with two.
        init_output: with several terms, `"sample"`: the random initial function of a wide network,
            another one in each replicate, so that the spread over replicates is not an error
            where the limit depends on it (`Trajectory.random`); `"zero"`: the limit with initial
            function 0.
        fluctuations: keep the terms of order n^-1/2 as well, see `Trajectory.fluctuations`.

    Returns:
        `Trajectory`: records as NumPy arrays with axes (replicate, step, ...), means, errors.

    Raises:
        TypeError: an argument is of another kind, such as `samples=1024.0` or an integer as `key`;
            `batches` is a tuple or dict (ambiguous), or no batches at all; `step` does not return
            (state, output), or a function returns a string, say. With `checkpoint`: records are
            another kind of tree than dicts, lists and tuples.
        ValueError: an argument is out of range, `key` holds several keys, no batch, stacked arrays
            of unequal length, `replicates` below 1 (2 with bias_check, which refuses a random limit
            too), fluctuations where there are none (finite width, one term), or records whose
            shapes change from step to step. With `checkpoint`: the folder has no name, is in use
            by another call, or holds another run (key, width, batches, ... differ), another format,
            or no readable file; the structure of the state changes while it trains; the mesh is
            shared by several processes.
        OSError: a checkpoint cannot be written, for instance because the disk is full.
        WidthError: `width` is no width; `step` or `observe` returns a value with a width, at
            infinite or deferred width; a function combines widths, or fails at a trial width.
        LimitError: the program has no limit; see its subclasses.

    Warns:
        LimitWarning: at any width, once, as soon as a record (`outputs` or `observations`) is NaN
            or infinite, or has grown by 10^6 and goes on growing at a rate that training does not
            come back from: with the record, the step, the replicates. The run goes on.

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
    _check_functions(init, step, observe)
    batches, theta, key = arguments.batches(batches), arguments.theta(theta), arguments.key(key)
    width, mesh = width_of(theta, width), arguments.mesh(mesh)
    # What is no option is refused at every width.
    samples, replicates = arguments.samples(samples), arguments.replicates(replicates)
    noise, rank_tolerance = arguments.noise(noise), arguments.rank_tolerance(rank_tolerance)
    terms = None if terms is None else arguments.terms(terms)
    init_output = arguments.init_output(init_output)
    progress = arguments.flag("progress", progress)
    bias_check = arguments.flag("bias_check", bias_check)
    fluctuations = arguments.flag("fluctuations", fluctuations)
    keys = jax.random.split(key, replicates)
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
    # Of the functions it is only known whether they were given.
    run |= {"init": init is not None, "observe": observe is not None}
    checkpoints = Checkpoints(checkpoint, run)
    if fluctuations and width != inf:
        raise ValueError("fluctuations are those around the limit: use width=tp.inf")
    if fluctuations and (terms == 1 or init_output == "zero"):
        raise ValueError(
            "fluctuations are the second of two terms: leave terms and init_output as they are"
        )
    if not is_limit(width):
        plain = (init or _identity, step, observe or _nothing)
        with checkpoints:
            return train_networks(plain, theta, batches, width, keys, progress, checkpoints)
    functions = _Functions(init, step, observe)
    terms = 2 if terms is None and fluctuations else terms
    limit = Limit(width, samples, noise, rank_tolerance, mesh, terms, init_output, fluctuations)
    limit = replace(limit, may_be_random=not bias_check)
    with checkpoints:
        if not bias_check or isinstance(width, Deferred):
            return _train_limit(functions, theta, batches, limit, keys, progress, checkpoints)
        # The cheap side first: what cannot be run with half the samples is refused at once.
        half = replace(limit, samples=samples // 2)
        more = jax.random.split(jax.random.fold_in(key, replicates), 2 * replicates)
        unsaved = Checkpoints(None, {})
        cheap = _train_limit(functions, theta, batches, half, more, progress, unsaved)
        trajectory = _train_limit(functions, theta, batches, limit, keys, progress, checkpoints)
    return trajectory.with_bias_from(cheap)


class _Functions:
    """The functions of a run, each traced once for all of its parts and attempts."""

    def __init__(self, init: Any, step: Any, observe: Any) -> None:
        self.init = None if init is None else Evaluator(init)
        self.step = Evaluator(step)
        self.observed = observe
        self.observe = None if observe is None else Evaluator(observe)
        beside = functools.wraps(observe or _nothing)(lambda state: (state, observe(state)))
        self.observe_and_keep = Evaluator(beside)

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
    may_be_random: bool = True

    @property
    def coordinates(self) -> int:
        """Coordinates of a vector at the common width."""
        return self.width.n if isinstance(self.width, Deferred) else self.samples

    def sample(self, theta: Any, key: jax.Array) -> Any:
        return drawn(
            theta, key, width=self.width, samples=self.samples, noise=self.noise,
            rank_tolerance=self.rank_tolerance, mesh=self.mesh,
            terms=self.terms or 1, init_output=self.init_output,
        )  # fmt: skip

    @property
    def series(self) -> bool:
        """Whether values have several terms."""
        return not isinstance(self.width, Deferred) and (self.terms or 1) > 1

    @property
    def keeps_reveals(self) -> bool:
        """Whether what an observation reveals has to hold for all that follow."""
        return isinstance(self.width, Deferred) or self.series


def _check_functions(init: Any, step: Any, observe: Any) -> None:
    arguments.function("step", step, "(state, batch) -> (state, output)")
    if init is not None:
        arguments.function("init", init, "(theta) -> state")
    if observe is not None:
        arguments.function("observe", observe, "(state) -> arrays")


def _identity(theta: Any) -> Any:
    return theta


def _nothing(state: Any) -> None:
    return None


# --- infinite and deferred width


def _train_limit(
    functions: "_Functions",
    theta: Any,
    batches: list[Any],
    limit: Limit,
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
) -> Trajectory:
    """Train, and begin again where it turns out that the run has to be made in another way."""
    first = {"terms": limit.terms or 1, "together": _together(len(keys), limit.coordinates)}
    decided = checkpoints.decided(first)
    while True:
        now = replace(limit, terms=decided["terms"])
        run = (functions, theta, batches, now, keys, decided["together"], progress, checkpoints)
        try:
            return _train_as_decided(*run)
        except ReplicatesDiffer:
            # Each has to be compiled for its own decisions.
            decided = checkpoints.begin_again(decided | {"together": 1})
        except CancellationError:
            # Leading terms vanish: the next ones decide, and say so if they do not help.
            if limit.terms is not None or now.series or isinstance(limit.width, Deferred):
                raise
            decided = checkpoints.begin_again(decided | {"terms": MORE_TERMS})


def _train_as_decided(
    functions: "_Functions",
    theta: Any,
    batches: list[Any],
    limit: Limit,
    keys: jax.Array,
    together: int,
    progress: bool,
    checkpoints: Checkpoints,
) -> Trajectory:
    parts = [keys[i : i + together] for i in range(0, len(keys), together)]

    def start(part: jax.Array, redraw: Callable[[Any], Any] = _identity) -> Any:
        state = redraw(limit.sample(theta, part if len(part) > 1 else part[0]))
        return raw(functions.init, len(part) > 1)(state) if functions.init else state

    def moves(left: int, many: bool) -> tuple[Any, Any]:
        """Observation and step of a state that has so many steps to go."""
        return (
            functions.observer(left + 1, limit.keeps_reveals, many),
            consuming(functions.step, left, lambda: advance("compiling"), many),
        )

    history = checkpoints.history([len(part) for part in parts])
    watch = Watch(width_label(limit.width), limit.fluctuations)
    watch.look(history)
    done = len(history.pieces)
    if done == len(parts):
        state = checkpoints.restore(start(parts[-1]))
    steps = len(batches) * (len(parts) - done) - len(history.outputs)
    with bar(steps, width_label(limit.width), progress) as advance:
        if history.empty and limit.series and limit.init_output == "sample":
            history.random = _is_random(functions, start, moves, parts[0], batches, limit)
        if history.random and not limit.may_be_random:
            raise ValueError(
                "bias_check cannot tell the bias of a random limit, whose replicates have initial "
                'functions of their own: use init_output="zero"'
            )
        for part in parts[done:]:
            many = len(part) > 1
            state = checkpoints.restore(start(part))
            look, move = moves(len(batches) - len(history.outputs), many)
            for batch in batches[len(history.outputs) :]:
                state, seen = look(state)
                try:
                    state, output = pair(move(state, batch))
                except CancellationError as error:
                    # If it diverges already, that is the cause.
                    _numbers(functions.observed, seen, many, limit)
                    watch.explain(error)
                    raise
                # Numbers at once, so that a program without a limit is refused at its first step.
                history.observations.append(_numbers(functions.observed, seen, many, limit))
                history.outputs.append(_numbers(functions.step.function, output, many, limit))
                history.raise_exponents("observations", _exponents(seen))
                history.raise_exponents("outputs", _exponents(output))
                watch.look(history)
                checkpoints.save(state, history)
                advance("training")
            state, seen = look(state)
            history.observations.append(_numbers(functions.observed, seen, many, limit))
            history.raise_exponents("observations", _exponents(seen))
            history.finish_part()
            watch.look(history)
            checkpoints.save(state, history)
    if len(parts[-1]) > 1:
        state = replicate(state, -1)
    records, fluctuations = history.records(), None
    if limit.fluctuations:
        records, fluctuations = (
            Records(records.outputs[part], records.observations[part]) for part in (0, 1)
        )
    return Trajectory(
        records, history.exponents(), limit.width, state, revealed_directions(state),
        fluctuations=fluctuations, random=history.random,
    )  # fmt: skip


def _is_random(
    functions: "_Functions",
    start: Callable[..., Any],
    moves: Callable[[int, bool], tuple[Any, Any]],
    part: jax.Array,
    batches: list[Any],
    limit: Limit,
) -> bool:
    """Whether limits depend on the central-limit terms, the draw of the initial function.

    The first records tell, up to those of the last new kind of batch: they are computed with two
    draws and all else equal.
    """
    forms = [jax.tree.structure(batch) for batch in batches]
    last = max(forms.index(form) for form in forms)
    many, limit_only = len(part) > 1, replace(limit, fluctuations=False)

    def first_records(redraw: Callable[[Any], Any]) -> list[Any]:
        state, records = start(part, redraw), []
        look, move = moves(len(batches), many)
        for batch in batches[: last + _TELLING]:
            state, seen = look(state)
            records.append(_numbers(functions.observed, seen, many, limit_only))
            state, output = pair(move(state, batch))
            records.append(_numbers(functions.step.function, output, many, limit_only))
        records.append(_numbers(functions.observed, look(state)[1], many, limit_only))
        return jax.tree.leaves(records)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # the run itself warns
        both = first_records(_identity), first_records(with_other_draws)
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*both, strict=True))


def _together(replicates: int, coordinates: int) -> int:
    """How many replicates share a call: a divisor of their number, so that all calls are alike."""
    bound = _TOGETHER_CPU if jax.default_backend() == "cpu" else _TOGETHER
    most = max(1, bound // coordinates)
    return max(size for size in range(1, replicates + 1) if replicates % size == 0 and size <= most)


def _numbers(source: Any, record: Any, many: bool, limit: Limit) -> Any:
    """A record as arrays with the leading axis replicate; with fluctuations, a pair of such."""
    _check_record(source, record)
    kinds: list[Any] = [to_limit]
    if limit.fluctuations:
        kinds.append(lambda leaf: to_series(leaf).at(Fraction(-1, 2)))
    found = []
    for kind in kinds:
        arrays = jax.tree.map(lambda leaf, kind=kind: np.array(kind(leaf)), record)
        found.append(arrays if many else jax.tree.map(lambda array: array[None], arrays))
    return tuple(found) if limit.fluctuations else found[0]


def _check_record(source: Any, record: Any) -> None:
    """Records are numbers: what has a width is a random variable for each of its coordinates."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(record):
        if leaf._aval.width_axes:
            raise WidthError(
                f"output{jax.tree_util.keystr(path)} of {arguments.described(source)} has a width, "
                f"{leaf!r}, and so no record at tp.inf or tp.Deferred(n).",
                location=leaf._origin,
                advice="Return averages over the width, such as jnp.mean(h**2), or outputs of the "
                "network; the state at the end is Trajectory.state.",
            )
    arguments.records(source, jax.tree.map(lambda leaf: leaf._aval, record))


def _exponents(record: Any) -> Any:
    return jax.tree.map(exponent_of, record)
