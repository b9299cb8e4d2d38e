"""Kernels of infinitely wide networks by exact recursions, and training with them.

>>> import jax
>>> x = jax.random.normal(jax.random.key(0), (5, 3))
>>> kernel = mlp(depth=2, activation="relu", w_std=2**0.5, b_std=0.1)(x)
>>> kernel.nngp.shape, kernel.ntk.shape
((5, 5), (5, 5))
"""

from tplimit.kernels._neural_tangents import from_neural_tangents, import_neural_tangents
from tplimit.kernels.duals.activations import (
    Dual,
    dual,
    hermite,
    leaky_relu,
    polynomial,
    relu_power,
)
from tplimit.kernels.function_space.flows import flow
from tplimit.kernels.function_space.grams import gram
from tplimit.kernels.function_space.processes import Posterior, ensemble, posterior
from tplimit.kernels.function_space.runs import Ensemble, KernelRun
from tplimit.kernels.function_space.training import train
from tplimit.kernels.programs.programs import KernelMatrix, nngp, ntk
from tplimit.kernels.recursions import power_laws
from tplimit.kernels.recursions.layers import (
    Kernel,
    Layer,
    activation,
    add,
    bias,
    dense,
    layer_norm,
    multiply,
    repeat,
    residual,
    serial,
)
from tplimit.kernels.recursions.network import Network, mlp, network
from tplimit.kernels.recursions.recurrent import Recurrent, rnn
from tplimit.kernels.recursions.signatures import signature

__all__ = [
    "Dual",
    "Ensemble",
    "Kernel",
    "KernelMatrix",
    "KernelRun",
    "Layer",
    "Network",
    "Posterior",
    "Recurrent",
    "activation",
    "add",
    "bias",
    "dense",
    "dual",
    "ensemble",
    "flow",
    "from_neural_tangents",
    "gram",
    "hermite",
    "import_neural_tangents",
    "layer_norm",
    "leaky_relu",
    "mlp",
    "multiply",
    "network",
    "nngp",
    "ntk",
    "polynomial",
    "posterior",
    "power_laws",
    "relu_power",
    "repeat",
    "residual",
    "rnn",
    "serial",
    "signature",
    "train",
]
