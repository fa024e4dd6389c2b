"""Several models on one signal: the laws of the stream engine, the rules, and what is refused."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import PlainModel, awkward, noise, pushed

from tfswa.runtime.errors import AudioError, NonFiniteError, TfxError, UsageError
from tfswa.runtime.stream import joined
from tfswa.runtime.stream.combination import Combination
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.rules import HOWS, How, weighted_median

Audio = NDArray[np.float32]
# float32 keeps 6e-8 of a full-scale sample; a mean in float64 is rounded once.
MEAN_TOLERANCE = 1e-6
# A transform of 4096 samples there and back leaves some 1e-6 of full scale in float32.
BIN_TOLERANCE = 1e-5


@st.composite
def plans(draw: st.DrawFn) -> ChunkPlan:
    step, context, after = (draw(st.integers(low, 40)) for low in (1, 0, 0))
    fade = draw(st.integers(0, step))
    return ChunkPlan(step + fade + context + after, context, fade, after)


@st.composite
def models(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What each of two or three models is, but for its batch; at least one stem is common."""
    stems = st.lists(st.sampled_from(("vocals", "drums", "bass")), unique=True)
    return [
        {"plan": draw(plans()), "stems": ("other", *draw(stems)), "seed": seed, "name": f"model {seed}"}
        for seed in range(draw(st.integers(2, 3)))
    ]


def made(described: list[dict[str, Any]], how: How = "mean", batch: int = 1, **more: Any) -> Combination:
    return Combination([PlainModel(**one, batch=batch) for one in described], how, **more)


def expected_mean(described: list[dict[str, Any]], signal: Audio, weights: list[float]) -> dict[str, Audio]:
    """From what each model gives by itself, in float64."""
    alone = [PlainModel(**one) for one in described]
    stems = dict.fromkeys(stem for model in alone for stem in model.stems)
    results = [model.separate(signal).astype(np.float64) for model in alone]
    found = {}
    for stem in stems:
        having = [k for k, model in enumerate(alone) if stem in model.stems]
        total = sum(weights[k] * results[k][alone[k].stems.index(stem)] for k in having)
        found[stem] = total / sum(weights[k] for k in having)
    return found


@settings(deadline=None, max_examples=60)
@given(
    described=models(),
    samples=st.integers(0, 400),
    batch=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 90)),
    how=st.sampled_from(HOWS),
)
def test_pushes_and_batches_change_no_bit(
    described: list[dict[str, Any]], samples: int, batch: int, sizes: list[int], how: How
) -> None:
    signal = noise(samples)
    whole = made(described, how).separate(signal)
    assert whole.shape == (len(made(described).stems), 2, samples)
    np.testing.assert_array_equal(pushed(made(described, how, batch).stream(), signal, iter(sizes)), whole)


@settings(deadline=None, max_examples=60)
@given(
    described=models(),
    samples=st.integers(0, 400),
    weights=st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
)
def test_the_mean_is_that_of_what_each_gives_alone(
    described: list[dict[str, Any]], samples: int, weights: list[float]
) -> None:
    signal, weights = noise(samples), weights[: len(described)]
    combination = made(described, weights=weights)
    found, expected = combination.separate(signal), expected_mean(described, signal, weights)
    assert combination.stems == tuple(expected)
    for stem, audio in zip(combination.stems, found, strict=True):
        np.testing.assert_allclose(audio, expected[stem], rtol=0, atol=MEAN_TOLERANCE)


def counted(stems: tuple[str, ...], seed: int) -> tuple[PlainModel, list[int]]:
    """A model, and of each call of its network how many chunks it was of."""
    calls: list[int] = []
    model = PlainModel(stems=stems, seed=seed, name=f"model {seed}")
    network = model.process

    def process(chunks: Audio) -> Audio:
        calls.append(len(chunks))
        return network(chunks)

    model.process = process
    return model, calls


@pytest.mark.parametrize("how", HOWS)
def test_a_model_that_counts_in_no_stem_is_not_run(how: How) -> None:
    """As of a bag of networks, each tuned for one stem; the order of stems stays as it is."""
    (one, first), (two, second), (three, third) = (
        counted(stems, seed)
        for seed, stems in enumerate((("drums", "vocals"), ("vocals", "drums", "bass"), ("bass", "vocals")))
    )
    weights = {"drums": (0, 1, 0), "vocals": (0, 0, 1), "bass": (0, 1, 0)}
    bag = Combination((one, two, three), how, weights)
    signal = noise(300)
    every = dict(zip(bag.stems, bag.separate(signal), strict=True))
    assert (bag.stems, first) == (("drums", "vocals", "bass"), [])
    assert len(second) == len(third) > 0
    before = len(second)
    asked = bag.only(["vocals"])
    assert (asked.stems, [part.name for part in asked.parts]) == (("vocals",), ["model 2"])
    np.testing.assert_array_equal(asked.separate(signal)[0], every["vocals"])
    assert (first, len(second), len(third)) == ([], before, 2 * before)
    both = bag.only(["bass", "vocals"])
    assert (both.stems, both.name) == (("vocals", "bass"), bag.name)
    for stem, audio in zip(both.stems, both.separate(signal), strict=True):
        np.testing.assert_array_equal(audio, every[stem])
    again = Combination((bag, one)).only(["drums"])  # bags within others are asked for no more either
    assert [part.name for part in again.parts] == ["model 1", "model 0"]
    with pytest.raises(UsageError, match="stem 'vocal', did you mean 'vocals'"):
        Combination((one, two), stems=("vocal",))


def test_a_file_runs_what_its_stems_are_made_of(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "song.wav", noise(2000).T, 8000, subtype="FLOAT")
    (one, first), (two, second) = (counted(("vocals", "other"), seed) for seed in range(2))
    bag = Combination((one, two), weights={"vocals": (1, 0), "other": (0, 1)})
    bag.separate_file(tmp_path / "song.wav", {"other": tmp_path / "other.wav"})
    assert (first, len(second) > 0) == ([], True)
    found, _ = soundfile.read(tmp_path / "other.wav", dtype="float32")
    np.testing.assert_array_equal(found.T, two.separate(noise(2000))[1])


def two(**more: Any) -> list[dict[str, Any]]:
    return [
        {"plan": ChunkPlan(64, 4, 6, 4), "seed": 1, "name": "one", **more},
        {"plan": ChunkPlan(200, 30, 0, 9), "seed": 2, "name": "two", **more},
    ]


def test_long_pushes_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = noise(3000)
    whole = made(two()).separate(signal)
    monkeypatch.setattr(joined, "BLOCK_SAMPLES", 100)
    stream = made(two()).stream()
    found = pushed(stream, signal, iter(()))
    np.testing.assert_array_equal(found, whole)
    # Of one model's rows, two stems of two channels, what the other's latency leaves behind.
    latest = max(member.latency_samples for member in stream._streams)
    assert 0 < stream.waiting.most_values <= 2 * 2 * latest
    assert stream.waiting.values == 0


@pytest.mark.parametrize("how", ["mean", "median"])
def test_a_stem_of_one_model_is_that_models_to_the_bit(how: How) -> None:
    described = two()
    described[0]["stems"], described[1]["stems"] = ("vocals", "other"), ("drums", "other")
    signal, combination = noise(1000), made(described, how)
    found = dict(zip(combination.stems, combination.separate(signal), strict=True))
    assert list(found) == ["vocals", "other", "drums"]
    for one, stem in zip(described, ("vocals", "drums"), strict=True):
        np.testing.assert_array_equal(found[stem], PlainModel(**one).separate(signal)[0])


@pytest.mark.parametrize("how", HOWS)
def test_one_hot_weights_by_stem_take_each_stem_from_one_model(how: How) -> None:
    """As a bag of four networks of which each was tuned for one stem."""
    stems, signal = ("drums", "bass", "other", "vocals"), noise(900)
    described = [
        {"stems": stems, "plan": ChunkPlan(60 + 9 * k, 4, 6, k), "seed": k, "name": f"of {stem}"}
        for k, stem in enumerate(stems)
    ]
    weights = {stem: [float(k == own) for k in range(4)] for own, stem in enumerate(stems)}
    combination = made(described, how, weights=weights)
    found = combination.separate(signal)
    for own, one in enumerate(described):
        np.testing.assert_array_equal(found[own], PlainModel(**one).separate(signal)[own])
    stream = combination.stream()
    pushed(stream, signal, iter([50] * 18))
    # Of each but the slowest, the one stem that counts.
    latest = max(member.latency_samples for member in stream._streams)
    assert stream.waiting.most_values <= 3 * 2 * latest


def test_weights_by_stem_stand_beside_those_of_all_others() -> None:
    signal, combination = noise(700), made(two(), weights={"": [1, 3], "vocals": [1, 0]})
    alone = [PlainModel(**one).separate(signal) for one in two()]
    vocals, other = combination.separate(signal)
    np.testing.assert_array_equal(vocals, alone[0][0])
    np.testing.assert_allclose(other, (alone[0][1] + 3 * alone[1][1]) / 4, rtol=0, atol=MEAN_TOLERANCE)


class TestTheRules:
    def test_median_is_numpys_and_with_weights_that_of_repeated_values(self) -> None:
        values = np.random.default_rng(0).standard_normal((5, 2, 40)).astype(np.float32)
        for count in (2, 3, 4, 5):
            np.testing.assert_allclose(
                weighted_median(values[:count], [0.1] * count), np.median(values[:count], axis=0), atol=1e-7
            )
        repeated = np.repeat(values[:3], (2, 1, 3), axis=0)
        np.testing.assert_allclose(
            weighted_median(values[:3], [2, 1, 3]), np.median(repeated, axis=0), atol=1e-7
        )

    @pytest.mark.parametrize("how", ["max", "min"])
    def test_each_bin_is_that_of_the_model_that_is_loudest_or_quietest_there(self, how: How) -> None:
        """Against the whole signal's spectrum, computed at once."""
        from tfswa.runtime.model.spec import StftSpec
        from tfswa.runtime.stream.transform import Stft

        signal = noise(200_000) * np.float32(0.3)
        combination = made(two(), how)
        found = combination.separate(signal)
        stft = Stft(StftSpec(sample_rate=8000))
        around = ((0, 0), (0, 0), (4096, 4096))  # frames over the signal's ends are all there
        alone = [stft.forward(np.pad(PlainModel(**one).separate(signal), around)) for one in two()]
        louder = np.abs(alone[0]) >= np.abs(alone[1])
        chosen = np.where(louder if how == "max" else ~louder, alone[0], alone[1])
        expected = stft.inverse(chosen, signal.shape[1] + 2 * 4096)[..., 4096:-4096]
        # Where two are all but equally loud, rounding decides: that is inaudible, and rare.
        assert np.abs(found - expected).max() < 1e-3
        assert np.median(np.abs(found - expected)) < BIN_TOLERANCE

    @pytest.mark.parametrize("how", HOWS)
    def test_models_that_agree_give_what_they_agree_on(self, how: How) -> None:
        signal, same = noise(150_000), [{**two()[0], "name": name} for name in ("a", "b", "c")]
        np.testing.assert_allclose(
            made(same, how).separate(signal),
            PlainModel(**same[0]).separate(signal),
            rtol=0,
            atol=BIN_TOLERANCE,
        )

    def test_a_combination_may_be_a_member(self) -> None:
        signal, inner = noise(500), made(two())
        whole = Combination([inner, PlainModel(seed=5, name="three")], weights=[2, 1])
        alone = [PlainModel(**one).separate(signal) for one in two()]
        alone.append(PlainModel(seed=5).separate(signal))
        np.testing.assert_allclose(whole.separate(signal), sum(alone) / 3, rtol=0, atol=MEAN_TOLERANCE)
        assert whole.name == "mean of mean of one and two and three"
        assert [part.name for part in whole.parts] == ["one", "two", "three"]


class TestErrors:
    def test_nan_names_the_model(self) -> None:
        def spoilt(chunks: Audio) -> Audio:
            out = awkward(2)(chunks)
            out[:, 1] = math.nan
            return out

        stream = Combination([PlainModel(name="good"), PlainModel(name="bad", process=spoilt)]).stream()
        with pytest.raises(NonFiniteError, match=r"^bad: chunk 0 \(samples 0 to 60\) of other holds NaN"):
            pushed(stream, noise(200), iter(()))
        for call in (lambda: stream.push(noise(1)), stream.flush):
            with pytest.raises(TfxError, match="ended"):
                call()

    def test_wrong_input_is_refused_before_any_model_has_it(self) -> None:
        stream = made(two()).stream()
        with pytest.raises(TfxError, match="with C = 2"):
            stream.push(noise(5, channels=3))
        with pytest.raises(AudioError, match="sample 2 of channel 1"):
            stream.push(np.array([[0, 0, math.nan]] * 2, np.float32))
        np.testing.assert_array_equal(pushed(stream, noise(300), iter([7])), made(two()).separate(noise(300)))

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"channels": 1}, "one works at 2 channels, other at 1: models that work together need the same"),
            ({"sample_rate": 44100}, "one works at 8000 Hz, other at 44100: models that work together need"),
        ],
    )
    def test_models_that_do_not_take_one_signal(self, more: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Combination([PlainModel(name="one"), PlainModel(name="other", **more)])

    @pytest.mark.parametrize(
        ("how", "weights", "message"),
        [
            ("mena", None, "combine 'mena', did you mean 'mean'"),
            ("mean", [1], "weights are 1, models are 2: give one for each"),
            ("mean", [1, -1], "weights 1,-1: each must be a number, 0 or more"),
            ("mean", [1, math.nan], "each must be a number"),
            ("mean", [0, 0], "weights leave nothing of vocals, which one, two has"),
            ("mean", {"vocal": [1, 1]}, "weights for 'vocal', did you mean 'vocals'"),
            ("max", [2, 1], "weights 2,1: max takes each bin from one model, so that"),
        ],
    )
    def test_rules_that_cannot_be(self, how: How, weights: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            made(two(), how, weights=weights)

    def test_no_model(self) -> None:
        with pytest.raises(UsageError, match="no model is named"):
            Combination([])


def test_closing_closes_all_even_where_one_fails() -> None:
    combination = made(two())
    first, second = combination.members

    def fail() -> None:
        raise TfxError("stuck")

    second.close = fail  # type: ignore[method-assign]
    with pytest.raises(TfxError, match="stuck"), combination:
        pass
    assert first.closed == 1  # type: ignore[attr-defined]


def peak_bytes(separating: Any, blocks: int) -> int:
    """The most that a stream of many blocks holds; the input and what is returned are not kept."""
    block = noise(5000)
    stream = separating.stream()
    tracemalloc.start()
    try:
        for _ in range(blocks):
            stream.push(block)
        stream.flush()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["mean", "median"])
def test_memory_is_that_of_the_models_and_no_more_for_a_longer_song(how: How) -> None:
    described = [
        {"plan": ChunkPlan(40_000, 3000, 2000, 3000), "seed": 1, "name": "one"},
        {"plan": ChunkPlan(90_000, 4000, 4000, 4000), "seed": 2, "name": "two"},
    ]
    alone = sorted(peak_bytes(PlainModel(**one), 100) for one in described)
    together = peak_bytes(made(described, how), 100)
    assert together <= 1.3 * alone[1] + alone[0]
    assert peak_bytes(made(described, how), 400) <= 1.01 * together
