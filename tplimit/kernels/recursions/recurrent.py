"""Kernels of recurrent networks, whose weights are the same at all times."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from tplimit import arguments
from tplimit._jax import is_traced
from tplimit.errors import ActivationError
from tplimit.kernels.duals.activations import Activation, Dual, dual
from tplimit.kernels.recursions.layers import Kernel

Output = Literal["last", "mean", "all"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recurrent:
    """See `rnn`."""

    phi: Dual
    w_std: ArrayLike
    u_std: ArrayLike
    b_std: ArrayLike
    v_std: ArrayLike

    def __call__(
        self,
        x1: ArrayLike,
        x2: ArrayLike | None = None,
        *,
        lengths1: ArrayLike | None = None,
        lengths2: ArrayLike | None = None,
        output: Output = "last",
    ) -> Kernel:
        """The kernels of the outputs for all pairs of sequences.

        Args:
            x1: sequences (n1, T1, d), padded at their ends to a common length.
            x2: sequences (n2, T2, d); None stands for ``x1``.
            lengths1, lengths2: how many elements of each sequence count, (n1,) and (n2,); by
                default all.
            output: read out the state after the ``"last"`` element, or the ``"mean"`` of the states
                over the sequence, both with kernels (n1, n2); or ``"all"`` states, with kernels
                (n1, n2, T1, T2), one entry for every pair of lengths, whatever the given ones.

        Raises:
            ValueError: wrong shapes or lengths, or inputs that are not finite.
            ActivationError: a moment is infinite or exceeds the range of the dtype.
        """
        if output not in ("last", "mean", "all"):
            raise ValueError(f'output is "last", "mean" or "all", not {output!r}')
        given = [arguments.numbers("x1", x1)]
        given += [] if x2 is None else [arguments.numbers("x2", x2)]
        dtype = jnp.result_type(*given, float)
        arrays = [_sequences(x, dtype) for x in given]
        a, b = arrays[0], arrays[-1]
        if a.shape[2] != b.shape[2]:
            raise ValueError(f"inputs have different numbers of features: {a.shape}, {b.shape}")
        first = _lengths(lengths1, a)
        second = first if x2 is None else _lengths(lengths2, b)
        found = _recur(self, a, None if x2 is None else b, first, second, output)
        finite = jnp.isfinite(found.nngp).all() & jnp.isfinite(found.ntk).all()
        if not is_traced(finite) and not finite:
            raise ActivationError(
                "the kernel is not finite",
                operation=f"kernel of sequences {a.shape} and {b.shape}",
                advice="It grows along the sequence: lower w_std, or compute in float64.",
            )
        return found


def rnn(
    activation: Activation | Dual = "tanh",
    w_std: ArrayLike = 1.0,
    u_std: ArrayLike = 1.0,
    b_std: ArrayLike = 0.0,
    v_std: ArrayLike = 1.0,
) -> Recurrent:
    """A simple recurrent network with tied weights, in the NTK parameterization.

        h_t = w_std W s_{t-1} / sqrt(n) + u_std U x_t / sqrt(d) + b_std b
        s_t = φ(h_t),  s_0 = 0
        f   = v_std v · s / sqrt(n),  s the last state or the mean of the states

    All of W, U, b, v start as N(0, 1) and are trained. For two sequences and all pairs of times

        K_{t,r}   = w_std² E[φ(h_{t-1}) φ(h'_{r-1})] + u_std² x_t · x'_r / d + b_std²
        Θ_{t,r}   = K_{t,r} + w_std² E[φ'(h_{t-1}) φ'(h'_{r-1})] Θ_{t-1,r-1}
        output:     v_std² (E[φ(h_t) φ(h'_r)] + E[φ'(h_t) φ'(h'_r)] Θ_{t,r})

    without the terms of times before 1; the covariance is the first term of the output. Sources:
    Yang, *Tensor Programs I* (arXiv 1910.12478) and *II* (arXiv 2006.14548).

    >>> x = jnp.ones((3, 7, 2))
    >>> rnn("erf")(x, lengths1=jnp.array([7, 5, 6])).ntk.shape
    (3, 3)
    """
    return Recurrent(dual(activation), w_std, u_std, b_std, v_std)


def _sequences(x: ArrayLike, dtype: Any) -> Array:
    x = jnp.asarray(x, dtype)
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"inputs are real sequences (number, length, features), not {x.shape}")
    if not is_traced(x) and not jnp.isfinite(x).all():
        raise ValueError("inputs must be finite, without NaN, also where they are padded")
    return x


def _lengths(lengths: ArrayLike | None, x: Array) -> Array:
    count, longest = x.shape[:2]
    if lengths is None:
        return jnp.full(count, longest)
    found = jnp.asarray(lengths)
    if found.shape != (count,) or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"lengths are {count} integers, not {found.dtype}{found.shape}")
    if not is_traced(found) and not ((found >= 1) & (found <= longest)).all():
        raise ValueError(f"lengths must be between 1 and {longest}")
    return found


def _later(x: Array) -> Array:
    """The same at the next time, along the last axis; 0 at the first."""
    return jnp.pad(x[..., :-1], [(0, 0)] * (x.ndim - 1) + [(1, 0)])


def _variances(net: Recurrent, x: Array) -> tuple[Array, Array]:
    """``K_{t,t}`` of each sequence, and ``E[φ(h_t)²]``: (n, T)."""
    drive = net.u_std**2 * jnp.sum(x * x, -1) / x.shape[2] + net.b_std**2

    def step(recurrent: Array, now: Array) -> Any:
        var = recurrent + now
        value = net.phi.diagonal(var)[0]
        return net.w_std**2 * value, (var, value)

    var, value = lax.scan(step, jnp.zeros_like(drive[:, 0]), drive.T)[1]
    return var.T, value.T


@functools.partial(jax.jit, static_argnames="output")
def _recur(
    net: Recurrent, x1: Array, x2: Array | None, lengths1: Array, lengths2: Array, output: Output
) -> Kernel:
    y = x1 if x2 is None else x2
    weights1, weights2 = (
        _weights(lengths, x.shape[1], output).astype(x.dtype)
        for lengths, x in ((lengths1, x1), (lengths2, y))
    )
    nngp, ntk = _pairs(net, "ij", x1, y, weights1, weights2, output, same=x2 is None)
    if output == "all":
        var1, var2 = (jnp.asarray(net.v_std**2 * _variances(net, x)[1]) for x in (x1, y))
    else:
        var1 = _pairs(net, "i", x1, x1, weights1, weights1, output, same=True)[0]
        var2 = _pairs(net, "j", y, y, weights2, weights2, output, same=True)[0]
    return Kernel(nngp, ntk, var1, var2)


def _pairs(
    net: Recurrent,
    which: str,
    x1: Array,
    x2: Array,
    weights1: Array,
    weights2: Array,
    output: Output,
    same: bool,
) -> tuple[Array, Array]:
    """Both kernels of the output.

    Args:
        which: ``"ij"`` all pairs of sequences, or ``"i"`` or ``"j"`` each with itself.
        same: whether x1 is x2.
    """
    var1, var2 = (_variances(net, x)[0] for x in (x1, x2))
    first, second = which[0], which[-1]
    sequence, time = jnp.eye(len(x1), dtype=bool), jnp.arange(x2.shape[1])
    itself = sequence[..., None] if which == "ij" else jnp.ones((len(x1), 1), bool)
    multiply = functools.partial(jnp.einsum, precision="highest")
    over_pairs = lambda a, b: multiply(f"{first},{second}r->{which}r", a, b)
    ones1, ones2 = jnp.ones_like(var1[:, 0]), jnp.ones_like(var2)

    def step(state: Any, now: Any) -> Any:
        """One time of the first sequences and all times of the second."""
        value, through, totals = state  # E[φ φ] and Θ E[φ' φ'] at the time before
        t, x, var, weight = now
        K = net.w_std**2 * _later(value) + net.b_std**2
        K += net.u_std**2 * multiply(f"{first}d,{second}rd->{which}r", x, x2) / x.shape[1]
        variances = over_pairs(var, ones2), over_pairs(ones1, var2)
        if same:  # where rounding must not take the correlation away from 1
            K = jnp.where(itself & (time == t), variances[0], K)
        theta = K + net.w_std**2 * _later(through)
        value, slope = net.phi.moments(K, *variances)
        through = slope * theta
        out = net.v_std**2 * value, net.v_std**2 * (value + through)
        if output == "all":
            return (value, through, totals), out
        weights = over_pairs(weight, weights2)
        totals = tuple(a + jnp.sum(weights * k, -1) for a, k in zip(totals, out, strict=True))
        return (value, through, totals), None

    shape = (len(x1), len(x2)) if which == "ij" else (len(x1),)
    zero, total = jnp.zeros((*shape, x2.shape[1]), x1.dtype), jnp.zeros(shape, x1.dtype)
    times = jnp.arange(x1.shape[1]), jnp.moveaxis(x1, 1, 0), var1.T, weights1.T
    (_, _, totals), stacked = lax.scan(step, (zero, zero, (total, total)), times)
    if output == "all":
        return tuple(jnp.moveaxis(k, 0, 2) for k in stacked)  # type: ignore[return-value]
    return totals


def _weights(lengths: Array, longest: int, output: Output) -> Array:
    """Of each state in what is read out: (n, T)."""
    time = jnp.arange(1, longest + 1)
    if output == "last":
        return time == lengths[:, None]
    return (time <= lengths[:, None]) / lengths[:, None]
