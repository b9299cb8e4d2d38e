"""Every kind of part of a matrix does what ``Part`` promises: what is defined is tested."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import tplimit as tp
from tplimit.errors import UnsupportedOperationError
from tplimit.gaussian.bank import Bank
from tplimit.interpreter.loop import Context
from tplimit.matrices import matrices, products
from tplimit.matrices.composed import Composed
from tplimit.matrices.low_rank import LowRank
from tplimit.matrices.pairs import Pairs
from tplimit.matrices.parts import Matrix, Part
from tplimit.matrices.placed import Placed
from tplimit.matrices.projected_update import ProjectedUpdate
from tplimit.matrices.scaled_gaussian import ScaledGaussian
from tplimit.rules.inner import Total
from tplimit.training import encoding
from tplimit.values.exponents import HALF, NEVER, Exponents, Size
from tplimit.values.spans import Span
from tplimit.values.tensors import Matrices, Tensor, tensor

pytestmark = pytest.mark.usefixtures("op_by_op")

N, WIDTH = 32, Size(Fraction(1))
DEFERRED = tp.Deferred(N)
UNKNOWN = Fraction(-3, 2)


@pytest.fixture
def op_by_op() -> Iterator[None]:
    """Every query has loops of its own: to compile them takes longer than to run them."""
    with jax.disable_jit():
        yield


@functools.cache
def bank(width: Any, terms: int) -> Bank:
    """Two square matrices of which nothing has been revealed."""
    n = tp.Width("n")
    drawn = {name: tp.normal((n, n), std=n**-0.5) for name in "AB"}
    options = {} if width is not tp.inf else {"samples": N, "terms": terms}
    sampled = tp.sample(drawn, jax.random.key(1), width=width, **options)
    found: Bank = sampled["A"]._revealed.bank.grown(2 * N)
    return found


def context(width: Any = DEFERRED, terms: int = 1) -> Context:
    """That of a call with these matrices."""
    return Context(bank(width, terms))


def rows(seed: int, count: int, length: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, length))


def number(value: float, exponent: Any = 0, unknown: Any = NEVER) -> Tensor:
    return tensor(jnp.asarray(float(value)), Exponents(exponent), Exponents(unknown))


def _low_rank(ctx: Context) -> LowRank:
    return LowRank(rows(2, 2, N), rows(3, 2, N), number(0.7))


def _update(ctx: Context) -> Part:
    part = _low_rank(ctx)
    home = whole(ctx, ScaledGaussian(number(1), 0), part)
    return part.absorbed(ctx, home)


def _placed(ctx: Context) -> Part:
    """The first half of the rows in the place of the second; in several terms all of them, since
    shares along the width that is summed over are refused there (``test_placed.py``)."""
    half, one = Fraction(1, 2), Fraction(1)
    rows = Span(half * 0, half, half, one, one) if ctx.terms == 1 else Span.whole(WIDTH)
    return Placed(ScaledGaussian(number(1.5), 0), rows, Span.whole(WIDTH))


def _composed(ctx: Context) -> Part:
    """Between the vectors of a matrix of low rank and the bases of a store."""
    low, update = whole(ctx, _low_rank(ctx)), whole(ctx, _update(ctx))
    square = products.product(ctx, matrices.sum_of(ctx, low, update), update.T, WIDTH)
    cube = products.product(ctx, square, low, WIDTH)
    (part,) = matrices.scale(ctx, cube, number(*ctx.scale(1.0, Fraction(-2)))).parts
    return part


#: An example of each kind, of order one in a context; a new kind is entered here.
EXAMPLES: dict[type[Part], Callable[[Context], Part]] = {
    ScaledGaussian: lambda ctx: ScaledGaussian(number(1.5), 0),
    ProjectedUpdate: _update,
    LowRank: _low_rank,
    Composed: _composed,
    Pairs: lambda ctx: Pairs(jnp.tanh(rows(2, N, N)), Fraction(0)),
    Placed: _placed,
}

#: What acts on vectors: of a total nothing but the sum of all entries is known.
KINDS = [kind for kind in Part.__subclasses__() if kind is not Total]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
everywhere = pytest.mark.parametrize(
    "setting", [(DEFERRED, 1), (tp.inf, 1), (tp.inf, 2)], ids=["deferred", "limit", "two terms"]
)


def whole(ctx: Context, *parts: Part) -> Matrix:
    out, into = ctx.bank.store_spaces[0]  # type: ignore[union-attr]
    return Matrix(WIDTH, WIDTH, out, into, parts)


def image(ctx: Context, matrix: Matrix, x: Any) -> Any:
    """Leading coefficient of the images of rows."""
    vector = tensor(x, axis=1, space=matrix.column_space)
    return products.apply(ctx, matrix, vector, matrix.columns).coefficient


def dense(ctx: Context, matrix: Matrix) -> np.ndarray:
    """All entries, from the images of all unit vectors: of finite width."""
    return np.asarray(image(ctx, matrix, jnp.eye(N))).T


def same(a: Any, b: Any) -> bool:
    (x, form), (y, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return form == other and all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))


@every_kind
def test_transposed_twice_is_itself(kind: type[Part]) -> None:
    part = EXAMPLES[kind](context())
    assert same(part.T.T, part)


@every_kind
@everywhere
def test_transposed_part_is_the_adjoint(kind: type[Part], setting: Any) -> None:
    ctx = context(*setting)
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    x, y = rows(5, 2, N), rows(6, 2, N)
    there = image(ctx, matrix, x) @ y.T
    back = x @ image(ctx, matrix.T, y).T
    assert_allclose(there, back, rtol=2e-4, atol=1e-4 * float(jnp.max(jnp.abs(there))))


@every_kind
def test_entries_of_the_transposed_part(kind: type[Part]) -> None:
    ctx = context()
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    assert_allclose(dense(ctx, matrix.T), dense(ctx, matrix).T, atol=1e-4)


@every_kind
@everywhere
def test_image_is_linear(kind: type[Part], setting: Any) -> None:
    ctx = context(*setting)
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    x, y = rows(5, 2, N), rows(6, 2, N)
    both = image(ctx, matrix, x) + 2 * image(ctx, matrix, y)
    assert_allclose(image(ctx, matrix, x + 2 * y), both, atol=1e-4)


@every_kind
@everywhere
def test_image_under_a_sum_is_the_sum(kind: type[Part], setting: Any) -> None:
    ctx = context(*setting)
    part = EXAMPLES[kind](ctx)
    x = rows(5, 2, N)
    for other in [make(ctx) for make in EXAMPLES.values()]:
        a, b = whole(ctx, part), whole(ctx, other)
        _, gain = ctx.scale(1.0, other.gain - part.gain)
        b = matrices.scale(ctx, b, number(-0.5, -gain))  # the same order
        total = matrices.sum_of(ctx, a, b)
        assert_allclose(image(ctx, total, x), image(ctx, a, x) + image(ctx, b, x), atol=1e-4)
        assert same(total.T, matrices.sum_of(ctx, a.T, b.T))


@every_kind
def test_a_part_less_itself_is_nothing(kind: type[Part]) -> None:
    ctx = context()
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    nothing = matrices.sum_of(ctx, matrix, matrices.scale(ctx, matrix, number(-1)))
    assert_allclose(dense(ctx, nothing), np.zeros((N, N)), atol=1e-5)


@every_kind
def test_scaled(kind: type[Part]) -> None:
    ctx = context()
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    entries = dense(ctx, matrix)
    assert_allclose(dense(ctx, matrices.scale(ctx, matrix, number(3))), 3 * entries, atol=1e-4)
    twice = matrices.multiply(
        ctx,
        Matrices(matrix, (0, 1)),
        Matrices(matrices.constant(ctx, WIDTH, WIDTH, number(2)), (0, 1)),
    )
    assert_allclose(dense(ctx, twice.items.item()), 2 * entries, atol=1e-4)


@every_kind
@pytest.mark.parametrize("terms", [1, 2])
def test_orders_and_what_is_unknown_of_a_factor(kind: type[Part], terms: int) -> None:
    """``(n^-1 c + O(n^-3/2)) A x`` is known to half an order, where the width is infinite."""
    ctx = context(tp.inf, terms)
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    x = tensor(rows(5, 2, N), axis=1, space=matrix.column_space)
    before = products.apply(ctx, matrix, x, WIDTH).exponents.max()
    small = matrices.scale(ctx, matrix, number(3, -1, UNKNOWN))
    for form in (small, matrices.sum_of(ctx, small, matrices.zero(WIDTH, WIDTH))):
        after = products.apply(ctx, form, x, WIDTH)
        assert after.exponents.max() == before - 1
        everywhere = max([after.remainder.max(), *(patch.bound for patch in after.patches)])
        assert everywhere == before + UNKNOWN


@every_kind
@pytest.mark.parametrize("value", [(0, NEVER, UNKNOWN), (1, -3, NEVER)], ids=["unknown", "small"])
def test_what_is_dropped_stays_unknown(kind: type[Part], value: tuple[Any, ...]) -> None:
    """A part that is not known, or gives way to a larger one, is in the remainder."""
    ctx = context(tp.inf)
    part = EXAMPLES[kind](ctx)
    small = matrices.scale(ctx, whole(ctx, part), number(*value))
    total = matrices.sum_of(ctx, small, whole(ctx, _low_rank(ctx)))
    if value[1] != NEVER and not part.yields:
        assert len(total.parts) == 2
        return
    assert [type(left) for left in total.parts] == [LowRank]
    x = tensor(rows(5, 2, N), axis=1, space=total.column_space)
    unknown = products.apply(ctx, replace(total, parts=()), x, WIDTH).remainder.max()
    assert unknown == max(value[1:]) + part.gain


@every_kind
def test_more_room_and_bounded_size_change_nothing(kind: type[Part]) -> None:
    ctx = context()
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    entries = dense(ctx, matrix)
    held = matrices.absorbed(ctx, Matrices(matrix, (0, 1))).items.item()
    assert_allclose(dense(ctx, held), entries, atol=1e-4)
    ctx.ledger.bank = ctx.bank.grown(4 * N)  # type: ignore[union-attr]
    larger = replace(held, parts=tuple(part.fitted(4 * N) for part in held.parts))
    fresh = Context(ctx.bank)
    assert_allclose(dense(fresh, larger), entries, atol=1e-4)


@every_kind
def test_products_of_entries(kind: type[Part]) -> None:
    """Where two kinds can be multiplied entry by entry, that is what comes out."""
    ctx = context()
    a = whole(ctx, EXAMPLES[kind](ctx))
    for make in EXAMPLES.values():
        b = whole(ctx, make(ctx))
        both = Matrices(a, (0, 1)), Matrices(b, (0, 1))
        product = matrices.multiply(ctx, *both, low=True)
        if product is not None:
            entries = dense(ctx, a) * dense(ctx, b)
            assert_allclose(dense(ctx, product.items.item()), entries, atol=1e-3)


@every_kind
def test_product_with_low_rank(kind: type[Part]) -> None:
    ctx = context()
    a, low = whole(ctx, EXAMPLES[kind](ctx)), whole(ctx, _low_rank(ctx))
    low = replace(low, row_space=a.column_space)
    for left, right in ((a, low), (low, a)):
        found = dense(ctx, products.product(ctx, left, right, WIDTH))
        expected = dense(ctx, left) @ dense(ctx, right)
        assert_allclose(found, expected, atol=1e-4 * np.max(np.abs(expected)))


@every_kind
def test_product_with_what_is_unknown_of_low_rank(kind: type[Part]) -> None:
    ctx = context(tp.inf)
    part = EXAMPLES[kind](ctx)
    a, low = whole(ctx, part), replace(whole(ctx, _low_rank(ctx)), remainder=UNKNOWN)
    for left, right in ((a, low), (low, a)):
        product = products.product(ctx, left, right, WIDTH)
        unknown = max([product.remainder, *(factor.unknown for factor in product.parts)])
        assert unknown >= UNKNOWN + part.gain


@every_kind
def test_saved_and_read(kind: type[Part]) -> None:
    part = EXAMPLES[kind](context())
    assert same(encoding.decode(*encoding.encode(part)), part)


@pytest.mark.slow
def test_number_of_a_constant_matrix() -> None:
    """A product of vectors that happen to be constant is not taken for the matrix of its scale."""
    n = tp.Width("n")
    theta = {"W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}

    def squares(t: Any, scale: Callable[[int], Any]) -> Any:
        return jnp.mean((scale(t["v"].shape[0]) * t["W"] @ t["v"]) ** 2)

    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=512)
    ones = tp.limit(lambda t: squares(t, lambda m: 2 * jnp.ones((m, m))))(sampled)
    assert_allclose(ones, 4, rtol=1e-4)
    for pairs in (
        lambda m: jnp.outer(2 * jnp.ones(m), jnp.ones(m)),
        lambda m: jnp.ones((m, 2)) @ jnp.ones((2, m)),
    ):
        with pytest.raises(UnsupportedOperationError, match="entry by entry"):
            tp.limit(lambda t, pairs=pairs: squares(t, pairs))(sampled)


def test_the_unknown_of_a_cancelled_gaussian() -> None:
    """``(n^0 - (n^0 + O(n^-1))) W`` is not zero: nobody knows what it is."""
    ctx = context(tp.inf)
    matrix = whole(ctx, ScaledGaussian(number(0, NEVER, -1), 0))
    total = matrices.sum_of(ctx, matrix, matrices.zero(WIDTH, WIDTH))
    assert not total.parts
    assert total.remainder == -1 - HALF
