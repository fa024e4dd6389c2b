"""The decoder for what no other takes: FFmpeg, inside PyAV's wheel.

Imported only when such a file is opened: its libraries take a moment to load, and most songs do without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.stream import Disposition

from tfswa.runtime.audio.decoders import (
    MAX_GAP_S,
    Damage,
    UnsuitableFile,
    check_stream,
    format_changed,
    gathered,
    one_line,
)
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.packets import CHECKED, to_float
from tfswa.runtime.audio.source import Source
from tfswa.runtime.audio.tracks import Track, pick
from tfswa.runtime.audio.whole import completeness
from tfswa.runtime.errors import AudioError

# Demuxers a song may come in. Playlists (hls, concat, dash) are left out on purpose: they make FFmpeg
# open other files and addresses, which an uploaded file must never do.
DEMUXERS = (
    "mov,matroska,webm,ogg,aac,ac3,eac3,mp3,flac,wav,w64,aiff,caf,au,avi,asf,flv,mpegts,mpeg,"
    "amr,ape,dts,dtshd,truehd,tta,tak,wv,mpc,mpc8,dsf,iff,shn,oma,rm,xwma"
)
# Their duration is a guess from the first frames' bit rate, not something the file says.
GUESSED_DURATION = frozenset({"aac", "ac3", "eac3", "mp3", "dts", "amr", "mpeg", "mpegts", "truehd"})
# Codecs whose frames carry a checksum, which FFmpeg compares only when asked to.
CHECKED_CODECS = frozenset({"flac", "tta", "wavpack"})
_LATE_S = 0.05


class FFmpegDecoder:
    """Everything else (m4a, mp4, webm, wma, stem.mp4 ...), through PyAV.

    Encoder delay is taken off by FFmpeg itself, from edit lists, pre-skip and iTunSMPB. The padding after
    the end it leaves on in MP4, so the last frame is cut at the length that the edit list gives. FFmpeg's
    own files round that down to a millisecond unless told otherwise (ours are exact).

    Places that cannot be decoded become silence of the same length, each with a note that names the time,
    so that what follows stays where it was. AAC has no checksum: damage that still parses as a frame
    sounds wrong and cannot be noticed.

    Args:
        source: the file.
        track: which audio track: a number from 0, a language, or None for the default one.

    Raises:
        UnsuitableFile: not a file that FFmpeg reads.
        AudioError: no audio track, or none that decodes.
        UsageError: the track is not there.
    """

    def __init__(self, source: Source, track: Track = None) -> None:
        self._path = source.path
        self.notes: list[Note] = []
        self._damage = Damage(source.path, self.notes)
        self._container: InputContainer | None = None
        self._lost_start_s: float | None = None  # where packets begin that lie before the first frame
        self._lost_end_s = 0.0  # where the last packet ends that does not decode
        try:
            self._container = open_container(cast(BinaryIO, source.window()))
            self._stream = self._pick(track)
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            self._describe()
        except av.error.FFmpegError as error:
            self.close()
            raise UnsuitableFile(f"FFmpeg: {one_line(error.strerror)}") from error
        except BaseException:
            self.close()
            raise
        self.notes += completeness(source)
        self._check_offset()

    def _pick(self, track: Track) -> AudioStream:
        assert self._container is not None
        streams = self._container.streams.audio
        self.streams = len(streams)
        if not streams:
            raise AudioError(
                f"{self._path}: 0 audio streams in this {self._container.format.name}: use a file with sound"
            )
        languages = [stream.metadata.get("language", "") for stream in streams]
        default = next((i for i, s in enumerate(streams) if s.disposition & Disposition.default), 0)
        index, note = pick(self._path, track, languages, default)
        self.notes += [note] if note is not None else []
        stream = streams[check_stream(self._path, index, self.streams)]
        if cast(Any, stream.codec_context) is None:
            raise UnsuitableFile("FFmpeg: it knows no decoder for the codec that the header names")
        if stream.codec_context.name in CHECKED_CODECS:
            stream.codec_context.options = CHECKED
        return stream

    def _describe(self) -> None:
        """Rate, channels and length. The first frame decides: HE-AAC headers give half the rate."""
        assert self._container is not None
        shown: Any = self._first[0] if self._first else self._stream
        self.sample_rate = int(shown.sample_rate or 0)
        names = tuple(channel.name for channel in shown.layout.channels)
        self.channels = len(names)
        if not self.sample_rate or not self.channels or (self._first is None and self._damage.count):
            raise AudioError(
                f"{self._path}: no sample of its {self._stream.codec_context.name} stream can be decoded: "
                "repair the file or use another copy"
            )
        self.layout = () if "NONE" in names else names
        # Opus counts its pre-skip, WebM rounds to a millisecond and to a whole packet.
        self.tolerance_samples = self.sample_rate // 10
        seconds = self._declared_seconds()
        self.samples: int | None = None if seconds is None else round(seconds * self.sample_rate)

    def _declared_seconds(self) -> float | None:
        """The length of this very track, where the file gives it; that of a picture says nothing."""
        assert self._container is not None
        if self._container.format.name.split(",")[0] in GUESSED_DURATION:
            return None
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", self._stream.metadata.get("DURATION", ""))
        if tag is not None:  # Matroska's statistics, by track; it counts from the file's beginning
            length = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
            return length - self._start_s()
        if self._container.duration is not None and len(self._container.streams) == 1:
            return self._container.duration / av.time_base - self._start_s()
        return None

    def _start_s(self) -> float:
        start, tick = self._stream.start_time, self._stream.time_base
        return 0.0 if start is None or tick is None else max(0.0, float(start * tick))

    def _check_offset(self) -> None:
        """A track that begins after the file does is read from its own beginning."""
        assert self._container is not None
        begin = (self._container.start_time or 0) / av.time_base
        late = self._start_s() - max(0.0, begin)
        if late > _LATE_S and len(self._container.streams) > 1:
            text = f"its sound begins {late:.3f} s after the file: the stems begin with the sound"
            self.notes.append(Note("offset", text))

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        pieces = (block for whole in self._trimmed() for block in _pieces(whole, block_samples))
        yield from gathered(None, pieces, block_samples)

    def _trimmed(self) -> Iterator[Block]:
        """The frames as arrays, gaps filled, the padding of the last MP4 frame cut off."""
        assert self._container is not None
        position = 0
        last: Block | None = None
        for block in self._joined():
            if last is not None:
                yield last
            last = block
            position += block.shape[1]
        if last is None:
            return
        excess = position - (self.samples or position)
        if excess > self.tolerance_samples + last.shape[1] and any(
            note.kind == "rest" for note in self.notes
        ):
            self.notes = [note for note in self.notes if note.kind != "rest"]
            text = "another recording lies behind the end of its container, read after the first"
            self.notes.append(Note("joined", text))
        if self._container.format.name.startswith("mov") and 0 < excess < last.shape[1]:
            last = last[:, : last.shape[1] - excess]
        yield last

    def _joined(self) -> Iterator[Block]:
        """The frames as arrays; where time stamps jump ahead, silence."""
        if self._first is None:
            return
        start_s = self._first[1]
        if start_s is not None and self._lost_start_s is not None:
            start_s = min(start_s, self._lost_start_s)
        position = longest = 0
        frame: AudioFrame | None
        time_s: float | None
        frame, time_s = self._first
        while frame is not None:
            rate, channels = frame.sample_rate, len(frame.layout.channels)
            if (rate, channels) != (self.sample_rate, self.channels):
                seconds, before = position / self.sample_rate, (self.sample_rate, self.channels)
                raise format_changed(self._path, seconds, before, (rate, channels))
            if time_s is not None and start_s is not None:
                silence = self._silence(time_s - start_s, position, longest)
                if silence.shape[1]:
                    position += silence.shape[1]
                    yield silence
            longest = max(longest, frame.samples)
            position += frame.samples
            yield to_float(frame.to_ndarray(), self.channels, frame.format.is_planar)
            frame, time_s = next(self._decoded, (None, None))
        missing_s = self._lost_end_s - (start_s or 0.0) - position / self.sample_rate
        if start_s is not None and 0 < missing_s < MAX_GAP_S:  # the time of a damaged packet may be any
            silence = self._silence(self._lost_end_s - start_s, position, longest)
            if silence.shape[1]:
                yield silence

    def _silence(self, until_s: float, position: int, longest: int) -> Block:
        """Silence from a sample on to a time, where that is more than rounding; maybe of no samples."""
        gap = round(until_s * self.sample_rate) - position
        # Less than most of a frame is rounding of the container's clock, not a lost frame.
        if gap <= max(0.75 * longest, 0.01 * self.sample_rate):
            gap = 0
        else:
            self._damage.hole(gap / self.sample_rate, position / self.sample_rate)
        return np.zeros((self.channels, gap), np.float32)

    def _decode(self) -> Iterator[tuple[AudioFrame, float | None]]:
        """Frames with their time in seconds, past packets that do not decode."""
        assert self._container is not None
        tick, any_decoded = float(self._stream.time_base or 0), False
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    self._lose(packet, tick, not any_decoded)
                    self._damage.corrupt(one_line(error.strerror), (packet.pts or 0) * tick)
                    continue
                any_decoded |= bool(frames)
                for frame in frames:
                    time_s = frame.time
                    if frame.is_corrupt:
                        self._damage.corrupt("a frame is marked as corrupt", time_s or 0.0)
                    yield frame, time_s
        except av.error.FFmpegError as error:
            raise AudioError(
                f"{self._path}: FFmpeg cannot read on: {one_line(error.strerror)}: repair the file"
            ) from error

    def _lose(self, packet: av.Packet[Any], tick: float, first: bool) -> None:
        """Remember where a packet lies that does not decode."""
        if packet.pts is None:
            return
        if first and self._lost_start_s is None:
            self._lost_start_s = max(0.0, packet.pts * tick)
        self._lost_end_s = max(self._lost_end_s, (packet.pts + (packet.duration or 0)) * tick)

    def close(self) -> None:
        """See ``Decoder``."""
        if self._container is not None:
            self._container.close()


def open_container(file: BinaryIO) -> InputContainer:
    """Open a file for demuxing.

    A file object rather than a name, because FFmpeg would take "concat:a|b" for a protocol.
    """
    return av.open(
        file, mode="r", metadata_errors="replace", container_options={"format_whitelist": DEMUXERS}
    )


def _pieces(block: Block, most: int) -> Iterator[Block]:
    for start in range(0, block.shape[1], most):
        yield block[:, start : start + most]
