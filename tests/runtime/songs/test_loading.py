"""Songs with known stems, from everything that a user may point at."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.songs import loading
from tfswa.runtime.songs.finding import find_songs
from tfswa.runtime.songs.loading import (
    STEM_FILE_STREAMS,
    Song,
    example_stem_file,
    load,
    load_songs,
    load_source,
    load_stem_file,
    loudest_chunk,
    true_sources,
)
from tfswa.runtime.songs.synthetic import synthetic_song

Audio = NDArray[np.float32]

RATE = 8000
PARTS = ("drums", "bass", "other", "vocals")


def spec_of(*stems: str, channels: int = 2, rate: int = RATE) -> ModelSpec:
    return ModelSpec(
        family="none",
        stems=stems,
        channels=channels,
        stft=StftSpec(512, 128, rate),
        chunk=ChunkSpec(16, 2, 2, 8),
    )


TWO = spec_of("vocals", "accompaniment")
FOUR = spec_of(*PARTS)


def noise(samples: int = 1000, seed: int = 0, channels: int = 2) -> Audio:
    return (np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1).astype(np.float32)


Put = Callable[..., Audio]


@pytest.fixture
def put() -> Put:
    """``put(path, samples)``: a float WAV of noise that depends on its name; its samples."""

    def write(path: Path, samples: int = 1000, rate: int = RATE, channels: int = 2) -> Audio:
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = noise(samples, seed=sum(path.stem.encode()), channels=channels)
        soundfile.write(path, audio.T, rate, subtype="FLOAT", format="WAV")
        return audio

    return write


def assert_sums(song: Song) -> None:
    np.testing.assert_allclose(np.sum(list(song.stems.values()), axis=0), song.mixture, atol=1e-6)


class TestFolders:
    def test_a_folder_of_a_models_stems_is_one_song(self, tmp_path: Path, put: Put) -> None:
        stems = {name: put(tmp_path / "song" / f"{name}.wav") for name in PARTS}
        (song,) = load_songs(tmp_path / "song", FOUR)
        assert song.name == "song"
        assert list(song.stems) == list(FOUR.stems)
        for name in PARTS:
            np.testing.assert_array_equal(song.stems[name], stems[name])
        assert_sums(song)

    def test_the_accompaniment_is_all_that_is_not_vocals(self, tmp_path: Path, put: Put) -> None:
        stems = {name: put(tmp_path / f"{name}.wav") for name in PARTS}
        (song,) = load_songs(tmp_path, TWO)
        assert list(song.stems) == ["vocals", "accompaniment"]
        rest = stems["drums"] + stems["bass"] + stems["other"]
        np.testing.assert_allclose(song.stems["accompaniment"], rest, atol=1e-6)
        assert_sums(song)

    def test_the_mixture_is_the_sum_and_not_the_file_of_that_name(self, tmp_path: Path, put: Put) -> None:
        for name in (*PARTS, "mixture"):
            put(tmp_path / f"{name}.wav")
        (song,) = load_songs(tmp_path, FOUR)
        assert_sums(song)

    def test_an_accompaniment_beside_its_parts_is_not_counted_twice(self, tmp_path: Path, put: Put) -> None:
        stems = {name: put(tmp_path / f"{name}.wav") for name in (*PARTS, "accompaniment")}
        (song,) = load_songs(tmp_path, TWO)
        np.testing.assert_allclose(song.mixture, stems["vocals"] + stems["accompaniment"], atol=1e-6)
        assert_sums(song)

    def test_stems_of_other_lengths_are_filled_with_silence_and_noted(
        self, tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture
    ) -> None:
        short = put(tmp_path / "vocals.wav", 300)
        put(tmp_path / "accompaniment.wav", 1000)
        (song,) = load_songs(tmp_path, TWO)
        assert song.mixture.shape == (2, 1000)
        np.testing.assert_array_equal(song.stems["vocals"][:, :300], short)
        assert not song.stems["vocals"][:, 300:].any()
        assert_sums(song)
        assert song.notes == (
            "its sources differ in length: vocals has 0.037 s, accompaniment 0.125 s, "
            "which is 700 samples more: silence follows the shorter ones",
        )
        assert [record.message for record in caplog.records] == [f"{song.name}: {song.notes[0]}"]

    def test_a_sum_is_the_same_bits_however_it_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By construction: each sample is a sum in float64 of the same numbers in the same order."""
        parts = [noise(1000, seed=seed) for seed in range(4)]
        whole = np.stack(parts).sum(axis=0, dtype=np.float64).astype(np.float32)
        monkeypatch.setattr(loading, "_SUMMED", 7)
        np.testing.assert_array_equal(loading._sum(parts, 1000), whole)

    def test_rate_and_channels_are_the_models(self, tmp_path: Path, put: Put) -> None:
        put(tmp_path / "vocals.wav", 4410, rate=44_100, channels=1)
        put(tmp_path / "accompaniment.wav", 4410, rate=44_100)
        (song,) = load_songs(tmp_path, TWO)
        assert song.mixture.shape == (2, 800)
        (mono,) = load_songs(tmp_path, spec_of("vocals", "accompaniment", channels=1))
        assert mono.mixture.shape == (1, 800)

    def test_a_file_beside_a_stem_does_not_take_its_place(self, tmp_path: Path, put: Put) -> None:
        stem = put(tmp_path / "vocals.wav")
        put(tmp_path / "accompaniment.wav")
        (tmp_path / "vocals.xml").write_text("notes")
        (tmp_path / "vocals.aaa").write_text("notes")
        (song,) = load_songs(tmp_path, TWO)
        np.testing.assert_array_equal(song.stems["vocals"], stem)

    def test_a_folder_of_folders_is_several_songs(self, tmp_path: Path, put: Put) -> None:
        for song in ("b", "a"):
            for name in PARTS:
                put(tmp_path / song / f"{name}.wav")
        (tmp_path / "README.txt").write_text("notes")
        assert [song.name for song in load_songs(tmp_path, TWO)] == ["a", "b"]

    def test_a_folder_of_songs_without_truth(self, tmp_path: Path, put: Put) -> None:
        audio = put(tmp_path / "one.wav")
        put(tmp_path / "two.wav")
        (tmp_path / "cover.txt").write_text("notes")
        (tmp_path / ".hidden.wav").write_text("notes")
        songs = load_songs(tmp_path, TWO)
        assert [song.name for song in songs] == ["one.wav", "two.wav"]
        assert all(song.stems == {} for song in songs)
        np.testing.assert_array_equal(songs[0].mixture, audio)

    def test_truth_for_two_stems_is_none_for_four(self, tmp_path: Path, put: Put) -> None:
        put(tmp_path / "song" / "vocals.wav")
        put(tmp_path / "song" / "accompaniment.wav")
        with pytest.raises(AudioError, match="song lacks drums, bass, other"):
            load_songs(tmp_path, FOUR)

    def test_vocals_alone_leave_no_accompaniment(self, tmp_path: Path, put: Put) -> None:
        for name in ("vocals", "mixture"):
            put(tmp_path / "song" / f"{name}.wav")
        with pytest.raises(AudioError, match="song lacks accompaniment, though it holds"):
            load_songs(tmp_path / "song", TWO)

    def test_a_song_that_lacks_a_stem_is_named(self, tmp_path: Path, put: Put) -> None:
        for name in PARTS:
            put(tmp_path / "whole" / f"{name}.wav")
        put(tmp_path / "broken" / "drums.wav")
        put(tmp_path / "broken" / "bass.wav")
        with pytest.raises(AudioError, match="broken lacks vocals"):
            load_songs(tmp_path, TWO)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match="holds no audio"):
            load_songs(tmp_path, TWO)

    def test_a_folder_without_audio(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("notes")
        with pytest.raises(AudioError, match="holds no audio"):
            load_songs(tmp_path, TWO)


class TestFiles:
    def test_a_file_is_a_mixture_without_truth(self, tmp_path: Path, put: Put) -> None:
        audio = put(tmp_path / "song.wav")
        (song,) = load_songs(tmp_path / "song.wav", TWO)
        assert (song.name, song.stems) == ("song.wav", {})
        np.testing.assert_array_equal(song.mixture, audio)

    def test_a_file_of_no_samples(self, tmp_path: Path, put: Put) -> None:
        put(tmp_path / "song.wav", 0)
        (song,) = load_songs(tmp_path / "song.wav", TWO)
        assert song.mixture.shape == (2, 0)

    def test_damage_is_noted_and_warned_of(
        self, tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "song.wav"
        put(path)
        path.write_bytes(path.read_bytes()[:-400])
        (song,) = load_songs(path, spec_of("vocals", "accompaniment"))
        (note,) = song.notes
        assert note.startswith("song.wav: ends at ")
        assert "the rest is missing" in caplog.text

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"nothing\.wav cannot be opened"):
            load_songs(tmp_path / "nothing.wav", TWO)

    def test_a_stem_file_gives_its_four_stems(self, tmp_path: Path) -> None:
        path = tmp_path / "song.stem.mp4"
        tones = dict(zip(STEM_FILE_STREAMS, (2000, 500, 800, 1100, 1700), strict=True))
        write_stem_file(path, tones)
        (song,) = load_songs(path, FOUR)
        assert song.name == "song"
        for name in PARTS:
            found = np.abs(np.fft.rfft(song.stems[name][0, :RATE]))
            assert abs(int(found.argmax()) - tones[name]) <= 2, name
        assert_sums(song)

    def test_the_stem_file_that_a_package_brings(self) -> None:
        path = example_stem_file()
        if path is None:
            pytest.skip("stempeg is not installed: its example stem file is the real one")
        spec = spec_of("vocals", "accompaniment", rate=44_100)
        song = load_stem_file(path, spec)
        assert song.mixture.shape[1] > 44_100
        assert set(song.stems) == {"vocals", "accompaniment"}
        assert all(np.abs(stem).max() > 0.01 for stem in song.stems.values())
        assert_sums(song)

    def test_no_package_no_example(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib.metadata import PackageNotFoundError

        from tfswa.runtime.songs import loading

        def missing(name: str) -> None:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(loading, "files", missing)
        assert example_stem_file() is None

    def test_a_plain_file_is_no_stem_file(self, tmp_path: Path, put: Put) -> None:
        put(tmp_path / "song.wav")
        with pytest.raises(UsageError, match="track 2 is not there"):
            load_stem_file(tmp_path / "song.wav", FOUR)

    def test_an_mp4_of_one_stream_is_a_mixture(self, tmp_path: Path) -> None:
        write_stem_file(tmp_path / "video.mp4", {"sound": 500})
        for spec in (TWO, spec_of("piano", "rest")):
            (song,) = load_songs(tmp_path / "video.mp4", spec)
            assert (song.name, song.stems) == ("video.mp4", {})
            assert song.mixture.shape[1] > RATE

    def test_an_mp4_of_five_streams_is_a_stem_file(self, tmp_path: Path) -> None:
        write_stem_file(tmp_path / "song.mp4", dict.fromkeys(STEM_FILE_STREAMS, 500))
        (song,) = load_songs(tmp_path, TWO)
        assert list(song.stems) == ["vocals", "accompaniment"]


class TestOneSong:
    def test_nothing_is_decoded_before_it_is_asked_for(self, tmp_path: Path, put: Put) -> None:
        for name in PARTS:
            put(tmp_path / "good" / f"{name}.wav")
            (tmp_path / "bad").mkdir(exist_ok=True)
            (tmp_path / "bad" / f"{name}.wav").write_text("no audio")
        bad, good = find_songs(tmp_path)
        assert load(good, FOUR).name == "good"
        with pytest.raises(AudioError, match="bad"):
            load(bad, FOUR)

    def test_all_sources_are_in_the_mixture_whatever_their_names(self, tmp_path: Path, put: Put) -> None:
        names = ("vocals", "piano", "guitar", "mixture", "linear_mixture")
        sources = {name: put(tmp_path / f"{name}.wav") for name in names}
        (files,) = find_songs(tmp_path)
        assert true_sources(files, TWO) == ["guitar", "piano", "vocals"]
        song = load(files, TWO)
        rest = sources["piano"] + sources["guitar"]
        np.testing.assert_allclose(song.stems["accompaniment"], rest, atol=1e-6)
        assert_sums(song)
        np.testing.assert_array_equal(load_source(files, "piano", TWO), sources["piano"])

    def test_a_mixture_alone_has_no_true_sources(self, tmp_path: Path, put: Put) -> None:
        audio = put(tmp_path / "song" / "mixture.wav")
        (files,) = find_songs(tmp_path)
        assert true_sources(files, FOUR) == []
        np.testing.assert_array_equal(load(files, FOUR).mixture, audio)


class TestSynthetic:
    @pytest.mark.parametrize("channels", [1, 2])
    def test_its_stems_sum_to_the_mixture(self, channels: int) -> None:
        song = synthetic_song(spec_of("vocals", "accompaniment", channels=channels), seconds=3)
        assert song.mixture.shape == (channels, 3 * RATE)
        assert song.mixture.dtype == np.float32
        assert all(0.01 < np.abs(stem).max() < 1.0 for stem in song.stems.values())
        assert_sums(song)

    def test_the_seed_decides(self) -> None:
        first, again, other = (synthetic_song(TWO, 2, seed) for seed in (1, 1, 2))
        assert first.sha256 == again.sha256
        assert first.sha256 != other.sha256

    def test_vocals_and_the_rest_differ(self) -> None:
        stems = synthetic_song(TWO, 3).stems
        value = snr_db(stems["vocals"], stems["vocals"] - stems["accompaniment"])
        assert value is not None
        assert abs(value) < 20

    def test_for_other_stems_the_truth_is_unknown(self) -> None:
        assert synthetic_song(FOUR, 1).stems == {}


class TestHash:
    def test_depends_on_mixture_and_on_each_stem(self) -> None:
        mixture, stem = noise(100), noise(100, seed=1)
        songs = [
            Song("a", mixture, {}),
            Song("a", mixture, {"vocals": stem}),
            Song("a", mixture, {"other": stem}),
            Song("a", mixture, {"vocals": mixture}),
            Song("a", stem, {}),
        ]
        assert len({song.sha256 for song in songs}) == len(songs)
        assert Song("b", mixture, {}).sha256 == songs[0].sha256  # a name is no sound


def write_stem_file(path: Path, tones: dict[str, int]) -> None:
    """An MP4 of one AAC stream for each tone, a second and a half long."""
    time = np.arange(RATE * 3 // 2) / RATE
    with av.open(str(path), "w", format="mp4") as container:
        streams = {name: container.add_stream("aac", rate=RATE, layout="stereo") for name in tones}
        for name, stream in streams.items():
            tone = (0.3 * np.sin(2 * np.pi * tones[name] * time)).astype(np.float32)
            for start in range(0, len(tone) - 1023, 1024):
                block = np.ascontiguousarray(np.tile(tone[start : start + 1024], (2, 1)))
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def test_the_loudest_chunk(tiny_spec: ModelSpec) -> None:
    length, hop = tiny_spec.chunk_samples, tiny_spec.stft.hop
    mixture = np.full((2, 10 * length), 0.01, np.float32)
    mixture[:, 40 * hop : 40 * hop + length] = 0.5
    start, chunk = loudest_chunk(mixture, tiny_spec)
    assert start == 40 * hop
    np.testing.assert_array_equal(chunk, mixture[:, start : start + length])
    mixture[:, -1] = 100.0  # the last samples that a chunk can hold
    start, chunk = loudest_chunk(mixture[:, : length + 3 * hop + 5], tiny_spec)
    assert start <= 3 * hop
    assert chunk.shape == (2, length)


@pytest.mark.parametrize("samples", [1, 100, 1919])
def test_a_short_song_is_followed_by_silence(tiny_spec: ModelSpec, samples: int) -> None:
    start, chunk = loudest_chunk(np.ones((2, samples), np.float32), tiny_spec)
    assert start == 0
    assert chunk.shape == (2, tiny_spec.chunk_samples)
    assert chunk[:, :samples].all()
    assert not chunk[:, samples:].any()


@pytest.mark.parametrize("samples", [0, 100])
def test_silence_has_no_loudest_chunk(tiny_spec: ModelSpec, samples: int) -> None:
    with pytest.raises(AudioError, match="no sound"):
        loudest_chunk(np.zeros((2, samples), np.float32), tiny_spec)
