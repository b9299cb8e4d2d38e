"""Bridge to neural-tangents, the library of Novak et al. (arXiv 1912.02803).

Its last release names parts of JAX that have moved, and imports TensorFlow through a sub-package
that kernels do not need. `import_neural_tangents` gives it the former names while it is imported,
and takes them away again; nothing else in tplimit knows of it.
"""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tplimit._jax import former_names, is_traced
from tplimit.errors import ActivationError
from tplimit.kernels.recursions.layers import Kernel

_NAME = "neural_tangents"
_MISSING = object()


def import_neural_tangents() -> ModuleType:
    """The module ``neural_tangents``, on current JAX and without TensorFlow.

    Kernels work (``stax``, ``kernel_fn``); what needs the internals of JAX when it runs, such as
    the empirical kernels of finite networks, may not.

    Raises:
        ImportError: it is not installed, or its import fails for another reason.

    >>> stax = import_neural_tangents().stax
    >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    """
    before = set(sys.modules)
    if f"{_NAME}.stax" in sys.modules:
        return sys.modules[_NAME]
    with _former_jax(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(_NAME)
        except ImportError as error:
            for name in set(sys.modules) - before:
                if name.split(".")[0] == _NAME:
                    del sys.modules[name]
            raise ImportError(
                "neural-tangents cannot be imported. Install it with `pip install --no-deps "
                "neural-tangents frozendict` (its own dependencies bring TensorFlow, which tplimit "
                f"does not need). The reason: {error}"
            ) from error


@contextlib.contextmanager
def _former_jax() -> Iterator[None]:
    """JAX with the names it used to have, and an empty sub-package in place of TensorFlow's."""
    with contextlib.ExitStack() as undo:
        undo.callback(_install(f"{_NAME}.experimental", ModuleType(f"{_NAME}.experimental")))
        for name, attributes in former_names().items():
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError:
                module = ModuleType(name)
                undo.callback(_install(name, module))
            for attribute, value in attributes.items():
                undo.callback(_set(module, attribute, value))
        yield


def _install(name: str, module: ModuleType) -> Callable[[], None]:
    before = sys.modules.get(name, _MISSING)
    sys.modules[name] = module

    def undo() -> None:
        if before is _MISSING:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before  # type: ignore[assignment]

    return undo


def _set(module: ModuleType, attribute: str, value: Any) -> Callable[[], None]:
    """Sets an attribute where there is none; returns what undoes it."""
    # Not hasattr: modules of JAX answer for deprecated names with a warning or an error.
    if attribute in vars(module):
        return lambda: None
    setattr(module, attribute, value)
    return lambda: delattr(module, attribute)


@dataclass(frozen=True)
class Imported:
    """A ``kernel_fn`` of neural-tangents that is called as a `Network` is."""

    kernel_fn: Callable[..., Any]

    def __call__(self, x1: ArrayLike, x2: ArrayLike | None = None) -> Kernel:
        """The kernels at all pairs of inputs (whose shapes are those the ``kernel_fn`` expects).

        Raises:
            ValueError: inputs that are not finite.
            ActivationError: the kernel is not finite.
        """
        given = [jnp.asarray(x) for x in (x1, x2) if x is not None]
        if any(not is_traced(x) and not jnp.isfinite(x).all() for x in given):
            raise ValueError("inputs must be finite, without NaN")
        with warnings.catch_warnings():
            # Written for an older JAX, it uses what is deprecated now.
            warnings.simplefilter("ignore")
            found = self.kernel_fn(given[0], given[1] if len(given) > 1 else None, get=None)
        nngp, ntk = found.nngp, found.ntk
        if ntk is None:
            ntk = jnp.zeros_like(nngp)  # nothing is trained
        finite = jnp.isfinite(nngp).all() & jnp.isfinite(ntk).all()
        if not is_traced(finite) and not finite:
            raise ActivationError(
                "the kernel is not finite",
                operation="kernel_fn of neural-tangents",
                advice="In float32 it may overflow near correlation 1: compute in float64.",
            )
        var1 = _variances(found.cov1, nngp.shape[0])
        var2 = var1 if found.cov2 is None else _variances(found.cov2, nngp.shape[1])
        return Kernel(nngp, ntk, var1, var2)


def _variances(covariances: Array, points: int) -> Array:
    """The diagonal of the covariances of a batch, which may be all that there is."""
    if covariances.shape[:2] == (points, points) and covariances.ndim % 2 == 0:
        return jnp.moveaxis(jnp.diagonal(covariances), -1, 0)
    return covariances


def from_neural_tangents(kernel_fn: Callable[..., Any]) -> Imported:
    """A ``kernel_fn`` of neural-tangents (convolutions, pooling, attention, ...) as a network.

    Args:
        kernel_fn: the third result of ``stax.serial(...)``, in its default NTK parameterization.

    Raises:
        TypeError: something else was passed.

    >>> import jax
    >>> stax = import_neural_tangents().stax
    >>> layers = stax.Conv(1, (3, 3)), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
    >>> network = from_neural_tangents(stax.serial(*layers)[2])
    >>> network(jax.random.normal(jax.random.key(0), (2, 5, 5, 3))).ntk.shape
    (2, 2)
    """
    if not callable(kernel_fn):
        raise TypeError(
            "pass the kernel_fn alone, the third of what stax.serial(...) returns: "
            "from_neural_tangents(stax.serial(...)[2])"
        )
    return Imported(kernel_fn)
