"""Songs and chunks: decoded once, drawn by index alone, and every augmentation proven on a sine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, ConfigError

torch = pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from torch.utils.data import DataLoader  # noqa: E402

from tfswa.train.config import AugmentConfig, DataConfig  # noqa: E402
from tfswa.train.data import songs as songs_module  # noqa: E402
from tfswa.train.data.chunks import Chunks  # noqa: E402
from tfswa.train.data.songs import Song, load_songs  # noqa: E402

RATE = 8000
PLAIN = AugmentConfig(remix=0.0, gain_db=0.0, channel_swap=0.0, speed=1.0, silence=0.0)
ONE = DataConfig(sources={"s": ("s",)})
Audio = NDArray[np.float32]


def sine(hertz: float, seconds: float = 4.0, rate: int = RATE, level: float = 0.25) -> Audio:
    """Left at full level, right at half."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack((wave, wave / 2)).astype(np.float32)


def pitch(chunk: Audio, rate: int = RATE) -> float:
    """The strongest frequency of a mono signal, in Hz, finer than a bin."""
    size = 1 << 17
    spectrum = np.abs(np.fft.rfft(chunk * np.hanning(len(chunk)), size))
    return float(np.argmax(spectrum)) * rate / size


def song(name: str, **sources: Audio) -> Song:
    return Song(name, sources)


def chunks(songs: list[Song], augment: AugmentConfig = PLAIN, data: DataConfig = ONE, **more: Any) -> Chunks:
    return Chunks(songs, list(data.sources), data, augment, **{"samples": 4000, "seed": 0, **more})


def draw(dataset: Chunks, count: int = 40) -> Audio:
    return np.stack([dataset[index].numpy() for index in range(count)])


@pytest.fixture
def data(song_root: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(root=str(song_root), cache=str(tmp_path / "decoded"), validation=("B",))


def test_songs_are_split_and_mapped(data: DataConfig) -> None:
    train, held_out = load_songs(data, RATE, 2)
    assert [s.name for s in train] == ["A", "C"]
    assert [s.name for s in held_out] == ["B"]
    for one in (*train, *held_out):
        assert sorted(one.sources) == ["bass", "drums", "other", "vocals"]
        assert one.samples == 6 * RATE
        for audio in one.sources.values():
            assert audio.shape == (2, 6 * RATE)
            assert audio.dtype == np.float32
            assert isinstance(audio, np.memmap)


def test_chosen_songs_alone_are_trained_on(data: DataConfig) -> None:
    train, held_out = load_songs(dataclasses.replace(data, songs=("C", "B")), RATE, 2)
    assert [s.name for s in train] == ["C"]
    assert [s.name for s in held_out] == ["B"]


@pytest.mark.parametrize(("ending", "rate"), [(".wav", 44_100), (".flac", 44_100), (".wav", 48_000)])
def test_files_of_other_kinds_and_rates_come_out_alike(
    tmp_path: Path, write_song: Callable[..., Path], ending: str, rate: int
) -> None:
    write_song(tmp_path / "songs" / "A", {"s": sine(440, rate=rate)}, rate=rate, ending=ending)
    config = DataConfig(root=str(tmp_path / "songs"), sources={"s": ("s",)}, cache=str(tmp_path / "cache"))
    audio = load_songs(config, 44_100, 2)[0][0].sources["s"]
    expected = sine(440, rate=44_100)
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio[:, 2000:-2000], expected[:, 2000:-2000], atol=1e-3)


def test_stereo_files_give_mono_where_the_model_is_mono(
    tmp_path: Path, write_song: Callable[..., Path]
) -> None:
    write_song(tmp_path / "songs" / "A", {"s": sine(440)})
    config = DataConfig(root=str(tmp_path / "songs"), sources={"s": ("s",)}, cache=str(tmp_path / "cache"))
    mono = load_songs(config, RATE, 1)[0][0].sources["s"]
    stereo = load_songs(config, RATE, 2)[0][0].sources["s"]
    assert mono.shape == (1, 4 * RATE)
    assert stereo.shape == (2, 4 * RATE)  # the cache keeps them apart
    np.testing.assert_allclose(mono[0], stereo.mean(axis=0), atol=1e-6)


def test_a_second_load_decodes_nothing(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_songs(data, RATE, 2)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(songs_module, "open_audio", never)
    second = load_songs(data, RATE, 2)
    for one, two in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(one.sources["vocals"], two.sources["vocals"])
    with pytest.raises(AssertionError, match="decoded again"):
        load_songs(data, RATE // 2, 2)


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, write_song: Callable[..., Path]) -> None:
    config = DataConfig(root=str(tmp_path / "songs"), sources={"s": ("s",)}, cache=str(tmp_path / "cache"))
    write_song(tmp_path / "songs" / "A", {"s": sine(440)})
    load_songs(config, RATE, 2)
    write_song(tmp_path / "songs" / "A", {"s": sine(880)})
    os.utime(tmp_path / "songs" / "A" / "s.wav", ns=(1, 1))
    assert pitch(load_songs(config, RATE, 2)[0][0].sources["s"][0]) == pytest.approx(880, abs=1)


def test_the_users_cache_is_the_default(data: DataConfig, private_cache: Path) -> None:
    load_songs(dataclasses.replace(data, cache=""), RATE, 2)
    assert len(list((private_cache / "tfswa" / "decoded").glob("*.npy"))) == 12


def test_a_decoder_that_fails_leaves_no_half_cache(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, audio: Audio) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fails)
    with pytest.raises(ConfigError, match="No space left"):
        load_songs(data, RATE, 2)
    assert list(Path(data.cache).iterdir()) == []
    monkeypatch.undo()
    assert load_songs(data, RATE, 2)


def test_a_cache_that_cannot_be_made(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache.*file"):
        load_songs(dataclasses.replace(data, cache=str(tmp_path / "file" / "below")), RATE, 2)


def test_hidden_folders_and_loose_files_are_no_songs(tmp_path: Path, write_song: Callable[..., Path]) -> None:
    root = tmp_path / "songs"
    write_song(root / "A", {"s": sine(440)})
    (root / ".git").mkdir()
    (root / "readme.txt").touch()
    train, _ = load_songs(DataConfig(root=str(root), sources={"s": ("s",)}), RATE, 2)
    assert [s.name for s in train] == ["A"]


def test_what_is_missing_is_named(data: DataConfig, tmp_path: Path, write_song: Callable[..., Path]) -> None:
    cases = [
        ({"root": str(tmp_path / "nowhere")}, "nowhere is not a folder"),
        ({"validation": ("Z",)}, r"song 'Z' is not in .*A, B, C"),
        ({"songs": ("Y",)}, "song 'Y' is not in"),
        ({"songs": ("B",)}, "no song to train on"),
        ({"sources": {"a": ("piano",)}}, r"A has no piano file.*\.wav.*\.flac"),
    ]
    for changes, match in cases:
        with pytest.raises(ConfigError, match=match):
            load_songs(dataclasses.replace(data, **changes), RATE, 2)
    (tmp_path / "empty").mkdir()
    for validation in ((), ("A",)):
        with pytest.raises(ConfigError, match=r"no song|no folders"):
            load_songs(DataConfig(root=str(tmp_path / "empty"), validation=validation), RATE, 2)
    (tmp_path / "bad" / "A").mkdir(parents=True)
    (tmp_path / "bad" / "A" / "s.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"s\.wav"):
        load_songs(DataConfig(root=str(tmp_path / "bad"), sources={"s": ("s",)}), RATE, 2)


def test_sources_of_unequal_length_are_refused_and_of_nearly_equal_cut(
    tmp_path: Path, write_song: Callable[..., Path]
) -> None:
    config = DataConfig(
        root=str(tmp_path), sources={"a": ("a",), "b": ("b",)}, cache=str(tmp_path / ".cache")
    )
    write_song(tmp_path / "A", {"a": sine(440), "b": sine(440)[:, :-100]})
    one = load_songs(config, RATE, 2)[0][0]
    assert one.samples == 4 * RATE - 100
    assert {audio.shape[1] for audio in one.sources.values()} == {4 * RATE - 100}
    write_song(tmp_path / "A", {"b": sine(440, seconds=3.0)})
    with pytest.raises(ConfigError, match=r"differ in length.*32000.*24000"):
        load_songs(config, RATE, 2)


def two_songs() -> list[Song]:
    """Every source of every song has a pitch of its own."""
    return [
        song("A", a=sine(200), b=sine(1000)),
        song("B", a=sine(500), b=sine(2000)),
    ]


TWO = DataConfig(sources={"a": ("a",), "b": ("b",)})


def test_chunks_are_functions_of_seed_and_index() -> None:
    augment = AugmentConfig(remix=0.5, gain_db=6, channel_swap=0.5, speed=1.2, silence=0.1)
    first, again = chunks(two_songs(), augment, TWO), chunks(two_songs(), augment, TWO)
    order = [5, 0, 3, 3, 1]
    taken = {index: first[index] for index in range(6)}
    np.random.seed(1)  # global states, which must not matter
    torch.manual_seed(1)
    for index in order:
        assert torch.equal(again[index], taken[index])
    assert not torch.equal(taken[0], taken[1])
    assert not torch.equal(chunks(two_songs(), augment, TWO, seed=1)[0], taken[0])


def test_worker_processes_do_not_change_the_data() -> None:
    dataset = chunks(two_songs(), AugmentConfig(remix=0.5, speed=1.1), TWO)
    expected = torch.stack([dataset[index] for index in range(2, 8)])
    loader = DataLoader(
        dataset, batch_size=2, sampler=range(2, 8), num_workers=2, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_chunks_have_the_stems_in_order_and_sum_their_sources() -> None:
    songs = [song("A", a=sine(200), b=sine(1000), c=sine(3000))]
    data = DataConfig(sources={"x": ("b", "c"), "y": ("a",)})
    chunk = chunks(songs, PLAIN, data)[0].numpy()
    assert chunk.shape == (2, 2, 4000)
    assert chunk.dtype == np.float32
    assert pitch(chunk[1, 0]) == pytest.approx(200, abs=1)
    spectrum = np.abs(np.fft.rfft(chunk[0, 0] * np.hanning(4000)))
    assert spectrum[500] > 100
    assert spectrum[1500] > 100
    assert spectrum[100] < 1


def test_without_remix_the_sources_stay_together() -> None:
    together = {(200, 1000), (500, 2000)}
    seen = set()
    for chunk in draw(chunks(two_songs(), PLAIN, TWO)):
        seen.add(tuple(round(pitch(stem[0]), -1) for stem in chunk))
    assert seen == together


def test_without_remix_the_sources_are_cut_at_one_place() -> None:
    ramp = np.linspace(0.1, 0.9, 4 * RATE, dtype=np.float32)[None].repeat(2, axis=0)
    for chunk in draw(chunks([song("A", a=ramp, b=ramp)], PLAIN, TWO), 5):
        np.testing.assert_array_equal(chunk[0], chunk[1])
    remixed = draw(chunks([song("A", a=ramp, b=ramp)], dataclasses.replace(PLAIN, remix=1.0), TWO), 5)
    assert not any(np.array_equal(chunk[0], chunk[1]) for chunk in remixed)


def test_remix_mixes_songs() -> None:
    seen = set()
    for chunk in draw(chunks(two_songs(), dataclasses.replace(PLAIN, remix=1.0), TWO)):
        seen.add(tuple(round(pitch(stem[0]), -1) for stem in chunk))
    assert seen == {(200, 1000), (200, 2000), (500, 1000), (500, 2000)}


def test_the_gain_stays_in_its_range_and_uses_it() -> None:
    steady = np.full((2, 4 * RATE), 0.1, np.float32)
    taken = draw(chunks([song("A", s=steady)], dataclasses.replace(PLAIN, gain_db=6.0)))
    gains_db = 20 * np.log10(taken.max(axis=(1, 2, 3)) / 0.1)
    assert -6.001 <= gains_db.min() < -4
    assert 4 < gains_db.max() <= 6.001
    assert np.ptp(taken, axis=(1, 2, 3)).max() < 1e-6  # one gain for all of a chunk


def test_channels_are_swapped_as_often_as_asked() -> None:
    def swapped(probability: float) -> float:
        taken = draw(chunks([song("A", s=sine(440))], dataclasses.replace(PLAIN, channel_swap=probability)))
        levels = np.sqrt(np.square(taken[:, 0]).mean(axis=-1))  # [chunks, C]
        np.testing.assert_allclose(levels.max(axis=1) / levels.min(axis=1), 2, rtol=1e-3)
        return float(np.mean(levels[:, 1] > levels[:, 0]))

    assert swapped(0.0) == 0.0
    assert swapped(1.0) == 1.0
    assert 0.2 < swapped(0.5) < 0.8


def test_silence_leaves_a_source_out_as_often_as_asked() -> None:
    def silent(probability: float) -> float:
        taken = draw(chunks([song("A", s=sine(440))], dataclasses.replace(PLAIN, silence=probability)))
        return float(np.mean(np.abs(taken).max(axis=(1, 2, 3)) == 0))

    assert silent(0.0) == 0.0
    assert silent(1.0) == 1.0
    assert 0.2 < silent(0.5) < 0.8


def test_speed_moves_the_pitch_both_ways_and_keeps_length_and_level() -> None:
    taken = draw(chunks([song("A", s=sine(440))], dataclasses.replace(PLAIN, speed=1.25)))
    pitches = np.array([pitch(chunk[0, 0]) for chunk in taken])
    assert taken.shape[-1] == 4000
    assert 440 / 1.25 - 1 < pitches.min() < 400
    assert 480 < pitches.max() < 440 * 1.25 + 1
    np.testing.assert_allclose(np.abs(taken[:, 0, 0, 500:3500]).max(axis=-1), 0.25, rtol=0.02)
    for chunk in taken:  # no silence where resampling came out short
        assert np.abs(chunk[0, 0, -40:]).max() > 0.15


def test_augmentations_are_drawn_for_each_source() -> None:
    steady = np.full((2, 4 * RATE), 0.1, np.float32)
    taken = draw(chunks([song("A", a=steady, b=steady)], dataclasses.replace(PLAIN, gain_db=6.0), TWO), 5)
    assert not np.isclose(taken[:, 0, 0, 0], taken[:, 1, 0, 0]).any()


def test_mono_songs_survive_every_augmentation() -> None:
    augment = AugmentConfig(remix=1.0, gain_db=3, channel_swap=1.0, speed=1.1, silence=0.0)
    assert chunks([song("A", s=sine(440)[:1])], augment)[0].shape == (1, 1, 4000)


def test_a_chunk_longer_than_a_song_is_refused() -> None:
    songs = [song("long", s=sine(440)), song("short", s=sine(440, seconds=0.5))]
    with pytest.raises(ConfigError, match=r"short has 4000 samples, a chunk needs 4001: lower optim\.frames"):
        chunks(songs)
    assert chunks(songs, samples=3999)[0].shape == (1, 2, 3999)
    with pytest.raises(ConfigError, match="a chunk needs"):
        chunks(songs, dataclasses.replace(PLAIN, speed=1.01), samples=3999)


def test_the_longest_speed_reads_within_the_song() -> None:
    augment = dataclasses.replace(PLAIN, speed=1.3)
    dataset = chunks([song("A", s=sine(440, seconds=0.7))], augment, samples=4300)
    assert draw(dataset, 30).shape == (30, 1, 2, 4300)


def test_draws_avoid_silence() -> None:
    quiet = sine(440)
    quiet[:, : 3 * RATE] = 0.0
    songs = [song("A", s=quiet)]

    def silent(draws: int) -> float:
        data = DataConfig(sources={"s": ("s",)}, draws=draws, activity_db=-40.0)
        return float(np.mean(np.abs(draw(chunks(songs, PLAIN, data), 60)).max(axis=(1, 2, 3)) == 0))

    assert silent(1) > 0.4
    assert silent(30) == 0.0


def test_a_song_that_is_silent_throughout_still_gives_chunks() -> None:
    assert not chunks([song("A", s=np.zeros((2, 4 * RATE), np.float32))])[0].any()
