"""FLAC that is damaged, or has something behind it: what is whole stays in its place, the rest is told."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.audio.flac import metadata
from tfswa.runtime.audio.flac_frames import after_last_frame
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.audio.source import Source, open_source

Array = NDArray[np.float32]
FRAME = 4096  # samples; libFLAC's default
N = 10 * FRAME + 1000


def flac(samples: int = N, channels: int = 2) -> bytes:
    signal = 0.1 * np.random.default_rng(0).standard_normal((samples, channels))
    file = io.BytesIO()
    soundfile.write(file, signal, 44_100, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def read(path: Path, data: bytes) -> tuple[Array, tuple[Note, ...], bool]:
    path.write_bytes(data)
    with open_audio(path) as audio:
        return np.concatenate(list(audio.blocks()), axis=1), audio.notes, audio.damaged


def frame_starts(data: bytes) -> list[int]:
    """Where the frames begin: they are numbered, and there are few enough for one byte each."""
    _, position = metadata(source_of(data), 0)
    starts = []
    for number in range(N // FRAME + 1):
        position = data.index(data[position : position + 4][:2], position)
        while data[position + 4] != number:
            position = data.index(b"\xff\xf8", position + 1)
        starts.append(position)
        position += 16
    return starts


def source_of(data: bytes) -> Source:
    return open_source(io.BytesIO(data))


class TestDamage:
    @pytest.mark.parametrize("number", [0, 1, 5, 10])
    def test_a_broken_frame_is_silence_and_all_else_is_in_place(self, tmp_path: Path, number: int) -> None:
        data = bytearray(flac())
        whole, notes, _ = read(tmp_path / "a", bytes(data))
        assert notes == ()
        data[frame_starts(bytes(data))[number] + 300] ^= 1  # one bit, which only the checksum shows
        got, notes, damaged = read(tmp_path / "a", bytes(data))
        expected = whole.copy()
        expected[:, FRAME * number : FRAME * (number + 1)] = 0
        if number == 10:  # the last one: what is lost there is told as a cut
            expected = expected[:, : FRAME * number]
        np.testing.assert_array_equal(got, expected)
        assert damaged
        text = "declares 0.951 s" if number == 10 else "0.093 s missing, silence put in their place"
        assert text in notes[-1].text

    def test_bytes_that_are_missing(self, tmp_path: Path) -> None:
        data = flac()
        whole, _, _ = read(tmp_path / "a", data)
        starts = frame_starts(data)
        got, notes, damaged = read(tmp_path / "a", data[: starts[3] + 100] + data[starts[5] + 100 :])
        expected = whole.copy()
        expected[:, 3 * FRAME : 6 * FRAME] = 0
        np.testing.assert_array_equal(got, expected)
        assert damaged
        assert [note.kind for note in notes][-1] == "hole"

    def test_the_second_of_two(self, tmp_path: Path) -> None:
        data = flac()
        broken = bytearray(data)
        broken[frame_starts(data)[4] + 300] ^= 1
        got, notes, damaged = read(tmp_path / "a", data + bytes(broken))
        assert got.shape[1] == 2 * N
        np.testing.assert_array_equal(got[:, N + 5 * FRAME :], got[:, 5 * FRAME : N])
        assert damaged
        assert "joined" in [note.kind for note in notes]


class TestWhatLiesBehind:
    @pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, N])
    @pytest.mark.parametrize("channels", [1, 2, 6])
    def test_the_end_is_found(self, samples: int, channels: int) -> None:
        data = flac(samples, channels)
        for tail in (b"", b"TAG" + bytes(125), b"\x01" * 5000):
            source = source_of(data + tail)
            _, sound = metadata(source, 0)
            end = after_last_frame(source, sound, source.size, source.read_at(8, 34))
            # Before bytes that mean nothing, the checksum may come out right by chance a little early.
            assert end == len(data) or (
                tail[:1] == b"\x01" and end is not None and 0 < len(data) - end < 1 << 15
            )

    def test_tags_and_zeros_need_no_word(self, tmp_path: Path) -> None:
        for tail in (b"TAG" + bytes(125), bytes(10_000)):
            assert read(tmp_path / "a", flac() + tail)[1] == ()

    def test_another_recording_is_told(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        soundfile.write(file, np.ones((9000, 1)), 8000, format="WAV")
        got, notes, damaged = read(tmp_path / "a", flac() + file.getvalue())
        assert got.shape[1] == N
        assert damaged
        assert "bytes after its last frame" in notes[0].text

    def test_a_few_bytes_are_told_and_no_damage(self, tmp_path: Path) -> None:
        _, (note,), damaged = read(tmp_path / "a", flac() + b"comment")
        assert "bytes after its last frame" in note.text
        assert not damaged
