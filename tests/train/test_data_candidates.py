"""Songs that lack sources, and sets that are drawn from by share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import ConfigError

torch = pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.config import AugmentConfig, DataConfig, SetConfig  # noqa: E402
from tfswa.train.data.chunks import ChunkRecipe, Chunks  # noqa: E402
from tfswa.train.data.songs import TrainingSong  # noqa: E402

RATE, N, COUNT = 8000, 2000, 800
PLAIN = AugmentConfig(remix=1.0, gain=0.0, channel_swap=0.0)
STEMS = {"vocals": ("vocals",), "accompaniment": ("drums", "other")}
Audio = NDArray[np.float32]
# Five standard deviations of a share of 0.5 in COUNT draws, the widest there is.
SHARE_TOLERANCE = 5 * 0.5 / COUNT**0.5


def noise(seed: int) -> Audio:
    return 0.1 * np.random.default_rng(seed).standard_normal((2, 4 * N)).astype(np.float32)


def songs() -> list[TrainingSong]:
    return [
        TrainingSong("whole", {"vocals": noise(0), "drums": noise(1), "other": noise(2)}),
        TrainingSong("voice-a", {"vocals": noise(3)}),
        TrainingSong("voice-b", {"vocals": noise(4)}),
        TrainingSong("band", {"other": noise(5)}),
    ]


def sets(**voices: float) -> tuple[SetConfig, ...]:
    return (
        SetConfig(("whole",), {"vocals": voices.get("whole", 0.5), "accompaniment": 0.5}),
        SetConfig(("voice-*",), {"vocals": voices.get("voice", 0.5)}),
        SetConfig(("band",), {"accompaniment": 0.5}),
    )


def chunks(augment: AugmentConfig = PLAIN, data: DataConfig | None = None, seed: int = 0) -> Chunks:
    data = DataConfig(draws=1) if data is None else data
    return Chunks(songs(), list(STEMS.values()), data, augment, RATE, seed, stems=list(STEMS))


def plans(dataset: Chunks, count: int = COUNT) -> list[ChunkRecipe]:
    return [dataset.plan(index, N) for index in range(count)]


def shares(dataset: Chunks, source: str) -> dict[str, float]:
    names = [one.song_name for plan in plans(dataset) for one in plan.sources if one.source == source]
    return {name: count / len(names) for name, count in Counter(names).items()}


class TestPartial:
    def test_every_source_comes_from_a_song_that_has_it(self) -> None:
        assert shares(chunks(), "drums") == {"whole": 1.0}
        assert set(shares(chunks(), "other")) == {"whole", "band"}
        assert set(shares(chunks(), "vocals")) == {"whole", "voice-a", "voice-b"}

    def test_what_is_drawn_is_heard(self) -> None:
        dataset = chunks()
        for index in range(20):
            plan, stems = dataset.plan(index, N), dataset[index, N].stems.numpy()
            for stem, _ in enumerate(STEMS):
                truth = sum(
                    songs()[one.song].sources[one.source][:, one.start : one.start + N]
                    for one in plan.sources
                    if one.stem == stem
                )
                np.testing.assert_allclose(stems[stem], truth, atol=1e-6)

    def test_chunks_from_one_place_are_of_songs_that_have_every_stem(self) -> None:
        for plan in plans(chunks(dataclasses.replace(PLAIN, remix=0.5))):
            if not plan.remix:
                assert {one.song_name for one in plan.sources} == {"whole"}
                assert len({one.start for one in plan.sources}) == 1

    def test_no_song_that_has_every_stem(self) -> None:
        alone = songs()[1:]
        with pytest.raises(ConfigError, match=r"augment\.remix is 0\.5 and no song .*set augment\.remix = 1"):
            Chunks(
                alone, [("vocals",), ("other",)], DataConfig(), dataclasses.replace(PLAIN, remix=0.5), RATE, 0
            )
        item = Chunks(alone, [("vocals",), ("other",)], DataConfig(), PLAIN, RATE, 0)[0, N]
        assert item.stems.abs().amax(dim=(1, 2)).min() > 0

    def test_a_stem_can_stay_together(self) -> None:
        for plan in plans(chunks(dataclasses.replace(PLAIN, remix_sources=0.0)), 100):
            rest = [one for one in plan.sources if one.stem == 1]
            assert len({(one.song, one.start) for one in rest}) == 1
            assert [one.source for one in rest] == (["drums", "other"] if rest[0].song == 0 else ["other"])

    def test_the_draws_of_whole_songs_are_the_same_beside_partial_keys(self) -> None:
        whole = [songs()[0]]
        groups = list(STEMS.values())
        plain = Chunks(whole, groups, DataConfig(), AugmentConfig(), RATE, 0)
        keyed = Chunks(whole, groups, DataConfig(partial=True), AugmentConfig(), RATE, 0, stems=list(STEMS))
        assert [plain.plan(index, N) for index in range(50)] == [keyed.plan(index, N) for index in range(50)]


class TestSets:
    def test_are_drawn_by_share_and_their_songs_alike(self) -> None:
        found = shares(chunks(data=DataConfig(draws=1, sets=sets(whole=0.2, voice=0.6))), "vocals")
        assert found == pytest.approx(
            {"whole": 0.25, "voice-a": 0.375, "voice-b": 0.375}, abs=SHARE_TOLERANCE
        )

    def test_a_share_of_zero_is_never_drawn(self) -> None:
        assert shares(chunks(data=DataConfig(sets=sets(whole=0.0))), "vocals").keys() == {
            "voice-a",
            "voice-b",
        }

    def test_chunks_are_functions_of_seed_and_index(self) -> None:
        data = DataConfig(sets=sets())
        first, again = chunks(data=data), chunks(data=data)
        again.plan(3, N)
        assert first.plan(7, N) == again.plan(7, N) != chunks(data=data, seed=1).plan(7, N)

    @pytest.mark.parametrize(
        ("made", "match"),
        [
            (sets()[:2], "song 'band' is in none of data.sets"),
            ((*sets(), SetConfig(("piano-*",), {})), r"data\.sets\[3\]\.songs \['piano-\*'\] names none"),
            (sets(whole=0.0, voice=0.0), "data.sets gives vocals no share"),
        ],
    )
    def test_what_cannot_be_drawn_is_named(self, made: tuple[SetConfig, ...], match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            chunks(data=DataConfig(sets=made))


class TestMixing:
    def test_a_stem_is_left_out_as_often_as_asked(self) -> None:
        augment = dataclasses.replace(PLAIN, without={"vocals": 0.3})
        silent = [
            [one.change.silence for one in plan.sources if one.stem == stem]
            for plan in plans(chunks(augment))
            for stem in (0, 1)
        ]
        share = np.mean([all(each) for each in silent[::2]])
        assert share == pytest.approx(0.3, abs=SHARE_TOLERANCE)
        assert not any(any(each) for each in silent[1::2])

    def test_the_balance_is_what_was_drawn(self) -> None:
        dataset = chunks(dataclasses.replace(PLAIN, balance=1.0, balance_db=(-14.0, 4.0)))
        levels = []
        for index in range(30):
            wanted = dataset.plan(index, N).balance_db
            stems = dataset[index, N].stems.numpy().astype(np.float64)
            found = 10 * np.log10(np.mean(np.square(stems[0])) / np.mean(np.square(stems[1])))
            assert found == pytest.approx(wanted, abs=1e-3)
            levels.append(found)
        assert -14 <= min(levels) < -9
        assert -1 < max(levels) <= 4

    def test_silence_is_not_balanced(self) -> None:
        augment = dataclasses.replace(PLAIN, balance=1.0, without={"vocals": 1.0})
        stems = chunks(augment)[0, N].stems
        assert stems[0].abs().max() == 0
        assert stems[1].abs().max() > 0

    @pytest.mark.parametrize(
        "changes", [{"without": {"piano": 0.1}}, {"balance": 0.5, "balance_stem": "piano"}]
    )
    def test_a_stem_that_is_not_there(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="names no stem: choose one of vocals, accompaniment"):
            chunks(dataclasses.replace(PLAIN, **changes))
