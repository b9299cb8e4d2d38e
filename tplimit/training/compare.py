"""`compare`: networks of several widths, and their limit, trained by one and the same program."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax

from tplimit import arguments
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.errors import CancellationError, DivergenceError, LimitError, LimitWarning, warn
from tplimit.training.checkpoint import Checkpoint
from tplimit.training.comparison import Comparison, shapes
from tplimit.training.loop import Functions, pair
from tplimit.training.options import Options
from tplimit.training.train import Step, train
from tplimit.training.trajectory import Trajectory, width_label
from tplimit.transforms.limits import align, raw
from tplimit.transforms.sampling import sample, width_of

__all__ = ["compare"]

_REPLICATES = 4
#: Options of how the limit is sampled, which networks of finite width have no use for.
_OF_LIMIT = {one.name for one in fields(Options)} - {"width", "replicates"}


def compare(
    step: Step,
    theta: Any,
    batches: Any,
    *,
    widths: Sequence[int],
    seeds: int,
    key: jax.Array,
    limit: Trajectory | None = None,
    replicates: int | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    **options: Any,
) -> Comparison:
    """Train networks of several finite widths, and their limit, with one and the same program.

    Args:
        step, theta, batches: as in `tplimit.train`.
        widths: the finite widths, each an integer (the common n; all widths with ratio 1).
        seeds: independent networks per width; at least 2 for errors, 8 or more for good ones.
        key: a JAX key; every width and the limit use independent keys derived from it.
        limit: a finished run of `tplimit.train(width=tplimit.inf)` (or one that was loaded), in the
            place of a new one. It has to be a run of this program: steps and shapes of the records
            are compared, the functions and numbers cannot be.
        replicates: independent samplings of the limit, for its error; by default 4. A random limit
            wants as many as there are seeds.
        checkpoint: as in `tplimit.train`; every width has a folder of its own inside.
        options: all other options of `tplimit.train`: init, observe, samples, noise, terms,
            init_output, fluctuations, bias_check, mesh, keep, progress, ...

    Returns:
        `Comparison`. A limit that is a random function is compared in law (`Comparison.law`). Where
        the program grows with the width, or leading terms vanish and no limit is known, the finite
        networks are trained all the same: `limit` is None, `error` is what `tplimit.train` raises,
        and `powers` are those of n that the networks follow.

    Raises:
        ValueError: no width, or one twice, less than one seed; `limit` is another run, or comes
            with options of how it is sampled; and what `tplimit.train` raises.
        TypeError: an unknown option, or `limit` is no run.
        LimitError: as in `tplimit.train`, except for `DivergenceError` and `CancellationError`.

    Warns:
        LimitWarning: the limit is a random function, or none is known; and as `tplimit.train` of
            runs that blow up, once for each width.

    >>> import jax, jax.numpy as jnp, tplimit as tp
    >>> n = tp.Width("n")
    >>> def step(theta, _):
    ...     return theta, jnp.mean(theta["v"] ** 2)
    >>> program = step, {"v": tp.normal((n,))}, [None]
    >>> how = {"key": jax.random.key(0), "progress": False}
    >>> run = tp.train(*program, width=tp.inf, samples=256, replicates=4, **how)
    >>> result = tp.compare(*program, widths=[64, 1024], seeds=64, limit=run, **how)
    >>> result.rms[64] > result.rms[1024]
    True
    >>> 0.03 < result.relative[1024] < 0.06  # the limit is 1, the spread sqrt(2 / 1024)
    True
    """
    key, batches = arguments.key(key), arguments.batches(batches)
    theta = arguments.theta(declarations(theta))
    widths = [width_of(theta, n) for n in arguments.widths(widths)]
    seeds = arguments.replicates(seeds, "seeds")
    known = inspect.signature(train).parameters.keys() - {"width"}
    for name in options.keys() - known:
        near = "".join(f"; did you mean {n}?" for n in get_close_matches(name, {*known, "widths"}))
        raise TypeError(f"compare has no option {name}{near}")
    own = {name: options.pop(name) for name in _OF_LIMIT & options.keys()}
    functions = Functions(options.get("init"), step, options.get("observe"))

    def run(width: Any, count: int, label: int, **more: Any) -> Trajectory:
        # States of all networks take memory; who asks questions of them says so.
        more = {"keep": ()} | options | more
        return train(
            step, theta, batches, width=width, key=jax.random.fold_in(key, label),
            replicates=count, checkpoint=_folder_of(checkpoint, width_label(width)), **more,
        )  # fmt: skip

    error: LimitError | None = None
    if limit is not None:
        given = own if replicates is None else own | {"replicates": replicates}
        _check_run(limit, len(batches), given)
        _check_records(limit, functions, theta, batches[0], min(widths), key)
    else:
        # The limit first: a program without one is refused before hours of finite networks.
        count = _REPLICATES if replicates is None else replicates
        try:
            limit = run(inf, count, 0, **own)
        except (DivergenceError, CancellationError) as raised:
            # What grows with the width is often random besides: then its power is not known.
            error = raised.at(raised.location)
            _warn_of_no_limit(error)
    if limit is not None and limit.random:
        _warn_of_law(limit.count, seeds)
    state = None if limit is None else limit.state
    if state is None:  # of a run that was loaded, or that has no limit
        samples = {name: n for name, n in own.items() if name == "samples" and n is not None}
        state = sample(theta, key, width=inf, **samples)
        state = state if functions.init is None else raw(functions.init)(state)
    align(step, state, batches[0], widths=widths)
    return Comparison(limit, {n: run(n, seeds, n) for n in sorted(widths)}, error)


def _check_run(limit: Any, steps: int, options: dict[str, Any]) -> None:
    """Raise where `limit` is no run of infinite width over so many steps, or has options by it."""
    if not isinstance(limit, Trajectory):
        raise TypeError(
            f"limit={arguments.shown(limit)} is no run: pass what tp.train(..., width=tp.inf) "
            "returns, or tp.Trajectory.load gives back"
        )
    if limit.width != inf:
        raise ValueError(f"limit is a run at {limit.label}: pass one of tp.train(width=tp.inf)")
    if options:
        raise ValueError(
            f"limit is finished, {', '.join(sorted(options))} would change nothing: leave out "
            "what says how it is sampled, or leave out limit"
        )
    if limit.steps != steps:
        raise ValueError(
            f"limit is a run of {limit.steps} steps, batches are {steps}: pass the batches it was "
            "trained on"
        )


def _check_records(
    limit: Trajectory, functions: Functions, theta: Any, batch: Any, width: Any, key: jax.Array
) -> None:
    """Raise where a network records other trees or shapes than the limit has."""
    init, step, observe = functions

    def first(key: jax.Array) -> tuple[Any, Any]:
        state = sample(theta, key, width=width)
        state = state if init is None else init(state)
        output = pair(arguments.returned(step, step(state, batch)))[1]
        return output, observe and arguments.returned(observe, observe(state))

    made = jax.eval_shape(first, key)
    found = limit.replicates.outputs, limit.replicates.observations
    for part, one, other in zip(("outputs", "observations"), found, made, strict=True):
        texts = shapes(one, axes=2), shapes(other)
        if texts[0] != texts[1]:
            raise ValueError(
                f"limit has recorded the {part} {texts[0]}, networks would record {texts[1]}: pass "
                "the step, init and observe that it was trained with"
            )


def _warn_of_no_limit(error: LimitError) -> None:
    warn(
        LimitWarning(
            "No limit is known to compare with, the finite networks are trained all the same; "
            f"powers and table() of the comparison show how they grow. {error.reason}",
            operation=error.operation,
            location=error.location,
            advice=error.advice,
        )
    )


def _warn_of_law(replicates: int, seeds: int) -> None:
    few = ""
    if replicates < seeds:
        few = f" {replicates} replicates beside {seeds} seeds are few: take as many."
    warn(
        LimitWarning(
            "The limit is a random function, another one in each replicate: finite networks agree "
            f"with it in law, and are compared so (law, table()).{few} If terms= asked for more "
            "terms than the program needs, leave it out."
        )
    )


def _folder_of(checkpoint: Any, label: str) -> Checkpoint | None:
    """Where one of several runs is saved."""
    if checkpoint is None:
        return None
    whole = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    return replace(whole, folder=Path(whole.folder) / label.replace(" ", "-"))
