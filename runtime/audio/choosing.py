"""Which decoder reads a file, by its first bytes; FFmpeg takes what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tfswa.runtime.audio.decoders import Decoder, SndfileDecoder, UnsuitableFile, check_stream
from tfswa.runtime.audio.flac import FlacDecoder, streaminfo_samples, streams
from tfswa.runtime.audio.frames import first_frame, tag_size
from tfswa.runtime.audio.headers import find_pcm
from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.pcm import PcmDecoder
from tfswa.runtime.audio.source import Source
from tfswa.runtime.audio.tracks import Track
from tfswa.runtime.audio.whole import completeness
from tfswa.runtime.errors import AudioError

_MOST_JOINED = 1000

# How the files begin that libsndfile reads better than FFmpeg, or alone. It is asked about no others: it
# would try them as MP3, and its MP3 library prints what it thinks of them.
_SNDFILE_ALONE = (
    *(b"FORM", b".snd", b"dns.", b"caff", b"riff", b"Creative Voice", b"NIST_1A"),
    *(b" paf", b"fap ", b"PVF1", b"2BIT", b"MATLAB 5.0", b"Extended Instr", b"ALawSoundFile", b"\xf0\x7e"),
    *(b"\x64\xa3\x01\x00", b"\x64\xa3\x02\x00", b"\x64\xa3\x03\x00", b"\x00\x01\xa3\x64"),
)


def open_decoder(source: Source, track: Track) -> Decoder:
    """Open the decoder for a file.

    Args:
        source: the file.
        track: which audio track.

    Raises:
        AudioError: none takes it.
        UsageError: it has no such track.
    """
    refusals = []
    for opening in (_pcm, _flac, _ogg, _mpeg, _sndfile, _ffmpeg):
        try:
            decoder = opening(source, track)
        except UnsuitableFile as error:
            refusals.append(str(error))
            continue
        if decoder is not None:
            return decoder
    raise AudioError(
        f"{source.path} cannot be decoded as audio ({'; '.join(refusals[-2:])}): "
        "convert it to wav or flac, or use another copy"
    )


def _pcm(source: Source, track: Track) -> Decoder | None:
    if source.read_at(0, 4) not in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"caff"):
        return None
    parts = [find_pcm(source)]
    while parts[-1].end < source.size and len(parts) < _MOST_JOINED:
        try:
            parts.append(find_pcm(source, parts[-1].end))
        except UnsuitableFile:
            return Joined(source, [PcmDecoder(source, part) for part in parts], parts[-1].end)
    check_single(source, track)
    parts = [part for part in parts if part.stop > part.start] or parts[:1]
    return joined(source, [PcmDecoder(source, part) for part in parts])


def _flac(source: Source, track: Track) -> Decoder | None:
    start = 0
    while size := tag_size(source.read_at(start, 32), 0):
        start += size
    if source.read_at(start, 4) != b"fLaC":
        return None
    places = streams(source, start)[:_MOST_JOINED]
    if not all(streaminfo_samples(source, place) for place in places):
        raise UnsuitableFile("FLAC: unknown length")
    check_single(source, track)
    parts: list[Decoder] = []
    try:
        for place, stop in zip(places, [*places[1:], source.size], strict=True):
            parts.append(FlacDecoder(source, place, stop))
    except UnsuitableFile:
        for part in parts:
            part.close()
        raise
    return joined(source, parts)


def _ogg(source: Source, track: Track) -> Decoder | None:
    if source.read_at(0, 4) != b"OggS":
        return None
    from tfswa.runtime.audio.ogg import OggDecoder  # loads FFmpeg

    return OggDecoder(source, track)


def _mpeg(source: Source, track: Track) -> Decoder | None:
    head = source.read_at(0, 16)
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"FORM", b"fLaC", b"OggS", b"\x1aE\xdf\xa3"):
        return None
    found = first_frame(source, 0)
    if found is None:
        return None
    check_single(source, track)
    from tfswa.runtime.audio.mpeg import MpegDecoder  # loads FFmpeg

    return MpegDecoder(source)


def _sndfile(source: Source, track: Track) -> Decoder | None:
    if not source.read_at(0, 16).startswith(_SNDFILE_ALONE):
        return None
    decoder = SndfileDecoder(source)
    try:
        check_single(source, track)
    except BaseException:
        decoder.close()
        raise
    decoder.notes += completeness(source)
    return decoder


def _ffmpeg(source: Source, track: Track) -> Decoder | None:
    from tfswa.runtime.audio.ffmpeg import FFmpegDecoder  # slow to load, see there

    return FFmpegDecoder(source, track)


def check_single(source: Source, track: Track) -> None:
    """Refuse any track but the first; a language is not asked of a file that has one track alone.

    Raises:
        UsageError: another track.
    """
    if isinstance(track, int):
        check_stream(source.path, track, 1)


def joined(source: Source, parts: Sequence[Decoder]) -> Decoder:
    """One decoder over recordings that lie in a row in one file."""
    return parts[0] if len(parts) == 1 else Joined(source, parts, source.size)


class Joined:
    """Recordings in a row in one file, read one after the other.

    Args:
        source: the file.
        parts: their decoders, already open.
        end: first byte after the last of them.
    """

    streams = 1
    tolerance_samples = 0

    def __init__(self, source: Source, parts: Sequence[Decoder], end: int) -> None:
        first = parts[0]
        self.sample_rate, self.channels, self.layout = first.sample_rate, first.channels, first.layout
        alike = [part for part in parts if self._same(part)]
        self._all, self._parts = parts, alike
        lengths = [part.samples for part in alike]
        self.samples: int | None = None if None in lengths else sum(length or 0 for length in lengths)
        self._own: list[Note] = []
        if len(alike) > 1:
            self._own.append(Note("joined", f"{len(alike)} recordings in a row, read one after the other"))
        for part in parts:
            if not self._same(part):
                text = f"a recording of {part.sample_rate} Hz, {part.channels} channels follows: left out"
                self._own.append(Note("rest", text, damaged=True))
        if end < source.size:
            text = f"{source.size - end} bytes follow that cannot be decoded: left out"
            self._own.append(Note("rest", text, damaged=True))

    def _same(self, part: Decoder) -> bool:
        return (part.sample_rate, part.channels) == (self.sample_rate, self.channels)

    @property
    def notes(self) -> list[Note]:
        """See ``Decoder``."""
        return [*self._own, *(note for part in self._parts for note in part.notes)]

    def blocks(self, block_samples: int) -> Iterator[Block]:
        """See ``Decoder``."""
        for part in self._parts:
            yield from part.blocks(block_samples)

    def close(self) -> None:
        """See ``Decoder``."""
        for part in self._all:
            part.close()
