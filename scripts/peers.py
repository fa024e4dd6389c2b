"""Networks of published size, with random weights: from a published file to stems, beside others' packages.

Each is written as its package writes it, imported, exported in fp32 and fp16 and built into an engine by the
commands that a user types, with the seconds and the peak of memory of each. Then the package and the backends
here separate the same music by the same rule of overlap, in turns, each in a process of its own. Networks
that need too much memory for all sides at once are loaded anew for every turn.

The packages (htdemucs: demucs; bs-roformer, mel-band-roformer: BS-RoFormer; mdx-net: onnxruntime, by UVR's
rule) may be in an environment of their own: --python. What is measured already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
from bench import TFX, machine

from tfswa.runtime.errors import TfxError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.metrics import finite_db, snr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.table import markdown_table

ROOT = Path(__file__).resolve().parents[1]
SIDE = ROOT / "scripts" / "peer_side.py"
PAGE = ROOT / "docs" / "measured" / "peers"
EXPORTS = {
    "onnx fp32": ("export",),
    "onnx fp16": ("export", "--precision", "fp16"),
    "engine fp16": ("build-engine", "--flavor", "rtx", "--precision", "fp16"),
}
BACKENDS = ("torch:fp32", "ort:fp32", "openvino:fp32", "openvino:bf16")
HEAD = """# Networks of published size, measured beside their packages

`scripts/peers --python ENVIRONMENT/bin/python -o FOLDER`. Weights are **random**: nothing here says how well
a network separates. Speed is seconds of audio per second of a whole separation, in brackets the ratio to the
package, medians of one run in which all took turns, each in a process of its own, whose first separation is
not counted; where it says so below, each turn in a fresh process. dB are the SNR of the worst stem against
the package's stems; of exports against eager, on generated music. Memory is the peak of a process. Exports in
fp16 were checked for NaN, Inf and overflow on signals made to break them. Engines are TensorRT-RTX's, built
on the CPU for every GPU, not run."""


@dataclass(frozen=True)
class Network:
    """A published network.

    Attributes:
        package: that it comes from, as it is named in the table.
        file: what the package's weights are in.
        how: further words of ``tfx import``.
        overlap: rule by which the package goes through a song.
        seconds: of the music; None for one chunk.
        fresh: whether every turn has a process of its own: all sides at once need too much memory.
    """

    package: str
    file: str
    how: tuple[str, ...]
    overlap: str
    seconds: float | None
    fresh: bool = False


NETWORKS = {
    "htdemucs": Network("demucs", "model.th", (), "demucs:0.25", 24.0),
    "bs-roformer": Network("BS-RoFormer", "model.ckpt", ("--config", "config.yaml"), "mean:1", None, True),
    "mel-band-roformer": Network(
        "BS-RoFormer", "model.ckpt", ("--config", "config.yaml"), "mean:1", None, True
    ),
    "mdx-net": Network(
        "onnxruntime, UVR's rule",
        "model.onnx",
        ("--stft", "n_fft=7680", "--stems", "vocals,accompaniment"),
        "1",
        24.0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (all)")
    parser.add_argument("--python", default=sys.executable, help="of the packages' environment (this one)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for weights and models")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    parser.add_argument(
        "--speed", action="store_true", help="speed alone, of what FOLDER holds; the rest stays as measured"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, metavar="NAME", help=f"NAME.json, NAME.md ({PAGE})"
    )
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(NETWORKS)):
        parser.error(f"no network is called {', '.join(unknown)}: choose of {', '.join(NETWORKS)}")
    python = shutil.which(given.python)
    if python is None:
        parser.error(f"--python {given.python} is no program that can be run")
    python = os.path.abspath(python)  # not resolved: a link in an environment says which one it is
    kept = given.page.with_suffix(".json")
    results: dict[str, Any] = json.loads(kept.read_text())["networks"] if kept.exists() else {}
    try:
        for name in given.names or NETWORKS:
            folder = given.output.resolve() / name
            if not given.speed or name not in results:
                results[name] = way(name, folder, python)
                write(given.page, results)  # hours may have gone by
            if "refused" not in results[name]:
                results[name] |= speed(name, folder, python, given.rounds)
                write(given.page, results)
    except KeyboardInterrupt:
        sys.exit(130)
    print(page(results))


def way(name: str, folder: Path, python: str) -> dict[str, Any]:
    """From the package's file to an engine; what refuses is a line in place of its figures."""
    network = NETWORKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"package": network.package, "machine": machine(), "steps": {}, "speed": {}}
    if not (folder / network.file).exists():
        made = ran(name, [python, str(SIDE), "make", name, "."], folder)
        if "refused" in made:
            return {**found, "refused": made["refused"]}
    words = ("import", network.file, *network.how, "-o", "model.tfx", "--force")
    found["steps"]["import"] = ran(f"{name}: import", [*TFX, *words, "--json"], folder)
    if "refused" in found["steps"]["import"]:
        return {**found, "refused": found["steps"]["import"]["refused"]}
    for step, (command, *more) in EXPORTS.items():
        words = (command, "model.tfx", *more, "--force")
        found["steps"][step] = ran(f"{name}: {step}", [*TFX, *words, "--json"], folder)
    spec = open_model(str(folder / "model.tfx")).spec
    return found | {"parameters": spec.parameters, "gflop_per_second": spec.gflop_per_second}


def speed(name: str, folder: Path, python: str, rounds: int) -> dict[str, Any]:
    """What the package and the backends need for the same music."""
    spec, seconds = open_model(str(folder / "model.tfx")).spec, NETWORKS[name].seconds
    samples = spec.chunk_samples if seconds is None else round(seconds * spec.stft.sample_rate)
    song = synthetic_song(spec, (samples + 1) / spec.stft.sample_rate).mixture[:, :samples]
    np.save(folder / "song.npy", song)
    return {
        "audio_seconds": samples / spec.stft.sample_rate,
        "speed_machine": machine(),
        "fresh": NETWORKS[name].fresh,
        "speed": in_turns(name, folder, python, rounds),
    }


def ran(what: str, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command there: what it printed as JSON, seconds and peak of memory; or why it was refused."""
    print(what, file=sys.stderr, flush=True)
    began = time.perf_counter()
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read()
    found = {"seconds": seconds, "memory_mb": used.ru_maxrss * 1024 / 1e6}
    if child.returncode:
        last = (told.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return {**found, "refused": last.removeprefix("tfx: ")}
    answer = json.loads(said) if said.startswith("{") else {}
    keys = ("bytes", "snr_db", "peak", "version")
    return {**found, **{key: answer[key] for key in keys if key in answer}}


class Worker:
    """One side, loaded in a process of its own; a context manager."""

    def __init__(self, name: str, side: str, folder: Path, python: str):
        command = [python, str(SIDE), side, ".", "song.npy", "--overlap", NETWORKS[name].overlap]
        self._log = (folder / f"{_file(side)}.log").open("w+")
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is loaded, or has ended

    def turn(self) -> dict[str, Any]:
        """Separate the song: the seconds, and the peak of memory so far; or why it was refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(said) if said else {"refused": self._last_line()}
        return found

    def _last_line(self) -> str:
        """What it said last; where a signal ended it, as the system does where memory runs out, which one."""
        code = self._process.wait()
        if code < 0:
            return f"ended by signal {-code}"
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or [f"exit code {code}"])[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()
        self._log.close()


def in_turns(name: str, folder: Path, python: str, rounds: int) -> dict[str, Any]:
    """Seconds and memory by side, and how its stems are like the package's."""
    sides, fresh = {name: python, **dict.fromkeys(BACKENDS, sys.executable)}, NETWORKS[name].fresh
    found: dict[str, Any] = {side: {"seconds": []} for side in sides}

    def load(side: str) -> Worker:
        print(f"{name}: {side} is loaded", file=sys.stderr, flush=True)
        return Worker(name, side, folder, sides[side])

    with ExitStack() as stack:
        staying = {} if fresh else {side: stack.enter_context(load(side)) for side in sides}
        for turn in range(rounds if fresh else rounds + 1):
            for side, row in found.items():
                if "refused" in row:
                    continue
                with nullcontext(staying[side]) if side in staying else load(side) as worker:
                    said = worker.turn()
                if "refused" in said:
                    row["refused"] = said["refused"]
                    continue
                print(f"{name}: {side} {said['seconds']:.1f} s", file=sys.stderr, flush=True)
                row["memory_mb"] = max(said["memory_mb"], row.get("memory_mb", 0.0))
                if fresh or turn:  # the first of a process that stays is not counted
                    row["seconds"].append(said["seconds"])
    for side in BACKENDS:
        if found[name]["seconds"] and found[side]["seconds"]:
            pairs = zip(*(np.load(folder / f"{_file(one)}.npy") for one in (name, side)), strict=True)
            values = [finite_db(snr_db(one, two)) for one, two in pairs]
            found[side]["snr_db"] = min((value for value in values if value is not None), default=None)
    return found


def _file(side: str) -> str:
    return side.replace(":", "-")


def write(place: Path, results: Mapping[str, Any]) -> None:
    """NAME.json and NAME.md."""
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"networks": dict(sorted(results.items()))}, indent=1) + "\n"
    for path, content in ((place.with_suffix(".json"), text), (place.with_suffix(".md"), page(results))):
        with writing(path) as stream:
            stream.write(content.encode())


def page(results: Mapping[str, Any]) -> str:
    """Two tables: the way to an engine, and speed."""
    steps = ("import", *EXPORTS)
    ways = [
        (name, found.get("parameters"), *(_step(found["steps"].get(step)) for step in steps))
        for name, found in sorted(results.items())
    ]
    speeds = [
        (name, found["package"], *(_speed(name, found, side) for side in (name, *BACKENDS)))
        for name, found in sorted(results.items())
    ]
    lines = [HEAD, "", *markdown_table(("network", "parameters", *steps), ways), ""]
    lines += markdown_table(("network", "package", "the package", *BACKENDS), speeds)
    lines += ["", "Measured on:", ""]
    for name, found in sorted(results.items()):
        turns = "each turn in a fresh process; " if found.get("fresh") else ""
        there = _where(found["machine"])
        lines.append(f"- {name}: {found.get('audio_seconds', 0):.1f} s of audio; {turns}{there}")
        later = found.get("speed_machine", found["machine"])
        if later["commit"] != found["machine"]["commit"]:
            lines.append(f"- {name}, its speed: {_where(later)}")
    return "\n".join(lines) + "\n"


def _where(machine: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def _step(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    if "refused" in found:
        return f"refused: {found['refused']}"
    words = [f"{found['seconds']:.0f} s", f"{found['memory_mb'] / 1000:.1f} GB"]
    worst = [value for value in (found.get("snr_db") or {}).values() if value is not None]
    return ", ".join([*words, *([f"{min(worst):.0f} dB"] if worst else [])])


def _speed(name: str, found: Mapping[str, Any], side: str) -> str:
    row, package = found["speed"].get(side), found["speed"].get(name)
    if not row:
        return "-"
    if "refused" in row or not row["seconds"]:
        return f"refused: {row.get('refused', 'no turn ended')}"
    speed = found["audio_seconds"] / median(row["seconds"])
    words = f"{speed:.2f}, {row['memory_mb'] / 1000:.1f} GB"
    if side == name or not package or not package["seconds"]:
        return words
    ratio = median(one / two for one, two in zip(package["seconds"], row["seconds"], strict=True))
    alike = f", {row['snr_db']:.0f} dB" if row.get("snr_db") is not None else ""
    return f"{words} ({ratio:.2f}){alike}"


if __name__ == "__main__":
    try:
        main()
    except TfxError as error:
        sys.exit(f"scripts/peers: {reason(error)}")
