"""Operations that are in no table: what acts entry by entry is found out, the rest is refused."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive, primitives as p
from jax.interpreters import ad
from oracles.helpers import error_of, line_of

import tplimit as tp
from tplimit.interpreter.table import RULES
from tplimit.program.traits import TRAITS, Refused
from tplimit.rules import probing

Theta = dict[str, Any]
n = tp.Width("n")
DECLARED = {name: tp.normal((n,)) for name in ("v", "w")}
SINGLE, INTEGER = np.dtype(np.float32), np.dtype(np.int32)


def sampled(**options: Any) -> Theta:
    return tp.sample(DECLARED, jax.random.key(0), **({"width": tp.inf, "samples": 512} | options))


@pytest.fixture(scope="module")
def theta() -> Theta:
    return sampled()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Takes rules out of the table, and gives the list of what is then probed."""

    def remove(*names: str) -> list[str]:
        seen: list[str] = []
        probed = RULES.probed

        def watched(equation: Any) -> Any:
            seen.append(equation.primitive.name)
            return probed(equation)

        monkeypatch.setattr(RULES, "probed", watched)
        for table in (RULES.rules, TRAITS):
            for primitive in [q for q in table if q.name in names]:
                monkeypatch.delitem(table, primitive)
        return seen

    return remove


def own(
    name: str, function: Callable[..., Any], derivative: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    """A primitive as a user makes one: an implementation, shapes, and perhaps a derivative."""
    primitive = Primitive(name)
    primitive.def_impl(function)
    primitive.def_abstract_eval(lambda *avals: avals[0])
    if derivative is not None:
        ad.defjvp(primitive, lambda g, x: g * derivative(x))
    return lambda *operands: primitive.bind(*operands)


def found(function: Callable[..., Any], operands: int = 1, dtype: Any = SINGLE) -> Any:
    """What the probe says of the only operation of a function."""
    arrays = [jnp.zeros(3, dtype)] * operands
    (equation,) = jax.make_jaxpr(function)(*arrays).eqns
    dtypes = [np.dtype(v.aval.dtype) for v in equation.invars]
    full = [bool(v.aval.shape) for v in equation.invars]
    return probing.found_for(equation.primitive, equation.params, dtypes, full, 1)


# What the probe takes, and what it refuses --------------------------------------------------------


def test_what_mixes_entries_is_not() -> None:
    rng = np.random.default_rng(0)
    refused = {
        "entries depend on each other": lambda x: x - 0.1 * jnp.mean(x),
        "entries depend on their places": lambda x: jnp.cumsum(x, -1),
        "different results for the same operands": lambda x: x + rng.random(),
        "depend on the number of entries": lambda x: x * x.size,
        "shapes of operands and result differ": lambda x: jnp.concatenate([x, x]),
        "raises ZeroDivisionError": lambda x: x * (1 // 0),
        "gives no real numbers": lambda x: x + 1j,
    }
    for reason, function in refused.items():
        assert reason in found(own("foreign", function))


def test_calls_and_effects_are_not_evaluated() -> None:
    seen: list[Any] = []
    for function in (
        lambda x: jax.pure_callback(lambda y: seen.append(y) or y, x, x),
        lambda x: jax.debug.callback(seen.append, x),
        lambda x: lax.reduce(x, 0.0, lambda a, b: a + b, (0,)),
        lambda x: lax.cumsum(x),
    ):
        assert isinstance(found(function), str)
    assert not seen


def test_functions_that_jax_computes_by_bits_are_known_up_to_a_remainder(key: jax.Array) -> None:
    """The derivatives of erf and of the exact GELU, at values that contain an average."""
    theta = tp.sample({"v": tp.normal((tp.Width("n"),))}, key, width=tp.inf, samples=1024)
    phi = jax.scipy.stats.norm

    def slope(function: Any) -> Any:
        def run(t: Any) -> Any:
            mean = jnp.mean(t["v"] ** 2)
            return jax.grad(lambda s: jnp.mean(function(s * t["v"] ** 2)))(mean)

        return tp.limit(run)(theta)

    def by_hand(derivative: Any) -> Any:
        def run(t: Any) -> Any:
            square = t["v"] ** 2
            return jnp.mean(square * derivative(jnp.mean(square) * square))

        return tp.limit(run)(theta)

    known = {
        jax.scipy.special.erf: lambda x: 2 / np.sqrt(np.pi) * jnp.exp(-x * x),
        lambda x: jax.nn.gelu(x, approximate=False): lambda x: phi.cdf(x) + x * phi.pdf(x),
    }
    for function, derivative in known.items():
        np.testing.assert_allclose(slope(function), by_hand(derivative), rtol=1e-5)


# Every primitive of the installed JAX -------------------------------------------------------------

#: What neither has a rule nor acts entry by entry, and why.
UNKNOWN = {
    "communication between devices": "all_gather all_to_all axis_index pmax pmin ppermute psum "
    "ragged_all_to_all",
    "complex numbers": "complex conj imag real",
    "tokens, references, uninitialised memory": "after_all create_token empty2 get swap",
    "linear algebra of finite matrices": "hessenberg householder_product tridiagonal "
    "tridiagonal_solve custom_linear_solve",
    "order and extrema": "approx_top_k scatter-max scatter-min scatter-mul reduce reduce_xor",
}
FOUND = (
    "acos acosh asin atan2 atanh bessel_i0e bessel_i1e clz digamma eq_to erf_inv igamma igammac "
    "le_to lgamma lt_to nextafter polygamma population_count regularized_incomplete_beta zeta"
)
EXPANDED = "call core_call closed_call jit pjit custom_jvp_call custom_vjp_call custom_lin "
EXPANDED += "checkpoint eval_jaxpr remat remat2"


def state(primitive: Any) -> str:
    """Rule, refusal, or what the probe says with one to three operands."""
    known = RULES.known().get(primitive)
    if known is not None:
        return str(known) if isinstance(known, Refused) else "rule"
    if primitive.name in EXPANDED.split():
        return "expanded in place"
    if primitive.name.startswith("random_"):
        return "refused: keys do not depend on a width"
    for dtype in (SINGLE, INTEGER):
        for count in (1, 2, 3):
            for params in ({}, {"accuracy": None}):
                kinds = (dtype,) * count
                what = probing.found_for(primitive, params, kinds, (True,) * count, 1)
                if not isinstance(what, str):
                    return f"found by probing ({count} operands, {dtype.name})"
    return f"unknown: {what}"


def test_table_of_all_primitives() -> None:
    """A new primitive fails this test only if the probe does not handle it. Printed with -s."""
    everything = {q.name: q for q in vars(p).values() if isinstance(q, Primitive)}
    table = {name: state(primitive) for name, primitive in sorted(everything.items())}
    print(f"\nJAX {jax.__version__}: {len(table)} primitives")
    print("\n".join(f"{name:32}{what}" for name, what in table.items()))
    unknown = {name for name, what in table.items() if what.startswith("unknown")}
    assert unknown <= set(" ".join(UNKNOWN.values()).split())
    assert len([what for what in table.values() if what == "rule"]) > 80
    found_out = {name for name, what in table.items() if what.startswith("found")}
    assert found_out >= set(FOUND.split())


# Composite operations -----------------------------------------------------------------------------


def test_composite_operations_are_read(theta: Theta) -> None:
    """`searchsorted` is one operation from JAX 0.12 on, and stands for a program; so do loops
    over it. Against 2^20 draws: |difference| < 0.05."""
    edges = jnp.array([-1.0, 0.0, 1.0])

    def steps(t: Theta) -> jax.Array:
        body = lambda v, _: (v + 0.1 * jnp.digitize(v, edges), None)
        return jnp.mean(jax.lax.scan(body, t["v"], None, length=2)[0])

    programs = [
        lambda t: jnp.mean(jnp.digitize(t["v"], edges) * t["v"]),
        lambda t: jnp.mean(jnp.interp(t["v"] + jnp.mean(t["w"]), edges, edges**2) * t["v"] ** 2),
        steps,
    ]
    draws = sampled(width=2**20)
    for program in programs:
        assert abs(float(tp.limit(program)(theta) - program(draws))) < 0.05


def test_composite_operations_keep_their_line(theta: Theta) -> None:
    def program(t: Theta) -> jax.Array:
        return jnp.mean(jnp.digitize(t["v"], jnp.sort(t["v"])))  # here

    error = error_of(tp.NoLimitError, tp.limit(program), theta)
    assert f"{__file__}:{line_of(program)}" in str(error)


# Without their rules ------------------------------------------------------------------------------


def tangents(theta: Theta) -> list[jax.Array]:
    """Derivatives of tanh and gelu: 1 - x^2 in JAX 0.12."""

    def loss(v: jax.Array, f: Callable[..., Any]) -> jax.Array:
        return jnp.sum(f(v + 0.5 * theta["w"]) * theta["w"])

    return [
        jnp.mean(jax.grad(loss)(theta["v"], f) * theta["w"] * g(theta["v"]))
        for f in (jnp.tanh, jax.nn.gelu)
        for g in (jnp.ones_like, jnp.cos)
    ]


def signs(theta: Theta) -> list[jax.Array]:
    v, w = theta["v"], theta["w"]
    negative = jnp.signbit(v + jnp.mean(w))
    return [jnp.mean(negative * v), jnp.mean(jnp.copysign(w, v - 0.3) * v)]


def logarithms(theta: Theta) -> list[jax.Array]:
    return [jnp.mean(jnp.log2(1 + theta["v"] ** 2)), jnp.log2(jnp.mean(jnp.exp(theta["v"])))]


def functions(theta: Theta) -> list[jax.Array]:
    v, w = theta["v"], theta["w"]
    scale = v.shape[0] ** -0.5
    smooth = (jnp.tanh, jnp.cos, jax.nn.sigmoid)
    values = [jnp.mean(f(v + 1 + jnp.mean(w)) * v) for f in smooth]
    return [*values, jnp.mean(jnp.tanh(scale * v) * v) / scale, jnp.tanh(values[0])]


WITHOUT = {
    tangents: ("one_minus_square",),
    signs: ("bitcast_convert_type", "shift_right_arithmetic"),
    logarithms: ("log", "log2"),
    functions: ("tanh", "cos", "logistic"),
}


@pytest.mark.parametrize("program", WITHOUT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("terms", [1, 2])
def test_the_probe_replaces_rules(
    program: Callable[[Theta], Any], terms: int, without: Callable[..., list[str]]
) -> None:
    """The same numbers without the rules; on the way the probe was asked."""
    theta = sampled(terms=terms)
    by_rule = tp.series(lambda t: program(t))(theta)
    traced = re.findall(r" = (\w+)", str(jax.make_jaxpr(program)(sampled(width=4))))
    seen = without(*WITHOUT[program])
    by_probe = tp.series(lambda t: program(t))(theta)
    assert set(seen) == {name for name in WITHOUT[program] if name in traced}
    for a, b in zip(by_rule, by_probe, strict=True):
        # The rule may know more: what vanishes by symmetry.
        assert len(a.terms) >= len(b.terms) >= 1
        for (e, one), (same, other) in zip(a.terms, b.terms, strict=False):
            assert e == same
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_two_terms_of_a_smooth_function(without: Callable[..., list[str]]) -> None:
    """Fluctuations come out as by the rule, to the same order."""
    theta = sampled(terms=2)

    def run() -> Any:
        return tp.series(lambda t: jnp.mean(jax.nn.sigmoid(t["v"] + jnp.mean(t["w"]))))(theta)

    by_rule = run()
    without("logistic")
    by_probe = run()
    assert by_probe.remainder == by_rule.remainder
    for (e, one), (same, other) in zip(by_rule.terms, by_probe.terms, strict=True):
        assert e == same
        np.testing.assert_allclose(one, other, rtol=1e-4)


# What a function that was found allows ------------------------------------------------------------


@pytest.mark.slow
def test_functions_of_vectors_and_numbers(theta: Theta) -> None:
    """Against Monte Carlo over a million draws: |difference| < 0.05 at 512 matched particles."""
    programs = [
        lambda t: jnp.mean(lax.asin(jnp.tanh(t["v"])) ** 2),
        lambda t: jnp.mean(jnp.arctan2(t["v"], 1 + t["w"]) * t["v"]),
        lambda t: jnp.mean(lax.lgamma(1 + t["v"] ** 2)),
        lambda t: lax.erf_inv(jnp.mean(jnp.abs(t["v"])) / 2),
        lambda t: jnp.mean(lax.igamma(jnp.exp(t["v"]), 1 + jnp.mean(t["w"] ** 2))),
    ]
    draws = sampled(width=2**20)
    for program in programs:
        assert abs(float(tp.limit(program)(theta) - program(draws))) < 0.05


def test_vanishing_arguments_expand_where_the_function_is_smooth(theta: Theta) -> None:
    def small(t: Theta, f: Callable[[Any], Any]) -> jax.Array:
        return jnp.mean(f(t["v"] / t["v"].shape[0]) * t["v"])

    out = tp.leading(lambda t: small(t, lax.asin))(theta)
    assert out.exponent == -1
    np.testing.assert_allclose(out.coefficient, 1, atol=0.02)
    for f in (lax.bessel_i0e, lax.lgamma, own("kinked", jnp.abs, jnp.sign)):
        assert "not smooth at 0" in str(
            error_of(tp.NoLimitError, tp.limit(lambda t, f=f: small(t, f)), theta)
        )


def test_growing_arguments_are_refused(theta: Theta) -> None:
    def grows(t: Theta) -> jax.Array:
        return jnp.mean(lax.bessel_i1e(t["v"] * t["v"].shape[0]))  # here

    error = error_of(tp.NoLimitError, tp.limit(grows), theta)
    assert "at infinity is not known" in str(error)
    assert f"{__file__}:{line_of(grows)}" in str(error)


def jumps(x: Any) -> Any:
    return jnp.where(x > 0.5, 1.0, 0.0) + x


def test_jumps_are_allowed_where_no_value_is(theta: Theta) -> None:
    """Exact values, and vectors without atoms there; not a number whose error reaches a jump."""
    step = own("step", jumps)
    inexact = lambda t: t["v"] + jnp.mean(t["w"])
    between = tp.limit(lambda t: jnp.mean(step(inexact(t))))(theta)
    np.testing.assert_allclose(between, 0.3085, atol=0.02)
    tied = lambda t: jnp.mean(step(0.5 + jnp.maximum(inexact(t), 0) * t["w"]))
    number = lambda t: step(jnp.mean(t["v"] ** 2) / 2)
    outside = lambda t: lax.acos(jnp.mean(t["v"] ** 2))
    for program in (tied, number, outside):
        assert "jumps" in str(error_of(tp.CancellationError, tp.limit(program), theta))


def test_kinks_keep_one_term() -> None:
    """Where a function is not smooth the second term is left to the remainder, not guessed."""
    theta = sampled(terms=2)
    bent = own("bent", lambda x: jnp.abs(x - 0.25), lambda x: jnp.sign(x - 0.25))
    series = tp.series(lambda t: jnp.mean(bent(t["v"] + jnp.mean(t["w"]))))(theta)
    assert len(series.terms) == 1
    assert series.remainder == -0.5


def test_a_primitive_of_ones_own(theta: Theta) -> None:
    """With an implementation, shapes and a derivative alone, it trains like any function."""
    function = own("squash", lambda x: x / jnp.sqrt(1 + x * x), lambda x: (1 + x * x) ** -1.5)

    def step(t: Theta, f: Callable[[Any], Any]) -> jax.Array:
        size = t["v"].shape[0]
        loss = lambda v: (jnp.mean(f(v) * t["w"]) - 1) ** 2
        v = t["v"] - size * jax.grad(loss)(t["v"])
        return jnp.mean(f(v) * t["w"])

    limit = tp.limit(lambda t: step(t, function))(theta)
    plain = tp.limit(lambda t: step(t, lambda x: x / jnp.sqrt(1 + x * x)))(theta)
    np.testing.assert_allclose(limit, plain, rtol=1e-4)


def test_sign_bits(theta: Theta) -> None:
    """Of what scales or is known up to a remainder: by the rule of `sign`. Of zero: refused."""
    scaled = tp.limit(lambda t: jnp.mean(jnp.copysign(t["w"] ** 2, t["v"] / t["v"].shape[0])
                                         * t["v"]))(theta)  # fmt: skip
    np.testing.assert_allclose(scaled, np.sqrt(2 / np.pi), atol=0.05)
    rectified = lambda t: jnp.maximum(t["v"] + jnp.mean(t["w"]), 0)
    zero = lambda t: jnp.mean(jnp.signbit(rectified(t)) * t["w"])
    bits = lambda t: jnp.mean(lax.bitcast_convert_type(t["v"] + jnp.mean(t["w"]), jnp.int32))
    error_of(tp.CancellationError, tp.limit(zero), theta)
    assert "sign bit" in str(error_of(tp.NoLimitError, tp.limit(bits), theta))


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 2])
def test_axes_of_length_one_are_repeated(terms: int) -> None:
    """As JAX passes them on to the operation; against arrays that were broadcast by hand."""
    n = tp.Width("n")
    theta = {"v": tp.normal((3, n), mean=0.3), "u": tp.normal((n,))}
    sampled = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256, terms=terms)

    def run(t: Theta, spell: Callable[..., Any]) -> list[jax.Array]:
        v, c = t["v"], jnp.mean(t["v"] ** 2, axis=1)
        pairs = (v, c[:, None]), (c[:, None], v[:1]), (v, t["u"][None]), (c[:, None], c[None])
        return [jnp.mean(jnp.arctan2(*spell(*pair)) * pair[0], axis=1) for pair in pairs]

    straight = tp.limit(lambda t: run(t, lambda *pair: pair))(sampled)
    by_hand = tp.limit(lambda t: run(t, jnp.broadcast_arrays))(sampled)
    for a, b in zip(straight, by_hand, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_barrier_of_the_compiler_is_no_operation(theta: Theta) -> None:
    """It stands in `jax.scipy.special.ndtri`: the quantile of a probability is the number."""

    def run(t: Theta) -> tuple[jax.Array, jax.Array]:
        v = t["v"]
        u = jax.scipy.special.ndtri(jax.scipy.stats.norm.cdf(v / 4))
        return jnp.mean(u * v), jnp.mean(v * v) / 4

    np.testing.assert_allclose(*tp.limit(run)(theta), rtol=1e-4)
