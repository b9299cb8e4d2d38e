"""Kernels of networks at arrays of inputs, in blocks."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from tplimit import arguments
from tplimit._jax import is_traced
from tplimit.errors import ActivationError
from tplimit.kernels.duals.activations import Activation, Dual
from tplimit.kernels.recursions.layers import (
    Kernel,
    Layer,
    LayerLike,
    activation as activation_layer,
    dense,
    repeat,
    serial,
)

#: Rows and columns of a block: its temporaries stay in the cache.
BLOCK = 256


@dataclass(frozen=True)
class Network:
    """A layer applied to data: ``network(x1, x2)`` is the `Kernel` of its outputs.

    Attributes:
        layer: what is applied, from the kernel ``x1 x2ᵀ / d`` of the inputs on.
    """

    layer: Layer

    def __call__(self, x1: ArrayLike, x2: ArrayLike | None = None, *, block: int = BLOCK) -> Kernel:
        """The kernels at all pairs of inputs.

        Args:
            x1: inputs (n1, d). Their dtype, and JAX's flag, decide between float32 and float64.
            x2: inputs (n2, d); None stands for ``x1``, at half the cost, exactly symmetric.
            block: pairs are worked on in blocks of this many rows and columns; beside the two
                results only a few arrays of that size are held.

        Raises:
            ValueError: wrong shapes, or inputs that are not finite.
            ActivationError: a moment is infinite or exceeds the range of the dtype.
        """
        block = arguments.whole("block", block, example=BLOCK)
        a, b = _inputs(x1, x2)
        rows, columns = _numbered(a, b)
        nngp, ntk, var1, var2, finite = _gram(self.layer, a, b, rows, columns, block=block)
        if not is_traced(finite) and not finite:
            raise ActivationError(
                "the kernel is not finite",
                operation=f"kernel of {a.shape[0]} x {(a if b is None else b).shape[0]} inputs",
                advice="A second moment of the activations is infinite or too large: lower w_std "
                "or the scale of the inputs, or compute in float64.",
            )
        return Kernel(nngp, ntk, var1, var2)


def network(*layers: LayerLike) -> Network:
    """The network of layers, one after the other, on inputs (n, d) with kernel ``x1 x2ᵀ / d``.

    >>> from tplimit.kernels import activation, dense, residual
    >>> block = residual(activation("tanh"), dense(0.5))
    >>> net = network(dense(), block, block, activation("tanh"), dense())
    >>> net(jnp.ones((2, 3))).ntk.shape
    (2, 2)
    """
    return Network(serial(*layers))


def mlp(
    depth: int,
    activation: Activation | Dual = "relu",
    w_std: ArrayLike = 1.0,
    b_std: ArrayLike = 0.0,
) -> Network:
    """A multilayer perceptron in the NTK parameterization, all weights and biases trained.

        h^1     = w_std W^1 x / sqrt(d) + b_std b^1
        h^{l+1} = w_std W^{l+1} φ(h^l) / sqrt(n) + b_std b^{l+1}

    The output is the affine layer after ``depth`` activations; parameters start as N(0, 1).
    ``mlp(...)(x1, x2)`` has ``.nngp``, the covariance of the initial output, and ``.ntk``, both of
    shape (n1, n2).

    Args:
        depth: number of hidden layers; 0 is a linear model.
        activation: φ, a name or a JAX function (`tplimit.kernels.dual`).
        w_std, b_std: the same in all layers; they may be traced.

    >>> x = jnp.array([[3.0, 4.0]])
    >>> mlp(1, "relu")(x).ntk  # E[φφ] = |x|²/2d, plus |x|²/d times E[φ'φ'] = 1/2
    Array([[12.5]], dtype=float32)
    """
    depth = arguments.whole("depth", depth, least=0, example=2)
    hidden = dense(w_std, b_std), activation_layer(activation)
    return network(repeat(depth, *hidden), dense(w_std, b_std))


def _inputs(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Array, Array | None]:
    given = [arguments.numbers("x1", x1)]
    given += [] if x2 is None else [arguments.numbers("x2", x2)]
    dtype = jnp.result_type(*given, float)
    arrays = [jnp.asarray(x, dtype) for x in given]
    for x in arrays:
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"inputs are an array (number of points, features), not {x.shape}")
        if not is_traced(x) and not jnp.isfinite(x).all():
            raise ValueError("inputs must be finite, without NaN")
    if arrays[0].shape[1] != arrays[-1].shape[1]:
        shapes = " and ".join(str(x.shape) for x in arrays)
        raise ValueError(f"inputs have different numbers of features: {shapes}")
    return arrays[0], None if x2 is None else arrays[1]


def _input_kernel(x1: Array, x2: Array) -> Kernel:
    d = x1.shape[1]
    # Accumulated in full precision on every device.
    nngp = jnp.matmul(x1, x2.T, precision="highest") / d
    return Kernel(nngp, jnp.zeros_like(nngp), _variance(x1), _variance(x2))


def _variance(x: Array) -> Array:
    return jnp.sum(x * x, axis=-1) / x.shape[-1]


def _numbered(x1: Array, x2: Array | None) -> tuple[Array, Array]:
    """Numbers of the points, where points that coincide have the same one.

    What JAX traces has no values yet: each of its points coincides with itself only.
    """
    n1, n2 = len(x1), 0 if x2 is None else len(x2)
    if is_traced(x1) or is_traced(x2):
        numbers = np.arange(n1 + n2)
    else:
        numbers = distinct([x1] if x2 is None else [x1, x2])[1]
    rows = jnp.asarray(numbers[:n1], jnp.int32)
    return rows, rows if x2 is None else jnp.asarray(numbers[n1:], jnp.int32)


def distinct(arrays: Sequence[Array]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the distinct points among those of all arrays, and for each point its place there.

    >>> distinct([jnp.array([[1.0], [2.0]]), jnp.array([[2.0]])])
    (array([0, 1]), array([0, 1, 1]))
    """
    places: list[int] = []
    seen: dict[bytes, int] = {}
    numbers: list[int] = []
    points = np.concatenate([np.asarray(x) for x in arrays]) + 0  # no -0.0
    for place, point in enumerate(points):
        number = seen.setdefault(point.tobytes(), len(seen))
        if number == len(places):
            places.append(place)
        numbers.append(number)
    return np.asarray(places), np.asarray(numbers)


def _on_the_diagonal(layer: Layer, x: Array) -> Kernel:
    """The kernel of each point with itself, where correlations are exactly 1."""
    var = _variance(x)
    return layer(Kernel(var, jnp.zeros_like(var), var, var, diagonal=True))


@functools.partial(jax.jit, static_argnames="block")
def _gram(
    layer: Layer,
    x1: Array,
    x2: Array | None,
    number1: Array,
    number2: Array,
    *,
    block: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """``nngp``, ``ntk``, ``var1``, ``var2``, and whether all is finite; numbers as `_numbered`."""
    rows, columns = x1, x1 if x2 is None else x2
    n1, n2 = len(rows), len(columns)
    b1, b2 = min(block, n1), min(block, n2)
    pairs = [
        (i, j)
        # The last block overlaps the one before: no padding.
        for i in (min(i, n1 - b1) for i in range(0, n1, b1))
        for j in (min(j, n2 - b2) for j in range(0, n2, b2))
        if x2 is not None or i <= j
    ]

    def one(state: Any, corner: Array) -> tuple[Any, None]:
        nngp, ntk, finite = state
        i, j = corner
        x, y = lax.dynamic_slice_in_dim(rows, i, b1), lax.dynamic_slice_in_dim(columns, j, b2)
        found = layer(_input_kernel(x, y))
        finite &= jnp.isfinite(found.nngp).all() & jnp.isfinite(found.ntk).all()
        nngp = lax.dynamic_update_slice(nngp, found.nngp, (i, j))
        ntk = lax.dynamic_update_slice(ntk, found.ntk, (i, j))
        if x2 is None:
            nngp = lax.dynamic_update_slice(nngp, found.nngp.T, (j, i))
            ntk = lax.dynamic_update_slice(ntk, found.ntk.T, (j, i))
        return (nngp, ntk, finite), None

    empty = jnp.zeros((n1, n2), x1.dtype)
    start = (empty, empty, jnp.asarray(True))
    (nngp, ntk, finite), _ = lax.scan(one, start, jnp.asarray(pairs, jnp.int32))
    own = _on_the_diagonal(layer, rows)
    var2 = own.nngp if x2 is None else _on_the_diagonal(layer, columns).nngp
    same = number1[:, None] == number2
    nngp, ntk = (
        jnp.where(same, at[:, None], pairs) for at, pairs in ((own.nngp, nngp), (own.ntk, ntk))
    )
    return nngp, ntk, own.nngp, var2, finite
