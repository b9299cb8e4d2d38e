"""The bank: everything revealed so far of the random parameters that were sampled together.

A bank is immutable; a call returns a new one. Its arrays are the stores of the deferred matrices
and the *anchors*, orthonormal rows that span the initial vectors, against which new noise is
matched. Spaces are small integers; equal classes are spaces combined coordinate by coordinate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from tplimit.gaussian import deferred
from tplimit.gaussian.deferred import Law, NoiseRows, Store
from tplimit.values import STATIC


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Stores and anchors, with the static facts about them.

    Attributes:
        stores: one per deferred matrix.
        anchors: orthonormal rows ``(k, M)``, one array per entry of ``anchor_spaces``.
        store_spaces: (row space, column space) of each store.
        anchor_spaces: space of each array of anchors.
        classes: pairs (space, space it was combined with), a forest with roots the classes.
        n: the width: particles per common ``n`` in the limit, the true ``n`` when ``law.exact``.
        law: how fresh rows are drawn.
    """

    stores: tuple[Store, ...]
    anchors: tuple[jax.Array, ...]
    store_spaces: tuple[tuple[int, int], ...] = field(metadata=STATIC)
    anchor_spaces: tuple[int, ...] = field(metadata=STATIC)
    classes: tuple[tuple[int, int], ...] = field(metadata=STATIC)
    spaces: int = field(metadata=STATIC)
    n: int = field(metadata=STATIC)
    law: Law = field(metadata=STATIC)

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
        return replace(self, stores=tuple(deferred.grown(s, capacity) for s in self.stores))

    def noise_rows(
        self, index: int, transposed: bool, classes: Mapping[int, int]
    ) -> list[NoiseRows]:
        """Noise rows of the output space of a view, besides the view's own."""

        def same(a: int, b: int) -> bool:
            return classes.get(a, a) == classes.get(b, b)

        rows, columns = self.store_spaces[index]
        space = columns if transposed else rows
        size = self.view(index, transposed).Z.shape[1]
        dtype = self.stores[index].Z.dtype
        found = [NoiseRows(jnp.ones((1, size), dtype), jnp.asarray(1))]
        for anchor, label in zip(self.anchors, self.anchor_spaces, strict=True):
            if same(label, space) and anchor.shape[1] == size:
                found.append(NoiseRows(anchor.astype(dtype), jnp.asarray(anchor.shape[0])))
        for other, (labels, store) in enumerate(zip(self.store_spaces, self.stores, strict=True)):
            sides = ((store.Z, store.r, labels[0], False), (store.H, store.t, labels[1], True))
            for stack, count, label, side in sides:
                own = other == index and side == transposed
                if not own and same(label, space) and stack.shape[1] == size:
                    found.append(NoiseRows(stack.astype(dtype), count))
        return found


def merged(banks: list[Bank]) -> tuple[Bank, list[tuple[int, int]]]:
    """One bank for several independent ones, and for each the shift of (stores, spaces)."""
    first = banks[0]
    capacity = max(bank.capacity for bank in banks)
    stores: list[Store] = []
    anchors: list[jax.Array] = []
    store_spaces: list[tuple[int, int]] = []
    anchor_spaces: list[int] = []
    shifts = []
    classes: list[tuple[int, int]] = []
    spaces = 0
    for bank in banks:
        shifts.append((len(stores), spaces))
        stores.extend(bank.grown(capacity).stores)
        anchors.extend(bank.anchors)
        store_spaces.extend((r + spaces, c + spaces) for r, c in bank.store_spaces)
        anchor_spaces.extend(a + spaces for a in bank.anchor_spaces)
        classes.extend((a + spaces, b + spaces) for a, b in bank.classes)
        spaces += bank.spaces
    whole = Bank(
        tuple(stores), tuple(anchors), tuple(store_spaces), tuple(anchor_spaces), tuple(classes),
        spaces, first.n, first.law,
    )  # fmt: skip
    return whole, shifts
