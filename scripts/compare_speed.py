"""How fast two installed versions separate the same songs, in turns.

scripts/compare_speed BEFORE AFTER SONG... prints a row for each song: CPU seconds, wall seconds and peak
memory of both commands (median), and the ratio of CPU seconds of the pairs of runs (median, least, greatest).
Start-up is included. Pairs are runs that follow each other, because the machine's speed changes meanwhile.
Wall seconds mean something on a machine that does nothing else. ``--json speed-before-after.json`` in
docs/measured keeps the figures where ``scripts/house`` finds them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = {
    "song": "song",
    "runs": "runs",
    "cpu_s_before": "CPU s before",
    "cpu_s_after": "CPU s after",
    "ratio": "after / before",
    "least": "least",
    "greatest": "greatest",
    "wall_s_before": "wall s before",
    "wall_s_after": "wall s after",
    "mib_before": "MiB before",
    "mib_after": "MiB after",
}


@dataclass(frozen=True)
class Cost:
    """What a run took: CPU seconds of the process and its children, wall seconds, peak memory in MiB."""

    seconds: float
    wall: float
    mebibytes: float


def main() -> None:
    """Time both commands on every song."""
    parser = argparse.ArgumentParser(prog="scripts/compare_speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a `tfx` command")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
    parser.add_argument("songs", type=Path, nargs="+", metavar="SONG")
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs; default: 9")
    parser.add_argument("--backend", default="ort", help="default: ort")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures; default: do not")
    asked = parser.parse_args()
    rows = []
    print("\n".join(table([])), flush=True)
    for song in asked.songs:
        for command in (asked.before, asked.after):
            separate(command, song, asked.backend)  # fills the caches
        pairs = [
            (separate(asked.before, song, asked.backend), separate(asked.after, song, asked.backend))
            for _ in range(asked.runs)
        ]
        rows.append(row(song, pairs))
        print(line(rows[-1]), flush=True)
    if asked.json is not None:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        whole = {"date": date, "cores": os.cpu_count(), "backend": asked.backend, "rows": rows}
        asked.json.write_text(json.dumps(whole, indent=1) + "\n")


def row(song: Path, pairs: Sequence[tuple[Cost, Cost]]) -> dict[str, Any]:
    """The figures of a song, by the keys of ``COLUMNS``."""
    before, after = zip(*pairs, strict=True)
    ratios = [second.seconds / first.seconds for first, second in pairs]
    return {
        "song": song.name,
        "runs": len(pairs),
        "cpu_s_before": round(median(cost.seconds for cost in before), 3),
        "cpu_s_after": round(median(cost.seconds for cost in after), 3),
        "ratio": round(median(ratios), 3),
        "least": round(min(ratios), 3),
        "greatest": round(max(ratios), 3),
        "wall_s_before": round(median(cost.wall for cost in before), 3),
        "wall_s_after": round(median(cost.wall for cost in after), 3),
        "mib_before": round(median(cost.mebibytes for cost in before)),
        "mib_after": round(median(cost.mebibytes for cost in after)),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as Markdown."""
    yield f"| {' | '.join(COLUMNS.values())} |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"
    yield from map(line, rows)


def line(figures: Mapping[str, Any]) -> str:
    """One row as Markdown."""
    return f"| {' | '.join(str(figures[name]) for name in COLUMNS)} |"


def separate(command: Path, song: Path, backend: str) -> Cost:
    """Separate a song by the embedded model in one thread; stems go to a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--backend", backend, "--threads", "1", "-o", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        begun = time.perf_counter()
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
            wall = time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(
            f"{command} separate {song}: exit code {process.returncode}: {said.decode(errors='replace')}"
        )
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
