"""Counting powers of the width through forward and backward passes and training steps.

The recursion and its derivation are in `docs/regimes.md`. Its operations are sums and maxima that
grow with each of their arguments: smaller rates never make anything larger.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from operator import add
from typing import Any, NamedTuple

from tplimit.networks.activations import Orders
from tplimit.networks.models import Model
from tplimit.networks.scaling import Parameterization
from tplimit.values.exponents import HALF, NEVER, Exponent

__all__ = ["Moved", "Pass", "Powers", "Terms", "effect", "first_pass", "one_pass", "train"]

# A step that moves an exponent moves it by a fixed amount at least, so that counting ends: at a
# fixed point, or where something diverges.
_STEPS = 1000


class Powers(NamedTuple):
    """Exponents of effective parameters, layer by layer: entries and rates are n^these.

    degree: k, of the optimizer; weights, biases: initial entries; kept: initial weights that remain
    after the first step; centre: whether initial weights have a mean; rates: ΔW = n^rate |∇_W f|^k,
    and for biases; first: both at the first step; corrected: the initial weights of a kept initial
    function.
    """

    degree: Fraction
    weights: tuple[Exponent, ...]
    biases: tuple[Exponent, ...]
    kept: tuple[Exponent, ...]
    centre: tuple[bool, ...]
    rates: tuple[Exponent, ...]
    bias_rates: tuple[Exponent, ...]
    first: tuple[tuple[Exponent, ...], tuple[Exponent, ...]]
    own_biases: bool
    corrected: tuple[Exponent, ...] | None
    orders: Orders

    @property
    def depth(self) -> int:
        return len(self.weights) - 1

    @property
    def corrected_start(self) -> "Pass":
        """The first pass, with the weights of the kept initial function where there is one."""
        kept = self.weights if self.corrected is None else self.corrected
        return first_pass(self._replace(weights=kept))

    def parameterization(self, p: Parameterization, model: Model) -> Parameterization:
        """`p` with exponents b, c, first and initial_a that have these powers: the inverse of `of`.

        Natural units follow from b and from the rates of the output layer, so these come first.
        """
        a = p.exponents("a", model)
        b = _given(p.exponents("b", model), self.weights, lambda w, l: -a[l] - w)
        out = -2 * a[-1] - self.rates[-1]
        units = replace(p, b=b, c=(*p.exponents("c", model)[:-1], out))
        natural = [d - e for d, e in zip(units.exponents("d", model), a, strict=True)]

        def exponents(of: Sequence[Exponent], a: Sequence[Fraction], old: Any) -> Any:
            of_rate = lambda rate, l: -2 * a[l] - rate - (1 - self.degree) * natural[l]
            return _given(old, of, of_rate)

        q = p if p.biases is None else p.biases
        a_bias = q.exponents("a", model)
        rows = (self.rates, self.bias_rates), self.first
        (c, c_bias), (first, first_bias) = (
            (exponents(w, a, p.exponents(n, model)), exponents(b_, a_bias, q.exponents(n, model)))
            for (w, b_), n in zip(rows, ("c", "first"), strict=True)
        )
        b_bias = _given(q.exponents("b", model), self.biases, lambda w, l: -a_bias[l] - w)
        kept = None
        if self.corrected is not None:
            old = p.exponents("initial_a", model)
            kept = _given(old, self.corrected, lambda w, l: -b[l] - w)
        alike = first == c and first_bias == c_bias
        new = replace(p, b=b, c=c, first=None if alike else first, initial_a=kept)
        if not model.biased:
            return new
        biases = replace(q, b=b_bias, c=c_bias, first=None if alike else first_bias, biases=None)
        same = p.biases is None and (b_bias, c_bias, first_bias) == (b, c, first)
        return new if same else replace(new, biases=biases)

    def update(
        self, rates: Iterable[Exponent], gradients: Iterable[Exponent]
    ) -> tuple[Exponent, ...]:
        """Exponents of an update; that of a gradient that is exactly 0 is 0."""
        return tuple(
            NEVER if g == NEVER else rate + self.degree * g
            for rate, g in zip(rates, gradients, strict=True)
        )

    def relative_change(self, change: Exponent, l: int) -> Exponent:
        """Exponent of W^l_t - W^l_0 relative to W^l_0; Θ(1) where initial weights were removed."""
        initial = self.weights[l - 1]
        if self.kept[l - 1] != initial:
            change = max(change, initial)
        return NEVER if change == NEVER else change - initial

    @classmethod
    def of(cls, p: Parameterization, model: Model, degree: Fraction) -> "Powers":
        q = p if p.biases is None else p.biases
        biased = [l in model.biased for l in range(1, model.layers + 1)]
        stds, means = p.factors("std", model), p.factors("mean", model)

        def entries(which: str) -> tuple[Exponent, ...]:
            sums = zip(p.exponents(which, model), p.exponents("b", model), stds, means, strict=True)
            return tuple(-a - b if std or mean else NEVER for a, b, std, mean in sums)

        # ∇_W f is of order n^-(d - a) in natural units, and so is ∇_b f.
        natural = [
            d - a for d, a in zip(p.exponents("d", model), p.exponents("a", model), strict=True)
        ]

        def rates(of: Parameterization, which: str) -> tuple[Exponent, ...]:
            sums = zip(of.exponents("a", model), of.exponents(which, model), natural, strict=True)
            return tuple(-2 * a - c - (1 - degree) * g for a, c, g in sums)

        def only(present: Sequence[bool], values: tuple[Exponent, ...]) -> tuple[Exponent, ...]:
            return tuple(v if b else NEVER for b, v in zip(present, values, strict=True))

        own = zip(q.exponents("a", model), q.exponents("b", model), strict=True)
        drawn = [b and bool(p.bias_std) for b in biased]
        weights = entries("a")
        return cls(
            degree=degree,
            weights=weights,
            biases=only(drawn, tuple(-a - b for a, b in own)),
            kept=tuple(w - s for w, s in zip(weights, p.factors("shrink", model), strict=True)),
            centre=tuple(bool(mean) for mean in means),
            rates=rates(p, "c"),
            bias_rates=only(biased, rates(q, "c")),
            first=(rates(p, "first"), only(biased, rates(q, "first"))),
            own_biases=p.biases is not None and any(biased),
            corrected=None if p.initial_a is None else entries("initial_a"),
            orders=model.orders,
        )


def _given(
    old: Sequence[Fraction], powers: Sequence[Exponent], of: Callable[[Any, int], Any]
) -> tuple[Fraction, ...]:
    """Exponents from powers, layer by layer; the old ones where there is nothing to scale."""
    pairs = zip(old, powers, strict=True)
    return tuple(e if w == NEVER else of(w, l) for l, (e, w) in enumerate(pairs))


class Moved(NamedTuple):
    """Exponents of what training changed: weights in the last step, weights and biases in all."""

    step: tuple[Exponent, ...]
    total: tuple[Exponent, ...]
    biases: tuple[Exponent, ...]


class Terms(NamedTuple):
    """What the sum of a layer consists of: W_0 x, W_0 as a mean included; (W_t - W_0) x; biases."""

    initial: Exponent
    update: Exponent
    bias: Exponent
    bias_update: Exponent


class Pass(NamedTuple):
    """Exponents of a forward and backward pass before step t, hidden layers 1 .. L.

    h, x, dh: preactivations, activations, derivatives of f; moved: x_t - x_0; updates: what the
    last step of the weights contributes to h and f; change: entries of W_t - W_0; f, df: outputs;
    terms: of h and f, layers 1 .. L + 1; through: what moved in x does to f by W_0; start: whether
    nothing has moved.
    """

    h: tuple[Exponent, ...]
    x: tuple[Exponent, ...]
    dh: tuple[Exponent, ...]
    moved: tuple[Exponent, ...]
    updates: tuple[Exponent, ...]
    change: tuple[Exponent, ...]
    f: Exponent
    df: Exponent
    terms: tuple[Terms, ...]
    through: Exponent
    start: bool

    @property
    def largest(self) -> Exponent:
        return max(*self.h, *self.x, self.f, self.df)


def first_pass(powers: Powers) -> Pass:
    """The pass at initialisation."""
    nothing: tuple[Exponent, ...] = (NEVER,) * len(powers.weights)
    return one_pass(powers, Moved(nothing, nothing, nothing), None)


def train(powers: Powers) -> list[Pass]:
    """Passes before the first, the second, .. step until exponents settle or one is positive."""
    layers = len(powers.weights)
    nothing: tuple[Exponent, ...] = (NEVER,) * layers
    moved = Moved(nothing, nothing, nothing)
    passes: list[Pass] = []
    for t in range(_STEPS):
        passes.append(one_pass(powers, moved, passes[0] if passes else None))
        here = passes[-1]
        rates, bias_rates = powers.first if t == 0 else (powers.rates, powers.bias_rates)
        below, above = (Fraction(0), *here.x), (*here.dh, Fraction(0))
        step = powers.update(rates, map(add, above, below))
        bias_step = powers.update(bias_rates, above)
        after = Moved(
            step, tuple(map(max, moved.total, step)), tuple(map(max, moved.biases, bias_step))
        )
        settled = t > 1 and after == moved
        if t > 0 and (settled or max(p.largest for p in passes) > 0):
            return passes
        moved = after
    return passes


def one_pass(powers: Powers, change: Moved, start: Pass | None) -> Pass:
    """One pass with weights that moved by `change` since `start`, the pass at initialisation."""
    phi, depth = powers.orders, powers.depth
    weights = powers.weights if start is None else powers.kept
    h: list[Exponent] = []
    x: list[Exponent] = [Fraction(0)]  # of the inputs, then of layers 1, 2, ..
    moved: list[Exponent] = []
    updates: list[Exponent] = []
    terms: list[Terms] = []
    x_moved: Exponent = NEVER  # x_t - x_0 in the layer below: inputs do not move
    x_mean: Exponent = NEVER  # the mean of x over the width, where means of weights feel it
    for l in range(depth + 1):
        # Sums over the width: n^1/2 for independent terms, n^1 for aligned ones. Inputs are finite.
        fresh, aligned = _sums(l)
        mean = weights[l] + 1 + x_mean if powers.centre[l] else NEVER
        initial = max(weights[l] + fresh + x[-1], mean)
        terms.append(
            Terms(initial, change.total[l] + aligned + x[-1], powers.biases[l], change.biases[l])
        )
        updates.append(change.step[l] + aligned + x[-1])
        update, total = max(terms[-1].update, terms[-1].bias_update), max(terms[-1])
        if l == depth:
            break
        h.append(total)
        through = fresh + (HALF if powers.centre[l] else 0)
        h_moved = max(update, weights[l] + through + x_moved)
        if start is not None and weights[l] != powers.weights[l]:
            h_moved = max(h_moved, start.h[l])  # the initial preactivation is lost
        x_moved = NEVER if start is None else _increment(phi, start.h[l], h_moved)
        moved.append(x_moved)
        x.append(_value(phi, h[-1]))
        symmetric = phi.odd and start is None
        odd_mean = max(_slope(phi, h[-1]) + mean, x_moved, x[-1] - HALF)
        x_mean = odd_mean if symmetric else x[-1]
    # The output weights are aligned with what they did to the layer below.
    by_features = weights[depth] + 1 + x_moved
    df = max(update, by_features)
    return Pass(
        tuple(h), tuple(x[1:]), _backward(powers, weights, change.total, h), tuple(moved),
        tuple(updates), change.total, max(total, df), df, tuple(terms), by_features,
        start is None,
    )  # fmt: skip


def effect(
    powers: Powers, start: Pass, here: Pass, l: int, moved: Exponent, to: int, last: Exponent
) -> Exponent:
    """Exponent of what a contribution `moved` to the sum of layer l, from 0, adds to that of `to`.

    It passes through the weights between as they are in the pass `here`, and into `to` through
    those of order n^`last`, with which it is aligned where they are the outputs'.
    """
    for above in range(l + 1, to + 1):
        x_moved = _increment(powers.orders, start.h[above - 1], moved)
        fresh = Fraction(1) if above == powers.depth or powers.centre[above] else HALF
        if above == to:
            return last + fresh + x_moved
        moved = max(powers.kept[above] + fresh, here.change[above] + 1) + x_moved
    return moved


def _sums(l: int) -> tuple[Exponent, Exponent]:
    """Factors of sums over independent and over aligned terms, into layer l + 1."""
    return (HALF, Fraction(1)) if l else (Fraction(0), Fraction(0))


def _backward(
    powers: Powers,
    weights: tuple[Exponent, ...],
    change: tuple[Exponent, ...],
    h: Sequence[Exponent],
) -> tuple[Exponent, ...]:
    """Derivatives of f with respect to preactivations, exponents of layers 1 .. L."""
    depth = len(h)
    dh: list[Exponent] = []
    dx = max(weights[depth], change[depth])
    dx_mean = max(weights[depth] if powers.centre[depth] else NEVER, change[depth])
    for l in range(depth - 1, -1, -1):
        slope = _slope(powers.orders, h[l])
        here = dx + slope
        here_mean = max(dx_mean + slope, here - HALF)
        dh.append(here)
        dx_mean = max(
            weights[l] + 1 + here_mean if powers.centre[l] else NEVER, change[l] + 1 + here
        )
        dx = max(weights[l] + HALF + here, dx_mean)
    return tuple(reversed(dh))


def _value(phi: Orders, h: Exponent) -> Exponent:
    """Exponent of φ(h). Growing arguments: exact if φ is homogeneous, else as for linear growth."""
    if phi.value == 0 and h <= 0:
        return Fraction(0)
    return _power(phi, phi.value, h)


def _slope(phi: Orders, h: Exponent) -> Exponent:
    """Exponent of φ'(h)."""
    if phi.slope == 0 or (h > 0 and not phi.homogeneous):
        return Fraction(0)
    return _power(phi, phi.slope, h)


def _increment(phi: Orders, h: Exponent, moved: Exponent) -> Exponent:
    """Exponent of φ(h + Δ) - φ(h): φ'(h) Δ for small Δ, φ(Δ) - φ(0) for Δ larger than h."""
    return _slope(phi, h) + moved if moved <= h else _power(phi, phi.slope + 1, moved)


def _power(phi: Orders, power: Fraction, h: Exponent) -> Exponent:
    if h == NEVER or (h > 0 and not phi.homogeneous):
        return h
    return power * h
