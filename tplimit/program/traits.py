"""What primitives are: one table of facts, one kind for each primitive.

From it follow the rules for values of one term and of several (``rules/``), which variables of a
program depend linearly on others, the closed forms of kernels that are recognised, warnings, and
``docs/operations.md``. A linear primitive is one line here, and so is a smooth function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import Primitive, log2_p, primitives as p, split_p, stack_p, tile_p, unstack_p
from tplimit.values.exponents import HALF
from tplimit.values.parity import Behaviour


@dataclass(frozen=True)
class Kind:
    """What a primitive is, where nothing more is known than that it has a rule."""

    #: Places of the operands that it is linear in, together; None stands for all.
    linear: ClassVar[tuple[int, ...] | None] = ()

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Linear(Kind):
    """Linear in the operands at ``places`` together (None: in all); the others are indices.

    Attributes:
        moves: it only moves, repeats or leaves out entries.
        in_order: these go on in their order, in another shape.
    """

    places: tuple[int, ...] | None = (0,)
    moves: bool = False
    in_order: bool = False

    @property
    def linear(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return self.places

    def __str__(self) -> str:
        where = "all operands" if self.places is None else f"operands {self.places}"
        return f"Linear in {where} together, each coordinate along a width by itself."


@dataclass(frozen=True)
class Product(Kind):
    """Linear in each of two operands by itself.

    ``entrywise``: the product of numbers at the same place, not a contraction.
    """

    entrywise: bool


@dataclass(frozen=True)
class Quotient(Kind):
    """Linear in what is divided."""

    linear: ClassVar[tuple[int, ...]] = (0,)


@dataclass(frozen=True)
class Identity(Kind):
    """Gives back its operands."""

    linear: ClassVar[None] = None

    def __str__(self) -> str:
        return "Identity."


@dataclass(frozen=True)
class Smooth(Kind):
    """A smooth function of one variable, entry by entry.

    Attributes:
        function: on arrays.
        parity: how it behaves under a change of sign.
        limits: at minus and plus infinity, or None; an infinite one is refused when it occurs.
        positive: whether its values are never 0.
        least: where it ends, or None; it is infinite there.
    """

    function: Callable[[Any], Any]
    parity: Behaviour = "neither"
    limits: tuple[float, float] | None = None
    positive: bool = False
    least: float | None = None

    def __str__(self) -> str:
        return "Taylor expansion at 0 for vanishing, limits for growing values."


@dataclass(frozen=True)
class Logarithm(Kind):
    """A logarithm, entry by entry: it has no expansion at 0."""

    function: Callable[[Any], Any]

    def __str__(self) -> str:
        return "Logarithm of a value that neither grows nor vanishes."


@dataclass(frozen=True)
class Power(Kind):
    """``x^exponent``, entry by entry; None: the exponent is the parameter ``y``."""

    exponent: Fraction | None
    function: Callable[[Any], Any] | None = None

    def __str__(self) -> str:
        q = "y" if self.exponent is None else f"({self.exponent})"
        return f"Power ``x^{q}``: the exponent times ``{q.strip('()')}``."


@dataclass(frozen=True)
class Relation(Kind):
    """A comparison of numbers at the same place; ``of_equals``: whether it holds of equals."""

    function: Callable[[Any, Any], Any]
    of_equals: bool

    def __str__(self) -> str:
        return "Decided by the leading term of the difference."


@dataclass(frozen=True)
class Origin(Kind):
    """Makes entries that come from none of the operands."""

    def __str__(self) -> str:
        return "Independent entries of a known law, from a key."


@dataclass(frozen=True)
class Control(Kind):
    """Runs programs: a loop or a branch."""


@dataclass(frozen=True)
class Refused(Kind):
    """Has no limit on values with a width, or none that is supported.

    Attributes:
        reason: why.
        continuous: on finite arrays of order 1 it is a continuous function of their entries.
        may_exist: whether there may be a limit.
    """

    reason: str
    continuous: bool = False
    may_exist: bool = False

    def __str__(self) -> str:
        return f"refused: {self.reason}"


@dataclass(frozen=True)
class Rewritten(Refused):
    """Along finite axes it is written as other operations (``windows.py``); else refused."""

    def __str__(self) -> str:
        return f"Along finite axes, by other operations; refused: {self.reason}."


def _moves(*places: int, in_order: bool = False) -> Linear:
    return Linear(places or None, moves=True, in_order=in_order)


def _named(name: str) -> Primitive | None:
    """A primitive that not every version of JAX shows under this name."""
    return getattr(p, name, None)


_ALGEBRA = "linear algebra with a width axis would need the whole spectrum of a random matrix"
_WINDOWS = (
    "along a width windows depend on the order of coordinates, which have none; an extremum of "
    "padding alone is infinite"
)
_FOLDS = (
    "along a width windows depend on the order of coordinates, and along finite axes those of a "
    "function of one's own are not supported yet; of sums, maxima and minima they are"
)
_FOURIER = (
    "along a width there is no order of coordinates, and along finite axes complex numbers that "
    "depend on a width are not supported"
)
_DRAWS = (
    "random bits along a width have a limit where they are used entry by entry, as those of "
    "jax.random.normal and bernoulli are, and of vectors; make random matrices parameters "
    "(tp.normal, tp.declare)"
)

#: The primitives about which there is something to know, by kind; None: this JAX lacks it.
_KNOWN: list[tuple[Kind, tuple[Primitive | None, ...]]] = [
    (Linear(None), (p.add_p, p.add_jaxvals_p, p.sub_p)),
    (
        Linear(),
        (p.neg_p, p.convert_element_type_p, p.reduce_precision_p, p.reduce_sum_p, p.cumsum_p),
    ),
    (_moves(0, in_order=True), (p.broadcast_in_dim_p, p.reshape_p, p.squeeze_p)),
    (
        _moves(0),
        (
            p.transpose_p, p.rev_p, p.slice_p, p.dynamic_slice_p, p.gather_p, split_p, unstack_p,
            tile_p,
        ),
    ),
    (_moves(), (p.concatenate_p, stack_p)),
    (_moves(0, 1), (p.pad_p, p.dynamic_update_slice_p)),
    (_moves(0, 2), (p.scatter_p, p.scatter_add_p)),
    (Product(entrywise=True), (p.mul_p,)),
    (Product(entrywise=False), (p.dot_general_p,)),
    (Quotient(), (p.div_p,)),
    (
        Identity(),
        (p.stop_gradient_p, p.name_p, p.device_put_p, p.sharding_constraint_p, p.copy_p),
    ),
    (Smooth(jnp.tanh, "odd", (-1.0, 1.0)), (p.tanh_p,)),
    (Smooth(lambda x: lax.logistic(jnp.asarray(x)), limits=(0.0, 1.0), positive=True),
     (p.logistic_p,)),
    (Smooth(lambda x: lax.erf(jnp.asarray(x)), "odd", (-1.0, 1.0)), (p.erf_p,)),
    (Smooth(lambda x: lax.erfc(jnp.asarray(x)), limits=(2.0, 0.0)), (p.erfc_p,)),
    (Smooth(jnp.arctan, "odd", (-np.pi / 2, np.pi / 2)), (p.atan_p,)),
    (Smooth(jnp.sin, "odd"), (p.sin_p,)),
    (Smooth(jnp.cos, "even"), (p.cos_p,)),
    (Smooth(jnp.tan, "odd"), (p.tan_p,)),
    (Smooth(jnp.sinh, "odd"), (p.sinh_p,)),
    (Smooth(jnp.cosh, "even", positive=True), (p.cosh_p,)),
    (Smooth(jnp.arcsinh, "odd"), (p.asinh_p,)),
    (Smooth(jnp.exp, limits=(0.0, np.inf), positive=True), (p.exp_p,)),
    (Smooth(jnp.exp2, limits=(0.0, np.inf), positive=True), (p.exp2_p,)),
    (Smooth(jnp.expm1, limits=(-1.0, np.inf)), (p.expm1_p,)),
    (Smooth(jnp.log1p, least=-1.0), (p.log1p_p,)),
    (Logarithm(jnp.log), (p.log_p,)),
    (Logarithm(jnp.log2), (log2_p,)),
    (Power(None), (p.integer_pow_p,)),
    (Power(Fraction(2)), (p.square_p,)),
    (Power(HALF, jnp.sqrt), (p.sqrt_p,)),
    (Power(-HALF, lambda x: lax.rsqrt(jnp.asarray(x))), (p.rsqrt_p,)),
    (Power(Fraction(1, 3), jnp.cbrt), (p.cbrt_p,)),
    (Relation(jnp.greater, False), (p.gt_p,)),
    (Relation(jnp.less, False), (p.lt_p,)),
    (Relation(jnp.greater_equal, True), (p.ge_p,)),
    (Relation(jnp.less_equal, True), (p.le_p,)),
    # Of all numbers, in an order that NaN have a place in: the comparisons of sorting.
    (Relation(jnp.less, False), (_named("lt_to_p"),)),
    (Relation(jnp.less_equal, True), (_named("le_to_p"),)),
    (Relation(jnp.equal, True), (p.eq_p,)),
    (Relation(jnp.not_equal, False), (p.ne_p,)),
    (Control(), (p.cond_p, p.while_p, p.scan_p)),
    (
        Refused(_ALGEBRA, continuous=True),
        (p.cholesky_p, p.eigh_p, p.svd_p, p.lu_p, p.triangular_solve_p,
         _named("linear_solve_p")),
    ),
    (Refused(_ALGEBRA), (p.eig_p, p.qr_p, p.schur_p)),
    (
        Rewritten(_WINDOWS),
        (p.conv_general_dilated_p, p.reduce_window_sum_p, p.reduce_window_max_p,
         p.reduce_window_min_p, p.select_and_gather_add_p, p.select_and_scatter_add_p),
    ),
    (Refused(_FOLDS, may_exist=True), (p.reduce_window_p, p.select_and_scatter_p)),
    (Refused(_FOURIER, may_exist=True), (p.fft_p,)),
    (
        Refused(_DRAWS, may_exist=True),
        (p.random_bits_p, p.threefry2x32_p, p.rng_bit_generator_p, p.rng_uniform_p),
    ),
]  # fmt: skip

TRAITS: dict[Primitive, Kind] = {
    primitive: kind for kind, those in _KNOWN for primitive in those if primitive is not None
}
_UNKNOWN = Kind()


def kind_of(primitive: Primitive) -> Kind:
    """What a primitive is, as far as it is known."""
    return TRAITS.get(primitive, _UNKNOWN)


def linear_places(equation: Any) -> tuple[int, ...]:
    """Operands of an equation that its results are linear in, together."""
    kind = kind_of(equation.primitive)
    if kind.linear is None:
        return tuple(range(len(equation.inputs)))
    if equation.primitive is p.convert_element_type_p and not _real(equation):
        return ()
    # Users may declare places that there are not, which the interpreter refuses.
    return tuple(place for place in kind.linear if place < len(equation.inputs))


def _real(equation: Any) -> bool:
    """Whether numbers stay numbers: rounding and truth values are not linear."""
    return all(
        jnp.issubdtype(aval.dtype, jnp.inexact)
        for aval in (*equation.in_avals, *equation.out_avals)
    )


def is_rounding(equation: Any) -> bool:
    """Whether an equation converts from or to integers or truth values: a function with jumps."""
    return equation.primitive is p.convert_element_type_p and not _real(equation)


__all__ = [
    "TRAITS",
    "Control",
    "Identity",
    "Kind",
    "Linear",
    "Logarithm",
    "Origin",
    "Power",
    "Product",
    "Quotient",
    "Refused",
    "Relation",
    "Smooth",
    "is_rounding",
    "kind_of",
    "linear_places",
]
