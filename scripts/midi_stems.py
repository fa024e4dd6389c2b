"""Songs of a Doom WAD as MIDI, and MIDI songs cut into drums, bass and other."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROLES = ("drums", "bass", "other")
DRUM_CHANNEL = 9
BASSES = range(32, 40)  # General MIDI programs, from 0
# Choirs, voices and what sounds like them: an instrumental must hold none.
VOICES = frozenset((52, 53, 54, 85, 91))
STRINGS = 48

_TEMPO, _END = 0x51, 0x2F  # meta events that are kept


class MidiError(ValueError):
    """Bytes that are no standard MIDI file, or a WAD that is none."""


@dataclass(frozen=True)
class Event:
    """One MIDI event.

    Attributes:
        tick: from the start of the song.
        data: status byte and data bytes; for a tempo, ``FF 51 03`` and its three bytes.
    """

    tick: int
    data: bytes


@dataclass(frozen=True)
class Midi:
    """A song.

    Attributes:
        division: as in the file's header: ticks per quarter note, or SMPTE's.
        events: of all tracks, by time.
        end: tick at which the last track ends.
    """

    division: int
    events: tuple[Event, ...]
    end: int


def wad_songs(path: Path) -> dict[str, bytes]:
    """MIDI songs of a WAD by the name of their lump; equal ones once, other formats left out.

    Raises:
        MidiError: it is no WAD.
    """
    data = path.read_bytes()
    if data[:4] not in (b"IWAD", b"PWAD") or len(data) < 12:
        raise MidiError(f"{path} is no WAD")
    count, directory = struct.unpack_from("<ii", data, 4)
    songs: dict[str, bytes] = {}
    for index in range(count):
        start, size, raw = struct.unpack_from("<ii8s", data, directory + 16 * index)
        lump = data[start : start + size]
        if raw.startswith(b"D_") and lump.startswith(b"MThd") and lump not in songs.values():
            songs[raw.rstrip(b"\0").decode("ascii").removeprefix("D_").lower()] = lump
    return songs


def read_midi(data: bytes) -> Midi:
    """Read a standard MIDI file of format 0 or 1; what makes no sound is dropped.

    Raises:
        MidiError: it is none, or it is cut short.
    """
    try:
        kind, size, form, _, division = struct.unpack_from(">4sIHHH", data)
        if kind != b"MThd" or form > 1:
            raise MidiError("no MIDI file of format 0 or 1")
        events, end, place = [], 0, 8 + size
        while place + 8 <= len(data):
            kind, size = struct.unpack_from(">4sI", data, place)
            place += 8
            if kind == b"MTrk":
                track = list(_track(data[place : place + size]))
                end = max([end, *(event.tick for event in track)])
                events += track
            place += size
    except (struct.error, IndexError) as error:
        raise MidiError("a MIDI file that is cut short") from error
    sounding = [event for event in events if event.data[:2] != bytes((0xFF, _END))]
    # Stable: events of one moment stay in the order of the file.
    return Midi(division, tuple(sorted(sounding, key=lambda event: event.tick)), end)


def stems(midi: Midi) -> dict[str, Midi]:
    """Cut a song by role. Every role has all tempi and controllers, and its own notes alone.

    A note belongs to the role of its channel's program at the moment it begins: ``DRUM_CHANNEL`` is drums,
    ``BASSES`` are bass. Programs in ``VOICES`` become ``STRINGS``.

    Returns:
        The roles that have a note, in the order of ``ROLES``; all end at the same tick.
    """
    program = [0] * 16
    sounding: dict[tuple[int, int], str] = {}
    cut: dict[str, list[Event]] = {role: [] for role in ROLES}
    notes = dict.fromkeys(ROLES, 0)
    for event in midi.events:
        status, channel = event.data[0] & 0xF0, event.data[0] & 0x0F
        if status in (0x80, 0x90) and event.data[0] < 0xF0:
            note = (channel, event.data[1])
            begins = status == 0x90 and event.data[2] > 0
            if begins:
                sounding[note] = _role(channel, program[channel])
                notes[sounding[note]] += 1
            if note in sounding:
                cut[sounding[note]].append(event)
            continue
        if status == 0xC0:
            program[channel] = event.data[1]
            if event.data[1] in VOICES and channel != DRUM_CHANNEL:
                event = Event(event.tick, bytes((event.data[0], STRINGS)))
        for role in ROLES:
            cut[role].append(event)
    return {role: Midi(midi.division, tuple(cut[role]), midi.end) for role in ROLES if notes[role]}


def write_midi(midi: Midi) -> bytes:
    """Write a song as a file of format 0."""
    track, now = bytearray(), 0
    for event in midi.events:
        track += _number(event.tick - now) + event.data
        now = event.tick
    track += _number(midi.end - now) + bytes((0xFF, _END, 0))
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, midi.division)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + bytes(track)


def _role(channel: int, program: int) -> str:
    if channel == DRUM_CHANNEL:
        return "drums"
    return "bass" if program in BASSES else "other"


def _track(data: bytes) -> Iterator[Event]:
    """Channel events, tempi and the end of one track."""
    place = tick = status = 0
    while place < len(data):
        delta, place = _read_number(data, place)
        tick += delta
        if data[place] & 0x80:
            status = data[place]
            place += 1
        if status in (0xF0, 0xF7):
            size, place = _read_number(data, place)
            place += size
        elif status == 0xFF:
            kind = data[place]
            size, place = _read_number(data, place + 1)
            if kind in (_TEMPO, _END):
                yield Event(tick, bytes((0xFF, kind)) + _number(size) + data[place : place + size])
            place += size
            if kind == _END:
                return
        elif status & 0x80:
            size = 1 if status & 0xF0 in (0xC0, 0xD0) else 2
            data[place + size - 1]  # there, or an IndexError
            yield Event(tick, bytes((status,)) + data[place : place + size])
            place += size
        else:
            raise MidiError("a MIDI track that begins with no status")


def _read_number(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    while True:
        byte = data[place]
        place += 1
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, place


def _number(value: int) -> bytes:
    """A number of MIDI's variable length."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))
