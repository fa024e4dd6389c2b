"""FLAC: the channels' names, and recordings that were joined; libsndfile decodes them."""

from __future__ import annotations

import re
import struct

from tfswa.runtime.audio.decoders import SndfileDecoder, UnsuitableFile
from tfswa.runtime.audio.layouts import LAYOUTS, mask_layout
from tfswa.runtime.audio.source import Source

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
        blocks, _ = metadata(source, start)
        super().__init__(source, start, stop)
        self.layout = LAYOUTS.get(self.channels, ())  # RFC 9639, 9.1.3
        for kind, at, size in blocks:
            if kind == _COMMENT:
                found = _MASK.search(source.read_at(at, min(size, _LARGEST_COMMENT)))
                if found is not None:
                    self.layout = mask_layout(int(found[1], 16), self.channels) or self.layout


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
