"""Optimizers that the command line offers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import optax

__all__ = ["Optimizer"]


class Optimizer(StrEnum):
    """Optimizers that run in the limit, on hidden matrices too (`docs/optimizers.md`).

    To each belong its name in optax, if it is another, and arguments besides the rate, which is 1.
    """

    adagrad = "adagrad"
    adam = "adam"
    adamw = "adamw"
    amsgrad = "amsgrad"
    lion = "lion"
    momentum = "momentum", "sgd", {"momentum": 0.9}
    nadam = "nadam"
    rmsprop = "rmsprop"
    sgd = "sgd"
    sign = "sign", "sign_sgd"

    _function: str
    _arguments: Mapping[str, Any]

    def __new__(cls, name: str, function: str = "", arguments: Mapping[str, Any] = {}) -> Self:
        """A member from a row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        member._function, member._arguments = function or name, arguments
        return member

    def transformation(self) -> "optax.GradientTransformation":
        """The optimizer, with learning rate 1, as `Parameterization.step` takes it.

        >>> [type(one.transformation()).__name__ for one in (Optimizer.adam, Optimizer.momentum)]
        ['GradientTransformationExtraArgs', 'GradientTransformationExtraArgs']
        """
        import optax  # slow to import

        return getattr(optax, self._function)(1.0, **self._arguments)
