"""What a regime is, and how it is told: tables, sentences, the rates that mend it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tplimit.networks.scaling import Parameterization
from tplimit.output.tables import TextTable
from tplimit.transforms.growth import Fault, Row
from tplimit.values.exponents import NEVER, Exponent
from tplimit.values.powers import MARKS, Known, Power, in_words

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MEANINGS", "Change", "Mended", "Regime", "regime_of"]

#: What the exponents of a regime are exponents of; a layer ``l`` is a number in their names.
MEANINGS = {
    "f_0": "initial outputs",
    "df_1": "first change of the outputs",
    "df": "later changes of the outputs",
    "r": "minus changes of the features",
    "h": "preactivations",
    "h_l": "initial preactivations",
    "first_update_l": "(W_1 - W_0) x",
    "update_l": "(W_(t+1) - W_t) x, later",
    "weights_l": "W_t - W_0, relative to W_0",
    "e0": "initial outputs",
    "eK": "tangent kernel",
    "s": "changes of weights, relative",
}


class Change(NamedTuple):
    """Powers of the width that a parameter's initial values and learning rates are multiplied by.

    `first` is the factor of the rate of the first step; it is `rate` where steps are alike.
    """

    parameter: str
    initial: Exponent
    first: Exponent
    rate: Exponent

    @property
    def nothing(self) -> bool:
        return not any(self[1:])


@dataclass(frozen=True)
class Mended:
    """A program with other powers of the width, classified again.

    Attributes:
        changes: a `Change` for each parameter.
        regime: of the program with these changes.
        faults: what grew, in the order in which it was found.
        parameterization: with these changes, where one was classified.
    """

    changes: tuple[Change, ...]
    regime: "Regime"
    faults: tuple[Fault, ...] = ()
    parameterization: Parameterization | None = None

    def __getitem__(self, parameter: str) -> Change:
        return next(change for change in self.changes if change.parameter == parameter)


@dataclass(frozen=True, repr=False)
class Regime:
    """The behaviour of a parameterization as the width n → ∞, at any fixed number of steps.

    Attributes:
        stable: preactivations, activations and outputs stay O(1).
        trivial: stable, and the outputs never move: f_t - f_0 → 0.
        feature_learning: stable, not trivial, and some layer's activations move by Θ(1): r = 0.
        kernel: stable, not trivial, and no activation moves: r > 0.
        exponents: powers of n, `-inf` for what is exactly 0; `classify` lists them.
        name: "unstable", "trivial", "kernel", or for feature learning "muP-like" (all layers move
            and initial hidden weights matter), "mean-field" (all move, and they do not matter),
            "feature learning" (anything else). With one hidden layer, Golikov's region.
        known: what is known of each of the exponents: it is "exact", a "bound", or "generic".
        look, mending: what finds `rows`, and `mended`.

    Printed, it is a table of its rows and exponents. Two regimes are equal if they behave alike,
    whatever the parameters are called.
    """

    stable: bool
    trivial: bool
    feature_learning: bool
    kernel: bool
    exponents: Mapping[str, Exponent] = field(hash=False)
    name: str
    known: Mapping[str, Known] = field(hash=False, compare=False, default_factory=dict)
    look: Callable[[], tuple[Row, ...]] = field(compare=False, default=tuple)
    mending: Callable[[bool], Mended] | None = field(compare=False, default=None)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """What becomes of each parameter, see `Row`; found when it is asked for."""
        return self.look()

    def power(self, name: str) -> Power:
        """One of `exponents`, with what is known of it."""
        return Power(self.exponents[name], self.known.get(name, "exact"))

    def mark(self, name: str) -> str:
        """How one of `exponents` is marked, see `explain`."""
        return MARKS[self.power(name).known][0]

    def mended(self, features: bool = False) -> Mended:
        """The same program with powers of the width that mend it.

        What grows is lowered, in the order in which it is met: initial values, then learning rates
        of the parameters by whose update it grows. With `features` every layer moves besides, by
        Θ(1), as far as this can be had: rates are the largest with which nothing grows, and the
        initial values of the output layer are at most n^-1, since what moves below is aligned
        with them. Whether that is enough tells `regime` of what is returned, found by classifying
        again.

        Raises:
            ValueError: no changes of this kind were found.

        >>> import tplimit as tp
        >>> model = tp.mlp(3, inputs=3)
        >>> regime = tp.classify(tp.parameterizations.standard, model)
        >>> [str(change.rate) for change in regime.mended().changes]
        ['0', '-1', '-1', '-1']
        >>> mended = regime.mended(features=True)
        >>> mended.regime.name, str(mended["W4"].initial)
        ('muP-like', '-1/2')
        """
        if self.mending is None:
            raise ValueError("this regime does not know the program it is of")
        return self.mending(features)

    def explain(self, features: bool = True) -> TextTable:
        """What happens and what mends it: sentences, and a table of factors for every parameter.

        The factors are those of `mended`: with which nothing grows, and, if `features`, with which
        the features of every layer move. Where no such are found, as where the first step needs
        rates of its own in a program that is run (`classify_step`), what does not move is named,
        and what is advised of it is not checked.

        >>> import tplimit as tp
        >>> regime = tp.classify(tp.parameterizations.mup(c=(-1, -2, -1)), tp.mlp(2, inputs=3))
        >>> print(regime.explain().splitlines()[1].replace(": ", ":\\n"))
        After step 1 the preactivations of layer 2 grow like ~ n^1 by the update of W2:
        lower its learning rate by n^(-1).
        """
        lines, told = [f"The regime is {self.name}: {self._verdict()}."], dict[str, Mended]()
        try:
            stable = told["nothing grows"] = self.mended()
            lines += map(str, stable.faults)
            if stable.faults:
                lines.append(f"With that it is {stable.regime.name}: {stable.regime._verdict()}.")
        except ValueError as error:
            lines.append(f"No powers were found with which nothing grows: {error}.")
            return with_legend("\n".join(lines))
        if features:
            try:
                learning = told["every layer moves"] = self.mended(features=True)
                lines += _to_move(stable, learning)
            except ValueError:
                lines += _unmoved(stable.regime)
        if any(not change.nothing for one in told.values() for change in one.changes):
            return with_legend("\n".join(lines), _changes(told))
        if len(lines) == 1 or told.keys() > {"nothing grows"}:
            lines.append("There is nothing to mend.")
        return with_legend("\n".join(lines))

    def __repr__(self) -> str:
        return str(self.table())

    def table(self) -> TextTable:
        """The rows and exponents."""
        from rich.table import Table  # slow to import

        exponents = Table(title=f"{self.name}: {self._verdict()}")
        for name in ("", "power of n", "exponent of"):
            exponents.add_column(name)
        for name, meaning in self.meanings().items():
            exponents.add_row(name, f"{self.mark(name)}{self.exponents[name]}", meaning)
        rows = [_rows(self.rows)] if self.rows else []
        return with_legend(*rows, exponents)

    def meanings(self) -> dict[str, str]:
        """What the exponents are exponents of."""
        found = {}
        for name in self.exponents:
            stem, _, layer = name.rpartition("_")
            found[name] = MEANINGS.get(f"{stem}_l" if layer.isdigit() else name) or MEANINGS[name]
        return found

    def _verdict(self) -> str:
        if not self.stable:
            return "something grows with the width, and there is no limit"
        if self.trivial:
            return "nothing grows, but the outputs do not move in the limit"
        if self.kernel:
            return "nothing grows, the outputs move, and no features do"
        return "nothing grows, and features move"


def regime_of(stable: bool, exponents: Mapping[str, Exponent]) -> Regime:
    """The regime that exponents `df` and `r` tell; without a name where features are learnt."""
    trivial = stable and exponents["df"] < 0
    learns = stable and not trivial and exponents["r"] == 0
    kernel = stable and not trivial and not learns
    name = "" if learns else "kernel" if kernel else "trivial" if trivial else "unstable"
    return Regime(stable, trivial, learns, kernel, exponents, name)


def _to_move(stable: Mended, learning: Mended) -> list[str]:
    """What keeps parameters from moving their layers once nothing grows, and what makes them."""
    lowered, raised = [], []
    for row in stable.regime.rows:
        now, wanted = stable[row.parameter], learning[row.parameter]
        lower = wanted.initial - now.initial
        if lower:
            lowered.append(
                f"Once what is below {row.parameter} moves, its initial values make something "
                f"grow: lower them by {in_words(lower)}."
            )
        if row.layer.exponent == NEVER and wanted[1:] == now[1:]:
            raised.append(f"{row.parameter} is not trained.")
        elif row.layer.exponent < 0:
            raised.append(
                f"{row.parameter} does not move its layer in the limit, it adds {row.layer}: "
                + _rates(wanted.first - now.first, wanted.rate - now.rate)
            )
    if not lowered + raised:
        return ["Every parameter moves its layer."]
    regime = learning.regime
    return [*lowered, *raised, f"With that it is {regime.name}: {regime._verdict()}."]


def _unmoved(stable: Regime) -> list[str]:
    """What does not move in a stable regime; that what is advised moves it is not checked.

    A layer that moves moves the outputs by its factor more. Where they would grow by it that is
    because of the initial readout, which then comes first.
    """
    still = [row for row in stable.rows if row.layer.exponent < 0]
    lines = [f"{row.parameter} is not trained." for row in still if row.layer.exponent == NEVER]
    still = [row for row in still if row.layer.exponent != NEVER]
    outputs, readout = excess(still), initial_readouts(stable.rows)
    told = [
        f"{row.parameter} does not move its layer in the limit, it adds {row.layer}"
        for row in still
    ]
    if outputs > 0 and readout:
        return [
            *lines,
            *(f"{text}." for text in told),
            f"If they did the outputs would grow like {in_words(outputs)}, by the initial values "
            f"of {' and '.join(readout)}: lower these by {in_words(-outputs)} and classify again.",
        ]
    return lines + [
        f"{text}: raise its learning rate by {in_words(-row.layer.exponent)} and classify again."
        for text, row in zip(told, still, strict=True)
    ]


def excess(still: Sequence[Row]) -> Exponent:
    """The power by which outputs would grow if these rows moved their layers by Θ(1)."""
    return max((row.outputs.exponent - row.layer.exponent for row in still), default=NEVER)


def initial_readouts(rows: Sequence[Row]) -> list[str]:
    """Parameters that feed the outputs and do not start at 0."""
    return [r.parameter for r in rows if r.features is None and r.initial.exponent > NEVER]


def _rates(first: Exponent, rate: Exponent) -> str:
    if first != rate:
        later = f", later ones by {in_words(rate)}" if rate else ", and no other"
        return f"multiply the rate of its first step by {in_words(first)}{later}."
    if rate == 0:
        return "it will with the changes of others."
    return f"{'raise' if rate > 0 else 'lower'} its learning rate by {in_words(rate)}."


def _rows(rows: Sequence[Row]) -> "Table":
    from rich.table import Table  # slow to import

    table = Table(title="parameters")
    for name in ("", "initial", "change", "adds to its layer", "to the outputs", "features move"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.parameter, *("" if power is None else str(power) for power in row[1:]))
    return table


def _changes(told: Mapping[str, Mended]) -> "Table":
    """Factors of every parameter, by what they are good for."""
    from rich.table import Table  # slow to import

    table = Table(title="factors of initial values and learning rates")
    table.add_column("")
    columns: list[tuple[Mended, str]] = []
    for goal, mended in told.items():
        if all(change.nothing for change in mended.changes):
            continue
        own = any(change.first != change.rate for change in mended.changes)
        parts = {"initial": "initial values", "first": "first rate", "rate": "rate"}
        for part, title in parts.items():
            if part != "first" or own:
                columns.append((mended, part))
                table.add_column(f"{goal}:\n{title}")
    for change in next(iter(told.values())).changes:
        cells = [getattr(mended[change.parameter], part) for mended, part in columns]
        table.add_row(change.parameter, *(in_words(cell) if cell else "1" for cell in cells))
    return table


def with_legend(*parts: "Table | str") -> TextTable:
    """Tables and sentences, and below what the marks of exponents in them mean."""
    text = TextTable(*parts)
    marked = [(mark.strip(), told) for mark, told in MARKS.values() if mark]
    used = [f"{mark}: {told}" for mark, told in marked if f"{mark} " in text]
    exact = f"{'others' if used else 'exponents'}: {MARKS['exact'][1]}"
    return TextTable(*parts, "\n".join([*used, exact]))
