"""FLAC: the channels' names, recordings that were joined, and what is whole of a damaged one.

libsndfile decodes them up to the first damage, FFmpeg the frames that follow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np

from tfswa.runtime.audio.decoders import SndfileDecoder, UnsuitableFile
from tfswa.runtime.audio.flac_frames import after_last_frame, whole_frames
from tfswa.runtime.audio.layouts import LAYOUTS, Block, mask_layout
from tfswa.runtime.audio.source import Source
from tfswa.runtime.audio.whole import rest_note
from tfswa.runtime.errors import AudioError

_MAGIC = b"fLaC"
# "fLaC", then a STREAMINFO block, which has 34 bytes: nothing that occurs in coded sound by chance.
_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SCAN_BYTES = 1 << 18
_LARGEST_COMMENT = 1 << 20
_COMMENT = 4
_MASK = re.compile(rb"waveformatextensible_channel_mask=0x([0-9a-f]{1,8})", re.IGNORECASE)


class FlacDecoder(SndfileDecoder):
    """One FLAC stream. Its first metadata names the channels where they are not the usual ones."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        blocks, sound = metadata(source, start)
        super().__init__(source, start, stop)
        self._place = source, sound, stop, source.read_at(start + 8, 34)
        end = after_last_frame(*self._place)
        rest = None if end is None else rest_note(source, end, stop, "its last frame")
        self.notes += [] if rest is None else [rest]
        self.layout = LAYOUTS.get(self.channels, ())  # RFC 9639, 9.1.3
        for kind, at, size in blocks:
            if kind == _COMMENT:
                found = _MASK.search(source.read_at(at, min(size, _LARGEST_COMMENT)))
                if found is not None:
                    self.layout = mask_layout(int(found[1], 16), self.channels) or self.layout

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        done = 0
        try:
            for block in super().blocks(block_samples):
                done += block.shape[1]
                yield block
        except AudioError as error:
            damage = error
        else:
            return
        any_whole = False
        for block in self._around(done):
            any_whole = True
            yield block
        if not (done or any_whole):
            raise damage

    def _around(self, done: int) -> Iterator[Block]:
        """All whole frames from a sample on, with silence for those that are damaged."""
        for position, block in whole_frames(*self._place):
            if position > done:
                gap = position - done
                self._damage.hole(gap / self.sample_rate, done / self.sample_rate)
                yield np.zeros((self.channels, gap), np.float32)
                done = position
            if position + block.shape[1] > done:
                yield block[:, done - position :]
                done = position + block.shape[1]


def metadata(source: Source, start: int) -> tuple[list[tuple[int, int, int]], int]:
    """Kind, place and size of each metadata block, and where the sound begins.

    Raises:
        UnsuitableFile: no FLAC stream begins at ``start``.
    """
    if source.read_at(start, 4) != _MAGIC:
        raise UnsuitableFile("no FLAC stream")
    blocks, position = [], start + 4
    while True:
        head = source.read_at(position, 4)
        if len(head) < 4:
            raise UnsuitableFile("FLAC: its metadata is cut")
        kind, size = head[0], int.from_bytes(head[1:])
        blocks.append((kind & 0x7F, position + 4, size))
        position += 4 + size
        if kind & 0x80:
            return blocks, position


def streams(source: Source, start: int) -> list[int]:
    """First byte of each FLAC stream from ``start`` on, ``start`` included.

    Raises:
        UnsuitableFile: none begins there.
    """
    _, position = metadata(source, start)
    found = [start]
    while position < source.size:
        data = source.read_at(position, _SCAN_BYTES)
        at = data.find(_MAGIC)  # quicker than the expression
        while at >= 0:
            found += [position + at] if _BEGIN.match(data, at) else []
            at = data.find(_MAGIC, at + 1)
        position += max(1, len(data) - 7) if len(data) > 7 else len(data) or source.size
    return found


def streaminfo_samples(source: Source, start: int) -> int:
    """The length that STREAMINFO gives; 0 where it leaves that open."""
    head = source.read_at(start + 8, 34)
    return struct.unpack(">Q", head[10:18])[0] & ((1 << 36) - 1) if len(head) == 34 else 0
