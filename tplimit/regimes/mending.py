"""Powers of the width that mend a parameterization, from the counts of its training.

`settle` lowers what grows, `largest` takes the largest rates with which nothing does. Derivations
are in `docs/regimes.md`.
"""

from collections.abc import Iterator
from fractions import Fraction
from operator import add
from typing import NamedTuple

from tplimit.regimes.powers import Moved, Pass, Powers, effect, first_pass, one_pass, train
from tplimit.transforms.growth import Fault, Part
from tplimit.values.exponents import NEVER, Exponent
from tplimit.values.powers import Known, Power

__all__ = ["largest", "name_of_sum", "settle"]

# Each round lowers an exponent by an amount that is bounded from below.
_ROUNDS = 10_000


class _Excess(NamedTuple):
    """What makes the sum of layer `into` grow: a part of the weights, or bias, of layer l.

    Layers are counted from 0.
    """

    step: int
    l: int
    bias: bool
    part: Part
    power: Exponent
    into: int

    @property
    def which(self) -> tuple[int, bool, Part]:
        return self.l, self.bias, self.part


def settle(powers: Powers) -> tuple[Powers, tuple[Fault, ...]]:
    """The same powers without growth, and what grew.

    The first pass in which something grows is looked at, there the lowest layer. Its sum consists
    of initial values and updates; what grows among them is lowered by as much. Initial values that
    grow only after some steps do so by what has moved in their inputs: then it is the updates
    below by which they do, and the initial values if there are none. So it is with outputs, whose
    initial weights are aligned with what has moved. What comes later, or stands above, is counted
    anew. In the end nothing is lowered without which all would be stable, too.
    """
    met: list[_Excess] = []
    for _ in range(_ROUNDS):
        found = list(_excess(powers))
        if not found:
            break
        met += found
        for one in found:
            powers = _lowered(powers, one)
    else:
        raise AssertionError("lowering what grows has to end")
    # What grew may not any more once others are mended that were met later.
    for part in dict.fromkeys(one.which for one in met):
        without = powers
        for one in met:
            if one.which == part:
                without = _lowered(without, one._replace(power=-one.power))
        if not list(_excess(without)):
            powers, met = without, [one for one in met if one.which != part]
    return powers, tuple(_fault(powers, one) for one in met)


def _fault(powers: Powers, one: _Excess) -> Fault:
    known: Known = "exact" if one.step == 0 and not any(powers.centre) else "generic"
    name = f"{'b' if one.bias else 'W'}{one.l + 1}"
    what = name_of_sum(one.into, powers.depth)
    return Fault(one.step, name, one.part, what, Power(one.power, known))


def name_of_sum(l: int, depth: int) -> str:
    """What layer l, from 0, computes."""
    return "the outputs" if l == depth else f"the preactivations of layer {l + 1}"


def _excess(powers: Powers) -> Iterator[_Excess]:
    """What grows first."""
    passes = train(powers)
    for step, here in enumerate(passes):
        for l, terms in enumerate(here.terms):
            through = here.through if l == powers.depth else NEVER
            if max(*terms, through) > 0:
                yield from _grown(powers, passes, step, l)
                return
    kept = powers.corrected_start.f
    if kept > 0:
        yield _Excess(0, powers.depth, False, "kept", kept, powers.depth)


def _grown(powers: Powers, passes: list[Pass], step: int, l: int) -> Iterator[_Excess]:
    """What makes the sum of layer l grow in a pass before which nothing did."""
    start, here = passes[0], passes[step]
    own = powers.first != (powers.rates, powers.bias_rates)
    terms, first = here.terms[l], passes[1].terms[l]
    if terms.bias > 0:
        yield _Excess(step, l, True, "initial", terms.bias, l)
    if terms.update > 0:
        # What the first step did may be too large only once layers below have grown.
        early = passes[1].change[l] + terms.update - here.change[l] > 0
        yield _Excess(step, l, False, "first" if own and early else "rate", terms.update, l)
    if terms.bias_update > 0:
        early = first.bias_update > 0
        part: Part = "first" if own and early else "rate"
        yield _Excess(step, l, True, part, terms.bias_update, l)
    through = max(terms.initial, here.through if l == powers.depth else NEVER)
    if through > 0:
        found = [] if start.terms[l].initial > 0 else list(_below(powers, passes, step, l, own))
        yield from found or [_Excess(step, l, False, "initial", through, l)]


def _below(powers: Powers, passes: list[Pass], step: int, l: int, own: bool) -> Iterator[_Excess]:
    """Updates below layer l that make it grow by what they do to its inputs."""
    start, here = passes[0], passes[step]
    for below in range(l):
        terms = here.terms[below]
        for bias, moved in ((False, terms.update), (True, terms.bias_update)):
            power = effect(powers, start, here, below, moved, l, powers.kept[l])
            if power > 0:
                part: Part = "first" if own and step == 1 else "rate"
                yield _Excess(step, below, bias, part, power, l)


def _lowered(powers: Powers, one: _Excess) -> Powers:
    def less(values: tuple[Exponent, ...]) -> tuple[Exponent, ...]:
        return tuple(v - one.power if l == one.l else v for l, v in enumerate(values))

    if one.part == "kept" and powers.corrected is not None:
        return powers._replace(corrected=less(powers.corrected))
    if one.part == "initial":
        if one.bias:
            return powers._replace(biases=less(powers.biases))
        corrected = None if powers.corrected is None else less(powers.corrected)
        return powers._replace(
            weights=less(powers.weights), kept=less(powers.kept), corrected=corrected
        )
    alike = powers.first == (powers.rates, powers.bias_rates)
    first, rates = list(powers.first), [powers.rates, powers.bias_rates]
    for which in [first] if one.part == "first" else [first, rates] if alike else [rates]:
        which[one.bias] = less(which[one.bias])
    return powers._replace(rates=rates[0], bias_rates=rates[1], first=(first[0], first[1]))


def largest(powers: Powers) -> Powers:
    """Powers with the largest rates with which every sum moves by Θ(1) and none grows.

    Initial output weights are n^-1 at most, since what moves in the features is aligned with them.
    With changes D_l that add Θ(1) to every sum, from below, the passes are known, and so are the
    gradients, and the rates that make such changes of them. Those of the first step are its own
    where gradients vanish at first, if the same rates at every step are not enough.
    """
    powers, _ = settle(powers)
    top = min(powers.weights[-1], Fraction(-1))
    less = powers.weights[-1] - top if powers.weights[-1] != NEVER else 0
    if less:
        powers = _lowered(powers, _Excess(0, powers.depth, False, "initial", less, powers.depth))
    powers, settled = _moving(powers)
    start = first_pass(powers)
    biases = tuple(NEVER if rate == NEVER else Fraction(0) for rate in powers.bias_rates)

    def rates(here: Pass) -> tuple[tuple[Exponent, ...], tuple[Exponent, ...]]:
        above = (*here.dh, Fraction(0))
        gradients = tuple(map(add, above, (Fraction(0), *here.x)))
        return _rates(powers, settled.change, gradients), _rates(powers, biases, above)

    later, first = rates(settled), rates(start)
    for one in (later, first):
        mended = powers._replace(rates=later[0], bias_rates=later[1], first=one)
        passes = train(mended)
        if all(p.largest <= 0 for p in passes) and min(passes[-1].updates) == 0:
            break
    return mended


def _moving(powers: Powers) -> tuple[Powers, Pass]:
    """A pass in which every sum has moved by Θ(1), from below; initial values do not grow in it."""
    biases = tuple(NEVER if rate == NEVER else Fraction(0) for rate in powers.bias_rates)
    change: list[Exponent] = [NEVER] * (powers.depth + 1)
    for l in range(powers.depth + 1):
        while True:
            start = first_pass(powers)
            here = one_pass(powers, Moved(tuple(change), tuple(change), biases), start)
            excess = here.terms[l].initial
            if excess <= 0:
                break
            powers = _lowered(powers, _Excess(0, l, False, "initial", excess, l))
        below = here.x[l - 1] if l else Fraction(0)
        change[l] = -below - (1 if l else 0)
    here = one_pass(powers, Moved(tuple(change), tuple(change), biases), start)
    return powers, here


def _rates(
    powers: Powers, change: tuple[Exponent, ...], gradients: tuple[Exponent, ...]
) -> tuple[Exponent, ...]:
    """Rates that make such changes of gradients, of gradients that are 0 as if of order one."""
    return tuple(
        NEVER if c == NEVER else c - powers.degree * (g if g != NEVER else 0)
        for c, g in zip(change, gradients, strict=True)
    )
