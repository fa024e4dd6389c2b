"""How fast two installed versions separate the same songs, in turns.

scripts/compare_speed BEFORE AFTER SONG... prints a row for each song: CPU seconds and peak memory of both
commands (median), and the ratio of the pairs of runs (median, least, greatest). Start-up is included. Pairs
are runs that follow each other, because the machine's speed changes meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

COLUMNS = (
    "song",
    "runs",
    "CPU s before",
    "CPU s after",
    "after / before",
    "least",
    "greatest",
    "MiB before",
    "MiB after",
)


@dataclass(frozen=True)
class Cost:
    """What a run took: CPU seconds of the process and its children, peak memory in MiB."""

    seconds: float
    mebibytes: float


def main() -> None:
    """Time both commands on every song."""
    parser = argparse.ArgumentParser(prog="scripts/compare_speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a `tfx` command")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
    parser.add_argument("songs", type=Path, nargs="+", metavar="SONG")
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs; default: 9")
    parser.add_argument("--backend", default="ort", help="default: ort")
    asked = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    for song in asked.songs:
        for command in (asked.before, asked.after):
            separate(command, song, asked.backend)  # fills the caches
        pairs = [
            (separate(asked.before, song, asked.backend), separate(asked.after, song, asked.backend))
            for _ in range(asked.runs)
        ]
        print(row(song, pairs), flush=True)


def row(song: Path, pairs: list[tuple[Cost, Cost]]) -> str:
    """The table's line of a song."""
    before, after = zip(*pairs, strict=True)
    ratios = [second.seconds / first.seconds for first, second in pairs]
    cells = [
        song.name,
        str(len(pairs)),
        f"{median(cost.seconds for cost in before):.2f}",
        f"{median(cost.seconds for cost in after):.2f}",
        f"{median(ratios):.3f}",
        f"{min(ratios):.3f}",
        f"{max(ratios):.3f}",
        f"{median(cost.mebibytes for cost in before):.0f}",
        f"{median(cost.mebibytes for cost in after):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def separate(command: Path, song: Path, backend: str) -> Cost:
    """Separate a song by the embedded model in one thread; stems go to a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--backend", backend, "--threads", "1", "-o", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [command, "separate", song, *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(
            f"{command} separate {song}: exit code {process.returncode}: {said.decode(errors='replace')}"
        )
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
