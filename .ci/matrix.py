"""The fast tests on every Python that is found, and on the oldest dependencies that are declared.

    make matrix            # all environments
    make newest            # the newest Python alone, with the test files that are named

An environment `.matrix/<name>` is made anew by uv: the newest dependencies that go together, or
("oldest") the lowest declared ones on the lowest Python. Tests of all run before a failure counts.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHOWN = (
    "python",
    "jax",
    "jaxtyping",
    "numpy",
    "scipy",
    "optax",
    "matplotlib",
    "typer",
    "scikit-learn",
)
VERSION = "import sys; print(*sys.version_info[:2], sys.version_info.releaselevel)"
VERSIONS = """
import json, platform
from importlib.metadata import distributions
found = {d.name.lower(): d.version for d in distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


def candidates() -> Iterator[str]:
    """Interpreters that may exist: this one, those on the PATH, those of pyenv."""
    yield sys.executable
    names = ["python3", *(f"python3.{minor}" for minor in range(40))]
    yield from filter(None, map(shutil.which, names))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob("versions/3.*/bin/python3")))


def pythons() -> dict[tuple[int, int], str]:
    """An interpreter by version, of all released ones that the project declares to work with."""
    lowest = tuple(map(int, re.findall(r"\d+", PROJECT["requires-python"])))
    found: dict[tuple[int, int], str] = {}
    for path in candidates():
        answer = subprocess.run([path, "-c", VERSION], capture_output=True, text=True, check=False)
        if answer.returncode:  # a name without an interpreter behind it
            continue
        major, minor, level = answer.stdout.split()
        version = int(major), int(minor)
        if level == "final" and version >= lowest:
            found.setdefault(version, path)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Environment:
    """A Python with a choice of dependencies (`resolution` as uv understands it)."""

    name: str
    python: str
    resolution: str = "highest"

    @property
    def folder(self) -> Path:
        return ROOT / ".matrix" / self.name

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"

    def prepare(self) -> None:
        self._uv("venv", "--quiet", "--clear", "--python", self.python, str(self.folder))
        requirements = ("-r", "pyproject.toml", "--extra", "demo", "--group", "tests")
        self._install("--resolution", self.resolution, *requirements)
        self._install("--no-deps", "--editable", ".", "neural-tangents>=0.6.5")

    def versions(self) -> dict[str, str]:
        """Of the interpreter, and of every package by its name."""
        command = [self.interpreter, "-c", VERSIONS]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    def test(self, files: Sequence[str]) -> dict[str, int]:
        """Run the fast tests: how many passed, failed and were skipped."""
        report = self.folder / "tests.xml"
        command = [self.interpreter, "-m", "pytest", "-q", "-n", "2"]
        command += ["-m", "not slow", f"--junitxml={report}", *files]
        failed = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
        if not report.exists():  # nothing could be collected
            return {"passed": 0, "failed": 1, "skipped": 0}
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        bad = max(number["failures"] + number["errors"], int(failed))
        passed = number["tests"] - bad - number["skipped"]
        return {"passed": passed, "failed": bad, "skipped": number["skipped"]}

    def _install(self, *arguments: str) -> None:
        self._uv("pip", "install", "--quiet", "--python", str(self.folder), *arguments)

    def _uv(self, *arguments: str) -> None:
        subprocess.run([UV, "--no-python-downloads", *arguments], cwd=ROOT, check=True)


def run(environments: Sequence[Environment], files: Sequence[str]) -> bool:
    """Test the environments one after the other, print a table; whether all passed."""
    table = Table(title="tests by environment", title_justify="left")
    for column in ("", *SHOWN, "passed", "failed", "skipped", "minutes"):
        table.add_column(column, justify="right")
    success = True
    for environment in environments:
        print(f"== {environment.name}: {environment.python}", flush=True)
        start = time.monotonic()
        environment.prepare()
        counts = environment.test(files)
        success &= counts["failed"] == 0 < counts["passed"]
        versions = environment.versions()
        table.add_row(
            environment.name,
            *(versions.get(name, "-") for name in SHOWN),
            *(str(count) for count in counts.values()),
            f"{(time.monotonic() - start) / 60:.1f}",
        )
    Console(width=160).print(table)
    return success


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--newest", action="store_true", help="the newest Python alone")
    parser.add_argument("--which", action="store_true", help="print its path and stop")
    parser.add_argument("files", nargs="*", help="tests to run; default: all")
    options = parser.parse_args()
    found = pythons()
    newest = max(found)
    if options.which:
        print(found[newest])
        return
    environments = [Environment("{}.{}".format(*v), path) for v, path in found.items()]
    if options.newest:
        if newest == sys.version_info[:2]:
            print("skipped: no Python newer than {}.{} was found".format(*newest))
            return
        environments = environments[-1:]
    else:
        environments.append(Environment("oldest", found[min(found)], "lowest-direct"))
    sys.exit(not run(environments, options.files))


if __name__ == "__main__":
    main()
