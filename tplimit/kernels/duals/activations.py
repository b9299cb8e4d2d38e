"""Dual activations: expectations of an activation over a pair of Gaussian variables.

    value(cov, var1, var2) = E[φ(u) φ(v)],     derivative(cov, var1, var2) = E[φ'(u) φ'(v)]

for a centred Gaussian pair with ``E[u v] = cov``, ``E[u²] = var1``, ``E[v²] = var2``. `dual` gives
them for an activation, by its name or as a JAX function: in closed form where one is known
(`closed_forms`), else by quadrature (`quadrature`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tplimit import arguments
from tplimit._jax import is_traced, jaxpr_as_fun, traced
from tplimit.caching.store import kept
from tplimit.errors import ActivationError
from tplimit.kernels.duals import closed_forms
from tplimit.kernels.duals.closed_forms import Moments
from tplimit.kernels.duals.quadrature import quadrature
from tplimit.networks.activations import ACTIVATIONS, Activation, resolve

__all__ = [
    "Dual",
    "dual",
    "hermite",
    "leaky_relu",
    "polynomial",
    "relu_power",
]

#: A covariance may exceed the root of the product of the variances by this share: round-off.
ROUND_OFF = {"float32": 1e-3, "float64": 1e-6}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Dual:
    """The two expectations of an activation; arrays in, arrays out, ``jit``-able, differentiable.

    ``cov``, ``var1``, ``var2`` broadcast: for a Gram matrix ``cov`` of shape (m, n) they are
    ``var1[:, None]`` and ``var2[None, :]``. float32 and float64 are respected. Concrete arguments
    are checked; those that JAX traces are not, and a correlation beyond ±1 is then ±1.

    Attributes:
        name: of the activation.
        function: the activation, a JAX function of one array.
        moments: ``(cov, var1, var2)`` to both expectations, without checks.
        diagonal: ``var`` to both expectations at ``cov = var1 = var2 = var``.
        estimate: of the errors of both, None for closed forms; see `error`.

    >>> relu = dual("relu")
    >>> float(relu.value(0.0, 1.0, 1.0)), float(relu.derivative(1.0, 1.0, 1.0))  # 1/(2 pi), 1/2
    (0.15915..., 0.5)
    """

    name: str
    function: Callable[[Any], Any] = field(repr=False)
    moments: Moments = field(repr=False)
    diagonal: Callable[[Array], tuple[Array, Array]] = field(repr=False)
    estimate: Moments | None = field(default=None, repr=False)

    @property
    def closed_form(self) -> bool:
        """Whether the expectations are closed forms, else by quadrature."""
        return self.estimate is None

    def value(self, cov: ArrayLike, var1: ArrayLike, var2: ArrayLike) -> Array:
        """``E[φ(u) φ(v)]``.

        Raises:
            ValueError: concrete arguments hold NaN, a negative variance, or a correlation that
                exceeds ±1 by more than round-off.
            ActivationError: a second moment is infinite.
        """
        return self.both(cov, var1, var2)[0]

    def derivative(self, cov: ArrayLike, var1: ArrayLike, var2: ArrayLike) -> Array:
        """``E[φ'(u) φ'(v)]``, φ' almost everywhere: jumps of φ do not count. Raises as `value`."""
        return self.both(cov, var1, var2)[1]

    def both(self, cov: ArrayLike, var1: ArrayLike, var2: ArrayLike) -> tuple[Array, Array]:
        """`value` and `derivative`, which share most of their work."""
        found = _evaluate(self.moments, *_checked(cov, var1, var2))
        if not is_traced(found[0]) and not (jnp.isfinite(found[0]) & jnp.isfinite(found[1])).all():
            raise ActivationError(
                "the activation's second moment, or that of its derivative, is infinite or too "
                f"large for {found[0].dtype}",
                operation=f"dual of {self.name}",
                advice="Lower the variances, or compute in float64.",
            )
        return found

    def error(self, cov: ArrayLike, var1: ArrayLike, var2: ArrayLike) -> tuple[Array, Array]:
        """Estimates of the absolute errors of `value` and `derivative`, without those of rounding.

        0 for closed forms. By quadrature: what a Hermite series leaves out at most, or the change
        from a rule with fewer nodes.

        >>> bool(dual("tanh").error(0.5, 1.0, 1.0)[0] < 1e-6)
        True
        """
        arrays = _checked(cov, var1, var2)
        if self.estimate is None:
            zero = jnp.zeros_like(arrays[0] + arrays[1] + arrays[2])
            return zero, zero
        return _evaluate(self.estimate, *arrays)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(moments: Moments, cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
    shape = jnp.broadcast_shapes(cov.shape, var1.shape, var2.shape)
    value, derivative = moments(cov, var1, var2)
    return jnp.broadcast_to(value, shape), jnp.broadcast_to(derivative, shape)


def _checked(*given: ArrayLike) -> list[Array]:
    """Arrays of one floating dtype and equal rank, with possible covariances where concrete."""
    names = ("cov", "var1", "var2")
    found = [arguments.numbers(name, a) for name, a in zip(names, given, strict=True)]
    dtype = jnp.result_type(*found, float)
    arrays = [jnp.asarray(a, dtype) for a in found]
    if not any(map(is_traced, arrays)):
        cov, var1, var2 = (np.asarray(a, np.float64) for a in arrays)
        if not all(np.isfinite(a).all() for a in (cov, var1, var2)):
            raise ValueError("covariances and variances must be finite numbers, without NaN")
        if (var1 < 0).any() or (var2 < 0).any():
            raise ValueError("variances must not be negative")
        excess = np.abs(cov) - (1 + ROUND_OFF.get(str(dtype), 0.05)) * np.sqrt(var1 * var2)
        if (excess > np.finfo(np.float32).tiny).any():
            raise ValueError(
                "no Gaussian pair has these covariances: |cov| exceeds sqrt(var1 var2). For a Gram "
                "matrix pass var1[:, None] and var2[None, :]"
            )
    return arrays


def _closed(name: str, function: Callable[[Any], Any], moments: Moments) -> Dual:
    return Dual(name, function, moments, lambda var: moments(var, var, var))


def leaky_relu(slope: float) -> Dual:
    """max(x, 0) + ``slope`` min(x, 0)."""
    slope = arguments.real("slope", slope)
    function = lambda x: jnp.where(x >= 0, x, slope * x)
    return _closed(f"leaky_relu({slope})", function, closed_forms.piecewise_linear(slope, 1.0))


def relu_power(degree: int) -> Dual:
    """max(x, 0)^degree, ``degree`` 0 (the step function), 1, 2, ...

    >>> float(relu_power(2).value(1.0, 1.0, 1.0))  # E[u^4] / 2
    1.5
    """
    arguments.whole("degree", degree, least=0)
    function = lambda x: jnp.where(x > 0, x, 0) ** degree if degree else jnp.heaviside(x, 0.5)
    return _closed(f"relu_power({degree})", function, closed_forms.relu_power(int(degree)))


def polynomial(coefficients: Sequence[float]) -> Dual:
    """Σ_n ``coefficients[n]`` x^n."""
    c = tuple(arguments.real("a coefficient", a) for a in coefficients)
    if not c:
        raise ValueError("coefficients must be one or more finite numbers")
    function = lambda x: jnp.polyval(jnp.asarray(c[::-1], jnp.result_type(x)), x)
    return _closed(f"polynomial{c}", function, closed_forms.polynomial(c))


def hermite(coefficients: Sequence[float]) -> Dual:
    """Σ_k ``coefficients[k]`` h_k(x), with h_k orthonormal for the standard normal law.

    For unit variances the value is Σ_k ``coefficients[k]``² c^k, ``c`` the correlation.

    >>> float(hermite([0, 0, 1]).value(0.5, 1.0, 1.0))
    0.25
    """
    if not np.iterable(coefficients):
        raise TypeError(
            f"coefficients={arguments.shown(coefficients)} are no list of numbers: pass for "
            "instance [0, 0, 1] for h_2"
        )
    norms = [math.sqrt(math.factorial(k)) for k in range(len(coefficients))]
    given = [arguments.real("a coefficient", a) for a in coefficients]
    series = [a / norm for a, norm in zip(given, norms, strict=True)]
    found = polynomial(np.polynomial.hermite_e.herme2poly(series).tolist())
    return dataclasses.replace(found, name=f"hermite{tuple(map(float, coefficients))}")


#: Moments in closed form, by the name of the activation; all others are found by quadrature.
_CLOSED: Mapping[str, Moments] = MappingProxyType(
    {
        "abs": closed_forms.piecewise_linear(-1.0, 1.0),
        "cos": closed_forms.cos,
        "erf": closed_forms.erf,
        "exp": closed_forms.exp,
        "gaussian": closed_forms.gaussian,
        "gelu": closed_forms.gelu,
        "identity": closed_forms.identity,
        "leaky_relu": closed_forms.piecewise_linear(0.01, 1.0),
        "relu": closed_forms.relu_power(1),
        "relu2": closed_forms.relu_power(2),
        "sign": closed_forms.sign,
        "sin": closed_forms.sin,
        "square": closed_forms.polynomial([0, 0, 1]),
        "step": closed_forms.relu_power(0),
    }
)

#: JAX functions and the name under which they are known.
_KNOWN: Mapping[Callable[[Any], Any], str] = MappingProxyType(
    {
        **{function: name for name, function in ACTIVATIONS.items()},
        jnp.absolute: "abs",
        jax.lax.abs: "abs",
        jax.lax.cos: "cos",
        jax.lax.erf: "erf",
        jax.lax.exp: "exp",
        jax.lax.logistic: "sigmoid",
        jax.lax.sign: "sign",
        jax.lax.sin: "sin",
        jax.lax.square: "square",
        jax.lax.tanh: "tanh",
        jax.nn.gelu: "gelu_tanh",  # its default is the tanh approximation
        jax.nn.identity: "identity",
        jax.nn.swish: "silu",
    }
)


def name_of(function: Any) -> str | None:
    """The name under which a JAX function is known, or None."""
    return _KNOWN.get(function)


def dual(activation: "Activation | Dual") -> Dual:
    """The dual of an activation.

    Args:
        activation: a name in `ACTIVATIONS`; or a JAX function of one real argument, applied to
            every entry. One of JAX that has a closed form (``jax.nn.relu``, ...) gets it;
            ``jax.nn.gelu`` is its tanh approximation unless ``approximate=False``. A `Dual`
            comes back as it is.

    Raises:
        ValueError: no such name.

    >>> dual(jax.nn.relu) is dual("relu")
    True
    """
    if isinstance(activation, Dual):
        return activation
    if isinstance(activation, str):
        return _named(activation)
    for function, known in _KNOWN.items():  # by identity: a function need not be hashable
        if activation is function:
            return _named(known)
    if isinstance(activation, functools.partial) and not activation.args:
        given = activation.keywords
        if activation.func is jax.nn.gelu and set(given) == {"approximate"}:
            return _named("gelu_tanh" if given["approximate"] else "gelu")
        if activation.func is jax.nn.leaky_relu and set(given) == {"negative_slope"}:
            return leaky_relu(float(given["negative_slope"]))
    name = getattr(activation, "__name__", "activation")
    try:
        programs = {dtype: _program(activation, dtype) for dtype in ("float32", "float64")}
    except (TypeError, ValueError, IndexError):
        return _by_quadrature(name, activation)  # which says what is wrong

    # Kept as it is now, since it may read variables that change.
    make = lambda: _by_quadrature(name, activation, _elementwise(programs))
    return kept("dual", make, name, *programs.values())


def _elementwise(programs: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The function of arrays that has these programs for single numbers."""

    def function(x: Any) -> Any:
        x = jnp.asarray(x)
        program = jaxpr_as_fun(programs["float64" if x.dtype == np.float64 else "float32"])
        return jax.vmap(program)(x.reshape(-1, 1))[0].reshape(x.shape)

    return function


def _program(activation: Callable[[Any], Any], dtype: str) -> Any:
    """The jaxpr of a function of an array of one number."""
    with jax.enable_x64(dtype == "float64"):
        return traced(activation, jax.ShapeDtypeStruct((1,), dtype))[0]


@functools.cache
def _named(name: str) -> Dual:
    function = resolve(name)
    if name in _CLOSED:
        return _closed(name, function, _CLOSED[name])
    return _by_quadrature(name, function)


def _by_quadrature(
    name: str, function: Callable[[Any], Any], elementwise: Callable[[Any], Any] | None = None
) -> Dual:
    rule = quadrature(name, function, elementwise)

    def error(cov: Array, var1: Array, var2: Array) -> tuple[Array, Array]:
        return rule.error(0, cov, var1, var2), rule.error(1, cov, var1, var2)

    return Dual(name, rule.function, rule, rule.diagonal, error)
