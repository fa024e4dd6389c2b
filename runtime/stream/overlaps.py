"""Plans by what a user calls them: ``--overlap``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tfswa.runtime.errors import UsageError
from tfswa.runtime.stream.plan import ChunkPlan, StreamPlan
from tfswa.runtime.stream.suites import DemucsPlan, MsstPlan

if TYPE_CHECKING:
    from tfswa.runtime.model.spec import ModelSpec

OVERLAPS = (1, 2, 4)


def plan_of(spec: ModelSpec, overlap: int | str = 1) -> StreamPlan:
    """The plan of a model.

    Args:
        spec: of the model.
        overlap: 1, 2 or 4 for its own chunks; ``msst:N``, ``mean:N``, ``demucs:SHARE``.

    Raises:
        UsageError: no such overlap, or any but 1 for a network with state.
    """
    text = str(overlap)
    name, _, number = text.partition(":")
    whole = int(number) if re.fullmatch(r"\d{1,9}", number) else None
    plan: StreamPlan
    if text in map(str, OVERLAPS):
        plan = ChunkPlan.of(spec, int(text))
    elif name == "msst" and whole is not None:
        plan = MsstPlan(spec.chunk_samples, whole)
    elif name == "mean" and whole is not None:
        plan = ChunkPlan(spec.chunk_samples, 0, 0, 0, whole)
    elif name == "demucs" and re.fullmatch(r"\d(\.\d{1,9})?", number):
        plan = DemucsPlan(spec.chunk_samples, float(number))
    else:
        raise UsageError(
            f"overlap {overlap!r}: choose {', '.join(map(str, OVERLAPS))}, msst:N with N from 2, mean:N, "
            "or demucs:SHARE, as in demucs:0.25"
        )
    if spec.stft.endless and name == "mean":
        raise UsageError(
            f"overlap {overlap}: {spec.family} plays the ends of a chunk more quietly, and a plain mean "
            "would have them in the song: use demucs:0.25"
        )
    if spec.state and text != "1":
        raise UsageError(
            f"overlap {overlap}: {spec.family} has state that goes from chunk to chunk once: use overlap 1"
        )
    return plan
