"""What a training step does as the width grows, from running the interpreter on it.

`classify_step` knows no layers. It reads from the program which of its variables are
preactivations, activations and outputs of a network, runs a few steps at infinite width, and
compares the series of these variables from step to step.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from tplimit import arguments
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.declare.parameters import Parameter
from tplimit.errors import LimitError
from tplimit.regimes.regime import (
    Change,
    Mended,
    Regime,
    excess,
    initial_readouts,
    regime_of,
)
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.forward import Pass, largest
from tplimit.transforms.growth import Fault, Row, Steps, difference, greatest, leaves_of, moved
from tplimit.transforms.opaque import aval_of
from tplimit.transforms.sampling import sample
from tplimit.values.exponents import NEVER, Exponent, Size
from tplimit.values.powers import Power

__all__ = ["classify_step"]

#: So many faults are mended, one after the other.
_MOST = 100


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

    Returns: as `classify`. Its `rows` are those of the parameters that the forward pass reads, by
        their paths in the state: printing it, or asking for them, evaluates the network once more
        for each. `explain` and `mended` run the program with the rates that mend it. `exponents`
        has, of those that occur: `f_0`, `df_1` and `df` (outputs and their increments), `h`
        (largest of any preactivation or activation), `r` (minus the largest exponent of an
        increment of an activation). They are exact; where all known terms of an increment vanish,
        its exponent is the bound that its remainder gives.

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
    root = "theta" if init is None else "state"
    return _classified(_Program(step, state, [batch] * (steps + 1), root))


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


class _Program(NamedTuple):
    """A training step with its first state, the batches of the passes, and what states are called.

    The factors of initial values and of updates are powers of the width, by parameter.
    """

    step: Callable[[Any, Any], Any]
    state: Any
    batches: list[Any]
    root: str
    initial: Mapping[str, Exponent] = MappingProxyType({})
    rates: Mapping[str, Exponent] = MappingProxyType({})

    def run(self) -> Steps:
        state = self.state
        if any(self.initial.values()):
            state = Evaluator(lambda state: self._scaled(state, self.initial))((state,), {})
        step = self._with_rates if any(self.rates.values()) else self.step
        training = Steps(step, state, self.root)
        training.run(self.batches)
        return training

    def _scaled(self, state: Any, factors: Mapping[str, Exponent], origin: Any = None) -> Any:
        """A state times powers of the width; the distance from an `origin` times them."""
        found = {} if origin is None else leaves_of(origin)
        n = self._width(state)

        def scaled(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path)
            power = float(factors.get(self.root + name, 0))
            if not power:
                return leaf
            return found[name] + n**power * (leaf - found[name]) if found else n**power * leaf

        return jax.tree_util.tree_map_with_path(scaled, state)

    def _with_rates(self, state: Any, batch: Any) -> Any:
        after, out = self.step(state, batch)
        return self._scaled(after, self.rates, origin=state), out

    def has_width(self, parameter: str) -> bool:
        """Whether it has entries along a width, as readouts have, and biases of outputs not."""
        shape = aval_of(leaves_of(self.state)[parameter.removeprefix(self.root)]).shape
        return any(isinstance(length, Size) for length in shape)

    def _width(self, state: Any) -> float:
        """The width, up to a constant, of a state at any width."""
        for path, leaf in leaves_of(self.state).items():
            for axis, length in enumerate(aval_of(leaf).shape):
                if isinstance(length, Size):
                    return float(leaves_of(state)[path].shape[axis])
        raise AssertionError("a program without a width has no powers of it")


def _classified(program: _Program, training: Steps | None = None) -> Regime:
    """The regime of a program, from its training."""
    training = program.run() if training is None else training
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
        powers |= {
            "df_1": change[0],
            "df": greatest(change),
            "r": r._replace(exponent=-r.exponent),
        }
    regime = regime_of(stable, {name: power.exponent for name, power in powers.items()})
    return replace(
        regime,
        name=regime.name or _name(passes),
        known={name: power.known for name, power in powers.items()},
        look=functools.partial(_rows, training),
        mending=functools.partial(_mended, program, training),
    )


def _mended(program: _Program, training: Steps, features: bool) -> Mended:
    """The program with initial values and updates times powers of the width, run again each time.

    What grows is lowered. With `features` what does not move is raised besides.
    """
    program, training, met = _settled(program, training)
    if features:
        program, training, found = _moving(program, training)
        met += found
    changes = []
    for name in training.parameters:
        rate = program.rates.get(name, 0)
        changes.append(Change(name, program.initial.get(name, 0), rate, rate))
    return Mended(tuple(changes), _classified(program, training), tuple(met))


def _settled(program: _Program, training: Steps) -> tuple[_Program, Steps, list[Fault]]:
    """The program without growth, its training, and what grew."""
    met: list[Fault] = []
    while training.grows:
        found = training.faults()
        met += found
        initial, rates = dict(program.initial), dict(program.rates)
        for one in found:
            factors = initial if one.part == "initial" else rates
            factors[one.parameter] = factors.get(one.parameter, 0) - one.power.exponent
        if not found or len(met) > _MOST:
            raise ValueError("what grows is not the doing of one of the parameters")
        program = program._replace(initial=initial, rates=rates)
        training = _run_again(program)
    return program, training, met


def _moving(program: _Program, training: Steps) -> tuple[_Program, Steps, list[Fault]]:
    """A stable program with which every parameter that is trained moves its layer.

    Where a layer that moved would make the outputs grow, initial readouts are lowered first. Then
    rates are raised by what is missing in a layer; should they have been raised too far, since
    gradients have grown with other layers, something grows, and they are lowered.
    """
    met: list[Fault] = []
    tried: list[tuple[Mapping[str, Exponent], ...]] = []
    while True:
        rows = training.rows()
        still = [row for row in rows if NEVER < row.layer.exponent < 0]
        if not still:
            return program, training, met
        if (powers := (program.initial, program.rates)) in tried:
            raise ValueError(
                "no powers of the width were found that are the same in every step and with which "
                "every layer moves: explain() says which does not"
            )
        tried.append(powers)
        initial, rates = dict(program.initial), dict(program.rates)
        through = excess(still)
        readouts = [name for name in initial_readouts(rows) if program.has_width(name)]
        if through > 0 and readouts:
            for name in readouts:
                initial[name] = initial.get(name, 0) - through
        else:
            for row in still:
                rates[row.parameter] = rates.get(row.parameter, 0) - row.layer.exponent
        program = program._replace(initial=initial, rates=rates)
        program, training, found = _settled(program, _run_again(program))
        met += found


def _run_again(program: _Program) -> Steps:
    try:
        return program.run()
    except LimitError as error:
        raise ValueError(f"the mended program has no known limit: {error.reason}") from error


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
