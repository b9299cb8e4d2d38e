"""Room in the stores of deferred matrices for what calls reveal.

Arrays of another capacity are other programs, and what is computed with room that is not used takes
its time, too.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tplimit.gaussian.bank import Bank
from tplimit.transforms import sharding
from tplimit.transforms.effort import Calls, compiled
from tplimit.transforms.opaque import Revealed, with_banks
from tplimit.values.tensors import Matrices, Value

#: Pairs that stores have room for at first, and the multiple that capacities are rounded up to.
_CAPACITY, _ROUND = 128, 16

#: Pairs x particles up to which stores have room for all of a run from the beginning: to compile
#: for another capacity takes longer than what that costs.
_ROOMY = 2**21


def with_room(revealed: Revealed, rows: dict[int, int], calls: Calls | None) -> Revealed:
    """Stores with room for the pairs that a call may reveal; capacity doubles when full.

    The bounds in ``revealed`` are replaced by the true counts only when they exceed the capacity,
    since reading these waits for the call before.
    """
    bank = revealed.bank
    if not bank.stores or _needed(revealed.used, rows, 1) <= bank.capacity:
        return revealed
    counts = jax.device_get([store.count for store in bank.stores])
    used = {index: int(np.max(count)) for index, count in enumerate(counts)}
    capacity = max(bank.capacity, _CAPACITY)
    while capacity < _needed(used, rows, 1):
        capacity *= 2
    if calls is not None and bank.capacity < _needed(used, rows, calls.left) < capacity:
        capacity = _rounded(_needed(used, rows, calls.left))
    return Revealed(_grown(bank, capacity), revealed.lineage, used)


def with_room_for_all(
    state: Any, asked: Sequence[tuple[dict[int, int], int]], more: float = 1.0
) -> Any:
    """A state as sampled with room for a whole run, where that is little.

    Args:
        asked: pairs of the rows that a call asks of each matrix, and how many such calls follow.
        more: how many times as many rows later calls may ask for.
    """
    rows: dict[int, int] = {}
    for one, times in asked:
        for index, count in one.items():
            rows[index] = rows.get(index, 0) + times * count

    def roomy(revealed: Revealed) -> Revealed:
        bank, capacity = revealed.bank, _rounded(math.ceil(more * max(rows.values(), default=0)))
        if bank.capacity or capacity > max(2 * _CAPACITY, _ROOMY // max(1, bank.n)):
            return revealed
        return replace(revealed, bank=_grown(bank, capacity))

    return with_banks(state, roomy)


def _needed(used: dict[int, int], rows: dict[int, int], times: int) -> int:
    return max((used.get(i, 0) + times * count for i, count in rows.items()), default=0)


def _rounded(capacity: int) -> int:
    return -(-capacity // _ROUND) * _ROUND


def _grown(bank: Bank, capacity: int) -> Bank:
    return _growing(capacity)(bank)


@functools.lru_cache(maxsize=16)
def _growing(capacity: int) -> Callable[[Bank], Bank]:
    # Compiled with its layout: operation by operation every device would hold whole stacks.
    return compiled(lambda bank: sharding.constrained(bank.mesh, bank.grown(capacity)), 0)


def fitted(value: Value, bank: Bank | None) -> Value:
    """Matrices whose parts are padded to the capacity of the stores."""
    if bank is None or not isinstance(value, Matrices):
        return value
    return value.map(
        lambda matrix: replace(
            matrix, parts=tuple(part.fitted(bank.capacity) for part in matrix.parts)
        )
    )
