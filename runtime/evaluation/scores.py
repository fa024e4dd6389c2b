"""Figures of one song, and of a data set, in two conventions that their names keep apart.

    ..._c_db   median over songs of the median over windows of 1 s (``_10s_c``: of 10 s), museval's
    ..._u_db   mean over songs of one figure for each whole song

A song's own figures have the same names: its median over windows, its global figure. What is undefined or
infinite is None and takes no part in a median or a mean; so does museval's own aggregation. Why ISR, SIR and
SAR of a song are not defined stands beside them (see ``bsseval``).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.documents import from_json
from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.evaluation.baselines import BASELINES, baseline
from tfswa.runtime.evaluation.bsseval import MEASURES, BssEval, Figures, Method
from tfswa.runtime.evaluation.signals import BLOCK, Difference, Signal, excerpt, starts, stored
from tfswa.runtime.metrics import energy, finite_db, ratio_db
from tfswa.runtime.model.spec import ModelSpec

MODEL = "model"
WINDOWS = {"": 1.0, "_10s": 10.0}  # length in seconds by what it adds to a figure's name
MEDIANS = tuple(f"{measure}{window}_c_db" for window in WINDOWS for measure in MEASURES)
MEANS = ("sdr_u_db", "si_sdr_u_db")
FIGURES = (*MEDIANS, *MEANS)

Values = list[float | None]


@dataclass(frozen=True)
class Score:
    """One estimate of one stem of one song.

    Attributes:
        stem: its name.
        estimator: ``model``, or one of ``baselines.BASELINES``.
        figures: dB by each name of ``FIGURES``.
        windows: dB of each window, by ``sdr_1s_db`` ... ``sar_10s_db``; empty for a song below 1 s.
        undefined: why a figure of ``MEDIANS`` is not defined, by its name (see ``bsseval``).
    """

    stem: str
    estimator: str
    figures: Mapping[str, float | None]
    windows: Mapping[str, Values]
    undefined: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        kept = {"undefined": dict(self.undefined), "windows": dict(self.windows)}
        return {"stem": self.stem, "estimator": self.estimator, **self.figures, **kept}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """Read what ``to_dict`` wrote.

        Raises:
            ValueError: a value is of another type.
            KeyError: one is missing.
        """
        figures = {name: data[name] for name in FIGURES}
        kept = {key: data[key] for key in ("stem", "estimator", "windows", "undefined")}
        return from_json(cls, {**kept, "figures": figures})


@dataclass(frozen=True)
class Summary:
    """One estimator's figures of one stem over all songs.

    Attributes:
        stem: its name.
        estimator: as in ``Score``.
        figures: dB by each name of ``FIGURES``.
        undefined_songs: how many songs ``Score.undefined`` names, by figure; none is left out.
    """

    stem: str
    estimator: str
    figures: Mapping[str, float | None]
    undefined_songs: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        kept = {"undefined_songs": dict(self.undefined_songs)}
        return {"stem": self.stem, "estimator": self.estimator, **self.figures, **kept}


def summarize(songs: Sequence[Sequence[Score]]) -> list[Summary]:
    """Aggregate songs, estimator by estimator, stem by stem."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for scores in songs:
        for score in scores:
            groups.setdefault((score.estimator, score.stem), []).append(score)
    return [
        Summary(stem, estimator, {name: _over_songs(name, group) for name in FIGURES}, _undefined(group))
        for (estimator, stem), group in sorted(groups.items(), key=lambda item: _order(item[0][0]))
    ]


def score_song(folder: Path, spec: ModelSpec, *, baselines: bool, method: Method = "v4") -> list[Score]:
    """Measure one song, all of it in this process.

    Args:
        folder: holds ``mixture.npy [C, N]``, ``references.npy`` and ``estimates.npy``, float32 ``[S, C, N]``;
            takes more files of that kind.
        spec: the model's; stems are in its order.
        baselines: measure those too.
        method: how BSSEval is done, see ``bsseval``.
    """
    (mixture,) = stored(folder / "mixture.npy")
    references: Sequence[Signal] = stored(folder / "references.npy")
    estimates: Sequence[Signal] = stored(folder / "estimates.npy")
    rate = spec.stft.sample_rate
    bsseval = _bsseval(mixture, references, rate, method)
    scores = []
    for estimator in (MODEL, *(BASELINES if baselines else ())):
        if estimator != MODEL:
            estimates = baseline(estimator, mixture, references, spec.stft, folder)
        windows = _windows(bsseval, mixture, estimates)
        for index, stem in enumerate(spec.stems):
            scores.append(_score(stem, estimator, references[index], estimates[index], windows, index))
    return scores


def song_figures(reference: Signal, estimate: Signal) -> tuple[float | None, float | None]:
    """``metrics.sdr_db`` and ``metrics.si_sdr_db`` of signals ``[C, N]``, a block at a time.

    Raises:
        NonFiniteError: a signal holds NaN or Inf.
    """
    right = wrong = found = both = 0.0
    for r, e in _pairs(reference, estimate):
        if not (np.isfinite(r).all() and np.isfinite(e).all()):
            raise NonFiniteError("a stem or its estimate holds NaN or Inf: no measure of it means anything")
        right, wrong = right + energy(r), wrong + energy(r - e)
        found, both = found + energy(e), both + float(np.vdot(r, e))
    if not right or not found:
        return ratio_db(right, wrong), None
    signal = noise = 0.0
    for r, e in _pairs(reference, estimate):
        scaled = r * (both / right)
        signal, noise = signal + energy(scaled), noise + energy(scaled - e)
    return ratio_db(right, wrong), -math.inf if signal == 0.0 else ratio_db(signal, noise)


def _pairs(one: Signal, two: Signal) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for block in starts(one.shape[1], BLOCK):
        yield excerpt(one, *block), excerpt(two, *block)


def _bsseval(mixture: Signal, references: Sequence[Signal], rate: int, method: Method) -> BssEval | None:
    """None for a song too short for one window of a second."""
    if mixture.shape[1] < min(WINDOWS.values()) * rate:
        return None
    lengths = [int(seconds * rate) for seconds in WINDOWS.values()]
    return BssEval(_with_rest(mixture, references), lengths, method)


def _windows(bsseval: BssEval | None, mixture: Signal, estimates: Sequence[Signal]) -> list[Figures]:
    return [] if bsseval is None else bsseval.evaluate(_with_rest(mixture, estimates))


def _with_rest(mixture: Signal, stems: Sequence[Signal]) -> Sequence[Signal]:
    """A single stem gets all else as its companion, as museval pairs vocals and accompaniment."""
    return stems if len(stems) > 1 else [*stems, Difference(mixture, stems[0])]


def _score(
    stem: str,
    estimator: str,
    reference: Signal,
    estimate: Signal,
    windows: Sequence[Figures],
    index: int,
) -> Score:
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    listed: dict[str, Values] = {}
    undefined: dict[str, str] = {}
    for (added, seconds), window in zip(WINDOWS.items(), windows, strict=False):
        undefined |= {f"{measure}{added}_c_db": why for measure, why in window.undefined[index].items()}
        for measure, row in zip(MEASURES, window.values[:, index], strict=True):
            listed[f"{measure}_{seconds:g}s_db"] = found = [finite_db(float(value)) for value in row]
            figures[f"{measure}{added}_c_db"] = _median(found)
    figures["sdr_u_db"], figures["si_sdr_u_db"] = map(finite_db, song_figures(reference, estimate))
    return Score(stem, estimator, figures, listed, undefined)


def _over_songs(name: str, scores: Sequence[Score]) -> float | None:
    values = [score.figures[name] for score in scores]
    return _median(values) if name in MEDIANS else _mean(values)


def _undefined(scores: Sequence[Score]) -> dict[str, int]:
    return dict(Counter(name for score in scores for name in score.undefined))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _order(estimator: str) -> int:
    return (MODEL, *BASELINES).index(estimator)
