"""Pages of Ogg (RFC 3533): found, checked against their checksum, and taken apart into packets.

OggS | version | flags | granule 8 | serial 4 | number 4 | checksum 4 | n | n segment sizes | body
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tfswa.runtime.audio.source import Source

_HEAD = struct.Struct("<4sBBqIIIB")
_LARGEST_PAGE = 27 + 255 + 255 * 255
_READ_BYTES = 1 << 18

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        granule: position at the end of the last packet that ends in it; -1 where none does.
        serial: which stream it belongs to.
        number: counts the pages of that stream.
        segments: sizes of the pieces of its body; a packet ends with a piece below 255.
        body: the pieces.
        continued: whether it begins inside a packet.
        first: whether it begins a stream.
        last: whether it ends one.
        after_damage: whether something before it did not parse.
        end: first byte behind it, in the file.
    """

    granule: int
    serial: int
    number: int
    segments: bytes
    body: bytes
    continued: bool
    first: bool
    last: bool
    after_damage: bool
    end: int

    def pieces(self) -> Iterator[tuple[bytes, bool]]:
        """Its packets, each with whether it ends here; the first may be the rest of one."""
        begin = end = 0
        for size in self.segments:
            end += size
            if size < 255:
                yield self.body[begin:end], True
                begin = end
        if end > begin or (self.segments and self.segments[-1] == 255):
            yield self.body[begin:end], False


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page whose own checksum is 0.

    The polynomial is zlib's, the bits run the other way, and there is no inversion.
    """
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)


def read_pages(source: Source, start: int = 0) -> Iterator[Page]:
    """All pages of a file that are whole, from a byte on; what is in between is left out."""
    buffer, position, damaged = b"", start, False
    while True:
        if len(buffer) < _LARGEST_PAGE:
            more = source.read_at(position, _READ_BYTES)
            position += len(more)
            buffer += more
        begin = buffer.find(b"OggS")
        if begin < 0:
            damaged |= len(buffer) > 0
            buffer = buffer[-3:] if position < source.size else b""
            if position >= source.size:
                return
            continue
        damaged |= begin > 0
        page, size = _parse(buffer, begin, damaged, position - len(buffer))
        if page is not None:
            damaged = False
            yield page
        elif begin + _LARGEST_PAGE > len(buffer) and position < source.size:
            buffer = buffer[begin:]
            more = source.read_at(position, _READ_BYTES)
            position += len(more)
            buffer += more
            if not more:
                return
            continue
        else:
            damaged, size = True, 4
        buffer = buffer[begin + size :]
        if not buffer and position >= source.size:
            return


def last_page(source: Source) -> Page | None:
    """The last whole page of a file; None if its end holds none."""
    found = None
    for page in read_pages(source, max(0, source.size - 2 * _LARGEST_PAGE)):
        found = page
    return found


def _parse(buffer: bytes, begin: int, damaged: bool, base: int) -> tuple[Page | None, int]:
    head = buffer[begin : begin + _HEAD.size]
    if len(head) < _HEAD.size:
        return None, 0
    _, version, flags, granule, serial, number, crc, count = _HEAD.unpack(head)
    body = begin + _HEAD.size + count
    segments = buffer[begin + _HEAD.size : body]
    end = body + sum(segments)
    if version or len(segments) < count or end > len(buffer):
        return None, 0
    if checksum(head[:22] + bytes(4) + buffer[begin + 26 : end]) != crc:
        return None, 0
    page = Page(
        granule,
        serial,
        number,
        segments,
        buffer[body:end],
        continued=bool(flags & 1),
        first=bool(flags & 2),
        last=bool(flags & 4),
        after_damage=damaged,
        end=base + end,
    )
    return page, end - begin
