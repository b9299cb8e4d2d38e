"""Small data for the command line: real handwritten digits, random points, or a user's file."""

import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tplimit import arguments

__all__ = ["SOURCES", "Data", "digits", "of_file", "points_of", "random_points", "varying"]


class Data(NamedTuple):
    """Training and test points, float32: inputs (points, dimension), labels ±1 (points,)."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(train: int, test: int, classes: tuple[int, int] = (3, 8), seed: int = 0) -> Data:
    """Two classes of the 8 x 8 handwritten digits that scikit-learn ships, as many of each.

    Pixels are centred by the mean of the training points and scaled so that their mean square over
    training points and pixels is 1. Labels are -1 for the first class and +1 for the second.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: more points are wanted than there are.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed: pip install "tplimit[demo]"'
        ) from error
    source = load_digits()
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(np.flatnonzero(source.target == c)) for c in classes]
    available = 2 * min(map(len, rows))
    if train + test > available:
        raise ValueError(f"{train + test} points wanted, the two classes have {available}")
    # One of each class in turn, so that every minibatch is balanced.
    order = np.stack([r[: available // 2] for r in rows], axis=1).ravel()[: train + test]
    x, y = source.data[order], np.where(source.target[order] == classes[0], -1.0, 1.0)
    x = x - x[:train].mean(axis=0)
    x = x / np.sqrt(np.mean(x[:train] ** 2))
    return _split(x, y, train)


def random_points(train: int, test: int, inputs: int = 16, seed: int = 0) -> Data:
    """Standard normal inputs with random labels ±1."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((train + test, inputs))
    return _split(x, generator.choice([-1.0, 1.0], train + test), train)


def varying(data: Data) -> Data:
    """The inputs that are not the same at all training points, such as pixels within a margin."""
    seen = np.ptp(data.x, axis=0) > 0
    return data._replace(x=data.x[:, seen], x_test=data.x_test[:, seen])


def points_of(path: str) -> np.ndarray:
    """The array (points, features) of a .npy file, as `numpy.save` writes it, or x of a .npz file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, is damaged, or holds something else.
    """
    if path.endswith(".npz"):
        return _points(path, _arrays(path, ("x",))["x"])
    try:
        # Mapped, so that the file has to be as long as its header says before memory is taken.
        x = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(
            f"{path} is no .npy file of numbers, or damaged ({error}): write the inputs with "
            "numpy.save(path, x)"
        ) from error
    return _points(path, x)


def _points(path: str, x: np.ndarray) -> np.ndarray:
    if x.ndim != 2:
        raise ValueError(f"{path} has shape {x.shape}, (points, features) is expected")
    return np.array(arguments.points(path, x))


def of_file(path: str, train: int, test: int) -> Data:
    """The first points of a file for training, the next for testing; labels are real numbers.

    A .csv file has a point in each row, its label in the last column, perhaps names in the first
    row. A .npz file, as `numpy.savez` writes it, has x (points, features) and y (points,), and
    test points of its own if it has x_test and y_test.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or has fewer points.
    """
    if path.endswith(".csv"):
        table = _table(path)
        x, y = table[:, :-1], table[:, -1]
    else:
        found = _arrays(path, ("x", "y"))
        x, y = found["x"], found["y"]
        if "x_test" in found and "y_test" in found:
            _enough(path, len(x), train, 0)
            _enough(path, len(found["x_test"]), 0, test)
            x = np.concatenate([x[:train], found["x_test"][:test]])
            y = np.concatenate([y[:train], found["y_test"][:test]])
    x = _points(path, x)
    if y.shape != (len(x),):
        raise ValueError(f"{path}: labels have shape {y.shape}, one for each of {len(x)} points")
    if not np.all(np.isfinite(y)):
        raise ValueError(f"{path}: a label is no finite number")
    _enough(path, len(x), train, test)
    return _split(x[: train + test], y[: train + test], train)


def _enough(path: str, count: int, train: int, test: int) -> None:
    if count < train + test:
        wanted = " ".join(f"--{n} {k}" for n, k in (("train", train), ("test", test)) if k)
        raise ValueError(f"{path} has {count} points, {wanted} are more: ask for fewer")


def _table(path: str) -> np.ndarray:
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    names = any(not _is_number(cell) for cell in first.split(","))
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=int(names), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is no table of numbers with commas ({error})") from error
    if table.shape[1] < 2:
        raise ValueError(f"{path} has one column: write inputs, and the label in the last column")
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _arrays(path: str, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{path} is no .npz file of numbers, or damaged ({error}): write it with "
            "numpy.savez(path, x=x, y=y)"
        ) from error
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise ValueError(
            f"{path} has {', '.join(found) or 'nothing'}, and no {' and no '.join(lacking)}: write "
            "it with numpy.savez(path, x=x, y=y)"
        )
    return found


def _split(x: np.ndarray, y: np.ndarray, train: int) -> Data:
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Data(x[:train], y[:train], x[train:], y[train:])


#: By the names that the command line takes.
SOURCES: dict[str, Callable[..., Data]] = {"digits": digits, "random": random_points}
