"""Kernels at initialisation of any function written in plain JAX.

The tangent kernel ``Θ(x, x') = Σ_θ ∂f(x)/∂θ ∂f(x')/∂θ`` is a program: a derivative along a
gradient. The covariance of the initial function is one too, where the output is linear in some of
the parameters (a readout ``v`` of variances ``s²``, independent of the rest):

    E[f(x) f(x')] = Σ_v s² ∂f(x)/∂v ∂f(x')/∂v.

So both have a limit by particles, for every program that `tplimit.limit` takes, with tied weights,
normalisation, attention. Programs that are recognised as dense layers and pointwise functions of
Gaussian vectors have it in closed form (`recognition`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit import arguments
from tplimit.arguments import inf
from tplimit.declare.initialisers import declarations
from tplimit.declare.joined import of_parts
from tplimit.declare.parameters import Parameter, is_parameter
from tplimit.declare.widths import Scale, Width
from tplimit.errors import LimitError
from tplimit.kernels.programs.recognition import NotRecognised, program_of, recognised
from tplimit.observables.tangent import tangent_kernel
from tplimit.program import dependence
from tplimit.program.equations import Program, Slot
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.limits import limit
from tplimit.transforms.opaque import aval_of
from tplimit.transforms.sampling import sample

Method = Literal["auto", "closed_form", "particles"]
Apply = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class KernelMatrix(np.lib.mixins.NDArrayOperatorsMixin):
    """A kernel at all pairs of inputs; in arithmetic it is its value.

    Attributes:
        value: (n1, n2).
        stderr: standard error of each entry, 0 for closed forms, NaN of what is not finite.
        method: "closed_form" or "particles".
    """

    value: Array
    stderr: Array
    method: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of the sources, for `tplimit.cite`."""
        return ("jacot2018", "lee2018")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.value, dtype)

    def __jax_array__(self) -> Array:
        return self.value

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, KernelMatrix) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)


def nngp(
    apply: Apply,
    theta: Any,
    x1: Any,
    x2: Any = None,
    method: Method = "auto",
    *,
    samples: int = 2**13,
    replicates: int = 4,
    key: Array | None = None,
) -> KernelMatrix:
    """Covariance of the initial outputs of ``apply(theta, x)`` as widths go to infinity.

    Args:
        apply: plain JAX; ``x`` has the points along its first axis (of one point, ``x[None]``) and
            so have the outputs, (n,) or (n, k); of several outputs, which have one kernel, the
            first is taken.
        theta: declared parameters (`tplimit.normal`, ...), or what `tplimit.declare` takes.
        x1, x2: inputs; None stands for ``x1``.
        method: "closed_form" evaluates a recursion read off the program, "particles" samples;
            "auto" samples where there is no recursion.
        samples, replicates: particles, and independent repetitions for the error bars.
        key: random key of the particles, by default ``jax.random.key(0)``.

    Raises:
        TypeError: an argument is of another kind, such as an integer as ``key``.
        ValueError: inputs or outputs without an axis of points, or inputs that are not finite;
            another argument is out of range.
        LimitError: the outputs are not linear in any parameters; errors of `tplimit.limit`;
            a program that is not recognised, for "closed_form", with the line where it is not.

    >>> import tplimit as tp
    >>> n = tp.Width("n")
    >>> theta = {"U": tp.normal((2, n)), "v": tp.normal((n,), std=n**-0.5)}
    >>> f = lambda t, x: jax.nn.relu(x @ t["U"]) @ t["v"]
    >>> x = jnp.array([[3.0, 4.0]])
    >>> kernel = nngp(f, theta, x)
    >>> kernel.value, kernel.method
    (Array([[12.5]], dtype=float32), 'closed_form')
    """
    return _kernel("nngp", apply, theta, x1, x2, method, samples, replicates, key)


def ntk(
    apply: Apply,
    theta: Any,
    x1: Any,
    x2: Any = None,
    method: Method = "auto",
    *,
    samples: int = 2**13,
    replicates: int = 4,
    key: Array | None = None,
) -> KernelMatrix:
    """Tangent kernel of ``apply(theta, x)`` at initialisation, all declared parameters trained.

    Arguments and errors as for `nngp`; outputs need not be linear in anything. It is the kernel of
    gradient flow with rate 1 for each parameter as it is declared: parameters of standard deviation
    1 with the factors in the program (NTK parameterization) have a limit, those of standard
    deviation ``n^(-1/2)`` mostly diverge.

    Source: Jacot, Gabriel and Hongler, arXiv 1806.07572; Yang, *Tensor Programs II*, 2006.14548.

    >>> import tplimit as tp
    >>> n = tp.Width("n")
    >>> theta = {"U": tp.normal((2, n)), "v": tp.normal((n,))}
    >>> f = lambda t, x: jax.nn.relu(x @ t["U"]) @ t["v"] / t["v"].shape[0] ** 0.5
    >>> ntk(f, theta, jnp.array([[3.0, 4.0]])).value
    Array([[25.]], dtype=float32)
    """
    return _kernel("ntk", apply, theta, x1, x2, method, samples, replicates, key)


def _kernel(
    which: Literal["nngp", "ntk"],
    apply: Apply,
    theta: Any,
    x1: Any,
    x2: Any,
    method: Method,
    samples: int,
    replicates: int,
    key: Array | None,
) -> KernelMatrix:
    arguments.function("apply", apply, "(theta, x) -> outputs")
    apply, theta = of_parts(apply, declarations(theta))
    arguments.one_of("method", method, ("auto", "closed_form", "particles"))
    samples, replicates = arguments.samples(samples), arguments.replicates(replicates)
    key = jax.random.key(0) if key is None else arguments.key(key)
    a = _inputs("x1", x1)
    b = a if x2 is None else _inputs("x2", x2)
    _check(theta, a, b)
    if all(isinstance(x, jax.Array) for x in (a, b)) and a.shape[1:] != b.shape[1:]:
        raise ValueError(f"x1 of shape {a.shape} and x2 of shape {b.shape} hold different points")
    for x in (a,) if x2 is None else (a, b):
        _check_outputs(apply, theta, x)
    if method != "particles":
        try:
            value = recognised(apply, theta, a, b, which)
            exact = jnp.where(jnp.isfinite(value), 0.0, jnp.nan).astype(value.dtype)
            return KernelMatrix(value, exact, "closed_form")
        except NotRecognised as reason:
            if method == "closed_form":
                raise reason.error from None
    found = _by_particles(which, apply, theta, a, b, samples, replicates, key)
    error = jnp.full(found.shape[1:], jnp.nan)
    if len(found) > 1:
        error = jnp.std(found, axis=0, ddof=1) / len(found) ** 0.5
    return KernelMatrix(jnp.mean(found, axis=0), error, "particles")


def _inputs(name: str, x: Any) -> Any:
    """Inputs as arrays of JAX: one, from nested lists of numbers too, or a tree of arrays."""
    leaves = jax.tree.leaves(x)
    if not leaves or all(isinstance(leaf, (bool, int, float, complex)) for leaf in leaves):
        x = np.asarray(arguments.points(name, x))
    arguments.arrays(name, x, "pass inputs with the points along the first axis")
    return jax.tree.map(jnp.asarray, x)


def _check(theta: Any, a: Any, b: Any) -> None:
    if not any(is_parameter(leaf) for leaf in jax.tree.leaves(theta, is_leaf=is_parameter)):
        raise LimitError(
            "No parameter is declared.", advice="Declare them: theta = {'W': tp.normal((d, n))}."
        )
    for x in jax.tree.leaves((a, b)):
        if jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"inputs are float32 or float64, not {x.dtype}")
        if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(jnp.isfinite(x).all()):
            raise ValueError("inputs must be finite, without NaN")


def _check_outputs(apply: Apply, theta: Any, x: Any) -> None:
    """The points are along the first axis of inputs and outputs."""
    single = isinstance(x, jax.Array)
    given = f"x of shape {x.shape}" if single else "these inputs"
    advice = (
        "apply takes the points along the first axis of x and returns one array, (points,) or "
        "(points, outputs). Of a single point pass x[None]; of a function of one point pass "
        "lambda theta, x: jax.vmap(lambda one: apply(theta, one))(x)"
    )
    if single and x.ndim and not len(x):
        raise ValueError(f"x of shape {x.shape} holds no points")
    try:
        program = program_of(apply, theta, x)
    except (TypeError, ValueError, IndexError) as error:
        if not single or x.ndim > 1 or isinstance(error, LimitError):
            raise
        # The user's code wants more axes than it was given.
        raise ValueError(f"apply failed for {given}: {error}\n{advice}") from error
    outputs = program.out_avals
    if len(outputs) != 1:
        raise ValueError(f"apply returns {len(outputs)} arrays for {given}: {advice}")
    shape, dtype = outputs[0].shape, outputs[0].dtype
    if not shape or (single and shape[:1] != x.shape[:1]):
        raise ValueError(f"apply returns an array of shape {shape} for {given}: {advice}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"apply returns numbers of dtype {dtype}, which have no gradients")


def _by_particles(
    which: str, apply: Apply, theta: Any, a: Any, b: Any, samples: int, replicates: int, key: Array
) -> Array:
    """One kernel matrix for each replicate."""
    keys = jax.random.split(key, replicates)
    draw = lambda key: sample(theta, key, width=inf, samples=samples)
    first = draw(keys[0])
    if which == "ntk":
        weights = lambda arrays: [float(is_parameter(one)) for one in _leaves(theta)]
    else:
        chosen = _readout(apply, first, a)
        weights = lambda arrays: _variances(theta, arrays, chosen)
    tree = jax.tree.structure(first)
    rates = lambda theta: jax.tree.unflatten(tree, weights(jax.tree.leaves(theta)))
    kernel = limit(tangent_kernel(lambda theta, x: _first_output(apply(theta, x)), rates))
    return jnp.stack([kernel(first if i == 0 else draw(k), a, b) for i, k in enumerate(keys)])


def _leaves(theta: Any) -> list[Any]:
    return jax.tree.leaves(theta, is_leaf=is_parameter)


def _first_output(f: Array) -> Array:
    return f.reshape(f.shape[0], -1)[:, 0]


def _variances(theta: Any, arrays: Sequence[Any], chosen: Sequence[bool]) -> list[float]:
    """Variances of the chosen parameters at the widths of these arrays, 0 for the others."""
    declared = _leaves(theta)
    sizes = _sizes(declared, arrays)
    return [
        one.std.at(sizes) ** 2 if use and is_parameter(one) else 0.0
        for one, use in zip(declared, chosen, strict=True)
    ]


def _sizes(declared: Sequence[Any], arrays: Sequence[Any]) -> dict[str, int]:
    """Lengths of the widths, from the shapes of parameters."""
    found: dict[str, int] = {}
    for one, array in zip(declared, arrays, strict=True):
        dims = one.shape if isinstance(one, Parameter) else ()
        for dim, length in zip(dims, array.shape, strict=False):
            if isinstance(dim, Width):
                found[dim.name] = length
            elif isinstance(dim, Scale) and len(dim.powers) == 1:
                found[dim.powers[0][0].name] = round(length / dim.coefficient)
    return found


# --- the parameters that the outputs are linear in


def _readout(apply: Apply, theta: Any, x: Any) -> list[bool]:
    """For each leaf whether it is of the readout: parameters in which outputs are jointly linear.

    Raises:
        LimitError: there are none, or outputs do not vanish with them.
    """
    leaves, tree = jax.tree.flatten(((theta, x), {}))
    program, _ = Evaluator(apply).program(tree, [aval_of(leaf) for leaf in leaves], leaves)
    count = len(jax.tree.leaves(theta))
    slots = program.inputs[:count]
    chosen: set[Slot] = set()
    for slot in sorted(slots, key=lambda slot: -_last_use(program, slot)):
        if dependence.degree(program, chosen | {slot}) in ("linear", "affine"):
            chosen.add(slot)
    if not chosen or dependence.degree(program, chosen) != "linear":
        raise LimitError(
            "The outputs are not linear in any of the parameters, so the covariance of the initial "
            "function is not read off their gradients.",
            advice="The last layer has to be a readout, such as x @ theta['v']; the tangent kernel "
            "(tp.ntk) needs none.",
        )
    return [slot in chosen for slot in slots]


def _last_use(program: Program, slot: Slot) -> int:
    users = (i for i, e in enumerate(program.equations) if slot in dependence.slots(e))
    return max(users, default=-1)
