"""Known numbers of deep networks at infinite width, and the programs they belong to.

Setting: squared loss `(f - y)^2 / 2`, one sample per step, inputs of dimension 3, a bias in layer
1 only. The first layer is not divided by `sqrt(d)`; its bias has the same prefactor (none). `L`
counts hidden layers. Limits: Hajjar, Chizat & Giraud (HCG), Training Integrable Parameterizations
of Deep Neural Networks in the Infinite-Width Limit, arXiv 2110.15596, and for muP Yang & Hu, Tensor
Programs IV, arXiv 2011.14522.

Programs are plain JAX with the width read from shapes: the same `predict` and `step` run on arrays
and in the library. Parameters (all entries N(0, 1) unless stated)::

    theta = {"U": (3, n), "b": (n,), "W": (W_2, .., W_L) each (n, n), "v": (n,)}

        muP                         integrable (IP)
        W_l std n^-1/2              W_l std 1, used as W_l / n     (effective std n^-1)
        rate of U, b, v: eta n      rate of U, b, v: eta n
        rate of W_l:     eta        rate of W_l:     eta n^2       (effective rate eta)
        f = x_L v / n               f = x_L v / n

Both train at the same effective rates; only the size of the initial hidden matrices differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Theta = dict[str, Any]
Activation = Callable[[jax.Array], jax.Array]
Step = Callable[[Theta, tuple[jax.Array, jax.Array]], tuple[Theta, jax.Array]]

INPUTS: Array = np.array(
    [
        [0.20735051523887160, 0.49297088610069500, 0.19826224571003230],
        [-0.78189433896261650, 0.54321352000387060, 0.26782474341841840],
        [-0.32217194121617110, 0.34867086251781210, 0.21874343771164542],
        [0.17647949799331558, 0.01705334478947807, 0.32802779196746820],
    ]
)
"""xi_0 .. xi_3: the training input of each step."""

TARGETS: Array = np.array([1.0, -1.0, 0.5, 1.0])
"""y_0 .. y_3."""

POINTS: Array = np.array(
    [
        [-0.44187245220100013, -0.09774596879583167, -0.28927158760798694],
        [0.3593077275807765, 0.023833264488995393, -0.17547405057905316],
    ]
)
"""The test inputs A and B, in this order in every table."""

BATCHES: tuple[Array, Array] = (INPUTS, TARGETS)
"""Steps on axis 0, one sample each: `x` (3,), `y` ()."""


class Golden(NamedTuple):
    """Known `f_t` at A and B. `error` bounds the error of the table, it is no standard error."""

    activation: str
    hidden: int
    eta: float
    f: dict[int, tuple[float, float]]
    error: float
    note: str = ""


MUP_TANH = Golden(
    "tanh",
    2,
    1.0,
    {1: (0.397, 0.516), 2: (-0.253, -0.037), 3: (0.092, 0.147), 4: (0.355, 0.436)},
    3e-3,
    "muP; Monte Carlo, 10^6 samples; dense width 4096 agrees within its standard error of 0.005",
)

MUP_TANH_REFINED = Golden(
    "tanh",
    2,
    1.0,
    {
        1: (0.39700, 0.51606),
        2: (-0.25472, -0.03750),
        3: (0.09238, 0.14696),
        4: (0.35500, 0.43635),
    },
    3e-4,
    "the same from `dmft`: 60 runs of 500 000 samples, standard errors 4e-5 to 8e-5",
)

MUP_TANH_WITHOUT_CORRECTION = Golden(
    "tanh", 2, 1.0, {1: (0.278, 0.376)}, 3e-3, "muP without Zdot: wrong on purpose"
)

IP_LLR_FIRST_STEP: tuple[Golden, ...] = (
    Golden("relu", 2, 1.0, {1: (0.17813847, 0.21403052)}, 1e-8),
    Golden("relu", 3, 2.0, {1: (0.07750764, 0.09385659)}, 1e-8),
    Golden("scaled_relu_squared", 2, 0.5, {1: (0.00086854, 0.00145851)}, 1e-8),
)
"""Exact f_1, the closed form of HCG Lemmas A.8.10 and A.8.11, rounded to 8 decimals."""

IP_LLR_LATER_STEPS: tuple[Golden, ...] = (
    Golden(
        "relu",
        2,
        1.0,
        {2: (-0.0369, -0.0378), 3: (-0.0120, -0.0122)},
        1e-3,
        "refined limit: sigma'(0) of layer L replaced by 1{G > 0}",
    ),
    Golden("scaled_relu_squared", 2, 0.5, {2: (8.2e-5, 5.7e-4), 3: (1.13e-4, 6.4e-4)}, 1e-5),
    Golden(
        "tanh",
        3,
        1.0,
        {1: (0.0, 0.0), 2: (-0.234, -0.233), 3: (-0.055, -0.049)},
        3e-3,
        "smooth activation; dense width 2048: f_1 0.011, 0.014 and f_2 -0.226, -0.224",
    ),
)

HPZ_RELU = Golden("relu", 2, 1.0, {2: (0.0, 0.0)}, 0.0, "IP-LLR's limit with sigma'(0) = 0")


def relu(z: jax.Array) -> jax.Array:
    """max(z, 0)."""
    return jnp.maximum(z, 0)


def scaled_relu_squared(z: jax.Array) -> jax.Array:
    """sqrt(2/3) / 2 relu(z)^2, positively 2-homogeneous."""
    return np.sqrt(2 / 3).item() / 2 * relu(z) ** 2


ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": relu,
    "scaled_relu_squared": scaled_relu_squared,
}


def table(known: Golden) -> Array:
    """The known steps in order: (steps, 2)."""
    return np.array([known.f[t] for t in sorted(known.f)])


class Program(NamedTuple):
    """Plain JAX: `predict(theta, x)`, `step(theta, batch)`, and `sampler(key, width)` for arrays.

    `first_step` replaces `step` at t = 0 where the first learning rates differ.
    """

    predict: Callable[[Theta, jax.Array], jax.Array]
    step: Step
    sampler: Callable[[jax.Array, int], Theta]
    first_step: Step | None = None


def _predict(activation: Activation, integrable: bool) -> Callable[[Theta, jax.Array], jax.Array]:
    def predict(theta: Theta, x: jax.Array) -> jax.Array:
        n = theta["v"].shape[0]
        h = activation(x @ theta["U"] + theta["b"])
        for W in theta["W"]:
            h = activation(h @ W / n if integrable else h @ W)
        return h @ theta["v"] / n

    return predict


def _step(
    predict: Callable[[Theta, jax.Array], jax.Array],
    eta: float,
    first: float = 1.0,
    hidden: float = 0.0,
) -> Step:
    """Gradient descent with rates `eta n^first` (U, b, v) and `eta n^hidden` (every W)."""

    def step(theta: Theta, batch: tuple[jax.Array, jax.Array]) -> tuple[Theta, jax.Array]:
        x, y = batch
        n = theta["v"].shape[0]

        def loss(parameters: Theta) -> jax.Array:
            return 0.5 * jnp.mean((predict(parameters, x) - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(theta)
        rates = {"U": n**first, "b": n**first, "W": n**hidden, "v": n**first}
        return {
            name: jax.tree.map(lambda p, g, r=rates[name]: p - eta * r * g, theta[name], g)
            for name, g in gradient.items()
        }, value

    return step


def _sampler(hidden: int, power: float, inputs: int = 3) -> Callable[[jax.Array, int], Theta]:
    """All entries N(0, 1), hidden matrices with standard deviation n^power."""

    def sampler(key: jax.Array, width: int) -> Theta:
        keys = jax.random.split(key, hidden + 2)
        return {
            "U": jax.random.normal(keys[0], (inputs, width)),
            "b": jax.random.normal(keys[1], (width,)),
            "W": tuple(width**power * jax.random.normal(k, (width, width)) for k in keys[3:]),
            "v": jax.random.normal(keys[2], (width,)),
        }

    return sampler


def mup(activation: str = "tanh", hidden: int = 2, eta: float = 1.0, inputs: int = 3) -> Program:
    """The network in muP: rates `eta n` (U, b, v) and `eta` (W), W of std n^-1/2."""
    predict = _predict(ACTIVATIONS[activation], integrable=False)
    step = _step(predict, eta)
    return Program(predict, step, _sampler(hidden, -0.5, inputs))


def naive_ip(activation: str = "tanh", hidden: int = 3, eta: float = 1.0) -> Program:
    """IP at muP's effective rates (HCG's Naive-IP): c = (-1, -2, .., -2, -1) at every step."""
    predict = _predict(ACTIVATIONS[activation], integrable=True)
    step = _step(predict, eta, first=1.0, hidden=2.0)
    return Program(predict, step, _sampler(hidden, 0.0))


def ip_llr(
    activation: str = "relu", hidden: int = 2, eta: float = 1.0, homogeneity: int = 1
) -> Program:
    """IP with large initial rates: those of `naive_ip`, but at t = 0 (HCG Def. 2.4.1)::

        S = sum_{k<L} p^k      U, b, v: eta n^{(1+S)/2}      W: eta n^{1+S/2}

    `p` = `homogeneity`: 1 for ReLU and for smooth activations with sigma(0) = 0 != sigma'(0). The
    first step multiplies tiny gradients by large rates: use float64.
    """
    program = naive_ip(activation, hidden, eta)
    s = sum(homogeneity**k for k in range(hidden))
    first = _step(program.predict, eta, first=(1 + s) / 2, hidden=1 + s / 2)
    return program._replace(first_step=first)
