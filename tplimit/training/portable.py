"""Records and widths as JSON and named arrays, for files; no code is stored."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from tplimit.arguments import Deferred, inf

__all__ = [
    "decode",
    "decode_width",
    "encode",
    "encode_width",
    "frame",
    "plain",
    "read_exponents",
    "store_array",
    "store_exponents",
]


def encode_width(width: Any) -> Any:
    """A width as JSON."""
    if isinstance(width, Deferred):
        return {"deferred": encode_width(width.n)}
    if isinstance(width, Mapping):
        return {"sizes": dict(width)}
    return width if isinstance(width, int) else "inf"


def decode_width(code: Any) -> Any:
    """The width that `encode_width` wrote; anything else raises some exception."""
    if isinstance(code, dict) and "deferred" in code:
        return Deferred(code["deferred"])
    if isinstance(code, dict):
        return {name: decode_width(size) for name, size in code["sizes"].items()}
    if code != "inf" and type(code) is not int:
        raise TypeError(f"{code!r} is no width")
    return inf if code == "inf" else code


def encode(tree: Any, name: str, arrays: dict[str, np.ndarray], store: Any) -> Any:
    """`tree` as JSON: nodes are `[kind, children]`, leaves `["leaf", what `store` returned]`."""
    if tree is None:
        return ["none", None]
    if type(tree) is dict:
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"cannot save {name}: a dict with keys that are no strings")
        return [
            "dict",
            {key: encode(value, f"{name}.{key}", arrays, store) for key, value in tree.items()},
        ]
    if type(tree) in (list, tuple):
        children = [encode(value, f"{name}.{i}", arrays, store) for i, value in enumerate(tree)]
        return [type(tree).__name__, children]
    if isinstance(tree, (np.ndarray, np.generic, Fraction, float)):
        return ["leaf", store(tree, name, arrays)]
    raise TypeError(
        f"cannot save {name}, a {type(tree).__name__}: let step and observe return dicts with "
        "string keys, lists or tuples of arrays"
    )


def decode(code: Any, read: Any) -> Any:
    """The tree that `encode` wrote, `read` giving the leaves; or some exception."""
    kind, content = code
    if kind == "none":
        return None
    if kind == "dict":
        return {key: decode(value, read) for key, value in content.items()}
    if kind == "leaf":
        return read(content)
    children = [decode(value, read) for value in content]
    return {"list": list, "tuple": tuple}[kind](children)


def store_array(leaf: Any, name: str, arrays: dict[str, np.ndarray]) -> str:
    """For `encode`: an array among `arrays`, by its name."""
    arrays[name] = np.asarray(leaf)
    return name


def store_exponents(leaf: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """For `encode`: exact exponents as text."""
    values = np.asarray(leaf, dtype=object)
    return {"shape": list(values.shape), "values": [str(value) for value in values.flat]}


def read_exponents(content: Any) -> Any:
    """What `store_exponents` wrote."""
    values = [float(v) if "inf" in v else Fraction(v) for v in content["values"]]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    array = array.reshape(content["shape"])
    return array if array.ndim else array.item()


def plain(tree: Any) -> Any:
    """A tree of records, as `encode` takes them, as numbers, lists and dicts that JSON knows.

    NaN and infinities are None, exponents text, complex numbers pairs [real, imaginary].
    """
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    if isinstance(tree, Fraction):
        return str(tree)
    if isinstance(tree, (complex, np.complexfloating)):
        return [plain(float(tree.real)), plain(float(tree.imag))]
    if isinstance(tree, float):
        return tree if np.isfinite(tree) else None
    return plain(np.asarray(tree).tolist())


def frame(run: Any, ends: Sequence[Any], parts: Sequence[str]) -> Any:
    """The table of `Trajectory.to_pandas`.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_pandas needs pandas, which is not installed: pip install pandas; run.to_dict() "
            "needs nothing"
        ) from error
    columns: dict[str, list[Any]] = {
        name: [] for name in ("record", "leaf", "entry", "step", "mean", "stderr", "low", "high")
    }
    for part in parts:
        trees = [getattr(records, part) for records in (run, run.stderr, *ends)]
        leaves = zip(*map(jax.tree_util.tree_leaves_with_path, trees), strict=True)
        for found in leaves:
            name = jax.tree_util.keystr(found[0][0])
            for index in np.ndindex(found[0][1].shape):
                entry = ",".join(map(str, index[1:]))
                row = [part, name, entry, index[0], *(array[index] for _, array in found)]
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    return pandas.DataFrame(columns)
