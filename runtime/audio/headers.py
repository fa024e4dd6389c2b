"""Headers of uncompressed files: where the samples begin, how many were declared, how many are there.

    RIFF, RIFX, RF64, BW64   ---- fmt ----- [ds64] ---- data ---- (other chunks) ---- maybe another RIFF
    Wave64                   the same with GUIDs for names and 64-bit sizes
    AIFF, AIFC               COMM, SSND         CAF: desc, data         AU: one header

A declared size is believed when it agrees with the file. Writers that could not go back (a pipe, a crash)
leave 0 or a placeholder there; sizes beyond 4 GiB wrap around.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tfswa.runtime.audio.decoders import UnsuitableFile
from tfswa.runtime.audio.layouts import core_audio_layout, mask_layout
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.pcm import Pcm
from tfswa.runtime.audio.source import Source
from tfswa.runtime.audio.whole import rest_note

_MOST_CHUNKS = 10_000
_LARGEST_HEADER = 1 << 16  # of a chunk that is read here
_WRAP = 1 << 32
_NEVER = 1 << 48  # a 64-bit size from here on stands for an unknown one
_NEAR_WRAP = 4096  # bytes of other chunks behind a size that wrapped around
_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the last 12 bytes of Wave64's names
_RECORDINGS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"caff", b"fLaC", b"OggS")


@dataclass(frozen=True)
class Part:
    """One part of a file.

    Attributes:
        name: its four letters.
        start: first byte of what it holds.
        size: how many bytes it declares.
        next: where the next one begins, by that.
    """

    name: bytes
    start: int
    size: int
    next: int


Walk = Callable[[Source, int], Iterator[Part]]


def find_pcm(source: Source, start: int = 0) -> Pcm:
    """Read the header of an uncompressed file that begins at a byte of the source.

    Raises:
        UnsuitableFile: another kind of file, a compressed one, or a header that is cut or makes no sense.
    """
    head = source.read_at(start, 16)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _wave(source, start, "<")
    if head[:4] == b"RIFX" and head[8:12] == b"WAVE":
        return _wave(source, start, ">")
    if head[:4] == b"riff" and head[4:8] == bytes.fromhex("2e91cf11"):
        return _wave64(source, start)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(source, start, head[8:12])
    if head[:4] == b".snd":
        return _au(source, start)
    if head[:4] == b"caff":
        return _caf(source, start)
    raise UnsuitableFile("not an uncompressed file")


def _chunks(order: str) -> Walk:
    def walk(source: Source, position: int) -> Iterator[Part]:
        for _ in range(_MOST_CHUNKS):
            head = source.read_at(position, 8)
            if len(head) < 8:
                return
            size = struct.unpack(order + "I", head[4:])[0]
            yield Part(head[:4], position + 8, size, position + 8 + size + size % 2)
            position += 8 + size + size % 2

    return walk


def _chunks_wave64(source: Source, position: int) -> Iterator[Part]:
    for _ in range(_MOST_CHUNKS):
        head = source.read_at(position, 24)
        if len(head) < 24:
            return
        size = struct.unpack("<Q", head[16:])[0]
        known = head[4:16] == _GUID or head[:4] in (b"riff", b"list")
        name = head[:4] if known else b"\0\0\0\0"
        yield Part(name, position + 24, max(0, size - 24), position + max(24, (size + 7) // 8 * 8))
        position += max(24, (size + 7) // 8 * 8)


def _chunks_caf(source: Source, position: int) -> Iterator[Part]:
    for _ in range(_MOST_CHUNKS):
        head = source.read_at(position, 12)
        if len(head) < 12:
            return
        size = struct.unpack(">q", head[4:])[0]
        yield Part(head[:4], position + 12, size, position + 12 + max(0, size))
        position += 12 + max(0, size)


def _wave(source: Source, start: int, order: str) -> Pcm:
    walk, form, long = _chunks(order), None, 0
    for chunk in walk(source, start + 12):
        if chunk.name == b"ds64":
            long = struct.unpack("<Q", _body(source, chunk, 16)[8:16])[0]
        elif chunk.name == b"fmt ":
            form = _body(source, chunk, 16)
        elif chunk.name == b"data":
            declared: int | None = chunk.size
            if source.read_at(start, 4) in (b"RF64", b"BW64") and chunk.size == 0xFFFF_FFFF:
                declared = long if long < _NEVER else None
            elif _is_placeholder(chunk.size, source.size - chunk.start):
                declared = None
            return _place(source, _wave_form(form, order), chunk.start, declared, walk, wraps=True)
    raise UnsuitableFile("no data chunk")


def _wave64(source: Source, start: int) -> Pcm:
    form = None
    for chunk in _chunks_wave64(source, start + 40):
        if chunk.name == b"fmt ":
            form = _body(source, chunk, 16)
        elif chunk.name == b"data":
            declared = chunk.size if chunk.size < _NEVER else None
            return _place(source, _wave_form(form, "<"), chunk.start, declared, _chunks_wave64, pad=8)
    raise UnsuitableFile("no data chunk")


def _wave_form(form: bytes | None, order: str) -> _Form:
    if form is None:
        raise UnsuitableFile("no fmt chunk before the samples")
    tag, channels, rate, _, align, bits = struct.unpack(order + "HHIIHH", form[:16])
    layout: tuple[str, ...] = ()
    if tag == 0xFFFE and len(form) >= 40:
        tag = struct.unpack(order + "H", form[24:26])[0]
        layout = mask_layout(struct.unpack(order + "I", form[20:24])[0], channels)
    size = align // channels if channels and align % channels == 0 else 0
    if tag in (6, 7) and size == 1:
        return _Form(rate, channels, layout, "alaw" if tag == 6 else "ulaw")
    kind = {1: "u" if size == 1 else "i", 3: "f"}.get(tag, "")
    if not kind or not 8 * (size - 1) < bits <= 8 * size or f"{kind}{size}" not in _SIZES:
        raise UnsuitableFile(f"codec tag {tag:#06x} of {bits} bits in {size} bytes")
    return _Form(rate, channels, layout, f"{order}{kind}{size}")


def _aiff(source: Source, start: int, flavor: bytes) -> Pcm:
    walk, form, frames, names = _chunks(">"), None, 0, (0, 0)
    for chunk in walk(source, start + 12):
        if chunk.name == b"COMM":
            body = _body(source, chunk, 18)
            channels, frames, bits = struct.unpack(">hIh", body[:8])
            codec = body[18:22] if flavor == b"AIFC" else b"NONE"
            form = _Form(_extended(body[8:18]), channels, (), _aiff_coding(codec, (bits + 7) // 8))
        elif chunk.name == b"CHAN":
            names = struct.unpack(">II", _body(source, chunk, 8)[:8])
        elif chunk.name == b"SSND":
            if form is None:
                raise UnsuitableFile("no COMM chunk before the samples")
            form = _Form(form.rate, form.channels, core_audio_layout(*names, form.channels), form.coding)
            skip = struct.unpack(">I", _body(source, chunk, 8)[:4])[0]
            first = chunk.start + 8 + (skip if skip < _LARGEST_HEADER else 0)
            return _aiff_place(source, form, first, frames, chunk, walk)
    raise UnsuitableFile("no SSND chunk")


def _aiff_place(source: Source, form: _Form, first: int, frames: int, chunk: Part, walk: Walk) -> Pcm:
    """AIFF gives the length twice, as samples and as bytes; one of them may have been left open."""
    present = source.size - first
    by_frames, by_bytes = frames * form.frame_bytes, chunk.start + chunk.size - first
    sizes = [size for size in (by_bytes, by_frames) if size > 0 and not _is_placeholder(size, present)]
    pcm = _place(source, form, first, sizes[0] if sizes else (None if by_frames else 0), walk)
    if len(sizes) == 2 and abs(by_bytes - by_frames) >= form.frame_bytes + 1:
        each = f"{by_frames // form.frame_bytes} and {by_bytes // form.frame_bytes} samples"
        note = Note("length", f"its header gives two lengths, {each}: the second was taken")
        return replace(pcm, notes=(*pcm.notes, note))
    return pcm


def _aiff_coding(codec: bytes, size: int) -> str:
    fixed = {b"fl32": ">f4", b"FL32": ">f4", b"fl64": ">f8", b"FL64": ">f8", b"raw ": ">u1"}
    laws = {b"alaw": "alaw", b"ALAW": "alaw", b"ulaw": "ulaw", b"ULAW": "ulaw"}
    if codec in (b"NONE", b"twos", b"in24", b"in32", b"sowt"):
        coding = f"{'<' if codec == b'sowt' else '>'}i{size}"
    else:
        coding = {**fixed, **laws}.get(codec, "")
    if coding not in laws.values() and coding[1:] not in _SIZES:
        raise UnsuitableFile(f"codec {codec!r} of {size} bytes")
    return coding


def _au(source: Source, start: int) -> Pcm:
    head = source.read_at(start, 24)
    if len(head) < 24:
        raise UnsuitableFile("header cut")
    offset, size, coding, rate, channels = struct.unpack(">5I", head[4:])
    known = {1: "ulaw", 2: ">i1", 3: ">i2", 4: ">i3", 5: ">i4", 6: ">f4", 7: ">f8", 27: "alaw"}
    if coding not in known or not 24 <= offset < _LARGEST_HEADER:
        raise UnsuitableFile(f"AU encoding {coding}")
    form, first = _Form(rate, channels, (), known[coding]), start + offset
    declared = None if _is_placeholder(size, source.size - first) else size
    return _place(source, form, first, declared, None)


def _caf(source: Source, start: int) -> Pcm:
    form, names = None, (0, 0)
    for chunk in _chunks_caf(source, start + 8):
        if chunk.name == b"desc":
            body = _body(source, chunk, 32)
            rate, codec, flags, packet, _, channels, bits = struct.unpack(">d4sIIIII", body[:32])
            if not math.isfinite(rate):
                raise UnsuitableFile("no sample rate")
            form = _Form(round(rate), channels, (), _caf_coding(codec, flags, packet, channels, bits))
        elif chunk.name == b"chan":
            names = struct.unpack(">II", _body(source, chunk, 8)[:8])
        elif chunk.name == b"data":
            if form is None:
                raise UnsuitableFile("no desc chunk before the samples")
            form = _Form(form.rate, form.channels, core_audio_layout(*names, form.channels), form.coding)
            first = chunk.start + 4
            pcm = _place(source, form, first, chunk.size - 4 if chunk.size >= 4 else None, _chunks_caf)
            # sox writes its header again behind the sound when it cannot go back.
            again = max(first, source.size - (first - start))
            twice = pcm.declared is None and source.read_at(start, 52) == source.read_at(again, 52)
            return replace(pcm, stop=again) if twice else pcm
    raise UnsuitableFile("no data chunk")


def _caf_coding(codec: bytes, flags: int, packet: int, channels: int, bits: int) -> str:
    size = packet // channels if channels and packet % channels == 0 else 0
    if codec in (b"alaw", b"ulaw") and size == 1:
        return codec.decode()
    coding = f"{'<' if flags & 2 else '>'}{'f' if flags & 1 else 'i'}{size}"
    if codec != b"lpcm" or coding[1:] not in _SIZES or not 8 * (size - 1) < bits <= 8 * size:
        raise UnsuitableFile(f"codec {codec!r} of {bits} bits in {size} bytes")
    return coding


_SIZES = ("u1", "i1", "i2", "i3", "i4", "f4", "f8")


@dataclass(frozen=True)
class _Form:
    """What a header says about each sample."""

    rate: int
    channels: int
    layout: tuple[str, ...]
    coding: str

    @property
    def frame_bytes(self) -> int:
        return self.channels * (1 if self.coding in ("alaw", "ulaw") else int(self.coding[2:]))


def _place(
    source: Source,
    form: _Form,
    first: int,
    declared: int | None,
    walk: Walk | None,
    *,
    pad: int = 2,
    wraps: bool = False,
) -> Pcm:
    """Decide where the samples end.

    Args:
        source: the file.
        form: what a sample is.
        first: first byte of the samples.
        declared: how many bytes the header gives; None where it leaves that open.
        walk: reads the chunks that follow; None where nothing may follow.
        pad: what sizes are rounded up to.
        wraps: whether sizes have 32 bits.
    """
    if form.channels < 1:
        raise UnsuitableFile("0 channels")
    present, notes = max(0, source.size - first), []
    if declared == 0 and present and not _well_formed(source, first, walk):
        declared = None
    if declared is None and present:
        notes.append(
            Note(
                "length",
                "its header gives no length (written to a pipe, or never finished): read to the end",
            )
        )
    if declared is None or declared >= present:
        end = source.size
        return _pcm(form, first, end, declared, end, notes)
    end = first + -(-declared // pad) * pad
    if wraps and present - declared >= _WRAP - _NEAR_WRAP and not _well_formed(source, end, walk):
        turns = (present - declared) // _WRAP
        found = [n for n in range(turns, 0, -1) if _well_formed(source, end + n * _WRAP, walk)]
        length = declared + found[0] * _WRAP if found else present
        said = f"{declared} bytes of sound, {present} are there"
        notes.append(Note("length", f"its header is too small for its length ({said}): {length} were read"))
        declared, end = length, first + length
    end, rest = _after(source, min(end, source.size), walk)
    if rest is not None:
        notes.append(rest)
    return _pcm(form, first, first + declared, declared, end, notes)


def _pcm(form: _Form, first: int, stop: int, declared: int | None, end: int, notes: list[Note]) -> Pcm:
    return Pcm(form.rate, form.channels, form.layout, form.coding, first, stop, declared, end, tuple(notes))


def _well_formed(source: Source, position: int, walk: Walk | None) -> bool:
    """Whether the file ends here, or goes on with chunks that fit into it."""
    if position >= source.size:
        return position <= source.size + 1
    if walk is None:
        return False
    for chunk in walk(source, position):
        if chunk.name in _RECORDINGS:
            return True
        if not _is_name(chunk.name) or chunk.size < 0 or chunk.next > source.size + 1:
            return False
        position = chunk.next
    return position >= source.size - 8


def _after(source: Source, position: int, walk: Walk | None) -> tuple[int, Note | None]:
    """Where the next recording begins (or the file ends), and a note about bytes that are left out."""
    for chunk in walk(source, position) if walk is not None else ():
        if chunk.name in _RECORDINGS or not _is_name(chunk.name) or chunk.size < 0:
            break
        position = min(chunk.next, source.size)
    if source.read_at(position, 4) in _RECORDINGS:
        return position, None
    return source.size, rest_note(source, position, source.size, "the declared end of the sound")


def _is_name(name: bytes) -> bool:
    return all(32 <= letter < 127 for letter in name) and name.strip() != b""


def _is_placeholder(size: int, present: int) -> bool:
    """Whether a size was written before the length was known: sox, lame, arecord and FFmpeg each have one."""
    if size <= present:
        return False
    return 0x7EFF_F000 <= size <= 0x7F00_1000 or 0x7FFF_E000 <= size <= 0x8000_1000 or size >= 0xFFFF_0000


def _extended(raw: bytes) -> int:
    """An 80-bit extended float as a whole number of Hz."""
    exponent, mantissa = struct.unpack(">HQ", raw)
    shift = (exponent & 0x7FFF) - 16383 - 63
    if not -64 < shift < 1:
        return 0
    return int(mantissa + (1 << -shift >> 1) >> -shift)


def _body(source: Source, chunk: Part, least: int) -> bytes:
    body = source.read_at(chunk.start, min(max(chunk.size, 0), _LARGEST_HEADER))
    if len(body) < least:
        raise UnsuitableFile(f"{chunk.name.decode('latin-1').strip()} chunk cut")
    return body
