"""Time training steps: the modes of a network take turns, each in a process of its own.

One process computes at a time, so a slow spell of the machine hits all modes alike. What a process does is
in bench_trainee.py.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tfswa.runtime.benchmark.process import Lost, Worker
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.table import text_table

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "train" / "configs" / "seed.toml"
NETWORKS = ("tfswa_lite", "tfswa_unet")
MODES = {
    "eager": (),
    "checkpointing": ("optim.checkpointing=true",),
    "compiled": ("optim.compile=true",),
}
SOURCES = ("vocals", "drums", "bass", "other")
SIZES = {"cpu": (4, 128), "cuda": (12, 256)}  # chunks a step, frames a chunk
WARM_UP = 2
TURN = 2  # timed steps
FEED = 5  # most steps beside a loader
EPOCHS, MUSDB_HOURS, AIM_HOURS = 300, 5.6, 48.0  # audio of MUSDB18's 86 training songs


@dataclass
class Cell:
    """One network in one mode.

    Attributes:
        network: a family's name.
        mode: a name of ``MODES``.
        trainee: its process; None once it is lost.
        conditions: what the figures hold for.
        warm_up: the first steps: seconds, loss and gradient norm of each.
        steps: those that are timed.
        memory_mb: peak so far.
        note: why there are no more of them.
    """

    network: str
    mode: str
    trainee: Worker | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    warm_up: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    memory_mb: float = 0.0
    note: str = ""

    def ask(self, what: str = "", seconds: float | None = None) -> dict[str, Any] | None:
        """Answer of the process; None where it is lost, and the note says why."""
        if self.trainee is None:
            return None
        try:
            return self.trainee.ask(what, seconds)
        except Lost as error:
            self.note = str(error)
            self.trainee.close()
            self.trainee = None
            return None

    def warm(self, seconds: float | None = None) -> None:
        """Take a step that is not timed, within ``seconds``."""
        answer = self.ask("step 1", seconds)
        if answer is not None:
            self.warm_up += answer["steps"]

    def turn(self, count: int) -> None:
        """Take timed steps; one before them takes memory again, which went back after the last turn."""
        answer = self.ask(f"step {1 + count}")
        if answer is not None:
            self.steps += answer["steps"][1:]
            self.memory_mb = answer["memory_mb"]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        work: folder for songs and caches.
        device: where to train.
        steps: timed steps per mode.
        compile_seconds: limit of the first compiled step.
        overrides: of the recipe.
    """

    work: Path
    device: str
    steps: int
    compile_seconds: float
    overrides: Sequence[str]

    def settings(self, network: str) -> list[str]:
        """The recipe on the songs that were written, at the size for the device."""
        batch, frames = SIZES["cuda" if self.device.startswith("cuda") else "cpu"]
        return [
            f'model.family="{network}"',
            f'data.root="{self.work / "songs"}"',
            f'data.cache="{self.work / "cache"}"',
            "data.validation=[]",
            "run.statistics_batches=1",
            f"optim.batch={batch}",
            f"optim.frames={frames}",
            *self.overrides,
        ]


def training(plan: Plan, networks: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Measure every network in every mode, and the loader beside it; print and return the tables."""
    write_songs(plan.work / "songs")
    shutil.copy(RECIPE, plan.work)  # the same for all, whoever edits it meanwhile
    steps: list[dict[str, Any]] = []
    loader: list[dict[str, Any]] = []
    conditions: dict[str, Any] = {}
    for network in networks:
        with ExitStack() as stack:
            cells = [Cell(network, mode) for mode in MODES]
            take_turns(cells, plan, stack)
            for cell in cells[1:]:
                if cell.trainee is not None:
                    cell.trainee.close()
            steps += [step_row(cell, cells[0]) for cell in cells]
            loader += [row for row in (loader_row(cells, min(FEED, plan.steps)),) if row]
            conditions = cells[0].conditions
    held = ("device", "precision", "batch", "frames", "chunk_seconds", "threads")
    row = {
        **{key: conditions[key] for key in held},
        "chunk_seconds": round(conditions["chunk_seconds"], 2),
        "warm_up": WARM_UP,
        "steps": plan.steps,
        "recipe": " ".join([RECIPE.name, *plan.overrides]),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
        "hours_300_epochs": f"{EPOCHS} x {MUSDB_HOURS} h / audio_s_per_s, aim {AIM_HOURS:g} h",
    }
    tables = {"training": steps, "training_loader": loader, "training_conditions": [row]}
    for rows in tables.values():
        if rows:
            print(text_table(list(rows[0]), [list(row.values()) for row in rows]), end="\n\n")
    return {name: rows for name, rows in tables.items() if rows}


def take_turns(cells: Sequence[Cell], plan: Plan, stack: ExitStack) -> None:
    """Start the cells' processes, warm each up, then let them step in turn; ``stack`` ends them."""
    for cell in cells:
        tell(f"{cell.network}, {cell.mode}: start and warm-up")
        program = [sys.executable, str(HERE / "bench_trainee.py"), str(plan.work / RECIPE.name), plan.device]
        # An empty cache: what an earlier run compiled would hide how long it takes.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(plan.work / f"inductor-{cell.network}")}
        cell.trainee = Worker([*program, *plan.settings(cell.network), *MODES[cell.mode]], cache)
        stack.enter_context(closing(cell.trainee))
        cell.conditions = cell.ask() or {}
        if not cell.conditions and cell is cells[0]:
            sys.exit(f"{cell.network} cannot be trained: {cell.note}")
        for index in range(WARM_UP):
            limited = index == 0 and cell.mode == "compiled"
            cell.warm(plan.compile_seconds if limited else None)
    for done in range(0, plan.steps, TURN):
        tell(f"{cells[0].network}: {done} of {plan.steps} steps")
        for cell in cells:
            cell.turn(min(TURN, plan.steps - done))


def step_row(cell: Cell, eager: Cell) -> dict[str, Any]:
    """One line of the table of steps; figures are missing where the cell took no timed step."""
    row: dict[str, Any] = {"network": cell.network, "mode": cell.mode}
    columns = ("median_ms", "p95_ms", "x_eager", "audio_s_per_s", "compile_s", "memory_mb", "before_mb")
    row |= dict.fromkeys((*columns, "apart", "hours_300_epochs", "within_aim"))
    if cell.steps:
        times = [step["seconds"] for step in cell.steps]
        median = statistics.median(times)
        speed = cell.conditions["batch"] * cell.conditions["chunk_seconds"] / median
        hours = EPOCHS * MUSDB_HOURS / speed
        row["median_ms"] = round(median * 1e3, 1)
        row["p95_ms"] = round(float(np.percentile(times, 95)) * 1e3, 1)
        if eager.steps:
            paired = [a["seconds"] / b["seconds"] for a, b in zip(eager.steps, cell.steps, strict=False)]
            row["x_eager"] = round(statistics.median(paired), 3)
        row["audio_s_per_s"] = round(speed, 2)
        if cell.mode == "compiled":
            row["compile_s"] = round(cell.warm_up[0]["seconds"] - median, 1)
        row["memory_mb"] = cell.memory_mb
        row["before_mb"] = cell.conditions["memory_mb"]
        row["apart"] = apart(cell, eager)
        row["hours_300_epochs"] = round(hours, 1)
        row["within_aim"] = "yes" if hours <= AIM_HOURS else "no"
    row["note"] = cell.note or None
    return row


def apart(cell: Cell, eager: Cell) -> str | None:
    """Largest relative difference of loss or gradient norm to eager, over the steps of the warm-up."""
    pairs = [
        (mine[name], true[name])
        for mine, true in zip(cell.warm_up, eager.warm_up, strict=False)
        for name in ("loss", "gradient_norm")
    ]
    if not pairs:
        return None
    largest = max(abs(a - b) / abs(b) for a, b in pairs)
    return f"{largest:.1e}" if largest else "identical"


def loader_row(cells: Sequence[Cell], count: int) -> dict[str, Any] | None:
    """One worker's speed alone, what an eager step waits for it, and how many the fastest mode needs."""
    eager = cells[0]
    tell(f"{eager.network}: loader")
    load, feed = eager.ask(f"load {count}"), eager.ask(f"feed {count}")
    if load is None or feed is None:
        return None
    batch, seconds = eager.conditions["batch"], load["seconds"]
    wait, step = sum(feed["wait_seconds"]), sum(feed["step_seconds"])
    medians = {c.mode: statistics.median(s["seconds"] for s in c.steps) for c in cells if c.steps}
    fastest = min(medians, key=lambda mode: medians[mode])
    return {
        "network": eager.network,
        "batch_ms": round(seconds * 1e3, 1),
        "chunks_per_s": round(batch / seconds, 2),
        "x_realtime": round(batch * eager.conditions["chunk_seconds"] / seconds, 1),
        "step_ms": round(statistics.median(feed["step_seconds"]) * 1e3, 1),
        "wait_ms": round(statistics.median(feed["wait_seconds"]) * 1e3, 1),
        "longest_wait_ms": round(max(feed["wait_seconds"]) * 1e3, 1),
        "wait_percent": round(100 * wait / (wait + step), 2),
        "fastest": fastest,
        "workers_for_fastest": math.ceil(seconds / medians[fastest]),
    }


def write_songs(root: Path, seconds: float = 60.0) -> None:
    """Write two songs of four sources: the example stem file over and over, begun at two places."""
    spec = open_model("demo").spec
    found = example_stem_file()
    if found:
        four = ModelSpec("any", SOURCES, stft=spec.stft, channels=spec.channels)
        stems = load_stem_file(found, four).stems
    else:
        song = synthetic_song(spec).stems
        stems = {name: song["vocals"] if name == "vocals" else song["accompaniment"] / 3 for name in SOURCES}
    rate = spec.stft.sample_rate
    for name, begin in (("one", 0.0), ("two", 0.5)):
        (root / name).mkdir(parents=True)
        for source, audio in stems.items():
            places = np.arange(int(seconds * rate)) + int(begin * audio.shape[1])
            looped = audio[:, places % audio.shape[1]]
            soundfile.write(root / name / f"{source}.wav", looped.T, rate, subtype="PCM_16")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
