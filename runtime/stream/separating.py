"""What separates a signal, be it one model or several that work together: all of them offer this.

Separator       one model
Combination     several on the same signal, their stems made into one by name
Chain           a stem of one is the signal of the next
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.tracks import Track
from tfswa.runtime.audio.writing import Clip
from tfswa.runtime.errors import UsageError, did_you_mean
from tfswa.runtime.stream.overlap import Redone

if TYPE_CHECKING:
    from tfswa.runtime.stream.files import FileResult, Progress
    from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]


class Offer(Protocol):
    """What is known of a model, or of several that work together, before any network is loaded."""

    @property
    def name(self) -> str:
        """What the user typed; of several, how they work together."""

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of what comes out, in order."""

    @property
    def channels(self) -> int:
        """C, of what goes in and of each stem."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""


class SignalStream(Protocol):
    """One signal on its way; see ``OverlapAdd`` for what the two methods take, give and raise."""

    @property
    def redone(self) -> list[Redone]:
        """Chunks that were computed again, in order."""

    @property
    def network_seconds(self) -> float:
        """CPU time that the calling thread spent in networks."""

    @property
    def latency_samples(self) -> int:
        """The most samples that can have been pushed and are not yet returned."""

    def push(self, samples: Audio) -> Audio:
        """The next samples ``[C, n]`` to the stems' next finished ones ``[S, C, m]``."""

    def flush(self) -> Audio:
        """Declare the signal complete: the rest ``[S, C, m]``."""


class Separating(ABC):
    """Separates arrays, streams and files; a context manager.

    Attributes:
        name: of the model as it was typed; of several, how they work together.
        stems: names of what comes out, in order.
        channels: C, audio channels of the signal and of each stem.
        sample_rate: in Hz.
    """

    name: str
    stems: tuple[str, ...]
    channels: int
    sample_rate: int

    @property
    @abstractmethod
    def parts(self) -> tuple[Separator, ...]:
        """The models that are at work, each once."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs the networks, and where."""

    @property
    @abstractmethod
    def recomputed_by(self) -> str | None:
        """What computed chunks again, of which file; None where it was not needed."""

    @abstractmethod
    def stream(self) -> SignalStream:
        """A fresh stream engine, for one signal."""

    def only(self, stems: Sequence[str]) -> Separating:
        """What makes these stems, and others only where they cost nothing more; it is not closed by itself.

        Of several models it runs those alone that the stems are made of.

        Args:
            stems: at least one, each one of ``stems``.
        """
        return self

    @abstractmethod
    def close(self) -> None:
        """Release the networks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def separate(self, mixture: Audio) -> Audio:
        """Separate a whole signal in memory: ``[C, N] -> [S, C, N]`` at ``sample_rate``.

        Args:
            mixture: floats with full scale 1, finite.

        Raises:
            UsageError, AudioError, NonFiniteError: see ``OverlapAdd.push``.
        """
        engine = self.stream()
        return np.concatenate((engine.push(mixture), engine.flush()), axis=-1)

    def indices(self, stems: Sequence[str]) -> list[int]:
        """Places of some stems in the output; raises as ``stem_indices``."""
        return stem_indices(self, stems)

    def separate_file(
        self,
        source: str | Path,
        outputs: Mapping[str, str | Path] | str | Path,
        *,
        format: str = "wav",
        clip: Clip = "none",
        force: bool = False,
        track: Track = None,
        strict: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> FileResult:
        """Separate a file into files, in bounded memory, whole or not at all; see ``stream/files.py``.

        Args:
            source: any audio file.
            outputs: final path per wanted stem, stems left out are not written; or a folder for all of them.
            format: a name in ``encoders.FORMATS``.
            clip: what happens to samples beyond full scale, see ``StemFiles``.
            force: replace existing files.
            track: which audio track: a number from 0, a language, or None for the default one.
            strict: refuse an input that is damaged.
            progress: called with seconds done and, where it is known, seconds in all.

        Raises:
            UsageError, AudioError, NonFiniteError: see ``separate_file``.
        """
        from tfswa.runtime.stream.files import FileJob, paths_in, separate_file

        below = None
        if isinstance(outputs, (str, Path)):
            below = Path(outputs)
            outputs = paths_in(below, self.stems, format)
        paths = {stem: Path(path) for stem, path in outputs.items()}
        job = FileJob(Path(source), paths, format, clip, force, track, strict, below)
        return separate_file(self, job, progress)


def stem_indices(offer: Offer, stems: Sequence[str]) -> list[int]:
    """Places of some stems in what comes out.

    Raises:
        UsageError: there is no such stem.
    """
    known = offer.stems
    for stem in stems:
        if stem not in known:
            close = did_you_mean(stem, known) or ":"
            raise UsageError(f"{offer.name} has no stem {stem!r}{close} it has {', '.join(known)}")
    return [known.index(stem) for stem in stems]
