"""What a decoder is, and the one for files that libsndfile reads; ``ffmpeg.py`` has the other.

Decoders neither check nor convert anything: ``reading.py`` does, once, for both.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, UsageError

logger = logging.getLogger(__name__)

Block = NDArray[np.float32]

# Channel orders of WAV and FLAC, by number of channels; FFmpeg's native names.
LAYOUTS: dict[int, tuple[str, ...]] = {
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


# libsndfile answers its largest integer where the length is unknown.
_UNKNOWN = 1 << 62


class Decoder(Protocol):
    """What ``audio.AudioSource`` needs of a decoder.

    Attributes:
        sample_rate: in Hz.
        channels: number of channels, in the order of ``layout``.
        layout: FFmpeg's names of the channels, e.g. ``("FL", "FR")``; empty when unknown.
        samples: length per channel that the file declares, or None.
        tolerance_samples: how far ``samples`` may be off in a file that is whole.
        streams: number of audio streams in the file.
    """

    sample_rate: int
    channels: int
    layout: tuple[str, ...]
    samples: int | None
    tolerance_samples: int
    streams: int

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """Decoded float32 ``[C, n]``, n about ``block_samples``, in order, once."""

    def close(self) -> None:
        """Release the file."""


class UnsuitableFile(Exception):
    """Not a file for this decoder; the text says why, another decoder may take it."""


class SndfileDecoder:
    """wav, flac, ogg, mp3, aiff and the rest of what libsndfile reads, told apart by content.

    Raises:
        UnsuitableFile: not a file that libsndfile reads; an Ogg file of more than two channels, which it
            hands out in Vorbis order (L C R ...) as if that were WAV's (L R C ...); or a FLAC file whose
            header leaves the length open (streamed, or empty), which soundfile fails to read.
    """

    tolerance_samples = 0
    streams = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = soundfile.SoundFile(os.fsencode(path.absolute()))
        except soundfile.LibsndfileError as error:
            raise UnsuitableFile(f"libsndfile: {one_line(error.error_string)}") from error
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.layout = LAYOUTS.get(self.channels, ())
        frames = int(self._file.frames)
        refusal = ""
        if self._file.format == "OGG" and self.channels > 2:
            refusal = "channels in Vorbis order"
        elif frames >= _UNKNOWN:
            refusal = "unknown length"
        if refusal:
            self.close()
            raise UnsuitableFile(f"libsndfile: {refusal}")
        self.samples: int | None = self._declared(frames)

    def _declared(self, frames: int) -> int:
        """The length that a WAV header claims; libsndfile itself quietly goes by the size of the file."""
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if cut is None or frames == 0:
            return frames
        claimed, present = int(cut[1]), int(cut[2])
        # Streamed WAVs say 0 or about 2**32 because their length was not known when they began.
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
                # A hole in an Ogg or MP3 stream: libsndfile hands out less than it was asked for.
                logger.warning("%s: damaged at %.3f s", self._path, done / self.sample_rate)
            yield np.ascontiguousarray(block.T)

    def close(self) -> None:
        """See ``Decoder``."""
        self._file.close()


def check_stream(path: Path, stream: int, streams: int) -> int:
    """``stream`` if it is one of ``streams``; UsageError otherwise."""
    if not 0 <= stream < streams:
        raise UsageError(
            f"{path}: audio stream {stream} is not there, the file has {streams}: "
            + ("use 0" if streams == 1 else f"choose 0 to {streams - 1}")
        )
    return stream


def one_line(error: object) -> str:
    """A library's message without line breaks or a full stop."""
    return " ".join(str(error).split()).rstrip(". ")
