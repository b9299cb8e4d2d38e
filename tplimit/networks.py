"""Training at integer widths: ordinary arrays, replicates side by side."""

import warnings
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit.checkpoint import Checkpoints
from tplimit.divergence import Watch
from tplimit.progress import bar
from tplimit.sampling import sample
from tplimit.store import compiled
from tplimit.trajectory import Trajectory, width_label

# Networks of finite width are trained together, as many as fit: state, gradient, new state and one
# temporary copy of each. Wide networks fill the processor by themselves, more memory gains nothing.
_CHUNK_BYTES = 256 * 2**20
_COPIES = 4


def train_networks(
    functions: tuple[Any, Any, Any],
    theta: Any,
    batches: list[Any],
    width: int | dict[str, int],
    keys: jax.Array,
    progress: bool,
    checkpoints: Checkpoints,
) -> Trajectory:
    init, step, observe = functions

    def start(key: jax.Array) -> Any:
        return arguments.returned(init, init(sample(theta, key, width=width)))

    def checked_step(state: Any, batch: Any) -> Any:
        return arguments.returned(step, step(state, batch))

    def checked_observe(state: Any) -> Any:
        return arguments.returned(observe, observe(state))

    start_all = compiled(jax.vmap(start))
    # The state is donated: a wide network is then held once rather than twice.
    step_all = compiled(jax.vmap(checked_step, in_axes=(0, None)), donated=True)
    observe_all = compiled(jax.vmap(checked_observe))
    chunks = _chunks(keys, jax.eval_shape(start, keys[0]))
    history = checkpoints.history([len(chunk) for chunk in chunks])
    watch = Watch(width_label(width))
    watch.look(history)
    done = len(history.pieces)
    if done == len(chunks):
        state = checkpoints.restore(start_all(chunks[-1]))
    steps = len(batches) * (len(chunks) - done) - len(history.outputs)
    with bar(steps, width_label(width), progress) as advance:
        for chunk in chunks[done:]:
            state = _unshare(checkpoints.restore(start_all(chunk)))
            advance("" if history.pieces else "compiling the first step")
            for batch in batches[len(history.outputs) :]:
                history.observations.append(_numpy(observe, observe_all(state)))
                with warnings.catch_warnings():
                    # Not every state can be updated in place; then it is copied, as it should be.
                    warnings.filterwarnings(
                        "ignore", message="Some donated buffers were not usable"
                    )
                    state, output = pair(step_all(state, batch))
                history.outputs.append(_numpy(step, output))
                watch.look(history)
                checkpoints.save(state, history)
                advance("training")
            history.observations.append(_numpy(observe, observe_all(state)))
            history.finish_part()
            watch.look(history)
            checkpoints.save(state, history)
    replicates = history.records()
    exponents = replicates.map(lambda leaf: Fraction(0))
    return Trajectory(replicates, exponents, width, jax.tree.map(lambda leaf: leaf[-1], state))


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


def _numpy(source: Any, record: Any) -> Any:
    # A copy: an array of JAX may share its memory with a state that is donated to the next step.
    arguments.records(source, record)
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), record)
