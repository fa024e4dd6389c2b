"""The INT8 page: every precision of some models beside each other, with size, SNR, drift and speed.

Each model is calibrated on songs, once with all its layers in 8 bits ("all") and once by a plan within a
budget ("plan"); the work folder keeps both, so that a second run measures only. All that is timed runs in
turns, each in a process of its own. Drift is measured on the song that stempeg ships and on held-out chunks
of the songs: neither was calibrated on. A page takes up what an earlier run wrote to it of other models, or
of other instructions of the CPU: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 is one without AMX.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import TFX

from tfswa.calibration.corpus import open_corpus
from tfswa.calibration.loss import HeldOut, Loss
from tfswa.export.plan import PrecisionPlan
from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.benchmark.process import Worker
from tfswa.runtime.errors import TfxError
from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.metrics import sdr_db, snr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.loading import Song, example_stem_file, load_stem_file
from tfswa.runtime.table import markdown_table

RUNS = [  # label, which bundle, backend, precision
    ("torch fp32", "all", "torch", "fp32"),
    ("ort fp32", "all", "ort", "fp32"),
    ("ort fp16", "all", "ort", "fp16"),
    ("ort int8, all", "all", "ort", "int8"),
    ("openvino fp32", "all", "openvino", "fp32"),
    ("openvino bf16", "all", "openvino", "bf16"),
    ("openvino int8 and fp32, all", "all", "openvino", "int8"),
    ("openvino int8 and bf16, all", "all", "openvino", "mixed"),
]
PLANNED = [
    ("ort int8, plan", "plan", "ort", "int8"),
    ("openvino int8 and bf16, plan", "plan", "openvino", "mixed"),
]
FULL = ("openvino int8 and fp32, plan", "plan", "openvino", "int8")  # a plan that has the rest in float32
ISA = "ONEDNN_MAX_CPU_ISA"  # of oneDNN: what OpenVINO and torch may use of a CPU


@dataclass
class Row:
    """One precision of one model."""

    label: str
    megabytes: float
    seconds: float  # of a chunk
    snr_db: dict[str, float]
    drift_db: dict[str, float]
    held_out_snr_db: dict[str, float]
    held_out_drift_db: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["demo"], metavar="MODEL", help="bundles or names (demo)"
    )
    parser.add_argument("--audio", type=Path, required=True, help="songs with true stems to calibrate on")
    parser.add_argument("--work", type=Path, default=Path("runs/int8"), help="where bundles go (runs/int8)")
    parser.add_argument("--chunks", type=int, default=64, help="to calibrate on (64)")
    parser.add_argument("--held-out", type=int, default=12, help="chunks to measure on (12)")
    parser.add_argument("--budget-db", type=float, default=0.05, help="of drift (0.05)")
    parser.add_argument("--depth", type=int, default=5, help="of the groups, see tfx calibrate (5)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (5)")
    parser.add_argument("--engines", action="store_true", help="also build TensorRT-RTX engines of both")
    parser.add_argument("-o", "--output", type=Path, metavar="NAME", help="also write NAME.md and NAME.json")
    given = parser.parse_args()
    file = example_stem_file()
    if file is None:
        sys.exit("stempeg is not installed: pip install stempeg")
    isa = os.environ.get(ISA)
    book = given.output.with_suffix(".json") if given.output else None
    kept: dict[str, Any] = json.loads(book.read_text()) if book and book.exists() else {}
    try:
        for name in given.models:
            label = Path(name).name + (f", {isa}" if isa else "")
            kept[label] = measure(name, file, given)
            if book:
                kept[label]["chart"] = f"{book.stem}-{Path(name).stem}{f'-{isa}' if isa else ''}.png"
                book.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(
                    given.work / Path(name).stem / "plan.png", book.with_name(kept[label]["chart"])
                )
    except (TfxError, subprocess.CalledProcessError) as error:
        sys.exit(f"int8: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    text = page(kept)
    print(text)
    if book:
        book.with_suffix(".md").write_text(text)
        book.write_text(json.dumps(kept) + "\n")


def measure(name: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Calibrate, plan, run: all rows of a model."""
    work = given.work / Path(name).stem
    prepare(name, work, given)
    if given.engines:
        quantized = json.loads((work / "plan.tfx" / "precision-plan.json").read_text())["int8"]
        for kind in ("all", "plan") if quantized else ("all",):
            for precision in ("int8", "mixed"):
                tfx("build-engine", work / f"{kind}.tfx", "--flavor", "rtx", "--precision", precision)
    spec = open_model(name).spec
    song = load_stem_file(file, spec)
    rows = list(run(work, song, given.rounds))
    plan = json.loads((work / "plan.tfx" / "precision-plan.json").read_text())
    calibration = json.loads((work / "all.tfx" / "calibration.json").read_text())
    return {
        "command": f"scripts/int8 {Path(name).name} --audio SONGS --chunks {given.chunks} --held-out "
        f"{given.held_out} --budget-db {given.budget_db:g} --depth {given.depth}",
        "cpu": cpu_name(),
        "cores": cores(),
        "isa": os.environ.get(ISA),
        "step_seconds": spec.chunk.step * spec.stft.hop / spec.stft.sample_rate,
        "calibration": {key: calibration[key] for key in ("method", "methods", "corpus")},
        "plan": plan,
        "rows": [vars(row) for row in rows],
    }


def prepare(name: str, work: Path, given: argparse.Namespace) -> None:
    """Two calibrated copies of a bundle: all layers in 8 bits, and by a plan."""
    whole, planned, corpus = work / "all.tfx", work / "plan.tfx", work / "calibration.npz"
    work.mkdir(parents=True, exist_ok=True)
    if not whole.exists():
        tfx("export", name, "--format", "onnx", "-o", whole)
        if open_model(whole).bundle.find("onnx", "fp16") is None:
            tfx("export", whole, "--precision", "fp16")
    drawing = ("--chunks", given.chunks, "--held-out", given.held_out, "--keep", corpus)
    source = ("--corpus", corpus) if corpus.exists() else ("--audio", given.audio, *drawing)
    if open_model(whole).bundle.find("onnx", "int8") is None:
        tfx("calibrate", whole, *source)
    if given.engines and not (whole / "model.mixed.onnx").exists():
        tfx("export", whole, "--precision", "mixed", "--audio", example_stem_file())
    if not (work / "plan.png").exists():  # the last that is made
        shutil.rmtree(planned, ignore_errors=True)
        shutil.copytree(whole, planned)
        limits = ("--budget-db", given.budget_db, "--depth", given.depth)
        tfx(
            "calibrate",
            planned,
            "--corpus",
            corpus,
            "--sensitivity",
            *limits,
            "--chart",
            work / "plan.png",
        )
        if given.engines and json.loads((planned / "precision-plan.json").read_text())["int8"]:
            tfx("export", planned, "--precision", "mixed", "--audio", example_stem_file(), "--force")


def tfx(*arguments: object) -> None:
    """A command as a user types it."""
    subprocess.run([*TFX, *map(str, arguments)], check=True, stdout=sys.stderr)


def run(work: Path, song: Song, rounds: int) -> Iterator[Row]:
    """Time all precisions in turns, each in a process of its own, and compare what they give."""
    bundles = {kind: open_model(work / f"{kind}.tfx") for kind in ("all", "plan")}
    plan = PrecisionPlan.load(bundles["plan"].file("precision-plan.json"))
    planned = [PLANNED[0], FULL] if plan.fp32 else PLANNED
    runs = [*RUNS, *(planned if plan.int8 else [])]
    spec = bundles["all"].spec
    times: dict[str, list[float]] = {label: [] for label, *_ in runs}
    found = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-int8-")))
        np.save(folder / "in.npy", song.mixture)
        workers = {}
        for label, kind, backend, precision in runs:
            worker = Worker(command(bundles[kind].name, backend, precision))
            workers[label] = stack.enter_context(closing(worker))
            worker.ask()
            worker.ask(json.dumps(["song", str(folder / "in.npy"), str(folder / "out.npy")]))
            found[label] = np.load(folder / "out.npy")
        for _ in range(rounds):
            for label, worker in workers.items():
                times[label] += worker.ask('["run", 2]')["seconds"]
    right = found[runs[0][0]]
    held_out = None
    for label, kind, backend, precision in runs:
        with closing(open_session(backend, bundles[kind], BackendOptions(precision))) as session:
            if held_out is None:
                corpus = open_corpus(work / "calibration.npz", spec)
                held_out = HeldOut(corpus.held_out, spec, session.infer)
            loss, name = held_out.measure(session.infer), session.artifact[0]
        drifts = [
            sdr_db(song.stems[stem], found[label][i]) - sdr_db(song.stems[stem], right[i])
            for i, stem in enumerate(spec.stems)
        ]
        yield Row(
            label,
            (bundles[kind].file(name).stat().st_size) / 1e6,
            float(np.median(times[label])),
            {stem: finite(snr_db(right[i], found[label][i])) for i, stem in enumerate(spec.stems)},
            {stem: float(drift) for stem, drift in zip(spec.stems, drifts, strict=True)},
            {stem: finite(value) for stem, value in loss.snr_db.items()},
            loss.drift_db,
        )


def command(model: str, backend: str, precision: str) -> list[str]:
    """The process that `tfx bench` times a backend in."""
    given = {"model": model, "backend": backend, "precision": precision}
    given |= {"device": "cpu", "threads": None, "batch": 1}
    return [sys.executable, "-m", "tfswa.runtime.benchmark.worker", json.dumps(given)]


def finite(value: float) -> Any:
    """A number of JSON."""
    return round(float(value), 2) if np.isfinite(value) else None


def page(kept: dict[str, Any]) -> str:
    lines = [
        "# INT8",
        "",
        "Times are medians of one interleaved run for each section, each precision in a process of its own:",
        "ratios hold within a section. SNR is that against eager torch in float32, drift the change of SDR",
        "against the true stems.",
    ]
    for name, found in kept.items():
        rows = found["rows"]
        base = rows[0]["seconds"]
        isa = f", limited to {found['isa']}" if found["isa"] else ""
        corpus, plan = found["calibration"]["corpus"], found["plan"]
        measured = plan["measured"]
        lines += [
            "",
            f"## {name}",
            "",
            f"`{found['command']}` on {found['cpu']}, {found['cores']} cores{isa}. Calibrated on "
            f"{corpus['chunks']} chunks of {len(corpus['sources'])} songs, ranges by "
            f"{found['calibration']['method']}; drift on stempeg's song and on {corpus['held_out']} held-out "
            f"chunks. The plan has {len(plan['int8'])} of {len(measured['groups'])} groups in int8, budget "
            f"{measured['budget_db']:g} dB.",
            "",
        ]
        stems = list(rows[0]["snr_db"])
        columns = ["precision", "MB", "x real time", "x torch fp32"]
        columns += [f"{stem}: SNR, drift dB" for stem in stems] + [f"{stem}, held out" for stem in stems]
        table = [
            [
                row["label"],
                f"{row['megabytes']:.1f}",
                f"{found['step_seconds'] / row['seconds']:.3g}",
                f"{base / row['seconds']:.2f}",
                *(pair(row["snr_db"][stem], row["drift_db"][stem]) for stem in stems),
                *(pair(row["held_out_snr_db"][stem], row["held_out_drift_db"][stem]) for stem in stems),
            ]
            for row in rows
        ]
        lines += markdown_table(columns, table)
        if any(point["time"] for point in measured["plans"]):
            lines += [
                "",
                "Plans of the search, of more and more groups; what the worst stem drifted with twice the "
                "standard error of that, or is expected to drift; time of the whole network by those within "
                "the budget, the fastest without INT8 being 1:",
                "",
            ]
            lines += markdown_table(
                ["groups in int8", "in fp32", "drift of the worst stem and its doubt, dB", "time"],
                [
                    [
                        str(point["int8"]),
                        str(point["fp32"]),
                        f"{Loss(**point['loss']).worst_drift_db:.4f}",
                        "" if point["time"] is None else f"{point['time']:.3f}",
                    ]
                    for point in sorted(measured["plans"], key=lambda point: point["int8"])
                ],
            )
        lines += ["", "Where time and decibels go, by OpenVINO's own times, groups of one kind together:", ""]
        lines += markdown_table(
            [
                "layers",
                "fp32 ms",
                "bf16 ms",
                "int8 ms",
                "worst drift of a group alone in int8, dB",
                "in the plan",
            ],
            by_kind(plan),
        )
        if "chart" in found:
            lines += ["", f"![Loss of each group alone, and time against drift]({found['chart']})"]
    return "\n".join(lines) + "\n"


def by_kind(plan: dict[str, Any]) -> list[list[str]]:
    """Groups summed by what they are called without their places."""
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, group in plan["measured"]["groups"].items():
        words = [word for word in name.split(".") if not word.isdecimal()]
        kinds.setdefault(".".join(words[-2:]), []).append((name, group))
    rows = []
    for kind, members in kinds.items():
        drifts = [max(map(abs, group["alone"]["int8"]["drift_db"].values())) for _, group in members]
        taken = sum(name in plan["int8"] for name, _ in members)
        times = [sum(group["cost"][form] for _, group in members) * 1e3 for form in ("fp32", "half", "int8")]
        rows.append(
            [kind, *(f"{value:.1f}" for value in times), f"{max(drifts):.4f}", f"{taken} of {len(members)}"]
        )
    return rows


def pair(snr: float | None, drift: float) -> str:
    return f"{'identical' if snr is None else f'{snr:.1f}'}, {drift + 0.0:+.4f}"


if __name__ == "__main__":
    main()
