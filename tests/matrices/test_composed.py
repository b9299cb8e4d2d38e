"""Polynomials of matrices of low rank: cores between the vectors they share, and their errors.

The iteration of Newton and Schulz, as the optimizer Muon has it, acts on singular values alone, one
by one. Of two outer products of independent vectors of unit size these are the factors, whatever
the particles. Of functions of vectors they are averages, whose errors are compared with the
scatter between keys: a mean square over 32 keys and 9 entries is off by more than a third, in its
root, once in a million times.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.helpers import assert_same_mean, dense, sampled

import tplimit as tp
from tplimit.algebra import arithmetic
from tplimit.interpreter.loop import Context
from tplimit.matrices import composed, matrices, products
from tplimit.matrices.low_rank import LowRank
from tplimit.matrices.parts import Matrix
from tplimit.values.exponents import NEVER, Exponents, Size
from tplimit.values.tensors import Matrices, Tensor, tensor

Theta = dict[str, jax.Array]
n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in "abcd"} | {"W": tp.normal((n, n), std=n**-0.5)}
WIDTH = Size(Fraction(1))
#: Those of `optax`.
COEFFICIENTS = 3.4445, -4.7750, 2.0315


def of_number(s: Any, steps: int = 5) -> Any:
    """What becomes of a singular value."""
    p, q, r = COEFFICIENTS
    for _ in range(steps):
        s = p * s + q * s**3 + r * s**5
    return s


# --- matrices as they are inside


def drawn(seed: int, samples: int, noise: str = "sobol") -> tuple[Context, list[jax.Array]]:
    options: dict[str, Any] = {"samples": samples, "terms": 1, "noise": noise}
    theta = tp.sample(DECLARED, jax.random.key(seed), width=tp.inf, **options)
    vectors = [jnp.asarray(theta[name]._value.terms[0].coefficient) for name in "abcd"]
    return Context(theta["W"]._revealed.bank), vectors


def number(value: float, exponent: int = 0, error: float | None = None) -> Tensor:
    stderr = None if error is None else jnp.asarray(error)
    return tensor(jnp.asarray(value), Exponents(exponent), Exponents(NEVER), stderr=stderr)


def outer(
    ctx: Context, left: Sequence[Any], right: Sequence[Any], factors: Sequence[Tensor]
) -> Matrix:
    """``sum_k factor_k left_k (x) right_k / n``."""
    assert ctx.bank is not None
    terms = zip(left, right, factors, strict=True)
    parts = tuple(LowRank(x[None], y[None], factor) for x, y, factor in terms)
    return Matrix(WIDTH, WIDTH, *ctx.bank.store_spaces[0], parts)


def iterated(ctx: Context, x: Matrix, steps: int = 5) -> Matrix:
    product = lambda a, b: products.product(ctx, a, b, WIDTH)
    total = functools.partial(matrices.sum_of, ctx)
    times = lambda c, a: matrices.scale(ctx, a, number(c))
    p, q, r = COEFFICIENTS
    for _ in range(steps):
        square = product(x, x.T)
        polynomial = total(times(q, square), times(r, product(square, square)))
        x = total(times(p, x), product(polynomial, x))
    return x


def corners(ctx: Context, matrix: Matrix, left: Any, right: Any) -> Tensor:
    """``<x, A y>`` of all rows."""
    y = tensor(right, axis=1, space=matrix.column_space)
    image = products.apply(ctx, matrix, y, WIDTH)
    met = [arithmetic.multiply(ctx, image, tensor(row[None], axis=1)) for row in left]
    sums = [arithmetic.width_sum(ctx, one, WIDTH) for one in met]
    return tensor(
        jnp.stack([one.coefficient for one in sums]), stderr=jnp.stack([one.stderr for one in sums])
    )


@pytest.mark.parametrize("small", [0.5, 0.02, 1e-4])
def test_singular_values_one_by_one(small: float) -> None:
    """Known to round-off, which is enlarged too; of the last one the iteration makes 0.05."""
    ctx, (a, b, c, d) = drawn(0, 1024)
    size = np.hypot(1, small)
    x = outer(ctx, [a, c], [b, d], [number(1 / size, -1), number(small / size, -1)])
    found = corners(ctx, iterated(ctx, x), jnp.stack([a, c]), jnp.stack([b, d]))
    expected = np.diag([of_number(1 / size), of_number(small / size)])
    np.testing.assert_allclose(found.coefficient, expected, atol=1e-4)


def test_one_core_however_long_the_polynomial() -> None:
    """Between the vectors that there were: what it takes does not grow with the degree."""
    ctx, (a, b, c, d) = drawn(0, 256)
    x = outer(ctx, [a, c], [b, d], [number(0.8, -1), number(0.6, -1)])
    (part,) = composed.between(ctx, iterated(ctx, x, 1)) or ()
    (later,) = composed.between(ctx, iterated(ctx, x, 3)) or ()
    assert part.core.shape == later.core.shape == (17, 2, 2)


@pytest.mark.parametrize(
    ("noise", "steps", "most"), [("random", 1, 5), ("random", 5, 5), ("sobol", 5, 10)]
)
def test_errors_are_the_scatter_between_keys(noise: str, steps: int, most: float) -> None:
    """Not below 1/1.5 of it, nor above five times; ten times where of a plain average of these
    points, without any iteration, they are that. Rank three, singular values from 1 to 0.005, and a
    factor that is off by two per cent."""
    values, errors = [], []
    for seed in range(32):
        ctx, (a, b, c, d) = drawn(seed, 512, noise)
        left = [jnp.tanh(a), jnp.tanh(a + b), b**2]
        right = [c, jnp.tanh(c - d), jnp.cos(d)]
        off = 1 + 0.02 * jax.random.normal(jax.random.key(seed))
        factors = [number(1.2, -1), number(-0.5, -1), number(0.01 * off, -1, 2e-4)]
        x = iterated(ctx, outer(ctx, left, right, factors), steps)
        found = corners(
            ctx, x, jnp.stack([a, jnp.sin(b), a * b]), jnp.stack([c, d, jnp.tanh(c + d)])
        )
        values.append(np.asarray(found.coefficient))
        errors.append(np.asarray(found.stderr))
    scatter = np.sqrt(np.mean(np.var(values, axis=0, ddof=1)))
    said = np.sqrt(np.mean(np.square(errors)))
    assert scatter / 1.5 < said < most * scatter


@pytest.mark.parametrize(("error", "known"), [(0.002, True), (0.02, False)])
def test_what_is_hidden_is_not_enlarged_in_silence(error: float, known: bool) -> None:
    """A direction that is 0.01 within its error becomes as large as others."""
    ctx, (a, b, c, d) = drawn(0, 1024)
    factors = [number(0.8, -1), number(0.6, -1), number(0.01, -1, error)]
    x = iterated(ctx, outer(ctx, [a, c, d], [b, d, a], factors))
    home = matrices.sum_of(ctx, x, outer(ctx, [a], [b], [number(1, -1)]))
    matrices.absorbed(ctx, Matrices(home, (0, 1)))
    ok = [bool(check.ok) for check in ctx.checks if "directions" in check.error.reason]
    assert ok == [known]


# --- the optimizer of optax


def as_optax(x: jax.Array) -> jax.Array:
    muon = optax.contrib.scale_by_muon(beta=0.0, eps=0.0, nesterov=False)
    return muon.update(x, muon.init(x))[0]


def test_beside_networks() -> None:
    """Nine numbers, with a bias of order 1/n; one in 10^4 times beyond 4.5 standard errors."""

    def run(t: Theta) -> jax.Array:
        pairs = [
            (jnp.tanh(t["a"]), t["c"]),
            (-0.5 * jnp.tanh(t["a"] + t["b"]), jnp.tanh(t["c"] - t["d"])),
            (0.01 * t["b"] ** 2, jnp.cos(t["d"])),
        ]
        matrix = as_optax(sum(jnp.outer(x, y) for x, y in pairs) / t["a"].shape[0])
        x = jnp.stack([jnp.tanh(t["a"]), jnp.sin(t["b"]), t["a"] * t["b"]])
        y = jnp.stack([t["c"], jnp.tanh(t["d"]), jnp.tanh(t["c"] + t["d"])])
        return x @ (matrix @ y.T) / x.shape[1]

    assert_same_mean(sampled(run, DECLARED, tp.inf, 24), dense(run, DECLARED, 384, 64), 8 / 384)
