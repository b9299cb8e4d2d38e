"""Operations that move entries keep all that is known of them; all spellings of a stack are one."""

import functools
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

import tplimit as tp
from tplimit.gaussian.bank import Bank
from tplimit.interpreter.context import Context
from tplimit.interpreter.loop import evaluate
from tplimit.program.equations import Aval, Program
from tplimit.program.traits import TRAITS, Linear
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.opaque import aval_of, gathered
from tplimit.values.exponents import EXACT_ZERO, NEVER, Exponents, Size
from tplimit.values.parity import EVEN, Parity
from tplimit.values.rearranging import with_common_exponents
from tplimit.values.tensors import Patch, Tensor, Term

N = tp.Width("n")
M = 8
HALF = Fraction(1, 2)
RNG = np.random.default_rng(1)

#: Programs that only move the entries of an array ``(3, n)``, or ``(3, 8)``.
MOVES = {
    "broadcast": lambda x: jnp.broadcast_to(x, (2, *x.shape)),
    "transpose": lambda x: x.T,
    "reshape": lambda x: x.reshape(1, 3, -1),
    "heads": lambda x: x.reshape(3, 2, -1),
    "squeeze": lambda x: jnp.squeeze(x[:1], 0),
    "reverse": lambda x: jnp.flip(x, 0),
    "slice": lambda x: x[1:],
    "share": lambda x: x[:, : x.shape[1] // 2],
    "split": lambda x: jnp.split(x, [1])[1],
    "split of a width": lambda x: jnp.split(x, 2, axis=1)[1],
    "concatenate": lambda x: jnp.concatenate([x[1:], x]),
    "concatenate along": lambda x: jnp.concatenate([x, x], axis=1),
    "stack": lambda x: jnp.stack([x, x], axis=1),
    "unstack": lambda x: jnp.unstack(x)[1],
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "tile along": lambda x: jnp.tile(x, (1, 2)),
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 0))),
    "pad along": lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1]))),
    "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(x, np.int32(1), 2),
    "update": lambda x: lax.dynamic_update_slice_in_dim(x, x[:1], np.int32(1), 0),
    "gather": lambda x: x[np.array([2, 0])],
    "scatter": lambda x: x.at[np.array([0])].set(x[2]),
    "scatter_add": lambda x: jnp.zeros_like(x).at[np.array([0, 2])].add(x[:2]),
}  # fmt: skip


def program_of(function, *avals):
    tree = jax.tree.structure((tuple(avals), {}))
    return Evaluator(function).program(tree, list(avals), [np.float32(0)] * len(avals))[0]


def primitives(program):
    found = set()
    for equation in program.equations:
        found.add(equation.primitive)
        for part in jax.tree.leaves(list(equation.params.values())):
            if isinstance(part, Program):
                found |= primitives(part)
    return found


def vector(per_entry, axis):
    """A value ``(3, 8)`` of two terms, with everything there can be."""

    def exponents(*rows):
        return Exponents(np.array(rows, object)[:, None] if per_entry else rows[0])

    def entries():
        return jnp.asarray(RNG.normal(size=(3, M)), jnp.float32)

    first, second = (np.array(RNG.integers(0, 2, (3, M)), bool) for _ in range(2))
    stderrs = (None, None) if axis else (abs(entries()), abs(entries()))
    odd = (Parity(frozenset({1})), Parity(frozenset({2, 3}))) if axis else (EVEN, EVEN)
    terms = (
        Term(entries(), exponents(Fraction(0), -HALF, Fraction(1)), stderrs[0], first, odd[0]),
        Term(entries(), exponents(-HALF, NEVER, HALF), stderrs[1], second, odd[1]),
    )  # fmt: skip
    patches = (Patch(-HALF, -HALF),) if axis else ()
    remainder = exponents(Fraction(-1), Fraction(-2), Fraction(0))
    return Tensor(terms, remainder, axis, 0 if axis else None, patches)


def run(function, value, terms=2):
    dims = tuple(Size(Fraction(1)) if i == value.axis else d for i, d in enumerate(value.shape))
    program = program_of(function, Aval(dims, np.dtype(np.float32)))
    context = Context(Bank(terms=terms, n=M, spaces=5))
    (out,) = evaluate(context, program, [value])
    return out


def full(exponents, value):
    """Exponents of all entries as numbers: those of exact zeros -100."""
    numbers = np.vectorize(lambda e: -100.0 if e == NEVER else float(e), [np.float32])
    return np.broadcast_to(numbers(exponents.array), value.shape)


def test_every_primitive_that_moves_is_among_the_programs():
    aval = Aval((3, Size(Fraction(1))), np.dtype(np.float32))
    found = set().union(*(primitives(program_of(move, aval)) for move in MOVES.values()))
    moves = {q for q, kind in TRAITS.items() if isinstance(kind, Linear) and kind.moves}
    assert found >= moves and len(moves) > 12


@pytest.mark.parametrize(
    ("name", "per_entry", "axis"),
    [
        (name, per_entry, axis)
        for name in MOVES for per_entry in (False, True) for axis in (1, None)
        # These need one exponent for all rows, see below.
        if not (per_entry and (name == "scatter_add" or (name, axis) == ("pad along", 1)))
    ],
)  # fmt: skip
def test_what_moves_keeps_all_terms(name, per_entry, axis):
    move, value = MOVES[name], vector(per_entry, axis)
    out = run(move, value)
    there = np.asarray(move(jnp.ones((3, M)))) != 0
    assert len(out.terms) == 2 and out.shape == there.shape
    for new, old in zip(out.terms, value.terms, strict=True):
        # Whatever its parity, zero is zero.
        assert new.parity == old.parity or new.exponents == EXACT_ZERO
        np.testing.assert_array_equal(new.coefficient, move(old.coefficient))
        expected = move(jnp.asarray(full(old.exponents, value)))
        np.testing.assert_array_equal(full(new.exponents, out)[there], expected[there])
        if name != "scatter_add":
            zeros = np.asarray(move(jnp.asarray(old.zeros)))
            np.testing.assert_array_equal(np.asarray(new.zeros)[there], zeros[there])
        if old.stderr is not None:
            np.testing.assert_array_equal(new.stderr, move(old.stderr))
    expected = move(jnp.asarray(full(value.remainder, value)))
    np.testing.assert_array_equal(full(out.remainder, out)[there], expected[there])
    assert out.patches == value.patches


@pytest.mark.parametrize("terms", [1, 2])
def test_rows_of_different_order_merge_with_their_width(terms):
    """Along a width there is one exponent: the largest stay, the others are unknown."""
    value = vector(True, 1)
    if terms == 1:
        value = replace(value, terms=value.terms[:1])
    out = run(lambda x: x.reshape(-1), value, terms)
    # One term: that of order 1/2 is in another one.
    levels = [Fraction(1), HALF][:terms]
    assert [term.exponents.value for term in out.terms] == levels
    assert out.remainder.value == 0
    rows = [np.where(np.arange(3)[:, None] == 2, t.coefficient, 0) for t in value.terms]
    for term, expected in zip(out.terms, rows, strict=True):
        np.testing.assert_array_equal(term.coefficient, expected.reshape(-1))


def test_common_exponents_of_values_with_different_terms():
    """A term that a value has not is zero, of any parity."""
    value = vector(False, 1)
    alone = replace(value, terms=value.terms[1:])
    first, second = with_common_exponents([value, alone], 2)
    assert [t.exponents for t in first.terms] == [t.exponents for t in second.terms]
    np.testing.assert_array_equal(second.terms[0].coefficient, 0)
    assert second.terms[0].zeros is None or np.all(second.terms[0].zeros)
    np.testing.assert_array_equal(second.terms[1].coefficient, value.terms[1].coefficient)
    assert [t.parity for t in second.terms] == [t.parity for t in value.terms]
    out = run(lambda x: jnp.concatenate([x, 0 * x], axis=1), value)
    assert out.terms[0].parity == value.terms[0].parity


# --- spellings of stacks


def by_hand(function, stack):
    outputs = [function(jax.tree.map(lambda a, k=k: a[k], stack)) for k in range(len(stack[0]))]
    return jax.tree.map(lambda *a: jnp.stack(a), *outputs)


SPELLINGS = {
    "stacked by hand": by_hand,
    "vmap": lambda f, stack: jax.vmap(f)(stack),
    "map": lambda f, stack: lax.map(f, stack),
    "scan": lambda f, stack: lax.scan(lambda c, x: (c, f(x)), 0.0, stack)[1],
}


@functools.cache
def sampled(heads, terms):
    theta = {"W": tp.normal((heads, N, N), std=N**-0.5), "u": tp.normal((4, N))}
    return tp.sample(theta, jax.random.key(heads), width=tp.inf, samples=64, terms=terms)


def images(spelling, heads, rows, transposed, powers, theta):
    """Products of every matrix with rows of its own, of two terms and of different orders."""
    u = jnp.tanh(theta["u"]) * jnp.mean(theta["u"] ** 2)
    scales = [u.shape[1] ** (-power / 2) for power in powers[:heads]]
    x = jnp.stack([scale * u[k : k + rows] for k, scale in enumerate(scales)])
    if spelling == "einsum":
        return jnp.einsum("kji,kbj->kbi" if transposed else "kij,kbj->kbi", theta["W"], x)
    return SPELLINGS[spelling](lambda s: s[1] @ (s[0] if transposed else s[0].T), (theta["W"], x))


@pytest.mark.parametrize("terms", [1, pytest.param(2, marks=pytest.mark.slow)])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3), rows=st.integers(1, 2), transposed=st.booleans(),
    powers=st.tuples(*[st.integers(0, 1)] * 3),
)  # fmt: skip
def test_spellings_of_a_stack_know_the_same(terms, heads, rows, transposed, powers):
    """Terms, exponents, parities and spaces: what is known before any number is computed."""
    leaves, tree = jax.tree.flatten(((sampled(heads, terms),), {}))
    revealed, values = gathered(leaves)
    avals = [aval_of(leaf) for leaf in leaves]
    found = {}
    for spelling in ("einsum", *SPELLINGS):
        move = functools.partial(images, spelling, heads, rows, transposed, powers)
        program, _ = Evaluator(move).program(tree, avals, leaves)
        context = Context(revealed.bank, dry=True)
        (out,) = jax.eval_shape(lambda v, c=context, p=program: evaluate(c, p, v), values)
        found[spelling] = replace(out, space=context.spaces.find(out.space))
        sides = {context.spaces.find(s[transposed]) for s in revealed.bank.store_spaces[:heads]}
        assert sides == {found[spelling].space}
    expected = found["stacked by hand"]
    assert len(expected.terms) == terms
    # Images under different matrices are odd in different sources.
    assert terms == 1 or heads > 1 or expected.terms[0].parity.odd
    for out in found.values():
        assert jax.tree.structure(out) == jax.tree.structure(expected)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [1, 2])
def test_spellings_of_a_stack_are_one(terms):
    found = {}
    for spelling in ("einsum", *SPELLINGS):
        move = functools.partial(images, spelling, 2, 1, False, (0, 1))
        out = Evaluator(move)((sampled(2, terms),), {})
        found[spelling] = jax.tree.leaves(out._value)
    for arrays in found.values():
        for one, other in zip(arrays, found["stacked by hand"], strict=True):
            np.testing.assert_array_equal(one, other)


def test_compiled_loops_keep_both_terms():
    """Longer loops are compiled: inputs and outputs of the iterations have two terms still."""
    theta = {"u": tp.normal((10, N))}
    limit = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=64, terms=2)

    def each(row):
        return jnp.mean(row**2) * row

    def mapped(t):
        return (lax.map(each, t["u"]) * t["u"]).mean(1)

    def by_hand(t):
        return (jnp.stack([each(row) for row in t["u"]]) * t["u"]).mean(1)

    a, b = tp.series(mapped)(limit), tp.series(by_hand)(limit)
    assert [e for e, _ in a.terms] == [e for e, _ in b.terms] and len(a.terms) == 2
    assert a.remainder == b.remainder
    for (_, x), (_, y) in zip(a.terms, b.terms, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)


@pytest.mark.slow
def test_a_readout_of_two_heads_in_the_kernel_regime():
    theta = {
        "W": tp.normal((2, N, N), std=N**-0.5), "u": tp.normal((N,)), "v": tp.normal((2, N))
    }  # fmt: skip
    limit = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=64, terms=2)

    def readout(product, t):
        h = jnp.tanh(product(t["W"], jnp.tanh(t["u"])))
        return jnp.sum(h * t["v"]) / t["u"].shape[0] ** 0.5, jnp.mean(h[0] * h[1] * t["u"])

    found = [
        tp.series(functools.partial(readout, product))(limit)
        for product in (
            lambda W, x: jnp.einsum("kij,j->ki", W, x), lambda W, x: jnp.stack([W[0] @ x, W[1] @ x])
        )
    ]  # fmt: skip
    for one, other in zip(*found, strict=True):
        assert [e for e, _ in one.terms] == [e for e, _ in other.terms] and one.terms
        for (_, x), (_, y) in zip(one.terms, other.terms, strict=True):
            np.testing.assert_array_equal(x, y)
    assert found[0][1].at(0) == 0  # the average of an odd vector vanishes
