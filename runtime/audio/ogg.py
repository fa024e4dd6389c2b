"""Ogg Vorbis and Opus: every page is checked, and says where its samples belong.

                                  a lost page
    page  |--------|--------|xxxxxxxx|--------|        granule of a page: position of its end
    out   |--------|--------| silence|--------|        so what follows a loss stays where it was

Recordings that follow each other in one file (chained streams) are read one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tfswa.runtime.audio.decoders import Damage, UnsuitableFile, check_stream, format_changed, gathered
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.packets import PacketCodec
from tfswa.runtime.audio.pages import Page, last_page, read_pages
from tfswa.runtime.audio.source import Source
from tfswa.runtime.audio.tracks import Track, pick
from tfswa.runtime.audio.whole import rest_note
from tfswa.runtime.errors import AudioError

_OPUS_RATE = 48_000
_ROUNDING_S = 0.02  # by how much positions may disagree where no page is missing

# Opus frames by configuration (RFC 6716, table 2), in samples at 48 kHz.
_OPUS_FRAMES = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)


@dataclass
class _Link:
    """One recording of a chain: the headers and the place of the track that is read.

    Attributes:
        serial: of its pages.
        kind: ``vorbis`` or ``opus``.
        skip: samples of Opus's pre-skip, which positions count and the decoder takes off.
        headers: packets before the sound.
        codec: None until the headers are whole.
        next_number: of its next page.
        partial: a packet that goes on in the next page.
        position: where decoding stands, in samples of the file's clock; None before the first page.
        lost: whether something is missing since the last position that was right.
        held: blocks of the latest page, which the last page may yet shorten.
        ended: whether its last page was seen.
    """

    serial: int
    kind: str
    skip: int
    headers: list[bytes]
    codec: PacketCodec | None = None
    next_number: int = 1
    partial: bytes | None = None
    position: int | None = None
    lost: bool = False
    held: list[Block] = field(default_factory=list)
    ended: bool = False


class OggDecoder:
    """Vorbis and Opus in Ogg.

    Raises:
        UnsuitableFile: no such track, or its headers are damaged.
        UsageError: the track is not there.
    """

    tolerance_samples = 0

    def __init__(self, source: Source, track: Track = None) -> None:
        self._source, self._path = source, source.path
        self._track, self._wanted = 0, track
        self.notes: list[Note] = []
        self._damage = Damage(source.path, self.notes)
        self.sample_rate = self.channels = self.streams = self._read = self._links = 0
        self.layout: tuple[str, ...] = ()
        self._link: _Link | None = None
        self._decoded = self._decode()
        self._first: Block | None = next(self._decoded, None)
        if self._link is None or not self.channels:
            raise UnsuitableFile("Ogg: no Vorbis or Opus that decodes")
        self.samples: int | None = self._declared(self._link)

    def _declared(self, link: _Link) -> int | None:
        """By the last page, where it belongs to the first recording; a chain does not say."""
        last = last_page(self._source)
        if last is None or last.serial != link.serial or last.granule < 0 or link.position is None:
            return None
        done = self._read + sum(block.shape[1] for block in link.held)
        return int(max(0, done + last.granule - link.skip - link.position))

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        return gathered(self._first, self._decoded, block_samples)

    def close(self) -> None:
        """See ``Decoder``."""

    def _decode(self) -> Iterator[Block]:
        """All samples, recording after recording."""
        begun: list[Page] = []
        end = 0
        for page in read_pages(self._source):
            end = page.end
            if page.first:
                if not begun and self._link is not None:
                    yield from self._finished(self._link)
                    self._link = None
                begun.append(page)
                continue
            if begun:
                self._link = self._begin(begun)
                begun = []
            if self._link is not None and page.serial == self._link.serial:
                yield from self._page(self._link, page)
            elif self._link is not None and page.after_damage:
                self._link.lost = True
        if self._link is not None:
            yield from self._finished(self._link)
            if self._link.ended:
                rest = rest_note(self._source, end, self._source.size, "its last page")
                self.notes += [] if rest is None else [rest]

    def _begin(self, pages: list[Page]) -> _Link:
        links = [link for page in pages if (link := _open_link(page)) is not None]
        self._links += 1
        if self._links == 1:
            self.streams = len(links)
            if not links:
                raise UnsuitableFile("Ogg: no Vorbis or Opus")
            self._track, note = pick(self._path, self._wanted, [""] * len(links), 0)
            self.notes += [note] if note is not None else []
            check_stream(self._path, self._track, self.streams)
        elif self._track >= len(links):
            raise AudioError(
                f"{self._path}: at {self._seconds():.3f} s another recording begins that lacks the track: "
                "take the recordings apart"
            )
        return links[self._track]

    def _seconds(self) -> float:
        return self._read / max(1, self.sample_rate)

    def _page(self, link: _Link, page: Page) -> Iterator[Block]:
        if page.number != link.next_number or page.after_damage:
            link.lost, link.partial = True, None
        link.next_number = page.number + 1
        fresh = [block for packet in _packets(link, page) for block in self._packet(link, packet)]
        link.ended |= page.last
        if page.granule < 0 or (not fresh and not page.last):
            if fresh:
                yield from self._emit(link, fresh)
            return
        yield from self._placed(link, page, fresh)

    def _packet(self, link: _Link, packet: bytes) -> list[Block]:
        if link.codec is None:
            link.headers.append(packet)
            if len(link.headers) == (3 if link.kind == "vorbis" else 2):
                extra = _laced(link.headers) if link.kind == "vorbis" else link.headers[0]
                link.codec = PacketCodec(link.kind, extra)
            return []
        blocks = link.codec.decode(packet)
        if not blocks and packet and link.position is not None:
            link.lost = True  # a packet that does not decode; an empty one means nothing
        return blocks

    def _placed(self, link: _Link, page: Page, fresh: list[Block]) -> Iterator[Block]:
        """Put what a page gave where the page says it ends."""
        count = sum(block.shape[1] for block in fresh)
        if link.position is None:
            # Opus's decoder takes its pre-skip off the first packets; positions count it.
            before = page.granule - link.skip - count
            early = min(count, -before) if before < 0 and not page.last else 0
            fresh, link.position = _without_start(fresh, early), max(0, before)
            count -= early
        excess = link.position + count - (page.granule - link.skip)
        if page.last and excess > 0 and not link.lost:
            whole = link.held + fresh
            link.held = []
            yield from self._emit(link, _without_end(whole, excess))
            link.position = page.granule - link.skip
            return
        if link.lost:
            link.lost = False
            where = self._seconds() + sum(block.shape[1] for block in link.held) / self._rate(link)
            if excess < 0:
                self._damage.hole(-excess / self._rate(link), where)
                silence = np.zeros((self.channels or link.codec.channels, -excess), np.float32)  # type: ignore[union-attr]
                fresh = [silence, *fresh]
            else:
                self._damage.corrupt("a page or a packet does not match its checksum", where)
                fresh = _without_start(fresh, min(excess, count))
        elif abs(excess) > _ROUNDING_S * self._rate(link):
            fresh = self._disagreeing(link, fresh, excess)
        link.position = page.granule - link.skip
        yield from self._emit(link, fresh)

    def _disagreeing(self, link: _Link, fresh: list[Block], excess: int) -> list[Block]:
        where, seconds = self._seconds(), abs(excess) / self._rate(link)
        if excess > 0:
            self._damage.corrupt(f"the page's position is {seconds:.3f} s too early", where)
            return fresh
        self._damage.hole(seconds, where)
        return [np.zeros((fresh[0].shape[0] if fresh else self.channels, -excess), np.float32), *fresh]

    def _rate(self, link: _Link) -> int:
        assert link.codec is not None
        return link.codec.sample_rate or self.sample_rate or _OPUS_RATE

    def _emit(self, link: _Link, fresh: list[Block]) -> Iterator[Block]:
        """Hand out what was held, and hold the latest."""
        assert link.codec is not None
        if link.codec.channels and not self.channels:
            self.sample_rate, self.channels = link.codec.sample_rate, link.codec.channels
            self.layout = link.codec.layout
        got = (link.codec.sample_rate, link.codec.channels)
        if link.codec.channels and got != (self.sample_rate, self.channels):
            raise format_changed(self._path, self._seconds(), (self.sample_rate, self.channels), got)
        ready, link.held = link.held, [block for block in fresh if block.shape[1]]
        self._read += sum(block.shape[1] for block in ready)
        yield from ready

    def _finished(self, link: _Link) -> Iterator[Block]:
        if link.codec is not None:
            yield from self._emit(link, [])
        if self._links > 1:
            self.notes = [note for note in self.notes if note.kind != "joined"]
            self.notes.append(Note("joined", f"{self._links} recordings in a row, read one after the other"))
        if not link.ended:
            self.notes.append(
                Note(
                    "cut",
                    f"its last page is missing: the end, from {self._seconds():.3f} s, is cut off",
                    True,
                )
            )


def _open_link(page: Page) -> _Link | None:
    head = next((piece for piece, whole in page.pieces() if whole), b"")
    if head[:7] == b"\x01vorbis":
        return _Link(page.serial, "vorbis", 0, [head], next_number=page.number + 1)
    if head[:8] == b"OpusHead" and len(head) >= 19:
        skip = struct.unpack("<H", head[10:12])[0]
        return _Link(page.serial, "opus", skip, [head], next_number=page.number + 1)
    return None


def _packets(link: _Link, page: Page) -> Iterator[bytes]:
    """Packets that end in a page; one whose beginning is lost is left out."""
    orphan = page.continued and link.partial is None
    if not page.continued:
        link.partial = None
    for piece, whole in page.pieces():
        packet, link.partial = (link.partial or b"") + piece, None
        if orphan:
            orphan, link.lost = not whole, True
            continue
        if whole:
            yield packet
        else:
            link.partial = packet


def _laced(headers: list[bytes]) -> bytes:
    """Vorbis's three headers as FFmpeg wants them."""
    sizes = b"".join(b"\xff" * (len(head) // 255) + bytes([len(head) % 255]) for head in headers[:2])
    return b"\x02" + sizes + b"".join(headers)


def _without_start(blocks: list[Block], count: int) -> list[Block]:
    left = []
    for block in blocks:
        drop = min(count, block.shape[1])
        count -= drop
        left.append(block[:, drop:])
    return left


def _without_end(blocks: list[Block], count: int) -> list[Block]:
    return [block[:, ::-1] for block in _without_start([b[:, ::-1] for b in reversed(blocks)], count)][::-1]
