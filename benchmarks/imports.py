"""Time of `import tplimit` beside that of `import jax`, in fresh processes that take turns.

Compiled bytecode is kept in a temporary folder and written before anything is measured, as an
installer does. "CPU" is the time of all threads together, the figure to look at on a busy machine.
"""

import os
import statistics
import subprocess
import sys
import tempfile

from common import Report, parser, spread

MODULES = ("jax", "tplimit", "tplimit.commands.main")
SCRIPT = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import {}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def seconds(module: str, environment: dict[str, str]) -> tuple[float, float]:
    """Wall clock and CPU time of an import, without the start of the interpreter."""
    command = [sys.executable, "-c", SCRIPT.format(module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("imports", options)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        times: dict[str, list[tuple[float, float]]] = {module: [] for module in MODULES}
        for _ in range(3 if options.small else 21):
            for module, found in times.items():
                found.append(seconds(module, environment))
    # The first of each compiles. Then lists of wall clock and of CPU times.
    columns = {module: tuple(zip(*found[1:], strict=True)) for module, found in times.items()}
    base = [statistics.median(x) for x in columns["jax"]]
    rows = []
    for module, (wall, cpu) in columns.items():
        time, fastest, slowest = spread(wall)
        rows.append(
            {
                "import": module,
                "s": time,
                "fastest": fastest,
                "slowest": slowest,
                "times jax": time / base[0],
                "CPU s": statistics.median(cpu),
                "times jax (CPU)": statistics.median(cpu) / base[1],
            }
        )
    report.table("import times", rows)


if __name__ == "__main__":
    main()
