"""Packets that we take out of a file ourselves, decoded by FFmpeg; for Ogg and MPEG audio.

Imported only when such a file is opened: FFmpeg's libraries take a moment to load.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from tfswa.runtime.audio.layouts import Block

CHECKED = {"err_detect": "crccheck+explode"}
"""Options of a codec of FFmpeg that make a wrong checksum an error."""


class PacketCodec:
    """One decoder of FFmpeg.

    Args:
        name: FFmpeg's.
        extradata: the codec's own header, where it has one.
        checked: whether a frame that does not match its checksum is none.

    Attributes:
        sample_rate: in Hz, 0 until something was decoded.
        channels: 0 until then.
        layout: names of the channels, empty until then or where they have none.
    """

    def __init__(self, name: str, extradata: bytes = b"", *, checked: bool = False) -> None:
        context = av.CodecContext.create(name, "r")
        assert isinstance(context, AudioCodecContext)
        self._context = context
        if extradata:
            self._context.extradata = extradata
        if checked:
            self._context.options = CHECKED
        self.sample_rate = self.channels = 0
        self.layout: tuple[str, ...] = ()

    def decode(self, packet: bytes) -> list[Block]:
        """What a packet holds, ``[C, n]`` each; empty where it does not decode."""
        try:
            frames = self._context.decode(av.Packet(packet))
        except (av.error.FFmpegError, ValueError):
            return []
        return [self._block(frame) for frame in frames]

    def _block(self, frame: AudioFrame) -> Block:
        layout = frame.layout
        if (frame.sample_rate, layout.nb_channels) != (self.sample_rate, self.channels):
            names = tuple(channel.name for channel in layout.channels)
            self.sample_rate, self.channels = frame.sample_rate, len(names)
            self.layout = () if "NONE" in names else names
        if frame.format.name != "fltp":
            return to_float(frame.to_ndarray(), self.channels, frame.format.is_planar)
        # As to_ndarray, in half the time: MP3 has 40 frames a second.
        block = np.empty((self.channels, frame.samples), np.float32)
        for row, plane in zip(block, frame.planes, strict=True):
            row[:] = np.frombuffer(memoryview(plane), np.float32, frame.samples)
        return block


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
