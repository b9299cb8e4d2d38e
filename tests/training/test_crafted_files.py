"""Files that were damaged or made up: each is refused by name, and none runs code."""

import copy
import json
import os
import pickle
import struct
import zipfile
from fractions import Fraction

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import tplimit as tp
from tplimit.kernels.function_space.runs import KernelRun
from tplimit.training import checkpoint, trajectory
from tplimit.training.trajectory import Records

N = tp.Width("n")
THETA = {"u": tp.normal((2, N)), "w": tp.normal((N, N), std=N**-0.5), "c": tp.full((), 0.5)}
X = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32)


def step(theta, y):
    first, n = X @ theta["u"], theta["u"].shape[1]
    second = first @ theta["w"]
    moved = {**theta, "w": theta["w"] + second.T @ first / n, "c": theta["c"] + y}
    return moved, {"norm": second[0] @ second[0] / n}


def trained(width, folder):
    return tp.train(
        step, THETA, [0, 1], width=width, checkpoint=folder, observe=lambda theta: (theta["c"],),
        key=jax.random.key(0), samples=16, replicates=2, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[8, tp.inf])
def run(request, tmp_path_factory):
    """A width, and the two files that a run leaves: in its last part, and at its end."""
    folder = tmp_path_factory.mktemp("run")
    trained(request.param, tp.Checkpoint(folder, every=1))
    return request.param, sorted(folder.glob("*.safetensors"))


# --- what may be written in place of what was


OTHERS = [
    None, True, -1, 0, 1, 3, 10**30, 0.5, "", "w", "inf", "1/0", "../../x", [], {}, ["tuple", []],
    ["list", [1]], ["none", None], ["leaf", "outputs.norm"], ["leaf", {"shape": [], "values": []}],
    ["dict", []], ["dict", {}], ["float", "0x1p+0"], ["float", "nan"], ["fraction", "1/0"],
    ["fraction", "1/2"], ["shared", 0], ["shared", -1], ["shared", 10**9], ["set", [1]],
    ["class", ["Tensor", {}]], ["class", ["Popen", {}]], ["lineage", None], ["value", 1],
    ["__class__", None], ["table", None], ["numpy", ["0", "float32", [2]]], ["scalar", 3],
    ["numpy", ["0", "object", []]], ["jax", [["1", "int8", [-1]], 0]], ["dtype", "float99"],
    ["key", ["threefry2x32", 0]], ["objects", [[], ["0", "int32", [1]]]],
]  # fmt: skip


def places(code, path=()):
    """Every place in a tree of JSON."""
    yield path
    if isinstance(code, (dict, list)):
        for key, entry in code.items() if isinstance(code, dict) else enumerate(code):
            yield from places(entry, (*path, key))


def mutations(code, count):
    """The tree with something else, nothing, or the same twice, at a place; at the top first."""
    generator = np.random.default_rng(0)
    everywhere = list(places(code))
    near = [path for path in everywhere if len(path) < 6]
    for number in range(count):
        options = near if number % 2 else everywhere
        *above, last = options[generator.integers(1, len(options))]
        mutated = copy.deepcopy(code)
        parent = mutated
        for key in above:
            parent = parent[key]
        match generator.integers(3):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(parent[last]))
            case _:
                parent[last] = OTHERS[generator.integers(len(OTHERS))]
        yield mutated


# --- checkpoints


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="some"), pytest.param(1000, marks=pytest.mark.slow, id="many")]
)
def test_made_up_checkpoints_with_a_valid_checksum(count, run, tmp_path):
    width, files = run
    refused = 0
    for path in files:
        target = tmp_path / path.name
        _, arrays = checkpoint._FORMAT.read(path)
        for code in mutations(json.loads(arrays["code"].tobytes()), count):
            checkpoint._FORMAT.write(target, arrays | {"code": checkpoint._as_bytes(code)})
            try:
                trained(width, tmp_path)
            except ValueError as error:
                # Another class or run is as far as anyone can tell one of another version or call.
                assert "damaged" in str(error) or str(tmp_path) in str(error)
                refused += 1
            for left in tmp_path.glob("*.safetensors"):
                left.unlink()
    assert refused > count


def test_the_one_before_a_made_up_checkpoint_is_used(run, tmp_path):
    width, files = run
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    checkpoint._FORMAT.write(tmp_path / files[1].name, {"code": np.frombuffer(b"{}", np.uint8)})
    with pytest.warns(tp.LimitWarning, match=rf"{files[1].name} is damaged: no run has saved this"):
        trained(width, tmp_path)


# --- trajectories


def saved(path):
    generator = np.random.default_rng(0)
    records = Records(
        {"norm": generator.normal(size=(3, 4)), "k": (np.arange(12).reshape(3, 4), None)},
        [generator.normal(size=(3, 5, 2)).astype(np.float32)],
    )
    mixed = np.array([Fraction(-1, 2), -np.inf], dtype=object)
    exponents = Records({"norm": Fraction(-3, 2), "k": (Fraction(0), None)}, [mixed])
    width = {"n": 16, "m": 32}
    run = tp.Trajectory(records, exponents, width, directions=(3, 4), fluctuations=records)
    return run.save(path)


def test_one_flipped_bit(tmp_path):
    path = saved(tmp_path / "run.safetensors")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            tp.Trajectory.load(path)


def test_truncated_anywhere(tmp_path):
    path = saved(tmp_path / "run.safetensors")
    content = path.read_bytes()
    for length in range(0, len(content), 11):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            tp.Trajectory.load(path)


def test_made_up_trajectories_with_a_valid_checksum(tmp_path):
    path = saved(tmp_path / "run.safetensors")
    metadata, arrays = trajectory._FORMAT.read(path)
    header, refused = json.loads(metadata["header"]), 0
    for mutated in mutations(header, 1000):
        trajectory._FORMAT.write(path, arrays, {"header": json.dumps(mutated)})
        try:
            run = tp.Trajectory.load(path)
        except ValueError as error:
            assert "is damaged: no trajectory was saved like this" in str(error)
            refused += 1
        else:
            # Nothing but other numbers: it is a trajectory, which can be looked at and saved.
            repr(run), run.outputs, run.stderr, run.save(path)
    assert refused > 500


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {**arrays, "outputs.norm": arrays["outputs.norm"][:2]},
        lambda arrays: {**arrays, "outputs.norm": arrays["outputs.norm"][0, 0]},
        lambda arrays: {**arrays, "observations.0": arrays["observations.0"][:, :4]},
        lambda arrays: {name: arrays[name] for name in list(arrays)[1:]},
        lambda arrays: {},
    ],
    ids=["replicates", "rank", "steps", "missing", "none"],
)
def test_other_arrays(change, tmp_path):
    path = saved(tmp_path / "run.safetensors")
    metadata, arrays = trajectory._FORMAT.read(path)
    trajectory._FORMAT.write(path, change(arrays), {"header": metadata["header"]})
    # Old versions of safetensors do not read a file without arrays.
    with pytest.raises(ValueError, match=r"no trajectory was saved like this|no safetensors file"):
        tp.Trajectory.load(path)


def test_a_trajectory_without_a_checksum(tmp_path):
    """Version 1 had none: it is read with a warning."""
    path = saved(tmp_path / "run.safetensors")
    metadata, arrays = trajectory._FORMAT.read(path)
    expected = tp.Trajectory.load(path)
    save_file(arrays, path, metadata=metadata | {"version": "1"})
    with pytest.warns(tp.LimitWarning, match="knew no checksum: damage cannot be noticed"):
        loaded = tp.Trajectory.load(path)
    np.testing.assert_array_equal(loaded.outputs["norm"], expected.outputs["norm"])
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        tp.Trajectory.load(path)


# --- foreign files, and code


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(path, mark):
    path.write_bytes(pickle.dumps(Bomb(mark)))


def zipped(path, mark):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../{mark.name}", "outside")
        archive.writestr("data.pkl", pickle.dumps(Bomb(mark)))


def objects(path, mark):
    with open(path, "wb") as file:
        np.save(file, np.array([Bomb(mark)]), allow_pickle=True)


def outside(path, mark):
    save_file({f"../{mark.name}": np.ones(3), str(mark): np.ones(3)}, path)


def long_header(path, mark):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


FOREIGN = {
    "pickle": pickled,
    "zip": zipped,
    "objects": objects,
    "names of paths": outside,
    "long header": long_header,
    "empty": lambda path, mark: path.write_bytes(b""),
    "folder": lambda path, mark: path.mkdir(),
    "other kind": lambda path, mark: checkpoint._FORMAT.write(path, {"code": np.ones(1)}),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_refused_and_run_no_code(make, tmp_path):
    folder, mark = tmp_path / "a" / "b", tmp_path / "a" / "mark"
    folder.mkdir(parents=True)
    path = folder / "checkpoint-00000001.safetensors"
    make(path, mark)
    for load in (tp.Trajectory.load, KernelRun.load, lambda path: trained(8, path.parent)):
        with pytest.raises(ValueError, match=path.name):
            load(path)
    assert not mark.exists()
    assert [left.name for left in mark.parent.iterdir()] == [folder.name]


def test_a_kernel_run_has_a_checksum(tmp_path):
    run = tp.kernels.train(np.eye(2), np.eye(2), np.ones(2), "mse", lr=0.1, steps=1)
    path = run.save(tmp_path / "run.safetensors")
    np.testing.assert_array_equal(KernelRun.load(path).train, run.train)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        KernelRun.load(path)
    with pytest.raises(FileNotFoundError):
        KernelRun.load(tmp_path / "missing")
