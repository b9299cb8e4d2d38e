"""Tests that need eight devices: `test_sharding.py` runs this file in a process that has them."""

import functools
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tplimit as tp
from tplimit.errors import LimitError, WidthError
from tplimit.training import checkpoint, encoding, infinite
from tplimit.transforms import plans, room, sampling, sharding

N = tp.Width("n")
M = 256
THETA = {
    "u": tp.normal((2, N)),
    "b": tp.normal((N,)),
    "w": tp.normal((N, N), std=N**-0.5),
    "v": tp.normal((N,)),
}
X = np.array([[1.0, 0.5], [-0.2, 0.7], [0.3, -1.1]], np.float32)
Y = np.array([1.0, -1.0, 0.5], np.float32)
DEVICES = np.array(jax.devices())
MESH = Mesh(DEVICES, ("particles",))


def predict(theta, x):
    hidden = jnp.tanh(jnp.tanh(x @ theta["u"] + theta["b"]) @ theta["w"])
    return hidden @ theta["v"] / theta["v"].shape[0]


def slope(theta, batch):
    """The loss, and the gradient times the learning rate of muP."""
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    n = theta["v"].shape[0]
    return loss, {k: 0.1 * (g if k == "w" else n * g) for k, g in gradient.items()}


def step(theta, batch):
    loss, move = slope(theta, batch)
    return jax.tree.map(jnp.subtract, theta, move), loss


def observe(theta):
    return predict(theta, X)


def with_velocity(theta):
    return theta, jax.tree.map(jnp.zeros_like, theta)


def step_with_momentum(state, batch):
    theta, velocity = state
    loss, move = slope(theta, batch)
    velocity = jax.tree.map(lambda m, g: 0.9 * m - g, velocity, move)
    return (jax.tree.map(jnp.add, theta, velocity), velocity), loss


MOMENTUM = {
    "step": step_with_momentum, "init": with_velocity,
    "observe": lambda state: predict(state[0], X),
}  # fmt: skip


def run(mesh, steps=5, **options):
    given = {"step": step, "width": tp.inf, "samples": M, "observe": observe} | options
    batches = [(X * (1 + t / 10), Y) for t in range(steps)]
    return tp.train(
        given.pop("step"), THETA, batches, key=jax.random.key(3), progress=False, mesh=mesh, **given
    )


def assert_close(one, two, rtol):
    for part in ("outputs", "observations"):
        a, b = getattr(one.replicates, part), getattr(two.replicates, part)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.max(np.abs(b)))


def bank_of(run):
    return next(leaf for leaf in jax.tree.leaves(run.state) if leaf._revealed)._revealed.bank


@pytest.fixture
def capacities(monkeypatch):
    """Stores with little room at first; what they have grown to."""
    monkeypatch.setattr(room, "_CAPACITY", 24)
    grown, seen = room._grown, []

    def growing(bank, capacity):
        seen.append(capacity)
        bank = grown(bank, capacity)
        if bank.mesh is not None:
            # At once, not only after the next step: that would be too late for memory.
            assert_divided(bank)
        return bank

    monkeypatch.setattr(room, "_grown", growing)
    return seen


def assert_divided(bank):
    parts = bank.mesh.size
    for store in bank.stores:
        for stack in (store.X, store.Y):
            length = stack.shape[1]
            assert length % parts == 0
            assert {s.data.shape for s in stack.addressable_shards} == {
                (store.capacity, length // parts)
            }
            assert len({s.device for s in stack.addressable_shards}) == parts
            assert len({str(s.index) for s in stack.addressable_shards}) == parts
        assert store.overlap.sharding.is_fully_replicated


@functools.cache
def alone(**options):
    """The run on one device."""
    return run(None, **options)


CASES = {
    "plain": {},
    "momentum": pytest.param(MOMENTUM, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mesh_changes_round_off_only(options, double, capacities):
    with jax.enable_x64(True) if double else nullcontext():
        expected = run(None, **options)
        on_one = list(capacities)
        shared = run(MESH, **options)
        assert expected.replicates.outputs.dtype == (np.float64 if double else np.float32)
    assert_close(shared, expected, 1e-12 if double else 1e-5)
    assert shared.exponents.outputs == expected.exponents.outputs
    # Growth in the middle of the run, not only before its first step.
    assert len(on_one) >= 2 and capacities == on_one * 2
    bank = bank_of(shared)
    assert bank.mesh.size == 8
    assert_divided(bank)
    assert int(bank.stores[0].count) == int(bank_of(expected).stores[0].count)


def test_vectors_and_noise_are_divided_and_all_else_is_not():
    shared = run(MESH, steps=1)
    bank = bank_of(shared)
    for leaf in jax.tree.leaves((*bank.anchors, *bank.noise.orders)):
        assert {s.data.shape[-1] for s in leaf.addressable_shards} == {M // 8}
    assert bank.noise.directions.sharding.is_fully_replicated
    for name in "ubv":
        for array in jax.tree.leaves(shared.state[name]._value):
            long = array.ndim > 0 and array.shape[-1] == M
            assert array.sharding.is_fully_replicated != long
    cores = jax.tree.leaves(shared.state["w"]._value)
    assert cores and all(core.sharding.is_fully_replicated for core in cores)


MESHES = {
    "made": lambda: jax.make_mesh((8,), ("a",)),
    "made with two axes": lambda: jax.make_mesh((4, 2), ("a", "b")),
    "two axes": lambda: Mesh(DEVICES.reshape(2, 4), ("a", "b")),
    "some devices": lambda: Mesh(DEVICES[2:6], ("a",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_meshes_of_any_form(name):
    mesh = MESHES[name]()
    shared = run(mesh, steps=2, noise="random")
    assert_close(shared, alone(steps=2, noise="random"), 1e-5)
    assert_divided(bank_of(shared))
    assert set(bank_of(shared).stores[0].X.devices()) == set(mesh.devices.flat)


@pytest.mark.slow
def test_deferred_networks():
    options = {"width": tp.Deferred(64), "steps": 2}
    shared = run(MESH, **options)
    assert_close(shared, run(None, **options), 1e-4)  # its rank tolerance is near round-off
    assert_divided(bank_of(shared))


def test_particles_that_cannot_be_divided():
    with pytest.raises(WidthError, match="100 samples cannot be divided evenly among 8 devices"):
        run(MESH, samples=100, noise="random")
    with pytest.raises(WidthError, match="Use a multiple of 8; powers of two are best"):
        tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=4, mesh=MESH)


def test_values_on_different_meshes():
    one, two = (
        tp.sample(tp.normal((N,)), jax.random.key(i), width=tp.inf, samples=M, mesh=mesh)
        for i, mesh in enumerate((MESH, None))
    )
    with pytest.raises(LimitError, match="different meshes"):
        tp.limit(lambda a, b: a.mean() + b.mean())(one, two)


def hinge(theta, x):
    root = theta["v"].shape[0] ** 0.5
    return jax.nn.relu(jax.nn.relu(x @ theta["u"]) @ theta["w"] / root) @ theta["v"] / root


def test_kinks_with_two_terms():
    """A step of a rank-one update that is masked by active units, in the kernel regime."""

    def step(theta, batch):
        loss = lambda t: jnp.mean((hinge(t, X) - Y) ** 2)
        value, gradient = jax.value_and_grad(loss)(theta)
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, gradient), value

    options = {"width": tp.inf, "samples": 64, "terms": 2, "progress": False}
    theta = {"u": THETA["u"], "w": tp.normal((N, N)), "v": THETA["v"]}
    one, shared = (
        tp.train(step, theta, [0, 1], key=jax.random.key(0), mesh=mesh, **options)
        for mesh in (None, MESH)
    )
    np.testing.assert_allclose(shared.outputs, one.outputs, rtol=1e-4)


@pytest.mark.parametrize("devices", [DEVICES[3:4], DEVICES[:4]], ids=["one other", "four"])
def test_data_on_other_devices_come_to_the_particles(devices):
    """Inputs that lie, committed, on other devices than the mesh, or than the first one."""
    elsewhere = jax.device_put(X, NamedSharding(Mesh(devices, ("x",)), PartitionSpec()))
    for mesh in (MESH, None):
        theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=64, mesh=mesh)
        found = tp.limit(predict)(theta, elsewhere)
        np.testing.assert_allclose(found, tp.limit(predict)(theta, X), rtol=1e-5)


def long_arrays(text, length):
    """Shapes in a compiled program, of what one device holds, that have an axis of this length."""
    shapes = {m[1]: m[2] for m in re.finditer(r"((?:f|u|s|pred)\d*\[([\d,]+)\])", text)}
    divided = {shape: [int(d) for d in dims.split(",")] for shape, dims in shapes.items()}
    return {s for s, dims in divided.items() if length in dims and 0 not in dims}


def test_no_device_draws_or_trains_all_particles(monkeypatch):
    size = 4096 + 8  # no other axis has this length
    mesh = sharding.for_particles(MESH, size)
    law = sampling.law_of(tp.inf, "random", None)
    draw = sampling._sampler(
        tuple(THETA.values()), sampling.Draw(law, size, np.dtype(np.float32), mesh)
    )
    sampled = draw.lower(jax.random.key(0)).compile().as_text()
    assert long_arrays(sampled, size // 8) and not long_arrays(sampled, size)

    program, programs = plans.Plan.program, []

    def watched(*args):
        run = program(*args)

        def watching(*given):
            programs.append(run.lower(*given).compile().as_text())
            return run(*given)

        return watching

    monkeypatch.setattr(plans.Plan, "program", watched)
    # A function of its own, of which nothing is compiled yet.
    fresh = lambda state, batch: step(state, batch)
    tp.train(fresh, THETA, [(X, Y)], width=tp.inf, key=jax.random.key(0), samples=size,
             mesh=MESH, noise="random", progress=False)  # fmt: skip
    assert programs
    for text in programs:
        assert long_arrays(text, size // 8) and not long_arrays(text, size)


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch, writes):
    """The process dies in the write after this many."""
    write, left = checkpoint._write, iter(range(writes))

    def dying(*content):
        if next(left, None) is None:
            raise Killed
        write(*content)

    monkeypatch.setattr(checkpoint, "_write", dying)


def bits(tree):
    """Leaves of a tree, limit values with all that they refer to, to be compared with ==."""
    code, arrays = encoding.encode(jax.tree.leaves(tree))
    return code["value"], {name: array.tobytes() for name, array in arrays.items()}


def test_a_killed_run_goes_on_on_the_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    whole = run(MESH, replicates=2, steps=3)
    every = tp.Checkpoint(tmp_path, every=1)
    # In the middle of the first part, of the second, and when all is done.
    for writes in (2, 3):
        with monkeypatch.context() as patch:
            kill_after(patch, writes)
            with pytest.raises(Killed):
                run(MESH, replicates=2, steps=3, checkpoint=every)
    for _ in range(2):
        resumed = run(MESH, replicates=2, steps=3, checkpoint=every)
        for part in ("outputs", "observations"):
            one, two = (getattr(r.replicates, part) for r in (resumed, whole))
            np.testing.assert_array_equal(one, two)
        assert bits(resumed.state)[1] == bits(whole.state)[1]
        assert bank_of(resumed).mesh == bank_of(whole).mesh
        assert_divided(bank_of(resumed))
        # One bank for all of the state, as it was.
        values = [leaf for leaf in jax.tree.leaves(resumed.state) if leaf._revealed is not None]
        assert len({id(value._revealed) for value in values}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("before", ["mesh", "alone"])
def test_a_killed_run_goes_on_with_other_devices(before, tmp_path, monkeypatch):
    first, then = (MESH, None) if before == "mesh" else (None, Mesh(DEVICES[:4], ("a",)))
    whole = run(first, steps=3)
    every = tp.Checkpoint(tmp_path, every=1)
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            run(first, steps=3, checkpoint=every)
    resumed = run(then, steps=3, checkpoint=every)
    assert_close(resumed, whole, 1e-5)
    if then is None:
        assert bank_of(resumed).mesh is None
    else:
        assert_divided(bank_of(resumed))
