"""Training at any width: run a plain JAX step over batches and record what it returns."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tplimit import arguments
from tplimit.declare.initialisers import declarations
from tplimit.output.provenance import provenance
from tplimit.training.checkpoint import Checkpoint, Checkpoints
from tplimit.training.finite import train_networks
from tplimit.training.infinite import Traced, train_limit
from tplimit.training.loop import Functions
from tplimit.training.options import Options
from tplimit.training.trajectory import Trajectory
from tplimit.transforms.sampling import is_limit, width_of

__all__ = ["train"]

Step = Callable[[Any, Any], tuple[Any, Any]]


def train(
    step: Step,
    theta: Any,
    batches: Any,
    *,
    width: Any,
    key: jax.Array,
    samples: int | None = None,
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
    pair_samples: int | None = None,
    keep: Sequence[int] | None = None,
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
        theta: a tree of declarations: `tplimit.normal`, `tplimit.full`, ...; or a function of an
            integer that makes parameters at this width, for `tplimit.declare`.
        batches: a list (or a finite iterator, read at once) of batches, each passed to `step` as it
            is; or one array whose first axis are the steps.
        width: an integer, {name: integer}, `tplimit.Deferred(n)` or `tplimit.inf`.
        key: a JAX key; equal keys give equal results. Replicate r uses entry r of
            `jax.random.split(key, replicates)`.
        samples: Monte Carlo particles per width axis, at infinite width. By default 2^14, or 2^11
            where the program has functions of all pairs of them (Adam and its kin on matrices
            between widths), of which one array takes 4 M^2 bytes; up to 2^13 there, and more with
            `pair_samples`.
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
        noise, rank_tolerance, mesh, pair_samples: as in `tplimit.sample`, at infinite and deferred
            width.
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
        keep: the steps whose states are kept, of all replicates, in `Trajectory.snapshots`, for
            later questions (`Trajectory.evaluate`): 0 is the initial state, -1 the last one;
            `keep=[]` keeps none. By default the last one, `Trajectory.states`, as long as those of
            all replicates take at most 1 GiB. With `checkpoint` they are saved in its folder.

    Returns:
        `Trajectory`: `outputs` and `observations` are means over replicates, NumPy arrays with the
            axis step first; `stderr` has their errors, `replicates` the records of each, with axes
            (replicate, step, ...).

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
    batches, key = arguments.batches(batches), arguments.key(key)
    theta = arguments.theta(declarations(theta))
    progress = arguments.flag("progress", progress)
    options = Options(
        width=width_of(theta, width), samples=samples, replicates=replicates, noise=noise,
        rank_tolerance=rank_tolerance, terms=terms, init_output=init_output,
        fluctuations=fluctuations, pair_samples=pair_samples, mesh=mesh, bias_check=bias_check,
    )  # fmt: skip
    keep = arguments.keep(keep, len(batches))
    record, started = provenance() | _recorded(key, len(batches)), time.monotonic()

    def recorded(trajectory: Trajectory, options: Options) -> Trajectory:
        # What it was begun with, what it has turned to, and how long it took.
        own = options.recorded() | dict(trajectory.record)
        seconds = round(time.monotonic() - started, 3)
        return replace(trajectory, record=record | own | {"seconds": seconds})

    keys = jax.random.split(key, options.replicates)
    if checkpoint is not None and options.mesh is not None and options.mesh.is_multi_process:
        raise ValueError(
            "checkpoint does not work with a mesh over several processes: the particles are never "
            "gathered in one. Leave checkpoint out, or use a mesh of the devices of one process"
        )
    run = {"theta": theta, "batches": batches, "key": key} | options.compared()
    # Of the functions it is only known whether they were given.
    run |= {"init": init is not None, "observe": observe is not None}
    checkpoints = Checkpoints(checkpoint, run)
    functions = Functions(init, step, observe)
    if not is_limit(options.width):
        with checkpoints:
            trajectory = train_networks(
                functions, theta, batches, options.width, keys, progress, checkpoints, keep
            )
            return recorded(trajectory, options)
    traced = Traced(functions)
    with checkpoints:
        if not options.bias_check or options.deferred:
            trajectory = train_limit(
                traced, theta, batches, options, keys, progress, checkpoints, keep
            )
            return recorded(trajectory, options)
        # The cheap side first: what cannot be run with half the samples is refused at once.
        count = options.replicates
        half = replace(options, samples=options.particles // 2, replicates=2 * count)
        more = jax.random.split(jax.random.fold_in(key, count), 2 * count)
        unsaved = Checkpoints(None, {})
        cheap = train_limit(traced, theta, batches, half, more, progress, unsaved)
        trajectory = train_limit(traced, theta, batches, options, keys, progress, checkpoints, keep)
    return recorded(trajectory, options).with_bias_from(cheap)


def _recorded(key: jax.Array, steps: int) -> dict[str, Any]:
    """The key as numbers, from which `jax.random.wrap_key_data` makes it; steps; precision."""
    data = np.asarray(jax.random.key_data(key)).tolist()
    return {
        "key": {"impl": str(jax.random.key_impl(key)), "data": data},
        "steps": steps,
        "dtype": jnp.result_type(float).name,
    }


def _check_functions(init: Any, step: Any, observe: Any) -> None:
    arguments.function("step", step, "(state, batch) -> (state, output)")
    if init is not None:
        arguments.function("init", init, "(theta) -> state")
    if observe is not None:
        arguments.function("observe", observe, "(state) -> arrays")
