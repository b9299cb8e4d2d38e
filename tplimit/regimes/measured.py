"""What a training step does as the width grows, from running the interpreter on it.

`classify_step` knows no layers. It reads from the program which of its variables are
preactivations, activations and outputs of a network, runs a few steps at infinite width, and
compares the series of these variables from step to step.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.declare.parameters import Parameter
from tplimit.errors import LimitError
from tplimit.regimes.regime import Regime, regime_of
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.forward import Pass, largest
from tplimit.transforms.growth import Row, Steps, difference, greatest, moved
from tplimit.transforms.sampling import sample
from tplimit.values.powers import Power

__all__ = ["classify_step"]


def classify_step(
    step: Callable[[Any, Any], Any],
    theta: Any,
    batch: Any,
    *,
    key: jax.Array | None = None,
    init: Callable[[Any], Any] | None = None,
    steps: int = 3,
    samples: int = 2**10,
) -> Regime:
    """The regime of any training step, by running its first steps at infinite width.

    `step(state, batch)` returns a new state and the loss (or any values computed by the forward
    pass), as for `tplimit.train`; the same batch is used in every step. Of the operations that the
    second output needs, those that are not linear in the batch are taken for nonlinearities: what
    they act on are preactivations, what they return are activations. The finite results of sums
    over a width that no later layer uses are the outputs f.

    Unlike `classify` this knows the program with its coefficients: it sees what symmetry cancels,
    activations with any behaviour at 0, optimizers, normalisation. It sees nothing that takes more
    than `steps` steps to show. In a network without nonlinearities preactivations are products
    with their scale, so scale after the product: `(x @ W) / n**0.5`.

    Args:
        step: plain JAX, `(state, batch) -> (state, out)`; `out` must depend on the outputs.
        theta: declared parameters.
        batch: arrays of one batch.
        key: random key of the draw, by default `jax.random.key(0)`.
        init: `theta -> state`, by default the state is theta.
        steps: steps that are run.
        samples: Monte Carlo particles; coefficients only have to be told from 0.

    Returns: as `classify`. `exponents` has, of those that occur: `f_0`, `df_1` and `df` (outputs
        and their increments), `h` (largest of any preactivation or activation), `r` (minus the
        largest exponent of an increment of an activation). Where all known terms of an increment
        vanish, its exponent is the bound that its remainder gives.

    Raises:
        TypeError: an argument is of another kind, such as an integer as `key`.
        ValueError: an argument is out of range; an array of `batch` or `theta` is empty or holds
            NaN or infinity, or the forward pass of one of the steps does.
        LimitError: `out` depends on no output of a network; or what the program itself raises
            (`CancellationError` where two terms do not decide).

    >>> import jax, jax.numpy as jnp, tplimit as tp
    >>> model = tp.mlp(1, inputs=2)
    >>> batch = jnp.ones((1, 2)), jnp.ones((1,))
    >>> scaling = tp.parameterizations.mup
    >>> regime = tp.classify_step(scaling.step(model, "mse", 0.1), scaling.theta(model), batch)
    >>> regime.feature_learning, regime.name
    (True, 'mean-field')
    """
    key = jax.random.key(0) if key is None else arguments.key(key)
    arguments.function("step", step, "(state, batch) -> (state, output)")
    if init is not None:
        arguments.function("init", init, "(theta) -> state")
    theta, steps = arguments.theta(declarations(theta)), arguments.whole("steps", steps, example=3)
    arguments.arrays("batch", batch, "pass arrays and numbers")
    for name, tree in (("theta", theta), ("batch", batch)):
        _check_numbers(name, tree)
    # Tiny residuals of repeated vectors would be new directions: changes where there are none.
    state = sample(theta, key, width=inf, samples=samples, terms=2, rank_tolerance=0.0)
    if init is not None:
        state = Evaluator(init)((state,), {})
    training = Steps(step, state, "theta" if init is None else "state")
    training.run([batch] * (steps + 1))
    return _regime(training)


def _check_numbers(name: str, tree: Any) -> None:
    """What follows from an empty batch, from NaN or infinity tells nothing of the program."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name_of_leaf = name + jax.tree_util.keystr(path)
        if isinstance(leaf, Parameter):  # its scales are finite
            continue
        if not jax.dtypes.issubdtype(jax.dtypes.result_type(leaf), np.number):
            continue
        numbers = np.asarray(leaf)
        if numbers.size == 0:
            raise ValueError(f"{name_of_leaf} is empty, its shape is {numbers.shape}")
        if np.any(lost := ~np.isfinite(numbers)):
            where = np.argwhere(lost)[0]
            at = f" at {where.tolist()}" if where.size else ""
            raise ValueError(
                f"{name_of_leaf} holds {numbers[tuple(where)]}{at}: give finite numbers"
            )


def _regime(training: Steps) -> Regime:
    passes = training.passes
    start, later = passes[0], passes[1:]
    stable = all(one.largest <= 0 for one in passes)
    features = [moved(start.after, one.after) for one in later]
    change = [moved(start.outputs, one.outputs) for one in later]
    powers = {
        "f_0": Power(largest(start.outputs)),
        "h": Power(max(one.hidden for one in passes)),
    }
    if later:
        r = greatest(features)
        powers |= {"df_1": change[0], "df": greatest(change), "r": r._replace(exponent=-r.exponent)}
    regime = regime_of(stable, {name: power.exponent for name, power in powers.items()})
    return replace(
        regime,
        name=regime.name or _name(passes),
        known={name: power.known for name, power in powers.items()},
        look=functools.partial(_rows, training),
    )


def _rows(training: Steps) -> tuple[Row, ...]:
    """Its rows, none where they cannot be found."""
    try:
        return training.rows()
    except LimitError:
        return ()


def _name(passes: list[Pass]) -> str:
    start, last = passes[0], passes[-1]
    all_move = all(
        difference(a, b).exponent == 0 for a, b in zip(start.after, last.after, strict=True)
    )
    random = last.random_weights
    if all_move and all(e < 0 for e in random):
        return "mean-field"
    return "muP-like" if all_move and all(e == 0 for e in random) else "feature learning"
