"""The table of rules, and how a rule of one's own is entered.

A *rule* says what an operation does to values. It is a function ``rule(ctx, *values, **params)`` of
values of one term, which returns one value or a list. ``params`` come with lengths that grow as
``Size``; ``ctx.resolve`` makes them numbers. Beside it may stand

* ``@rule.several``: the same for values of several terms,
* ``@rule.matrices``: the same where some of the values are matrices, of any number of terms.

Where a form is missing, that of the kind of the primitive takes its place (``traits.py``).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from tplimit._jax import Primitive
from tplimit.program.equations import Equation
from tplimit.program.traits import TRAITS, Kind, Linear, Refused, kind_of

Form = Callable[..., Any]
Which = Literal["one", "several", "matrices"]


class Rule:
    """What an operation does to values (see the module's text)."""

    def __init__(self, one: Form | None = None) -> None:
        self.forms: dict[Which, Form] = {} if one is None else {"one": one}
        self.__doc__ = one.__doc__ if one is not None else None

    def __call__(self, ctx: Any, *values: Any, **params: Any) -> Any:
        """On values of one term."""
        return self.forms["one"](ctx, *values, **params)

    def one(self, form: Form) -> Form:
        """Enter the form for values of one term."""
        self.forms["one"] = form
        return form

    def several(self, form: Form) -> Form:
        """Enter the form for values of several terms."""
        self.forms["several"] = form
        return form

    def matrices(self, form: Form) -> Form:
        """Enter the form for operands of which some are matrices."""
        self.forms["matrices"] = form
        return form


@dataclass
class Rules:
    """Table of rules, by primitive and by kind of primitive. A primitive has a rule, is refused
    with a reason, or is probed: it may turn out to act entry by entry."""

    rules: dict[Primitive, Rule] = field(default_factory=dict)
    kinds: dict[type[Kind], Rule] = field(default_factory=dict)
    #: What an operation that is in no table is, or why nobody knows.
    probed: Callable[[Equation], Kind | str] = lambda equation: "it was not probed"

    def __call__(self, *primitives: Primitive | None) -> Callable[[Form], Rule]:
        """Decorator that makes a rule of ``primitives`` (None stands for one this JAX lacks)."""

        def enter(function: Form) -> Rule:
            rule = Rule(function)
            for primitive in primitives:
                if primitive is not None:
                    self._new(primitive)
                    self.rules[primitive] = rule
            return rule

        return enter

    def rule_of(self, primitive: Primitive) -> Rule:
        """The rule of a primitive, made if it has none; forms of its kind stand in for its own."""
        return self.rules.setdefault(primitive, Rule())

    def of_kind(self, kind: type[Kind]) -> Rule:
        """The forms of a kind of primitive, to be entered."""
        return self.kinds.setdefault(kind, Rule())

    def _new(self, primitive: Primitive) -> None:
        if primitive in self.rules or isinstance(kind_of(primitive), Refused):
            raise ValueError(f"There is already a rule for {primitive.name}.")

    def has(self, primitive: Primitive, kind: Kind) -> bool:
        """Whether it is known what a primitive does."""
        own = self.rules.get(primitive)
        return (own is not None and "one" in own.forms) or self._by_kind(kind)

    def form(self, which: Which, primitive: Primitive, kind: Kind) -> Form:
        """What the operation does to values of some sort: its own form, or that of its kind."""
        own = self.rules.get(primitive)
        rules = [own] if own is not None else []
        rules += [self.kinds[base] for base in type(kind).__mro__ if base in self.kinds]
        return next(rule.forms[which] for rule in rules if which in rule.forms)

    def known(self) -> dict[Primitive, Kind]:
        """All primitives with a rule or a reason for having none."""
        known = dict.fromkeys(self.rules, Kind()) | TRAITS
        return {
            primitive: kind for primitive, kind in known.items()
            if isinstance(kind, Refused) or self.has(primitive, kind)
        }  # fmt: skip

    def _by_kind(self, kind: Kind) -> bool:
        return type(kind) in self.kinds and "one" in self.kinds[type(kind)].forms

    def state(self) -> tuple[Hashable, ...]:
        """What the table says now: another state, another limit of the same program."""
        forms = [
            (name, tuple(rule.forms.items()))
            for name, rule in (*self.rules.items(), *self.kinds.items())
        ]
        return (*forms, *TRAITS.items())

    def describe(self) -> str:
        """A Markdown table of the supported and the refused operations."""
        lines = ["| primitive | rule |", "| --- | --- |"]
        entries = [(q.name, self._summary(q, kind)) for q, kind in self.known().items()]
        lines += [f"| `{name}` | {text} |" for name, text in sorted(entries)]
        return "\n".join(lines)

    def _summary(self, primitive: Primitive, kind: Kind) -> str:
        """First paragraph of a rule's docstring, on one line, or what its kind says."""
        own = self.rules.get(primitive)
        text = (own.__doc__ if own is not None else None) or str(kind)
        return " ".join(text.strip().split("\n\n")[0].split())


RULES = Rules()


def rule(primitive: Primitive, linear: tuple[int, ...] | None = None) -> Any:
    """Enter what a primitive does in the limit.

    Either say where it is linear, ``tp.rule(primitive, linear=(0,))``: it is evaluated on the
    coefficients of every term, where it acts on each coordinate along a width by itself (which is
    tried out on small arrays). Or give a rule of your own::

        @tp.rule(primitive)
        def of_one_term(ctx, x, **params): ...


        @of_one_term.several
        def of_several_terms(ctx, x, **params): ...

    A rule gets the context of the run, its operands as values of the limit (`Tensor`: a
    ``coefficient`` with its ``exponents`` of the width, and the ``axis`` along which it has one)
    and the parameters of the equation. It returns a value, or a list of them where the primitive
    has several results. Without a form for several terms all but the leading one become unknown.
    The files of ``tplimit/rules`` are the examples.

    Args:
        primitive: of JAX, or your own (``jax.extend.core.Primitive``).
        linear: places of the operands that it is linear in, together; the others are indices or
            parameters, which must not depend on a width.

    Returns:
        None with ``linear``; else a decorator, which returns the rule.

    Raises:
        TypeError: no primitive, or no places of operands.
        ValueError: no place, or there is already a rule for the primitive.

    Example:
        >>> import jax, jax.numpy as jnp, tplimit as tp
        >>> from jax.extend.core import Primitive
        >>> flip = Primitive("flip")
        >>> _ = flip.def_impl(lambda x: x[::-1])
        >>> _ = flip.def_abstract_eval(lambda aval: aval)
        >>> tp.rule(flip, linear=(0,))
        >>> n = tp.Width("n")
        >>> theta = {"v": tp.normal((2, n))}
        >>> theta = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256)
        >>> out = tp.limit(lambda t: jnp.mean(flip.bind(t["v"]) * t["v"][::-1], axis=1))(theta)
        >>> [round(float(x), 1) for x in out]
        [1.0, 1.0]
    """
    if not isinstance(primitive, Primitive):
        raise TypeError(
            f"primitive={primitive!r} is no primitive: pass one of jax.extend.core.primitives, "
            "such as primitives.tanh_p, or your own jax.extend.core.Primitive"
        )
    places = () if linear is None else linear
    if not isinstance(places, (tuple, list)) or not all(type(p) is int and p >= 0 for p in places):
        raise TypeError(f"linear={linear!r} are no places of operands: pass a tuple such as (0,)")
    if linear is not None and not places:
        raise ValueError("linear=() names no operand: pass a tuple such as (0,)")
    if primitive in RULES.known():
        raise ValueError(f"There is already a rule for {primitive.name}.")
    if linear is None:
        return RULES(primitive)
    TRAITS[primitive] = Linear(tuple(linear))
    return None
