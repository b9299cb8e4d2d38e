"""What a parameterization does as the width grows, from its exponents alone.

`classify` counts powers of the width through training steps. The conditions and their derivation
are in `docs/regimes.md`, with the names used here.

Sources: Yang and Hu, Tensor Programs IV (Section 3 and Appendix H: stability, r, the dynamical
dichotomy); Yang and Littwin, Tensor Programs IVb (optimizers that act entry by entry); Hajjar,
Chizat and Giraud, Training Integrable Parameterizations (vanishing activations, exponents of the
first step); Golikov, Dynamically Stable Infinite-Width Limits of Neural Classifiers (regions of
networks with one hidden layer).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from tplimit.networks.activations import Orders
from tplimit.networks.models import Model
from tplimit.networks.optimizers import degree, intensive
from tplimit.networks.scaling import Parameterization
from tplimit.values.exponents import HALF, NEVER, Exponent

if TYPE_CHECKING:
    import optax

__all__ = ["Regime", "classify", "region"]

# A step that moves an exponent moves it by a fixed amount at least, so that counting ends: at a
# fixed point, or where something diverges.
_STEPS = 1000


@dataclass(frozen=True)
class Regime:
    """The behaviour of a parameterization as the width n → ∞, at any fixed number of steps.

    Attributes:
        stable: preactivations, activations and outputs stay O(1).
        trivial: stable, and the outputs never move: f_t - f_0 → 0.
        feature_learning: stable, not trivial, and some layer's activations move by Θ(1): r = 0.
        kernel: stable, not trivial, and no activation moves: r > 0.
        exponents: powers of n, exact, `-inf` for what is exactly 0; `classify` lists them.
        name: "unstable", "trivial", "kernel", or for feature learning "muP-like" (all layers move
            and initial hidden weights matter), "mean-field" (all move, and they do not matter),
            "feature learning" (anything else). With one hidden layer, Golikov's region.
    """

    stable: bool
    trivial: bool
    feature_learning: bool
    kernel: bool
    exponents: Mapping[str, Exponent] = field(hash=False)
    name: str


#: What the exponents of a regime are exponents of; a layer ``l`` is a number in their names.
MEANINGS = {
    "f_0": "initial outputs",
    "df_1": "first change of the outputs",
    "df": "later changes of the outputs",
    "r": "minus changes of the features",
    "h": "preactivations",
    "h_l": "initial preactivations",
    "first_update_l": "(W_1 - W_0) x",
    "update_l": "(W_(t+1) - W_t) x, later",
    "weights_l": "W_t - W_0, relative to W_0",
    "e0": "initial outputs",
    "eK": "tangent kernel",
    "s": "changes of weights, relative",
}


def classify(
    parameterization: Parameterization,
    model: Model,
    optimizer: "optax.GradientTransformation | None" = None,
) -> Regime:
    """The regime of training `model`, by counting powers of the width.

    `optimizer` is that of `Parameterization.step`; None is gradient descent. Counted is the degree
    k = 0 or 1 in the gradients, not `eps`, nor weight decay, which moves all layers by Θ(1).

    The loss derivative is taken to be Θ(1) and coefficients to be generic: where a symmetry makes
    one vanish, the true exponent is smaller. Constants, such as a reference width, do not matter.
    What follows the first positive exponent is not counted further.

    `exponents` has, for layers l = 1 .. L + 1 with L = depth:

    - `h_l`, `f_0`: initial preactivations (l ≤ L) and outputs;
    - `first_update_l`: ΔW^l x^{l-1} after the first step, for l = L + 1 its part of the output;
    - `update_l`: the same for a later step, where they have settled, or at the first divergence;
    - `weights_l`: W^l_t - W^l_0 at that later step, relative to the entries of W^l_0;
    - `df_1`, `df`: f_1 - f_0, and f_t - f_0 in later steps;
    - `r`: minus the largest exponent of x^l_t - x^l_0 (Tensor Programs IV);
    - with one hidden layer `e0`, `eK`, `s`: initial outputs, tangent kernel, weight increments.

    Raises:
        ValueError: the activation behaves like no power near 0; the first update of the optimizer
            is homogeneous of no degree, 0 or 1, in the gradients (clipping), or depends on the
            number of entries (norms); or what `Parameterization.step` refuses.
        TypeError: other arguments.

    >>> import tplimit as tp
    >>> scalings = tp.parameterizations
    >>> [tp.classify(scalings.naive_ip, tp.mlp(depth, inputs=3)).name for depth in (1, 2, 3)]
    ['MF', 'mean-field', 'trivial']
    >>> regime = tp.classify(scalings.ntk, tp.mlp(3, inputs=3))
    >>> regime.kernel, str(regime.exponents["r"])
    (True, '1/2')
    >>> import optax
    >>> adam = optax.adam(1.0)
    >>> [tp.classify(p, tp.mlp(3, inputs=3), adam).name for p in (scalings.mup, scalings.ntk)]
    ['muP-like', 'kernel']
    """
    if not isinstance(parameterization, Parameterization) or not isinstance(model, Model):
        raise TypeError(
            "classify needs a Parameterization and a Model: tp.classify(tp.parameterizations.mup, "
            "tp.mlp(2, inputs=3)); golikov and intermediate are functions that return one, such as "
            "golikov(-0.5, 0)"
        )
    return classified(parameterization, model, degree_of(parameterization, model, optimizer))


def classified(parameterization: Parameterization, model: Model, degree: Fraction) -> Regime:
    """`classify` with an optimizer whose updates are known to have this degree."""
    powers = _Powers.of(parameterization, model, degree)
    passes = _train(powers)
    start, first, last = passes[0], passes[1], passes[-1]
    stable = all(p.largest <= 0 for p in passes)
    r = -max(e for p in passes[1:] for e in p.moved)
    df = max(p.df for p in passes[1:])
    f_0 = start.f
    if powers.corrected is not None:
        kept = powers._replace(weights=powers.corrected)
        f_0 = _train(kept)[0].f
        stable = stable and f_0 <= 0
    exponents: dict[str, Exponent] = {"f_0": f_0, "df_1": first.df, "df": df, "r": r}
    for l in range(1, model.layers + 1):
        if l <= model.depth:
            exponents[f"h_{l}"] = start.h[l - 1]
        exponents[f"first_update_{l}"] = first.updates[l - 1]
        exponents[f"update_{l}"] = last.updates[l - 1]
        exponents[f"weights_{l}"] = powers.relative_change(last.change[l - 1], l)
    regime = regime_of(stable, exponents)
    if model.depth == 1 and NEVER not in powers.weights:
        exponents |= _golikov(powers, start)
        if _is_golikov(powers, start):
            name = region(exponents["e0"], exponents["s"])
            corrected = parameterization.initial_a is not None
            return replace(regime, name=f"IC-{name}" if corrected else name)
    return replace(regime, name=regime.name or _name(powers, last))


def effective_exponents(parameterization: Parameterization, model: Model) -> tuple[Exponent, ...]:
    """What the regime depends on: exponents of effective weights and biases, and of their updates.

    Equal for parameterizations that differ by (a, b, c) → (a + θ, b - θ, c - 2θ) only. The updates
    are those of gradient descent, whose exponents are affine functions of a and c.
    """
    powers = _Powers.of(parameterization, model, Fraction(1))
    return (
        *powers.weights, *powers.biases, *powers.rates, *powers.bias_rates,
        *powers.kept, *chain(*powers.first), *(powers.corrected or ()),
    )  # fmt: skip


def degree_of(
    parameterization: Parameterization,
    model: Model,
    optimizer: "optax.GradientTransformation | None",
) -> Fraction:
    """The degree of an optimizer's updates in the gradients, where powers can be counted.

    Raises:
        ValueError: as `classify`.
    """
    if optimizer is None:
        return Fraction(1)
    parameterization.step(model, "mse", 1.0, optimizer)  # what has no step is refused there
    k = degree(optimizer, model)
    if k is None:
        raise ValueError(
            "the updates of this optimizer are neither proportional to gradients of order one nor "
            "independent of their size, so powers of the width cannot be counted, as with clipping "
            "at a bound of order one: run the step, tp.classify_step(step, theta, batch)"
        )
    if not intensive(optimizer, model):
        raise ValueError(
            "the updates of this optimizer depend on the number of entries, and so on the width, "
            "as with norms that are sums: run the step, tp.classify_step(step, theta, batch)"
        )
    return k


def regime_of(stable: bool, exponents: Mapping[str, Exponent]) -> Regime:
    """The regime that exponents `df` and `r` tell; without a name where features are learnt."""
    trivial = stable and exponents["df"] < 0
    learns = stable and not trivial and exponents["r"] == 0
    kernel = stable and not trivial and not learns
    name = "" if learns else "kernel" if kernel else "trivial" if trivial else "unstable"
    return Regime(stable, trivial, learns, kernel, exponents, name)


def _name(powers: "_Powers", last: "_Pass") -> str:
    if any(e != 0 for e in last.updates):
        return "feature learning"
    hidden = [powers.kept[l] + HALF for l in range(1, len(last.h))]
    if all(e < 0 for e in hidden):
        return "mean-field"
    return "muP-like" if all(e == 0 for e in hidden) else "feature learning"


def region(e0: Exponent, s: Exponent) -> str:
    """Golikov's region of a network with one hidden layer: 13 limits, or none.

    Args:
        e0: exponent of the initial logits, q_sigma + 1/2.
        s: exponent of the increments of the weights relative to their size, q_sigma + q_tilde.

    The tangent kernel has the exponent eK = e0 + s + 1/2. Where -1/2 ≤ s ≤ 0, training has a limit
    after division of the logits by n^eK. Above, weights and logits diverge; below, the increments
    are negligible against the initial logits ("stagnating").

    >>> region(0, Fraction(-1, 2)), region(0, 0)
    ('NTK', 'sym-default')
    """
    kernel = e0 + s + HALF
    if s > 0:
        return "diverging"
    if s < -HALF:
        return "stagnating"
    if s == -HALF:
        return _by_sign(kernel, "post-NTK", "NTK", "pre-NTK")
    if kernel <= 0:
        names = ("post-MF", "MF") if s == 0 else ("post-MF–NTK", "MF–NTK")
        return names[kernel == 0]
    if s == 0:
        return _by_sign(e0, "sym-def–MF", "sym-default", "pre-sym-default")
    return _by_sign(e0, "triangle", "NTK–sym-def", "pre-NTK–sym-def")


def _by_sign(exponent: Exponent, negative: str, zero: str, positive: str) -> str:
    return negative if exponent < 0 else zero if exponent == 0 else positive


def _golikov(powers: "_Powers", start: "_Pass") -> dict[str, Exponent]:
    """e0, and the larger of the two layers' contributions to eK and s."""
    w, a = powers.weights
    step_w, step_a = powers.update(powers.rates, (a, Fraction(0)))
    s = max(step_w - w, step_a - a)
    return {"e0": start.f, "eK": max(step_a, step_w + a) + 1, "s": s}


def _is_golikov(powers: "_Powers", start: "_Pass") -> bool:
    """One rule for every step, centred weights, both layers moving at one relative rate."""
    w, a = powers.weights
    step_w, step_a = powers.update(powers.rates, (a, Fraction(0)))
    return (
        powers.first == (powers.rates, powers.bias_rates)
        and not powers.own_biases
        and not any(powers.centre)
        and powers.kept == powers.weights
        and start.h[0] == 0 == w
        and step_w == step_a - a
    )


class _Powers(NamedTuple):
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
    def of(cls, p: Parameterization, model: Model, degree: Fraction) -> "_Powers":
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


class _Moved(NamedTuple):
    """Exponents of what training changed: weights in the last step, weights and biases in all."""

    step: tuple[Exponent, ...]
    total: tuple[Exponent, ...]
    biases: tuple[Exponent, ...]


class _Pass(NamedTuple):
    """Exponents of a forward and backward pass before step t, hidden layers 1 .. L.

    h, x, dh: preactivations, activations, derivatives of f; moved: x_t - x_0; updates: what the
    last step of the weights contributes to h and f; change: entries of W_t - W_0; f, df: outputs.
    """

    h: tuple[Exponent, ...]
    x: tuple[Exponent, ...]
    dh: tuple[Exponent, ...]
    moved: tuple[Exponent, ...]
    updates: tuple[Exponent, ...]
    change: tuple[Exponent, ...]
    f: Exponent
    df: Exponent

    @property
    def largest(self) -> Exponent:
        return max(*self.h, *self.x, self.f, self.df)


def _train(powers: _Powers) -> list[_Pass]:
    """Passes before the first, the second, .. step until exponents settle or one is positive."""
    layers = len(powers.weights)
    nothing: tuple[Exponent, ...] = (NEVER,) * layers
    moved = _Moved(nothing, nothing, nothing)
    passes: list[_Pass] = []
    for t in range(_STEPS):
        passes.append(_pass(powers, moved, passes[0] if passes else None))
        here = passes[-1]
        rates, bias_rates = powers.first if t == 0 else (powers.rates, powers.bias_rates)
        below, above = (Fraction(0), *here.x), (*here.dh, Fraction(0))
        step = powers.update(rates, map(add, above, below))
        bias_step = powers.update(bias_rates, above)
        after = _Moved(
            step, tuple(map(max, moved.total, step)), tuple(map(max, moved.biases, bias_step))
        )
        settled = t > 1 and after == moved
        if t > 0 and (settled or max(p.largest for p in passes) > 0):
            return passes
        moved = after
    return passes


def _pass(powers: _Powers, change: _Moved, start: _Pass | None) -> _Pass:
    """One pass with weights that moved by `change` since `start`, the pass at initialisation."""
    phi, depth = powers.orders, len(powers.weights) - 1
    weights = powers.weights if start is None else powers.kept
    h: list[Exponent] = []
    x: list[Exponent] = [Fraction(0)]  # of the inputs, then of layers 1, 2, ..
    moved: list[Exponent] = []
    updates: list[Exponent] = []
    x_moved: Exponent = NEVER  # x_t - x_0 in the layer below: inputs do not move
    x_mean: Exponent = NEVER  # the mean of x over the width, where means of weights feel it
    for l in range(depth + 1):
        # Sums over the width: n^1/2 for independent terms, n^1 for aligned ones. Inputs are finite.
        fresh, aligned = (HALF, Fraction(1)) if l else (Fraction(0), Fraction(0))
        mean = weights[l] + 1 + x_mean if powers.centre[l] else NEVER
        update = max(change.total[l] + aligned + x[-1], change.biases[l])
        updates.append(change.step[l] + aligned + x[-1])
        total = max(weights[l] + fresh + x[-1], mean, update, powers.biases[l])
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
    df = max(update, weights[depth] + 1 + x_moved)
    dh = _backward(powers, weights, change.total, h)
    f = max(total, df)
    return _Pass(tuple(h), tuple(x[1:]), dh, tuple(moved), tuple(updates), change.total, f, df)


def _backward(
    powers: _Powers,
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
