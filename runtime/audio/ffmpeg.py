"""The decoder for what libsndfile does not read: FFmpeg, inside PyAV's wheel.

Imported only when such a file is opened: its libraries take a moment to load, and most songs do without.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from numpy.typing import NDArray

from tfswa.runtime.audio.decoders import LAYOUTS, Block, UnsuitableFile, check_stream, one_line
from tfswa.runtime.errors import AudioError

logger = logging.getLogger(__name__)

# Demuxers a song may come in. Playlists (hls, concat, dash) are left out on purpose: they make FFmpeg
# open other files and addresses, which an uploaded file must never do.
DEMUXERS = (
    "mov,matroska,webm,ogg,aac,ac3,eac3,mp3,flac,wav,w64,aiff,caf,au,avi,asf,flv,mpegts,mpeg,"
    "amr,ape,dts,dtshd,truehd,tta,tak,wv,mpc,mpc8,dsf,iff,shn,oma,rm,xwma"
)
# Their duration is a guess from the first frames' bit rate, not something the file says.
GUESSED_DURATION = frozenset({"aac", "ac3", "eac3", "mp3", "dts", "amr", "mpeg", "mpegts", "truehd"})

# A file damaged in more places than this is refused rather than patched with silence.
MAX_DAMAGE = 50
MAX_GAP_S = 10.0


class FFmpegDecoder:
    """Everything else (m4a, mp4, opus, webm, stem.mp4 ...), through PyAV.

    Encoder delay is taken off by FFmpeg itself, from edit lists, pre-skip and iTunSMPB. The padding after
    the end it leaves on in MP4, so the last frame is cut at the length that the edit list gives. FFmpeg's
    own files round that down to a millisecond unless told otherwise (ours are exact).

    Places that cannot be decoded become silence of the same length, each with a warning that names the
    time, so that what follows stays where it was. AAC has no checksum: damage that still parses as a
    frame sounds wrong and cannot be noticed.

    Raises:
        UnsuitableFile: not a file that FFmpeg reads.
        AudioError: no audio stream, or none that decodes.
        UsageError: ``stream`` is not there.
    """

    def __init__(self, path: Path, stream: int) -> None:
        self._path = path
        self._damage = 0
        self._file: BinaryIO = path.open("rb")
        self._container: InputContainer | None = None
        try:
            self._container = open_container(self._file)
            self._stream = self._pick(stream)
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            self._describe()
        except av.error.FFmpegError as error:
            self.close()
            raise UnsuitableFile(f"FFmpeg: {one_line(error.strerror)}") from error
        except BaseException:
            self.close()
            raise

    def _pick(self, stream: int) -> AudioStream:
        assert self._container is not None
        streams = self._container.streams.audio
        self.streams = len(streams)
        if not streams:
            raise AudioError(
                f"{self._path}: 0 audio streams in this {self._container.format.name}: use a file with sound"
            )
        return streams[check_stream(self._path, stream, self.streams)]

    def _describe(self) -> None:
        """Rate, channels and length. The first frame decides: HE-AAC headers give half the rate."""
        assert self._container is not None
        shown: Any = self._first[0] if self._first else self._stream
        self.sample_rate = int(shown.sample_rate or 0)
        names = tuple(channel.name for channel in shown.layout.channels)
        self.channels = len(names)
        if not self.sample_rate or not self.channels or (self._first is None and self._damage):
            raise AudioError(
                f"{self._path}: no sample of its {self._stream.codec_context.name} stream can be decoded: "
                "repair the file or use another copy"
            )
        self.layout = names if all(name != "NONE" for name in names) else LAYOUTS.get(self.channels, ())
        # Opus counts its pre-skip, WebM rounds to a millisecond and to a whole packet.
        self.tolerance_samples = self.sample_rate // 10
        self.samples: int | None = None
        if self._container.format.name.split(",")[0] in GUESSED_DURATION:
            return
        if self._stream.duration is not None and self._stream.time_base is not None:
            self.samples = round(self._stream.duration * self._stream.time_base * self.sample_rate)
        elif self._container.duration is not None:
            self.samples = round(self._container.duration * self.sample_rate / av.time_base)

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        held: list[Block] = []
        count = 0
        for block in self._trimmed():
            if count and count + block.shape[1] > block_samples:
                yield np.concatenate(held, axis=1)
                held, count = [], 0
            held.append(block)
            count += block.shape[1]
        if count:
            yield np.concatenate(held, axis=1)

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
        if self._container.format.name.startswith("mov") and 0 < excess < last.shape[1]:
            last = last[:, : last.shape[1] - excess]
        yield last

    def _joined(self) -> Iterator[Block]:
        """The frames as arrays; where time stamps jump ahead, silence."""
        if self._first is None:
            return
        start_s = self._first[1]
        position = longest = 0
        frame: AudioFrame | None
        time_s: float | None
        frame, time_s = self._first
        while frame is not None:
            rate, channels = frame.sample_rate, len(frame.layout.channels)
            if (rate, channels) != (self.sample_rate, self.channels):
                raise AudioError(
                    f"{self._path}: at {position / self.sample_rate:.3f} s it changes from "
                    f"{self.sample_rate} Hz, {self.channels} channels to {rate} Hz, {channels} channels: "
                    "convert it to one format first"
                )
            if time_s is not None and start_s is not None:
                gap = round((time_s - start_s) * self.sample_rate) - position
                # Less than most of a frame is rounding of the container's clock, not a lost frame.
                if gap > max(0.75 * longest, 0.01 * self.sample_rate):
                    yield self._silence(gap, position)
                    position += gap
            longest = max(longest, frame.samples)
            position += frame.samples
            yield to_float(frame.to_ndarray(), self.channels, frame.format.is_planar)
            frame, time_s = next(self._decoded, (None, None))

    def _silence(self, gap: int, position: int) -> Block:
        seconds = gap / self.sample_rate
        if seconds > MAX_GAP_S:
            raise AudioError(
                f"{self._path}: {seconds:.1f} s are missing at {position / self.sample_rate:.3f} s, "
                f"more than the {MAX_GAP_S:.0f} s that are filled with silence: repair the file"
            )
        self._damaged(f"{seconds:.3f} s missing, silence put in their place", position / self.sample_rate)
        return np.zeros((self.channels, gap), np.float32)

    def _decode(self) -> Iterator[tuple[AudioFrame, float | None]]:
        """Frames with their time in seconds, past packets that do not decode."""
        assert self._container is not None
        tick = float(self._stream.time_base or 0)
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    self._damaged(one_line(error.strerror), (packet.pts or 0) * tick)
                    continue
                for frame in frames:
                    time_s = frame.time
                    if frame.is_corrupt:
                        self._damaged("a frame is marked as corrupt", time_s or 0.0)
                    yield frame, time_s
        except av.error.FFmpegError as error:
            raise AudioError(
                f"{self._path}: FFmpeg cannot read on: {one_line(error.strerror)}: repair the file"
            ) from error

    def _damaged(self, what: str, time_s: float) -> None:
        self._damage += 1
        if self._damage > MAX_DAMAGE:
            raise AudioError(
                f"{self._path}: damaged in more than {MAX_DAMAGE} places, the last at {time_s:.3f} s "
                f"({what}): repair the file or use another copy"
            )
        logger.warning("%s: damaged at %.3f s: %s", self._path, time_s, what)

    def close(self) -> None:
        """See ``Decoder``."""
        if self._container is not None:
            self._container.close()
        self._file.close()


def open_container(file: BinaryIO) -> InputContainer:
    """Open a file for demuxing.

    A file object rather than a name, because FFmpeg would take "concat:a|b" for a protocol.
    """
    return av.open(
        file, mode="r", metadata_errors="replace", container_options={"format_whitelist": DEMUXERS}
    )


def to_float(samples: NDArray[Any], channels: int, planar: bool) -> Block:
    """FFmpeg's sample formats to float32 ``[C, n]``, full scale at 1.

    Args:
        samples: ``[C, n]`` if planar, else interleaved ``[1, n * C]``; unsigned 8 bit, signed, or float.
        channels: C.
        planar: whether each channel has its own row.
    """
    if not planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype.kind == "u":
        return np.ascontiguousarray((samples.astype(np.float32) - 128.0) / 128.0)
    if samples.dtype.kind == "i":
        return np.ascontiguousarray(samples.astype(np.float32) / 2.0 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore"):  # what overflows becomes inf, which the reader then names
        return np.ascontiguousarray(samples, dtype=np.float32)
