"""A file job: one input separated into files, in bounded memory, whole or not at all.

source -> decode -> channels, rate -> stream engine and network -> encode -> files
          '------- thread -------'    '-------- caller -------'    '--- thread ---'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa.runtime.audio.encoders import FORMATS
from tfswa.runtime.audio.layouts import output_channels
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.reading import AudioSource, model_blocks, open_audio
from tfswa.runtime.audio.tracks import Track
from tfswa.runtime.audio.writing import Clip, StemFiles, WriteReport
from tfswa.runtime.errors import AudioError, UsageError, did_you_mean
from tfswa.runtime.failures import Failure
from tfswa.runtime.stream.pipeline import BackgroundWorker, Prefetch

if TYPE_CHECKING:
    from tfswa.runtime.stream.separating import Separating

Progress = Callable[[float, float | None], None]
"""Called with seconds done and, where it is known, seconds in all."""


@dataclass(frozen=True)
class FileJob:
    """What is asked for of one input.

    Attributes:
        source: any audio file or pipe; ``-`` is standard input.
        outputs: final path per wanted stem; stems left out are not written.
        format: a name in ``encoders.FORMATS``.
        clip: what happens to samples beyond full scale, see ``StemFiles``.
        force: replace existing files.
        track: which audio track of the input: a number from 0, a language, or None for the default one.
        strict: refuse an input that is damaged, see ``AudioSource.damaged``; nothing is published then.
        below: the folder that the user named: between it and an output no link is followed; None follows all.
    """

    source: Path
    outputs: Mapping[str, Path]
    format: str = "wav"
    clip: Clip = "none"
    force: bool = False
    track: Track = None
    strict: bool = False
    below: Path | None = None


@dataclass(frozen=True)
class FileResult:
    """What came of one file.

    Attributes:
        written: paths, peaks, clipping.
        audio_seconds: length of the input.
        wall_seconds: from opening the input to the last rename.
        cpu_seconds: CPU time of the whole process meanwhile.
        host_cpu_seconds: CPU time of everything but the network: decode, STFT, overlap-add, encode.
        recomputed: start and end, in seconds, of each chunk that was computed again in float32.
        notes: what was found, repaired or left out while the input was read.
    """

    written: WriteReport
    audio_seconds: float
    wall_seconds: float
    cpu_seconds: float
    host_cpu_seconds: float
    recomputed: tuple[tuple[float, float], ...]
    notes: tuple[Note, ...] = ()

    @property
    def damaged(self) -> bool:
        """Whether sound of the input is missing or may be wrong."""
        return any(note.damaged for note in self.notes)

    @property
    def x_realtime(self) -> float:
        """Seconds of audio separated per second."""
        return self.audio_seconds / self.wall_seconds


def _silent(done: float, total: float | None) -> None:
    """Nobody asked."""


def separate_file(separator: Separating, job: FileJob, progress: Progress = _silent) -> FileResult:
    """Do one file job.

    Raises:
        UsageError: an unknown stem or an output that cannot be.
        AudioError: an input that cannot be decoded, or is damaged where the job is strict.
        NonFiniteError: the network produced NaN or Inf, or so did the float32 one that was asked.
    """
    wanted = list(job.outputs)
    separator.indices(wanted)  # refuses what it has not
    separator = separator.only(wanted)
    picked = separator.indices(wanted)
    wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    rate = separator.sample_rate
    with open_audio(job.source, stream=job.track) as audio:
        total = None if audio.samples is None else audio.samples / audio.sample_rate
        with StemFiles(
            job.outputs,
            format=job.format,
            sample_rate=audio.sample_rate,
            channels=output_channels(audio.channels, separator.channels),
            model_rate=rate,
            expected_samples=audio.samples,
            clip=job.clip,
            tags=audio.tags,
            source=job.source,
            force=job.force,
            below=job.below,
        ) as files:
            engine, done = separator.stream(), 0
            blocks = model_blocks(audio, rate, separator.channels)
            with Prefetch(blocks) as decoded, BackgroundWorker(files.write) as encoder:
                for block in decoded:
                    stems = engine.push(block)
                    if stems.shape[-1]:
                        encoder.put(stems[picked])
                        done += stems.shape[-1]
                        progress(done / rate, total)
                encoder.put(engine.flush()[picked])
            if job.strict:
                refuse_damage(audio)
            report = files.finish(audio.samples_read)
        seconds = audio.samples_read / audio.sample_rate
    progress(seconds, seconds)
    own = time.thread_time() - own - engine.network_seconds
    return FileResult(
        report,
        seconds,
        time.perf_counter() - wall,
        time.process_time() - cpu,
        own + decoded.cpu_seconds + encoder.cpu_seconds,
        tuple((chunk.start / rate, chunk.stop / rate) for chunk in engine.redone),
        audio.notes,
    )


def paths_in(folder: Path, stems: Iterable[str], format: str) -> dict[str, Path]:
    """Path of each stem in a folder: ``<stem>`` with the ending of the format.

    Raises:
        UsageError: no such format.
    """
    if format not in FORMATS:
        close = did_you_mean(format, FORMATS) or ":"
        raise UsageError(f"unknown format {format!r}{close} choose one of {', '.join(FORMATS)}")
    return {stem: folder / f"{stem}{FORMATS[format].extension}" for stem in stems}


@dataclass(frozen=True)
class Outcome:
    """How one of several jobs ended.

    Attributes:
        job: what was asked for.
        result: what came of it; None where it failed.
        failure: why it failed; None where it did not.
    """

    job: FileJob
    result: FileResult | None = None
    failure: Failure | None = None


def separate_files(
    separator: Separating,
    jobs: Iterable[FileJob],
    progress: Callable[[FileJob], AbstractContextManager[Progress]] = lambda job: nullcontext(_silent),
) -> Iterator[Outcome]:
    """Do file jobs one after another; whatever ends one of them costs the others nothing.

    Args:
        separator: does them all.
        jobs: what is asked for.
        progress: gives each job's callback, inside a ``with``.
    """
    for job in jobs:
        try:
            with progress(job) as report:
                result = separate_file(separator, job, report)
        except Exception as error:
            yield Outcome(job, failure=Failure(str(job.source), error))
        else:
            yield Outcome(job, result)


def refuse_damage(audio: AudioSource) -> None:
    """End a strict job whose input is damaged.

    Raises:
        AudioError: it is.
    """
    found = [note.text for note in audio.notes if note.damaged]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise AudioError(
            f"{audio.path} is damaged: {found[0]}{more}: use another copy, or leave out --strict"
        )
