"""From a bundle and audio to INT8 ranges in the bundle, and from those to a precision plan.

corpus ── chunks ──> Collector ── five methods ──> held-out audio ── the best ──> calibration.json
calibration.json ── Search on held-out audio ──> precision-plan.json ──> model.int8.onnx by that plan
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tfswa.calibration import cost
from tfswa.calibration.corpus import Chunk, Corpus
from tfswa.calibration.groups import Group, groups
from tfswa.calibration.loss import HeldOut, Loss
from tfswa.calibration.ranges import METHODS, Collector
from tfswa.calibration.search import Found, Point, Search, Step
from tfswa.calibration.simulate import INT8, Simulator
from tfswa.export.artifact import Compared, Exported, bundle_of, check_free
from tfswa.export.onnx import PLAN, export_onnx
from tfswa.export.plan import Low, PrecisionPlan
from tfswa.export.quantize import CALIBRATION, layers, load_ranges, quantize_graph
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.machine import cores, cpu_name, user_cache
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import Model
from tfswa.runtime.stream.transform import Stft, pack

SCHEMA = 1
LOSSES = 2  # version of what the cache holds of a plan
FASTER = 0.95  # of the time without INT8: a plan that gains less is not taken, measuring scatters by that
ARTIFACT = "model.int8.onnx"
SAVE_EVERY = 8  # chunks: what a stop may cost


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        method: the one whose ranges lost least.
        losses: on held-out audio, all layers that can be in 8 bits, by method.
        corpus: what it was done on.
        artifact: ``model.int8.onnx``.
    """

    method: str
    losses: dict[str, Loss]
    corpus: Corpus
    artifact: Exported


@dataclass(frozen=True)
class Planned:
    """What a search found.

    Attributes:
        found: the plans.
        costs: of each group in each precision.
        unit: of the costs: ``s`` where they were measured, ``x float32`` where they were counted.
        groups: of layers.
        artifact: ``model.int8.onnx`` by the best plan; None where that has nothing in 8 bits.
    """

    found: Found
    costs: cost.Costs
    unit: str
    groups: dict[str, Group]
    artifact: Exported | None


def calibrate(
    model: Model, corpus: Corpus, *, method: str | None = None, half: Low = "bf16", step: Step, force: bool
) -> Calibrated:
    """Find the range of every layer's input, keep them in the bundle, and export ``model.int8.onnx``.

    Stopped half way, it goes on where it was: what the chunks gave so far is in the user's cache.

    Args:
        model: a bundle that holds ``model.onnx``.
        corpus: what to run it on.
        method: one of ``METHODS``; default: all are tried, and the one that loses least on the held-out
            chunks is kept.
        half: what the rest of the network computes in while methods are compared; it is the same for all.
        step: told of progress.
        force: replace an earlier calibration and what was made of it.

    Raises:
        UsageError: the model is an exported file.
        OutputExists: it was calibrated, and ``force`` is False.
        BackendUnavailable: it holds no ``model.onnx``.
        NonFiniteError: the float32 network gives NaN or Inf.
    """
    check(model, force=force)
    bundle = bundle_of(model, "calibrate")
    ranges = _collected(model, corpus, [method] if method else list(METHODS), step)
    losses = _compared(model, corpus, ranges, half, step)
    # By SNR: drift of a few chunks may well be an accident of signs.
    best = max(losses, key=lambda name: losses[name].worst_snr_db)
    kept = {
        "schema": SCHEMA,
        "source": bundle.digest,
        "method": best,
        "ranges": ranges[best],
        "methods": {name: asdict(loss) for name, loss in losses.items()},
        "corpus": described(corpus),
    }
    _put(bundle, CALIBRATION, kept, kind="calibration", details={"corpus_sha256": corpus.sha256})
    compared = _compared_on(corpus, model)
    every = PrecisionPlan()  # all that can be in 8 bits
    artifact = export_onnx(model, precision="int8", plan=every, compared_on=compared, force=True)
    return Calibrated(best, losses, corpus, artifact)


def check(model: Model, *, force: bool) -> None:
    """Refuse before the work what could not be written after it; see ``calibrate``."""
    bundle = bundle_of(model, "calibrate")
    check_free(bundle, ARTIFACT, force=force)
    check_free(bundle, CALIBRATION, force=True)  # without the artifact it is what a stopped run left
    model.artifact("onnx", "fp32")


def is_done(model: Model) -> bool:
    """Whether a bundle holds what ``calibrate`` makes."""
    return {CALIBRATION, ARTIFACT} <= set(bundle_of(model, "calibrate").files)


def plan(
    model: Model,
    corpus: Corpus,
    *,
    budget_db: float,
    half: Low = "bf16",
    depth: int,
    costs_by: str = "openvino",
    step: Step,
) -> Planned:
    """Find the cheapest precision of each group of layers within a budget of drift; see ``Search``.

    What was measured is in the user's cache as it comes, so that a search that was stopped goes on.

    Args:
        model: a bundle that was calibrated.
        corpus: whose held-out chunks are measured on.
        budget_db: what the worst stem may drift.
        half: what is computed in where not in 8 bits.
        depth: parts of a module's name that tell groups apart.
        costs_by: ``openvino`` to measure costs on this CPU, ``counted`` to count products.
        step: told of progress.

    Raises:
        UsageError: it was not calibrated.
        BackendUnavailable: openvino is missing, or has not that half precision here.
    """
    bundle = bundle_of(model, "calibrate")
    members = groups(_graph(model)[0], depth)
    if costs_by == "openvino":
        costs, unit = _measured(model, members, half), "s"
    else:
        costs, unit = cost.counted(members), "x float32"
    found = _searched(model, corpus, members, costs, budget_db, half, depth, step)
    if costs_by == "openvino":
        found = _raced(model, members, found, budget_db, step)
    calibration = {"calibration": bundle.files[CALIBRATION].sha256}
    content = _plan_of(bundle, corpus, found, costs, unit, budget_db, half)
    _put(bundle, PLAN, content, kind="plan", details=calibration)
    artifact = None
    if found.best.int8:
        compared = _compared_on(corpus, model)
        artifact = export_onnx(model, precision="int8", compared_on=compared, force=True)
    return Planned(found, costs, unit, members, artifact)


def _searched(
    model: Model,
    corpus: Corpus,
    members: Mapping[str, Group],
    costs: cost.Costs,
    budget_db: float,
    half: Low,
    depth: int,
    step: Step,
) -> Found:
    ranges = load_ranges(model)
    graph, digest = _graph(model)
    simulator = Simulator(graph, members, ranges, half)
    held_out = _held_out(corpus, model, simulator)
    key = _hash(LOSSES, digest, corpus.sha256, ranges, half, depth)
    search = Search(
        simulator,
        held_out,
        costs,
        budget_db,
        cache=_cache("plans", f"{key}.json"),
        key=key,
        mixes=half != "bf16",  # which is OpenVINO's, and it computes the rest in one precision
        step=step,
    )
    return search.run()


def _raced(model: Model, members: Mapping[str, Group], found: Found, budget_db: float, step: Step) -> Found:
    """Run the plans within the budget whole, and take the fastest.

    Times of groups do not tell what it costs to go from one precision to the next and back.
    """
    graph, ranges = _graph(model)[0], load_ranges(model)
    full = model.file(model.artifact("onnx", "fp32")[0])
    within = [point for point in found.points if point.loss.worst_drift_db <= budget_db]
    # What all are measured against; nothing is within the budget if float32 is not.
    base = min((point for point in within if not point.int8), key=lambda point: point.cost)
    points: list[Point] = []
    with temporary("calibrate") as folder:
        path = folder / "model.onnx"
        for point in within:
            step("time of plans", len(points), len(within))
            if point.int8:
                names = [layer for group in point.int8 for layer in members[group].layers]
                path.write_bytes(quantize_graph(graph, ranges, names).SerializeToString())
            time = 1.0
            if point is not base:
                run = (path if point.int8 else full, _rest(point))
                time = cost.ratio((full, _rest(base)), run, model.spec)
            points.append(replace(point, time=time))
    step("time of plans", len(within), len(within))
    fast = min(points, key=lambda point: point.time or 1.0)
    slow = points[within.index(base)]
    best = fast if fast.time is not None and fast.time <= FASTER else slow
    return replace(found, best=best, points=[*points, *(p for p in found.points if p not in within)])


def _rest(point: Point) -> str:
    """What OpenVINO computes in where a plan has no 8 bits."""
    return "f32" if point.fp32 else "bf16"


def _graph(model: Model) -> tuple[onnx.ModelProto, str]:
    """The float32 graph of a bundle, and its hash."""
    name, digest = model.artifact("onnx", "fp32")
    return onnx.load(model.file(name)), digest


def _collected(
    model: Model, corpus: Corpus, methods: Sequence[str], step: Step
) -> dict[str, dict[str, float]]:
    """Ranges by method, by layer; what the chunks gave so far is taken up."""
    graph, digest = _graph(model)
    collector, stft = Collector(graph, model.spec), Stft(model.spec.stft)
    place = _cache("ranges", f"{_hash(digest, corpus.sha256)}.npz")
    collector.resume(place)
    for number, chunk in enumerate(corpus.calibration()):
        if number >= collector.chunks:
            step("ranges", number, len(corpus))
            collector.add(pack(stft.forward(chunk.mixture[None])))
            if collector.chunks % SAVE_EVERY == 0 or collector.chunks == len(corpus):
                collector.save(place)
    step("ranges", len(corpus), len(corpus))
    return {name: collector.ranges(name) for name in methods}


def _compared(
    model: Model, corpus: Corpus, ranges: Mapping[str, Mapping[str, float]], half: Low, step: Step
) -> dict[str, Loss]:
    """What each method's ranges lose with all layers in 8 bits."""
    graph, _ = _graph(model)
    members = groups(graph)
    losses: dict[str, Loss] = {}
    simulator = held_out = None
    for done, (name, limits) in enumerate(ranges.items()):
        step("methods", done, len(ranges))
        del simulator  # before there is a second one
        simulator = Simulator(graph, members, limits, half)
        if held_out is None:
            held_out = _held_out(corpus, model, simulator)
        losses[name] = held_out.measure(_with(simulator, dict.fromkeys(members, INT8)))
    step("methods", len(ranges), len(ranges))
    return losses


def _compared_on(corpus: Corpus, model: Model) -> Compared:
    """Two held-out chunks in which every stem sounds: of what is hardly there 8 bits leave nothing alike."""

    def sounds(chunk: Chunk) -> float:
        parts = chunk.stems.values() or [chunk.mixture]
        return min(float(np.square(part, dtype=np.float64).sum()) for part in parts)

    chunks = [chunk.mixture for chunk in heapq.nlargest(2, corpus.held_out(), key=sounds)]
    if len(chunks) == 1:
        chunks.append(chunks[0][:, ::-1])
    return pack(Stft(model.spec.stft).forward(np.stack(chunks))), "held-out chunks"


def _held_out(corpus: Corpus, model: Model, simulator: Simulator) -> HeldOut:
    return HeldOut(corpus.held_out, model.spec, _with(simulator, {}))


def _with(simulator: Simulator, precision: Mapping[str, str]) -> Callable[[Any], Any]:
    return lambda planes: simulator.infer(planes, precision)


def _measured(model: Model, members: Mapping[str, Group], half: Low) -> cost.Costs:
    graph, ranges = _graph(model)[0], load_ranges(model)
    with temporary("calibrate") as folder:
        path = folder / "model.onnx"
        path.write_bytes(
            quantize_graph(graph, ranges, [layer.name for layer in layers(graph)]).SerializeToString()
        )
        full = model.file(model.artifact("onnx", "fp32")[0])
        return cost.measured(members, full, path, model.spec, half)


def _plan_of(
    bundle: Bundle, corpus: Corpus, found: Found, costs: cost.Costs, unit: str, budget_db: float, half: str
) -> dict[str, Any]:
    """What ``PrecisionPlan.load`` reads, and beside it what it was found from."""
    best = found.best
    return {
        "source": bundle.digest,
        "fp32": list(best.fp32),
        "int8": list(best.int8),
        "measured": {
            "budget_db": budget_db,
            "half": half,
            "corpus_sha256": corpus.sha256,
            "cost_unit": unit,
            "cpu": cpu_name(),
            "threads": cores(),
            "loss": asdict(best.loss),
            "time": best.time,
            "plans": [
                {"int8": len(point.int8), "fp32": len(point.fp32), "cost": point.cost, "time": point.time}
                | {"loss": asdict(point.loss)}
                for point in found.points
            ],
            "groups": {
                name: {
                    "cost": costs[name],
                    "alone": {kind: asdict(loss) for kind, loss in found.alone[name].items()},
                }
                for name in costs
            },
        },
    }


def described(corpus: Corpus) -> dict[str, Any]:
    """What a manifest and a report say of a corpus."""
    return {
        "sha256": corpus.sha256,
        "seed": corpus.seed,
        "chunks": len(corpus),
        "held_out": corpus.held_out_count,
        "strata": dict(corpus.strata),
        "sources": list(corpus.sources),
    }


def _put(
    bundle: Bundle, name: str, content: Mapping[str, Any], kind: str, details: Mapping[str, Any] | None = None
) -> None:
    """Into the bundle as JSON, which has no infinity: where nothing was lost, null."""
    text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
    bundle.add(name, text.encode(), kind=kind, details=details)


def finite(value: Any) -> Any:
    """The same for JSON: null where a number is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cache(folder: str, name: str) -> Path:
    return user_cache() / "calibration" / folder / name


def _hash(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
