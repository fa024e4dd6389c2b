"""Audio in: any file to finite float32 blocks ``[C, N]`` at the model's rate and channels, in bounded memory.

    open_audio -> AudioSource.blocks -> to_channels -> resampled        (model_blocks does all of it)

The source is opened once; its content decides who reads it, not its name. Sample 0 of the file is sample 0
of the first block, whatever the codec's delay. What is decoded is counted, what the file declared for sure
is compared, and every difference, repair and omission is a ``Note``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import soxr

from tfswa.runtime.audio.choosing import open_decoder
from tfswa.runtime.audio.decoders import Decoder
from tfswa.runtime.audio.layouts import Block, downmix, to_channels
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.source import Source, open_source
from tfswa.runtime.audio.tags import Tags, read_tags
from tfswa.runtime.audio.tracks import Track
from tfswa.runtime.errors import AudioError
from tfswa.runtime.escape import shown

logger = logging.getLogger(__name__)

BLOCK_SAMPLES = 1 << 16
BLOCK_SECONDS = 4.0  # at low rates a block of fixed length would become hours at the model's
BLOCK_BYTES = 8 << 20  # with many channels

LOWEST_RATE, HIGHEST_RATE = 1000, 3_000_000  # Hz; DSD512 comes to 2.8 MHz


class AudioSource:
    """Open audio; a context manager. Get one from ``open_audio``.

    Attributes:
        path: the file, ``stdin`` for standard input.
        sample_rate: native, in Hz.
        channels: native number of channels.
        layout: names of the channels in FFmpeg's spelling, e.g. ``("FL", "FR")``; empty when unknown.
        samples: length per channel that the file declares, None if it does not; what is read may differ.
        streams: number of audio streams in the file.
        samples_read: native samples per channel handed out so far; after ``blocks`` has ended, the length.
    """

    def __init__(self, source: Source, decoder: Decoder) -> None:
        self._source, self._decoder = source, decoder
        self._notes: list[Note] = []
        self.path = source.path
        self.sample_rate = decoder.sample_rate
        self.channels = decoder.channels
        self.layout = decoder.layout
        self.samples = decoder.samples
        self.streams = decoder.streams
        self.samples_read = 0

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was found, repaired or left out; complete once ``blocks`` has ended."""
        return tuple(dict.fromkeys((*self._decoder.notes, *self._notes)))

    @property
    def damaged(self) -> bool:
        """Whether sound is missing or may be wrong; final once ``blocks`` has ended."""
        return any(note.damaged for note in self.notes)

    @cached_property
    def tags(self) -> Tags:
        """Tags and cover; empty where there are none or they cannot be read."""
        tags = read_tags(self._source)
        self._notes += tags.notes
        return tags

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[Block]:
        """Read the file once, from start to end.

        Args:
            block_samples: samples per block, per channel, at most; fewer at low rates and with many
                channels, and blocks vary.

        Yields:
            float32 ``[C, n]`` at the native rate, finite, owned by the caller.

        Raises:
            AudioError: the file is damaged, or holds NaN or Inf.
        """
        most = min(
            block_samples,
            max(1, int(BLOCK_SECONDS * self.sample_rate)),
            max(1, BLOCK_BYTES // (4 * self.channels)),
        )
        for block in self._decoder.blocks(most):
            for start in range(0, block.shape[1], most):
                piece = np.ascontiguousarray(block[:, start : start + most])
                self._check_finite(piece)
                self.samples_read += piece.shape[1]
                yield piece
        declared = self._decoder.samples
        if declared is not None and self.samples_read + self._decoder.tolerance_samples < declared:
            self._notes.append(
                Note(
                    "cut",
                    f"ends at {self.samples_read / self.sample_rate:.3f} s, but declares "
                    f"{declared / self.sample_rate:.3f} s: the rest is missing or damaged",
                    damaged=True,
                )
            )

    def note(self, note: Note) -> None:
        """Add what was found on the way from here to the model."""
        self._notes.append(note)

    def _check_finite(self, block: Block) -> None:
        finite = np.isfinite(block)
        if finite.all():
            return
        sample = int(np.argmin(finite.all(axis=0)))
        channel = int(np.argmin(finite[:, sample]))
        raise AudioError(
            f"{self.path}: the sample at {(self.samples_read + sample) / self.sample_rate:.6f} s in channel "
            f"{channel + 1} of {self.channels} is {block[channel, sample]}, not a number between -1 and 1: "
            "export the file again"
        )

    def close(self) -> None:
        """Release the file; the context manager does so too."""
        self._decoder.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(given: Path | BinaryIO, *, stream: Track = None) -> AudioSource:
    """Open an audio or video file for reading, once.

    Args:
        given: a file, a pipe, ``Path("-")`` for standard input, or a binary file object; its content
            decides how it is read, not its extension.
        stream: which audio track: its number from 0, its language, or None for the default one; only
            containers such as MP4 hold more than one.

    Raises:
        AudioError: no such file, a directory, a device, empty, not audio, without an audio stream, or at a
            rate that no recording has.
        UsageError: the file has no such track.
    """
    source = open_source(given)
    try:
        audio = AudioSource(source, open_decoder(source, stream))
    except BaseException:
        source.close()
        raise
    if not LOWEST_RATE <= audio.sample_rate <= HIGHEST_RATE:
        audio.close()
        raise AudioError(
            f"{source.path} has a sample rate of {audio.sample_rate} Hz, read are {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz: its header is damaged, or it is no recording"
        )
    return audio


class Resampler:
    """A stream through soxr at its HQ setting.

    The output is aligned with the input: sample n lies at n / to_rate seconds. After ``flush`` the
    number of samples is that of the input times to_rate / from_rate, rounded, give or take one.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._channels = channels
        self._stream: soxr.ResampleStream | None = None
        if from_rate != to_rate:
            self._stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="HQ")

    def push(self, block: Block) -> Block:
        """What ``[C, n]`` completes, ``[C, m]``; m may be 0. Equal rates hand back the block itself."""
        return block if self._stream is None else self._run(block, last=False)

    def flush(self) -> Block:
        """The rest, ``[C, m]``. Nothing may be pushed afterwards."""
        empty = np.zeros((self._channels, 0), np.float32)
        return empty if self._stream is None else self._run(empty, last=True)

    def _run(self, block: Block, last: bool) -> Block:
        assert self._stream is not None
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)  # [m, C]
        return np.ascontiguousarray(out.T)


def resampled(blocks: Iterable[Block], from_rate: int, to_rate: int) -> Iterator[Block]:
    """Resample blocks ``[C, n]`` from one rate to another, both in Hz; never yields an empty block."""
    resampler: Resampler | None = None
    for block in blocks:
        if resampler is None:
            resampler = Resampler(from_rate, to_rate, block.shape[0])
        out = resampler.push(block)
        if out.shape[1]:
            yield out
    if resampler is not None:
        rest = resampler.flush()
        if rest.shape[1]:
            yield rest


def log_notes(audio: AudioSource) -> None:
    """Warn of damage, and tell the rest, where no result carries the notes; once ``blocks`` has ended."""
    for note in audio.notes:
        logger.log(logging.WARNING if note.damaged else logging.INFO, "%s: %s", shown(audio.path), note)


def model_blocks(source: AudioSource, sample_rate: int, channels: int) -> Iterator[Block]:
    """A file as a model wants it.

    Args:
        source: just opened; ``source.samples_read`` tells afterwards how long it was.
        sample_rate: the model's, in Hz.
        channels: the model's, 1 or 2.

    Yields:
        float32 ``[channels, n]``, finite, n above 0.

    Raises:
        AudioError: the file is damaged, holds NaN or Inf, or has more than 8 channels.
    """
    mixing = downmix(source.channels, channels, source.layout)
    if mixing is not None:
        source.note(Note("channels", mixing))
    mixed = (to_channels(block, channels, source.layout) for block in source.blocks())
    return resampled(mixed, source.sample_rate, sample_rate)
