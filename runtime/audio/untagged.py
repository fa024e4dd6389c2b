"""Whether a file has no tags for sure, by a look at the names of its parts.

FFmpeg's libraries, which read tags, take some 40 ms to load. Nothing else of a separation from WAV or FLAC to
WAV needs them, and many such files have no tags.
"""

from __future__ import annotations

from tfswa.runtime.audio.decoders import UnsuitableFile
from tfswa.runtime.audio.flac import metadata
from tfswa.runtime.audio.source import Source

_CHUNKS = (b"fmt ", b"fact", b"data", b"JUNK", b"PAD ", b"FLLR", b"PEAK")  # of RIFF, that hold no text
_MOST_CHUNKS = 1000
_BLOCKS = (0, 1, 3)  # of FLAC (RFC 9639, section 8): STREAMINFO, PADDING, SEEKTABLE
_COMMENT = 4
_LARGEST_COMMENT = 1 << 16  # that is looked at


def is_untagged(source: Source) -> bool:
    """Whether it is a WAV or FLAC file without a place that holds tags; False where that is not known."""
    head = source.read_at(0, 12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _is_bare_wave(source)
    return head[:4] == b"fLaC" and _is_bare_flac(source)


def _is_bare_wave(source: Source) -> bool:
    position = 12
    for _ in range(_MOST_CHUNKS):
        head = source.read_at(position, 8)
        if len(head) < 8:
            return True
        if head[:4] not in _CHUNKS:
            return False
        size = int.from_bytes(head[4:], "little")
        position += 8 + size + size % 2
    return False


def _is_bare_flac(source: Source) -> bool:
    try:
        blocks, _ = metadata(source, 0)
    except UnsuitableFile:
        return False
    comments = [
        source.read_at(at, min(size, _LARGEST_COMMENT)) for kind, at, size in blocks if kind == _COMMENT
    ]
    return all(kind in (*_BLOCKS, _COMMENT) for kind, _, _ in blocks) and not any(
        map(_holds_fields, comments)
    )


def _holds_fields(comment: bytes) -> bool:
    """Whether a Vorbis comment has more than the name of the program that wrote it.

    ::

        bytes of the name | the name | number of fields | fields          (numbers of 4 bytes, lowest first)
    """
    at = 4 + int.from_bytes(comment[:4], "little")
    return comment[at : at + 4] != bytes(4)
