"""MIDI cut into drums, bass and other; songs found in a WAD; what the script of the demo data refuses."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import make_demo_data  # noqa: E402
from midi_stems import (  # noqa: E402
    STRINGS,
    Event,
    Midi,
    MidiError,
    read_midi,
    stems,
    wad_songs,
    write_midi,
)

TEMPO = bytes((0xFF, 0x51, 3, 7, 0xA1, 0x20))


def note(tick: int, channel: int, pitch: int) -> list[Event]:
    return [
        Event(tick, bytes((0x90 | channel, pitch, 100))),
        Event(tick + 10, bytes((0x80 | channel, pitch, 0))),
    ]


def program(tick: int, channel: int, number: int) -> Event:
    return Event(tick, bytes((0xC0 | channel, number)))


def song(*events: Event, end: int = 300) -> Midi:
    return Midi(96, tuple(sorted(events, key=lambda event: event.tick)), end)


def notes(midi: Midi) -> list[tuple[int, int, int]]:
    """Tick, channel and pitch of what begins."""
    begun = [event for event in midi.events if event.data[0] & 0xF0 == 0x90 and event.data[2]]
    return [(event.tick, event.data[0] & 0x0F, event.data[1]) for event in begun]


def test_a_note_goes_to_the_role_of_its_program_when_it_begins() -> None:
    first, second = note(10, 0, 60), note(50, 0, 61)
    # The channel turns into a bass while the first note sounds: its end belongs to where it began.
    cut = stems(song(Event(0, TEMPO), *first, program(15, 0, 33), *second, *note(70, 9, 36)))
    assert {role: notes(midi) for role, midi in cut.items()} == {
        "drums": [(70, 9, 36)],
        "bass": [(50, 0, 61)],
        "other": [(10, 0, 60)],
    }
    assert first[1] in cut["other"].events
    assert first[1] not in cut["bass"].events
    assert all(midi.end == 300 and Event(0, TEMPO) in midi.events for midi in cut.values())


def test_a_role_without_a_note_is_not_there() -> None:
    assert list(stems(song(*note(0, 9, 36)))) == ["drums"]


def test_voices_become_strings() -> None:
    cut = stems(song(program(0, 1, 53), *note(5, 1, 60), program(20, 9, 53)))
    assert program(0, 1, STRINGS) in cut["other"].events
    assert program(20, 9, 53) in cut["other"].events  # of the drums it is a kit


def test_what_is_written_reads_back() -> None:
    midi = song(Event(0, TEMPO), program(0, 3, 7), *note(200, 3, 60), end=20_000)
    assert read_midi(write_midi(midi)) == midi


def test_running_status_tracks_and_what_makes_no_sound() -> None:
    meta = b"\0\xff\x03\x01x" + b"\0\xf0\x02\x01\xf7"
    one = meta + b"\x05\x90\x3c\x40" + b"\x0a\x3c\0" + b"\0\xff\x2f\0"
    two = b"\x07\xc1\x21" + b"\x81\0\xff\x2f\0"
    data = struct.pack(">4sIHHH", b"MThd", 6, 1, 2, 96)
    data += b"".join(struct.pack(">4sI", b"MTrk", len(track)) + track for track in (one, two))
    assert read_midi(data) == Midi(
        96,
        (Event(5, b"\x90\x3c\x40"), Event(7, b"\xc1\x21"), Event(15, b"\x90\x3c\0")),
        135,
    )


@pytest.mark.parametrize("data", [b"", b"MThd", b"RIFF" + bytes(20), write_midi(song(*note(0, 1, 2)))[:-6]])
def test_what_is_no_midi_is_said_so(data: bytes) -> None:
    with pytest.raises(MidiError):
        read_midi(data)


def test_songs_of_a_wad_are_told_by_name_and_equal_ones_once(tmp_path: Path) -> None:
    midi = write_midi(song(*note(0, 1, 60)))
    lumps = [
        ("D_E1M1", midi),
        ("D_E2M6", midi),
        ("D_MUS", b"MUS\x1a"),
        ("THINGS", midi),
        ("D_LAST", midi + b"\0"),
    ]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    wad = tmp_path / "a wad.wad"
    wad.write_bytes(struct.pack("<4sii", b"IWAD", len(lumps), 12 + len(body)) + body + directory)
    assert wad_songs(wad) == {"e1m1": midi, "last": midi + b"\0"}
    wad.write_bytes(b"PK")
    with pytest.raises(MidiError, match="is no WAD"):
        wad_songs(wad)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The three sets, each with what the script tells apart, of one second and of unequal level."""
    parts = {
        "everything-is-remixed/5.Rubidium": {"vocals": 0.1, "drums": 0.2, "bass": 0.3, "other": 0.4},
        "producer-space-vocals/house_e": {"vocals": 0.1},
        "producer-space-vocals/shouts": {"vocals": 0.1},
        "sectoid/War_of_freedom": {"rest": 0.1, "guitar": 0.2},
        "sectoid/Feelings": {"rest": 0.1, "guitar": 0.3},
    }
    for folder, sources in parts.items():
        (tmp_path / "shared" / folder).mkdir(parents=True)
        for source, level in sources.items():
            audio = np.full((44_100 + (source == "vocals"), 2), level, np.float32)
            soundfile.write(tmp_path / "shared" / folder / f"{source}.ogg", audio, 44_100, format="FLAC")
    return tmp_path / "shared"


def test_recorded_sets_are_named_by_set_and_summed(shared: Path, tmp_path: Path) -> None:
    songs = make_demo_data.recorded(shared)
    assert sorted(songs) == [
        "dev-house_e-War_of_freedom",
        "free-5.Rubidium",
        "sectoid-Feelings",
        "spoken-shouts",
    ]
    made = songs["dev-house_e-War_of_freedom"]()
    assert {source: audio.shape for source, audio in made.items()} == {
        "vocals": (44_100, 2),
        "other": (44_100, 2),
    }
    assert made["other"] == pytest.approx(0.3, abs=1e-3)
    said = make_demo_data.write_song(tmp_path, "free-5.Rubidium", songs["free-5.Rubidium"])
    assert said == "free-5.Rubidium: vocals, drums, bass, other, 1 s"
    there = sorted(path.name for path in (tmp_path / "free-5.Rubidium").iterdir())
    assert there == ["bass.flac", "drums.flac", "other.flac", "vocals.flac"]


def test_a_song_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make() -> dict[str, make_demo_data.Audio]:
        return {"drums": np.zeros((10, 2), np.float32), "bass": np.zeros((10, 99_999), np.float32)}

    with pytest.raises(soundfile.LibsndfileError):
        make_demo_data.write_song(tmp_path, "A", make)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_began_is_taken_away_and_songs_stay(tmp_path: Path) -> None:
    for name in (".freedoom-e1m1.partial-77", "freedoom-e1m2", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "drums.flac").touch()
    make_demo_data.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "freedoom-e1m2"]


def test_a_set_that_is_absent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_demo_data.recorded(tmp_path) == {}
    assert capsys.readouterr().err.count("is not there: the set goes on without it") == 3


def test_the_table_gives_every_set_its_license() -> None:
    text = make_demo_data.table(["free-1", "freedoom-e1m1"])
    assert all(bool(row.notice) == bool(row.terms) for row in make_demo_data.SOURCES)
    for row in make_demo_data.SOURCES:
        assert not row.terms or row.license.startswith(row.terms)
        assert not row.terms or (SCRIPTS / "notices" / f"{row.terms}.txt").read_text().endswith(".\n")
    for words in ("CC0-1.0", "MIT", "BSD-3-Clause", "free-5.Rubidium, dev-house_e-War_of_freedom"):
        assert words in text


def test_the_repository_is_no_place_for_audio() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "make_demo_data.py"), str(SCRIPTS.parent / "data")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "is inside the repository" in done.stderr


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="4"):
        make_demo_data.require_packages()
    assert "apt-get install --no-install-recommends freedoom fluidsynth" in capsys.readouterr().err
