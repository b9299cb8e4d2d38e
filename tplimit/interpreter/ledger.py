"""What deferred matrices have been asked, in the course of one run."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import NoLimitError, WidthError
from tplimit.gaussian import deferred, noise
from tplimit.gaussian.bank import Bank
from tplimit.interpreter.spaces import Spaces
from tplimit.values.spans import Span
from tplimit.values.tensors import Tensor

#: Multipliers below which the central-limit terms of shares are far from normal.
_FEWEST = 8


@jax.tree_util.register_static
@dataclass(eq=False)
class Asked:
    """What a call has to do; static in a traced result.

    Attributes:
        rows: asked of each side of each matrix, by (index, transposed).
        pairs: how many functions of pairs are computed.
    """

    rows: dict[tuple[int, bool], int]
    pairs: int = 0


def generic(shape: tuple[int, ...], dtype: Any, *names: int) -> np.ndarray:
    """Numbers that satisfy no equation, the same ones for the same names."""
    drawn = np.random.default_rng(names).standard_normal(shape)
    return drawn.astype(dtype)


def _orthogonal(index: int, transposed: bool, length: int) -> tuple[np.ndarray, np.ndarray]:
    """An orthogonal matrix and a change of it that keeps it orthogonal to first order.

    ``H S H / m`` with a Hadamard matrix of order m = 2^k and signs S, among more coordinates, in
    another order: of single precision and yet orthogonal without round-off.
    """
    m = 1 << (length.bit_length() - 1)
    i = np.arange(m)
    hadamard = 1.0 - 2 * (np.bitwise_count(i[:, None] & i) % 2)
    q = np.eye(length)
    q[:m, :m] = hadamard * np.sign(generic((m,), np.float64, index, 1)) @ hadamard / m
    q = q[np.argsort(generic((length,), np.float64, index, 2))]
    turn = np.round(4 * generic((length, length), np.float64, index, 3))
    change = q @ (turn - turn.T)
    return (q.T, change.T) if transposed else (q, change)


class Ledger:
    """The bank of deferred matrices as it is revealed, and the answers given so far.

    Attributes:
        bank: with all that has been revealed, or None where nothing is deferred.
        asked: how many rows, of which matrix.
        sides: (index, transposed) of what has been asked, in earlier calls too; of values of
            several terms only.
        dry: whether this is a rehearsal: rows are counted, and dense matrices answer.
        drawn: 0; what is random depends on it in a rehearsal.
    """

    def __init__(
        self, bank: Bank | None, spaces: Spaces, dry: bool = False, drawn: Any = 0.0
    ) -> None:
        self.bank = bank
        self.spaces = spaces
        self.dry, self.drawn = dry, drawn
        self.asked = Asked({})
        earlier = () if bank is None else enumerate(bank.asked)
        self.sides = {(index, bool(side)) for side, stores in earlier for index in stores}
        self._answers: dict[tuple[int, bool, int], tuple[Any, Any]] = {}
        self._rows: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._once: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def rows(self, value: Tensor) -> Any:
        """Coefficient as rows ``(k, M)``, finite axes first; the same object when asked again."""
        key = (id(value.coefficient), -1 if value.axis is None else value.axis)
        if key not in self._rows:
            assert value.axis is not None
            moved = jnp.moveaxis(jnp.asarray(value.coefficient), value.axis, -1)
            flat = moved.reshape(-1, moved.shape[-1])
            self._rows[key] = (value.coefficient, flat)
        return self._rows[key][1]

    def once(self, what: Hashable, of: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """What is computed of some arrays; the same object when asked again."""
        key = (what, *map(id, of))
        if key not in self._once:
            self._once[key] = (of, compute())
        return self._once[key][1]

    def number(self, arrays: Sequence[Any], what: Hashable) -> int:
        """A number for some arrays, in any order, and a use of them: the same for the same ones."""
        arrays = tuple(sorted(arrays, key=id))
        count: int = self.once(("number", what), arrays, lambda: len(self._once))
        return count

    def basis(self, index: int, transposed: bool) -> Any:
        """The directions that have been revealed, as rows ``(C, M)`` of which those of other kinds
        are zero."""
        assert self.bank is not None
        view = self.bank.view(index, transposed)
        rows = self.once("basis", (view.X,), lambda: view.X * view.directions[:, None])
        self.remember(index, transposed, rows, jnp.diag(view.directions.astype(rows.dtype)))
        return rows

    def moved(self, rows: Any, span: Span) -> Any:
        """Rows, or a mask of coordinates, at another place along their width; the same object when
        asked again."""
        if span.is_whole:
            return rows
        n = 1 if self.bank is None else self.bank.n
        return self.once(span, (rows,), lambda: span.moved(rows, n))

    def query(
        self,
        index: int,
        transposed: bool,
        rows: Any,
        cores: Sequence[Any] = (),
        unmet: np.ndarray | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Images of rows ``(B, n_in)`` under ``G / sqrt(n_in)`` (or transposed) and under cores in
        the bases of ``G``; reveals and remembers.

        Returns: the images, that of ``G`` first, and with several terms their changes at finite
        width, over ``n^(-1/2)``.
        """
        assert self.bank is not None
        view = self.bank.view(index, transposed)
        rows = rows.astype(view.X.dtype)
        count = int(rows.shape[0])
        self.count(Asked({(index, transposed): count}))
        if self.dry or not count:
            images, changes, coordinates = self._stand_in(index, transposed, rows, cores)
        else:
            earlier = []
            if not self.bank.law.exact:
                earlier = self.bank.noise_rows(index, transposed, self.spaces.roots())
            answer = deferred.query(
                view, rows, self.bank.law, earlier,
                stream=self.bank.stream(index, transposed), cores=cores,
                multipliers=self._multipliers(index, transposed),
                unmet=None if unmet is None else jnp.asarray(unmet),
            )  # fmt: skip
            self.bank = self.bank.with_view(index, transposed, answer.store)
            images, changes = [answer.image, *answer.updates], answer.fluctuations
            coordinates = answer.coordinates
        self.remember(index, transposed, rows, coordinates)
        return images, changes

    def _stand_in(
        self, index: int, transposed: bool, rows: Any, cores: Sequence[Any]
    ) -> tuple[list[Any], list[Any], Any]:
        """What a query gives, by a matrix of the rows of the store: linear in what is asked as the
        true answer is, the same for equal rows, and of no relation to anything else."""
        assert self.bank is not None
        view, dtype = self.bank.view(index, transposed), rows.dtype
        between = generic((view.capacity, view.capacity), dtype, index)
        coordinates = noise.inner(rows, view.X) * view.directions
        updates = [(coordinates @ core.T) @ view.Y for core in cores]
        image = (coordinates @ (between.T if transposed else between)) @ view.Y
        change = None
        if view.orthogonal:  # inner products are kept, and the transposed matrix leads back
            dense, change = _orthogonal(index, transposed, rows.shape[1])
            image, change = rows @ dense.astype(dtype), change.astype(dtype)
        images = [image, *updates]
        if self.bank.terms == 1:
            return images, [], coordinates
        shape = rows.shape[1], view.Y.shape[1]
        change = generic(shape, dtype, index, 1 + transposed) if change is None else change
        out, into = self.bank.store_spaces[index]
        weights = self.multipliers(out if transposed else into, rows.shape[1])
        met = noise.inner(rows * weights, view.X) * view.directions * self.bank.n**0.5
        return images, [rows @ change, *((met @ core.T) @ view.Y for core in cores)], coordinates

    def count(self, asked: Asked, times: int = 1) -> None:
        """Add to what has been asked."""
        self.asked.pairs += times * asked.pairs
        if self.bank is not None and self.bank.terms > 1:
            self.sides.update(asked.rows)
        for side, rows in asked.rows.items():
            self.asked.rows[side] = self.asked.rows.get(side, 0) + times * rows

    def _multipliers(self, index: int, transposed: bool) -> deferred.Multipliers | None:
        assert self.bank is not None
        if self.bank.terms == 1:
            return None
        out, into = self.bank.store_spaces[index]
        if transposed:
            out, into = into, out
        view = self.bank.view(index, transposed)
        return deferred.Multipliers(
            self.multipliers(into, view.X.shape[1]), self.multipliers(out, view.Y.shape[1]),
            self.bank.n,
        )  # fmt: skip

    def multipliers(self, space: int, size: int) -> Any:
        """Weights of the coordinates of a space in central-limit terms (0 where these are left
        out)."""
        assert self.bank is not None
        if not self.bank.fluctuating:
            return jnp.zeros(size)
        found = self.spaces.multiplied(space)
        if found is None:
            raise NoLimitError(
                "An earlier call has drawn sums over a width that is put together or divided in "
                "another way here: how they fluctuate together is not known.",
                advice="Compute both sums in one function, or let the earlier call divide the "
                "width, and combine its vectors, as this one does.",
            )
        label, unit = found
        period = size if unit is None else math.gcd(size, int(unit * self.bank.n))
        if self.dry:
            half = generic((period // 2,), np.float32, label, 3)
            weights = np.concatenate([half, -half, np.zeros(period % 2, np.float32)])  # of zero sum
            # Where others are tried, next to nothing: large logits stay where a softmax saturates.
            return np.tile(weights, size // period) * jnp.exp(-200.0 * jnp.asarray(self.drawn))
        if unit is not None and period < _FEWEST:
            raise WidthError(
                f"A width of {size} particles is divided into so many shares that central-limit "
                f"terms have {period} independent multipliers.",
                advice="Raise samples=, or let shares begin at multiples of their length.",
            )
        return self.bank.multipliers(label, size, period)

    def closed(self) -> Bank | None:
        """The bank as it leaves the call, knowing which spaces have been combined."""
        if self.bank is None:
            return None
        stores = lambda transposed: frozenset(i for i, side in self.sides if side == transposed)
        units = sorted(self.spaces.lasting_units().items())
        drawn = sorted(self.spaces.lasting_multiplied().items())
        return replace(
            self.bank,
            asked=(stores(False), stores(True)),
            classes=tuple(sorted(self.spaces.lasting().items())),
            divided=tuple(space for space, _ in units),
            units=tuple(unit for _, unit in units),
            drawn=tuple(space for space, _ in drawn),
            drawn_units=tuple(unit for _, unit in drawn),
        )

    def remember(self, index: int, transposed: bool, rows: Any, coordinates: Any) -> None:
        self._answers[(index, transposed, id(rows))] = (rows, coordinates)

    def recall(self, index: int, transposed: bool, rows: Any) -> Any | None:
        """Coordinates of rows that were a query's input, or None."""
        found = self._answers.get((index, transposed, id(rows)))
        return None if found is None else found[1]

    def coordinates(self, index: int, transposed: bool, rows: Any) -> Any:
        """Coordinates of rows in the revealed basis, revealing what is new."""
        found = self.recall(index, transposed, rows)
        if found is None:
            assert self.bank is not None
            rows = rows.astype(self.bank.view(index, transposed).X.dtype)
            self.query(index, transposed, rows)
            found = self.recall(index, transposed, rows)
        return found
