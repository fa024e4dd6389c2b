"""Parity: what artifacts lost against the eager network, in dB, bound to what was measured.

An artifact goes through the real separator; the reference shares no host code with it (another STFT,
another overlap-add), so that a fault of the host cannot cancel out. Songs come one after the other, each
separated by the reference once and by every artifact, so that a corpus of any size fits into memory.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, Session
from tfswa.runtime.errors import AudioError, BackendUnavailable, NonFiniteError, UsageError
from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import AxisFigures, Certificate
from tfswa.runtime.parity.corpus import Item, Kind, kind_of
from tfswa.runtime.parity.evidence import versions_of
from tfswa.runtime.parity.figures import Quality, graph_figures, signal_figures, worst_snr_db
from tfswa.runtime.parity.reference import Reference, load_reference
from tfswa.runtime.songs.loading import Song, loudest_chunk
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.stream.transform import Stft, pack

Audio = NDArray[np.float32]
Listener = Callable[[Song, str, Audio, Audio], None]

FULL = "torch"  # name of the float32 reference
BATCHES = (2, 4)
AXIS_CHUNKS = 3  # of the song that axes are measured on


def compare(
    model: Model,
    corpus: Sequence[Item],
    *,
    backend: str,
    options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
    batch: int = 1,
    reference: str = FULL,
    axes: bool = True,
) -> Certificate:
    """Measure one artifact; see ``certify``."""
    (found,) = certify(model, corpus, [Candidate(backend, options, batch)], reference=reference, axes=axes)
    return found


def certify(
    model: Model,
    corpus: Sequence[Item],
    runs: Sequence[Candidate],
    *,
    reference: str = FULL,
    axes: bool = True,
    missing: dict[str, str] | None = None,
    report: Callable[[str], None] = lambda line: None,
    listener: Listener = lambda song, run, right, found: None,
) -> list[Certificate]:
    """Run a corpus through artifacts and through the reference, and compare.

    Args:
        model: a bundle's model.
        corpus: what to separate; at least one real item with sound.
        runs: what to measure.
        reference: its name.
        axes: also run each artifact against itself: again, in batches, in other pushes, on one thread.
        missing: takes the reasons why some of the runs cannot be; default: the first such is raised.
        report: told in a line what is under way.
        listener: given each real song with both outputs ``[S, C, N]``, for pictures and players.

    Returns:
        A certificate for each run that could be, in that order.

    Raises:
        UsageError: an exported file (it holds no weights for the reference), or no such reference.
        BackendUnavailable: a backend or the reference is missing here.
        AudioError: no real item holds any sound (above -60 dBFS), so that nothing would be measured.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file: parity needs the bundle that it came from")
    songs = [item for item in corpus if item.kind == "real"]
    if not any(kind_of(item, item.load(), model.spec) == "real" for item in songs):  # the first will do
        names = ", ".join(item.name for item in songs) or "the corpus"
        raise AudioError(f"{names} holds no sound, which every artifact separates alike: measure on music")
    referee = _Referee(model, reference)
    hashes: dict[str, str] = {}
    heard = False
    with ExitStack() as stack:
        measured = list(_opened(model, runs, missing, stack))
        if not measured:
            return []
        for number, item in enumerate(corpus, 1):
            report(f"{number} of {len(corpus)}: {item.name}")
            song = item.load()
            name = _unused(item.name, hashes)
            hashes[name] = song.sha256
            kind = kind_of(item, song, model.spec)
            real = kind == "real"
            right = referee.separate(song, real)
            for one in measured:
                if real and not heard:
                    one.compare_graph(referee, song)
                found = one.compare_signal(name, kind, song, right)
                if found is not None and real:
                    listener(song, one.run.name, right.stems, found)
                    if axes and not heard:
                        one.compare_axes(song)
            heard = heard or real
        digest = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
        return [one.certificate(referee, digest, hashes) for one in measured]


def _opened(
    model: Model, runs: Sequence[Candidate], missing: dict[str, str] | None, stack: ExitStack
) -> Iterator[_Measured]:
    for run in runs:
        try:
            yield stack.enter_context(closing(_Measured(model, run)))
        except (BackendUnavailable, UsageError) as error:
            if missing is None:
                raise
            missing[run.name] = str(error)


@dataclass(frozen=True)
class _Right:
    """What the reference made of a song."""

    stems: Audio  # [S, C, N], rounded as an artifact's output is: what is identical differs by nothing
    quality: Quality
    figures: dict[str, dict[str, Any]]


class _Referee:
    """The reference, asked once for each song."""

    def __init__(self, model: Model, name: str):
        self.reference: Reference = load_reference(name)(model)
        exact = getattr(self.reference, "exact", False)
        self._full: Reference | None = load_reference(FULL)(model) if exact else None
        self.rounding_db: dict[str, float | None] = {}
        self._model = model
        self._planes: tuple[Audio, Audio] | None = None

    def separate(self, song: Song, real: bool) -> _Right:
        exact = self.reference.separate(song.mixture)
        if real and self._full is not None and not self.rounding_db:
            rounded = self._full.separate(song.mixture)
            self.rounding_db = {
                stem: worst_snr_db(exact[index : index + 1], rounded[index : index + 1])
                for index, stem in enumerate(self._model.spec.stems)
            }
        stems = exact.astype(np.float32)
        quality = Quality(song, self._model.spec)
        return _Right(stems, quality, quality.measure(stems))

    def graph(self, song: Song) -> tuple[Audio, Audio]:
        """Planes of the song's loudest chunk, and what the network makes of them."""
        if self._planes is None:
            planes = _planes(self._model, song)
            self._planes = planes, self.reference.network_output(planes).astype(np.float32)
        return self._planes


class _Measured:
    """One artifact in the real separator, and what was found of it."""

    def __init__(self, model: Model, run: Candidate):
        self.run, self._model = run, model
        self._separator = Separator(model, backend=run.backend, options=run.options, batch=run.batch)
        self._session = _Counting(self._separator.session)
        self._separator.session = self._session
        self._graph: list[Any] = []
        self._signal: list[Any] = []
        self._quality: list[Any] = []
        self._axes: list[AxisFigures] = []
        self._non_finite: dict[str, int] = {}
        self._audio_seconds = self._wall_seconds = 0.0

    def close(self) -> None:
        """Release the artifact."""
        self._separator.close()

    def compare_graph(self, referee: _Referee, song: Song) -> None:
        """The network alone."""
        planes, right = referee.graph(song)
        self._session.non_finite = 0
        found = self._session.infer(planes)
        name = f"a chunk of {song.name}"
        self._non_finite[name] = self._session.non_finite
        self._graph = graph_figures(name, self._model.spec, right, found)

    def compare_signal(self, name: str, kind: Kind, song: Song, right: _Right) -> Audio | None:
        """End to end, and against the truth; None where the network gives NaN or Inf."""
        self._session.non_finite = 0
        start = time.perf_counter()
        try:
            found = self._separator.separate(song.mixture)
        except NonFiniteError:
            found = None
        self._non_finite[name] = self._session.non_finite
        if found is None:
            self._non_finite[name] = max(1, self._session.non_finite)  # 0: it was the host's inverse
            return None
        if kind == "real":
            self._wall_seconds += time.perf_counter() - start
            self._audio_seconds += song.mixture.shape[-1] / self._model.spec.stft.sample_rate
        self._signal += signal_figures(name, kind, self._model.spec, right.stems, found)
        if kind == "real":
            self._quality += right.quality.compare(name, right.figures, right.quality.measure(found))
        return found

    def compare_axes(self, song: Song) -> None:
        """The start of a song, run in other ways, against how it was run."""
        spec, separator = self._model.spec, self._separator
        mixture = song.mixture[:, : AXIS_CHUNKS * spec.chunk_samples]
        try:
            base = separator.separate(mixture)
            self._axis("again", 2, base, separator.separate(mixture))
            for batch in BATCHES:
                separator.batch = batch
                self._axis("batch", batch, base, separator.separate(mixture))
            separator.batch = self.run.batch
            for push in (spec.stft.hop - 1, spec.chunk_samples + 1):
                self._axis("push", push, base, _pushed(separator, mixture, push))
            if self.run.options.device == "cpu" and (self.run.options.threads or cores()) > 1:
                alone = BackendOptions(self.run.options.precision, self.run.options.device, 1)
                with Separator(self._model, backend=self.run.backend, options=alone) as single:
                    self._axis("threads", 1, base, single.separate(mixture))
        except NonFiniteError:
            self._axes.append(AxisFigures("again", 2, identical=False, snr_db=None))
        finally:
            separator.batch = self.run.batch

    def certificate(self, referee: _Referee, digest: str, hashes: dict[str, str]) -> Certificate:
        """All of it."""
        assert self._model.bundle is not None
        options = self.run.options
        artifact, sha256 = self._session.artifact
        return Certificate(
            artifact=artifact,
            artifact_sha256=sha256,
            source=self._model.bundle.digest,
            backend=self._session.name,
            precision=options.precision or "fp32",
            device=options.device,
            threads=options.threads,
            batch=self.run.batch,
            versions=versions_of(self._session),
            cpu=cpu_name(),
            reference=referee.reference.description,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            corpus_sha256=digest,
            corpus=dict(hashes),
            x_realtime=self._audio_seconds / self._wall_seconds if self._wall_seconds else None,
            graph=self._graph,
            signal=self._signal,
            quality=self._quality,
            axes=self._axes,
            non_finite=self._non_finite,
            reference_rounding_db=referee.rounding_db,
        )

    def _axis(self, axis: str, value: int, base: Audio, found: Audio) -> None:
        same = bool(np.array_equal(base, found))
        self._axes.append(AxisFigures(axis, value, same, worst_snr_db(base, found)))


class _Counting:
    """A session that counts what is not finite."""

    def __init__(self, session: Session):
        self._session = session
        self.name, self.artifact, self.description = session.name, session.artifact, session.description
        self.versions = session.versions
        self.non_finite = 0

    def infer(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        out = self._session.infer(mixture)
        self.non_finite += int(out.size - np.count_nonzero(np.isfinite(out)))
        return out

    def close(self) -> None:
        self._session.close()


def _planes(model: Model, song: Song) -> Audio:
    """Network input ``[1, 2*C, T, F]``: the loudest chunk of a song."""
    _, chunk = loudest_chunk(song.mixture, model.spec)
    return pack(Stft(model.spec.stft).forward(chunk[np.newaxis]))


def _pushed(separator: Separator, mixture: Audio, samples: int) -> Audio:
    engine = separator.stream()
    pieces = [engine.push(mixture[:, at : at + samples]) for at in range(0, mixture.shape[-1], samples)]
    return np.concatenate((*pieces, engine.flush()), axis=-1)


def _unused(name: str, taken: dict[str, Any]) -> str:
    """A name that a corpus does not have yet."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)
