"""Build engines and run every backend on a GPU, beside eager torch: speed, drift, memory, whole files.

What each step cannot do here is kept as a line of the result, with its reason: a check that stops at the
first thing that is missing tells nothing of the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import TFX, loop_song

from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.table import markdown_table, text_table

BATCHES = (1, 4, 8)
COMPILED = "torch-compile"  # takes minutes for each batch: measured for the first alone


@dataclass
class Check:
    """A run under a limit of time, and what has come of it."""

    model: str
    device: str
    audio: Path | None
    end: float
    engines: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def tfx(self, what: str, *arguments: str) -> dict[str, Any] | None:
        """A tfx command with --json; None, and a line among the failures, where it fails or time is up."""
        left = self.end - time.monotonic()
        print(f"{what} ({left:.0f} s left)", file=sys.stderr, flush=True)
        if left <= 0:
            self.fail(what, "left out: the time is up")
            return None
        command = [*TFX, *arguments, "--json"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, said = child.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            child.terminate()  # not kill: it has processes of its own to end
            child.communicate()
            self.fail(what, "ended: the time is up")
            return None
        if child.returncode:
            reason = (said.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            self.fail(what, reason.removeprefix("tfx: "))
            return None
        answer: dict[str, Any] = json.loads(out)
        return answer

    def fail(self, what: str, reason: str) -> None:
        """Keep what could not be done."""
        self.failures.append({"what": what, "reason": reason})

    def build(self) -> None:
        """Engines of every flavor and precision that the bundle has a graph for."""
        bundle = open_model(self.model).bundle
        if bundle is None:
            raise UsageError(f"{self.model} is an exported file, engines are built for bundles: name that")
        for flavor in ("rtx", "tensorrt"):
            for precision in ("fp32", "fp16", "bf16"):
                if bundle.find("onnx", precision) is None:
                    self.fail(f"engine {flavor} {precision}", f"no ONNX graph in {precision}")
                    continue
                batches = ",".join(map(str, BATCHES))
                options = ("--flavor", flavor, "--precision", precision, "--batch", batches)
                made = self.tfx(f"engine {flavor} {precision}", "build-engine", self.model, *options)
                if made:
                    keys = ("flavor", "version", "precision", "target", "bytes", "seconds", "cached")
                    self.engines.append({key: made[key] for key in keys})

    def measure(self) -> None:
        """Every backend in turns: all that is here for the first batch, then those that could run.

        What compiles for minutes comes last, beside the eager network: it may cost its own row, no others.
        """
        able: list[str] = []
        for batch in BATCHES:
            rows = self.bench(f"speed, batch {batch}", batch, able)
            able = able or [f"{row['backend']}:{row['precision']}" for row in rows]
            self.speed += rows
        rows = self.bench(COMPILED, BATCHES[0], ["torch:fp32", f"{COMPILED}:fp32"])
        self.speed += [row for row in rows if row["backend"] == COMPILED]

    def bench(self, what: str, batch: int, backends: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of those that could run, of the backends named or all; the others go to the failures."""
        audio = ("--audio", str(self.audio)) if self.audio else ()
        options = ("--device", self.device, "--batch", str(batch), "--rounds", "9", *audio)
        named = [word for name in backends for word in ("--backend", name)]
        found = self.tfx(what, "bench", self.model, *named, *options)
        rows = found["rows"] if found else []
        for row in rows:
            if row["median_ms"] is None:
                self.fail(f"{row['backend']}:{row['precision']}, batch {batch}", row["note"])
        return [{"batch": batch, **row} for row in rows if row["median_ms"] is not None]

    def separate(self, minutes: float) -> None:
        """A whole file, end to end, by every backend that was measured and is ready at once."""
        with tempfile.TemporaryDirectory() as folder:
            song = Path(folder) / "song.wav"
            loop_song(song, 60 * minutes)
            ran = dict.fromkeys((row["backend"], row["precision"]) for row in self.speed)
            for backend, precision in ran:
                if backend == COMPILED:
                    continue
                options = ("--backend", backend, "--precision", precision, "--device", self.device)
                where = ("-m", self.model, "-o", f"{folder}/out", "--batch", "8", "--force")
                done = self.tfx(f"{backend} {precision}: file", "separate", str(song), *where, *options)
                if done:
                    (file,) = done["files"]
                    keys = ("seconds", "wall_seconds", "x_realtime", "peak_memory_mb")
                    row = {"backend": backend, "precision": precision}
                    self.files.append({**row, **{key: file[key] for key in keys}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a bundle with its graphs exported (demo)")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (cuda)")
    parser.add_argument("--audio", type=Path, help="a stem file for the dB; default: a synthetic song")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the whole file (3)")
    parser.add_argument("--seconds", type=float, default=520.0, help="limit of the whole check (520)")
    parser.add_argument("-o", "--output", type=Path, metavar="NAME", help="also write NAME.json, NAME.md")
    given = parser.parse_args()
    check = Check(given.model, given.device, given.audio, time.monotonic() + given.seconds)
    try:
        check.build()
        check.measure()
        check.separate(given.minutes)
    except TfxError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    result = {"machine": machine(), "model": given.model}
    result |= {name: getattr(check, name) for name in ("engines", "speed", "files", "failures")}
    print(page(result, text=True))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        given.output.with_suffix(".md").write_text(page(result, text=False))
    if not check.speed:
        sys.exit("nothing could be measured: see the reasons above")


SPEED = ("batch", "backend", "precision", "median_ms", "p95_ms", "x_realtime", "x_first", "snr_db")
SPEED += ("drift_db", "open_s", "cold_s", "gpu_memory_mb", "ceiling", "note")


def page(result: dict[str, Any], *, text: bool) -> str:
    """The tables, for a terminal or for Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in result["machine"].items())]
    if not text:
        lines = [f"# Measured by `scripts/gpu_check --model {result['model']}`", "", *lines]
    for part in ("engines", "speed", "files", "failures"):
        rows = result[part]
        if rows:
            columns = SPEED if part == "speed" else tuple(rows[0])
            cells = [[row[column] for column in columns] for row in rows]
            table = [text_table(columns, cells)] if text else markdown_table(columns, cells)
            lines += ["", part if text else f"## {part.capitalize()}", "", *table]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """The GPU by nvidia-smi, and the date."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, IndexError, subprocess.CalledProcessError):
        gpu = "none found by nvidia-smi"
    return {"gpu": gpu, "date": datetime.now(UTC).isoformat(timespec="seconds")}


if __name__ == "__main__":
    main()
