"""Sort tests into fast and slow ones by the time they took.

python .ci/slow.py LOG: reads what `pytest --durations=0` printed, and writes the tests that took
longest to tests/slow.txt, until the others take no longer than a share of the time. Tests with a
mark of their own stay slow.
"""

import re
import sys
from pathlib import Path

LIST = Path(__file__).parents[1] / "tests" / "slow.txt"

#: What the README promises, and examples, are always run.
KEPT = ("tests/test_docs.py", "tplimit/", "docs/")

LINE = re.compile(r"([\d.]+)s (?:call|setup|teardown) +(\S.*)")


def main(log: str, share: float = 0.6) -> None:
    """Write the list."""
    times: dict[str, float] = {}
    for match in map(LINE.match, Path(log).read_text().splitlines()):
        if match:
            seconds, name = match.groups()
            times[name.strip()] = times.get(name.strip(), 0.0) + float(seconds)
    left, allowed = sum(times.values()), share * sum(times.values())
    slow = []
    for name in sorted(times, key=lambda name: -times[name]):
        if left <= allowed:
            break
        if not name.startswith(KEPT):
            slow.append(name)
            left -= times[name]
    LIST.write_text("\n".join(sorted(slow)) + "\n")
    print(f"{len(slow)} of {len(times)} tests are slow; the others take {left:.0f} seconds")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
