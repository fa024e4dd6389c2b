"""Uncompressed sound in WAV, RF64, W64, AIFF, AU and CAF, by what the file holds rather than what it claims.

``headers.py`` finds where the samples lie; here they become floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.source import Source


@dataclass(frozen=True)
class Pcm:
    """Where the samples of a file lie, and what they are.

    Attributes:
        sample_rate: in Hz.
        channels: number of channels, interleaved.
        layout: their names; empty when the file does not say.
        coding: ``u1``, ``i1`` to ``i4``, ``f4``, ``f8`` after ``<`` or ``>``; or ``alaw``, ``ulaw``.
        start: first byte of the samples.
        stop: first byte after those that are there.
        declared: how many bytes the header gives for sure; None where it leaves that open.
        end: first byte after this recording, where another may begin.
        notes: what is odd about the header.
    """

    sample_rate: int
    channels: int
    layout: tuple[str, ...]
    coding: str
    start: int
    stop: int
    declared: int | None
    end: int
    notes: tuple[Note, ...] = ()

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * (1 if self.coding in _LAWS else int(self.coding[2:]))


class PcmDecoder:
    """Reads what ``headers.find_pcm`` found. A sample that was cut in two at the end is left out."""

    tolerance_samples = 0
    streams = 1

    def __init__(self, source: Source, pcm: Pcm) -> None:
        self._source, self._pcm = source, pcm
        self.sample_rate, self.channels, self.layout = pcm.sample_rate, pcm.channels, pcm.layout
        present = pcm.stop - pcm.start
        length = present if pcm.declared is None else pcm.declared
        self.samples: int | None = length // pcm.frame_bytes
        self.notes: list[Note] = list(pcm.notes)

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        size = self._pcm.frame_bytes
        position = self._pcm.start
        while position + size <= self._pcm.stop:
            wanted = min(block_samples * size, (self._pcm.stop - position) // size * size)
            raw = self._source.read_at(position, wanted)
            frames = len(raw) // size
            if not frames:
                return
            position += frames * size
            values = to_floats(raw[: frames * size], self._pcm.coding)
            yield np.ascontiguousarray(values.reshape(frames, self.channels).T)

    def close(self) -> None:
        """See ``Decoder``."""


def to_floats(raw: bytes, coding: str) -> NDArray[np.float32]:
    """Samples in a ``Pcm.coding`` to float32, full scale at 1."""
    if coding in _LAWS:
        return _LAWS[coding][np.frombuffer(raw, np.uint8)]
    kind, size = coding[1], int(coding[2:])
    if kind == "f":
        with np.errstate(over="ignore"):  # what overflows becomes inf, which the reader then names
            return np.frombuffer(raw, coding).astype(np.float32)
    if kind == "u":
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if size == 3:
        return _from_24_bits(raw, coding[0])
    values = np.frombuffer(raw, coding).astype(np.float32)
    values *= np.float32(2.0 ** (1 - 8 * size))
    return values


def _from_24_bits(raw: bytes, order: str) -> NDArray[np.float32]:
    """24 bits, put into the upper three bytes of 32."""
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    triples = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    if order == "<":
        wide[:, 1:] = triples
    else:
        wide[:, :3] = triples
    values = wide.reshape(-1).view(f"{order}i4").astype(np.float32)
    values *= np.float32(2.0**-31)
    return values


def _mu_law() -> NDArray[np.float32]:
    """ITU-T G.711, table 2: sign, 3 bits of segment, 4 of step, all inverted."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    size = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _a_law() -> NDArray[np.float32]:
    """ITU-T G.711, table 1: every other bit inverted."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment, step = code >> 4 & 7, (code & 0x0F) << 4
    size = np.where(segment == 0, step + 8, step + 0x108 << np.maximum(segment - 1, 0))
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


_LAWS = {"alaw": _a_law(), "ulaw": _mu_law()}
