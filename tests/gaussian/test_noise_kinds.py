"""A kind of noise is one class: once entered it is drawn from everywhere, and saved with a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.gaussian import kinds

N = tp.Width("n")
THETA = {"v": tp.normal((N,)), "W": tp.normal((N, N), std=N**-0.5)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Antithetic(kinds.Noise):
    """Particles in pairs of opposite sign: all odd moments are 0."""

    @classmethod
    def of(cls, key: jax.Array, lengths: Sequence[int]) -> "Antithetic":
        return cls()

    def rows(self, keys: jax.Array, numbers: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
        half = jax.vmap(lambda key: jax.random.normal(key, (size // 2,), dtype))(keys)
        return jnp.concatenate([half, -half], axis=1)


@pytest.fixture(params=["random", "sobol", "antithetic"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(kinds.KINDS, "antithetic", Antithetic)  # type: ignore[arg-type]
    return str(request.param)


def test_every_kind_gives_the_limit(kind: str) -> None:
    """E tanh(N)² = 0.394, initial vectors and images alike."""
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=4096, noise=kind)
    squares = tp.limit(
        lambda t: jnp.stack([jnp.mean(jnp.tanh(x) ** 2) for x in (t["v"], t["v"] @ t["W"])])
    )(theta)
    assert np.abs(np.asarray(squares) - 0.394).max() < 0.02


def test_every_kind_is_trained_with_and_saved(kind: str, tmp_path: Path) -> None:
    def loss(t: dict[str, jax.Array]) -> jax.Array:
        return (jnp.mean(t["v"] * jnp.tanh(t["v"] @ t["W"])) - 1) ** 2

    def step(t: dict[str, jax.Array], _: None) -> tuple[dict[str, jax.Array], jax.Array]:
        n = t["v"].shape[0]
        value, g = jax.value_and_grad(loss)(t)
        return {**t, "v": t["v"] - n * g["v"]}, value

    def run() -> tp.Trajectory:
        return tp.train(
            step, THETA, [None] * 2, width=tp.inf, samples=256, noise=kind, key=jax.random.key(0),
            checkpoint=tmp_path, progress=False,
        )  # fmt: skip

    trained, read = run(), run()
    assert np.array_equal(trained.outputs, read.outputs)
    # What is revealed later comes from the noise that was saved.
    later = [np.asarray(tp.limit(step)(run.state, None)[1]) for run in (trained, read)]
    assert later[0] == later[1]


def test_what_is_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="noise='pink' is not known: pass 'sobol' or 'random'"):
        tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=8, noise="pink")
