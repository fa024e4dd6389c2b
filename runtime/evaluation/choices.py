"""What is asked of an evaluation, and what it tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfswa.runtime.evaluation.bsseval import Method
from tfswa.runtime.evaluation.records import SongResult
from tfswa.runtime.failures import Failure


@dataclass(frozen=True)
class Choices:
    """What does not decide any number but for ``baselines`` and ``method``.

    Attributes:
        baselines: measure mixture, silence and the oracle mask too.
        method: how BSSEval is done, see ``bsseval``.
        estimates: folder for the model's stems as WAV, ``<split>/<song>/<stem>.wav``; None for none.
        jobs: processes that measure; None for one a core.
        force: replace what was made under other circumstances.
        plot: draw a box plot.
    """

    baselines: bool = True
    method: Method = "v4"
    estimates: Path | None = None
    jobs: int | None = None
    force: bool = False
    plot: bool = True


@dataclass(frozen=True)
class EvaluationProgress:
    """Where an evaluation is.

    Attributes:
        done: songs finished, those of earlier runs and those that failed included.
        total: songs in all.
        song: the one that the model is at; empty while only measuring goes on.
        separated: how much of it, 0 to 1.
        finished: a song that has just been finished.
        failed: a song that has just failed.
    """

    done: int
    total: int
    song: str = ""
    separated: float = 0.0
    finished: SongResult | None = None
    failed: Failure | None = None


Report = Callable[[EvaluationProgress], None]
