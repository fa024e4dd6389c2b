"""Quality on songs with true stems: the model, song by song, beside baselines, measured by BSSEval v4.

                   this process                                        --jobs processes
decode -> Separator -> estimates, references as .npy files ──> BSSEval, global figures, baselines
  ^                                                                         │
  '── next song, at most jobs + 1 ahead     songs/<song>.json <─────────────'
                                            (+ estimates) all at once, in order of completion
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import AudioError, NonFiniteError, TfxError, UsageError
from tfswa.runtime.evaluation import boxplot, by_museval, results
from tfswa.runtime.evaluation.bsseval import Method
from tfswa.runtime.evaluation.pool import Workers
from tfswa.runtime.evaluation.records import Records, SongResult, audio_sha256, identify
from tfswa.runtime.evaluation.scores import Score, Summary, score_song, summarize
from tfswa.runtime.files.atomic import folder
from tfswa.runtime.files.partial import working
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.opening import Model
from tfswa.runtime.songs.finding import SongFiles
from tfswa.runtime.songs.loading import Song, load, true_sources
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]

_BLOCK_SECONDS = 10.0  # between two reports of progress


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
        done: songs finished, those of earlier runs included.
        total: songs in all.
        song: the one that the model is at; empty while only measuring goes on.
        separated: how much of it, 0 to 1.
        finished: a song that has just been finished.
    """

    done: int
    total: int
    song: str = ""
    separated: float = 0.0
    finished: SongResult | None = None


Report = Callable[[EvaluationProgress], None]


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
        identity: all that decided the numbers, the audio apart.
        songs: in the order asked for.
        summaries: figures over all songs.
        files: what was written, by kind: ``json``, ``csv``, maybe ``plot``.
    """

    identity: Mapping[str, Any]
    songs: Sequence[SongResult]
    summaries: Sequence[Summary]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class _Flight:
    """A song that is being measured."""

    result: SongResult  # without scores
    folder: Path
    stagings: Sequence[Staging]  # of the estimates, of the record
    future: Future[list[Score]]


def evaluate(
    model: Model,
    songs: Sequence[SongFiles],
    output: Path,
    *,
    backend: str = "auto",
    options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
    batch: int = 1,
    choices: Choices = Choices(),
    report: Report = lambda _: None,
) -> Evaluation:
    """Separate songs and measure the stems; songs that an earlier run finished are not computed again.

    Args:
        model: what to measure.
        songs: from ``stems.find_songs``, of different names.
        output: folder for the results, see ``results``.
        backend: which backend runs the model.
        options: precision, device, threads.
        batch: chunks at once.
        choices: see there.
        report: called as it goes on.

    Raises:
        AudioError: a song without true stems or a stem of the model, or one that cannot be decoded.
        OutputExists: results of other circumstances are there; ``choices.force`` replaces them.
        BackendUnavailable: matplotlib or the backend is missing, or museval where it is asked for.
        NonFiniteError: the model produced NaN or Inf; song and stem are named.
    """
    names = {song.name: _sources(song, model) for song in songs}
    if choices.plot:
        boxplot.require_boxplot()
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, the results need a folder: choose another place")
    with Separator(model, backend=backend, options=options, batch=batch) as separator:
        identity = identify(separator, options, baselines=choices.baselines, method=choices.method)
        results.check_results(output, identity, force=choices.force)
        records = Records(output, identity, model.spec.stems, choices.estimates, choices.force)
        finished = records.find(songs, names)
        todo = [song for song in songs if song.name not in finished]
        if todo:
            if choices.method == "museval":
                by_museval.require_museval()
            with folder(output):
                _Run(separator, records, choices, names, report, finished, len(songs)).compute(todo)
    ordered = [finished[song.name] for song in songs]
    summaries = summarize([song.scores for song in ordered])
    heading = {"model": model.name}
    files = results.write_results(output, heading, identity, ordered, summaries, plot=choices.plot)
    return Evaluation(identity, ordered, summaries, files)


class _Run:
    """The songs that are still to be computed. What is finished stays, whatever comes after."""

    def __init__(
        self,
        separator: Separator,
        records: Records,
        choices: Choices,
        names: Mapping[str, Sequence[str]],
        report: Report,
        finished: dict[str, SongResult],
        total: int,
    ) -> None:
        self.separator, self.records, self.choices, self.names = separator, records, choices, names
        self.report, self.finished, self.total = report, finished, total
        self.flights: list[_Flight] = []

    def compute(self, todo: Sequence[SongFiles]) -> None:
        """Separate and measure; ``finished`` grows."""
        jobs = min(self.choices.jobs or os.cpu_count() or 1, len(todo))
        place = self.records.output
        with working(place / "songs") as scratch, Workers(jobs) as workers:
            try:
                for number, song in enumerate(todo):
                    while len(self.flights) > jobs:
                        self._land()
                    with writable(place):
                        scratch.check()
                    try:
                        self._depart(song, scratch.path / str(number), workers)
                    except TfxError:
                        while self.flights:  # minutes of work that are nearly done
                            self._land()
                        raise
                while self.flights:
                    self._land()
            finally:
                for flight in self.flights:
                    for staging in flight.stagings:
                        staging.discard()

    def _depart(self, files: SongFiles, folder: Path, workers: Workers) -> None:
        """Separate a song and hand it over."""
        spec = self.separator.spec
        sha256 = audio_sha256(files, self.names[files.name])
        song = load(files, spec)
        if not song.stems:
            raise AudioError(
                f"{files.name} has not the {len(files.sources)} audio streams of a stem file: take it away"
            )
        if song.mixture.shape[1] == 0:
            raise AudioError(f"{files.name} holds no samples, measuring needs some: take it away")
        estimates = self._separate(song)
        stagings = []
        try:
            if self.choices.estimates is not None:
                paths, place = self.records.estimate_paths(files), self.choices.estimates
                stagings.append(Staging(paths, force=True, source=None, below=place))
                stagings[0].prepare(estimates[0].nbytes)
                for partial, estimate in zip(stagings[0].partials, estimates, strict=True):
                    soundfile.write(partial, estimate.T, spec.stft.sample_rate, subtype="FLOAT", format="WAV")
            record = {"record": self.records.path(files)}
            stagings.append(Staging(record, force=True, source=None, below=self.records.output))
            stagings[-1].prepare(0)
            folder.mkdir()
            np.save(folder / "mixture.npy", song.mixture)
            np.save(folder / "references.npy", np.stack([song.stems[stem] for stem in spec.stems]))
            np.save(folder / "estimates.npy", estimates)
            chosen = {"baselines": self.choices.baselines, "method": self.choices.method}
            future = workers.submit(score_song, folder, spec, **chosen)
        except BaseException as error:
            for staging in stagings:
                staging.discard()
            if isinstance(error, BrokenProcessPool):
                raise self._killed() from error
            raise
        seconds = song.mixture.shape[1] / spec.stft.sample_rate
        result = SongResult(files.name, files.split, seconds, sha256, (), notes=song.notes)
        self.flights.append(_Flight(result, folder, stagings, future))

    def _separate(self, song: Song) -> Audio:
        """``[S, C, N]``, block by block so that progress shows."""
        engine, parts = self.separator.stream(), []
        samples = song.mixture.shape[1]
        step = int(_BLOCK_SECONDS * self.separator.spec.stft.sample_rate)
        try:
            for start in range(0, samples, step):
                self._tell(song.name, start / samples)
                parts.append(engine.push(song.mixture[:, start : start + step]))
            parts.append(engine.flush())
        except NonFiniteError as error:
            raise NonFiniteError(f"{song.name}: {error}") from error
        return np.concatenate(parts, axis=-1)

    def _land(self) -> None:
        """Wait for one song's figures, and write its record."""
        self._tell()
        done, _ = wait([flight.future for flight in self.flights], return_when=FIRST_COMPLETED)
        flight = next(flight for flight in self.flights if flight.future in done)
        try:
            result = replace(flight.result, scores=flight.future.result())
        except BrokenProcessPool as error:
            raise self._killed() from error
        with writable(self.records.output):
            flight.stagings[-1].partials[0].write_text(self.records.text(result))
            for staging in flight.stagings:  # the record last: without one, a song is measured again
                staging.publish()
        self.flights.remove(flight)
        shutil.rmtree(flight.folder)
        self.finished[result.song] = result
        self.report(EvaluationProgress(len(self.finished), self.total, finished=result))

    def _killed(self) -> TfxError:
        measured = " or ".join(flight.result.song for flight in self.flights)
        return TfxError(
            f"a process that measured {measured} was killed, most likely for want of memory: use fewer --jobs"
        )

    def _tell(self, song: str = "", separated: float = 0.0) -> None:
        self.report(EvaluationProgress(len(self.finished), self.total, song, separated))


def _sources(song: SongFiles, model: Model) -> list[str]:
    names = true_sources(song, model.spec)
    if not names:
        raise AudioError(
            f"{song.name} has no true stems, the model makes {', '.join(model.spec.stems)}: "
            "point --data at songs with one file for each source, or at stem files"
        )
    return names
