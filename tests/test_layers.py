"""Packages stand on floors and import only downwards; private parts of JAX stay in one file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tplimit"

# Low to high. What stands on a floor, a package or a file of the root, may import from lower
# floors, and within itself.
FLOORS = (
    {"errors"},
    {"_jax", "output"},
    {"arguments", "caching"},
    {"reproduction", "values"},
    {"gaussian", "program"},
    {"declare", "interpreter"},
    {"algebra", "networks"},
    {"matrices", "observables", "parameterizations"},
    {"rules", "transforms"},
    {"kernels", "regimes", "training"},
    {"commands"},
    {"__main__"},
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
        # `from tplimit.values.tensors import Tensor` names a module and something in it.
        while target not in MODULES and "." in target:
            target = target.rpartition(".")[0]
        if target in MODULES:
            found.add(target)
    return found - {name}


def room(module: str) -> str:
    """The package, or the file of the root, that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def upward(module: str, target: str) -> bool:
    """Whether importing `target` in `module` does not go down: the root package is the roof."""
    if room(module) == room(target) != "":
        return False
    return target == "tplimit" or floor(target) >= floor(module)


def private(source: str) -> list[str]:
    """What a source takes from JAX that is not public, by import or by attribute."""
    tree = ast.parse(source)
    dotted = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [
        name
        for name in [*imports(source), *dotted]
        if any(name == p or name.startswith(p + ".") for p in NOT_PUBLIC)
    ]


def cycle_free(graph: dict[str, set[str]]) -> list[str]:
    """An order in which nothing comes before what it imports.

    Raises:
        graphlib.CycleError: there is none; it names the cycle.
    """
    return list(TopologicalSorter(graph).static_order())


def test_every_room_has_a_floor() -> None:
    assert {room(m) for m in MODULES} - {""} == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


def test_the_house_is_not_too_high_and_its_hall_not_too_full() -> None:
    assert len(FLOORS) <= 12
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_down(file: Path) -> None:
    module = module_name(file)
    if module not in ("tplimit", "tplimit.__main__"):  # these stand above all
        assert not [t for t in own_imports(file) if upward(module, t)]


def test_no_cycle_of_modules() -> None:
    # A package's __init__ may gather its own modules.
    assert cycle_free({module_name(f): own_imports(f) for f in FILES if f.stem != "__init__"})


def test_no_cycle_of_folders() -> None:
    """Nor do folders inside of packages import each other in a circle."""
    graph: dict[str, set[str]] = {}
    for file in FILES:
        if file.stem == "__init__":
            continue
        own = module_name(file).rpartition(".")[0]
        others = {target.rpartition(".")[0] for target in own_imports(file) if "." in target}
        # The folder that holds a folder gathers it.
        graph.setdefault(own, set()).update(o for o in others if o != own and o != "tplimit")
    assert cycle_free(graph)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_one_file_uses_private_jax(file: Path) -> None:
    if file.name != "_jax.py":
        assert not private(file.read_text())


def test_the_checks_can_fail() -> None:
    assert upward("tplimit.values.tensors", "tplimit.transforms.limits")
    assert upward("tplimit.values.tensors", "tplimit")
    assert upward("tplimit.training.train", "tplimit.regimes.counted")
    assert not upward("tplimit.training.train", "tplimit.values.tensors")
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
import tplimit.commands.main
names = ("jax", "matplotlib", "numpy")
changed = [n for n, a, b in zip(names, before, settings()) if a != b]
assert not changed, changed
assert "matplotlib.pyplot" not in __import__("sys").modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_test_imports_from_tests_of_its_own_folder() -> None:
    """What several folders share is in `oracles`: a folder can be run by itself."""
    tests = Path(__file__).parent
    for file in tests.rglob("test_*.py"):
        others = {t.split(".")[0] for t in imports(file.read_text()) if t.startswith("test_")}
        assert all((file.parent / f"{other}.py").exists() for other in others), file
