"""What a parameterization does as the width grows, from its exponents alone.

`classify` counts powers of the width through training steps. The conditions and their derivation
are in `docs/regimes.md`, with the names used here.

Sources: Yang and Hu, Tensor Programs IV (Section 3 and Appendix H: stability, r, the dynamical
dichotomy); Yang and Littwin, Tensor Programs IVb (optimizers that act entry by entry); Hajjar,
Chizat and Giraud, Training Integrable Parameterizations (vanishing activations, exponents of the
first step); Golikov, Dynamically Stable Infinite-Width Limits of Neural Classifiers (regions of
networks with one hidden layer).
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

from tplimit.networks.models import Model
from tplimit.networks.optimizers import degree, intensive
from tplimit.networks.scaling import Parameterization
from tplimit.regimes.mending import largest, settle
from tplimit.regimes.powers import Pass, Powers, effect, train
from tplimit.regimes.regime import Change, Mended, Regime, regime_of
from tplimit.transforms.growth import Row
from tplimit.values.exponents import HALF, NEVER, Exponent
from tplimit.values.powers import Known, Power

if TYPE_CHECKING:
    import optax

__all__ = ["classify", "region"]


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
    degree = degree_of(parameterization, model, optimizer)
    regime = classified(parameterization, model, degree)
    return replace(regime, mending=functools.partial(_mended, parameterization, model, optimizer))


def classified(parameterization: Parameterization, model: Model, degree: Fraction) -> Regime:
    """`classify` with an optimizer whose updates are known to have this degree; not mended."""
    powers = Powers.of(parameterization, model, degree)
    passes = train(powers)
    start, first, last = passes[0], passes[1], passes[-1]
    stable = all(p.largest <= 0 for p in passes)
    r = -max(e for p in passes[1:] for e in p.moved)
    df = max(p.df for p in passes[1:])
    f_0 = start.f
    if powers.corrected is not None:
        f_0 = powers.corrected_start.f
        stable = stable and f_0 <= 0
    exponents: dict[str, Exponent] = {"f_0": f_0, "df_1": first.df, "df": df, "r": r}
    for l in range(1, model.layers + 1):
        if l <= model.depth:
            exponents[f"h_{l}"] = start.h[l - 1]
        exponents[f"first_update_{l}"] = first.updates[l - 1]
        exponents[f"update_{l}"] = last.updates[l - 1]
        exponents[f"weights_{l}"] = powers.relative_change(last.change[l - 1], l)
    regime = regime_of(stable, exponents)
    name = regime.name or _name(powers, last)
    if model.depth == 1 and NEVER not in powers.weights:
        exponents |= _golikov(powers, start)
        if _is_golikov(powers, start):
            name = region(exponents["e0"], exponents["s"])
            name = name if parameterization.initial_a is None else f"IC-{name}"
    return replace(
        regime,
        name=name,
        known={name: _known(powers, start if name in _AT_START else last) for name in exponents}
        | {f"h_{l}": _known(powers, start, l) for l in range(1, model.layers)},
        look=lambda: tuple(_rows(powers, parameterization, model, start, last)),
    )


#: Exponents of the initial network.
_AT_START = ("f_0", "e0")


def _known(powers: Powers, here: Pass, l: int | None = None) -> Known:
    """What is known of the exponents of a pass, of layer l or of all.

    Growing activations are bounded, if they are not homogeneous. At the start averages are of
    squares, unless weights have a mean; later coefficients might vanish.
    """
    below = here.h if l is None else here.h[: l - 1]
    if not powers.orders.homogeneous and any(h > 0 for h in below):
        return "bound"
    return "exact" if here.start and not any(powers.centre) else "generic"


def _rows(
    powers: Powers, p: Parameterization, model: Model, start: Pass, here: Pass
) -> Iterator[Row]:
    """The parameters of a network, in units of the parameters, in a pass."""
    known = _known(powers, here)
    both = (False, p), (True, p.biases or p)
    for l in range(1, model.layers + 1):
        for bias, scaling in both:
            if bias and l not in model.biased:
                continue
            a = scaling.exponents("a", model)[l - 1]
            initial = powers.biases if bias else powers.weights
            terms = here.terms[l - 1]
            added = terms.bias_update if bias else terms.update
            change = added if bias else here.change[l - 1]
            hidden = l <= model.depth
            last = max(powers.kept[-1], here.change[-1])
            outputs = effect(powers, start, here, l - 1, added, model.depth, last)
            yield Row(
                f"{'b' if bias else 'W'}{l}",
                Power(initial[l - 1] + a),
                Power(change + a, known),
                Power(added, known),
                Power(outputs, known),
                Power(here.moved[l - 1], known) if hidden else None,
            )


def _mended(
    p: Parameterization,
    model: Model,
    optimizer: "optax.GradientTransformation | None",
    features: bool,
) -> Mended:
    """The parameterization with powers that mend it, and its regime."""
    before = Powers.of(p, model, degree_of(p, model, optimizer))
    after, faults = settle(before)
    if features:
        after = largest(after)
    changes = []
    for l in range(model.layers):
        of_weights = (before.weights, after.weights), (before.first[0], after.first[0]), (
            before.rates, after.rates,
        )  # fmt: skip
        of_biases = (before.biases, after.biases), (before.first[1], after.first[1]), (
            before.bias_rates, after.bias_rates,
        )  # fmt: skip
        changes.append(Change(f"W{l + 1}", *(_factor(old[l], new[l]) for old, new in of_weights)))
        if l + 1 in model.biased:
            found = (_factor(old[l], new[l]) for old, new in of_biases)
            changes.append(Change(f"b{l + 1}", *found))
    mended = after.parameterization(p, model)
    return Mended(tuple(changes), classify(mended, model, optimizer), faults, mended)


def _factor(old: Exponent, new: Exponent) -> Exponent:
    """What n^old has to be multiplied by to be n^new; 0 stays 0."""
    return Fraction(0) if old == NEVER else new - old


def effective_exponents(parameterization: Parameterization, model: Model) -> tuple[Exponent, ...]:
    """What the regime depends on: exponents of effective weights and biases, and of their updates.

    Equal for parameterizations that differ by (a, b, c) → (a + θ, b - θ, c - 2θ) only. The updates
    are those of gradient descent, whose exponents are affine functions of a and c.
    """
    powers = Powers.of(parameterization, model, Fraction(1))
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


def _name(powers: Powers, last: Pass) -> str:
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


def _golikov(powers: Powers, start: Pass) -> dict[str, Exponent]:
    """e0, and the larger of the two layers' contributions to eK and s."""
    w, a = powers.weights
    step_w, step_a = powers.update(powers.rates, (a, Fraction(0)))
    s = max(step_w - w, step_a - a)
    return {"e0": start.f, "eK": max(step_a, step_w + a) + 1, "s": s}


def _is_golikov(powers: Powers, start: Pass) -> bool:
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
