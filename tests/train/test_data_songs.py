"""Songs for training: found, split, decoded once; what is missing is named."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import model_blocks, open_audio
from tfswa.runtime.errors import AudioError, ConfigError
from tfswa.runtime.songs.finding import STEM_FILE_STREAMS
from tfswa.runtime.songs.loading import example_stem_file
from tfswa.train.config import DataConfig
from tfswa.train.data import decode
from tfswa.train.data.decode import LEVEL_SAMPLES, Recording, is_intact, levels_of, read_decoded
from tfswa.train.data.songs import load_training_songs

RATE = 8000
Audio = NDArray[np.float32]
WriteSong = Callable[..., Path]


def sine(hertz: float, seconds: float = 4.0, rate: int = RATE, level: float = 0.25) -> Audio:
    """Left at full level, right at half."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack((wave, wave / 2)).astype(np.float32)


def only(root: Path, *sources: str, **more: Any) -> DataConfig:
    """A configuration that asks for these sources."""
    return DataConfig(root=str(root), sources={name: (name,) for name in sources}, **more)


@pytest.fixture
def data(song_root: Path) -> DataConfig:
    return DataConfig(root=str(song_root), validation=("B",))


@pytest.fixture
def stem_tree(tmp_path: Path) -> Path:
    """MUSDB18's layout, one real song in each split."""
    example = example_stem_file()
    if example is None:
        pytest.skip("stempeg is not installed: it holds the stem file")
    for split, name in (("train", "One"), ("test", "Two")):
        (tmp_path / "musdb" / split).mkdir(parents=True)
        shutil.copy(example, tmp_path / "musdb" / split / f"{name}.stem.mp4")
    return tmp_path / "musdb"


def test_songs_are_split_and_mapped(data: DataConfig) -> None:
    train, held_out = load_training_songs(data, RATE, 2)
    assert [s.name for s in train] == ["A", "C"]
    assert [s.name for s in held_out] == ["B"]
    for one in (*train, *held_out):
        assert sorted(one.sources) == ["bass", "drums", "other", "vocals"]
        assert one.samples == 6 * RATE
        for audio in one.sources.values():
            assert audio.shape == (2, 6 * RATE)
            assert audio.dtype == np.float32
            assert isinstance(audio, np.memmap)
            assert not audio.flags.writeable


def test_what_is_mapped_is_what_the_file_holds(song_root: Path, data: DataConfig) -> None:
    train, _ = load_training_songs(data, RATE, 2)
    with open_audio(song_root / "A" / "vocals.wav") as source:
        expected = np.concatenate(list(source.blocks()), axis=1)
    np.testing.assert_array_equal(train[0].sources["vocals"], expected)


def test_levels_are_those_of_the_audio(data: DataConfig) -> None:
    song = load_training_songs(data, RATE, 2)[0][0]
    for source, audio in song.sources.items():
        levels = song.levels[source]
        assert len(levels) == -(-6 * RATE // LEVEL_SAMPLES)
        first, last = audio[:, :LEVEL_SAMPLES], audio[:, (len(levels) - 1) * LEVEL_SAMPLES :]
        np.testing.assert_allclose(levels[0], np.square(first).mean(), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(levels[-1], np.square(last).mean(), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(levels_of(audio), levels, rtol=1e-4, atol=1e-12)


def test_chosen_songs_alone_are_trained_on(data: DataConfig) -> None:
    train, held_out = load_training_songs(dataclasses.replace(data, songs=("C", "B")), RATE, 2)
    assert [s.name for s in train] == ["C"]
    assert [s.name for s in held_out] == ["B"]


def test_progress_counts_the_sources(data: DataConfig) -> None:
    seen: list[tuple[int, int]] = []
    load_training_songs(data, RATE, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(13)]


@pytest.mark.parametrize(("split", "name"), [("train", "One"), ("test", "Two")])
def test_a_stem_file_tree_has_splits(stem_tree: Path, split: str, name: str) -> None:
    train, _ = load_training_songs(DataConfig(root=str(stem_tree), split=split), 44_100, 2)
    assert [s.name for s in train] == [name]
    stream = STEM_FILE_STREAMS.index("bass")
    with open_audio(stem_tree / split / f"{name}.stem.mp4", stream=stream) as source:
        expected = np.concatenate(list(model_blocks(source, 44_100, 2)), axis=1)
    np.testing.assert_array_equal(train[0].sources["bass"], expected)


def test_the_mixture_of_a_stem_file_is_its_own_stream(stem_tree: Path) -> None:
    song = load_training_songs(only(stem_tree, "mixture", "vocals", "drums", "bass", "other"), 44_100, 2)[0][
        0
    ]
    parts = sum(song.sources[part] for part in STEM_FILE_STREAMS[1:])
    assert np.abs(song.sources["mixture"] - parts).max() > 0.01


def test_the_mixture_of_parts_is_their_sum(tmp_path: Path, write_song: WriteSong) -> None:
    parts = {"vocals": sine(440), "drums": sine(1000), "accompaniment": sine(1000)}
    write_song(tmp_path / "songs" / "A", parts)
    mixture = load_training_songs(only(tmp_path / "songs", "mixture"), RATE, 2)[0][0].sources["mixture"]
    np.testing.assert_allclose(mixture, sine(440) + sine(1000), atol=1e-6)  # 24 bits


def test_parts_of_unlike_rate_and_kind_are_summed_block_by_block(
    tmp_path: Path, write_song: WriteSong
) -> None:
    folder = tmp_path / "songs" / "A"
    write_song(folder, {"vocals": sine(440, 20.0)})
    write_song(folder, {"drums": sine(1000, 20.0, rate=44_100)}, rate=44_100, ending=".flac")
    mixture = load_training_songs(only(tmp_path / "songs", "mixture"), RATE, 2)[0][0].sources["mixture"]
    expected = sine(440, 20.0) + sine(1000, 20.0)
    np.testing.assert_allclose(mixture[:, 500:-500], expected[:, 500:-500], atol=1e-3)


def test_loose_files_are_mixtures(tmp_path: Path, write_song: WriteSong) -> None:
    write_song(tmp_path / "songs", {"one": sine(440), "two": sine(660)})
    train, _ = load_training_songs(only(tmp_path / "songs", "mixture"), RATE, 2)
    assert [s.name for s in train] == ["one.wav", "two.wav"]
    assert train[0].sources["mixture"].shape == (2, 4 * RATE)


@pytest.mark.parametrize(("ending", "rate"), [(".wav", 44_100), (".flac", 44_100), (".wav", 48_000)])
def test_files_of_other_kinds_and_rates_come_out_alike(
    tmp_path: Path, write_song: WriteSong, ending: str, rate: int
) -> None:
    write_song(tmp_path / "songs" / "A", {"s": sine(440, rate=rate)}, rate=rate, ending=ending)
    audio = load_training_songs(only(tmp_path / "songs", "s"), 44_100, 2)[0][0].sources["s"]
    expected = sine(440, rate=44_100)
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio[:, 2000:-2000], expected[:, 2000:-2000], atol=1e-3)


def test_stereo_files_give_mono_where_the_model_is_mono(tmp_path: Path, write_song: WriteSong) -> None:
    write_song(tmp_path / "songs" / "A", {"s": sine(440)})
    config = only(tmp_path / "songs", "s")
    mono = load_training_songs(config, RATE, 1)[0][0].sources["s"]
    stereo = load_training_songs(config, RATE, 2)[0][0].sources["s"]
    assert mono.shape == (1, 4 * RATE)
    assert stereo.shape == (2, 4 * RATE)  # the cache keeps them apart
    np.testing.assert_allclose(mono[0], stereo.mean(axis=0), atol=1e-6)


def test_a_second_load_decodes_nothing(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_training_songs(data, RATE, 2)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "open_audio", never)
    second = load_training_songs(data, RATE, 2)
    for one, two in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(one.sources["vocals"], two.sources["vocals"])
    with pytest.raises(AssertionError, match="decoded again"):
        load_training_songs(data, RATE // 2, 2)


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, write_song: WriteSong) -> None:
    config = only(tmp_path / "songs", "s")
    write_song(tmp_path / "songs" / "A", {"s": sine(440)})
    load_training_songs(config, RATE, 2)
    write_song(tmp_path / "songs" / "A", {"s": sine(880)})
    os.utime(tmp_path / "songs" / "A" / "s.wav", ns=(1, 1))
    again = load_training_songs(config, RATE, 2)[0][0].sources["s"]
    np.testing.assert_allclose(again, sine(880), atol=1e-6)


def test_the_users_cache_is_the_default(data: DataConfig, private_cache: Path, tmp_path: Path) -> None:
    load_training_songs(data, RATE, 2)
    assert len(list((private_cache / "tfswa" / "decoded").glob("*.npy"))) == 12
    load_training_songs(dataclasses.replace(data, cache=str(tmp_path / "mine")), RATE, 2)
    assert len(list((tmp_path / "mine").glob("*.npy"))) == 12


def test_decoding_a_long_file_needs_little_memory(tmp_path: Path, write_song: WriteSong) -> None:
    import tracemalloc

    write_song(tmp_path, {"s": sine(440, 120.0)})
    recording = Recording(((tmp_path / "s.wav", 0),), RATE, 2)
    tracemalloc.start()
    try:
        with (tmp_path / "s.npy").open("wb") as file:
            recording.write(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    found = read_decoded(tmp_path / "s.npy")
    assert found is not None
    assert found.audio.nbytes > 7e6
    assert peak < 4e6  # some blocks of half a megabyte


@pytest.mark.parametrize("keep", [0, 60, 200, 10_000])
def test_an_entry_that_was_cut_short_is_none(tmp_path: Path, write_song: WriteSong, keep: int) -> None:
    write_song(tmp_path, {"s": sine(440)})
    with (tmp_path / "s.npy").open("wb") as file:
        Recording(((tmp_path / "s.wav", 0),), RATE, 2).write(file)
    assert read_decoded(tmp_path / "s.npy") is not None
    (tmp_path / "s.npy").write_bytes((tmp_path / "s.npy").read_bytes()[:keep])
    assert read_decoded(tmp_path / "s.npy") is None
    assert read_decoded(tmp_path / "none.npy") is None


def test_an_entry_without_its_last_byte_is_not_intact(tmp_path: Path, write_song: WriteSong) -> None:
    """Its sound can be mapped: what is missing is of the check."""
    write_song(tmp_path, {"s": sine(440)})
    with (tmp_path / "s.npy").open("wb") as file:
        Recording(((tmp_path / "s.wav", 0),), RATE, 2).write(file)
    assert is_intact(tmp_path / "s.npy")
    (tmp_path / "s.npy").write_bytes((tmp_path / "s.npy").read_bytes()[:-1])
    assert not is_intact(tmp_path / "s.npy")


def test_hidden_folders_and_other_files_are_no_songs(tmp_path: Path, write_song: WriteSong) -> None:
    root = tmp_path / "songs"
    write_song(root / "A", {"s": sine(440)})
    (root / ".git").mkdir()
    (root / "readme.txt").touch()
    train, _ = load_training_songs(only(root, "s"), RATE, 2)
    assert [s.name for s in train] == ["A"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"root": "nowhere"}, "data.root nowhere is not there"),
        ({"validation": ("Z",)}, r"data\.validation: song 'Z' is not in .*A, B, C"),
        ({"songs": ("Y",)}, r"data\.songs: song 'Y' is not in"),
        ({"songs": ("B",)}, "no song to train on"),
        ({"validation": ("A", "B", "C")}, "no song to train on: of 3 found all are held out"),
        ({"sources": {"a": ("piano",)}}, "song 'A' has no source 'piano', only bass, drums, other, vocals"),
        ({"cache_gb": 0.0001}, r"needs 0\.00\d+ GB, data\.cache_gb allows 0\.0001 GB"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(data: DataConfig, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_training_songs(dataclasses.replace(data, **changes), RATE, 2)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_split_that_is_not_there(stem_tree: Path) -> None:
    shutil.rmtree(stem_tree / "test")
    with pytest.raises(ConfigError, match=r"data\.root: .* has train, asked for is 'test'"):
        load_training_songs(DataConfig(root=str(stem_tree), split="test"), RATE, 2)


def test_all_splits_at_once(stem_tree: Path) -> None:
    both = DataConfig(root=str(stem_tree), split="", songs=("One",), validation=("Two",))
    train, held_out = load_training_songs(both, 44_100, 2)
    assert [song.name for song in (*train, *held_out)] == ["One", "Two"]
    shutil.copy(stem_tree / "train" / "One.stem.mp4", stem_tree / "test")
    with pytest.raises(ConfigError, match=r"one name in train and test: choose one by data\.split"):
        load_training_songs(both, 44_100, 2)


def test_a_folder_without_songs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no audio"):
        load_training_songs(DataConfig(root=str(tmp_path)), RATE, 2)


def test_files_that_are_no_audio(tmp_path: Path, write_song: WriteSong) -> None:
    write_song(tmp_path / "songs" / "A", {"s": sine(440)})
    (tmp_path / "songs" / "A" / "s.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"s\.wav"):
        load_training_songs(only(tmp_path / "songs", "s"), RATE, 2)


def test_a_song_may_lack_sources_where_that_is_said(tmp_path: Path, write_song: WriteSong) -> None:
    root = tmp_path / "songs"
    write_song(root / "A", {"voice": sine(440)})
    write_song(root / "B", {"band": sine(220), "cowbell": sine(880)})
    strict = only(root, "band", "voice")
    with pytest.raises(ConfigError, match=r"'A' has no source 'band', only voice: .*data\.partial = true"):
        load_training_songs(strict, RATE, 2)
    partial = dataclasses.replace(strict, partial=True)
    songs, _ = load_training_songs(partial, RATE, 2)
    assert [list(song.sources) for song in songs] == [["voice"], ["band"]]
    piano = dataclasses.replace(partial, sources={"a": ("band",), "b": ("piano", "voice")})
    with pytest.raises(ConfigError, match="no song to train on has source 'piano'"):
        load_training_songs(piano, RATE, 2)
    write_song(root / "C", {"cowbell": sine(880)})
    with pytest.raises(ConfigError, match=r"'C' has no source 'band', only cowbell: .*leave the song out"):
        load_training_songs(partial, RATE, 2)


def test_sources_of_unequal_length_are_refused_and_of_nearly_equal_cut(
    tmp_path: Path, write_song: WriteSong, caplog: pytest.LogCaptureFixture
) -> None:
    config = only(tmp_path / "songs", "a", "b")
    write_song(tmp_path / "songs" / "A", {"a": sine(440), "b": sine(440)[:, :-100]})
    one = load_training_songs(config, RATE, 2)[0][0]
    assert caplog.messages == [
        "A: its sources differ in length: b has 3.987 s, a 4.000 s, which is 100 samples more: "
        "all end with the shortest"
    ]
    assert one.samples == 4 * RATE - 100
    assert {audio.shape[1] for audio in one.sources.values()} == {4 * RATE - 100}
    write_song(tmp_path / "songs" / "A", {"b": sine(440, seconds=3.0)})
    with pytest.raises(ConfigError, match=r"differ in length.*32000.*24000"):
        load_training_songs(config, RATE, 2)
