"""How fast the same networks run in two installed versions, by their `tfx bench`, in turns.

scripts/compare_bench BEFORE AFTER MODEL... prints a row for each model: the median call of its network in
milliseconds, before and after, and the speed after beside before of the pairs of runs (median, least,
greatest). Pairs are runs that follow each other, because the machine's speed changes meanwhile.
MODEL,OTHER has BEFORE run the one and AFTER the other: with one command twice, two models are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from tfswa.runtime.table import markdown_table

COLUMNS = ("model", "runs", "ms before", "ms after", "speed after / before", "least", "greatest")


def main() -> None:
    """Time every model in both versions."""
    parser = argparse.ArgumentParser(prog="scripts/compare_bench", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a `tfx` command")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a bundle that both can read, demo, or MODEL,OTHER"
    )
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs; default: 5")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of a run; default: 9")
    parser.add_argument("--backend", default="ort", help="NAME or NAME:PRECISION; default: ort")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    asked = parser.parse_args()
    rows: list[tuple[str | int | float, ...]] = []
    for model in asked.models:
        first, _, second = model.partition(",")
        pairs = [
            (median_ms(asked.before, first, asked), median_ms(asked.after, second or first, asked))
            for _ in range(asked.runs)
        ]
        before, after = zip(*pairs, strict=True)
        ratios = [slow / fast for slow, fast in pairs]
        times = (round(median(before), 2), round(median(after), 2))
        shares = (round(value, 3) for value in (median(ratios), min(ratios), max(ratios)))
        name = ", ".join(Path(one).name for one in model.split(","))
        rows.append((name, asked.runs, *times, *shares))
    print("\n".join(markdown_table(COLUMNS, rows)))


def median_ms(command: Path, model: str, asked: argparse.Namespace) -> float:
    """Median call of a model's network in one run of `tfx bench`."""
    words = ["bench", model, "--backend", asked.backend, "--threads", str(asked.threads)]
    words += ["--rounds", str(asked.rounds), "--json"]
    done = subprocess.run([command, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} {' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
    (row,) = json.loads(done.stdout)["rows"]
    return float(row["median_ms"])


if __name__ == "__main__":
    main()
