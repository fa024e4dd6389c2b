"""Figures of the three levels: the network alone, the signal end to end, the quality against true stems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.evaluation.bsseval import MEASURES, BssEval
from tfswa.runtime.metrics import finite_db, sdr_db, sdr_windows_db, si_sdr_db, snr_db
from tfswa.runtime.model.spec import NEXT, OUTPUT, STEM_SAMPLES, ModelSpec
from tfswa.runtime.parity.certificate import GraphFigures, QualityFigures, SignalFigures
from tfswa.runtime.songs.loading import Song

Stems = NDArray[np.floating[Any]]


def output_parts(spec: ModelSpec, out: Mapping[str, Stems]) -> dict[str, Stems]:
    """What a network gave, part by part, ``[B, ...]``: each stem, its samples, and each state.

    Stems go by their names, the others by that of the tensor.
    """
    parts = {stem: out[OUTPUT][:, index] for index, stem in enumerate(spec.outputs)}
    if spec.samples:
        for index, stem in enumerate(spec.outputs):
            parts[f"{STEM_SAMPLES}.{stem}"] = out[STEM_SAMPLES][:, index]
    return parts | {NEXT + name: out[NEXT + name] for name in spec.state}


def graph_figures(
    item: str, spec: ModelSpec, right: Mapping[str, Stems], found: Mapping[str, Stems]
) -> list[GraphFigures]:
    """Compare what two networks gave, part by part."""
    rows = []
    others = output_parts(spec, found)
    for part, one in output_parts(spec, right).items():
        two = others[part]
        peak = float(np.abs(one).max())
        error = finite_db(float(np.abs(one - two).max()) / peak) if peak else None
        snr = finite_db(snr_db(one, two)) if np.isfinite(two).all() else None
        rows.append(GraphFigures(item, part, error, snr, bool(np.array_equal(one, two))))
    return rows


def signal_figures(item: str, kind: str, spec: ModelSpec, right: Stems, found: Stems) -> list[SignalFigures]:
    """Compare separated signals ``[S, C, N]``, both finite, stem by stem."""
    rows = []
    rate = spec.stft.sample_rate
    for index, stem in enumerate(spec.stems):
        one, two = right[index], found[index]
        by_second = by_second_db(one, two, rate) if kind == "real" else []
        rows.append(
            SignalFigures(
                item,
                kind,
                stem,
                snr_db=finite_db(snr_db(one, two)),
                si_sdr_db=finite_db(si_sdr_db(one, two)),
                identical=bool(np.array_equal(one, two)),
                peak_error=float(np.abs(one - two).max(initial=0.0)),
                by_second_db=by_second,
                worst_second=worst_second(by_second),
            )
        )
    return rows


def by_second_db(right: Stems, found: Stems, rate: int) -> list[float | None]:
    """SNR of each second of a stem ``[C, N]``; None where it is not defined.

    The last one ends with the stem and overlaps the one before it; only a stem of less has a shorter one.
    """
    last = max(0, right.shape[-1] - rate)
    parts = [slice(min(start, last), min(start, last) + rate) for start in range(0, right.shape[-1], rate)]
    return [finite_db(snr_db(right[:, part], found[:, part])) for part in parts]


def worst_second(by_second: Sequence[float | None]) -> int | None:
    """Start of the second with the lowest SNR, the first of several; None where none is defined."""
    known = [(value, second) for second, value in enumerate(by_second) if value is not None]
    return min(known)[1] if known else None


class Quality:
    """One song's true stems, against which several estimates are measured.

    Args:
        song: its stems may be unknown; then nothing is measured.
        spec: the model's.
    """

    def __init__(self, song: Song, spec: ModelSpec):
        self._song, self._spec = song, spec
        self._known = [stem for stem in spec.stems if stem in song.stems]
        self._bsseval: BssEval | None = None
        rate = spec.stft.sample_rate
        complete = len(self._known) == len(spec.stems) > 1
        if complete and song.mixture.shape[-1] >= rate:
            self._bsseval = BssEval([song.stems[stem] for stem in spec.stems], [rate])

    def measure(self, estimates: Stems) -> dict[str, dict[str, Any]]:
        """By stem: dB by name, and ``windows``, the SDR of each second."""
        if not self._known:
            return {}
        rate = self._spec.stft.sample_rate
        evaluated = None if self._bsseval is None else self._bsseval.evaluate(list(estimates))[0].values
        found: dict[str, dict[str, Any]] = {}
        for index, stem in enumerate(self._spec.stems):
            if stem not in self._known:
                continue
            true = self._song.stems[stem]
            figures: dict[str, Any] = {"sdr_u_db": finite_db(sdr_db(true, estimates[index]))}
            for place, measure in enumerate(MEASURES):
                if measure != "isr":
                    figures[f"{measure}_c_db"] = (
                        None if evaluated is None else _median(evaluated[place, index])
                    )
            figures["windows"] = sdr_windows_db(true, estimates[index], rate)
            found[stem] = figures
        return found

    def compare(
        self, item: str, right: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
    ) -> list[QualityFigures]:
        """What ``measure`` said of the reference and of the artifact, side by side, under a name."""
        rows = []
        for stem in self._known:
            one, two = right[stem], found[stem]
            with np.errstate(invalid="ignore"):
                drifts = two["windows"] - one["windows"]
            usable = np.flatnonzero(np.isfinite(drifts))
            worst = int(usable[np.argmax(np.abs(drifts[usable]))]) if usable.size else None
            rows.append(
                QualityFigures(
                    item,
                    stem,
                    {name: value for name, value in one.items() if name != "windows"},
                    {name: value for name, value in two.items() if name != "windows"},
                    drift_db=_change(one["sdr_u_db"], two["sdr_u_db"]),
                    drift_c_db=_change(one["sdr_c_db"], two["sdr_c_db"]),
                    worst_window=worst,
                    worst_drift_db=None if worst is None else float(drifts[worst]),
                )
            )
        return rows


def worst_snr_db(right: Stems, found: Stems) -> float | None:
    """Lowest SNR of a stem ``[S, C, N]``; None where all are identical or silent."""
    values = [finite_db(snr_db(one, two)) for one, two in zip(right, found, strict=True)]
    return min((value for value in values if value is not None), default=None)


def _median(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    known = [float(value) for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else None


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
