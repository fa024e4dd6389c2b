"""Chunks: drawn by seed and index alone, from places that sound; batches of them, whatever loads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import ConfigError, TrainingError
from tfswa.runtime.songs.loading import example_stem_file

torch = pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")
pytest.importorskip("python_stretch", reason="python-stretch is not installed: tempo and pitch need it")

from tfswa.train.config import AugmentConfig, DataConfig  # noqa: E402
from tfswa.train.data.chunks import ChunkRecipe, Chunks  # noqa: E402
from tfswa.train.data.decode import levels_of  # noqa: E402
from tfswa.train.data.loader import batches  # noqa: E402
from tfswa.train.data.songs import TrainingSong, load_training_songs  # noqa: E402

RATE = 8000
N = 4000
PLAIN = AugmentConfig(remix=0.0, gain=0.0, channel_swap=0.0)
EVERYTHING = AugmentConfig(
    remix=0.5, tempo=0.3, pitch=0.3, speed=0.3, frequency_mask=0.3, time_mask=0.3, silence=0.1
)
ANYWHERE = DataConfig(draws=1)
Audio = NDArray[np.float32]


def sine(hertz: float, seconds: float = 4.0, level: float = 0.25) -> Audio:
    """Left at full level, right at half."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.stack((wave, wave / 2)).astype(np.float32)


def pitch(wave: Audio) -> float:
    """The strongest frequency of a mono signal, in Hz, finer than a bin."""
    size = 1 << 17
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size))
    return float(np.argmax(spectrum)) * RATE / size


def two_songs() -> list[TrainingSong]:
    """Every source of every song has a pitch of its own."""
    return [
        TrainingSong("A", {"a": sine(200), "b": sine(1000)}),
        TrainingSong("B", {"a": sine(500), "b": sine(2000)}),
    ]


def chunks(
    songs: list[TrainingSong] | None = None,
    augment: AugmentConfig = PLAIN,
    groups: list[tuple[str, ...]] | None = None,
    data: DataConfig = ANYWHERE,
    seed: int = 0,
) -> Chunks:
    songs = two_songs() if songs is None else songs
    return Chunks(songs, groups or [(name,) for name in songs[0].sources], data, augment, RATE, seed)


def draw(dataset: Chunks, count: int = 40) -> Audio:
    return np.stack([dataset[index, N].stems.numpy() for index in range(count)])


class TestChunks:
    def test_are_functions_of_seed_and_index_and_length(self) -> None:
        first, again = chunks(augment=EVERYTHING), chunks(augment=EVERYTHING)
        taken = {index: first[index, N].stems for index in range(12)}
        np.random.seed(1)  # global states, which must not matter
        torch.manual_seed(1)
        for index in (5, 0, 3, 3, 11, 1):
            again[index, N // 2]
            assert torch.equal(again[index, N].stems, taken[index])
        assert not torch.equal(taken[0], taken[1])
        assert not torch.equal(chunks(augment=EVERYTHING, seed=1)[0, N].stems, taken[0])

    def test_have_the_stems_in_order_and_sum_their_sources(self) -> None:
        songs = [TrainingSong("A", {"a": sine(200), "b": sine(1000), "c": sine(3000)})]
        item = chunks(songs, groups=[("b", "c"), ("a",)])[7, N]
        assert item.index == 7
        assert item.seconds > 0
        assert item.stems.shape == (2, 2, N)
        assert item.stems.dtype == torch.float32
        stems = item.stems.numpy()
        assert pitch(stems[1, 0]) == pytest.approx(200, abs=1)
        spectrum = np.abs(np.fft.rfft(stems[0, 0] * np.hanning(N)))
        assert spectrum[500] > 100
        assert spectrum[1500] > 100
        assert spectrum[100] < 1

    @pytest.mark.parametrize("samples", [1, 1023, 4000, 4001])
    def test_are_as_long_as_asked(self, samples: int) -> None:
        dataset = chunks(augment=EVERYTHING)
        for index in range(8):
            assert dataset[index, samples].stems.shape == (2, 2, samples)

    def test_without_remix_the_sources_stay_together(self) -> None:
        seen = set()
        for chunk in draw(chunks()):
            seen.add(tuple(round(pitch(stem[0]), -1) for stem in chunk))
        assert seen == {(200, 1000), (500, 2000)}

    def test_without_remix_the_sources_are_cut_at_one_place(self) -> None:
        ramp = np.linspace(0.1, 0.9, 4 * RATE, dtype=np.float32)[None].repeat(2, axis=0)
        song = TrainingSong("A", {"a": ramp, "b": ramp})
        for chunk in draw(chunks([song]), 5):
            np.testing.assert_array_equal(chunk[0], chunk[1])
        remixed = draw(chunks([song], dataclasses.replace(PLAIN, remix=1.0)), 5)
        assert not any(np.array_equal(chunk[0], chunk[1]) for chunk in remixed)

    def test_remix_mixes_songs(self) -> None:
        seen = set()
        for chunk in draw(chunks(augment=dataclasses.replace(PLAIN, remix=1.0))):
            seen.add(tuple(round(pitch(stem[0]), -1) for stem in chunk))
        assert seen == {(200, 1000), (200, 2000), (500, 1000), (500, 2000)}

    def test_speed_keeps_sources_aligned_exactly(self) -> None:
        random = np.random.default_rng(0)
        parts = random.standard_normal((2, 2, 4 * RATE)).astype(np.float32)
        song = TrainingSong("A", {"a": parts[0], "b": parts[1], "mixture": parts[0] + parts[1]})
        for chunk in draw(chunks([song], dataclasses.replace(PLAIN, speed=1.0)), 5):
            np.testing.assert_allclose(chunk[0] + chunk[1], chunk[2], atol=1e-5)

    def test_plans_say_what_is_done_and_are_json(self) -> None:
        dataset = chunks(augment=EVERYTHING)
        for index in range(30):
            plan = dataset.plan(index, N)
            written = json.loads(json.dumps(plan.to_dict()))
            assert written["index"] == index
            assert written["samples"] == N
            for source, entry in zip(plan.sources, written["sources"], strict=True):
                line = str(source)
                assert "\n" not in line
                assert line.startswith(
                    f"{source.source}: '{source.song_name}' at {source.start / RATE:.3f} s, "
                )
                assert ("left out" in line) == entry["change"]["silence"]
                if not source.change.silence:
                    assert ("tempo" in line) == (entry["motion"]["tempo"] != 1)
                    assert ("semitones" in line) == (entry["motion"]["semitones"] != 0)
                    assert ("swapped" in line) == entry["change"]["channel_swap"]
                    assert (" Hz" in line) == (entry["change"]["frequency_mask"] is not None)
        assert str(chunks().plan(0, N).sources[0]).endswith("as it is")

    def test_a_plan_renders_to_its_chunk(self) -> None:
        dataset = chunks(augment=EVERYTHING)
        for index in range(8):
            plan = dataset.plan(index, N)
            assert isinstance(plan, ChunkRecipe)
            np.testing.assert_array_equal(dataset.render(plan), dataset[index, N].stems.numpy())

    def test_places_reach_from_the_first_sample_to_the_last(self) -> None:
        song = TrainingSong("A", {"s": sine(440, seconds=(N + 3) / RATE)})
        for data in (ANYWHERE, DataConfig(activity_db=0.0)):  # anywhere, and where nothing counts as active
            starts = {chunks([song], data=data).plan(index, N).sources[0].start for index in range(60)}
            assert starts == {0, 1, 2, 3}

    def test_longer_than_a_song_are_refused_in_one_line(self) -> None:
        songs = [TrainingSong("long", {"s": sine(440)}), TrainingSong("short", {"s": sine(440, seconds=0.5)})]
        match = r"song 'short' has 4000 samples, a chunk needs 4001: lower optim\.frames"
        with pytest.raises(ConfigError, match=match):
            chunks(songs).check(4001)
        with pytest.raises(ConfigError, match=match):
            chunks(songs)[0, 4001]
        chunks(songs).check(4000)
        for name, most in (("speed", 3478), ("tempo", 3636)):  # by 1.15 and 1.1
            dataset = chunks(songs, dataclasses.replace(PLAIN, **{name: 0.1}))
            dataset.check(most)
            with pytest.raises(ConfigError, match="a chunk needs"):
                dataset.check(most + 1)

    def test_the_longest_motion_reads_within_the_song(self) -> None:
        augment = dataclasses.replace(
            PLAIN, speed=1.0, speed_range=(1.3, 1.3), tempo=1.0, tempo_range=(1.2, 1.2)
        )
        dataset = chunks([TrainingSong("A", {"s": sine(440, seconds=0.79)})], augment)
        for chunk in draw(dataset, 10):
            assert np.abs(chunk[0, 0, -40:]).max() > 0.1  # no silence where the song ended


class TestActivity:
    """Vocals that are silent 80 % of the time."""

    @staticmethod
    def mostly_silent() -> TrainingSong:
        vocals = sine(440, seconds=40.0)
        sounding = (np.arange(40 * RATE) // RATE) % 10 < 2
        return TrainingSong("A", {"vocals": vocals * sounding, "other": sine(1000, seconds=40.0)})

    @staticmethod
    def share(dataset: Chunks, stem: int = 0, count: int = 200) -> float:
        power = [np.square(dataset.render(dataset.plan(i, N))[stem]).mean() for i in range(count)]
        return float(np.mean(np.array(power) > 10 ** (-45 / 10)))

    @pytest.mark.parametrize("remix", [0.0, 1.0])
    def test_vocals_sound_in_more_chunks_than_chance_gives(self, remix: float) -> None:
        songs, augment = [self.mostly_silent()], dataclasses.replace(PLAIN, remix=remix)
        by_chance = self.share(chunks(songs, augment, data=DataConfig(draws=1)))
        chosen = self.share(chunks(songs, augment, data=DataConfig(draws=2)))
        assert 0.15 < by_chance < 0.35
        assert chosen > 0.97

    def test_with_the_other_source_asked_for_first_too(self) -> None:
        data = DataConfig(draws=2)
        dataset = chunks([self.mostly_silent()], groups=[("other",), ("vocals",)], data=data)
        assert self.share(dataset, stem=1) > 0.97

    def test_all_places_that_sound_are_used(self) -> None:
        dataset = chunks([self.mostly_silent()], data=DataConfig(draws=2))
        seconds = {int(dataset.plan(index, N).sources[0].start_seconds) % 10 for index in range(200)}
        assert {0, 1} <= seconds <= {9, 0, 1, 2}  # a chunk is half a second, and blurred by a span
        tens = {int(dataset.plan(index, N).sources[0].start_seconds) // 10 for index in range(200)}
        assert tens == {0, 1, 2, 3}

    def test_measured_levels_and_given_ones_draw_alike(self) -> None:
        song = self.mostly_silent()
        given = dataclasses.replace(song, levels={name: levels_of(a) for name, a in song.sources.items()})
        one, two = (chunks([s], data=DataConfig(draws=3)) for s in (song, given))
        assert [one.plan(i, N) for i in range(20)] == [two.plan(i, N) for i in range(20)]

    def test_a_group_sounds_where_one_of_its_sources_does(self) -> None:
        song = self.mostly_silent()
        places = chunks([song], groups=[("vocals", "other")], data=DataConfig(draws=2))
        seconds = {int(places.plan(index, N).sources[0].start_seconds) % 10 for index in range(100)}
        assert len(seconds) == 10

    def test_a_song_that_is_silent_throughout_still_gives_chunks(self) -> None:
        silent = TrainingSong("A", {"s": np.zeros((2, 4 * RATE), np.float32)})
        assert not chunks([silent], data=DataConfig())[0, N].stems.any()

    def test_quieter_than_the_limit_is_silence(self) -> None:
        quiet = sine(440, seconds=8.0)
        quiet[:, 2 * RATE :] *= 0.1
        level = 10 * np.log10(np.square(quiet[:, :RATE]).mean())
        for limit, expected in ((level - 1, (0, 1)), (level - 21, range(8))):
            data = DataConfig(draws=2, activity_db=float(limit))
            dataset = chunks([TrainingSong("A", {"s": quiet})], data=data)
            seconds = {int(dataset.plan(index, 1000).sources[0].start_seconds) for index in range(100)}
            assert seconds == set(expected)


def keys(first: int = 0, count: int = 6, size: int = 3, samples: int = N) -> Iterator[list[tuple[int, int]]]:
    for batch in range(first, count):
        yield [(batch * size + item, samples) for item in range(size)]


class TestBatches:
    @pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on small machines
    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_workers_do_not_change_the_data(self, workers: int) -> None:
        dataset = chunks(augment=EVERYTHING)
        loaded = list(batches(dataset, keys(), workers, pin=False))
        assert [batch.indices for batch in loaded] == [(3 * b, 3 * b + 1, 3 * b + 2) for b in range(6)]
        for batch in loaded:
            assert batch.stems.shape == (3, 2, 2, N)
            assert batch.stems.dtype == torch.float32
            assert 0 < batch.seconds < 10
            for stems, index in zip(batch.stems, batch.indices, strict=True):
                assert torch.equal(stems, dataset[index, N].stems)

    def test_a_resumed_run_and_its_halves_see_the_same(self) -> None:
        whole = list(batches(chunks(augment=EVERYTHING), keys(), 1, pin=False))
        resumed = list(batches(chunks(augment=EVERYTHING), keys(first=4), 2, pin=False))
        for one, two in zip(whole[4:], resumed, strict=True):
            assert torch.equal(one.stems, two.stems)
        halves = [[key[rank::2] for key in keys(size=4)] for rank in (0, 1)]
        processes = [list(batches(chunks(augment=EVERYTHING), half, 0, pin=False)) for half in halves]
        for b, batch in enumerate(batches(chunks(augment=EVERYTHING), keys(size=4), 0, pin=False)):
            assert torch.equal(batch.stems[0::2], processes[0][b].stems)
            assert torch.equal(batch.stems[1::2], processes[1][b].stems)

    def test_keys_may_be_endless_and_lengths_change(self) -> None:
        endless = ([(index, 500 if index < 3 else 700)] for index in itertools.count())
        loaded = list(itertools.islice(batches(chunks(), endless, 2, pin=False), 6))
        assert [batch.stems.shape[-1] for batch in loaded] == [500, 500, 500, 700, 700, 700]

    def test_keys_are_drawn_a_few_batches_ahead_only(self) -> None:
        drawn = []

        def watched() -> Iterator[list[tuple[int, int]]]:
            for index in range(50):
                drawn.append(index)
                yield [(index, N)]

        loading = batches(chunks(), watched(), 1, pin=False)
        next(loading)
        assert len(drawn) < 6
        loading.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_is_one_line_of_its_kind(self, workers: int) -> None:
        with pytest.raises(
            ConfigError, match=r"^song 'A' has 32000 samples, a chunk needs 99999: "
        ) as caught:
            list(batches(chunks(), keys(samples=99_999), workers, pin=False))
        assert "\n" not in str(caught.value)

    @pytest.mark.slow  # torch waits five seconds
    def test_a_worker_that_dies_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def dies(self: Chunks, key: tuple[int, int]) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Chunks, "__getitem__", dies)
        match = r"DataLoader worker.*(killed|exited).*: lower data\.workers"
        with pytest.raises(TrainingError, match=match) as caught:
            list(batches(chunks(), keys(), 1, pin=False))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingSong]:
    """A real song at 44.1 kHz, out of MUSDB18's layout."""
    example = example_stem_file()
    if example is None:
        pytest.skip("stempeg is not installed: it holds the stem file")
    root = tmp_path_factory.mktemp("musdb")
    (root / "train").mkdir()
    shutil.copy(example, root / "train" / "One.stem.mp4")
    return load_training_songs(DataConfig(root=str(root), cache=str(root / "cache")), 44_100, 2)[0]


@pytest.mark.slow
def test_the_loader_keeps_up(real: list[TrainingSong], capsys: pytest.CaptureFixture[str]) -> None:
    """Audio seconds a second with one worker; the floors are a thirtieth of what a quiet core does."""
    samples, count = 3 * 44_100, 10
    groups = [("vocals",), ("drums", "bass", "other")]
    for name, augment, floor in (
        ("default", AugmentConfig(), 15.0),
        ("tempo and pitch 0.2", AugmentConfig(tempo=0.2, pitch=0.2), 1.0),
    ):
        dataset = Chunks(real, groups, DataConfig(), augment, 44_100, 0)
        ahead = ([(4 * batch + item, samples) for item in range(4)] for batch in range(count + 2))
        loading = batches(dataset, ahead, 1, pin=False)
        next(loading)
        begun = time.perf_counter()
        loaded = list(loading)
        speed = 3.0 * 4 * len(loaded) / (time.perf_counter() - begun)
        cost = 1000 * float(np.mean([batch.seconds for batch in loaded]))
        with capsys.disabled():
            print(f"\nloader, {name}: {speed:.0f} s of audio a second, {cost:.1f} ms a chunk")
        assert speed > floor
