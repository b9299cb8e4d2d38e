"""The training loop, the same at every width, over a small engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from tplimit.errors import CancellationError
from tplimit.output.progress import STEP, bar
from tplimit.training.checkpoint import Checkpoints
from tplimit.training.divergence import Watch
from tplimit.training.history import History
from tplimit.training.snapshots import Keeper, Snapshots

Tell = Callable[[str], None]


class Functions(NamedTuple):
    """The functions of a run as they were given; `init` and `observe` may be None."""

    init: Callable[[Any], Any] | None
    step: Callable[[Any, Any], Any]
    observe: Callable[[Any], Any] | None


class Moves(NamedTuple):
    """What is done to a state: both give the next state (or the same) and a record.

    `observe` is called before each step and after the last; `step` takes a batch besides. Before
    the first of them `ready` makes the initial state, with the first batch, ready for the run.
    `apart` gives the states of the single replicates, in memory that no later step reuses.
    """

    observe: Callable[[Any], tuple[Any, Any]]
    step: Callable[[Any, Any], tuple[Any, Any]]
    apart: Callable[[Any], list[Any]]
    ready: Callable[[Any, Any], Any] = lambda state, batch: state


class Engine(ABC):
    """How networks of one kind of width are started, looked at, and trained."""

    #: What is run, such as "width 64".
    label: str
    #: Keys of the replicates that are trained together, part by part.
    parts: Sequence[jax.Array]

    @abstractmethod
    def start(self, part: jax.Array) -> Any:
        """Initial state of these replicates."""

    @abstractmethod
    def moves(self, part: jax.Array, left: int, tell: Tell) -> Moves:
        """Moves of a state that has so many steps to go; `tell` says what takes its time."""

    @abstractmethod
    def numbers(self, which: str, record: Any, step: int) -> Any:
        """A record as NumPy arrays with the leading axis replicate.

        `which` is "outputs" or "observations", `step` the number of steps before it.
        """

    @abstractmethod
    def exponents(self, record: Any) -> Any:
        """Powers of the width of the entries of a record."""

    def begin(self, history: History, batches: Sequence[Any]) -> None:  # noqa: B027
        """Called before the first state, with what an earlier call may have recorded."""


def run(
    engine: Engine,
    batches: Sequence[Any],
    progress: bool,
    checkpoints: Checkpoints,
    watch: Watch,
    keep: tuple[int, ...] | None,
) -> tuple[History, Any, Snapshots]:
    """Train all parts over the batches, from where a checkpoint has left off.

    Returns: what was recorded; the state of the last part; the states at the steps to `keep`.
    """
    parts = [len(part) for part in engine.parts]
    history = checkpoints.history(parts)
    keeper = Keeper(keep, len(batches), parts, checkpoints)
    watch.look(history)
    done = len(history.pieces)
    if done == len(engine.parts):
        engine.begin(history, batches)
        state = checkpoints.restore(engine.start(engine.parts[-1]))
        apart = engine.moves(engine.parts[-1], 0, lambda text: None).apart
        keeper.look(len(batches), done - 1, state, apart)
        return history, state, keeper.snapshots(state)
    steps = len(batches) * (len(engine.parts) - done) - len(history.outputs)

    def note(which: str, record: Any) -> None:
        # Numbers at once, so that a program without a limit is refused at its first step.
        numbers = engine.numbers(which, record, len(history.outputs))
        history.note(which, numbers, engine.exponents(record))

    with bar(steps, engine.label, progress) as advance:
        engine.begin(history, batches)
        for number, part in enumerate(engine.parts[done:], done):
            advance("sampling")
            state = checkpoints.restore(engine.start(part))
            moves = engine.moves(part, len(batches) - len(history.outputs), advance)
            if not history.outputs:
                state = moves.ready(state, batches[0])
            for batch in batches[len(history.outputs) :]:
                state, seen = moves.observe(state)
                keeper.look(len(history.outputs), number, state, moves.apart)
                try:
                    state, output = pair(moves.step(state, batch))
                except CancellationError as error:
                    # If it diverges already, that is the cause.
                    engine.numbers("observations", seen, len(history.outputs))
                    watch.explain(error)
                    raise
                note("observations", seen)
                note("outputs", output)
                watch.look(history)
                checkpoints.save(state, history)
                advance(STEP)
            state, seen = moves.observe(state)
            note("observations", seen)
            keeper.look(len(batches), number, state, moves.apart)
            history.finish_part()
            watch.look(history)
            checkpoints.save(state, history)
    return history, state, keeper.snapshots(state)


def pair(result: Any) -> tuple[Any, Any]:
    """What a step returned: state and output.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"step has to return (state, output), but it returns a {type(result).__name__}; "
            "write for instance: return new_theta, loss"
        )
    return result
