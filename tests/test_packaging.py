"""What an installed tplimit is: light to import, typed, of one version; deprecations of others."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from test_layers import FILES, imports

import tplimit as tp

ROOT = Path(__file__).parent.parent
#: Slow to import, or needed by a few: imported where they are used.
LATER = (
    "equinox",
    "flax",
    "hypothesis",
    "matplotlib",
    "mlxtend",
    "neural_tangents",
    "optax",
    "pandas",
    "PIL",
    "pytest",
    "rich",
    "scipy",
    "sklearn",
    "typer",
)


def python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    return done.stdout


def test_import_leaves_slow_modules_for_later() -> None:
    """`import jax` loads parts of scipy in some versions: what it loads is not counted."""
    script = """
import sys, jax
before = set(sys.modules)
import tplimit
print(*set(sys.modules) - before)
"""
    loaded = python("-c", script).split()
    assert "tplimit.kernels" in loaded
    assert not {name.split(".")[0] for name in loaded} & set(LATER)


def test_import_starts_no_backend() -> None:
    """Devices and processes can still be configured afterwards."""
    script = """
import jax, tplimit
jax.config.update("jax_num_cpu_devices", 3)
jax.config.update("jax_platforms", "cpu")
print(len(jax.devices()))
"""
    assert python("-c", script) == "3\n"


def test_all_names_can_be_seen() -> None:
    assert set(tp.__all__) <= set(dir(tp))
    assert all(hasattr(tp, name) for name in tp.__all__)
    assert set(tp.kernels.__all__) <= set(dir(tp.kernels))


def test_the_module_is_the_command() -> None:
    helps = python("-m", "tplimit", "--help")
    assert "python -m tplimit" in helps
    for command in ("demo", "compare", "classify", "kernels", "reproduce"):
        assert command in helps


def test_one_version() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    readme = re.search(r"version = \{(\S+)\}", (ROOT / "README.md").read_text())
    assert cited is not None
    assert readme is not None
    assert importlib.metadata.version("tplimit") == tp.__version__ == cited[1] == readme[1]


def test_types_are_announced() -> None:
    assert (Path(tp.__file__).parent / "py.typed").read_text() == ""


def test_dependencies_are_declared() -> None:
    """Every distribution that tplimit imports is among its dependencies or its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = {
        re.split(r"[\[><=]", line)[0].lower().replace("-", "_")
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]
    }
    found = {target.split(".")[0] for file in FILES for target in imports(file.read_text())}
    found -= {*sys.stdlib_module_names, "tplimit"}
    names = {"PIL": "pillow", "sklearn": "scikit_learn"}
    assert {names.get(name, name).lower() for name in found} <= declared


def warn_in(module: str) -> None:
    code = "import warnings; warnings.warn('use something else', DeprecationWarning)"
    exec(code, {"__name__": module})


@pytest.mark.parametrize("module", ["sklearn.datasets", "jax._src.core", "pyparsing.util"])
def test_deprecations_inside_other_packages_do_not_fail_tests(module: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warn_in(module)
    assert not seen


@pytest.mark.parametrize("module", ["tplimit.kernels.grams", "test_docs", "oracles.helpers"])
def test_deprecated_calls_of_our_own_do(module: str) -> None:
    with pytest.raises(DeprecationWarning, match="something else"):
        warn_in(module)


def test_dir_shows_what_users_call() -> None:
    """Packages of the house are no part of it."""
    assert dir(tp) == sorted([*tp.__all__, "__version__"])
    assert all(hasattr(tp, name) for name in dir(tp))
    assert {"train", "limit", "rule", "kernels"} <= set(dir(tp))
    assert not {"RULES", "algebra", "training", "jax"} & set(dir(tp))
    assert dir(tp.parameterizations) == sorted(tp.parameterizations.__all__)
    assert {"mup", "ntk", "ip_llr"} <= set(dir(tp.parameterizations))
