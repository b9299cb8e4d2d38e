"""Programs compiled in pieces, and how well a program is compiled, compute the same numbers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit import _jax
from tplimit.caching import pieces
from tplimit.caching.pieces import apart, chained
from tplimit.caching.store import PIECES, PROGRAMS
from tplimit.gaussian import sobol
from tplimit.transforms import effort, plans, room
from tplimit.transforms.effort import Calls, pays

assert_same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
N = tp.Width("n")
THETA = {"U": tp.normal((3, N)), "W": tp.normal((N, N), std=N**-0.5), "v": tp.normal((N,))}
X = jax.random.normal(jax.random.key(5), (2, 3))
BATCHES = [(X, jnp.array([1.0, -1.0]))] * 5
ROWS = jnp.arange(12.0).reshape(4, 3)


def predict(theta: Any, x: Any) -> Any:
    h = jnp.tanh(jnp.tanh(x @ theta["U"]) @ theta["W"])
    return h @ theta["v"] / theta["v"].shape[0]


def step(theta: Any, batch: Any) -> Any:
    x, y = batch
    n = theta["v"].shape[0]
    value, g = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    rates = {"U": n, "W": 1.0, "v": n}
    return jax.tree.map(lambda p, r, d: p - 0.2 * r * d, theta, rates, g), value


def trained(**options: Any) -> Any:
    how = {"samples": 256, "replicates": 2, "progress": False, "width": tp.inf} | options
    run = tp.train(
        step, THETA, BATCHES, key=jax.random.key(1), observe=lambda t: predict(t, X), **how
    )
    return run.replicates.outputs, run.replicates.observations


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What is compiled in the test, anew: whether quickly."""
    found: list[bool] = []
    compiled = _jax.compiled

    def watched(*args: Any, quick: bool, **options: Any) -> Any:
        found.append(quick)
        return compiled(*args, quick=quick, **options)

    monkeypatch.setattr(_jax, "compiled", watched)
    PIECES.clear()
    return found


# --- pieces


def square(x: Any) -> Any:
    return jnp.sin(x) @ x.T


def test_a_piece_is_compiled_once_for_its_shapes(made: list[bool]) -> None:
    """Three pieces, two shapes, and what lies before, between and after."""

    def program(x: Any) -> Any:
        a = apart(square, 2 * x)
        b = apart(square, a + 1)
        return apart(square, b - 1) * 3

    np.testing.assert_allclose(chained(program)(ROWS), program(ROWS), rtol=1e-5)
    assert len(made) == 2 + 4 and all(made)
    chained(lambda x: apart(square, x) - 7)(ROWS)
    assert len(made) == 2 + 4 + 1


def test_what_is_equal_is_not_compiled_again(made: list[bool]) -> None:
    for _ in range(2):
        chained(lambda x: apart(square, x + 1) * 2)(ROWS)
    assert len(made) == 3


def test_what_no_output_needs_is_not_compiled(made: list[bool]) -> None:
    def program(x: Any) -> Any:
        apart(square, x)
        return x + 1

    assert_same(chained(program)(ROWS), ROWS + 1)
    assert len(made) == 1


def test_pieces_that_need_nothing_of_each_other_share_what_comes_after(made: list[bool]) -> None:
    def program(x: Any, y: Any) -> Any:
        a = apart(square, x)
        b = apart(jnp.cos, y)
        return jnp.sum(a) + b

    chained(program)(ROWS, jnp.ones(3))
    assert len(made) == 3


@pytest.mark.parametrize(
    ("program", "args"),
    [
        (lambda x: (x, 2.0, x), (ROWS,)),
        (lambda x: {"a": jnp.zeros(3), "b": apart(square, x)}, (ROWS,)),
        (lambda k: jax.random.normal(apart(jax.random.fold_in, k, 3), (4,)), (jax.random.key(0),)),
        (lambda x: jax.vmap(lambda row: apart(jnp.cumsum, row) + 1)(x), (ROWS,)),
        (lambda x: jax.lax.scan(lambda c, r: (c + apart(jnp.sum, r), r), 0.0, x), (ROWS,)),
        (lambda: jnp.ones(2), ()),
    ],
)  # fmt: skip
def test_programs_in_pieces_return_what_they_are(
    program: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    assert_same(chained(program)(*args), jax.jit(program)(*args))


def test_pieces_are_ordinary_functions_inside_of_other_transformations() -> None:
    program = lambda x: jnp.sum(apart(square, x) ** 2)
    np.testing.assert_allclose(
        jax.grad(program)(ROWS), jax.grad(lambda x: jnp.sum(square(x) ** 2))(ROWS)
    )
    np.testing.assert_allclose(apart(square, ROWS), square(ROWS))


def test_only_what_is_given_away_is_overwritten() -> None:
    put = lambda rows, one: rows.at[1].set(one)
    for donated in (False, True):
        rows, one = jnp.ones((64, 128)), jnp.zeros(128)
        program = chained(lambda rows, one: apart(put, rows, one), donated=donated)
        assert_same(program(rows, one)[:2], jnp.stack([jnp.ones(128), one]))
        assert rows.is_deleted() == donated and not one.is_deleted()


def test_what_a_piece_returns_as_it_is_stays_whole() -> None:
    """JAX returns such an argument itself: it is not the program's to overwrite."""
    same = lambda rows, one: (rows, rows.at[0].set(one))
    put = lambda rows, one: rows.at[1].set(one)

    def program(rows: Any, one: Any) -> Any:
        first, second = apart(same, rows, one)
        return apart(put, first, one) + second

    rows = jnp.ones((64, 128))
    chained(program)(rows, jnp.zeros(128))
    assert not rows.is_deleted()


def test_the_number_of_pieces_that_are_kept_is_bounded() -> None:
    assert PIECES.most <= 512 and pieces.PIECES is PIECES


# --- how well


def test_numbers_do_not_depend_on_how_well_a_program_is_compiled(
    unshared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for bound in (np.inf, 0.0):
        monkeypatch.setattr(effort, "_PAYS", bound)
        runs.append(trained())
        PROGRAMS.clear()
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_steps_of_a_long_run_are_compiled_quickly(
    unshared: None, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that follow are optimised if they have much to do, all of them."""
    work = 256 * 3 * 2  # particles, vectors in an array, replicates in one call
    monkeypatch.setattr(effort, "_PAYS", 3 * work)
    trained()
    assert made.count(False) == 2  # step and observe, from step 2 on: 3 and 4 calls
    PROGRAMS.clear()
    monkeypatch.setattr(effort, "_PAYS", 5 * work)
    made.clear()
    trained()
    assert made.count(False) == 0


def test_a_function_that_is_called_often_is_compiled_again(
    unshared: None, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "_PAYS", 3 * (256 * 3))
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=256)
    made.clear()
    function = tp.limit(lambda t: predict(t, X))
    found = [function(theta) for _ in range(4)]
    assert made.count(False) == 1
    np.testing.assert_allclose(found[0], found[-1], rtol=1e-5, atol=1e-6)
    assert_same(found[0], found[1])


def test_calls_are_counted_from_the_beginning_of_the_run() -> None:
    """So that a run which goes on from a checkpoint chooses as if it had never stopped."""
    whole = Calls(10, times=3)
    assert [whole.after(k).alike for k in range(10)] == [3, 3] + [24] * 8
    assert Calls(10, 3, done=4).alike == whole.after(4).alike
    assert whole.after(4).left == 6
    assert [Calls(1).alike, Calls(2).after(1).alike] == [1, 1]
    assert pays(1e12) and not pays(0.0)


# --- room


def test_a_run_has_one_capacity(unshared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, program = set(), plans.Plan.program

    def watched(*args: Any) -> Any:
        run = program(*args)

        def watching(stores: Any, *given: Any) -> Any:
            seen.update(store.X.shape[-2] for store in stores)
            return run(stores, *given)

        return watching

    monkeypatch.setattr(plans.Plan, "program", watched)
    for options in ({}, {"terms": 2}, {"width": tp.Deferred(256)}):
        seen.clear()
        trained(**options)
        assert len(seen) == 1, options


def test_a_long_run_begins_with_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_ROOMY", 0)
    monkeypatch.setattr(room, "_CAPACITY", 16)
    few = trained()
    monkeypatch.undo()
    for a, b in zip(few, trained(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --- direction numbers


@pytest.mark.parametrize(("coordinates", "bits"), [(1, 1), (2, 3), (300, 14), (5000, 16), (9, 22)])
def test_direction_numbers_are_the_same_without_importing_scipy_stats(
    coordinates: int, bits: int
) -> None:
    found = sobol.directions(coordinates, bits)
    assert found.dtype == np.uint32
    assert np.array_equal(found, sobol._probed(coordinates, bits))
