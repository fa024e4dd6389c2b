"""MP3, MP2, MP1 and AAC in ADTS: every frame is counted, whatever stands in front of them.

    [tag] [Xing] frame frame ... frame [tag] | [tag] [Xing] frame ...      joined files, read in a row

The encoder's delay and padding are taken off where an information frame gives them, of each recording.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfswa.runtime.audio.decoders import Damage, UnsuitableFile, format_changed, gathered
from tfswa.runtime.audio.frames import Head, Info, Piece, first_frame, information, walk
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.packets import PacketCodec
from tfswa.runtime.audio.source import Source
from tfswa.runtime.errors import AudioError

_DECODER_DELAY = 529  # of a layer III decoder, beside the encoder's


class MpegDecoder:
    """See the module.

    Raises:
        UnsuitableFile: no such frames, or none that decodes.
    """

    tolerance_samples = 0
    streams = 1

    def __init__(self, source: Source) -> None:
        found = first_frame(source, 0)
        if found is None:
            raise UnsuitableFile("no MPEG audio frames")
        start, junk = found
        self._path = source.path
        self.notes: list[Note] = []
        if junk:
            text = f"{junk} bytes before its first frame are no sound: left out"
            self.notes.append(Note("rest", text, damaged=True))
        self._damage = Damage(source.path, self.notes)
        self.sample_rate = self.channels = self._read = self._joined = 0
        self.layout: tuple[str, ...] = ()
        self.samples: int | None = None
        self._info: Info | None = None
        self._decoded = self._decode(walk(source, start))
        self._first = next(self._decoded, None)
        if not self.channels:
            raise UnsuitableFile("no MPEG audio frame that decodes")

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        return gathered(self._first, self._decoded, block_samples)

    def close(self) -> None:
        """See ``Decoder``."""

    def _decode(self, pieces: Iterator[Piece]) -> Iterator[Block]:
        recording, codec, kind = _Recording(None), None, None
        for piece in pieces:
            if piece.kind == "junk":
                yield from self._count(self._skipped(recording, piece.size))
            elif piece.kind == "cut" and recording.info is None:
                self._cut(f"its last frame is cut at {self._seconds():.3f} s: the end is missing")
            if piece.kind != "frame":
                continue
            assert piece.head is not None
            if kind != piece.head.kind and kind is not None:
                raise self._changed(piece.head)
            info = information(piece.data, piece.head)
            if info is not None:
                if kind is not None:
                    yield from self._count(self._finished(recording))
                    self._joined += 1
                    codec = None
                recording = _Recording(info)
                if kind is None and info.frames is not None:
                    length = info.frames * piece.head.samples - info.delay - info.padding
                    self.samples = max(0, length)
            kind = piece.head.kind
            if info is not None:
                continue
            if codec is None:
                codec = PacketCodec(piece.head.codec)
            for block in self._frame(recording, codec, piece):
                if block.shape[1]:
                    self._read += block.shape[1]
                    yield block
        yield from self._count(self._finished(recording))
        if self._joined:
            self.samples = None
            text = f"{self._joined + 1} recordings in a row, read one after the other"
            self.notes.append(Note("joined", text))

    def _count(self, blocks: list[Block]) -> Iterator[Block]:
        for block in blocks:
            if block.shape[1]:
                self._read += block.shape[1]
                yield block

    def _seconds(self) -> float:
        return self._read / max(1, self.sample_rate)

    def _frame(self, recording: _Recording, codec: PacketCodec, piece: Piece) -> list[Block]:
        assert piece.head is not None
        recording.frames += 1
        recording.bytes += piece.size
        recording.frame_samples = recording.frame_samples or piece.head.samples
        blocks = codec.decode(piece.data)
        if not blocks:
            if not self.channels:
                return []
            self._damage.corrupt("a frame does not decode, silence put in its place", self._seconds())
            blocks = [np.zeros((self.channels, recording.frame_samples), np.float32)]
        elif not self.channels:
            self.sample_rate, self.channels = codec.sample_rate, codec.channels
            self.layout = codec.layout
            recording.frame_samples = blocks[0].shape[1]  # twice the header's in HE-AAC
        elif (codec.sample_rate, codec.channels) != (self.sample_rate, self.channels):
            before, after = (self.sample_rate, self.channels), (codec.sample_rate, codec.channels)
            raise format_changed(self._path, self._seconds(), before, after)
        return recording.push(blocks)

    def _skipped(self, recording: _Recording, size: int) -> list[Block]:
        """Bytes between frames: as many frames are missing as would have fitted in there."""
        if not recording.frames or not self.channels:
            return []
        count = round(size * recording.frames / recording.bytes)
        if not count:
            self._damage.corrupt(f"{size} bytes are no frame", self._seconds())
            return []
        samples = count * recording.frame_samples
        recording.frames += count
        self._damage.hole(samples / self.sample_rate, self._seconds())
        return recording.push([np.zeros((self.channels, samples), np.float32)])

    def _finished(self, recording: _Recording) -> list[Block]:
        """The last block, without padding; says where fewer frames came than were declared."""
        info = recording.info
        declared = None if info is None else info.frames
        # Some encoders count the information frame as well.
        if declared is not None and recording.frames < declared - 1:
            each = recording.frame_samples / max(1, self.sample_rate)
            said = f"{declared * each:.3f} s, {recording.frames * each:.3f} s are there"
            self._cut(f"its recording declares {said}: the rest is missing")
        elif declared is not None and recording.frames > declared + 1:
            text = f"its header declares {declared} frames, {recording.frames} are there: all were read"
            self.notes.append(Note("length", text))
        elif info is not None and info.padding and recording.frames == declared:
            return recording.rest(max(0, info.padding - _DECODER_DELAY))
        return recording.rest(0)

    def _cut(self, text: str) -> None:
        self.notes.append(Note("cut", text, damaged=True))
        self.samples = None

    def _changed(self, head: Head) -> AudioError:
        return format_changed(
            self._path, self._seconds(), (self.sample_rate, self.channels), (head.rate, head.channels)
        )


class _Recording:
    """One recording: takes off its delay, and holds its end back until it is known to be the end."""

    def __init__(self, info: Info | None) -> None:
        self.info = info
        self.frames = self.bytes = self.frame_samples = 0
        # A header without LAME's part gives neither delay nor padding.
        given = info is not None and (info.delay or info.padding)
        self._skip = info.delay + _DECODER_DELAY if info is not None and given else 0
        self._holds = max(info.padding - _DECODER_DELAY, 0) if info is not None and given else 0
        self._held: list[Block] = []

    def push(self, blocks: list[Block]) -> list[Block]:
        """Take blocks, give those that are surely before the padding."""
        if self._skip:
            for block in blocks:
                drop = min(self._skip, block.shape[1])
                self._skip -= drop
                self._held.append(block[:, drop:])
        elif not self._holds:
            return blocks
        else:
            self._held += blocks
        ready = []
        while self._held and sum(held.shape[1] for held in self._held[1:]) >= self._holds:
            ready.append(self._held.pop(0))
        return ready

    def rest(self, padding: int) -> list[Block]:
        """What is left, without the padding."""
        if not self._held:
            return []
        left = np.concatenate(self._held, axis=1)
        self._held = []
        return [left[:, : left.shape[1] - min(padding, left.shape[1])]]
