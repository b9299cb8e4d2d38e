"""How rules act on values of several terms (see ``expansion.py``), one entry per kind of rule."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit import algebra, expansion, matrices, patches
from tplimit._jax import Primitive, one_minus_square_p, primitives as p
from tplimit.errors import CancellationError
from tplimit.interpret import RULES, Context, Rule
from tplimit.parity import EVEN, Behaviour, behaviour_of_power
from tplimit.rearranging import at
from tplimit.rules import elementwise, selection
from tplimit.structure import less_its_maximum
from tplimit.values import Matrices, Tensor, Value, collapsed, tensor, with_parity
from tplimit.widths import NEGLIGIBLE, NONE, Exponents, Size

#: Rules that are linear in some of their operands together: the places of these, or None for all.
_LINEAR: dict[Primitive | None, tuple[int, ...] | None] = {
    p.add_p: None,
    p.add_jaxvals_p: None,
    p.copy_p: (0,),
    p.reduce_precision_p: (0,),
    p.cumsum_p: (0,),
}

#: Rules that take values of any number of terms as they are.
_AS_THEY_ARE = {
    p.stop_gradient_p, p.name_p, p.device_put_p, p.sharding_constraint_p,
    p.cond_p, p.scan_p, p.while_p,
}  # fmt: skip

_ODD = {p.tanh_p, p.erf_p, p.atan_p, p.sin_p, p.tan_p, p.sinh_p, p.asinh_p}
_EVEN = {p.cos_p, p.cosh_p}
_FUNCTIONS = {primitive: fn for primitive, fn, _ in elementwise.FUNCTIONS}
_ROOTS = {p.sqrt_p: Fraction(1, 2), p.rsqrt_p: Fraction(-1, 2), p.cbrt_p: Fraction(1, 3)}
_RELATIONS = {primitive: fn for primitive, fn, _ in selection.RELATIONS}

Values = Sequence[Value]
Lifted = Callable[[Context, Rule, Values, dict[str, Any]], Any]
_OWN: dict[Primitive | None, Lifted] = {}


def _lifts(*primitives: Primitive | None) -> Callable[[Lifted], Lifted]:
    def enter(function: Lifted) -> Lifted:
        _OWN.update(dict.fromkeys(primitives, function))
        return function

    return enter


def lifted(primitive: Primitive, rule: Rule) -> Rule:
    """The rule of a primitive for values of several terms, from that for values of one."""
    if primitive in _AS_THEY_ARE:
        return rule
    own = _OWN.get(primitive)
    if primitive in _LINEAR:
        own = _linear

    def apply(ctx: Context, *values: Value, **params: Any) -> Any:
        if any(isinstance(value, Matrices) for value in values):
            return _with_matrices(ctx, primitive, rule, values, params)
        if own is None:
            return leading(ctx, rule, values, params)
        return own(ctx, rule, values, params)

    return apply


def _tensors(values: Values) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _outputs(out: Any) -> list[Value]:
    return list(out) if isinstance(out, (list, tuple)) else [out]


def leading(ctx: Context, rule: Rule, values: Values, params: dict[str, Any]) -> list[Value]:
    """The rule on the leading terms; it acts on each coordinate by itself."""
    first = [collapsed(v) if isinstance(v, Tensor) else v for v in values]
    parity = expansion.plus_parity(values)
    outputs = _outputs(rule(ctx, *first, **params))
    return [with_parity(out, parity) if isinstance(out, Tensor) else out for out in outputs]


def _with_matrices(
    ctx: Context, primitive: Primitive, rule: Rule, values: Values, params: dict[str, Any]
) -> Any:
    """Products with vectors know several terms; a finite factor is applied term by term."""
    if primitive is p.dot_general_p:
        return rule(ctx, *values, **params)
    factors = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.terms[1:]]
    if primitive is not p.mul_p or not factors:
        return leading(ctx, rule, values, params)
    (place,) = factors
    factor, total = values[place], None
    assert isinstance(factor, Tensor)
    for piece in expansion.pieces(factor):
        part = rule(ctx, *[piece if i == place else v for i, v in enumerate(values)], **params)
        total = part if total is None else matrices.add(ctx, total, part)
    return total


def _linear(ctx: Context, rule: Rule, values: Values, params: dict[str, Any]) -> list[Value]:
    assert ctx.equation is not None
    places = _LINEAR[ctx.equation.primitive]
    places = tuple(range(len(values))) if places is None else places
    return _linearly(ctx, rule, values, params, places)


def _linearly(
    ctx: Context, rule: Rule, values: Values, params: dict[str, Any], places: tuple[int, ...]
) -> list[Value]:
    zeros = [expansion.zero(v) if i in places else v for i, v in enumerate(values)]  # type: ignore[arg-type]
    found: list[list[Tensor]] = []
    for place in places:
        value = values[place]
        assert isinstance(value, Tensor)
        if value.vanishes and len(places) > 1 and place != places[-1]:
            continue
        for piece in expansion.pieces(value):
            operands = [piece if i == place else v for i, v in enumerate(zeros)]
            outputs = _outputs(rule(ctx, *operands, **params))
            found = found or [[] for _ in outputs]
            for parts, out in zip(found, outputs, strict=True):
                assert isinstance(out, Tensor)
                parts.append(with_parity(out, piece.parity))
    given = [v for v in values if isinstance(v, Tensor)]
    return [patches.inheriting(expansion.total(ctx, parts), *given) for parts in found]


@_lifts(p.convert_element_type_p)
def _convert(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)
    if not np.issubdtype(params["new_dtype"], np.floating) or value.dtype.kind != "f":
        return leading(ctx, rule, values, params)[0]
    (out,) = _tensors(_linearly(ctx, rule, values, params, (0,)))
    return vanishing_with(ctx, value, out)


@_lifts(p.neg_p)
def _negate(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)
    (out,) = _tensors(_linearly(ctx, rule, values, params, (0,)))
    return vanishing_with(ctx, value, out)


@_lifts(p.sub_p)
def _subtract(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    if a is b or a.dtype.kind in "iub":
        return leading(ctx, rule, values, params)[0]
    return expansion.minus(ctx, a, b)


@_lifts(p.mul_p)
def _multiply(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    if a.axis is not None and b.axis is not None and a.axis != b.axis:
        return leading(ctx, rule, values, params)[0]
    out = expansion.multiply(ctx, a, b)
    if a.axis is not None and b.axis is not None:
        return out
    return vanishing_with(ctx, b if a.axis is None else a, out)


@_lifts(p.div_p)
def _divide(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    if b.dtype.kind in "iu":
        return leading(ctx, rule, values, params)[0]
    return expansion.multiply(ctx, a, _powered(ctx, b, Fraction(-1)))


def _powered(ctx: Context, value: Tensor, power: Fraction) -> Tensor:
    def fn(x: Any, q: Fraction) -> Any:
        x = jnp.asarray(x)
        if q.denominator == 1:
            return lax.integer_pow(x, int(q))
        return jnp.power(x, float(q))

    return expansion.power(ctx, value, power, fn, behaviour_of_power(power))


@_lifts(p.integer_pow_p, p.square_p, p.sqrt_p, p.rsqrt_p, p.cbrt_p)
def _power(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)
    assert ctx.equation is not None
    y = params.get("y", 2)
    if isinstance(y, Size):
        return leading(ctx, rule, values, params)[0]
    return _powered(ctx, value, _ROOTS.get(ctx.equation.primitive, Fraction(y)))


@_lifts(one_minus_square_p)
def _one_minus_square(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)
    square = _powered(ctx, value, Fraction(2))
    out = expansion.minus(ctx, tensor(np.ones((), value.dtype)), square)
    return elementwise.as_computed(ctx, value, out)


def _function(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)
    assert ctx.equation is not None
    primitive = ctx.equation.primitive
    behaviour: Behaviour = (
        "odd" if primitive in _ODD else "even" if primitive in _EVEN else "neither"
    )
    fn = _FUNCTIONS[primitive]
    out = expansion.smooth(ctx, lambda x: rule(ctx, x, **params), value, fn, behaviour)
    return vanishing_with(ctx, value, out) if algebra.taylor(fn)[0] == 0 else out


_OWN.update(dict.fromkeys(_FUNCTIONS, _function))


@_lifts(p.exp_p)
def _exponential(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    """Of differences from a maximum that grow nothing is left but 1 at the largest entry."""
    (value,) = _tensors(values)
    assert ctx.equation is not None and ctx.program is not None
    axis = None
    if value.finite and value.exponents.levels()[-1] > 0:
        axis = less_its_maximum(ctx.program, ctx.equation.inputs[0])
    if axis is None:
        return _function(ctx, rule, values, params)
    c = jnp.asarray(value.coefficient)
    largest = c == 0
    sure = jnp.sum(largest, axis) == 1
    if value.noise is not None:
        below = jnp.where(largest, -jnp.inf, c + algebra.ZERO_SIGMAS * value.noise)
        sure = sure & (jnp.max(below, axis) < 0)
    tie = ctx.error(
        "Which of several growing values is the largest, as softmax and log-sum-exp ask, is not "
        "known: two are equal within their sampling error.",
        CancellationError,
        "Raise samples= until their difference is larger than the error, or take another key.",
    )
    ctx.check(jnp.all(sure), tie)
    return tensor(largest.astype(c.dtype), remainder=Exponents(NEGLIGIBLE))


@_lifts(*elementwise.LOGARITHMS)
def _logarithm(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    """Unlike the other functions it has no expansion at 0."""
    (value,) = _tensors(values)
    assert ctx.equation is not None
    fn = elementwise.LOGARITHMS[ctx.equation.primitive]
    simple = not value.terms[1:] and not value.patches
    if simple or value.exponents.levels() != [0]:
        return leading(ctx, rule, values, params)[0]
    lead = replace(collapsed(value), terms=(replace(value.terms[0], zeros=None),))
    algebra.not_zero(ctx, lead, "The logarithm of")
    # Near 0 it may be of any size: what is unknown somewhere is unknown everywhere.
    value = patches.spread(value)
    return expansion.smooth(ctx, lambda x: rule(ctx, x, **params), value, fn, "neither")


# --- sums over a width


@_lifts(p.reduce_sum_p)
def _sum(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (value,) = _tensors(values)

    def reduce(piece: Tensor) -> Tensor:
        (out,) = _tensors(_outputs(rule(ctx, piece, **params)))
        return out

    over = value.axis is not None and value.axis in params["axes"]
    parts = []
    for piece in expansion.pieces(value):
        if over:
            parts += expansion.averaged(ctx, reduce, piece, piece.parity, value.space)
        else:
            parts.append(with_parity(reduce(piece), piece.parity))
    if over:
        return _summed(ctx, parts, value)
    return patches.inheriting(expansion.total(ctx, parts), value)


def _summed(ctx: Context, parts: list[Tensor], *values: Tensor) -> Tensor:
    """A sum over a width, with what is unknown in places of the factors of the summands."""
    lost = patches.averaged(Fraction(1), *values)
    unknown = replace(expansion.zero(parts[0]), remainder=NONE.maximum(*lost))
    return expansion.total(ctx, [*parts, unknown])


@_lifts(p.dot_general_p)
def _contract(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    assert ctx.equation is not None
    if len(ctx.equation.out_avals[0].width_axes) > 1:
        return _outputs(rule(ctx, *values, **params))[0]
    (over, _), _ = params["dimension_numbers"]

    def product(x: Tensor, y: Tensor) -> Tensor:
        (out,) = _tensors(_outputs(rule(ctx, x, y, **params)))
        return out

    if a.axis is None or a.axis not in over:
        return expansion.bilinear(ctx, product, a, b)
    space = ctx.unify(a.space, b.space)
    parts = []
    for x in expansion.pieces(a):
        for y in expansion.pieces(b):
            if y.exponents.levels()[0] == -np.inf:
                parts.append(product(x, y))
                continue
            parity = expansion.parity_of_product(x, y)
            reduce = functools.partial(product, y=y)
            parts += expansion.averaged(ctx, reduce, x, parity, space)
    return _summed(ctx, parts, a, b)


# --- choices


def vanishing_with(ctx: Context, value: Tensor, out: Tensor) -> Tensor:
    """Note that a vector is 0 where another one is."""
    if out.axis is not None:
        ctx.notes[id(out)] = (out, _root(ctx, value))
    return out


def _root(ctx: Context, value: Tensor) -> Tensor:
    """The vector with which this one is known to vanish, itself if there is no other."""
    return ctx.notes[id(value)][1] if id(value) in ctx.notes else value


def _part_of(ctx: Context, value: Tensor) -> Tensor:
    """The vector whose positive part this one is, itself if that is not known.

    A rectifier of a rectified vector is that of the vector. Told by its terms it would hang on the
    lower ones where the leading one is 0, though they are 0 there too.
    """
    return ctx.positive[id(value)][1] if id(value) in ctx.positive else value


def _compared(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    assert ctx.equation is not None
    primitive = ctx.equation.primitive
    positive = (primitive is p.gt_p and b.vanishes) or (primitive is p.lt_p and a.vanishes)
    if positive:
        a, b = _part_of(ctx, a), _part_of(ctx, b)
    mask = _mask(ctx, rule, a, b, params)
    if positive and mask.axis is not None:
        ctx.positive[id(mask)] = (mask, b if primitive is p.lt_p else a)
    if a.vanishes or b.vanishes:
        ctx.notes[id(mask)] = (mask, _root(ctx, b if a.vanishes else a))
    return mask


def _mask(ctx: Context, rule: Rule, a: Tensor, b: Tensor, params: Any) -> Tensor:
    assert ctx.equation is not None
    simple = not (a.terms[1:] or b.terms[1:] or a.patches or b.patches)
    if a is b or simple or a.dtype.kind != "f" or algebra.infinite(a) or algebra.infinite(b):
        (mask,) = _tensors(leading(ctx, rule, (a, b), params))
        bare = replace(mask, remainder=NONE)
        return expansion.mask_of(mask.coefficient, mask.remainder, mask.parity, bare)
    relation = _RELATIONS[ctx.equation.primitive]
    difference = expansion.minus(ctx, a, b)
    if ctx.equation.primitive in (p.eq_p, p.ne_p):
        zeros = [jnp.asarray(term.coefficient) == 0 for term in difference.terms]
        holds = relation(functools.reduce(jnp.logical_and, zeros), True)
        flips, parity = NONE, expansion.plus_parity([difference])
    else:
        signs, flips, parity = expansion.sign_of(ctx, difference, "A comparison")
        holds = relation(signs, jnp.zeros_like(signs))
    return expansion.mask_of(holds, flips, parity, difference)


_OWN.update(dict.fromkeys(_RELATIONS, _compared))


@_lifts(p.max_p, p.min_p)
def _extremum(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    a, b = _tensors(values)
    assert ctx.equation is not None
    side = 1 if ctx.equation.primitive is p.max_p else -1
    simple = not (a.terms[1:] or b.terms[1:] or a.patches or b.patches)
    unbounded = elementwise.against_infinity(a, b, side)
    if unbounded is not None:
        return unbounded
    with_zero = a.vanishes or b.vanishes
    other = b if a.vanishes else a
    whole = np.broadcast_shapes(a.shape, b.shape) == other.shape
    if with_zero and whole and side == 1 and id(other) in ctx.positive:
        return other
    if simple or algebra.infinite(a) or algebra.infinite(b):
        (out,) = _tensors(leading(ctx, rule, values, params))
    else:
        out = expansion.extremum(ctx, a, b, side)
    if with_zero and whole and side == 1 and out.axis is not None:
        ctx.positive[id(out)] = (out, other)
    return vanishing_with(ctx, other, out) if with_zero else out


@_lifts(p.reduce_max_p, p.reduce_min_p)
def _largest(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    """Maximum along finite axes: of two halves, as long as there are two."""
    (value,) = _tensors(values)
    assert ctx.equation is not None
    simple = not value.terms[1:] and not value.patches and value.exponents.uniform
    if simple or value.axis in params["axes"] or value.dtype.kind != "f":
        return leading(ctx, rule, values, params)[0]
    side = 1 if ctx.equation.primitive is p.reduce_max_p else -1
    for axis in sorted(params["axes"], reverse=True):
        before: tuple[slice, ...] = (slice(None),) * axis
        while (length := value.shape[axis]) > 1:
            half = -(-length // 2)
            halves = (slice(half), slice(length - half, length))
            a, b = (at(value, (*before, part)) for part in halves)
            value = expansion.extremum(ctx, a, b, side)
        value = at(value, (*before, 0))
    return value


@_lifts(p.abs_p)
def _absolute(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    (a,) = _tensors(values)
    out = expansion.extremum(ctx, a, expansion.negative(a), 1)
    if a.axis is not None and out.terms[0].exponents == a.exponents:
        # The size of the leading term; the others carry its sign.
        first = replace(out.terms[0], parity=a.parity.under("even"))
        out = replace(out, terms=(first, *out.terms[1:]))
    return vanishing_with(ctx, a, out)


@_lifts(p.select_n_p)
def _select(ctx: Context, rule: Rule, values: Values, params: Any) -> Value:
    which, *cases = _tensors(values)
    chosen = which.constant if which.finite else None
    if chosen is not None and chosen.size and np.all(chosen == chosen.flat[0]):
        return cases[int(chosen.flat[0])]
    gate = ctx.notes[id(which)][1] if id(which) in ctx.notes else None
    agree = gate is not None and all(c.vanishes or _root(ctx, c) is gate for c in cases)
    if agree and len(cases) == 2 and which.axis is not None:
        assert gate is not None
        out = expansion.select_continuously(ctx, which, (cases[1], cases[0]))
        part = _part_of(ctx, cases[1])
        if cases[0].vanishes and id(which) in ctx.positive and _part_of(ctx, which) is part:
            ctx.positive[id(out)] = (out, part)
        return vanishing_with(ctx, gate, out)
    zeros = [expansion.zero(case) for case in cases]
    known = replace(which, patches=())
    mask = which.parity if which.axis is not None else EVEN
    parts, found = [], []
    for place, case in enumerate(cases):
        alone = all(other.vanishes for other in cases if other is not case)
        if alone and which.axis is not None and case.remainder != NONE:
            found.append(expansion.unknown_where(case, which.coefficient == place))
            case = replace(case, remainder=NONE)
        for piece in expansion.pieces(case):
            operands = [piece if i == place else z for i, z in enumerate(zeros)]
            (out,) = _tensors(_outputs(rule(ctx, known, *operands, **params)))
            parts.append(with_parity(out, piece.parity * mask))
    out = patches.inheriting(expansion.total(ctx, parts), *cases)
    size = max(patches.bound_of(case) for case in cases)
    return patches.with_patches(out, *found, *(patch + size for patch in which.patches))


RULES.lifted = lifted
