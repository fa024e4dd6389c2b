"""Measure on this machine: the host's share of the work, memory on long files, training steps.

Ratios come from one interleaved run. Every subprocess is the command that a user types, but for those of
the training part (bench_training.py). Backends are compared by `tfx bench`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_training
import soundfile

from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.table import markdown_table, text_table

TFX = [sys.executable, "-m", "tfswa.runtime"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=["host", "memory", "training"],
        help="one part; default: all but training, which takes most of an hour on a CPU",
    )
    parser.add_argument("--minutes", type=float, default=60, help="length of the long file (60)")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--networks",
        nargs="+",
        default=bench_training.NETWORKS,
        metavar="FAMILY",
        help=f"default: {' '.join(bench_training.NETWORKS)}",
    )
    group.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:N (cpu)")
    group.add_argument("--steps", type=int, default=10, help="timed steps per mode (10)")
    group.add_argument(
        "--compile-seconds", type=float, default=600, help="limit of the first compiled step (600)"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the recipe train/configs/seed.toml, TOML syntax; repeatable",
    )
    parser.add_argument(
        "--output", type=Path, metavar="NAME", help="also write NAME.json and NAME.md; default: print only"
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps {arguments.steps} leaves nothing to time: give 1 or more")
    results: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.only in (None, "host"):
            results["host"] = host(work)
        if arguments.only in (None, "memory"):
            results["memory"] = memory(work, arguments.minutes)
        if arguments.only == "training":
            plan = bench_training.Plan(
                work, arguments.device, arguments.steps, arguments.compile_seconds, arguments.set
            )
            results |= bench_training.training(plan, arguments.networks)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        arguments.output.with_suffix(".md").write_text(page(results))


TITLES = {
    "host": "Work outside the network: decode, STFT, iSTFT, overlap-add, encode",
    "memory": "Peak resident memory of `tfx separate` by length of the file",
    "training": "Training steps of a network, modes interleaved",
    "training_loader": "Loading batches with one worker: alone, and beside eager steps",
    "training_conditions": "Conditions of the training part",
}


def page(results: dict[str, Any]) -> str:
    """The figures as Markdown, machine and commit included."""
    lines = ["# Measured by `scripts/bench`", ""]
    lines.append(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    for part, title in TITLES.items():
        if part in results:
            rows = results[part] if isinstance(results[part], list) else [results[part]]
            table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
            lines += ["", f"## {title}", "", *table]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    packages = {}
    for name in ("numpy", "scipy", "onnxruntime", "torch"):
        try:
            packages[name] = version(name)
        except ModuleNotFoundError:
            packages[name] = "-"
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "python": platform.python_version(),
        **packages,
        "commit": commit.stdout.strip() or "-",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def host(work: Path) -> dict[str, Any]:
    """Share of everything but the network in a separation with the 15.0M default."""
    bundle, song = work / "default.tfx", work / "minute.wav"
    run("new", "tfswa_unet", "-o", str(bundle))
    run("export", str(bundle), "--format", "onnx")
    loop_song(song, 60)
    out = separate(song, str(bundle), "ort", work / "host")
    share = out["host_cpu_seconds"] / out["cpu_seconds"]
    row = {
        "model": "tfswa_unet",
        "backend": "ort",
        "audio_seconds": out["seconds"],
        "cpu_seconds": out["cpu_seconds"],
        "host_cpu_seconds": out["host_cpu_seconds"],
        "host_share_percent": round(100 * share, 2),
        "x_realtime": out["x_realtime"],
    }
    print("work outside the network: decode, STFT, iSTFT, overlap-add, encode")
    print(text_table(list(row), [list(row.values())]), end="\n\n")
    return row


def memory(work: Path, minutes: float) -> list[dict[str, Any]]:
    """Peak memory of the whole process on a 2-minute and on a long file."""
    rows = []
    short, long = work / "short.wav", work / "long.wav"
    loop_song(short, 120)
    loop_song(long, 60 * minutes)
    for backend in ("ort", "torch"):
        peaks = []
        for path in (short, long):
            out = separate(path, "demo", backend, work / "memory")
            lengths = {stem: soundfile.info(file).frames for stem, file in out["outputs"].items()}
            exact = set(lengths.values()) == {soundfile.info(path).frames}
            peaks.append(out["peak_memory_mb"])
            rows.append(
                {
                    "backend": backend,
                    "audio_seconds": out["seconds"],
                    "peak_memory_mb": out["peak_memory_mb"],
                    "ratio": round(peaks[-1] / peaks[0], 3),
                    "x_realtime": out["x_realtime"],
                    "length_exact": "yes" if exact else f"NO: {lengths}",
                }
            )
    print("peak resident memory of `tfx separate` by length of the file")
    print(text_table(list(rows[0]), [list(row.values()) for row in rows]), end="\n\n")
    return rows


def loop_song(path: Path, seconds: float) -> None:
    """Write the example song over and over, 16-bit, to the sample."""
    spec = open_model("demo").spec
    found = example_stem_file()
    song = load_stem_file(found, spec) if found else synthetic_song(spec)
    left, rate = int(seconds * spec.stft.sample_rate), spec.stft.sample_rate
    with soundfile.SoundFile(path, "w", rate, spec.channels, subtype="PCM_16") as file:
        while left > 0:
            file.write(song.mixture.T[:left])
            left -= song.mixture.shape[1]


def separate(path: Path, model: str, backend: str, out: Path) -> dict[str, Any]:
    text = run("separate", str(path), "-m", model, "--backend", backend, "-o", str(out), "--force", "--json")
    entry: dict[str, Any] = json.loads(text)["files"][0]
    return entry


def run(*arguments: str) -> str:
    done = subprocess.run([*TFX, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tfx {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
