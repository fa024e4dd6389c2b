"""The encoder for m4a: FFmpeg's AAC in MP4, through PyAV. Imported only when such a file is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from tfswa.runtime.audio.decoders import one_line
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.tags import MP4_COVERS, Tags

BITS_PER_SECOND = 128_000  # per channel; at low rates the encoder uses what it can


class AacEncoder:
    """One m4a file.

    The edit list is in samples, not in FFmpeg's default of milliseconds, so that readers can take off
    encoder delay and padding exactly. Tags and cover go in at the start.

    Raises:
        OSError: the file cannot be written, or the encoder fails.
    """

    def __init__(self, path: Path, sample_rate: int, channels: int, tags: Tags) -> None:
        self._layout = "mono" if channels == 1 else "stereo"
        self._rate = sample_rate
        self._position = 0
        self._file = path.open("wb")
        options = {"movie_timescale": str(sample_rate), "brand": "M4A "}
        try:
            # PyAV's "ipod" muxer refuses covers; "mp4" with its brand is the same file.
            self._container = av.open(self._file, "w", format="mp4", options=options)
            self._stream = self._container.add_stream("aac", rate=sample_rate, layout=self._layout)
            self._stream.bit_rate = BITS_PER_SECOND * channels
            self._container.metadata.update(tags.fields)
            cover = self._add_cover(tags)
            self._container.start_encoding()
            if cover is not None:
                self._container.mux(cover)
        except BaseException:
            self._file.close()
            raise

    def _add_cover(self, tags: Tags) -> av.Packet[Any] | None:
        """A stream for the cover and its one packet; None if there is none or MP4 cannot hold it."""
        if tags.cover is None or tags.cover_type not in MP4_COVERS:
            return None
        with av.open(io.BytesIO(tags.cover), "r") as image:
            source = image.streams.video[0]
            packet = next(image.demux(source))
            stream = self._container.add_stream_from_template(source)
        stream.disposition = Disposition.attached_pic
        packet.stream = stream
        return packet

    def write(self, block: Block) -> None:
        """See ``encoders.Encoder``."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._position += block.shape[1]
        self._encode(frame)

    def close(self) -> None:
        """See ``encoders.Encoder``."""
        if self._file.closed:
            return
        try:
            if self._position:
                self._encode(None)
            self._container.close()
        finally:
            self._file.close()

    def _encode(self, frame: av.AudioFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except av.error.FFmpegError as error:
            raise OSError(f"FFmpeg: {one_line(error.strerror)}") from error
