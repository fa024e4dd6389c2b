"""Parity without a network: a session with a known answer, a reference that is it, and made-up figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from planes import Tensors, planes_session

from tfswa.runtime.model.spec import ChunkSpec, StftSpec
from tfswa.runtime.parity.certificate import (
    AxisFigures,
    Certificate,
    GraphFigures,
    QualityFigures,
    SignalFigures,
)
from tfswa.runtime.stream import separator
from tfswa.runtime.stream.codec import Codec
from tfswa.runtime.stream.plan import ChunkPlan

Audio = NDArray[np.float32]
Planes = NDArray[np.float32]

RATE = 8000
STFT = StftSpec(n_fft=512, hop=128, sample_rate=RATE)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
HYPER: dict[str, Any] = {
    "dims": [8, 16],
    "depths": [1, 1],
    "decoder_depths": [1],
    "heads": [1, 2],
    "window": 4,
    "fold": 4,
}
STEMS = ("vocals", "accompaniment")


class Fixed:
    """A session whose answer a test decides: by default a third and two thirds of the mixture."""

    def __init__(
        self,
        spoil: Callable[[Planes], Planes] = lambda out: out,
        name: str = "fixed",
        artifact: tuple[str, str] = ("model.fixed", "a" * 64),
        versions: Mapping[str, str] | None = None,
    ):
        self.name, self.artifact, self.description = name, artifact, f"{name} 1.0"
        self.versions = {"fixed": "1.0"} if versions is None else versions
        self._spoil = spoil

    def infer(self, given: Tensors) -> Tensors:
        return planes_session(self._share)(given)

    def _share(self, mixture: Planes) -> Planes:
        return self._spoil(np.stack((mixture * np.float32(1 / 3), mixture * np.float32(2 / 3)), axis=1))

    def close(self) -> None:
        pass


class Itself:
    """A reference that is the separator around ``Fixed``: what is left of a difference is the session's."""

    description = "itself"
    exact = False

    def __init__(self, model: Any):
        self.model = model

    def separate(self, mixture: Audio) -> NDArray[np.float64]:
        engine = separator.Separator.__new__(separator.Separator)
        engine.model, engine.spec, engine.batch = self.model, self.model.spec, 1
        engine.plan = ChunkPlan.of(engine.spec)
        engine.session, engine.codec, engine.fallback = Fixed(), Codec(self.model.spec), None
        engine._turn = nullcontext()
        # A reference computes in float64: what it has beyond float32 is no difference.
        return engine.separate(mixture).astype(np.float64) * (1 + 1e-12)

    def network_output(self, given: Tensors) -> Tensors:
        return Fixed().infer(given)


def certificate(**changes: Any) -> Certificate:
    """One that passes, but for what is changed."""
    given: dict[str, Any] = {
        "artifact": "model.onnx",
        "artifact_sha256": "a" * 64,
        "source": "b" * 64,
        "backend": "ort",
        "precision": "fp32",
        "device": "cpu",
        "threads": None,
        "batch": 1,
        "versions": {"tfswa": "0"},
        "cpu": "a cpu",
        "reference": "itself",
        "date": "2026-11-22T00:00:00+00:00",
        "corpus_sha256": "c" * 64,
        "corpus": {"song": "d" * 64},
        "x_realtime": 2.0,
        "graph": [GraphFigures("song", "vocals", 1e-6, 120.0, False)],
        "signal": [signal()],
        "quality": [quality(0.0)],
        "axes": [AxisFigures("batch", 2, True, None)],
        "non_finite": {"song": 0},
    }
    return Certificate(**{**given, **changes})


def signal(snr_db: float | None = 120.0, kind: str = "real", identical: bool = False, **changes: Any) -> Any:
    given: dict[str, Any] = {"si_sdr_db": snr_db, "peak_error": 1e-6, **changes}
    return SignalFigures("song", kind, "vocals", snr_db, identical=identical, **given)


def quality(drift_db: float | None, sdr_db: float | None = 5.0) -> QualityFigures:
    figures = {"sdr_u_db": sdr_db}
    return QualityFigures("song", "vocals", figures, figures, drift_db, None, None, None)
