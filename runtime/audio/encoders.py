"""The formats that stems can be written in, and one encoder for each family of them.

wav, wav16, wav24   WavEncoder     RIFF, or RF64 once the file is too long for it
flac, flac16        SndfileEncoder integers, exactly those that reading gives back
ogg, mp3            SndfileEncoder
m4a                 AacEncoder     FFmpeg's AAC, imported only when asked for
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.tags import SNDFILE_STRINGS, Tags, riff_chunks
from tfswa.runtime.errors import UsageError

# What RIFF's 32-bit sizes can say.
RIFF_LIMIT = 0xFFFF_FFFF

# libvorbis crashes the process on one write of some million samples: it keeps them on the stack.
_WRITE_SAMPLES = 1 << 14


@dataclass(frozen=True)
class Format:
    """A format by its name on the command line.

    Attributes:
        name: as given to ``--format``.
        extension: of the file, with the dot.
        container: WAV, FLAC, OGG, MP3 or MP4.
        subtype: the coding, in soundfile's words; AAC for MP4.
        lossless: whether the file has exactly the samples it was given.
        bits: of an integer format; 0 for float and lossy ones.
        rates: the only sample rates it can hold, in Hz; None where a range is meant.
        highest_rate: in Hz; 0 for no limit.
        any_rate_to: rates above must be multiples of 10 Hz (FLAC's frame header); 0 for no such rule.
        holds_nothing: whether a file of 0 samples can be read back.
    """

    name: str
    extension: str
    container: str
    subtype: str
    lossless: bool = True
    bits: int = 0
    rates: tuple[int, ...] | None = None
    highest_rate: int = 0
    any_rate_to: int = 0
    holds_nothing: bool = True

    @property
    def is_float(self) -> bool:
        """Whether samples beyond full scale are kept as they are."""
        return self.lossless and self.bits == 0

    @property
    def bytes_per_sample(self) -> int:
        """Of one channel; 0 where it depends on the music."""
        return (self.bits // 8 or 4) if self.container == "WAV" else 0

    def holds(self, rate: int) -> bool:
        """Whether a sample rate, in Hz, is possible."""
        if self.rates is not None:
            return rate in self.rates
        if self.highest_rate and rate > self.highest_rate:
            return False
        return not (self.any_rate_to and rate > self.any_rate_to and rate % 10)

    def rates_in_words(self) -> str:
        """For messages."""
        if self.rates is not None:
            return ", ".join(str(rate) for rate in self.rates[:-1]) + f" and {self.rates[-1]} Hz"
        words = f"up to {self.highest_rate} Hz"
        return words + (f", multiples of 10 above {self.any_rate_to}" if self.any_rate_to else "")


_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_AAC_RATES = (7350, *_MPEG_RATES, 64000, 88200, 96000)
_FLAC_RATES: dict[str, Any] = {"highest_rate": 655_350, "any_rate_to": 65_535}

# Rates as libsndfile 1.2.2 and FFmpeg 8 accept them, tried one by one. Vorbis above 200 kHz crashes the
# process inside libvorbis.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("wav", ".wav", "WAV", "FLOAT"),
        Format("wav32f", ".wav", "WAV", "FLOAT"),
        Format("wav24", ".wav", "WAV", "PCM_24", bits=24),
        Format("wav16", ".wav", "WAV", "PCM_16", bits=16),
        Format("flac", ".flac", "FLAC", "PCM_24", bits=24, **_FLAC_RATES),
        Format("flac16", ".flac", "FLAC", "PCM_16", bits=16, **_FLAC_RATES),
        Format("ogg", ".ogg", "OGG", "VORBIS", lossless=False, highest_rate=200_000),
        Format(
            "mp3", ".mp3", "MP3", "MPEG_LAYER_III", lossless=False, rates=_MPEG_RATES, holds_nothing=False
        ),
        Format("m4a", ".m4a", "MP4", "AAC", lossless=False, rates=_AAC_RATES, holds_nothing=False),
    )
}


def check_format(name: str, sample_rate: int) -> Format:
    """The format of that name, if it can hold that rate.

    Raises:
        UsageError: no such format, or one that cannot hold ``sample_rate`` (Hz).
    """
    if name not in FORMATS:
        raise UsageError(f"format {name!r} is not known: choose one of {', '.join(FORMATS)}")
    format = FORMATS[name]
    if not format.holds(sample_rate):
        raise UsageError(
            f"{name} cannot hold {sample_rate} Hz; it holds {format.rates_in_words()}: choose wav"
            + (" or flac" if FORMATS["flac"].holds(sample_rate) else "")
        )
    return format


class Encoder(Protocol):
    """Writes one file. ``close`` must be called, also after an error."""

    def write(self, block: Block) -> None:
        """Append ``[C, n]``."""

    def close(self) -> None:
        """Complete the file."""


def open_encoder(format: Format, path: Path, sample_rate: int, channels: int, tags: Tags) -> Encoder:
    """Begin a file. WAV, Ogg and M4A take their tags here, FLAC and MP3 once they are closed.

    Raises:
        OSError, soundfile.LibsndfileError: the file cannot be made.
    """
    if format.container == "WAV":
        return WavEncoder(path, sample_rate, channels, format.bits, riff_chunks(tags))
    if format.container == "MP4":
        from tfswa.runtime.audio.aac import AacEncoder  # FFmpeg's libraries are slow to load

        return AacEncoder(path, sample_rate, channels, tags)
    return SndfileEncoder(format, path, sample_rate, channels, tags)


def to_integers(block: Block, bits: int) -> NDArray[np.int32]:
    """Nearest integers of ``bits`` bits, limited to their range; full scale is 2**(bits - 1).

    The inverse of how integers are read, so that a file that passes through unchanged stays the same.
    float64 because float32 has no room for the half that decides the rounding of 24 bits.
    """
    scale = float(1 << (bits - 1))
    return np.clip(np.rint(block.astype(np.float64) * scale), -scale, scale - 1).astype(np.int32)


class WavEncoder:
    """WAV, written by hand so that a file of any length is right without knowing the length first.

    ::

        RIFF <size> WAVE | JUNK 28 bytes | fmt | fact | data ... | LIST INFO | id3
        RF64 -1     WAVE | ds64 28 bytes | fmt | fact | data ...           (EBU Tech 3306)

    The first form turns into the second, in place, where a size does not fit into 32 bits.
    """

    def __init__(self, path: Path, sample_rate: int, channels: int, bits: int, trailer: bytes) -> None:
        self._bits = bits
        self._trailer = trailer
        self._frame_bytes = channels * (bits // 8 or 4)
        self._data_bytes = 0
        code, width = (1, bits) if bits else (3, 32)  # PCM or IEEE float
        fmt = struct.pack(
            "<HHIIHH", code, channels, sample_rate, sample_rate * self._frame_bytes, self._frame_bytes, width
        )
        if not bits:
            fmt += b"\0\0"  # no extension, a field that only float has
        self._head = b"fmt " + struct.pack("<I", len(fmt)) + fmt
        self._file: BinaryIO = path.open("wb")
        self._file.write(self._header(0, 0))

    def _header(self, riff_bytes: int, samples: int) -> bytes:
        large = max(riff_bytes, self._data_bytes, samples) > RIFF_LIMIT
        sizes = struct.pack("<QQQI", riff_bytes, self._data_bytes, samples, 0) if large else bytes(28)
        riff, data, count = (RIFF_LIMIT,) * 3 if large else (riff_bytes, self._data_bytes, samples)
        if large:  # RIFF_LIMIT may be lowered to try this out; the marker in the file may not
            riff = data = count = 0xFFFF_FFFF
        return (
            (b"RF64" if large else b"RIFF")
            + struct.pack("<I", riff)
            + b"WAVE"
            + (b"ds64" if large else b"JUNK")
            + struct.pack("<I", 28)
            + sizes
            + self._head
            + b"fact"
            + struct.pack("<II", 4, count)
            + b"data"
            + struct.pack("<I", data)
        )

    def write(self, block: Block) -> None:
        """See ``Encoder``."""
        if self._bits == 24:
            wide = to_integers(block, 24).T.astype("<i4", order="C")  # [n, C]
            raw = wide.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()  # the low three bytes of each
        else:
            samples = to_integers(block, self._bits) if self._bits else block
            raw = samples.T.astype("<i2" if self._bits else "<f4").tobytes()
        self._file.write(raw)
        self._data_bytes += len(raw)

    def close(self) -> None:
        """See ``Encoder``."""
        if self._file.closed:
            return
        with self._file as file:
            file.write(b"\0" * (self._data_bytes % 2) + self._trailer)
            riff_bytes = file.tell() - 8
            file.seek(0)
            file.write(self._header(riff_bytes, self._data_bytes // self._frame_bytes))


class SndfileEncoder:
    """FLAC at level 5, Vorbis at quality 7 (about 230 kbit/s), MP3 at 320 kbit/s or the rate's most."""

    def __init__(self, format: Format, path: Path, sample_rate: int, channels: int, tags: Tags) -> None:
        self._bits = format.bits
        self._path = path
        self._shape = (sample_rate, channels, format.bits)
        self._empty = True
        quality: dict[str, Any] = {}
        if format.container == "OGG":
            quality = {"compression_level": 0.3}
        elif format.container == "MP3":
            quality = {"compression_level": 0.0, "bitrate_mode": "CONSTANT"}
        self._file = soundfile.SoundFile(
            os.fsencode(path), "w", sample_rate, channels, format.subtype, format=format.container, **quality
        )
        if format.container == "OGG":
            for name, attribute in SNDFILE_STRINGS.items():
                if name in tags.fields:
                    setattr(self._file, attribute, tags.fields[name])

    def write(self, block: Block) -> None:
        """See ``Encoder``."""
        frames: NDArray[Any] = block.T
        self._empty = self._empty and not len(frames)
        if self._bits:
            # libsndfile takes the top bits of an int32; its own conversion of floats rounds otherwise.
            frames = to_integers(block, self._bits).T << (32 - self._bits)
        for start in range(0, len(frames), _WRITE_SAMPLES):
            try:
                self._file.write(np.ascontiguousarray(frames[start : start + _WRITE_SAMPLES]))
            except AssertionError as error:  # how soundfile says that not all was written
                raise OSError(28, "no space left") from error

    def close(self) -> None:
        """See ``Encoder``."""
        if self._file.closed:
            return
        self._file.close()
        if self._empty and self._bits:
            # libsndfile begins a FLAC file with its first sample, and leaves one of 0 bytes without.
            self._path.write_bytes(_empty_flac(*self._shape))


def _empty_flac(sample_rate: int, channels: int, bits: int) -> bytes:
    """A FLAC file of 0 samples: STREAMINFO alone (RFC 9639, section 8.2)."""
    packed = sample_rate << 44 | (channels - 1) << 41 | (bits - 1) << 36
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8) + bytes(16)
    return b"fLaC\x80" + len(info).to_bytes(3) + info
