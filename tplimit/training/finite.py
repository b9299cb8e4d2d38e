"""Training at integer widths: ordinary arrays, replicates side by side."""

import operator
import warnings
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit.caching.store import compiled
from tplimit.training.checkpoint import Checkpoints
from tplimit.training.divergence import Watch
from tplimit.training.loop import Engine, Functions, Moves, Tell, pair, run
from tplimit.training.trajectory import Trajectory, width_label
from tplimit.transforms.sampling import sample

# Networks of finite width are trained together, as many as fit: state, gradient, new state and one
# temporary copy of each. Wide networks fill the processor by themselves, more memory gains nothing.
_CHUNK_BYTES = 256 * 2**20
_COPIES = 4


def train_networks(
    functions: Functions,
    theta: Any,
    batches: list[Any],
    width: int | dict[str, int],
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
    keep: tuple[int, ...] | None = (),
) -> Trajectory:
    """Independent networks, one for each key."""
    engine = _Networks(functions, theta, width, keys)
    watch = Watch(engine.label)
    history, state, snapshots = run(engine, batches, progress, checkpoints, watch, keep)
    kept = snapshots.get(len(batches))
    last = kept[-1] if kept else jax.tree.map(operator.itemgetter(-1), state)
    return Trajectory(history.records(), history.exponents(), width, last, snapshots=snapshots)


class _Networks(Engine):
    """Networks of a true width: plain JAX over a leading axis of replicates."""

    def __init__(self, functions: Functions, theta: Any, width: Any, keys: jax.Array) -> None:
        self.label = width_label(width)
        self.functions = functions

        def start(key: jax.Array) -> Any:
            initial = sample(theta, key, width=width)
            if functions.init is None:
                return initial
            return arguments.returned(functions.init, functions.init(initial))

        self._start = compiled(jax.vmap(start))
        self.parts = _chunks(keys, jax.eval_shape(start, keys[0]))

    def start(self, part: jax.Array) -> Any:
        return self._start(part)

    def moves(self, part: jax.Array, left: int, tell: Tell) -> Moves:
        _, step, observe = self.functions

        def checked_step(state: Any, batch: Any) -> Any:
            return arguments.returned(step, step(state, batch))

        def checked_observe(state: Any) -> Any:
            return None if observe is None else arguments.returned(observe, observe(state))

        # The state is donated: a wide network is then held once rather than twice.
        step_all = compiled(jax.vmap(checked_step, in_axes=(0, None)), donated=True)
        observe_all = compiled(jax.vmap(checked_observe))
        tell("compiling the first step")

        def look(state: Any) -> tuple[Any, Any]:
            return state, _copied(observe, observe_all(state))

        def move(state: Any, batch: Any) -> tuple[Any, Any]:
            with warnings.catch_warnings():
                # Not every state can be updated in place; then it is copied, as it should be.
                warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
                state, output = pair(step_all(_unshare(state), batch))
            return state, _copied(step, output)

        def apart(state: Any) -> list[Any]:
            return [jax.tree.map(operator.itemgetter(i), state) for i in range(len(part))]

        return Moves(look, move, apart)

    def numbers(self, which: str, record: Any, step: int) -> Any:
        return record

    def exponents(self, record: Any) -> Any:
        return jax.tree.map(lambda leaf: Fraction(0), record)


def _copied(source: Any, record: Any) -> Any:
    """A record as NumPy arrays, which share no memory with a state that is donated to a step."""
    if source is not None:
        arguments.records(source, record)
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), record)


def _chunks(keys: jax.Array, state: Any) -> list[jax.Array]:
    """Replicates that fit in memory together; `state` is that of one."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    length = max(1, _CHUNK_BYTES // max(1, _COPIES * size))
    return [keys[i : i + length] for i in range(0, len(keys), length)]


def _unshare(tree: Any) -> Any:
    """A copy of every array that occurs twice: one buffer cannot be donated twice."""
    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.array(leaf, copy=True)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(once, tree)
