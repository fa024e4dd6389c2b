"""Audio in: any file to finite float32 blocks ``[C, N]`` at the model's rate and channels, in bounded memory.

    open_audio -> AudioSource.blocks -> to_channels -> resampled        (model_blocks does all of it)

libsndfile reads what it can (wav, flac, ogg, mp3, aiff ...), chosen by content, not by name; FFmpeg reads
the rest. Sample 0 of the file is sample 0 of the first block, whatever the codec's delay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soxr

from tfswa.runtime.audio.decoders import (
    LAYOUTS,
    Block,
    Decoder,
    SndfileDecoder,
    UnsuitableFile,
    check_stream,
    one_line,
)
from tfswa.runtime.errors import AudioError

logger = logging.getLogger(__name__)

BLOCK_SAMPLES = 1 << 16

# ITU-R BS.775-3, table 2: center and surrounds at -3 dB; a single surround (Cs) is shared by both sides,
# -3 dB each, on top of that; LFE is dropped. Not normalized: louder than full scale is possible.
_HALF_POWER = float(np.sqrt(0.5))
_TO_STEREO: dict[str, tuple[float, float]] = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0.0, 0.0),
    "BL": (_HALF_POWER, 0.0),
    "BR": (0.0, _HALF_POWER),
    "SL": (_HALF_POWER, 0.0),
    "SR": (0.0, _HALF_POWER),
    "BC": (0.5, 0.5),
}


class AudioSource:
    """An open audio file; a context manager. Get one from ``open_audio``.

    Attributes:
        path: the file.
        sample_rate: native, in Hz.
        channels: native number of channels.
        layout: names of the channels in FFmpeg's spelling, e.g. ``("FL", "FR")``; empty when unknown.
        samples: length per channel that the file declares, None if it does not; what is read may differ.
        streams: number of audio streams in the file.
        samples_read: native samples per channel handed out so far; after ``blocks`` has ended, the length.
    """

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self._decoder = decoder
        self.path = path
        self.sample_rate = decoder.sample_rate
        self.channels = decoder.channels
        self.layout = decoder.layout
        self.samples = decoder.samples
        self.streams = decoder.streams
        self.samples_read = 0

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[Block]:
        """Read the file once, from start to end.

        Args:
            block_samples: samples per block, per channel; FFmpeg's frames are not cut, so blocks vary.

        Yields:
            float32 ``[C, n]`` at the native rate, finite, owned by the caller.

        Raises:
            AudioError: the file is damaged, or holds NaN or Inf.
        """
        for block in self._decoder.blocks(block_samples):
            self._check_finite(block)
            self.samples_read += block.shape[1]
            yield block
        if self.samples is not None and self.samples_read + self._decoder.tolerance_samples < self.samples:
            logger.warning(
                "%s ends at %.3f s, but declares %.3f s: the rest is missing or damaged",
                self.path,
                self.samples_read / self.sample_rate,
                self.samples / self.sample_rate,
            )

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(path: Path, *, stream: int = 0) -> AudioSource:
    """Open an audio or video file for reading.

    Args:
        path: the file; its content decides how it is read, not its extension.
        stream: which audio stream, from 0; only containers such as MP4 hold more than one.

    Raises:
        AudioError: no such file, a directory, empty, not audio, or without an audio stream.
        UsageError: the file has no such stream.
    """
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a directory, not an audio file: name a file in it")
        if path.stat().st_size == 0 and path.is_file():
            raise AudioError(f"{path} is empty (0 bytes): use a file that holds audio")
        decoder = _open_decoder(path, stream)
    except OSError as error:
        raise AudioError(f"{path} cannot be opened: {one_line(error.strerror)}: check the path") from error
    return AudioSource(path, decoder)


def _open_decoder(path: Path, stream: int) -> Decoder:
    try:
        decoder = SndfileDecoder(path)
    except UnsuitableFile as error:
        refusal = str(error)
    else:
        try:
            check_stream(path, stream, decoder.streams)
        except BaseException:
            decoder.close()
            raise
        return decoder
    from tfswa.runtime.audio.ffmpeg import FFmpegDecoder  # slow to load, see there

    try:
        return FFmpegDecoder(path, stream)
    except UnsuitableFile as error:
        raise AudioError(
            f"{path} cannot be decoded as audio ({refusal}; {error}): "
            "convert it to wav or flac, or use another copy"
        ) from error


def to_channels(block: Block, channels: int, layout: tuple[str, ...] = ()) -> Block:
    """Bring a block to a model's channels.

    Mono to stereo duplicates; stereo to mono is the mean; 3 to 8 channels to stereo follow ITU-R BS.775;
    those to mono are the mean of that stereo.

    Args:
        block: float32 ``[C, n]``.
        channels: M, 1 or 2.
        layout: names of the C channels, for files that order them otherwise than WAV does (AAC's 4.0 has
            L R C Cs); left out, or with a name that is unknown here, WAV's order for C is taken.

    Returns:
        float32 ``[M, n]``; the block itself if C is M.

    Raises:
        AudioError: more than 8 channels.
    """
    count = block.shape[0]
    if count == channels:
        return block
    if count == 1:
        return np.repeat(block, channels, axis=0)
    if count > 2:
        if count not in LAYOUTS:
            raise AudioError(
                f"{count} channels are more than the {max(LAYOUTS)} that can be mixed down to {channels}: "
                "mix the file down to stereo first"
            )
        known = len(layout) == count and all(name in _TO_STEREO for name in layout)
        weights = [_TO_STEREO[name] for name in (layout if known else LAYOUTS[count])]
        block = np.asarray(weights, np.float32).T @ block  # [2, C] @ [C, n]
    return block if channels == 2 else block.mean(axis=0, keepdims=True, dtype=np.float32)


def output_channels(source_channels: int, model_channels: int) -> int:
    """Channels of the files written: mono stays mono, all else takes the model's count."""
    return 1 if source_channels == 1 else model_channels


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
    mixed = (to_channels(block, channels, source.layout) for block in source.blocks())
    return resampled(mixed, source.sample_rate, sample_rate)
