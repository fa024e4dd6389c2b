"""Certificates and showcase of made-up outputs, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.certificate import AxisFigures, Certificate, GraphFigures, QualityFigures
from tfswa.runtime.parity.figures import signal_figures
from tfswa.runtime.parity.report.excerpts import Showcase
from tfswa.runtime.songs.loading import Song

Audio = NDArray[np.float32]


def made_song(name: str, spec: ModelSpec, seconds: float = 3.0, seed: int = 0) -> Song:
    """Noise whose stems are known."""
    random = np.random.default_rng(seed)
    samples = max(1, round(seconds * spec.stft.sample_rate))
    stems = {
        stem: random.uniform(-0.3, 0.3, (spec.channels, samples)).astype(np.float32) for stem in spec.stems
    }
    return Song(name, np.sum(list(stems.values()), axis=0, dtype=np.float32), stems)


def reference_of(song: Song, spec: ModelSpec) -> Audio:
    """What a reference might have made of it, ``[S, C, N]``."""
    return np.stack([0.9 * song.stems[stem] + 0.05 * song.mixture for stem in spec.stems]).astype(np.float32)


def rounded(right: Audio, db: float = -60.0, seed: int = 1) -> Audio:
    """With an error that far below it."""
    noise = np.random.default_rng(seed).standard_normal(right.shape) * 0.2 * 10 ** (db / 20)
    return (right + noise).astype(np.float32)


def certificate_of(
    spec: ModelSpec, found: Mapping[str, tuple[Song, Audio, Audio]], **changed: Any
) -> Certificate:
    """A certificate of songs by name: each with stems ``[S, C, N]`` of the reference and of the artifact."""
    signal, quality = [], []
    for item, (song, right, estimate) in found.items():
        signal += signal_figures(item, "real", spec, right, estimate)
        for index, stem in enumerate(spec.stems):
            quality.append(_quality(item, stem, song.stems.get(stem), right[index], estimate[index]))
    for item in ("silence", "1 sample"):
        one = np.zeros((len(spec.stems), spec.channels, 1), np.float32)
        signal += signal_figures(item, "adversarial", spec, one, one + (item != "silence") * np.float32(1e-6))
    fields: dict[str, Any] = {
        "artifact": "model.onnx",
        "artifact_sha256": "a" * 64,
        "source": "b" * 64,
        "backend": "ort",
        "precision": "fp32",
        "device": "cpu",
        "threads": None,
        "batch": 1,
        "versions": {"tfswa": "0.1.0", "onnxruntime": "1.0"},
        "cpu": "a processor",
        "reference": "torch eager float32 on cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "corpus_sha256": "c" * 64,
        "corpus": {item: song.sha256 for item, (song, *_) in found.items()},
        "x_realtime": 12.5,
        "graph": [GraphFigures("a chunk", stem, 2e-7, 136.0, False) for stem in spec.stems],
        "signal": signal,
        "quality": quality,
        "axes": [AxisFigures("again", 2, True, None), AxisFigures("batch", 4, False, 120.0)],
        "non_finite": {},
    }
    return Certificate(**{**fields, **changed})


def heard(
    spec: ModelSpec, found: Mapping[str, tuple[Song, Audio, Audio]], run: str = "ort fp32", **options: Any
) -> Showcase:
    """Showcase of one run of these songs."""
    showcase = Showcase(spec, **options)
    for song, right, estimate in found.values():
        showcase.listen(song, run, right, estimate)
    return showcase


def _quality(item: str, stem: str, true: Audio | None, right: Audio, estimate: Audio) -> QualityFigures:
    """Without museval's figures, which take seconds."""
    before, after = (None if true is None else sdr_db(true, one) for one in (right, estimate))
    drift = None if before is None or after is None else after - before
    return QualityFigures(
        item,
        stem,
        {"sdr_u_db": before},
        {"sdr_u_db": after},
        drift_db=drift,
        drift_c_db=None,
        worst_window=None if drift is None else 0,
        worst_drift_db=drift,
    )
