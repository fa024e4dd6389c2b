"""The songs of one evaluation that are still to be computed: separated here, measured in other processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, NonFiniteError, OutputExists, TfxError
from tfswa.runtime.evaluation.choices import Choices, EvaluationProgress, Report
from tfswa.runtime.evaluation.pool import Workers
from tfswa.runtime.evaluation.records import Records, SongResult, audio_sha256
from tfswa.runtime.evaluation.scores import Score, score_song
from tfswa.runtime.evaluation.signals import BLOCK, Signal, SignalWriter, starts, store_signals, stored
from tfswa.runtime.failures import Failure
from tfswa.runtime.files.atomic import folder
from tfswa.runtime.files.partial import beside
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import SongFiles
from tfswa.runtime.songs.loading import load
from tfswa.runtime.stream.separating import Separating

Audio = NDArray[np.float32]

_BLOCK_SECONDS = 10.0  # between two reports of progress


class Tally:
    """What became of the songs so far.

    Args:
        total: songs in all.
        report: told as it goes on.

    Attributes:
        finished: results by name, those of earlier runs included.
        failures: of the others; see ``spared``.
    """

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self.finished: dict[str, SongResult] = {}
        self.failures: list[Failure] = []

    @contextmanager
    def spared(self, song: str) -> Iterator[None]:
        """Whatever ends the work on one song costs the others nothing.

        What is in the way of the results is no fault of the song, and neither is a reader who went away.
        """
        try:
            yield
        except (OutputExists, BrokenPipeError):
            raise
        except Exception as error:
            self.failures.append(Failure(song, error))
            self.tell(failed=self.failures[-1])

    def finish(self, result: SongResult) -> None:
        """A song is done."""
        self.finished[result.song] = result
        self.tell(finished=result)

    def tell(
        self,
        song: str = "",
        separated: float = 0.0,
        finished: SongResult | None = None,
        failed: Failure | None = None,
    ) -> None:
        """Report where the run is."""
        done = len(self.finished) + len(self.failures)
        self._report(EvaluationProgress(done, self._total, song, separated, finished, failed))


@dataclass(frozen=True)
class _Flight:
    """A song that is being measured."""

    result: SongResult  # without scores
    folder: Path
    stagings: Sequence[Staging]  # of the estimates, of the record
    future: Future[list[Score]]
    alone: bool = False  # beside no other, as a process was killed before

    def discard(self) -> None:
        for staging in self.stagings:
            staging.discard()
        shutil.rmtree(self.folder, ignore_errors=True)


class SongRun:
    """Computes songs; what is finished stays, whatever comes after.

    Args:
        separator: the model, or several.
        spec: the contract by which songs are read and measured.
        records: where results go.
        choices: see there.
        sources: what each song's mixture is the sum of, by its name.
        tally: takes what comes of each song.
    """

    def __init__(
        self,
        separator: Separating,
        spec: ModelSpec,
        records: Records,
        choices: Choices,
        sources: dict[str, list[str]],
        tally: Tally,
    ) -> None:
        self._separator, self._spec = separator, spec
        self._records, self._choices = records, choices
        self._sources, self._tally = sources, tally
        self._flights: list[_Flight] = []

    def compute(self, todo: Sequence[SongFiles]) -> None:
        """Separate and measure."""
        jobs = min(self._choices.jobs or os.cpu_count() or 1, len(todo))
        place = self._records.output
        with (
            folder(place / "songs"),
            beside(place / "songs") as scratch,
            Workers(jobs) as self._workers,
        ):
            try:
                for number, song in enumerate(todo):
                    while len(self._flights) > jobs:
                        self._land()
                    with writable(place):
                        scratch.check()
                    with self._tally.spared(song.name):
                        self._depart(song, scratch.path / str(number))
                while self._flights:
                    self._land()
            finally:
                for flight in self._flights:
                    flight.discard()

    def _depart(self, files: SongFiles, folder: Path) -> None:
        """Separate a song and hand it over."""
        spec = self._spec
        sha256 = audio_sha256(files, self._sources[files.name])
        stagings: list[Staging] = []
        try:
            folder.mkdir()
            seconds, notes = self._write(files, folder)
            estimates = stored(folder / "estimates.npy")
            if self._choices.estimates is not None:
                paths, place = self._records.estimate_paths(files), self._choices.estimates
                stagings.append(Staging(paths, force=True, source=None, below=place))
                channels, samples = estimates[0].shape
                stagings[0].prepare(4 * channels * samples)
                for partial, estimate in zip(stagings[0].partials, estimates, strict=True):
                    _write_wav(partial, estimate, spec.stft.sample_rate)
            record = {"record": self._records.path(files)}
            stagings.append(Staging(record, force=True, source=None, below=self._records.output))
            stagings[-1].prepare(0)
            result = SongResult(files.name, files.split, seconds, sha256, (), notes=notes)
            self._flights.append(_Flight(result, folder, stagings, self._submit(folder)))
        except BaseException:
            for staging in stagings:
                staging.discard()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _write(self, files: SongFiles, folder: Path) -> tuple[float, tuple[str, ...]]:
        """Lay mixture, true stems and estimates into a folder; seconds of the song, notes of its files."""
        spec = self._spec
        song = load(files, spec, log=False)  # the result carries its notes
        if not song.stems:
            raise AudioError(
                f"{files.name} has not the {len(files.sources)} audio streams of a stem file: take it away"
            )
        mixture, notes = song.mixture, song.notes
        if mixture.shape[1] == 0:
            raise AudioError(f"{files.name} holds no samples, measuring needs some: take it away")
        np.save(folder / "mixture.npy", mixture)
        store_signals(folder / "references.npy", [song.stems[stem] for stem in spec.stems])
        del song  # while the model works, the mixture alone is in memory
        try:
            self._separate(files.name, mixture, folder / "estimates.npy")
        except NonFiniteError as error:
            raise NonFiniteError(f"{files.name}: {error}") from error
        return mixture.shape[1] / spec.stft.sample_rate, notes

    def _separate(self, name: str, mixture: Audio, path: Path) -> None:
        """Write the model's stems ``[S, C, N]``, block by block so that progress shows."""
        spec, engine = self._spec, self._separator.stream()
        samples = mixture.shape[1]
        writer = SignalWriter(path, (len(spec.stems), mixture.shape[0], samples))
        for start, stop in starts(samples, int(_BLOCK_SECONDS * spec.stft.sample_rate)):
            self._tally.tell(name, start / samples)
            writer.write(engine.push(mixture[:, start:stop]))
        writer.write(engine.flush())

    def _submit(self, folder: Path) -> Future[list[Score]]:
        chosen = {"baselines": self._choices.baselines, "method": self._choices.method}
        try:
            return self._workers.submit(score_song, folder, self._spec, **chosen)
        except BrokenProcessPool:  # by a song before this one
            self._measure_alone()
            return self._workers.submit(score_song, folder, self._spec, **chosen)

    def _land(self) -> None:
        """Wait for one song's figures, and write its record."""
        self._tally.tell()
        done, _ = wait([flight.future for flight in self._flights], return_when=FIRST_COMPLETED)
        flight = next(flight for flight in self._flights if flight.future in done)
        broken = isinstance(flight.future.exception(), BrokenProcessPool)
        if broken and not flight.alone:
            self._measure_alone()
            return
        self._flights.remove(flight)
        scores: list[Score] | None = None
        try:
            with self._tally.spared(flight.result.song):
                if broken:
                    raise TfxError(
                        f"the process that measured {flight.result.song} was killed, also when it was the "
                        "only one, most likely for want of memory: close other programs"
                    )
                scores = flight.future.result()
            if scores is not None:
                result = replace(flight.result, scores=scores)
                with writable(self._records.output):
                    flight.stagings[-1].partials[0].write_text(self._records.text(result))
                    for staging in flight.stagings:  # the record last: without one, a song is measured again
                        staging.publish()
                self._tally.finish(result)
        finally:
            flight.discard()

    def _measure_alone(self) -> None:
        """A process was killed, and with it the pool: measure the songs in it again, one at a time."""
        for number, flight in enumerate(self._flights):
            if flight.future.done() and flight.future.exception() is None:
                continue
            self._workers.renew()
            future = self._submit(flight.folder)
            wait([future])
            self._flights[number] = replace(flight, future=future, alone=True)
        self._workers.renew()


def _write_wav(path: Path, signal: Signal, rate: int) -> None:
    channels, samples = signal.shape
    with soundfile.SoundFile(path, "w", rate, channels, subtype="FLOAT", format="WAV") as stream:
        for start, stop in starts(samples, BLOCK):
            stream.write(signal[:, start:stop].T)
