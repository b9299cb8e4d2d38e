"""Training at infinite and deferred width: limit values, replicates in one call while small."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from tplimit.errors import CancellationError, DivergenceError, LimitError, LimitWarning, RoomError
from tplimit.matrices.memory import FEW
from tplimit.training.checkpoint import Checkpoints
from tplimit.training.divergence import Watch
from tplimit.training.evaluation import check_record
from tplimit.training.growth import growing
from tplimit.training.history import History
from tplimit.training.loop import Engine, Functions, Moves, Tell, pair, run
from tplimit.training.options import Options
from tplimit.training.snapshots import Snapshots
from tplimit.training.trajectory import Records, Trajectory, width_label
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.decisions import ReplicatesDiffer
from tplimit.transforms.effort import Calls
from tplimit.transforms.limits import MORE_TERMS, consuming, exponent_of, raw, to_limit, to_series
from tplimit.transforms.opaque import (
    Lineage,
    copied,
    replicate,
    revealed_directions,
    with_banks,
    with_other_draws,
)
from tplimit.transforms.room import with_room_for_all

# Replicates of the limit are computed in one call while they have at most so many coordinates. Of
# CPUs batched matrix products are slow: one call is 5 times faster with 8 replicates of 256
# particles, as fast with 1024, and 2.5 times slower with 16384.
_TOGETHER_CPU, _TOGETHER = 2**11, 2**18

# With several terms later steps ask for so much more than the first.
_MORE = 1.5

# So many steps show whether records depend on the draw of the initial function.
_TELLING = 2


def train_limit(
    functions: "Traced",
    theta: Any,
    batches: list[Any],
    options: Options,
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
    keep: tuple[int, ...] | None = (),
) -> Trajectory:
    """Train, and begin again where it turns out that the run has to be made in another way."""
    first = {
        "terms": options.kept_terms,
        "samples": options.particles,
        "together": _together(len(keys), options.coordinates),
    }
    decided = checkpoints.decided(first)
    alone: CancellationError | None = None  # of one term
    watch = Watch(width_label(options.width), options.fluctuations)
    while True:
        now = replace(options, terms=decided["terms"], samples=decided["samples"])
        engine = _Limit(functions, theta, now, keys, decided["together"], batches)
        try:
            found = run(engine, batches, progress, checkpoints, watch, keep)
            return engine.trajectory(*found)
        except ReplicatesDiffer:
            # Each has to be compiled for its own decisions.
            decided = checkpoints.begin_again(decided | {"together": 1})
        except RoomError:
            if options.samples is not None or decided["samples"] == FEW:
                raise
            fewer = {
                "samples": FEW, "together": _together(len(keys), FEW),
            }  # fmt: skip
            decided = checkpoints.begin_again(decided | fewer)
        except CancellationError as error:
            # Leading terms vanish: the next ones decide, and say so if they do not help.
            if options.terms is not None or now.series or options.deferred:
                raise error if alone is None else _also_alone(error, alone) from None
            alone = error.with_traceback(None)
            decided = checkpoints.begin_again(decided | {"terms": MORE_TERMS})


def _also_alone(error: CancellationError, alone: CancellationError) -> CancellationError:
    """The error of several terms with that of one, which may be the one to mend."""
    where = ", ".join(str(part) for part in (alone.operation, alone.location) if part is not None)
    told = f"With one term it was: {alone.reason}" + (f" ({where})" if where else "")
    return CancellationError(
        error.reason,
        operation=error.operation,
        location=error.location,
        advice="\n".join([*([] if error.advice is None else [error.advice]), told]),
    )


class Traced:
    """The functions of a run, each traced once for all of its parts and attempts."""

    def __init__(self, functions: Functions) -> None:
        init, step, observe = functions
        self.given = functions
        self.init = None if init is None else Evaluator(init, records=True)
        self.step = Evaluator(step, records=True)
        self.observe: Evaluator | None = None
        if observe is not None:
            self.observe = Evaluator(observe, records=True)
            beside = functools.wraps(observe)(lambda state: (state, observe(state)))
            self.observe_and_keep = Evaluator(beside, records=True)

    def observer(
        self, calls: Calls, keep: bool, many: bool, tell: Tell
    ) -> Callable[[Any], tuple[Any, Any]]:
        """A function from a state to (state, observation), which may `keep` what it reveals of the
        weights in the state; forgetting is cheaper."""
        if self.observe is None:
            return lambda state: (state, None)
        on_compile = lambda done: tell(f"compiling observe {done + 1}")
        if keep:
            return consuming(self.observe_and_keep, calls, on_compile, many)
        forget = raw(self.observe, many, calls, on_compile)
        return lambda state: (state, forget(state))


class _Limit(Engine):
    """Samplings of the limit, so many of them `together` in one call."""

    def __init__(
        self,
        functions: Traced,
        theta: Any,
        options: Options,
        keys: jax.Array,
        together: int,
        batches: list[Any],
    ) -> None:
        self.label = width_label(options.width)
        self.functions, self.theta, self.options = functions, theta, options
        self.parts = [keys[i : i + together] for i in range(0, len(keys), together)]
        self.many, self.batches, self.steps = together > 1, batches, len(batches)

    def start(self, part: jax.Array, redraw: Callable[[Any], Any] = lambda state: state) -> Any:
        state = redraw(self.options.sample(self.theta, part if self.many else part[0]))
        init = self.functions.init
        return raw(init, self.many, Calls(1, len(self.parts)))(state) if init else state

    def moves(self, part: jax.Array, left: int, tell: Tell) -> Moves:
        steps, done = self.steps, self.steps - left
        moving = Calls(steps, len(self.parts), done)
        looking = Calls(steps + 1, len(self.parts), done)
        on_compile = lambda done: tell(f"compiling step {done + 1}")
        return Moves(
            self.functions.observer(looking, self.options.keeps_reveals, self.many, tell),
            consuming(self.functions.step, moving, on_compile, self.many),
            self._apart(len(part)),
            self._with_room,
        )

    def _apart(self, replicates: int) -> Callable[[Any], list[Any]]:
        """From a state to those of its replicates, which share nothing but each with its past."""
        lines: list[Lineage | None] = [None] * replicates

        def branch(state: Any, index: int) -> Any:
            before = lines[index]
            now = lines[index] = Lineage() if before is None else Lineage(before)
            own = replicate(state, index) if self.many else copied(state)
            return with_banks(own, lambda revealed: replace(revealed, lineage=now))

        return lambda state: [branch(state, index) for index in range(replicates)]

    def _with_room(self, state: Any, batch: Any) -> Any:
        """The initial state with room for the whole run, where that is little."""
        functions, steps = self.functions, self.steps
        try:
            asked = [(functions.step.asks(state, batch, replicated=self.many), steps)]
            if functions.observe is not None:
                keep = self.options.keeps_reveals
                look = functions.observe_and_keep if keep else functions.observe
                asked.append((look.asks(state, replicated=self.many), steps + 1 if keep else 1))
        except LimitError:
            return state  # in its place it is told better
        return with_room_for_all(state, asked, _MORE if self.options.series else 1.0)

    def begin(self, history: History, batches: Sequence[Any]) -> None:
        sampled = self.options.series and self.options.init_output == "sample"
        if history.empty and sampled:
            history.random = self._is_random(batches)
        if history.random and self.options.bias_check:
            raise ValueError(
                "bias_check cannot tell the bias of a random limit, whose replicates have initial "
                'functions of their own: use init_output="zero"'
            )

    def _is_random(self, batches: Sequence[Any]) -> bool:
        """Whether limits depend on the central-limit terms, the draw of the initial function.

        The first records tell, up to those of the last new kind of batch: they are computed with
        two draws and all else equal.
        """
        forms = [jax.tree.structure(batch) for batch in batches]
        last = max(forms.index(form) for form in forms)

        def first_records(redraw: Callable[[Any], Any]) -> list[Any]:
            part, records = self.parts[0], []
            state = self.start(part, redraw)
            moves = self.moves(part, len(batches), lambda text: None)
            state = moves.ready(state, batches[0])
            for step, batch in enumerate(batches[: last + _TELLING]):
                state, seen = moves.observe(state)
                records.append(self._limits("observations", seen, step))
                state, output = pair(moves.step(state, batch))
                records.append(self._limits("outputs", output, step))
            records.append(self._limits("observations", moves.observe(state)[1], step + 1))
            return jax.tree.leaves(records)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LimitWarning)  # the run itself warns
            both = first_records(lambda state: state), first_records(with_other_draws)
        return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*both, strict=True))

    def numbers(self, which: str, record: Any, step: int) -> Any:
        """With fluctuations a pair: limits, and coefficients of n^-1/2.

        Raises:
            DivergenceError: it grows with the width; by which parameter, where that is found.
        """
        limits = self._limits(which, record, step)
        if not self.options.fluctuations:
            return limits
        return limits, self._arrays(lambda leaf, _: to_series(leaf).at(Fraction(-1, 2)), record)

    def _limits(self, which: str, record: Any, step: int) -> Any:
        given = self.functions.given
        function, role = {
            "outputs": (given.step, "step"),
            "observations": (given.observe, "observe"),
        }[which]
        check_record(function, record, role)
        try:
            return self._arrays(
                lambda leaf, path: to_limit(leaf, f"{which}{path} at step {step}"), record
            )
        except (CancellationError, DivergenceError) as error:
            if isinstance(error, CancellationError) and not self.options.series:
                raise  # more terms may decide
            raise growing(error, given, self.theta, self.batches, step) from None

    def _arrays(self, kind: Callable[[Any, str], Any], record: Any) -> Any:
        keystr = jax.tree_util.keystr
        arrays = jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.array(kind(leaf, keystr(path))), record
        )
        return arrays if self.many else jax.tree.map(lambda array: array[None], arrays)

    def exponents(self, record: Any) -> Any:
        return jax.tree.map(exponent_of, record)

    def trajectory(self, history: History, state: Any, snapshots: Snapshots) -> Trajectory:
        """What was recorded, with the state of the last replicate."""
        if self.steps in snapshots:  # the same value: it may be asked about beside earlier ones
            state = snapshots[self.steps][-1]
        elif self.many:
            state = replicate(state, -1)
        records, fluctuations = history.records(), None
        if self.options.fluctuations:
            records, fluctuations = (
                Records(records.outputs[part], records.observations[part]) for part in (0, 1)
            )
        return Trajectory(
            records, history.exponents(), self.options.width, state, revealed_directions(state),
            fluctuations=fluctuations, random=history.random, snapshots=snapshots,
            record=self.options.recorded(),
        )  # fmt: skip


def _together(replicates: int, coordinates: int) -> int:
    """How many replicates share a call: a divisor of their number, so that all calls are alike."""
    bound = _TOGETHER_CPU if jax.default_backend() == "cpu" else _TOGETHER
    most = max(1, bound // coordinates)
    return max(size for size in range(1, replicates + 1) if replicates % size == 0 and size <= most)
