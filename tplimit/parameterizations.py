"""The parameterizations of the literature, and the calibration of integrable ones.

Every name but `golikov` and `intermediate`, which are functions of exponents, is a
`tplimit.Parameterization`. Calling one changes fields: `ip_non_centered(mean=(0, 0.5, 0.5))`.

Sources: TP4: Yang and Hu, Tensor Programs IV, arXiv 2011.14522. HCG: Hajjar, Chizat and Giraud,
Training Integrable Parameterizations of Deep Neural Networks in the Infinite-Width Limit, arXiv
2110.15596. G-DS: Golikov, Dynamically Stable Infinite-Width Limits of Neural Classifiers, arXiv
2006.06574. G-GT: Golikov, Towards a General Theory of Infinite-Width Limits of Neural Classifiers,
arXiv 2003.05884. L counts hidden layers.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from tplimit.networks.activations import resolve
from tplimit.networks.losses import Loss, cross_entropy, logistic, mse
from tplimit.networks.models import Model
from tplimit.networks.scaling import Exponents, Parameterization

__all__ = [
    "Exponents",
    "Loss",
    "Parameterization",
    "calibrate",
    "cross_entropy",
    "golikov",
    "hp",
    "hpz",
    "ic_mean_field",
    "intermediate",
    "ip_bias",
    "ip_llr",
    "ip_non_centered",
    "large_first_rates",
    "logistic",
    "mean_field",
    "mse",
    "mup",
    "naive_ip",
    "ntk",
    "standard",
    "sym_default",
]


def __dir__() -> list[str]:
    return sorted(__all__)


_HALF = Fraction(1, 2)
_REFERENCE = 128.0  # the reference width of the experiments of G-DS and G-GT


def large_first_rates(model: Model) -> tuple[Fraction, ...]:
    """Exponents γ of the first step of IP-LLR, for an activation of degree p (HCG Def. 2.3.2).

        γ_1 = γ_{L+1} = -(1 + S)/2,    γ_l = -1 - S/2  (l = 2 .. L),    S = Σ_{k<L} p^k

    With them the first update contributes Θ(1) to every layer although the initial activations
    vanish: h^l = Θ(n^{-(p^{l-1} - 1)/(2(p - 1))}). p is `model.homogeneity`.

    Raises:
        ValueError: the activation has no degree.

    >>> import tplimit as tp
    >>> [str(e) for e in large_first_rates(tp.mlp(3, inputs=2, activation="relu2"))]
    ['-4', '-9/2', '-9/2', '-4']
    """
    s = sum((model.homogeneity**k for k in range(model.depth)), Fraction(0))
    outer, inner = -(1 + s) / 2, -1 - s / 2
    return (outer, *[inner] * (model.depth - 1), outer)


#: Maximal update parameterization in ac form (TP4; every layer learns features).
mup = Parameterization((0, _HALF, 1), 0, -1, name="mup")

#: Integrable scaling, averages over the width in every layer, with learning rates that make every
#: update of order one (HCG Sec. 2.3). With three or more hidden layers and φ(0) = 0 the limit stays
#: at 0 (Prop. 2.3.1).
naive_ip = Parameterization((0, 1, 1), 0, (-1, -2, -1), name="naive_ip")

#: Mean-field scaling, with one hidden layer the same as muP, with more the same as `naive_ip`.
mean_field = naive_ip(name="mean_field")

#: Neural tangent parameterization (Jacot, Gabriel and Hongler).
ntk = Parameterization((0, _HALF, _HALF), 0, 0, name="ntk")

#: Standard scaling, variance 1/fan_in, learning rates without powers of n. Its first step diverges.
standard = Parameterization(0, (0, _HALF, _HALF), 0, name="standard")

#: Integrable with large initial learning rates: the first step uses `large_first_rates`, later ones
#: those of `naive_ip` (HCG Def. 2.4.1). The theory has a bias in the first layer only.
ip_llr = naive_ip(first=large_first_rates, name="ip_llr")


def _ip_bias_weights(model: Model) -> list[Fraction]:
    depth = model.depth
    inner = [-Fraction(depth - l + 4, 2) for l in range(2, depth + 1)]
    return [-Fraction(depth + 1, 2), *inner, Fraction(-1)]


def _ip_bias_biases(model: Model) -> list[Fraction]:
    depth = model.depth
    return [-Fraction(depth - l + 2, 2) for l in range(1, depth + 1)] + [Fraction(0)]


#: Integrable weights, with biases in every layer (`mlp(..., bias=True)`) without a power of n.
#: First step: -(L+1)/2, -(L-l+4)/2, -1 for weights and -(L-l+2)/2, 0 for biases (HCG App. A.12).
ip_bias = naive_ip(
    first=_ip_bias_weights,
    biases=Parameterization(
        0, 0, lambda model: [-1] * model.depth + [0], first=_ip_bias_biases, name="ip_bias"
    ),
    name="ip_bias",
)

#: Integrable with initial weights of mean 1 in layers 2 .. L + 1; biases have mean 0 (HCG App.
#: A.12). Other means: `ip_non_centered(mean=(0, u, u_out))`.
ip_non_centered = naive_ip(mean=(0.0, 1.0, 1.0), name="ip_non_centered")

#: Hybrid of muP and integrable, muP, but after the first step the initial hidden weights shrink,
#: W^l(1) = n^-1 U^l + ΔW^l(1) for l = 2 .. L (HCG Sec. 2.4).
hp = mup(shrink=(0, _HALF, 0), name="hp")

#: As `hp`, with W^l(1) = ΔW^l(1): the initial hidden weights are removed (HCG Sec. 2.4).
hpz = mup(shrink=(0, math.inf, 0), name="hpz")


def golikov(
    q_sigma: float | Fraction,
    q_tilde: float | Fraction | None = None,
    *,
    q_a: float | Fraction | None = None,
    q_w: float | Fraction | None = None,
    q_v: float | Fraction | None = None,
    reference: float = _REFERENCE,
) -> Parameterization:
    """Power laws around a network of width d* = `reference` (G-DS; SGD with one base rate η).

        f = ρ^q_sigma Σ_r A_r φ(w_r·x),      ρ = n / d*
        ΔA = -η ρ^q_a ∇_A loss,      Δw = -η ρ^q_w ∇_w loss

    in units of the reference network, which is default-initialised: standard deviation fan_in^-1/2.
    At width d* nothing depends on the exponents. Output weights a = ρ^q_sigma A then have the
    learning rate η ρ^(q_a + 2 q_sigma).

    With two or more hidden layers (G-GT), hidden matrices are treated like output weights,
    V = ρ^q_sigma V*, and have the learning rate η ρ^(q_v + q_sigma). The NTK point needs
    q_v = -1/2.

    Args:
        q_sigma: exponent of the initial weights.
        q_tilde: exponent of the learning rates, where they have one in common.
        q_a, q_w, q_v: those of output, input and hidden weights; None means `q_tilde`.
        reference: the width d*.

    Raises:
        ValueError: an exponent of the learning rates is missing.

    >>> import tplimit as tp
    >>> default = tp.parameterizations.golikov(-0.5, q_a=1, q_w=0)
    >>> [str(e) for e in default.exponents("a", 1) + default.exponents("c", 1)]
    ['0', '1/2', '0', '-1']
    """
    a, w = (q_tilde if q is None else q for q in (q_a, q_w))
    if a is None or w is None:
        raise ValueError("golikov needs q_tilde, or both q_a and q_w")
    v = a if q_tilde is None else q_tilde
    v = v if q_v is None else q_v
    return Parameterization(
        (0, -q_sigma, -q_sigma),
        0,
        (-w, q_sigma - v, -a),
        input_scale=1.0,
        std=lambda fan_in: fan_in**-0.5,
        reference=reference,
        name="golikov",
    )


def intermediate(q: float | Fraction, reference: float = _REFERENCE) -> Parameterization:
    """Between the NTK (q = 1/2) and mean field (q = 1): `golikov(-q, 2 q - 1)` (G-GT, G-DS).

    The kernel stays constant and the initial function vanishes for 1/2 < q < 1.

    >>> intermediate(0.75).exponents("a", 1)
    (Fraction(0, 1), Fraction(3, 4))
    """
    return golikov(-q, 2 * q - 1, reference=reference)(name=f"intermediate({q})")


#: Symmetric default, the standard initial scale with learning rates ρ^1/2 for input and ρ^-1/2 for
#: output weights, `golikov(-1/2, 1/2)` (G-DS). Logits grow like ρ^1/2, their sign has a limit.
sym_default = golikov(-_HALF, _HALF)(name="sym_default")

#: Mean field with corrected initialisation, mean-field dynamics from the initial function of the
#: default-initialised network, which is kept (G-DS). Equals the reference network at its width.
ic_mean_field = golikov(-1, 1)(initial_a=(0, _HALF, _HALF), name="ic_mean_field")


def calibrate(
    parameterization: Parameterization,
    model: Model,
    theta: Mapping[str, Any],
    batches: Sequence[tuple[jax.Array, jax.Array]],
    loss: Loss,
    lr: float,
    cap: float = 500.0,
) -> tuple[float, ...]:
    """Base learning rates of the first step, one per layer, from a finite network (HCG, version 1).

    A copy of the network makes one step on `batches[0]` with base rate 1. Then `batches[1]` is run
    forward. Layer 1 keeps `lr`; the others get the rate at which their update contributes 1, the
    output 0.1, but `cap` at most:

        lr_l = min(1 / mean|ΔW^l x^{l-1}|, cap)      lr_{L+1} = min(0.1 / mean|ΔW^{L+1} x^L|, cap)

    where x^{l-1} is computed with the calibrated updates, not capped, of the layers below.

    Args:
        theta: arrays, `tplimit.sample(parameterization.theta(model), key, width=n)`.
        batches: at least two pairs (x, y).
        lr: base learning rate of the run.

    Raises:
        ValueError: there are fewer than two batches.

    >>> import jax, tplimit as tp
    >>> model, p = tp.mlp(3, inputs=2, activation="relu"), ip_llr
    >>> theta = tp.sample(p.theta(model), jax.random.key(0), width=64)
    >>> x = jax.random.normal(jax.random.key(1), (2, 8, 2))
    >>> rates = calibrate(p, model, theta, [(x[0], x[0, :, 0]), (x[1], x[1, :, 0])], "mse", 0.1)
    >>> step = p.step(model, "mse", 0.1, first_lr=rates)
    >>> rates[0], len(rates)
    (0.1, 4)
    """
    if len(batches) < 2:
        raise ValueError(f"calibration needs two batches, got {len(batches)}")
    before = parameterization.effective(model, theta)
    after, _ = parameterization.step(model, loss, 1.0)(dict(theta), batches[0])
    change = jax.tree.map(jnp.subtract, parameterization.effective(model, after), before)
    activation = resolve(model.activation)
    x, rates = batches[1][0], [lr]
    for l in range(1, model.layers + 1):
        update = _layer(change, l, x)
        rate = lr
        if l > 1:
            target = 1.0 if l < model.layers else 0.1
            rate = target / float(jnp.mean(jnp.abs(update)))
            rates.append(min(rate, cap))
        x = activation(_layer(before, l, x) + rate * update)
    return tuple(rates)


def _layer(effective: Mapping[str, Any], l: int, x: jax.Array) -> jax.Array:
    return x @ effective[f"W{l}"] + effective.get(f"b{l}", 0.0)
