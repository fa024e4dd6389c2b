"""Tags and cover art, from the input file to the outputs.

    format    text            cover
    wav       LIST INFO, id3  id3
    flac      Vorbis comment  PICTURE block
    mp3       ID3v2.4         ID3v2.4
    m4a       iTunes atoms    iTunes atom, PNG and JPEG only
    ogg       Vorbis comment  none: libsndfile cannot write one

Audio is never touched: ID3 tags and FLAC blocks are put before the encoded stream, byte for byte the
same, and RIFF chunks behind it.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from tfswa.runtime.audio.notes import Note, without_controls
from tfswa.runtime.audio.source import Source, Window, open_source
from tfswa.runtime.audio.untagged import is_untagged
from tfswa.runtime.errors import TfxError

if TYPE_CHECKING:
    from av.container.input import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# FFmpeg's names of the fields that are carried, and what each format calls them. Technical ones (encoder,
# iTunSMPB) and loudness ones (ReplayGain) would be untrue of a stem, so this is a list of what to keep.
ID3_FRAMES = {
    "title": "TIT2",
    "artist": "TPE1",
    "album": "TALB",
    "album_artist": "TPE2",
    "composer": "TCOM",
    "date": "TDRC",
    "genre": "TCON",
    "track": "TRCK",
    "disc": "TPOS",
    "copyright": "TCOP",
    "comment": "COMM",
}
VORBIS_NAMES = {
    **{name: name.upper() for name in ID3_FRAMES},
    "album_artist": "ALBUMARTIST",
    "track": "TRACKNUMBER",
    "disc": "DISCNUMBER",
}
INFO_CHUNKS = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "date": b"ICRD",
    "genre": b"IGNR",
    "track": b"IPRT",
    "copyright": b"ICOP",
    "comment": b"ICMT",
}
# libsndfile's string types, by the names that the soundfile module gives them.
SNDFILE_STRINGS = {
    "title": "title",
    "artist": "artist",
    "album": "album",
    "date": "date",
    "genre": "genre",
    "track": "tracknumber",
    "copyright": "copyright",
    "comment": "comment",
}
_IMAGES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
MP4_COVERS = ("image/png", "image/jpeg")
_BLOCK_BYTES = 1 << 24  # of a FLAC block: its length has 24 bits
_LARGEST_COVER = _BLOCK_BYTES - (1 << 12)
_FRONT_COVER = 3
_WIDEST_COVER = 1 << 14
_LONGEST_FIELD = 1 << 16


@dataclass(frozen=True)
class Tags:
    """What a file says about its song.

    Attributes:
        fields: text by FFmpeg's name of the field; keys of ``ID3_FRAMES`` only.
        cover: an image file's bytes, or None.
        notes: what of the file's tags was changed or left out.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    cover: bytes | None = None
    notes: tuple[Note, ...] = field(default=(), compare=False)

    def __bool__(self) -> bool:
        return bool(self.fields) or self.cover is not None

    @property
    def cover_type(self) -> str:
        """MIME type of the cover, by its first bytes; empty if there is none or it is not known."""
        known = (mime for magic, mime in _IMAGES.items() if self.cover and self.cover.startswith(magic))
        return next(known, "")


def read_tags(given: Source | Path) -> Tags:
    """Tags and cover of a file; empty where there are none. Never costs the audio: what cannot be read or
    kept is a note.
    """
    if isinstance(given, Path):
        try:
            source = open_source(given)
        except TfxError:
            return Tags()
        try:
            return read_tags(source)
        finally:
            source.close()
    if is_untagged(given):
        return Tags()
    import av  # its libraries are slow to load

    from tfswa.runtime.audio.ffmpeg import open_container

    try:
        with open_container(cast(BinaryIO, _Budgeted(given, _LARGEST_COVER + (8 << 20)))) as container:
            found = dict(container.metadata)
            for audio in container.streams.audio[:1]:
                found.update(audio.metadata)  # Ogg keeps its comments with the stream
            covers = [_cover(container, stream) for stream in container.streams.video]
    except (OSError, ValueError, av.error.FFmpegError) as error:
        logger.debug("no tags from %s: %s", given.path, error)
        return Tags()
    notes: list[Note] = []
    cover = _kept_cover(next((cover for cover in covers if cover is not None), None), notes)
    lowered = {key.lower(): value for key, value in found.items() if value}
    fields = {name: _kept(name, lowered[name], notes) for name in ID3_FRAMES if name in lowered}
    return Tags({name: text for name, text in fields.items() if text}, cover, tuple(notes))


def _cover(container: InputContainer, stream: VideoStream) -> bytes | None:
    from av.stream import Disposition

    if not stream.disposition & Disposition.attached_pic:
        return None
    return next((bytes(packet) for packet in container.demux(stream) if packet.size), None)


def _kept_cover(cover: bytes | None, notes: list[Note]) -> bytes | None:
    """The cover, if players can show it."""
    if cover is None:
        return None
    why = ""
    if len(cover) > _LARGEST_COVER:
        why = f"{len(cover)} bytes are more than fit"
    elif not Tags(cover=cover).cover_type:
        why = "it is no image"
    elif not _is_whole(cover):
        why = "it is damaged"
    if why:
        notes.append(Note("tags", f"its cover was left out: {why}"))
    return None if why else cover


def _is_whole(cover: bytes) -> bool:
    """Whether an image decodes. One that does not breaks players, and FFmpeg's MP4."""
    import av

    try:
        with av.open(io.BytesIO(cover), "r", metadata_errors="replace") as image:
            stream = image.streams.video[0]
            return 0 < stream.width <= _WIDEST_COVER and next(image.decode(stream), None) is not None
    except (IndexError, ValueError, av.error.FFmpegError):
        return False


def _kept(name: str, text: str, notes: list[Note]) -> str:
    """A field's text without what would steer a terminal; nothing if it is absurdly long."""
    if len(text) > _LONGEST_FIELD:
        notes.append(Note("tags", f"its {name} was left out: {len(text)} letters are too many"))
        return ""
    clean = without_controls(text)
    if clean != " ".join(text.splitlines()).replace("\t", " ").strip():
        notes.append(Note("tags", f"control characters were taken out of its {name}"))
    return clean


class _Budgeted(Window):
    """A file that ends once so many bytes were read: FFmpeg walks through any junk after a WAV's samples."""

    def __init__(self, source: Source, budget: int) -> None:
        super().__init__(source, 0, source.size)
        self._budget = budget

    def readinto(self, buffer: Any, /) -> int:
        """See ``Window``."""
        count = super().readinto(memoryview(buffer)[: max(0, self._budget)])
        self._budget -= count
        return count


def uncarried(container: str, tags: Tags) -> str | None:
    """A sentence about what a container cannot hold of these tags; None if it holds them all."""
    lost = []
    if container == "OGG":
        lost = [name.replace("_", " ") for name in tags.fields if name not in SNDFILE_STRINGS]
    if tags.cover is not None and (
        container == "OGG" or (container == "MP4" and tags.cover_type not in MP4_COVERS)
    ):
        lost.append("cover")
    return f"not carried over, {container} cannot hold it here: {', '.join(lost)}" if lost else None


def prepend_id3(path: Path, tags: Tags) -> None:
    """Put an ID3v2.4 tag before an MP3 stream."""
    _rebuild(path, id3(tags), 0)


def insert_flac_blocks(path: Path, tags: Tags) -> None:
    """Replace the comments of a FLAC file, and give it its cover.

    Raises:
        ValueError: not a FLAC file, or more text than one of its blocks can hold.
    """
    blocks: list[tuple[int, bytes]] = []
    with path.open("rb") as file:
        if file.read(4) != b"fLaC":
            raise ValueError("no FLAC stream")
        last = False
        while not last:
            kind, size = struct.unpack(">B3s", file.read(4))
            last = bool(kind & 0x80)
            body = file.read(int.from_bytes(size))
            if kind & 0x7F not in (1, 4):  # padding and comments are written anew
                blocks.append((kind & 0x7F, body))
        audio = file.tell()
    blocks.append((4, _vorbis_comment(tags.fields)))
    if tags.cover is not None:
        blocks.append((6, _flac_picture(tags)))
    longest = max(len(body) for _, body in blocks)
    if longest >= _BLOCK_BYTES:
        raise ValueError(f"{longest} bytes of tags, a FLAC block holds less than {_BLOCK_BYTES}")
    head = b"fLaC"
    for index, (kind, body) in enumerate(blocks):
        head += bytes([kind | (0x80 if index == len(blocks) - 1 else 0)]) + len(body).to_bytes(3) + body
    _rebuild(path, head, audio)


def riff_chunks(tags: Tags) -> bytes:
    """The chunks that a WAV file ends with: LIST INFO for the old readers, ``id3 `` for the new."""
    if not tags:
        return b""
    info = b"".join(
        _riff_chunk(INFO_CHUNKS[name], value.encode() + b"\0")
        for name, value in tags.fields.items()
        if name in INFO_CHUNKS
    )
    listed = _riff_chunk(b"LIST", b"INFO" + info) if info else b""
    return listed + _riff_chunk(b"id3 ", id3(tags))


def id3(tags: Tags) -> bytes:
    """An ID3v2.4 tag, text in UTF-8 (id3.org, id3v2.4.0-structure and -frames)."""
    frames = b""
    for name, value in tags.fields.items():
        language = b"und\0" if name == "comment" else b""  # COMM: language, then an empty description
        frames += _id3_frame(ID3_FRAMES[name], b"\x03" + language + value.encode())
    if tags.cover is not None:
        kind = (tags.cover_type or "image/").encode()
        frames += _id3_frame("APIC", b"\x03" + kind + b"\0" + bytes([_FRONT_COVER]) + b"\0" + tags.cover)
    return b"ID3\x04\0\0" + _syncsafe(len(frames)) + frames


def _id3_frame(name: str, body: bytes) -> bytes:
    return name.encode() + _syncsafe(len(body)) + b"\0\0" + body


def _syncsafe(size: int) -> bytes:
    """28 bits in four bytes whose top bit is 0, so that no player takes them for MPEG sync."""
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _vorbis_comment(fields: Mapping[str, str]) -> bytes:
    entries = [f"{VORBIS_NAMES[name]}={value}".encode() for name, value in fields.items()]
    vendor = b"tfswa"
    packed = struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", len(entries))
    return packed + b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)


def _flac_picture(tags: Tags) -> bytes:
    assert tags.cover is not None
    kind = tags.cover_type.encode()
    # Width, height, depth and colors may be 0, "unknown"; players take them from the image.
    return (
        struct.pack(">II", _FRONT_COVER, len(kind))
        + kind
        + struct.pack(">IIIIII", 0, 0, 0, 0, 0, len(tags.cover))
        + tags.cover
    )


def _rebuild(path: Path, head: bytes, skip: int) -> None:
    """Replace the first ``skip`` bytes of a file by ``head``."""
    new = path.with_name("tagged")  # in the work folder, which nobody else can enter
    try:
        with path.open("rb") as old, new.open("wb") as file:
            old.seek(skip)
            file.write(head)
            shutil.copyfileobj(old, file, 1 << 20)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
