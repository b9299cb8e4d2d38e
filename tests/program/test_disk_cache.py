"""`tplimit.cache`: compiled programs on the disk, for tplimit only, and only if asked for."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit import _jax
from tplimit.caching import disk

N = tp.Width("n")
THETA = {"W": tp.normal((N, N), std=N**-0.5), "v": tp.normal((N,))}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is loaded from the disk since the test began, and no choice made before."""
    monkeypatch.setattr(disk, "_chosen", [])
    monkeypatch.delenv(disk.VARIABLE, raising=False)
    found, loaded = [], _jax.loaded
    monkeypatch.setattr(_jax, "loaded", lambda *args: found.append(loaded(*args)) or found[-1])
    yield found
    jax.clear_caches()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def run() -> Any:
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=64)
    return tp.limit(lambda t: jnp.mean(jnp.tanh(t["W"] @ t["v"]) ** 2))(theta)


def test_nothing_is_written_unless_asked(unshared: None, compilations: Any, tmp_path: Path) -> None:
    tp.cache(tmp_path / "a")
    tp.cache(None)
    run()
    assert not files(tmp_path)


def test_a_process_finds_what_another_has_compiled(tmp_path: Path) -> None:
    """By the environment: the second writes nothing new, and prints the same bits."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax
before = dict(jax.config.values)
import test_disk_cache
found = []
loaded = test_disk_cache._jax.loaded
test_disk_cache._jax.loaded = lambda *args: found.append(1) or loaded(*args)
print(float(test_disk_cache.run()).hex(), len(found))
assert dict(jax.config.values) == before
"""
    results, written = [], []
    for _ in range(2):
        command = [sys.executable, "-c", script]
        environment = {**__import__("os").environ, disk.VARIABLE: str(tmp_path)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        results.append(done.stdout.split())
        written.append(files(tmp_path))
    assert results[0][0] == results[1][0]
    assert int(results[0][1]) == 0 and int(results[1][1]) == len(written[0])
    assert written[0] == written[1] and written[0]


def test_damaged_files_are_written_again(compilations: list[Any], tmp_path: Path) -> None:
    tp.cache(tmp_path)
    add = lambda: disk.compiled(lambda x: x + 1, quick=True)(jnp.ones(3))
    np.testing.assert_array_equal(add(), 2 * np.ones(3))
    (path,) = files(tmp_path)
    good = path.read_bytes()
    for content in (good[:-1], b"", good[:40] + b"x" + good[41:]):
        path.write_bytes(content)
        np.testing.assert_array_equal(add(), 2 * np.ones(3))
        assert (not compilations and path.read_bytes()[:32] != content[:32]) or content == good
    add()
    assert len(compilations) == 1


def test_a_folder_that_cannot_be_written_is_no_error(
    compilations: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    tp.cache(tmp_path / "file")
    np.testing.assert_array_equal(disk.compiled(jnp.sin, quick=False)(jnp.zeros(2)), np.zeros(2))


def test_programs_inside_of_others_are_not_kept(compilations: list[Any], tmp_path: Path) -> None:
    tp.cache(tmp_path)
    jax.jit(lambda x: disk.compiled(jnp.sin, quick=False)(x))(jnp.zeros(2))
    assert not files(tmp_path)


def test_old_files_go(
    compilations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_MOST", 4)
    tp.cache(tmp_path)
    for k in range(1, 12):
        disk.compiled(lambda x: x + 1, quick=True)(jnp.ones(k))
        assert len(files(tmp_path)) <= 4


def test_a_cache_is_a_folder_or_none(compilations: list[Any]) -> None:
    with pytest.raises(TypeError, match="folder"):
        tp.cache(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        tp.cache("")
