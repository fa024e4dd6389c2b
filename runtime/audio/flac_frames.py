"""Frames of FLAC (RFC 9639, section 9): the whole ones of a damaged stream, and where the last ends.

    fLaC | metadata | frame | frame | xxxxx | frame | ...

A frame tells its place and has two checksums, but not its size: it ends where its checksum comes out right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tfswa.runtime.audio.frames import tag_size
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.source import Source

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_STEP_BYTES = 1 << 16
_LARGEST_FRAME = 1 << 20  # that is looked at
_LARGEST_HEAD = 16
_LARGEST_SEARCHED = 1 << 16  # for the end of a frame whose next header is damaged
_FEW_BYTES = 4096
_TRIES = 4  # ends of a frame that are tried
_SIZES = {1: 192, **{n: 576 << n - 2 for n in range(2, 6)}, **{n: 256 << n - 8 for n in range(8, 16)}}


class _Head(NamedTuple):
    """The header of a frame: where it lies in the data, its first sample, and how many it has."""

    at: int
    position: int
    samples: int


def whole_frames(source: Source, start: int, stop: int, streaminfo: bytes) -> Iterator[tuple[int, Block]]:
    """Position and samples ``[C, n]`` of each frame that matches its checksum, in order.

    Loads FFmpeg, which decodes them.

    Args:
        source: the file.
        start: first byte of the sound.
        stop: first byte behind the stream.
        streaminfo: the 34 bytes of that block.
    """
    fixed, total = _fixed_and_total(streaminfo)
    data, base, position, last = b"", start, 0, False
    while not last:
        data += source.read_at(base + len(data), min(2 * _LARGEST_FRAME, stop - base - len(data)))
        last = base + len(data) >= stop
        used = len(data) - _LARGEST_HEAD
        heads = [head for found in _SYNC.finditer(data) if (head := _head(data, found.start(), fixed))]
        ends = [*(head.at for head in heads), len(data)]
        for index, head in enumerate(heads):
            if not last and head.at + _LARGEST_FRAME > len(data):  # its end may not have been read yet
                used = head.at
                break
            if position <= head.position <= total - head.samples:
                block = _decoded(data, head, ends[index + 1 : index + 1 + _TRIES], streaminfo)
                if block is not None:
                    position = head.position + head.samples
                    yield head.position, block
        data, base = data[max(0, used) :], base + max(0, used)


def _decoded(data: bytes, head: _Head, ends: list[int], streaminfo: bytes) -> Block | None:
    """A frame, by the next headers or by its checksum; None where it is damaged."""
    from tfswa.runtime.audio.packets import PacketCodec  # loads FFmpeg

    for end in ends:
        blocks = PacketCodec("flac", streaminfo, checked=True).decode(data[head.at : end])
        if [block.shape[1] for block in blocks] == [head.samples]:
            return blocks[0]
    for size in _ends(data[head.at : head.at + _LARGEST_SEARCHED])[:_TRIES]:
        blocks = PacketCodec("flac", streaminfo, checked=True).decode(data[head.at : head.at + size])
        if [block.shape[1] for block in blocks] == [head.samples]:
            return blocks[0]
    return None


def _fixed_and_total(streaminfo: bytes) -> tuple[int, int]:
    """Samples of each frame but the last, where frames are numbered; and of the stream."""
    return int.from_bytes(streaminfo[:2]), int.from_bytes(streaminfo[13:18]) & ((1 << 36) - 1)


def after_last_frame(source: Source, start: int, stop: int, streaminfo: bytes) -> int | None:
    """First byte behind the last frame.

    Args:
        source: the file.
        start: first byte of the sound.
        stop: first byte behind the stream.
        streaminfo: the 34 bytes of that block, which gives the length.

    Returns:
        None where no whole frame ends at that length.
    """
    fixed, total = _fixed_and_total(streaminfo)
    begin = stop
    while begin > start:
        begin = max(start, begin - _STEP_BYTES)
        data = source.read_at(begin, min(_STEP_BYTES + _LARGEST_HEAD, stop - begin))
        for found in reversed(list(_SYNC.finditer(data))):
            head = _head(data, found.start(), fixed)
            if head is not None and head.position + head.samples == total:
                at = begin + found.start()
                end = _frame_end(at, source.read_at(at, min(_LARGEST_FRAME, stop - at)))
                if end is not None:
                    return end
    return None


def _frame_end(at: int, data: bytes) -> int | None:
    """Where a frame ends that begins the data; best before nothing or a tag."""
    ends = _ends(data)
    if not ends:
        return None
    # By chance a checksum comes out right once in 65,536 bytes. Before a few bytes the last is likelier.
    best = [end for end in ends if end == len(data) or tag_size(data[end : end + 32], 0)]
    few = len(data) - ends[-1] <= _FEW_BYTES
    return at + (best[-1] if best else ends[-1] if few else ends[0])


def _ends(data: bytes) -> list[int]:
    """Sizes for which the checksum of a frame that begins the data comes out right."""
    crc, ends = 0, []
    for count, byte in enumerate(data, 1):
        crc = (crc << 8 & 0xFFFF) ^ _CRC_16[crc >> 8 ^ byte]
        if not crc:
            ends.append(count)
    return ends


def _head(data: bytes, at: int, fixed: int) -> _Head | None:
    """The header that begins at a byte; None where none does.

    Args:
        data: bytes of the file.
        at: where two bytes of synchronization lie.
        fixed: samples of each frame but the last, in a stream whose frames are numbered.
    """
    head = data[at : at + _LARGEST_HEAD]
    if len(head) < 7:
        return None
    size_code, more = head[2] >> 4, 8 - (head[4] ^ 0xFF).bit_length()
    if size_code == 0 or head[3] >> 4 > 10 or head[3] & 1 or more == 1 or more > 7:
        return None
    number, place = head[4] & (0x7F >> more), 4 + max(1, more)
    for byte in head[5:place]:
        number = number << 6 | byte & 0x3F
    if size_code in (6, 7):
        count = int.from_bytes(head[place : place + size_code - 5]) + 1
        place += size_code - 5
    else:
        count = _SIZES[size_code]
    place += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    crc = 0
    for byte in head[: place + 1]:
        crc = _CRC_8[crc ^ byte]
    return _Head(at, number if head[1] & 1 else number * fixed, count) if not crc else None


def _table(polynomial: int, bits: int) -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
            value &= (1 << bits) - 1
        values.append(value)
    return tuple(values)


_CRC_8, _CRC_16 = _table(0x07, 8), _table(0x8005, 16)
