"""Jaxprs evaluated by NumPy in double precision, beside JAX in double precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tplimit import _jax
from tplimit.program import numerics

A = np.array([[0.3, -1.2, 2.5], [-0.4, 0.9, 0.05]])
B = np.array([[1.1, 0.2, -0.7], [0.6, -2.0, 0.3]])
UNIT = np.array([0.1, 0.45, 0.9])
MASK = np.array([[True, False, True], [False, False, True]])
WHOLE = np.array([[7, -7, 3], [2, 0, -9]])

PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "entry by entry": (
        lambda a: [
            f(a) for f in (
                lax.neg, lax.sign, lax.abs, lax.floor, lax.ceil, lax.exp, lax.exp2, lax.expm1,
                lax.cbrt, lax.sin, lax.cos, lax.tan, lax.sinh, lax.cosh, lax.tanh, lax.asinh,
                lax.atan, lax.square, lax.is_finite, lax.logistic, lax.erf, lax.erfc,
            )
        ],
        (A,),
    ),
    "of positive numbers": (
        lambda a: [
            f(a) for f in (
                lax.log, lax.log1p, lax.sqrt, lax.rsqrt, lax.lgamma, lax.digamma, lax.asin,
                lax.acos, lax.atanh, lambda x: lax.acosh(1 + x),
            )
        ],
        (UNIT,),
    ),
    "of two arrays": (
        lambda a, b: [
            f(a, b) for f in (
                lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.rem, lax.atan2, lax.eq,
                lax.ne, lax.lt, lax.le, lax.gt, lax.ge,
            )
        ],
        (A, B),
    ),
    "powers": (lambda a: [lax.pow(jnp.abs(a), 1.5), lax.integer_pow(a, 3), 1 / a], (A,)),
    "whole numbers": (
        lambda i: [i // 2, lax.div(i, 2), lax.rem(i, 4), i & 3, i | 1, i ^ 5, ~i, i.astype(float)],
        (WHOLE,),
    ),
    "truth values": (
        lambda m, a: [m & (a > 0), m | (a > 0), m ^ (a > 0), ~m, jnp.all(m, 0), jnp.any(m, 1)],
        (MASK, A),
    ),
    "choices": (
        lambda m, a, b: [
            jnp.where(m, a, b), lax.clamp(-1.0, a, 1.0),
            lax.select_n(m.astype(int) + 1, a, b, a * b),
        ],
        (MASK, A, B),
    ),
    "conversions": (lambda a: [a.astype(int), a.astype(bool), (3 * a).astype(jnp.int8)], (A,)),
    "moving": (
        lambda a, b: [
            a[None], a.reshape(3, 2), a.T, a[::-1], jnp.concatenate([a, b], 1), a[:, 1:3],
            a[:, ::2], jnp.squeeze(a[:1]), jnp.broadcast_to(a[0], (4, 3)), jnp.stack([a, b]),
            lax.dynamic_slice(a, (1, 1), (1, 2)), lax.dynamic_update_slice(a, b[:1, :2], (1, 5)),
            lax.pad(a, 7.0, ((1, 0, 1), (-1, 2, 0))), lax.pad(a, 7.0, ((0, -1, 0), (2, -3, 2))),
        ],
        (A, B),
    ),
    "gathered": (lambda a: [a[jnp.array([1, 0, 1])], a.at[0, 1].add(2.0), jnp.sort(a, 1)], (A,)),
    "reductions": (
        lambda a: [
            a.sum(0), a.max(1), a.min(), a.prod(0), jnp.cumsum(a, 1), jnp.cumprod(a, 0),
            lax.cummax(a, 1), lax.cummin(a, 1, reverse=True), jnp.argmax(a, 1),
        ],
        (A,),
    ),
    "contractions": (
        lambda a, b: [
            a @ b.T, jnp.einsum("ij,ij->i", a, b), jnp.einsum("ij,kj->ki", a, b),
            jnp.tensordot(a, b, 2), lax.dot_general(a, b, (((0,), (0,)), ((1,), (1,)))),
        ],
        (A, B),
    ),
    "made of nothing": (lambda a: [jnp.arange(5) * a.sum(), lax.iota(int, 3), jnp.eye(3)], (A,)),
    "loops": (
        lambda a: [
            lax.scan(lambda c, x: (0.5 * c + x, c * x), a[0], jnp.stack([a[0], a[1], a[0]])),
            lax.scan(lambda c, x: (c + x, c), 0.0, a[0], reverse=True),
            lax.fori_loop(0, 7, lambda i, c: 0.9 * c + i, a),
            lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c + 1, a),
        ],
        (A,),
    ),
    "branches": (
        lambda a: [
            lax.cond(a[0, 0] > 0, jnp.sin, jnp.cos, a),
            lax.switch(2, [jnp.sin, jnp.cos, jnp.tanh], a),
        ],
        (A,),
    ),
    "calls": (
        lambda a: [
            jax.jit(jnp.tanh)(a), jax.nn.relu(a), jax.nn.gelu(a), jax.checkpoint(jnp.sin)(a),
        ],
        (A,),
    ),
    "derivatives": (
        lambda a: [
            jax.grad(lambda x: jnp.sum(jnp.tanh(x) ** 2 * jax.nn.sigmoid(x)))(a),
            jax.jvp(lambda x: jax.nn.softmax(x, 1), (a,), (a**2,))[1],
        ],
        (A,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_numbers_as_jax(name: str, float64: None):
    program, arrays = PROGRAMS[name]
    given = [jnp.asarray(array) for array in arrays]
    found = numerics.evaluated(jax.make_jaxpr(program)(*given), given)
    expected = jax.tree.leaves(program(*given))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(
            np.asarray(one, float), np.asarray(other, float), rtol=1e-12, atol=1e-13
        )


def test_every_operation_is_tried():
    seen: set[Any] = set()

    def collect(jaxpr: Any) -> None:
        for equation in _jax.open_jaxpr(jaxpr)[0].eqns:
            seen.add(equation.primitive)
            for leaf in jax.tree.leaves(equation.params, is_leaf=_jax.is_jaxpr):
                if _jax.is_jaxpr(leaf):
                    collect(leaf)

    for program, arrays in PROGRAMS.values():
        collect(jax.make_jaxpr(program)(*arrays))
    names = {primitive.name for primitive in set(numerics.OPERATIONS) - seen}
    # The same as others, or not made by every JAX.
    assert names <= {"copy", "add_any", "stack", "one_minus_square", "clamp"}


def test_single_precision_is_computed_in_double():
    program = lambda x: (x + 1.0) - x - 1.0
    x = jnp.asarray([1e-5, 0.3], jnp.float32)
    (left,) = numerics.evaluated(jax.make_jaxpr(program)(x), [x])
    assert left.dtype == np.float64
    assert np.all(np.abs(left) < 1e-15)


def test_a_loop_without_end_gives_no_number():
    program = lambda x: lax.while_loop(lambda c: c[0] > -1, lambda c: c * 1.0, x)
    x = jnp.asarray([1.0, 2.0])
    (left,) = numerics.evaluated(jax.make_jaxpr(program)(x), [x])
    assert np.all(np.isnan(left))


def test_what_is_not_needed_is_not_evaluated():
    """Nor is it an error where nothing evaluates it."""
    strange = jax.extend.core.Primitive("strange")
    strange.def_abstract_eval(lambda x: x)
    jaxpr = jax.make_jaxpr(lambda x: (strange.bind(x), 2 * x))(1.0)
    left, right = numerics.evaluated(jaxpr, [np.asarray(1.0)])
    assert np.isnan(left)
    assert right == 2
