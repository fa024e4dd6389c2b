"""Every backend and precision that can run a model here, in turns, each in a process of its own.

One process computes at a time and the turns are short, so a slow spell of the machine hits all alike. What a
process does is in ``worker.py``.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import backend_names, compiles, default_device, precisions_of
from tfswa.runtime.benchmark.process import Lost, Worker
from tfswa.runtime.errors import BackendUnavailable, TfxError, UsageError
from tfswa.runtime.failures import Failure
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.gates import gate_for
from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.metrics import sdr_db, snr_db
from tfswa.runtime.songs.loading import Song
from tfswa.runtime.stream.arrangement import Arrangement

TURN = 2  # timed calls before the next backend has its turn
CEILINGS = {  # what is measured; CPUs compute float16 in float32
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        entries: backends and precisions; empty for all that are here.
        rounds: timed calls of each.
        batch: chunks a call.
        device: as for ``tfx separate``; None for each backend's own.
        threads: CPU threads; None for all.
        compiled: whether all that are here includes those that compile for minutes.
    """

    entries: Sequence[tuple[str, str]] = ()
    rounds: int = 7
    batch: int = 1
    device: str | None = None
    threads: int | None = None
    compiled: bool = False


@dataclass
class Row:
    """One backend in one precision. None where a figure could not be had.

    Attributes:
        backend: its name.
        precision: as asked for.
        device: likewise, or the backend's own.
        session: what ran, in words.
        versions: of its libraries.
        median_ms: of a call of the network, warm; of several models, of all of them together, each of as much
            audio as a call of the first takes.
        p95_ms: likewise.
        x_realtime: seconds of audio per second, by the median.
        x_first: speed beside the first row's: its median by this one's.
        snr_db: of the worst stem of the song, against the first row's output; None where identical.
        identical: whether the song came out as in the first row, to the bit.
        drift_db: largest change of SDR against the true stems.
        passed: whether it meets parity's gate of its precision; the first row does.
        open_s: loading the network, compiling included.
        cold_s: from the start of loading to the first answer.
        memory_mb: peak resident memory of the process.
        gpu_memory_mb: what it took of the GPU's memory, by nvidia-smi; on a GPU alone.
        ceiling: share of what a matrix product of that precision reaches here.
        note: why figures are missing, or what is amiss.
    """

    backend: str
    precision: str
    device: str = "cpu"
    session: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    median_ms: float | None = None
    p95_ms: float | None = None
    x_realtime: float | None = None
    x_first: float | None = None
    snr_db: float | None = None
    identical: bool = False
    drift_db: float | None = None
    passed: bool = False
    open_s: float | None = None
    cold_s: float | None = None
    memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    ceiling: float | None = None
    note: str = ""
    _times: list[float] = field(default_factory=list, repr=False)
    _lost: str = ""

    @property
    def entry(self) -> str:
        """As a user names it."""
        return f"{self.backend}:{self.precision}"

    def lose(self, why: Lost) -> None:
        """Note that it cannot run, or runs no more."""
        self._lost = str(why)
        self.remark(self._lost)

    def remark(self, text: str) -> None:
        """Add to the note."""
        self.note = f"{self.note}; {text}" if self.note else text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Benchmark:
    """A run.

    Attributes:
        model: as it was named.
        machine: CPU, cores, version of tfx, date.
        song: what the dB are measured on.
        gflop_per_s_of_audio: cost of the network; None where the bundle does not know.
        ceilings: billions of operations per second of a matrix product, by precision.
        rows: the first is what the others are compared with.
        failures: those that were asked for by name and cannot run, and those that died.
    """

    model: str
    machine: Mapping[str, str | int]
    song: str
    gflop_per_s_of_audio: float | None
    ceilings: Mapping[str, float]
    rows: Sequence[Row]
    failures: Sequence[Failure] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        whole = {name: getattr(self, name) for name in ("model", "song", "gflop_per_s_of_audio")}
        mappings = {"machine": dict(self.machine), "ceilings": dict(self.ceilings)}
        rows = [row.to_dict() for row in self.rows]
        return {**whole, **mappings, "rows": rows, "errors": [one.to_dict() for one in self.failures]}


def bench(
    model: Arrangement, song: Song, plan: Plan = Plan(), report: Callable[[str], None] = lambda line: None
) -> Benchmark:
    """Measure backends side by side; one that cannot run costs the others nothing.

    Args:
        model: what to run: a model, or several that work together.
        song: for the dB; at the model's rate.
        plan: what to measure.
        report: told in a line what begins.

    Raises:
        UsageError: a backend that is not registered, or no rounds.
        BackendUnavailable: none can run here.
    """
    if plan.rounds < 1 or plan.batch < 1:
        raise UsageError(f"rounds {plan.rounds} and batch {plan.batch} must be at least 1")
    known = backend_names()
    for backend, _ in plan.entries:
        if backend not in known:
            raise UsageError(f"unknown backend {backend!r}: choose one of {', '.join(known)}")
    entries = list(plan.entries) or _all_entries(plan.compiled)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary("bench"))
        rows, workers = [], {}
        for backend, precision in entries:
            report(f"{backend} {precision}: loading")
            row = Row(backend, precision, plan.device or default_device(backend))
            worker = Worker(_command(model, row, plan), _environment(plan))
            stack.enter_context(closing(worker))
            rows.append(row)
            try:
                _opened(row, worker.ask())
                workers[len(rows) - 1] = worker
            except Lost as error:
                row.lose(error)
        if not workers:
            if len(plan.entries) == 1:
                raise _failures(rows, plan)[0].error
            raise BackendUnavailable(f"no backend can run {model.name}: {'; '.join(r.note for r in rows)}")
        ceilings = _ceilings(plan, report, stack)
        _take_turns(rows, workers, plan, report)
        outputs = _separate(rows, workers, song, folder, report)
    rows = sorted(rows, key=lambda row: row.median_ms is None)  # stable: what could not run comes last
    _compare(rows, outputs, song, plan, model)
    costs = [one.spec.gflop_per_second for one in model.models]
    cost = sum(costs) if all(costs) else None
    for row in rows:
        top = ceilings.get(row.precision)
        if cost and top and row.x_realtime:
            row.ceiling = cost * row.x_realtime / top
    return Benchmark(model.name, _machine(), song.name, cost, ceilings, rows, _failures(rows, plan))


def _failures(rows: Sequence[Row], plan: Plan) -> list[Failure]:
    """Of all that is here, what cannot run is no failure."""
    found: list[Failure] = []
    for row in rows:
        if row._lost and row.session:
            found.append(Failure(row.entry, TfxError(f"{row.entry} {row._lost}")))
        elif row._lost and plan.entries:
            error = BackendUnavailable(f"{row.entry} cannot run here: {row._lost}")
            found.append(Failure(row.entry, error))
    return found


def _machine() -> dict[str, str | int]:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"cpu": cpu_name(), "cores": cores(), "tfx": version("tfswa"), "date": date}


def _all_entries(compiled: bool) -> list[tuple[str, str]]:
    """Every registered backend in every precision that it knows; the eager network first."""
    names = sorted(backend_names(), key=lambda name: (name != "torch", name))
    return [(n, precision) for n in names if compiled or not compiles(n) for precision in precisions_of(n)]


def _command(model: Arrangement, row: Row, plan: Plan) -> list[str]:
    given = {
        "model": model.name,
        "backend": row.backend,
        "precision": row.precision,
        "device": row.device,
        "threads": plan.threads,
        "batch": plan.batch,
    }
    return [sys.executable, "-m", "tfswa.runtime.benchmark.worker", json.dumps(given)]


def _environment(plan: Plan) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}


def _ceilings(plan: Plan, report: Callable[[str], None], stack: ExitStack) -> dict[str, float]:
    """A matrix product in each precision; none where torch is not installed, or does not know the device."""
    found = {}
    device = plan.device or "cpu"
    for precision in CEILINGS.get(device.partition(":")[0], ()):
        report(f"the ceiling of {device} in {precision}")
        given = json.dumps({"ceiling": precision, "threads": plan.threads, "device": device})
        command = [sys.executable, "-m", "tfswa.runtime.benchmark.worker", given]
        worker = Worker(command, _environment(plan))
        stack.enter_context(closing(worker))
        try:
            found[precision] = round(worker.ask()["gflop_per_s"], 1)
        except Lost:
            return {}
    return found


def _opened(row: Row, answer: Mapping[str, Any]) -> None:
    row.session, row.versions = answer["session"], answer["versions"]
    row.open_s = round(answer["open_s"], 3)
    row.cold_s = round(answer["open_s"] + answer["first_s"], 3)
    row.memory_mb, row.gpu_memory_mb = answer["memory_mb"], answer["gpu_memory_mb"]


def _take_turns(
    rows: Sequence[Row], workers: dict[int, Worker], plan: Plan, report: Callable[[str], None]
) -> None:
    """Time the workers in turns; one that is lost is left out from then on."""
    for done in range(0, plan.rounds, TURN):
        report(f"{done} of {plan.rounds} rounds")
        for index in list(workers):
            try:
                answer = workers[index].ask(json.dumps(["run", min(TURN, plan.rounds - done)]))
            except Lost as error:
                rows[index].lose(error)
                del workers[index]
                continue
            rows[index]._times += answer["seconds"]
            rows[index].memory_mb = answer["memory_mb"]
    for index in workers:
        times = rows[index]._times
        rows[index].median_ms = round(statistics.median(times) * 1e3, 2)
        rows[index].p95_ms = round(float(np.percentile(times, 95)) * 1e3, 2)


def _separate(
    rows: Sequence[Row],
    workers: Mapping[int, Worker],
    song: Song,
    folder: Path,
    report: Callable[[str], None],
) -> dict[int, NDArray[np.float32]]:
    """The song through every backend; by identity of the row."""
    source = folder / "song.npy"
    np.save(source, song.mixture)
    found = {}
    for index, worker in workers.items():
        report(f"{rows[index].backend} {rows[index].precision}: {song.name}")
        target = folder / f"{index}.npy"
        try:
            rows[index].memory_mb = worker.ask(json.dumps(["song", str(source), str(target)]))["memory_mb"]
        except Lost as error:
            rows[index].lose(error)
            continue
        found[id(rows[index])] = np.load(target)
    return found


def _compare(
    rows: Sequence[Row],
    outputs: Mapping[int, NDArray[np.float32]],
    song: Song,
    plan: Plan,
    model: Arrangement,
) -> None:
    """Fill in what depends on the first row."""
    first, spec = rows[0], model.models[0].spec
    seconds = plan.batch * spec.chunk_samples / spec.stft.sample_rate
    reference = outputs.get(id(first))
    for row in rows:
        if row.median_ms is None:
            continue
        row.x_realtime = round(seconds / (row.median_ms / 1e3), 2)
        if first.median_ms is not None:
            row.x_first = round(first.median_ms / row.median_ms, 3)
        if row is not first and row.x_first is not None and row.x_first < 1:
            row.remark(f"slower than {first.backend} {first.precision}")
        found = outputs.get(id(row))
        if reference is None or found is None:
            continue
        row.identical = bool(np.array_equal(reference, found))
        ratios = [snr_db(a, b) for a, b in zip(reference, found, strict=True)]
        known = [value for value in ratios if value is not None and math.isfinite(value)]
        row.snr_db = round(min(known), 1) if known else None
        drifts: list[float] = []
        for stem, one, two in zip(model.stems, reference, found, strict=True):
            if stem in song.stems:
                before, after = sdr_db(song.stems[stem], one), sdr_db(song.stems[stem], two)
                if before is not None and after is not None:
                    drifts.append(after - before)
        if drifts:
            worst: float = max(drifts, key=abs)
            row.drift_db = round(worst, 4)
        gate = gate_for(row.precision)
        near = row.identical or (row.snr_db is not None and row.snr_db >= gate.snr_db)
        row.passed = near and abs(row.drift_db or 0.0) <= gate.drift_db
