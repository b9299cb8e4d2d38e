"""Programs whose formal limit is probably not what is meant are warned of; others are not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp

n = tp.Width("n")
VALUES = tp.sample(
    {"v": tp.normal((n,)), "W": tp.normal((n, n), std=n**-0.5)},
    jax.random.key(0),
    width=tp.inf,
    samples=256,
)


def test_a_width_written_as_a_number_is_warned_of_with_its_line() -> None:
    def feature(t: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((t["v"] @ t["W"] / np.sqrt(1024)) ** 2)

    with pytest.warns(
        tp.LimitWarning, match=r"32 looks like 1024\*\*\(1/2\)(.|\n)*test_warnings\.py:\d+"
    ):
        value = tp.limit(feature)(VALUES)
    # It is a plain number in the limit: E[Z^2] / 1024.
    np.testing.assert_allclose(value, 1 / 1024, rtol=0.2)


def test_a_constant_that_leads_only_at_absurd_widths_is_warned_of() -> None:
    def adam_like(t: dict[str, jax.Array]) -> jax.Array:
        g = t["v"] / t["v"].shape[0]
        return jnp.mean((g / (jnp.abs(g) + 1e-8)) ** 2)

    with pytest.warns(tp.LimitWarning, match="1e-08 dominates a term of order n\\^-1"):
        tp.limit(adam_like)(VALUES)


def test_ordinary_programs_are_not_warned_of() -> None:
    def ordinary(t: dict[str, jax.Array]) -> jax.Array:
        h = jnp.tanh(t["v"] @ t["W"]) * 0.25 + 1 / t["v"].shape[0]
        return jnp.mean(h**2) / 3 + jnp.mean(jax.nn.relu(t["v"]) + 1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(tp.limit(ordinary)(VALUES))


def test_compare_refuses_a_program_that_is_another_one_at_a_finite_width() -> None:
    def step(t: dict[str, jax.Array], batch: None) -> tuple[dict[str, jax.Array], jax.Array]:
        size = t["v"].shape[0]
        return t, jnp.mean(t["v"] ** 2) if size > 1000 else jnp.mean(t["v"] ** 4)

    def run(widths: list[int]) -> tp.Comparison:
        return tp.compare(
            step,
            {"v": tp.normal((n,))},
            [None],
            widths=widths,
            seeds=2,
            key=jax.random.key(0),
            samples=64,
            progress=False,
        )

    assert set(run([1024, 2048]).rms) == {1024, 2048}
    with pytest.raises(tp.NoLimitError, match=r"test_warnings\.py:\d+"):
        run([256, 2048])
