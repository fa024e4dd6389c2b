"""What a decoder is, and the one for files that libsndfile reads.

``pcm.py``, ``flac.py``, ``ogg.py``, ``mpeg.py`` and ``ffmpeg.py`` have the others. Decoders do not convert
anything and check only what their format lets them: ``reading.py`` does the rest, once, for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.source import Source
from tfswa.runtime.errors import AudioError, UsageError
from tfswa.runtime.escape import shown

# libsndfile answers its largest integer where the length is unknown.
UNKNOWN_LENGTH = 1 << 62

# A file damaged in more places than this is refused rather than patched with silence.
MAX_DAMAGE = 50
MAX_GAP_S = 10.0


class Decoder(Protocol):
    """What ``reading.AudioSource`` needs of a decoder.

    Attributes:
        sample_rate: in Hz.
        channels: number of channels, in the order of ``layout``.
        layout: FFmpeg's names of the channels, e.g. ``("FL", "FR")``; empty when unknown.
        samples: length per channel that the file declares for sure, or None.
        tolerance_samples: how far ``samples`` may be off in a file that is whole.
        streams: number of audio streams in the file.
    """

    sample_rate: int
    channels: int
    layout: tuple[str, ...]
    samples: int | None
    tolerance_samples: int
    streams: int

    @property
    def notes(self) -> list[Note]:
        """What was found so far; grows while ``blocks`` runs."""

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """Decoded float32 ``[C, n]``, n about ``block_samples``, in order, once."""

    def close(self) -> None:
        """Release the decoder; the source stays open."""


class UnsuitableFile(Exception):
    """Not a file for this decoder; the text says why, another decoder may take it."""


class Damage:
    """Counts damaged places of a file, and gives up on one that has too many.

    Args:
        path: for the error.
        notes: where each place is noted.
    """

    def __init__(self, path: Path, notes: list[Note]) -> None:
        self.path, self.notes, self.count = path, notes, 0

    def corrupt(self, what: str, seconds: float) -> None:
        """Note that what was decoded at a place may be wrong."""
        self._add(Note("corrupt", f"damaged at {seconds:.3f} s: {what}", damaged=True), what, seconds)

    def hole(self, missing_s: float, seconds: float) -> None:
        """Note a place that silence was put into.

        Raises:
            AudioError: it is too long, or there are too many.
        """
        if missing_s > MAX_GAP_S:
            raise AudioError(
                f"{self.path}: {missing_s:.1f} s are missing at {seconds:.3f} s, "
                f"more than the {MAX_GAP_S:.0f} s that are filled with silence: repair the file"
            )
        what = f"{missing_s:.3f} s missing, silence put in their place"
        self._add(Note("hole", f"damaged at {seconds:.3f} s: {what}", damaged=True), what, seconds)

    def _add(self, note: Note, what: str, seconds: float) -> None:
        self.count += 1
        if self.count > MAX_DAMAGE:
            raise AudioError(
                f"{self.path}: damaged in more than {MAX_DAMAGE} places, the last at {seconds:.3f} s "
                f"({what}): repair the file or use another copy"
            )
        self.notes.append(note)


class SndfileDecoder:
    """What libsndfile reads and no decoder of ours takes (ADPCM, GSM, VOC ...), told apart by content.

    Args:
        source: the file.
        start: where it begins in there, in bytes.
        stop: where it ends; None for the end of the source.

    Raises:
        UnsuitableFile: not a file that libsndfile reads; or a file whose header leaves the length open
            (streamed, or empty), of which soundfile reads nothing.
    """

    tolerance_samples = 0
    streams = 1

    def __init__(self, source: Source, start: int = 0, stop: int | None = None) -> None:
        self._path = source.path
        self.notes: list[Note] = []
        self._damage = Damage(source.path, self.notes)
        try:
            whole = source.descriptor() if (start, stop or source.size) == (0, source.size) else None
            file = source.window(start, stop) if whole is None else whole
            self._file = soundfile.SoundFile(file, closefd=True)
        except soundfile.LibsndfileError as error:
            raise UnsuitableFile(f"libsndfile: {one_line(error.error_string)}") from error
        except (TypeError, ValueError) as error:  # soundfile's own words about headers that make no sense
            raise UnsuitableFile(f"libsndfile: {one_line(error)}") from error
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.layout: tuple[str, ...] = ()
        frames = int(self._file.frames)
        if frames >= UNKNOWN_LENGTH or frames <= 0:
            self.close()
            raise UnsuitableFile("libsndfile: unknown length")
        self.samples: int | None = self._declared(frames)

    def _declared(self, frames: int) -> int:
        """The length that a WAV header claims; libsndfile itself quietly goes by the size of the file."""
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if cut is None:
            return frames
        claimed, present = int(cut[1]), int(cut[2])
        if not present < claimed < 0xFFFF_0000:
            return frames
        return frames * claimed // present

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        done = 0
        while True:
            try:
                block = self._file.read(block_samples, dtype="float32", always_2d=True)  # [n, C]
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(
                    f"{self._path}: damaged between {done / self.sample_rate:.3f} s and "
                    f"{(done + block_samples) / self.sample_rate:.3f} s ({one_line(error)}): "
                    "repair the file or use another copy"
                ) from error
            if not len(block):
                return
            done += len(block)
            if self._file.frames > done and len(block) < block_samples:
                # A hole in a stream: libsndfile hands out less than it was asked for.
                self._damage.corrupt("less came than was asked for", done / self.sample_rate)
            yield np.ascontiguousarray(block.T)

    def close(self) -> None:
        """See ``Decoder``."""
        self._file.close()


def check_stream(path: Path, stream: int, streams: int) -> int:
    """``stream`` if it is one of ``streams``; UsageError otherwise."""
    if not 0 <= stream < streams:
        raise UsageError(
            f"{path}: audio track {stream + 1} is not there, the file has {streams}: "
            + ("use 1" if streams == 1 else f"choose 1 to {streams}")
        )
    return stream


def format_changed(path: Path, seconds: float, before: tuple[int, int], after: tuple[int, int]) -> AudioError:
    """The error about a file whose rate or number of channels changes on the way."""
    return AudioError(
        f"{path}: at {seconds:.3f} s it changes from {before[0]} Hz, {before[1]} channels to {after[0]} Hz, "
        f"{after[1]} channels: convert it to one format first"
    )


def gathered(first: Block | None, rest: Iterator[Block], block_samples: int) -> Iterator[Block]:
    """Packets ``[C, n]`` joined to blocks of at most ``block_samples``, unless one packet is longer."""
    held = [] if first is None else [first]
    count = sum(block.shape[1] for block in held)
    for block in rest:
        if count and count + block.shape[1] > block_samples:
            yield np.concatenate(held, axis=1)
            held, count = [], 0
        held.append(block)
        count += block.shape[1]
    if count:
        yield np.concatenate(held, axis=1)


def one_line(error: object) -> str:
    """A library's message without line breaks, control characters or a full stop."""
    return shown(" ".join(str(error).split()).rstrip(". "))
