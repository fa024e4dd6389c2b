"""Whether a file is as long as its container says, for those that FFmpeg or libsndfile decode.

Both read what there is and say nothing when the end is missing.
"""

from __future__ import annotations

import struct

from tfswa.runtime.audio.frames import tag_size
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.source import Source

_MOST_PARTS = 10_000
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_SMALL_REST = 4096  # bytes that are no recording, for those have headers


def completeness(source: Source) -> list[Note]:
    """What is missing at the end of a file, or lies behind it; nothing for containers that do not say."""
    head = source.read_at(0, 16)
    end = None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        end = _mp4(source)
    elif head[:4] == _EBML:
        end = _matroska(source)
    elif head == _ASF:
        end = _asf(source)
    elif head[:4] in (b"RIFF", b"FORM"):
        end = _riff(source, "<" if head[:4] == b"RIFF" else ">")
    elif head[:4] == b"caff":
        end = _caf(source)
    if end is None:
        return []
    if end > source.size + 1:
        said = f"its container declares {end} bytes, {source.size} are there"
        return [Note("cut", f"{said}: the end is missing", damaged=True)]
    rest = rest_note(source, end, source.size, "the end of its container")
    return [] if rest is None else [rest]


def rest_note(source: Source, position: int, stop: int, what: str) -> Note | None:
    """A note about bytes behind the sound; None where they are none, zeros or tags.

    Args:
        source: the file.
        position: first byte behind the sound.
        stop: first byte that belongs to something else; the size of the source if nothing follows.
        what: behind what they lie.
    """
    while position < stop and (size := tag_size(source.read_at(position, 32), 0)):
        position += size
    count = stop - position
    if count <= 0 or not source.read_at(position, min(count, 1 << 16)).strip(b"\0"):
        return None
    text = f"{count} bytes after {what} are no known part of such a file: left out"
    return Note("rest", text, damaged=count > _SMALL_REST)


def _mp4(source: Source) -> int | None:
    """End of the last box (ISO/IEC 14496-12, 4.2), or where another file begins that was joined to it.

    FFmpeg reads the first index alone. Only fragments carry on after a second one.
    """
    position, joined = 0, None
    seen: set[bytes] = set()
    for _ in range(_MOST_PARTS):
        head = source.read_at(position, 16)
        if len(head) < 8:
            return position if joined is None else joined
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        elif size == 0:  # to the end of the file
            return joined
        if size < 8 or not all(32 <= letter < 127 or letter == 0xA9 for letter in name):
            return position if joined is None else joined
        if name in (b"ftyp", b"moov") and name in seen and joined is None:
            joined = position
        elif name == b"moof":
            joined = None
        seen.add(name)
        position += size
    return joined


def _matroska(source: Source) -> int | None:
    """End of the segment (RFC 8794, 6.2); None where it was left open."""
    position = 0
    for _ in range(_MOST_PARTS):
        head = source.read_at(position, 12)
        if len(head) < 5:
            return None
        if head[:4] not in (_EBML, _SEGMENT):
            return None
        width = 9 - head[4].bit_length()
        raw = head[4 : 4 + width]
        if width > 8 or len(raw) < width:
            return None
        size = int.from_bytes(raw) & ((1 << 7 * width) - 1)
        end = position + 4 + width + size
        if head[:4] == _SEGMENT:
            return None if size == (1 << 7 * width) - 1 else end
        position = end
    return None


def _asf(source: Source) -> int | None:
    """Size of the file by its properties (ASF specification, 3.2); None for a broadcast."""
    position = 30
    for _ in range(100):
        head = source.read_at(position, 24 + 80)
        if len(head) < 104:
            return None
        if head[:16] == _ASF_PROPERTIES:
            size, flags = struct.unpack("<Q", head[40:48])[0], struct.unpack("<I", head[88:92])[0]
            return None if flags & 1 or not size else int(size)
        position += max(24, struct.unpack("<Q", head[16:24])[0])
    return None


def _riff(source: Source, order: str) -> int | None:
    """End of the last RIFF or FORM; a large AVI goes on in parts of the type ``AVIX``."""
    position = 0
    for _ in range(_MOST_PARTS):
        head = source.read_at(position, 12)
        if len(head) < 8 or head[:4] not in (b"RIFF", b"FORM", b"LIST", b"JUNK"):
            return position
        if position and head[:4] in (b"RIFF", b"FORM") and head[8:] != b"AVIX":
            return position
        size = struct.unpack(order + "I", head[4:8])[0]
        if size == 0 or size >= 0x7EFF_F000:  # not known when it was written
            return None
        position += 8 + size + size % 2
    return None


def _caf(source: Source) -> int | None:
    position = 8
    for _ in range(_MOST_PARTS):
        head = source.read_at(position, 12)
        if len(head) < 12:
            return position
        size = struct.unpack(">q", head[4:])[0]
        if size < 0:
            return None
        position += 12 + size
    return None
