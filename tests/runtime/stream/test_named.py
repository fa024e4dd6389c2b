"""Networks that take and give more than planes: the laws of the stream engine over random specifications."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError, NonFiniteError
from tfswa.runtime.model.spec import (
    AUDIO,
    INPUT,
    NEXT,
    OUTPUT,
    SAMPLES,
    STATE,
    STEM_SAMPLES,
    ChunkSpec,
    ModelSpec,
    StftSpec,
)
from tfswa.runtime.stream.codec import Codec, Tensors, first_tensors
from tfswa.runtime.stream.overlaps import plan_of
from tfswa.runtime.stream.separator import Stream

Audio = NDArray[np.float32]

STEMS = ("vocals", "rest")
CHUNK = ChunkSpec(frames=12, context=3, fade=0, multiple=1, context_after=3, early=2)
SHARES = np.array([0.25, 0.75], np.float32)  # of the planes, by stem
BRANCH = np.array([0.5, -0.125], np.float32)  # of the samples, by stem
ECHO = 0.5  # of the frame before, in a network with state
# The transform and its inverse round some twenty times at 2**-24 of the largest number that they meet.
CLOSE = 1e-5


def network(spec: ModelSpec) -> Any:
    """A causal network in numpy: each stem its share of a frame and of an echo of the frame before it."""

    def infer(tensors: Tensors) -> Tensors:
        assert {name: value.shape[1:] for name, value in tensors.items()} == spec.takes
        planes, early = tensors[INPUT], spec.chunk.early
        heard = planes[:, :, early:]
        found: dict[str, Any] = {}
        if spec.state:
            before = np.concatenate((tensors[f"{STATE}last"][:, :, None], heard[:, :, :-1]), axis=2)
            found[f"{NEXT}last"] = heard[:, :, spec.chunk.step - 1]
            heard = heard + np.float32(ECHO) * before
        made = np.zeros_like(planes)
        made[:, :, early:] = heard
        out = {OUTPUT: made[:, None] * SHARES[:, None, None, None]}
        if spec.samples:
            out[STEM_SAMPLES] = tensors[SAMPLES][:, None] * BRANCH[:, None, None]
        return {**out, **found}

    return infer


def stream(spec: ModelSpec, batch: int = 1, infer: Any = None, there: bool = False) -> Stream:
    """A stream around a network of numpy."""
    separator: Any = SimpleNamespace(
        spec=spec,
        batch=batch,
        fallback=None,
        codec=Codec(spec),
        plan=plan_of(spec),
        transforms_there=there,
        infer=infer or network(spec),
        infer_samples=surrounded(spec, infer or network(spec)),
    )
    return Stream(separator)


def surrounded(spec: ModelSpec, infer: Any) -> Any:
    """A network between the transform and its inverse, as a backend on a GPU may have it."""
    codec = Codec(spec)

    def infer_samples(tensors: Tensors) -> Tensors:
        chunks = tensors[SAMPLES]
        spectra = codec.spectra(chunks)
        state = {name: value for name, value in tensors.items() if name != SAMPLES}
        out = infer({**codec.tensors(chunks, spectra), **state})
        items = [{name: value[item] for name, value in out.items()} for item in range(len(chunks))]
        audio = np.stack([codec.stems(*one) for one in zip(chunks, spectra, items, strict=True)])
        return {AUDIO: audio, **{name: value for name, value in out.items() if name.startswith(NEXT)}}

    return infer_samples


def separate(
    spec: ModelSpec,
    mixture: Audio,
    batch: int = 1,
    push: int = 1 << 20,
    infer: Any = None,
    there: bool = False,
) -> Audio:
    engine = stream(spec, batch, infer, there)
    parts = [engine.push(mixture[:, at : at + push]) for at in range(0, mixture.shape[1], push)]
    return np.concatenate((*parts, engine.flush()), axis=-1)


def noise(spec: ModelSpec, samples: int, seed: int) -> Audio:
    random = np.random.default_rng(seed)
    return (random.standard_normal((spec.channels, samples)) * 0.1).astype(np.float32)


@st.composite
def transforms(draw: st.DrawFn) -> StftSpec:
    """Any hop, window, padding, place of the first frame, bins."""
    half = draw(st.integers(4, 64))
    n_fft = 2 * half
    window = draw(st.sampled_from(["hann", "none"]))
    hop = draw(st.integers(1 if n_fft < 32 else n_fft // 16, n_fft if window == "none" else int(0.7 * n_fft)))
    offset = draw(st.integers(0, hop // 4))
    first = draw(st.integers(0, half))
    seen = draw(st.none() | st.integers(1, half + 1 - first).map(lambda count: (first, count)))
    padding = draw(st.sampled_from(["zero", "reflect"]))
    fill, endless = draw(st.just(0) | st.integers(0, n_fft)), draw(st.booleans())
    return StftSpec(n_fft, hop, 8000, 1 / 32, window, padding, offset, seen=seen, fill=fill, endless=endless)


@st.composite
def specs(draw: st.DrawFn, *, state: bool) -> ModelSpec:
    """A specification of any kind, with as much context as it needs or more, before and after apart."""
    stft, channels = draw(transforms()), draw(st.sampled_from([1, 2]))
    if state:  # or the frames of one chunk would not be those of the next
        stft = dataclasses.replace(stft, offset=0, fill=0)
    edge = math.ceil(stft.n_fft / 2 / stft.hop)
    reach = edge - 1
    early = edge + draw(st.integers(0, 2)) if state else 0
    context = early + reach + (0 if state else stft.endless + draw(st.integers(0, 3)))
    after = edge + reach + draw(st.integers(0, 3))
    fade = draw(st.integers(0, 3))
    longest = stft.hop - 1 + stft.fill - 2 * stft.offset  # that fill and short take from between two chunks
    least = max(1, fade, math.ceil((fade * stft.hop + longest + 1) / stft.hop))
    step = draw(st.integers(max(1, fade) if state else least, least + 12))
    short = 0 if state else draw(st.integers(0, stft.hop - 1))
    chunk = ChunkSpec(1 + context + after + fade + step, context, fade, 1, after, early, short)
    residual = draw(st.sampled_from([None, *STEMS]))
    return ModelSpec(
        "any",
        STEMS,
        channels=channels,
        stft=stft,
        chunk=chunk,
        unseen_stem=draw(st.sampled_from([None, *STEMS])),
        residual_stem=residual,
        samples=draw(st.booleans()),
        state={"last": (2 * channels, stft.bins)} if state else {},
    )


def shorter_or_longer(spec: ModelSpec, frames: int) -> ModelSpec:
    return dataclasses.replace(spec, chunk=dataclasses.replace(spec.chunk, frames=spec.chunk.frames + frames))


@settings(max_examples=60, deadline=None)
@given(specs(state=False) | specs(state=True), st.integers(1, 2000), st.integers(1, 4), st.data())
def test_pushes_and_batch_change_no_bit(
    spec: ModelSpec, samples: int, batch: int, data: st.DataObject
) -> None:
    mixture = noise(spec, samples, seed=samples)
    right = separate(spec, mixture)
    assert right.shape == (2, spec.channels, samples)
    push = data.draw(st.integers(1, samples))
    there = data.draw(st.booleans())  # whether the backend transforms
    np.testing.assert_array_equal(separate(spec, mixture, batch, push, there=there), right)


@settings(max_examples=60, deadline=None)
@given(specs(state=True), st.integers(1, 2000), st.integers(1, 40))
def test_state_makes_chunks_of_any_length_the_whole(spec: ModelSpec, samples: int, more: int) -> None:
    """A chunk that holds all of the signal hands nothing on: what short ones give is what it gives."""
    mixture = noise(spec, samples, seed=more)
    whole = shorter_or_longer(spec, max(more, -(-samples // spec.stft.hop)))
    right = separate(whole, mixture)
    np.testing.assert_allclose(separate(spec, mixture), right, atol=CLOSE * np.abs(right).max(initial=1.0))


def test_without_the_state_it_would_not_be_the_whole() -> None:
    """The law above can fail: with zeros at each chunk's beginning the echo is lost there."""
    spec = causal()
    forgetful = network(spec)
    mixture = noise(spec, 4000, 0)
    right = separate(shorter_or_longer(spec, 40), mixture)

    def forget(tensors: Tensors) -> Tensors:
        return forgetful({**tensors, f"{STATE}last": np.zeros_like(tensors[f"{STATE}last"])})

    assert np.abs(separate(spec, mixture, infer=forget) - right).max() > 0.01
    np.testing.assert_allclose(separate(spec, mixture), right, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(specs(state=False), st.integers(1, 1500))
def test_samples_of_the_branch_are_added(spec: ModelSpec, samples: int) -> None:
    """Of a network that shares planes and samples out, each stem is the sum of its two shares."""
    spec = dataclasses.replace(spec, samples=True, stft=dataclasses.replace(spec.stft, seen=None))
    mixture = noise(spec, samples, seed=7)
    found = separate(dataclasses.replace(spec, unseen_stem=None, residual_stem=None), mixture)
    plain = dataclasses.replace(spec, unseen_stem=None, residual_stem=None, samples=False)
    without = separate(plain, mixture)
    np.testing.assert_allclose(found - without, BRANCH[:, None, None] * mixture, atol=CLOSE)
    if spec.residual_stem is not None:
        total = separate(spec, mixture).sum(axis=0)
        np.testing.assert_allclose(total, mixture, atol=CLOSE)


def causal(**changes: Any) -> ModelSpec:
    return ModelSpec(
        "any",
        STEMS,
        **{"stft": StftSpec(64, 16, 8000), "chunk": CHUNK, "state": {"last": (4, 32)}, **changes},
    )


def test_of_what_is_lacking_the_first_chunk_is_given_zeros() -> None:
    spec = causal(samples=True)
    planes = np.ones((3, *spec.takes[INPUT]), np.float32)
    found = first_tensors(spec, {INPUT: planes})
    assert list(found) == [INPUT, SAMPLES, f"{STATE}last"]
    assert found[INPUT] is planes
    assert found[f"{STATE}last"].shape == (3, 4, 32)
    assert not found[f"{STATE}last"].any()


@pytest.mark.parametrize("there", [False, True])
def test_a_state_that_is_not_finite_is_an_error_with_its_chunk(there: bool) -> None:
    spec = causal()
    inner = network(spec)

    def breaks(tensors: Tensors) -> Mapping[str, Any]:
        return {**inner(tensors), f"{NEXT}last": np.full((1, 4, 32), np.nan, np.float32)}

    with pytest.raises(NonFiniteError, match=r"chunk 0 \(samples 0 to .* of vocals, rest holds NaN or Inf"):
        separate(spec, noise(spec, 2000, 0), infer=breaks, there=there)


@pytest.mark.parametrize("there", [False, True])
def test_a_chunk_that_is_computed_again_hands_its_state_on(there: bool) -> None:
    spec = causal()
    inner, calls = network(spec), []

    def breaks(tensors: Tensors) -> Mapping[str, Any]:
        calls.append(tensors)
        out = dict(inner(tensors))
        return {name: np.full_like(value, np.nan) for name, value in out.items()} if len(calls) == 3 else out

    separator: Any = SimpleNamespace(
        spec=spec,
        batch=4,
        fallback=object(),
        codec=Codec(spec),
        plan=plan_of(spec),
        transforms_there=there,
        infer=breaks,
        infer_samples=surrounded(spec, breaks),
        infer_again=inner,
    )
    mixture = noise(spec, 3000, 0)
    engine = Stream(separator)
    found = np.concatenate((engine.push(mixture), engine.flush()), axis=-1)
    assert [again.chunk for again in engine.redone] == [2]
    np.testing.assert_array_equal(found, separate(spec, mixture))


@pytest.mark.parametrize(
    ("changes", "chunk", "says"),
    [
        ({"state": {}}, {}, ["early 2"]),
        ({"state": {"last": []}}, {}, ["'last'", "[]"]),
        ({"state": {"last": [4, 0]}}, {}, ["'last'", "[4, 0]"]),
        ({"state": {"../last": [4]}}, {}, ["'../last'"]),
        ({"state": ["last"]}, {}, ["['last']"]),
        ({"samples": 1}, {}, ["samples 1"]),
        ({"stft": StftSpec(64, 16, 8000, offset=3)}, {}, ["offset 3", "16"]),
        ({}, {"short": 3}, ["short 3", "16"]),
        ({}, {"early": 1}, ["early 1", "64", "16", "need 2"]),
        ({}, {"early": -1}, ["early -1"]),
        ({}, {"context": 2}, ["context 2", "must be 3"]),
        ({}, {"context": 4}, ["context 4", "must be 3"]),
        ({"state": {"last": [2] * 9}}, {}, ["9", "8"]),
        ({"state": {f"s{number}": [1] for number in range(4097)}}, {}, ["4097", "4096"]),
        ({"state": {"s" * 201: [1]}}, {}, ["200 characters"]),
        ({"state": {"last": [1 << 40]}}, {}, ["1 state tensors", str(4 << 30)]),
        ({}, {"context_after": 2}, ["context_after 2", "need 3"]),
    ],
)
def test_what_cannot_be_handed_on_is_refused(
    changes: dict[str, Any], chunk: dict[str, Any], says: list[str]
) -> None:
    values = {"frames": 12, "context": 3, "fade": 0, "multiple": 1, "context_after": 3, "early": 2, **chunk}
    with pytest.raises(BundleError) as error:
        dataclasses.replace(causal(), chunk=ChunkSpec(**values), **changes)
    message = str(error.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_what_is_not_asked_for_is_not_written() -> None:
    """The hash of a bundle is made of it: one that knew nothing of these keeps its hash."""
    plain = causal(state={}, chunk=ChunkSpec(12, 3, 0, 1, 3), stft=StftSpec(64, 16, 8000, padding="reflect"))
    written = plain.to_dict()
    assert written["spec_version"] == 2
    assert not {"samples", "state"} & written.keys()
    assert written["chunk"].keys() == {"frames", "context", "fade", "multiple", "context_after"}
    assert ModelSpec.from_dict(written) == plain


def test_version_2_says_it_and_is_read_back() -> None:
    spec = causal(samples=True)
    written = spec.to_dict()
    assert written["spec_version"] == 2
    assert ModelSpec.from_dict(written) == spec
    assert spec.least_latency_samples == 4 * 16
