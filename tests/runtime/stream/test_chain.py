"""A stem of one model as the signal of the next: the laws of the stream engine, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import PlainModel, awkward, noise, pushed

from tfswa.runtime.errors import NonFiniteError, UsageError
from tfswa.runtime.stream import joined
from tfswa.runtime.stream.chain import Chain
from tfswa.runtime.stream.combination import Combination
from tfswa.runtime.stream.plan import ChunkPlan

Audio = NDArray[np.float32]
STEMS = ("drums", "vocals", "other")


@st.composite
def plans(draw: st.DrawFn) -> ChunkPlan:
    step, context, after = (draw(st.integers(low, 40)) for low in (1, 0, 0))
    fade = draw(st.integers(0, step))
    return ChunkPlan(step + fade + context + after, context, fade, after)


def chained(one: ChunkPlan, two: ChunkPlan, batch: int = 1, stem: str = "vocals") -> Chain:
    first = PlainModel(one, STEMS, name="first", seed=1, batch=batch)
    return Chain(first, stem, PlainModel(two, ("dry", "reverb"), name="then", seed=2, batch=batch))


@settings(deadline=None, max_examples=80)
@given(
    one=plans(),
    two=plans(),
    samples=st.integers(0, 400),
    batch=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 90)),
    stem=st.sampled_from(STEMS),
)
def test_it_is_the_second_on_what_the_first_gives_whatever_the_pushes(
    one: ChunkPlan, two: ChunkPlan, samples: int, batch: int, sizes: list[int], stem: str
) -> None:
    signal, chain = noise(samples), chained(one, two, batch, stem)
    found = dict(zip(chain.stems, pushed(chain.stream(), signal, iter(sizes)), strict=True))
    first = dict(zip(STEMS, PlainModel(one, STEMS, seed=1).separate(signal), strict=True))
    then = PlainModel(two, ("dry", "reverb"), seed=2).separate(first.pop(stem))
    expected = first | {f"{stem}.dry": then[0], f"{stem}.reverb": then[1]}
    assert set(found) == set(expected)
    for name, audio in found.items():
        np.testing.assert_array_equal(audio, expected[name])


def test_stems_stand_where_the_one_stood_that_they_are_of() -> None:
    chain = chained(ChunkPlan(64, 4, 6, 4), ChunkPlan(90, 4, 6, 4))
    assert chain.stems == ("drums", "vocals.dry", "vocals.reverb", "other")
    assert chain.name == "first, then vocals by then"
    assert [part.name for part in chain.parts] == ["first", "then"]
    again = Chain(chain, "vocals.dry", PlainModel(stems=("lead", "backing"), name="third"))
    assert again.stems == ("drums", "vocals.dry.lead", "vocals.dry.backing", "vocals.reverb", "other")


def test_what_waits_are_the_other_stems_for_as_long_as_the_second_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joined, "BLOCK_SAMPLES", 100)
    chain = chained(ChunkPlan(64, 4, 6, 4), ChunkPlan(200, 30, 0, 9))
    stream = chain.stream()
    pushed(stream, noise(5000), iter(()))
    assert 0 < stream.waiting.most_values <= 2 * 2 * stream._streams[1].latency_samples
    assert stream.waiting.values == 0


def test_combinations_and_chains_hold_each_other() -> None:
    signal = noise(900)
    both = Combination([PlainModel(ChunkPlan(64, 4, 6, 4), STEMS, seed=k, name=str(k)) for k in (1, 2)])
    chain = Chain(both, "other", PlainModel(ChunkPlan(90, 4, 6, 4), ("x",), seed=3, name="3"))
    mean = both.separate(signal)
    found = chain.separate(signal)
    np.testing.assert_array_equal(found[:2], mean[:2])
    np.testing.assert_array_equal(
        found[2], PlainModel(ChunkPlan(90, 4, 6, 4), ("x",), seed=3).separate(mean[2])[0]
    )


def test_nan_names_the_model() -> None:
    def spoilt(chunks: Audio) -> Audio:
        return awkward(2)(chunks) * np.float32(math.nan)

    chain = Chain(PlainModel(name="first"), "other", PlainModel(name="then", process=spoilt))
    with pytest.raises(NonFiniteError, match=r"^then: chunk 0 .* of vocals, other holds NaN"):
        chain.separate(noise(500))


def test_what_cannot_be_chained() -> None:
    first = PlainModel(stems=("vocals", "vocals.dry"), name="first")
    for stem, then, told in (
        ("voice", PlainModel(), "first has no stem 'voice'"),
        ("vocals", PlainModel(channels=1, name="mono"), "first works at 2 channels, mono at 1"),
        ("vocals", PlainModel(sample_rate=16000, name="other"), "first works at 8000 Hz, other at 16000"),
        (
            "vocals",
            PlainModel(stems=("dry", "wet"), name="then"),
            "first has a stem 'vocals.dry', and then after",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            Chain(first, stem, then)


def test_both_are_closed() -> None:
    first, then = PlainModel(name="first"), PlainModel(name="then")
    with Chain(first, "other", then):
        pass
    assert (first.closed, then.closed) == (1, 1)
