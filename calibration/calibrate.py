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
from tfswa.runtime.errors import UsageError
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.machine import cores, cpu_name, user_cache
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import Model, open_model
from tfswa.runtime.model.spec import INPUT
from tfswa.runtime.stream.transform import Stft

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


def check_planes_alone(model: Model) -> None:
    """Refuse a network that takes more than planes.

    Raises:
        UsageError: it takes samples or state.
    """
    if model.spec.beside_planes:
        raise UsageError(
            f"calibration is for networks that take the mixture's planes alone, {model.name} also takes "
            f"{model.spec.beside_planes}: use --precision fp16 or bf16"
        )


class Calibration:
    """A bundle's network and audio to calibrate it on, from ranges to a plan.

    What both need is made once: the graph is read once, and the float32 network answers the held-out audio
    once. Stopped half way, it goes on where it was: what was found so far is in the user's cache.

    Args:
        model: a bundle that holds ``model.onnx``.
        corpus: what to run it on.
        half: what is computed in where not in 8 bits; it is the same for all ranges that are compared.
        step: told of progress.

    Attributes:
        graph: the float32 graph, without metadata.
        digest: its file's SHA-256.

    Raises:
        UsageError: the model is an exported file, or its network takes more than planes.
        BackendUnavailable: it holds no ``model.onnx``.
    """

    def __init__(self, model: Model, corpus: Corpus, *, half: Low = "bf16", step: Step):
        self.model, self.corpus, self.half, self._step = model, corpus, half, step
        bundle_of(model, "calibrate")
        check_planes_alone(model)
        name, self.digest = model.artifact("onnx", "fp32")
        self.file = model.file(name)
        self.graph = onnx.load(self.file)
        del self.graph.metadata_props[:]  # what is made of it carries its own
        self._held_out: HeldOut | None = None

    def find_ranges(self, *, method: str | None = None, force: bool) -> Calibrated:
        """Find the range of every layer's input, keep them in the bundle, and export ``model.int8.onnx``.

        Args:
            method: one of ``METHODS``; default: all are tried, and the one that loses least on the held-out
                chunks is kept.
            force: replace an earlier calibration and what was made of it.

        Raises:
            OutputExists: it was calibrated, and ``force`` is False.
            NonFiniteError: the float32 network gives NaN or Inf.
        """
        check_writable(self.model, force=force)
        bundle = bundle_of(self.model, "calibrate")
        ranges = self._collected([method] if method else list(METHODS))
        losses = self._compared(ranges)
        # By SNR: drift of a few chunks may well be an accident of signs.
        best = max(losses, key=lambda name: losses[name].worst_snr_db)
        kept = {
            "schema": SCHEMA,
            "source": bundle.digest,
            "method": best,
            "ranges": ranges[best],
            "methods": {name: asdict(loss) for name, loss in losses.items()},
            "corpus": described(self.corpus),
        }
        _put(bundle, CALIBRATION, kept, kind="calibration", details={"corpus_sha256": self.corpus.sha256})
        artifact = self._export(PrecisionPlan())  # all that can be in 8 bits
        self.model = open_model(self.model.name)  # with what was just added
        return Calibrated(best, losses, self.corpus, artifact)

    def find_plan(self, *, budget_db: float, depth: int, costs_by: str = "openvino") -> Planned:
        """Find the cheapest precision of each group of layers within a budget of drift; see ``Search``.

        Args:
            budget_db: what the worst stem may drift.
            depth: parts of a module's name that tell groups apart.
            costs_by: ``openvino`` to measure costs on this CPU, ``counted`` to count products.

        Raises:
            UsageError: it was not calibrated.
            BackendUnavailable: openvino is missing, or has not that half precision here.
        """
        bundle = bundle_of(self.model, "calibrate")
        members, ranges = groups(self.graph, depth), load_ranges(self.model)
        if costs_by == "openvino":
            costs, unit = self._measured(members, ranges), "s"
        else:
            costs, unit = cost.counted(members), "x float32"
        found = self._searched(members, ranges, costs, budget_db, depth)
        if costs_by == "openvino":
            found = self._raced(members, ranges, found, budget_db)
        calibration = {"calibration": bundle.files[CALIBRATION].sha256}
        content = _plan_of(bundle, self.corpus, found, costs, unit, budget_db, self.half)
        _put(bundle, PLAN, content, kind="plan", details=calibration)
        artifact = None
        if found.best.int8:
            self.model = open_model(self.model.name)
            artifact = self._export(None)
        return Planned(found, costs, unit, members, artifact)

    def _export(self, plan: PrecisionPlan | None) -> Exported:
        compared = _compared_on(self.corpus, self.model)
        return export_onnx(
            self.model, precision="int8", plan=plan, compared_on=compared, graph=self.graph, force=True
        )

    def _collected(self, methods: Sequence[str]) -> dict[str, dict[str, float]]:
        """Ranges by method, by layer; what the chunks gave so far is taken up."""
        spec = self.model.spec
        collector, stft = Collector(self.graph, spec), Stft(spec.stft)
        place = _cache("ranges", f"{_hash(self.digest, self.corpus.sha256)}.npz")
        collector.resume(place)
        for number, chunk in enumerate(self.corpus.calibration()):
            if number >= collector.chunks:
                self._step("ranges", number, len(self.corpus))
                collector.add(stft.planes(chunk.mixture[None]))
                if collector.chunks % SAVE_EVERY == 0 or collector.chunks == len(self.corpus):
                    collector.save(place)
        self._step("ranges", len(self.corpus), len(self.corpus))
        return {name: collector.ranges(name) for name in methods}

    def _compared(self, ranges: Mapping[str, Mapping[str, float]]) -> dict[str, Loss]:
        """What each method's ranges lose with all layers in 8 bits."""
        members = groups(self.graph)
        losses: dict[str, Loss] = {}
        simulator = None
        for done, (name, limits) in enumerate(ranges.items()):
            self._step("methods", done, len(ranges))
            del simulator  # before there is a second one
            simulator = Simulator(self.graph, members, limits, self.half)
            everything = _with(simulator, dict.fromkeys(members, INT8))
            losses[name] = self._answers(simulator).measure(everything)
        self._step("methods", len(ranges), len(ranges))
        return losses

    def _answers(self, simulator: Simulator) -> HeldOut:
        """The held-out chunks and what the float32 network makes of them, by whichever simulator is there."""
        if self._held_out is None:
            self._held_out = HeldOut(self.corpus.held_out, self.model.spec, _with(simulator, {}))
        return self._held_out

    def _measured(self, members: Mapping[str, Group], ranges: Mapping[str, float]) -> cost.Costs:
        """Seconds of each group."""
        with temporary("calibrate") as folder:
            path = folder / "model.onnx"
            names = [layer.name for layer in layers(self.graph)]
            path.write_bytes(quantize_graph(self.graph, ranges, names).SerializeToString())
            return cost.measured(members, self.file, path, self.model.spec, self.half)

    def _searched(
        self,
        members: Mapping[str, Group],
        ranges: Mapping[str, float],
        costs: cost.Costs,
        budget_db: float,
        depth: int,
    ) -> Found:
        simulator = Simulator(self.graph, members, ranges, self.half)
        held_out = self._answers(simulator)
        key = _hash(LOSSES, self.digest, self.corpus.sha256, ranges, self.half, depth)
        search = Search(
            simulator,
            held_out,
            costs,
            budget_db,
            cache=_cache("plans", f"{key}.json"),
            key=key,
            mixes=self.half != "bf16",  # which is OpenVINO's, and it computes the rest in one precision
            step=self._step,
        )
        return search.run()

    def _raced(
        self, members: Mapping[str, Group], ranges: Mapping[str, float], found: Found, budget_db: float
    ) -> Found:
        """Run the plans within the budget whole, and take the fastest.

        Times of groups do not tell what it costs to go from one precision to the next and back.
        """
        within = [point for point in found.points if point.loss.worst_drift_db <= budget_db]
        # What all are measured against; nothing is within the budget if float32 is not.
        base = min((point for point in within if not point.int8), key=lambda point: point.cost)
        points: list[Point] = []
        with temporary("calibrate") as folder:
            path = folder / "model.onnx"
            for point in within:
                self._step("time of plans", len(points), len(within))
                if point.int8:
                    names = [layer for group in point.int8 for layer in members[group].layers]
                    path.write_bytes(quantize_graph(self.graph, ranges, names).SerializeToString())
                time = 1.0
                if point is not base:
                    run = (path if point.int8 else self.file, _rest(point))
                    time = cost.ratio((self.file, _rest(base)), run, self.model.spec)
                points.append(replace(point, time=time))
        self._step("time of plans", len(within), len(within))
        fast = min(points, key=lambda point: point.time or 1.0)
        slow = points[within.index(base)]
        best = fast if fast.time is not None and fast.time <= FASTER else slow
        return replace(found, best=best, points=[*points, *(p for p in found.points if p not in within)])


def check_writable(model: Model, *, force: bool) -> None:
    """Refuse before the work what could not be written after it; see ``Calibration.find_ranges``."""
    bundle = bundle_of(model, "calibrate")
    check_free(bundle, ARTIFACT, force=force)
    check_free(bundle, CALIBRATION, force=True)  # without the artifact it is what a stopped run left
    model.artifact("onnx", "fp32")


def is_done(model: Model) -> bool:
    """Whether a bundle holds what ``Calibration.find_ranges`` makes."""
    return {CALIBRATION, ARTIFACT} <= set(bundle_of(model, "calibrate").files)


def _rest(point: Point) -> str:
    """What OpenVINO computes in where a plan has no 8 bits."""
    return "f32" if point.fp32 else "bf16"


def _compared_on(corpus: Corpus, model: Model) -> Compared:
    """Two held-out chunks in which every stem sounds: of what is hardly there 8 bits leave nothing alike."""

    def sounds(chunk: Chunk) -> float:
        parts = chunk.stems.values() or [chunk.mixture]
        return min(float(np.square(part, dtype=np.float64).sum()) for part in parts)

    chunks = [chunk.mixture for chunk in heapq.nlargest(2, corpus.held_out(), key=sounds)]
    if len(chunks) == 1:
        chunks.append(chunks[0][:, ::-1])
    return {INPUT: Stft(model.spec.stft).planes(np.stack(chunks))}, "held-out chunks"


def _with(simulator: Simulator, precision: Mapping[str, str]) -> Callable[[Any], Any]:
    return lambda planes: simulator.infer(planes, precision)


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
