"""Frames of MPEG audio (layers I to III) and of AAC in ADTS: found one by one, whatever lies between them.

Nothing in front of such a stream counts its frames for sure, so all of them are walked through.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from tfswa.runtime.audio.source import Source

_BITRATES = {  # kbit/s by (version 1, layer), ISO/IEC 11172-3 and 13818-3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
_ADTS_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8000)

_READ_BYTES = 1 << 18
_LARGEST_FRAME = 1 << 13
_LARGEST_JUNK = 1 << 20  # before the first frame


class Head(NamedTuple):
    """What a frame's header says.

    Attributes:
        codec: FFmpeg's name of its decoder.
        rate: in Hz.
        channels: number of channels.
        samples: per channel; HE-AAC gives twice as many, at twice the rate.
        size: of the frame, in bytes.
        info_at: where an information frame has its letters, from the frame's start; 0 for none.
    """

    codec: str
    rate: int
    channels: int
    samples: int
    size: int
    info_at: int

    @property
    def kind(self) -> tuple[str, int, int]:
        """What stays the same from frame to frame."""
        return self.codec, self.rate, self.channels


@dataclass(frozen=True)
class Info:
    """What a Xing, Info or VBRI frame says of the recording that it begins.

    Attributes:
        frames: how many follow; None where it does not say.
        delay: samples that the encoder put before the sound; 0 where it does not say.
        padding: samples that it put behind it.
    """

    frames: int | None
    delay: int = 0
    padding: int = 0


class Piece(NamedTuple):
    """One part of a file.

    Attributes:
        kind: a frame, a tag, bytes that are neither (``junk``), or a last frame that is cut.
        data: the frame; empty for the others.
        head: of a frame.
        size: in bytes.
    """

    kind: Literal["frame", "tag", "junk", "cut"]
    data: bytes
    head: Head | None
    size: int


def head_at(data: bytes, at: int) -> Head | None:
    """The header of a frame that begins at a byte; None where none does."""
    if data[at : at + 1] != b"\xff":
        return None
    word = data[at : at + 4]
    if len(word) < 4:
        return None
    if word[1] & 0xF6 == 0xF0:
        return _adts(data[at : at + 7])
    return _mpeg(word[0:4]) if word[1] & 0xE0 == 0xE0 else None


@lru_cache(maxsize=4096)
def _mpeg(word: bytes) -> Head | None:
    version, layer = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3)
    bitrate, rate_index = word[2] >> 4, word[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate_index == 3:
        return None
    first = version == 3
    rate = _RATES[version][rate_index]
    bits = 1000 * _BITRATES[first, layer][bitrate - 1]
    padding, mono = word[2] >> 1 & 1, word[3] >> 6 == 3
    if layer == 1:
        samples, size = 384, (12 * bits // rate + padding) * 4
    else:
        samples = 1152 if first or layer == 2 else 576
        size = samples // 8 * bits // rate + padding
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return Head(f"mp{layer}float", rate, 1 if mono else 2, samples, size, 4 + side if layer == 3 else 0)


def _adts(head: bytes) -> Head | None:
    if len(head) < 7:
        return None
    rate, channels = head[2] >> 2 & 15, (head[2] & 1) << 2 | head[3] >> 6
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if rate >= len(_ADTS_RATES) or size < 8:
        return None
    return Head("aac", _ADTS_RATES[rate], channels, 1024 * ((head[6] & 3) + 1), size, 0)


def information(frame: bytes, head: Head) -> Info | None:
    """What an information frame says; None for a frame of sound."""
    at = head.info_at
    if not at:
        return None
    letters = frame[at : at + 4]
    if letters in (b"Xing", b"Info"):
        return _xing(frame[at + 4 :])
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return Info(struct.unpack(">I", frame[50:54])[0])
    return None


def _xing(data: bytes) -> Info:
    if len(data) < 4:
        return Info(None)
    flags, at, frames = data[3], 4, None
    if flags & 1:
        frames, at = int.from_bytes(data[at : at + 4]), at + 4
    at += (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    lame = data[at : at + 24]
    if len(lame) < 24 or not lame[:4].isalnum():
        return Info(frames)
    both = int.from_bytes(lame[21:24])
    return Info(frames, both >> 12, both & 0xFFF)


def tag_size(data: bytes, at: int) -> int:
    """Size of a tag that begins at a byte (ID3v2, ID3v1, APE), 0 where none does."""
    head = data[at : at + 32]
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, flags = struct.unpack("<I4xI", head[12:24])
        return int(size) + 32 if flags & 0x2000_0000 else 32
    return 0


def first_frame(source: Source, start: int) -> tuple[int, int] | None:
    """Find the first of three frames in a row, behind tags; a frame of information needs no second.

    Returns:
        Where it begins, and how many bytes in front of it are neither tag nor zero; None where there is none.
    """
    for _ in range(100):
        size = tag_size(source.read_at(start, 32), 0)
        if not size:
            break
        start += size
    data = source.read_at(start, _LARGEST_JUNK if source.read_at(start, 1) != b"\xff" else 1 << 16)
    at = data.find(b"\xff")
    while at >= 0:
        head = head_at(data, at)
        if head is not None and (
            _chained(data, at, 3, start + len(data) >= source.size)
            or information(data[at : at + head.size], head) is not None
        ):
            return start + at, len(data[:at].strip(b"\0"))
        at = data.find(b"\xff", at + 1)
    return None


def _chained(data: bytes, at: int, count: int, whole: bool) -> bool:
    """Whether so many frames of one kind follow each other; fewer do where the file ends."""
    head = head_at(data, at)
    if head is None:
        return False
    kind, found = head.kind, 0
    while head is not None and head.kind == kind:
        found, at = found + 1, at + head.size
        if found == count:
            return True
        if at >= len(data):
            return whole and found > 1
        head = head_at(data, at)
    return whole and found > 1 and len(data) - at < 4


def walk(source: Source, start: int) -> Iterator[Piece]:
    """All parts of a file from its first frame on."""
    data, base, at, ended = b"", start, 0, False
    kind: tuple[str, int, int] | None = None
    junk = 0
    while True:
        if len(data) - at < 2 * _LARGEST_FRAME and not ended:
            base, data, at = base + at, data[at:], 0
            more = source.read_at(base + len(data), _READ_BYTES)
            ended = not more
            data += more
        if at >= len(data):
            break
        head = head_at(data, at)
        if head is not None and junk and not _chained(data, at, 2 if head.kind == kind else 3, ended):
            head = None
        if head is not None and (kind is None or head.kind == kind or junk):
            if junk:
                yield Piece("junk", b"", None, junk)
                junk = 0
            frame = data[at : at + head.size]
            if len(frame) < head.size:
                yield Piece("cut", b"", head, len(frame))
                return
            kind, at = head.kind, at + head.size
            yield Piece("frame", frame, head, head.size)
            continue
        size = tag_size(data, at)
        if size:
            if junk:
                yield Piece("junk", b"", None, junk)
                junk = 0
            yield Piece("tag", b"", None, size)
            base, data, at, ended = base + at + size, b"", 0, False
            continue
        step = data.find(b"\xff", at + 1) - at
        following = min(
            (found for found in (data.find(tag, at + 1) for tag in _TAGS) if found > 0), default=-1
        )
        if following > 0 and (step < 0 or following - at < step):
            step = following - at
        step = step if step > 0 else len(data) - at
        junk, at = junk + step, at + step
    if junk:
        yield Piece("junk", b"", None, junk)


_TAGS = (b"ID3", b"TAG", b"APETAGEX")
