"""The bank: everything revealed so far of the random parameters that were sampled together.

A bank is immutable; a call returns a new one. Its arrays are the stores of the deferred matrices,
the *anchors*, orthonormal rows that span the initial vectors, against which new noise is matched,
and what the noise of all of them shares. Spaces are small integers; equal classes are spaces
combined coordinate by coordinate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tplimit.gaussian import deferred
from tplimit.gaussian.deferred import Law, Store
from tplimit.gaussian.kinds import Noise, Random, Stream
from tplimit.gaussian.noise import NoiseRows
from tplimit.values.fields import ALONG, FINITE, NESTED, SPACES, STATIC, STORE, relabelled

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Stores and anchors, with the static facts about them.

    Attributes:
        stores: one per deferred matrix.
        anchors: orthonormal rows ``(k, M)``, one array per entry of ``anchor_spaces``.
        noise: the kind of noise, with room for all rows that the stores have room for.
        key: names the multipliers of central-limit terms, or None.
        store_spaces: (row space, column space) of each store.
        store_sources: for each store the sources that what is fresh on its rows, and on its
            columns, is odd in: its own, named by the space, and those that it is one with others of
            a stack (see ``values/parity.py``).
        asked: the stores that have been asked for images in earlier calls, and those that have
            been asked for images under the transposed matrix.
        anchor_spaces: space of each array of anchors.
        classes: pairs (space, space it was combined with), a forest with roots the classes.
        divided: spaces whose widths are divided into shares.
        units: for each of these the length, over ``n``, that all shares are multiples of.
        drawn: spaces by which earlier calls have drawn multipliers of central-limit terms.
        drawn_units: for each of these the unit of its width then, None where it was whole.
        initial: numbers of noise rows that the initial vectors have used.
        n: the width: particles per common ``n`` in the limit, the true ``n`` when ``law.exact``.
        law: how fresh rows are drawn.
        terms: terms of the expansion in the width that are kept of every value.
        fluctuating: whether sums over a width have their central-limit term.
        mesh: devices that share the particles, or None.
        pair_samples: particles per common ``n`` over which functions of pairs are averaged; None
            stands for all.
    """

    stores: tuple[Store, ...] = field(default=(), metadata=NESTED)
    anchors: tuple[jax.Array, ...] = field(default=(), metadata=ALONG)
    noise: Noise = field(default=Random(), metadata=NESTED)
    key: jax.Array | None = field(default=None, metadata=FINITE)
    store_spaces: tuple[tuple[int, int], ...] = field(default=(), metadata=SPACES)
    store_sources: tuple[tuple[frozenset[int], frozenset[int]], ...] = field(
        default=(), metadata=SPACES
    )
    asked: tuple[frozenset[int], frozenset[int]] = field(
        default=(frozenset(), frozenset()), metadata=STORE
    )
    anchor_spaces: tuple[int, ...] = field(default=(), metadata=SPACES)
    classes: tuple[tuple[int, int], ...] = field(default=(), metadata=SPACES)
    divided: tuple[int, ...] = field(default=(), metadata=SPACES)
    units: tuple[Fraction, ...] = field(default=(), metadata=STATIC)
    drawn: tuple[int, ...] = field(default=(), metadata=SPACES)
    drawn_units: tuple[Fraction | None, ...] = field(default=(), metadata=STATIC)
    initial: int = field(default=0, metadata=STATIC)
    spaces: int = field(default=0, metadata=STATIC)
    n: int = field(default=1, metadata=STATIC)
    law: Law = field(default=Law(False, 0.0), metadata=STATIC)
    terms: int = field(default=1, metadata=STATIC)
    fluctuating: bool = field(default=True, metadata=STATIC)
    mesh: Mesh | None = field(default=None, metadata=STATIC)
    pair_samples: int | None = field(default=None, metadata=STATIC)

    @property
    def capacity(self) -> int:
        return self.stores[0].capacity if self.stores else 0

    def view(self, index: int, transposed: bool) -> Store:
        store = self.stores[index]
        return store.T if transposed else store

    def with_view(self, index: int, transposed: bool, view: Store) -> "Bank":
        store = view.T if transposed else view
        return replace(self, stores=(*self.stores[:index], store, *self.stores[index + 1 :]))

    def grown(self, capacity: int) -> "Bank":
        """Room for ``capacity`` pairs in every store, and for their noise."""
        stores = tuple(deferred.grown(s, capacity) for s in self.stores)
        needed = self.initial + 2 * len(stores) * capacity
        return replace(self, stores=stores, noise=self.noise.with_room(needed))

    def of_terms(self, terms: int) -> "Bank":
        """The same with more terms kept of every value; only before anything is revealed."""
        stores = tuple(
            replace(s, gamma=jnp.zeros_like(s.overlap)) if s.gamma is None else s
            for s in self.stores
        )
        return replace(self, stores=stores, terms=terms)

    def stream(self, index: int, transposed: bool) -> Stream:
        """The noise of the output axis of a view.

        Rows of every axis of every store have numbers of their own, interleaved: what is drawn
        first has the first numbers, whose Sobol' points are the best, and no two rows share one.
        """
        first = self.initial + 2 * index + transposed
        key = self.view(index, transposed).key_Y
        return Stream(key, self.noise, first, 2 * len(self.stores))

    def multipliers(self, space: int, size: int, period: int) -> jax.Array:
        """One standard normal per coordinate of a space, of zero sum; after a period the same ones
        again.

        The central-limit term of ``sum(a)`` over the width is ``sqrt(n) M^-1/2 sum(multiplier a)``,
        with the same multipliers for all sums over the space: so all are jointly right.
        """
        assert self.key is not None
        drawn = jax.random.normal(jax.random.fold_in(self.key, space), (period,))
        drawn = drawn - jnp.mean(drawn)
        return jnp.tile(drawn / jnp.sqrt(jnp.mean(drawn * drawn)), size // period)

    def noise_rows(
        self, index: int, transposed: bool, classes: Mapping[int, int]
    ) -> list[NoiseRows]:
        """Noise rows of the output space of a view, besides the view's own."""

        def same(a: int, b: int) -> bool:
            return classes.get(a, a) == classes.get(b, b)

        rows, columns = self.store_spaces[index]
        space = columns if transposed else rows
        size = self.view(index, transposed).Y.shape[1]
        dtype = self.stores[index].Y.dtype
        found: list[NoiseRows] = []
        for anchor, label in zip(self.anchors, self.anchor_spaces, strict=True):
            if same(label, space):
                found.append(NoiseRows(anchor, jnp.ones(anchor.shape[0], bool)))
        for other, labels in enumerate(self.store_spaces):
            for side, label in ((False, labels[0]), (True, labels[1])):
                if (other, side) != (index, transposed) and same(label, space):
                    found.append(self.view(other, side).noise)
        return [NoiseRows(s.rows.astype(dtype), s.kept) for s in found if s.rows.shape[1] == size]


def merged(banks: list[Bank]) -> tuple[Bank, list[tuple[int, int]]]:
    """One bank for several independent ones, and for each the shift of (stores, spaces)."""
    first = banks[0]
    capacity = max(bank.capacity for bank in banks)
    stores: list[Store] = []
    anchors: list[jax.Array] = []
    store_spaces: list[tuple[int, int]] = []
    store_sources: list[tuple[frozenset[int], frozenset[int]]] = []
    anchor_spaces: list[int] = []
    shifts = []
    classes: list[tuple[int, int]] = []
    divided: list[int] = []
    drawn: list[int] = []
    asked: tuple[frozenset[int], frozenset[int]] = frozenset(), frozenset()
    spaces = 0
    for bank in banks:
        shift = len(stores), spaces
        shifts.append(shift)
        bank = shifted(bank.grown(capacity), *shift)
        stores.extend(bank.stores)
        anchors.extend(bank.anchors)
        store_spaces.extend(bank.store_spaces)
        store_sources.extend(bank.store_sources)
        anchor_spaces.extend(bank.anchor_spaces)
        classes.extend(bank.classes)
        divided.extend(bank.divided)
        drawn.extend(bank.drawn)
        asked = asked[0] | bank.asked[0], asked[1] | bank.asked[1]
        spaces += bank.spaces
    whole = replace(
        first,
        stores=tuple(stores),
        anchors=tuple(anchors),
        noise=first.noise.joined([bank.noise for bank in banks]),
        store_spaces=tuple(store_spaces),
        store_sources=tuple(store_sources),
        anchor_spaces=tuple(anchor_spaces),
        classes=tuple(classes),
        divided=tuple(divided),
        asked=asked,
        units=tuple(unit for bank in banks for unit in bank.units),
        drawn=tuple(drawn),
        drawn_units=tuple(unit for bank in banks for unit in bank.drawn_units),
        initial=max(bank.initial for bank in banks),
        spaces=spaces,
    )
    return whole.grown(capacity), shifts


def shifted(value: T, stores: int, spaces: int) -> T:
    """A value, or bank, with the labels that it has in a merged bank."""
    return relabelled(value, lambda label: label + spaces, lambda label: label + stores)
