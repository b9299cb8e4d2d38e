"""Every registered program has at infinite width the mean of its finite networks.

Two semantics against ordinary networks: the limit (bias O(1/n)) and ``tp.Deferred`` (no bias). The
seeds are fixed; tolerances are in standard errors. The slow tests repeat all of it with ten times
the samples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import programs
from oracles.helpers import (
    PROGRAMS,
    WIDTH,
    Program,
    assert_same_mean,
    dense,
    sampled,
)  # fmt: skip

import tplimit as tp

SEEDS = 32
REPLICATES = 4

_NAMES = list(programs.ACTIVATIONS)
_PAIRS = [(a, b) for a, b in zip(_NAMES[::2], _NAMES[1::2], strict=True)]


def _marked(programs: list[Program]) -> list[object]:
    return [
        pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.slow else []) for p in programs
    ]


def _against_dense(p: Program, width: object, slack: float, factor: int = 1) -> None:
    finite = dense(p.run, p.declaration, WIDTH, SEEDS * factor)
    seeds = REPLICATES if width == tp.inf else SEEDS
    samples = 960 * (4 if factor > 1 else 1)
    assert_same_mean(sampled(p.run, p.declaration, width, seeds * factor, samples), finite, slack)


@pytest.mark.parametrize("p", _marked(PROGRAMS))
def test_limit_is_the_mean_of_finite_networks(p: Program) -> None:
    """The limit of a program equals the average of finite networks, up to O(1/n)."""
    _against_dense(p, tp.inf, p.bias / WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("p", [p for p in PROGRAMS if p.deferred], ids=lambda p: p.name)
def test_deferred_has_the_mean_of_finite_networks(p: Program) -> None:
    """A deferred network has the mean outputs of a dense one of the same width, without bias."""
    _against_dense(p, tp.Deferred(WIDTH), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("pair", _PAIRS, ids="-".join)
def test_step_with_any_activation(pair: tuple[str, str]) -> None:
    """A gradient step is right for every activation, in the first and in the second layer."""
    p = Program(programs.two_activations(*pair), programs.MLP)
    _against_dense(p, tp.inf, p.bias / WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("pair", _PAIRS, ids="-".join)
def test_step_with_any_activation_deferred_and_reversed(pair: tuple[str, str]) -> None:
    """The same with the layers exchanged, and at a deferred width."""
    p = Program(programs.two_activations(*pair[::-1]), programs.MLP)
    _against_dense(p, tp.inf, p.bias / WIDTH, 4)
    _against_dense(p, tp.Deferred(WIDTH), 0.0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("p", PROGRAMS, ids=lambda p: p.name)
def test_both_semantics_with_many_samples(p: Program) -> None:
    """Both semantics agree with finite networks with eight times the seeds."""
    _against_dense(p, tp.inf, p.bias / WIDTH, 8)
    _against_dense(p, tp.Deferred(WIDTH), 0.0, 8)


def test_oracle_sees_a_wrong_rate() -> None:
    """The comparison has the power to reject a rate that is 30 % off."""
    right = dense(programs.two_activations("tanh", "erf"), programs.MLP, WIDTH, SEEDS)

    def run(t: programs.Theta) -> jax.Array:
        phi, psi = jnp.tanh, jax.scipy.special.erf

        def f(t: programs.Theta, x: jax.Array) -> jax.Array:
            h = phi(x @ t["U"] / np.sqrt(3) + t["b"])
            return psi(h @ t["W"] + t["c"]) @ t["v"] / t["v"].shape[0]

        return f(programs.descend(programs.squared(f), t, 0.65), programs.X)

    wrong = sampled(run, programs.MLP, tp.inf, REPLICATES, 960)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_mean(wrong, right, 4 / WIDTH)
