"""Networks of finite width: dense matrices against `tplimit.Deferred`, by width.

Two hidden layers, 20 steps on a batch of 8: the time of one network (sampled and trained) and the
memory it takes, at widths 2^8 ... 2^20. Dense networks are one compiled program, whose memory is
what the compiler reports; a width that needs more than `--memory` is not run. For deferred ones the
peak of a process of its own is measured, less that of the narrowest, and the next width is left out
when its memory, in proportion, would exceed the same limit.
"""

import subprocess
import sys
from typing import Any

import jax
from common import Problem, Report, Timing, measure, parser, peak_memory, power_law, seconds, spread

import tplimit as tp

GB = 2**30
PROBLEM = Problem(2, 8, 20, eta=0.5)
SECONDS = 30.0  # of repetitions per width


def repeats(once: float) -> int:
    return max(2, min(7, int(SECONDS / once)))


def dense(n: int, limit: float) -> tuple[float, Timing | None]:
    """Bytes of the compiled program, and its time if they are below the limit."""
    key = jax.random.key(0)
    found: dict[str, Any] = {}

    def build() -> None:
        found["run"] = jax.jit(PROBLEM.dense(n)).lower(key).compile()

    compilation = seconds(build)
    memory = found["run"].memory_analysis()
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    if size > limit:
        return size, None
    once = seconds(lambda: found["run"](key))  # warms up
    times = [seconds(lambda: found["run"](key)) for _ in range(repeats(once))]
    return size, Timing(compilation, *spread(times))


def deferred(n: int) -> Timing:
    call = lambda: PROBLEM.train(tp.Deferred(n), 0)
    return measure(call, 3)


def peak(n: int) -> float:
    """Peak bytes of a process that trains one deferred network."""
    command = [sys.executable, __file__, "--probe", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def probe(n: int) -> None:
    PROBLEM.train(tp.Deferred(n), 0)
    print(peak_memory())


def row(method: str, n: int, size: float, timing: Timing | None) -> dict[str, Any]:
    return {
        "width": n,
        "method": method,
        "s/network": timing.median if timing else "does not fit",
        "fastest": timing.low if timing else None,
        "slowest": timing.high if timing else None,
        "compile s": timing.compilation if timing else None,
        "memory GB": size / GB,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--memory", type=float, default=8.0, help="limit in GB")
    options.add_argument("--probe", type=int, help="only train one deferred network of this width")
    options = options.parse_args()
    if options.probe:
        probe(options.probe)
        return
    report = Report("deferred", options)
    powers = (8, 11, 14) if options.small else (8, 10, 12, 13, 14, 15, 16, 18, 20)
    widths = tuple(2**k for k in powers)
    # The small form meets the limit too.
    limit = min(options.memory, 0.25) * GB if options.small else options.memory * GB
    rows: list[dict[str, Any]] = []
    fits = True
    base, last = peak(widths[0]), (0, 0.0)
    for n in widths:
        if fits:
            size, timing = dense(n, limit)
            rows.append(row("dense", n, size, timing))
            fits = timing is not None
        guess = last[1] * n / last[0] if last[0] else 0.0
        if guess > options.memory * GB:
            rows.append(row("deferred", n, guess, None))
            break
        timing = deferred(n)
        last = n, max(peak(n) - base, 0.0)
        rows.append(row("deferred", n, last[1], timing))
    report.table(
        f"one network, 20 steps, batch 8 (limit {limit / GB:g} GB for dense networks)", rows
    )
    fit = []
    for method in ("dense", "deferred"):
        some = [r for r in rows if r["method"] == method and isinstance(r["s/network"], float)]
        wide = some[-3:]
        if len(wide) > 1:
            law = power_law([r["width"] for r in wide], [r["s/network"] for r in wide])
            fit.append({"method": method, "exponent of time": law.power, "+-": law.error})
    report.table("time against width, the widest three", fit)


if __name__ == "__main__":
    main()
