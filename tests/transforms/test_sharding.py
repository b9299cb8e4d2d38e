"""`mesh=`: particles shared by several devices of one process, and by several processes."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import several_processes

from tplimit.output import progress

HERE = Path(__file__).parent


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many devices; the tests' own settings are left behind."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JAX_", "XLA_"))}
    # Compiled for what it is: a check of numbers, not of speed.
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    return own | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@pytest.mark.slow
@pytest.mark.parametrize("speed", ["not slow", "slow"])
def test_eight_devices_in_one_process(speed: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", speed]
    command.append("eight_devices.py")
    done = subprocess.run(
        command, cwd=HERE, env=environment(8), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout) and "skipped" not in done.stdout


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def two_processes(script: Path, folder: Path) -> list[list[str]]:
    """What the script prints, line by line, in two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, "2", str(number)], cwd=folder, env=environment(2),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    printed = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
            printed.append(output.splitlines())
    finally:
        for process in processes:
            process.kill()
    return printed


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    printed = two_processes(HERE / "several_processes.py", tmp_path)
    found = [json.loads(lines[-1]) for lines in printed]
    assert found[0] == found[1]
    here = found[0]
    assert here["devices"] == [2, 4]
    # Each process holds its half of the particles only.
    capacity, particles = here["stack"]
    assert particles == 256 and here["parts"] == [[capacity, 64]] * 2
    alone = several_processes.run(None)
    for part in ("outputs", "observations"):
        expected = getattr(alone.replicates, part)
        np.testing.assert_allclose(here[part], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(here["mean"], alone.outputs, rtol=0, atol=1e-5)
    assert tuple(here["directions"]) == alone.directions
    assert "checkpoint does not work with a mesh over several processes" in here["refusal"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_program_on_the_page(tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs" / "scale-out.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "train.py"
    script.write_text(program)
    together = two_processes(script, tmp_path)
    alone = subprocess.run(
        [sys.executable, script], env=environment(1), capture_output=True, text=True, check=True
    )
    losses, expected = (
        [float(number) for number in lines[-1].strip("[]").split()]
        for lines in (together[0], alone.stdout.splitlines())
    )
    assert len(losses) == 5
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # Only one of them speaks.
    assert not any(line.startswith("[") and "]" in line[-1:] for line in together[1])


@pytest.mark.parametrize("process", [0, 1])
def test_only_the_first_process_shows_a_bar(process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(jax, "process_index", lambda: process)
    with progress.bar(2, "n = 8", True) as advance:
        advance("training")
    assert ("n = 8" in terminal.getvalue()) == (process == 0)
