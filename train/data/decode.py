"""Decoded audio on disk: one ``.npy`` file per recording, written in blocks, read by mapping.

    header | audio, float32 [C, N], sample by sample | levels, a second array | CRC-32 of all of it
    '------------------------ numpy's own format -------------------------'

The levels say how loud each span of ``LEVEL_SAMPLES`` is, so that places that sound are found without
reading the audio.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import log_notes, model_blocks, open_audio
from tfswa.runtime.errors import AudioError

Audio = NDArray[np.float32]

LEVEL_SAMPLES = 1024
_CHECK_BYTES = 4
_READ_BYTES = 1 << 22
_FORMAT = 2  # of what is written here: part of the key


class Decoded(NamedTuple):
    """A recording in memory.

    Attributes:
        audio: ``[C, N]`` float32, mapped from disk, read only.
        levels: mean square over channels per span of ``LEVEL_SAMPLES``, float32
            ``[ceil(N / LEVEL_SAMPLES)]``.
    """

    audio: Audio
    levels: NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """What is decoded as one signal: audio streams, added up; the shortest ends it.

    Attributes:
        parts: file and audio stream of each.
        sample_rate: wanted, in Hz.
        channels: wanted, 1 or 2.
    """

    parts: tuple[tuple[Path, int], ...]
    sample_rate: int
    channels: int

    @property
    def key(self) -> str:
        """Name for the decoded audio: another one for other files, other content or another form.

        Raises:
            AudioError: a file is gone.
        """
        words = [f"{_FORMAT}|{self.sample_rate}|{self.channels}"]
        for path, stream in self.parts:
            try:
                state = path.stat()
            except OSError as error:
                raise AudioError(f"{path} cannot be opened: {error.strerror}: check the path") from error
            words.append(f"{path.resolve()}|{stream}|{state.st_size}|{state.st_mtime_ns}")
        return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def expected_bytes(self) -> int:
        """Size once decoded, as far as the files declare their length; 0 where they do not.

        Raises:
            AudioError: a file cannot be opened.
        """
        lengths = []
        for path, stream in self.parts:
            with open_audio(path, stream=stream) as source:
                if source.samples is not None:
                    lengths.append(math.ceil(source.samples / source.sample_rate * self.sample_rate))
        samples = min(lengths, default=0)
        return 4 * (samples * self.channels + samples // LEVEL_SAMPLES) + 512 + _CHECK_BYTES if samples else 0

    def write(self, file: IO[bytes]) -> None:
        """Decode into an empty file, in bounded memory.

        Raises:
            AudioError: a file cannot be decoded.
        """
        _write_header(file, self.channels, 0)
        begin, samples, check = file.tell(), 0, 0
        meter = _Meter()
        with ExitStack() as stack:
            sources = [stack.enter_context(open_audio(path, stream=stream)) for path, stream in self.parts]
            streams = [model_blocks(source, self.sample_rate, self.channels) for source in sources]
            for block in _summed(streams):
                rows = np.ascontiguousarray(block.T, dtype="<f4").data  # [n, C]
                file.write(rows)
                check = zlib.crc32(rows, check)
                meter.push(block)
                samples += block.shape[1]
            for source in sources:
                log_notes(source)
        levels, header = io.BytesIO(), io.BytesIO()
        npy.write_array(levels, meter.levels())
        _write_header(header, self.channels, samples)
        assert header.tell() == begin, "numpy pads its header so that the last axis can grow"
        check = zlib.crc32(header.getvalue(), zlib.crc32(levels.getvalue(), check))
        file.write(levels.getvalue() + check.to_bytes(_CHECK_BYTES))
        file.seek(0)
        file.write(header.getvalue())
        file.flush()


def read_decoded(path: Path) -> Decoded | None:
    """Map what ``Recording.write`` wrote; None where there is no such file, or not a whole one."""
    try:
        audio = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(audio.offset + audio.nbytes)
            levels = npy.read_array(file)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):  # gone, cut short, damaged
        return None
    return Decoded(audio, levels)


def is_intact(path: Path) -> bool:
    """Whether all that ``Recording.write`` wrote is as it was: reads the whole file."""
    try:
        with path.open("rb") as file:
            header = file.read(npy.MAGIC_LEN + 2)
            header += file.read(int.from_bytes(header[-2:], "little"))
            left, check = os.fstat(file.fileno()).st_size - len(header) - _CHECK_BYTES, 0
            while left > 0:
                block = file.read(min(left, _READ_BYTES))
                if not block:
                    return False
                check, left = zlib.crc32(block, check), left - len(block)
            return file.read() == zlib.crc32(header, check).to_bytes(_CHECK_BYTES)
    except OSError:
        return False


def levels_of(audio: Audio) -> NDArray[np.float32]:
    """``Decoded.levels`` of audio ``[C, N]``."""
    meter = _Meter()
    for start in range(0, audio.shape[1], LEVEL_SAMPLES * 64):
        meter.push(audio[:, start : start + LEVEL_SAMPLES * 64])
    return meter.levels()


class _Meter:
    """Mean squares of spans, whatever the blocks."""

    def __init__(self) -> None:
        self._done: list[NDArray[np.float32]] = []
        self._rest = np.zeros(0, np.float32)

    def push(self, block: Audio) -> None:
        power = np.concatenate((self._rest, np.square(block).mean(axis=0, dtype=np.float32)))
        whole = len(power) // LEVEL_SAMPLES * LEVEL_SAMPLES
        self._done.append(power[:whole].reshape(-1, LEVEL_SAMPLES).mean(axis=1))
        self._rest = power[whole:]

    def levels(self) -> NDArray[np.float32]:
        last = [self._rest.mean(keepdims=True)] if len(self._rest) else []
        return np.concatenate([np.zeros(0, np.float32), *self._done, *last])


def _write_header(file: IO[bytes], channels: int, samples: int) -> None:
    header = {"descr": "<f4", "fortran_order": True, "shape": (channels, samples)}
    npy.write_array_header_1_0(file, header)


def _summed(streams: list[Iterator[Audio]]) -> Iterable[Audio]:
    """Add up block streams ``[C, n]`` whose blocks differ in length, up to the end of the shortest."""
    if len(streams) == 1:
        yield from streams[0]
        return
    rests: list[Audio] = []
    for stream in streams:
        block = next(stream, None)
        if block is None:
            return
        rests.append(block)
    while True:
        count = min(rest.shape[1] for rest in rests)
        yield np.stack([rest[:, :count] for rest in rests]).sum(axis=0)
        for index, stream in enumerate(streams):
            rests[index] = rests[index][:, count:]
            if not rests[index].shape[1]:
                block = next(stream, None)
                if block is None:
                    return
                rests[index] = block
