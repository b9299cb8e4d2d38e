"""Kernels of infinitely wide networks at initialisation: NNGP and NTK by exact recursions.

>>> import jax
>>> x = jax.random.normal(jax.random.key(0), (5, 3))
>>> kernel = mlp(depth=2, activation="relu", w_std=2**0.5, b_std=0.1)(x)
>>> kernel.nngp.shape, kernel.ntk.shape
((5, 5), (5, 5))
"""

from tplimit.gaussian.activations import Dual, dual, hermite, leaky_relu, polynomial, relu_power
from tplimit.kernels._neural_tangents import from_neural_tangents, import_neural_tangents
from tplimit.kernels.layers import (
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
from tplimit.kernels.network import Network, mlp, network
from tplimit.kernels.recurrent import Recurrent, rnn

__all__ = [
    "Dual",
    "Kernel",
    "Layer",
    "Network",
    "Recurrent",
    "activation",
    "add",
    "bias",
    "dense",
    "dual",
    "from_neural_tangents",
    "hermite",
    "import_neural_tangents",
    "layer_norm",
    "leaky_relu",
    "mlp",
    "multiply",
    "network",
    "polynomial",
    "relu_power",
    "repeat",
    "residual",
    "rnn",
    "serial",
]
