"""A song's signals as files: a block at a time is in memory, however long the song."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]

BLOCK = 1 << 18  # samples


class Signal(Protocol):
    """``[C, N]``, real: an array, or what is read or made in parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, N)``."""

    def __getitem__(self, part: tuple[slice, slice], /) -> NDArray[Any]:
        """Channels, all of them, and samples from start to stop, both 0 or more."""


class Stored:
    """One signal ``[C, N]`` of a ``.npy`` file of ``[S, C, N]`` or ``[C, N]``, float32.

    The file is read, not mapped: pages of a mapping would count as the process's own.

    Args:
        path: the file.
        shape: of the signal.
        offset: where in the file it begins, bytes.
    """

    def __init__(self, path: Path, shape: tuple[int, int], offset: int) -> None:
        self._path, self.shape, self._offset = path, shape, offset

    def __getitem__(self, part: tuple[slice, slice], /) -> Audio:
        channels, samples = self.shape
        start, stop, _ = part[1].indices(samples)
        found = np.empty((channels, max(0, stop - start)), np.float32)
        with self._path.open("rb", buffering=0) as stream:
            for channel, row in enumerate(found):
                stream.seek(self._offset + 4 * (channel * samples + start))
                row[:] = np.fromfile(stream, np.float32, len(row))
        return found[part[0]]


class Silence:
    """Zeros.

    Args:
        shape: ``(C, N)``.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, part: tuple[slice, slice], /) -> Audio:
        return np.broadcast_to(np.float32(0.0), self.shape)[part]


class Difference:
    """One signal less another.

    Args:
        whole: the first.
        part: what is taken away; of its shape.
    """

    def __init__(self, whole: Signal, part: Signal) -> None:
        self._whole, self._part, self.shape = whole, part, whole.shape

    def __getitem__(self, part: tuple[slice, slice], /) -> NDArray[Any]:
        difference: NDArray[Any] = self._whole[part] - self._part[part]
        return difference


class SignalWriter:
    """Writes a ``.npy`` file of ``[S, C, N]``, float32, block by block.

    Args:
        path: of the file, which is replaced.
        shape: ``(S, C, N)``.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self._path, self._shape, self.written = path, shape, 0
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            self._offset = stream.tell()
            stream.truncate(self._offset + 4 * int(np.prod(shape)))

    def write(self, block: Audio) -> None:
        """Append samples, ``[S, C, n]``."""
        stems, channels, samples = self._shape
        rows = block.reshape(stems * channels, -1)
        with self._path.open("r+b", buffering=0) as stream:
            for number, row in enumerate(rows):
                stream.seek(self._offset + 4 * (number * samples + self.written))
                stream.write(np.ascontiguousarray(row, np.float32).data)
        self.written += rows.shape[1]


def stored(path: Path) -> list[Stored]:
    """The signals of a ``.npy`` file of ``[S, C, N]``, or the one of a file of ``[C, N]``."""
    whole = np.load(path, mmap_mode="r")
    channels, samples = whole.shape[-2:]
    count = whole.size // (channels * samples) if samples else len(whole)
    size = 4 * channels * samples
    return [Stored(path, (channels, samples), whole.offset + size * number) for number in range(count)]


def store_signals(path: Path, signals: Sequence[Audio]) -> None:
    """Write signals ``[C, N]`` of one shape, without a copy of them all."""
    channels, samples = signals[0].shape
    writer = SignalWriter(path, (len(signals), channels, samples))
    for start, stop in starts(samples, BLOCK):
        writer.write(np.stack([signal[:, start:stop] for signal in signals]))


def excerpt(signal: Signal, start: int, stop: int) -> NDArray[np.float64]:
    """Samples of a signal in float64, ``[C, stop - start]``; zero before its start and after its end."""
    inside = signal[:, max(0, start) : max(0, stop)].astype(np.float64)
    before = min(max(0, -start), stop - start)
    return np.pad(inside, ((0, 0), (before, stop - start - before - inside.shape[1])))


def starts(samples: int, block: int) -> Iterator[tuple[int, int]]:
    """Start and stop of blocks that cover a signal."""
    return ((start, min(samples, start + block)) for start in range(0, samples, block))
