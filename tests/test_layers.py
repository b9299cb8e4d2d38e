"""Modules form layers and import only downwards; private parts of JAX stay in one file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tplimit"

# Low to high. A module may import those before it, and those of its own package.
LAYERS = (
    "errors",
    "_jax",
    "identity",
    "store",
    "arguments",
    "widths",
    "constants",
    "fields",
    "parity",
    "gaussian",
    "values",
    "parts",
    "patches",
    "rearranging",
    "bank",
    "trace",
    "structure",
    "lint",
    "plain",
    "interpret",
    "algebra",
    "expansion",
    "projected_update",
    "low_rank",
    "scaled_gaussian",
    "sharding",
    "matrices",
    "products",
    "rules",
    "leaves",
    "evaluation",
    "transforms",
    "parameters",
    "sampling",
    "files",
    "plotting",
    "trajectory",
    "history",
    "divergence",
    "encoding",
    "checkpoint",
    "progress",
    "networks",
    "training",
    "comparison",
    "activations",
    "losses",
    "models",
    "scaling",
    "parameterizations",
    "regimes",
    "inspection",
    "data",
    "kernels",
    "cli_kernels",
    "reproduce",
    "cli",
    "__main__",
)
NOT_PUBLIC = ("jax.extend", "jax.interpreters", "jax._src", "jax.core", "jaxlib")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file) for file in FILES}


def imports(source: str, package: str = "tplimit") -> Iterator[str]:
    """Every module, or module and name, that the source imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(file: Path) -> set[str]:
    """The modules of tplimit that a file imports."""
    name = module_name(file)
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for target in imports(file.read_text(), package):
        # `from tplimit.values import Vector` names a module and something in it.
        while target not in MODULES and "." in target:
            target = target.rpartition(".")[0]
        if target in MODULES:
            found.add(target)
    return found - {name}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward(module: str, target: str) -> bool:
    """Whether importing `target` in `module` goes up, or over the top: the package itself."""
    if layer(module) == layer(target) != "":
        return False
    return target == "tplimit" or LAYERS.index(layer(target)) > LAYERS.index(layer(module))


def private(source: str) -> list[str]:
    """What a source takes from JAX that is not public, by import or by attribute."""
    tree = ast.parse(source)
    dotted = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [
        name
        for name in [*imports(source), *dotted]
        if any(name == p or name.startswith(p + ".") for p in NOT_PUBLIC)
    ]


def test_every_module_has_a_layer() -> None:
    assert {layer(m) for m in MODULES} - {""} == set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_down(file: Path) -> None:
    module = module_name(file)
    if module != "tplimit":  # the package itself stands above all
        assert not [t for t in own_imports(file) if upward(module, t)]


def test_no_cycle() -> None:
    # Raises CycleError, which names the cycle. A package's __init__ may gather its own modules.
    graph = {module_name(f): own_imports(f) for f in FILES if f.stem != "__init__"}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_one_file_uses_private_jax(file: Path) -> None:
    if file.name != "_jax.py":
        assert not private(file.read_text())


def test_the_checks_can_fail() -> None:
    assert upward("tplimit.widths", "tplimit.transforms")
    assert upward("tplimit.widths", "tplimit")
    assert not upward("tplimit.training", "tplimit.widths")
    assert list(imports("from .values import Vector", "tplimit")) == ["tplimit.values.Vector"]
    assert list(imports("from ..values import Vector", "tplimit.rules")) == [
        "tplimit.values.Vector"
    ]
    assert "jax.core.Jaxpr" in private("import jax\njax.core.Jaxpr")
    assert private("from jax.extend import core")
    assert not private("import jax\njax.numpy.zeros(3)")


def test_import_changes_no_setting() -> None:
    script = """
import jax, matplotlib, numpy as np
def settings():
    return dict(jax.config.values), matplotlib.rcParams.copy(), np.geterr()
before = settings()
import tplimit
import tplimit.cli
names = ("jax", "matplotlib", "numpy")
changed = [n for n, a, b in zip(names, before, settings()) if a != b]
assert not changed, changed
assert "matplotlib.pyplot" not in __import__("sys").modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
