"""What primitives are stands in one table, and what follows from it holds for every primitive."""

import itertools
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from oracles.helpers import error_of, line_of
from test_rearranging import MOVES, primitives, program_of, run, vector

import tplimit as tp
from tplimit.interpreter.table import RULES
from tplimit.program.dependence import degree
from tplimit.program.equations import Aval
from tplimit.program.traits import TRAITS, Identity, Linear, Product, Quotient, Smooth, kind_of
from tplimit.values.exponents import Size

N = tp.Width("n")

#: Programs of one linear operation each, of an array ``(3, n)``; none only moves entries.
SUMS = {
    "add": lambda x: x + x[::-1],
    "subtract": lambda x: x - 2 * x[::-1],
    "negate": lambda x: -x,
    "precision": lambda x: lax.reduce_precision(x, 8, 20),
    "sum": lambda x: jnp.sum(x, axis=0),
    "cumulative sum": lambda x: jnp.cumsum(x, axis=0),
    "cotangents": lambda x: jax.grad(lambda y: jnp.vdot(y, x) + jnp.vdot(2 * y, x))(x),
    "wider": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
}


def of(kind):
    return {primitive for primitive, what in TRAITS.items() if isinstance(what, kind)}


def test_every_linear_primitive_is_among_the_programs():
    aval = Aval((3, Size(Fraction(1))), np.dtype(np.float32))
    programs = {**MOVES, **SUMS}.values()
    found = set().union(*(primitives(program_of(function, aval)) for function in programs))
    assert found >= of(Linear)
    assert len(of(Linear)) > 20


@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize("name", [name for name in SUMS if name != "wider"])
def test_what_is_linear_acts_on_every_term(name, axis):
    """Two terms, parities and remainders stay; coefficients are those of each term."""
    value = vector(False, axis)
    out = run(SUMS[name], value)
    assert [t.exponents for t in out.terms] == [t.exponents for t in value.terms]
    assert out.remainder == value.remainder
    for new, old in zip(out.terms, value.terms, strict=True):
        assert new.parity.odd == old.parity.odd and new.parity.unknown == old.parity.unknown
        expected = SUMS[name](jnp.asarray(old.coefficient))
        np.testing.assert_allclose(new.coefficient, expected, rtol=1e-6, atol=1e-6)


def test_linearity_of_programs_follows_from_the_table():
    aval = Aval((3, Size(Fraction(1))), np.dtype(np.float32))
    for function in {**MOVES, **SUMS}.values():
        program = program_of(function, aval)
        assert degree(program, program.inputs) in ("linear", "affine")
    for function in (jnp.tanh, lambda x: x * x, lambda x: 1 / x, lambda x: jnp.round(x)):
        program = program_of(function, aval)
        assert degree(program, program.inputs) == "other"
    rounds = program_of(lambda x: x.astype(jnp.int32).astype(jnp.float32), aval)
    assert degree(rounds, rounds.inputs) == "other"


def test_smooth_functions_have_the_parity_and_the_limits_of_the_table():
    x = jnp.linspace(0.1, 3.0, 7)
    for primitive in of(Smooth):
        kind = kind_of(primitive)
        assert isinstance(kind, Smooth)
        right, left = kind.function(x), kind.function(-x)
        signs = {"odd": -left, "even": left}
        if kind.parity in signs:
            np.testing.assert_allclose(right, signs[kind.parity], rtol=1e-6)
        else:
            assert not np.allclose(right, left) and not np.allclose(right, -left)
        if kind.limits is not None:
            ends = [kind.function(jnp.float32(end)) for end in (-1e30, 1e30)]
            np.testing.assert_allclose(ends, kind.limits, rtol=1e-6)
        if kind.positive:
            assert bool(jnp.all(kind.function(jnp.linspace(-9, 9, 99)) > 0))


def test_no_kind_without_a_rule():
    """Whatever the table names is known to the interpreter, or refused with a reason."""
    assert TRAITS.keys() <= RULES.known().keys()
    for kind in (Identity, Linear, Product, Quotient, Smooth):
        assert of(kind)


# --- primitives of one's own


def own(name, function):
    """A primitive with an implementation in JAX, and nothing else."""
    primitive = Primitive(name)
    primitive.def_impl(function)
    primitive.def_abstract_eval(
        lambda *avals: jax.core.ShapedArray(
            jax.eval_shape(
                function, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)
            ).shape,
            avals[0].dtype,
        )
    )
    return primitive


@pytest.fixture
def declare():
    """Declares a function linear, and forgets it afterwards."""
    made = []

    def enter(function, linear=(0,)):
        primitive = own(f"own{len(made)}", function)
        tp.rule(primitive, linear=linear)
        made.append(primitive)
        return primitive.bind

    yield enter
    for primitive in made:
        del TRAITS[primitive]


@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_declared_primitive_is_as_good_as_one_of_jax(declare, terms, axis):
    mix = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    mine = declare(lambda x: mix @ x)
    value = vector(False, axis)
    if terms == 1:
        value = replace(value, terms=value.terms[:1])
    out, known = run(mine, value, terms), run(lambda x: mix @ x, value, terms)
    assert len(out.terms) == terms and out.remainder == known.remainder
    for new, old in zip(out.terms, known.terms, strict=True):
        assert new.exponents == old.exponents
        np.testing.assert_allclose(new.coefficient, old.coefficient, rtol=1e-5)
        if terms == 2:
            assert new.parity.odd == old.parity.odd
        if old.stderr is not None:
            errors = value.terms[0].stderr
            together, own_cause = abs(mix @ errors), jnp.sqrt(mix**2 @ errors**2)
            assert (new.stderr >= jnp.maximum(together, 0.6 * own_cause) * (1 - 1e-5)).all()
            assert (new.stderr <= jnp.maximum(together, 1.4 * own_cause) * (1 + 1e-5)).all()
            break


def test_rows_that_a_declared_primitive_makes_zero_are_decided_by_the_next_term(declare):
    """A projection leaves zeros, unlike a sum of Gaussian vectors: then n^(-1/2) decides."""
    mine = declare(lambda h: jnp.diag(jnp.array([1.0, 0.0])) @ h)
    theta = {"u": tp.normal((2, N)), "w": tp.normal((2, N))}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256, terms=2)

    def share(t):
        h = mine(t["u"]) + t["w"] / t["w"].shape[1] ** 0.5
        return jnp.mean((h > 0) * t["w"], axis=1)

    np.testing.assert_allclose(tp.limit(share)(sampled), [0, 1 / np.sqrt(2 * np.pi)], atol=0.03)


def test_training_through_a_declared_primitive(declare):
    """A fixed transform of the points, as one's own primitive and as a product: the same run."""
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    mine = declare(lambda h: mix @ h)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)), jnp.float32)
    theta = {"U": tp.normal((2, N)), "v": tp.normal((N,), std=N**-0.5)}
    for terms in (1, 2):
        sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256, terms=terms)

        def second_moment(t, through):
            h = through(jnp.tanh(x @ t["U"]))
            return jnp.mean(h * h, axis=1)

        ours, theirs = (
            tp.limit(lambda t, f=f: second_moment(t, f))(sampled) for f in (mine, lambda h: mix @ h)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_what_is_not_linear_along_a_width_is_refused(declare):
    refused = {
        "it is not": lambda x: x * x,
        "it is not.": lambda x: jnp.clip(x, -100, 100),
        "it is not 0 at 0": lambda x: x + 1e-6,
        "coordinates along a width depend on each other": lambda x: x - x.mean(1, keepdims=True),
        "coordinates along a width depend on their places": lambda x: x * jnp.arange(x.shape[1]),
        "a width is summed": lambda x: jnp.sum(x, axis=1),
        "the length of a width changes": lambda x: x[:, : x.shape[1] // 2],
    }
    theta = tp.sample({"x": tp.normal((3, N))}, jax.random.key(0), width=tp.inf, samples=64)
    for reason, function in refused.items():
        mine = declare(function)
        program = lambda t, mine=mine: jnp.sum(mine(t["x"])) / t["x"].shape[1]  # here
        error = error_of(tp.NoLimitError, tp.limit(program), theta)
        assert f"was declared linear, but {reason}" in str(error)
        assert f"{__file__}:{line_of(program)}" in str(error)


def test_an_operand_in_which_it_is_not_linear_must_be_known(declare):
    mine = declare(lambda x, s: x * jnp.sum(s), linear=(0,))
    theta = tp.sample({"x": tp.normal((3, N))}, jax.random.key(0), width=tp.inf, samples=64)
    known = tp.limit(lambda t: jnp.mean(mine(t["x"], jnp.ones(2)) * t["x"]))(theta)
    np.testing.assert_allclose(known, 2, rtol=0.3)
    error = error_of(
        tp.UnsupportedOperationError,
        tp.limit(lambda t: jnp.mean(mine(t["x"], jnp.mean(t["x"] ** 2, axis=1)))),
        theta,
    )
    assert "operand 1, in which it is not linear" in str(error)
    scales = lambda t: jnp.mean(mine(t["x"], jnp.ones(2) * t["x"].shape[1] ** -0.5))
    assert "operand 1" in str(error_of(tp.UnsupportedOperationError, tp.limit(scales), theta))


def test_an_operand_that_is_added_is_no_index(declare):
    """``x + s`` is linear in x where s is 0, and nowhere else."""
    mine = declare(lambda x, s: x + s, linear=(0,))
    theta = tp.sample({"x": tp.normal((3, N))}, jax.random.key(0), width=tp.inf, samples=64)
    program = lambda t: jnp.mean(mine(t["x"], jnp.float32(1)))
    error = error_of(tp.NoLimitError, tp.limit(program), theta)
    assert "was declared linear, but it is not 0 at 0" in str(error)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_place_that_there_is_not(declare, terms):
    mine = declare(lambda x: 2 * x, linear=(1,))
    theta = tp.sample({"x": tp.normal((N,))}, jax.random.key(0), width=tp.inf, terms=terms)
    error = error_of(
        tp.UnsupportedOperationError, tp.limit(lambda t: jnp.mean(mine(t["x"]))), theta
    )
    assert "was declared linear in operand 1, which it has not" in str(error)


def test_integers_are_no_numbers_to_be_linear_in(declare):
    mine = declare(lambda x: 2 * x)
    theta = tp.sample({"x": tp.normal((N,))}, jax.random.key(0), width=tp.inf, samples=64)
    program = lambda t: jnp.mean(mine((t["x"] > 0).astype(jnp.int32)).astype(float))
    error = error_of(tp.NoLimitError, tp.limit(program), theta)
    assert "operand 0 is no array of real numbers" in str(error)


def test_a_rule_is_entered_once(declare):
    taken = next(iter(of(Smooth)))
    for enter in (lambda: tp.rule(taken, linear=(0,)), lambda: tp.rule(taken)(lambda ctx, x: x)):
        with pytest.raises(ValueError, match="already a rule"):
            enter()


def test_what_is_no_primitive_or_no_place_is_refused():
    mine = Primitive("mine")
    for primitive in (jnp.tanh, "tanh", None):
        with pytest.raises(TypeError, match="is no primitive: pass one of"):
            tp.rule(primitive, linear=(0,))
    for linear in (0, (0.5,), (-1,), "0"):
        with pytest.raises(TypeError, match="are no places of operands"):
            tp.rule(mine, linear=linear)
    with pytest.raises(ValueError, match="names no operand"):
        tp.rule(mine, linear=())


def test_a_rule_with_a_form_for_several_terms():
    """A form for one term alone gives the leading term; with one for several it gives all."""
    double = own("double", lambda x: 2 * x)
    try:

        @tp.rule(double)
        def of_one_term(ctx, x, **params):
            """Twice the value."""
            return replace(x, terms=(replace(x.terms[0], coefficient=2 * x.coefficient),))

        value = vector(False, 1)
        assert len(run(double.bind, value).terms) == 1

        @of_one_term.several
        def of_several_terms(ctx, x, **params):
            terms = [replace(t, coefficient=2 * t.coefficient) for t in x.terms]
            return replace(x, terms=tuple(terms))

        out = run(double.bind, value)
        assert len(out.terms) == 2
        np.testing.assert_array_equal(out.terms[1].coefficient, 2 * value.terms[1].coefficient)
        assert "| `double` | Twice the value. |" in RULES.describe()
    finally:
        RULES.rules.pop(double)


# --- matrices


@pytest.mark.parametrize("terms", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sums_along_a_width_of_a_matrix_know_their_parity(terms):
    """(W 1) (W x): odd in W twice, so that its average is that of x, and not exactly zero."""
    theta = {"W": tp.normal((N, N), std=N**-0.5), "x": tp.normal((N,), mean=1.0)}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=512, terms=terms)

    def run(t):
        W, x = t["W"], t["x"]
        ones = jnp.ones_like(x)
        pairs = itertools.product([W.sum(1), W @ ones], [W @ x, W.sum(1)])
        return [jnp.mean(a * b) for a, b in pairs], jnp.mean(W.sum(0) * W.sum(1))

    found, crossed = tp.limit(run)(sampled)
    np.testing.assert_allclose(found, [1, 1, 1, 1], atol=0.2)
    np.testing.assert_allclose(found[:2], found[2:], rtol=1e-5)
    np.testing.assert_allclose(crossed, 0, atol=0.2)


def test_matrices_are_not_rounded():
    """`W.astype(int)` is not W: entries go to 0, and no rule says so."""
    theta = tp.sample({"W": tp.normal((N, N))}, jax.random.key(0), width=tp.inf, samples=64)
    program = lambda t: jnp.mean(t["W"].astype(int).astype(float) @ jnp.ones(t["W"].shape[0]))
    error = error_of(tp.UnsupportedOperationError, tp.limit(program), theta)
    assert "convert_element_type, entry by entry" in str(error)


def test_products_of_numbers_of_several_terms_with_a_matrix():
    """``c (c W) x = c^2 (W x)``, ``(c W - c W + W / c) x = (W x) / c``: to second order."""
    theta = {"W": tp.normal((N, N), std=N**-0.5), "x": tp.normal((N,), mean=1.0)}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=512, terms=2)

    def pairs(t):
        W, x = t["W"], t["x"]
        y, c = W @ x, jnp.mean(x**2)
        both = ((c * (c * W)) @ x, c * c * y), ((c * W - c * W + W / c) @ x, y / c)
        return [tuple(jnp.mean(z * y) for z in pair) for pair in both]

    for first, second in tp.series(pairs)(sampled):
        for power in (0, -Fraction(1, 2)):
            np.testing.assert_allclose(first.at(power), second.at(power), rtol=1e-4)


def test_numbers_of_several_terms_times_and_plus_matrices():
    """``(c W) x = c (W x)`` and ``(W + c / n) x = W x + c <x>`` of an average c."""
    theta = {"W": tp.normal((N, N), std=N**-0.5), "x": tp.normal((N,), mean=1.0)}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=512, terms=2)

    def pairs(t):
        W, x = t["W"], t["x"]
        n, y = x.shape[0], W @ x
        c = jnp.mean(x**2)
        times = (c * W) @ x, c * y
        plus = (W + c / n) @ x, y + c * jnp.mean(x)
        return [tuple(jnp.mean(z * y + z * z) for z in both) for both in (times, plus)]

    for first, second in tp.series(pairs)(sampled):
        for power in (0, -Fraction(1, 2)):
            np.testing.assert_allclose(first.at(power), second.at(power), rtol=1e-4)
