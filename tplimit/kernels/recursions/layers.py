"""Layers as functions from `Kernel` to `Kernel`.

A layer of infinite width maps the second moments of its inputs to those of its outputs. With
``K`` the NNGP kernel (second moments of one coordinate over the initialisation) and ``Θ`` the NTK
(inner products of the gradients of one coordinate in all parameters), all in the NTK
parameterization:

    dense        K' = w_std² K + b_std²          Θ' = K' + w_std² Θ
    activation   K' = E[φ(u) φ(v)]               Θ' = Θ E[φ'(u) φ'(v)],     (u, v) ~ N(0, K)
    bias         K' = K + b_std²                 Θ' = Θ + b_std²
    layer norm   K' = K / sqrt(K(x,x) K(y,y))    Θ' = Θ / sqrt(K(x,x) K(y,y))
    sum          K' = Σ K_i                      Θ' = Σ Θ_i
    product      K' = Π K_i                      Θ' = Σ_i Θ_i Π_{j≠i} K_j

Sources: Jacot, Gabriel and Hongler (arXiv 1806.07572); Yang, *Tensor Programs II* (2006.14548).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from tplimit import arguments
from tplimit.errors import UnsupportedOperationError
from tplimit.kernels.duals.activations import Activation, Dual, dual


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """Second moments of a layer at all pairs of ``n1`` and ``n2`` inputs.

    Attributes:
        nngp: ``E[h(x1) h(x2)]`` of one coordinate, shape (n1, n2).
        ntk: inner product of the gradients of one coordinate in all parameters, shape (n1, n2).
        var1, var2: the NNGP kernel of each input with itself, shapes (n1,) and (n2,).
        gaussian: whether coordinates are Gaussian and centred, so that an activation may follow.
        fresh: whether they have weights of their own, independent of what their branch began with.
        diagonal: whether these are only the pairs (x, x): all arrays (n,), ``nngp = var1``.
    """

    nngp: Array
    ntk: Array
    var1: Array
    var2: Array
    gaussian: bool = field(default=False, metadata={"static": True})
    fresh: bool = field(default=False, metadata={"static": True})
    diagonal: bool = field(default=False, metadata={"static": True})

    def outer(self, combine: Callable[[Array, Array], Array]) -> Array:
        """``combine(var1, var2)`` at all pairs of the kernel."""
        if self.diagonal:
            return combine(self.var1, self.var2)
        return combine(self.var1[..., :, None], self.var2[..., None, :])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """A rule, and its numbers and inner layers: ``layer(kernel) = rule(kernel, *parts)``.

    The numbers may be traced: kernels can be differentiated in ``w_std``, for instance.
    """

    rule: Callable[..., Kernel] = field(metadata={"static": True})
    parts: tuple[Any, ...] = ()

    def __call__(self, kernel: Kernel) -> Kernel:
        return self.rule(kernel, *self.parts)


LayerLike = Layer | Callable[[Kernel], Kernel]


def _layer(given: LayerLike) -> Layer:
    return given if isinstance(given, Layer) else Layer(given)


def _moments(kernel: Kernel, nngp: Callable[[Array], Array], ntk: Array, **flags: bool) -> Kernel:
    """The kernel whose second moments are a function of those of ``kernel``."""
    return replace(
        kernel,
        nngp=nngp(kernel.nngp),
        ntk=ntk,
        var1=nngp(kernel.var1),
        var2=nngp(kernel.var2),
        **flags,
    )


def dense(w_std: ArrayLike = 1.0, b_std: ArrayLike = 0.0) -> Layer:
    """``w_std W h / sqrt(n) + b_std b`` with ``W, b`` standard normal and trained.

    The width of what comes in is ``n``, the number of features for the inputs of a network.
    """
    arguments.scalar("w_std", w_std)
    arguments.scalar("b_std", b_std)
    return Layer(_dense, (w_std, b_std))


def _dense(kernel: Kernel, w_std: ArrayLike, b_std: ArrayLike) -> Kernel:
    moment = lambda k: w_std**2 * k + b_std**2
    ntk = moment(kernel.nngp) + w_std**2 * kernel.ntk
    return _moments(kernel, moment, ntk, gaussian=True, fresh=True)


def bias(b_std: ArrayLike = 1.0) -> Layer:
    """``h + b_std b`` with ``b`` standard normal and trained."""
    return Layer(_bias, (arguments.scalar("b_std", b_std),))


def _bias(kernel: Kernel, b_std: ArrayLike) -> Kernel:
    return _moments(kernel, lambda k: k + b_std**2, kernel.ntk + b_std**2)


def activation(phi: Activation | Dual) -> Layer:
    """``φ(h)``, coordinate by coordinate.

    Args:
        phi: a name, a JAX function, or a `Dual`; see `tplimit.kernels.dual`.

    Raises:
        UnsupportedOperationError: when applied to coordinates that are not Gaussian, as those of
            the inputs of a network or of another activation.
    """
    return Layer(_activation, (dual(phi),))


def _activation(kernel: Kernel, phi: Dual) -> Kernel:
    _needs_gaussian(kernel, f"activation({phi.name})")

    def after(k: Kernel) -> Kernel:
        if k.diagonal:
            value, slope = phi.diagonal(k.nngp)
            return replace(k, nngp=value, ntk=slope * k.ntk, var1=value, var2=value)
        value, slope = k.outer(lambda a, b: phi.moments(k.nngp, a, b))  # type: ignore
        var1, var2 = phi.diagonal(k.var1)[0], phi.diagonal(k.var2)[0]
        return replace(k, nngp=value, ntk=slope * k.ntk, var1=var1, var2=var2)

    # The compiler would compute a layer anew for every use that the next one makes of it, ten times
    # slower with five layers; what is behind a branch it computes once.
    possible = (kernel.var1 >= 0).all() & (kernel.var2 >= 0).all()
    found = lax.cond(possible, after, lambda k: jax.tree.map(lambda a: a * jnp.nan, k), kernel)
    return replace(found, gaussian=False, fresh=False)


def _needs_gaussian(kernel: Kernel, operation: str) -> None:
    if not kernel.gaussian:
        raise UnsupportedOperationError(
            "the coordinates that come in are not Gaussian with mean 0, so their second moments "
            "do not determine what comes out",
            operation=operation,
            advice="Put a dense layer before it.",
        )


def layer_norm(epsilon: ArrayLike = 0.0) -> Layer:
    """``h / sqrt(mean(h²) + epsilon)``, after a dense layer (where the mean of ``h`` is 0).

    Raises:
        UnsupportedOperationError: when applied after an activation.
    """
    return Layer(_layer_norm, (epsilon,))


def _layer_norm(kernel: Kernel, epsilon: ArrayLike) -> Kernel:
    _needs_gaussian(kernel, "layer_norm")
    # The root of the product: at equal variances the correlation of a point with itself stays 1.
    size = kernel.outer(lambda a, b: jnp.sqrt((a + epsilon) * (b + epsilon)))
    own = lambda var: var / (var + epsilon)
    return replace(
        kernel,
        nngp=kernel.nngp / size,
        ntk=kernel.ntk / size,
        var1=own(kernel.var1),
        var2=own(kernel.var2),
    )


def serial(*layers: LayerLike) -> Layer:
    """One layer after the other. A function from `Kernel` to `Kernel` is a layer, too."""
    return Layer(_serial, tuple(map(_layer, layers)))


def _serial(kernel: Kernel, *layers: Layer) -> Kernel:
    return functools.reduce(lambda k, layer: layer(k), layers, kernel)


def repeat(times: int, *layers: LayerLike) -> Layer:
    """``times`` times the layers one after the other, each time with weights of their own.

    Compiled once, however often. What comes out must have the form of what goes in: both Gaussian,
    or both not.
    """
    count = arguments.whole("times", times, least=0, example=2)
    return Layer(_repeated(count), (serial(*layers),))


@functools.cache
def _repeated(times: int) -> Callable[..., Kernel]:
    """The rule of `repeat`, one object for each number."""

    def rule(kernel: Kernel, layer: Layer) -> Kernel:
        if times == 0:
            return kernel
        first = layer(kernel)
        if times == 1:
            return first
        again = jax.eval_shape(layer, first)
        if (again.gaussian, again.fresh) != (first.gaussian, first.fresh):
            raise UnsupportedOperationError(
                "the repeated layers change whether coordinates are Gaussian",
                operation="repeat",
                advice="Begin and end them alike, for instance dense first and activation last.",
            )
        return lax.scan(lambda k, _: (layer(k), None), first, None, length=times - 1)[0]

    return rule


def residual(*layers: LayerLike) -> Layer:
    """``h + f(h)``, with ``f`` the layers one after the other; see `add`."""
    return add(serial(), serial(*layers))


def add(*branches: LayerLike) -> Layer:
    """The sum of branches with weights of their own: ``f_1(h) + f_2(h) + ...``.

    Raises:
        UnsupportedOperationError: two branches do not end in a dense layer (a normalisation may
            follow it), so that their outputs are not independent with mean 0.
    """
    return Layer(_add, tuple(map(_layer, branches)))


def _add(kernel: Kernel, *branches: Layer) -> Kernel:
    found = [branch(replace(kernel, fresh=False)) for branch in branches]
    dependent = [k for k in found if not (k.fresh and k.gaussian)]
    if len(dependent) > 1:
        raise UnsupportedOperationError(
            "two branches of a sum have outputs that may depend on each other",
            operation="add",
            advice="End all branches but one with a dense layer.",
        )
    gaussian = all(k.gaussian for k in found)
    total = lambda name: sum(getattr(k, name) for k in found)
    return replace(
        kernel,
        nngp=total("nngp"),
        ntk=total("ntk"),
        var1=total("var1"),
        var2=total("var2"),
        gaussian=gaussian,
        fresh=gaussian and (kernel.fresh or not dependent),
    )


def multiply(*branches: LayerLike) -> Layer:
    """The product, coordinate by coordinate, of branches with weights of their own.

    Raises:
        UnsupportedOperationError: two branches do not end in a dense layer.
    """
    return Layer(_multiply, tuple(map(_layer, branches)))


def _multiply(kernel: Kernel, *branches: Layer) -> Kernel:
    found = [branch(replace(kernel, fresh=False)) for branch in branches]
    if sum(not k.fresh for k in found) > 1:
        raise UnsupportedOperationError(
            "two factors of a product may depend on each other",
            operation="multiply",
            advice="End all branches but one with a dense layer.",
        )

    def product(name: str, skip: int = -1) -> Any:
        factors: Sequence[Array] = [getattr(k, name) for i, k in enumerate(found) if i != skip]
        return functools.reduce(jnp.multiply, factors, jnp.ones_like(getattr(kernel, name)))

    return replace(
        kernel,
        nngp=product("nngp"),
        ntk=sum(k.ntk * product("nngp", i) for i, k in enumerate(found)),
        var1=product("var1"),
        var2=product("var2"),
        gaussian=False,
        fresh=False,
    )
