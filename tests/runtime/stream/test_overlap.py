"""The laws of the stream engine, as properties, and its errors.

"Law n" refers to the six laws every stream obeys: identity, independence of pushes and batches, bounded
memory, length, mix consistency, and no NaN passed on or hidden.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError, UsageError
from tfswa.runtime.stream.overlap import OverlapAdd, Process, Redo
from tfswa.runtime.stream.plan import ChunkPlan

STEMS = ("vocals", "other")
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Layout:
    """A valid set of lengths, drawn by its parts so that none is rejected."""

    step: int
    fade: int
    context: int
    after: int

    @property
    def chunk(self) -> int:
        return self.step + self.fade + self.context + self.after

    def engine(self, process: Process, batch: int = 1, redo: Redo | None = None) -> OverlapAdd:
        return OverlapAdd(
            process,
            channels=2,
            stems=STEMS,
            plan=ChunkPlan(self.chunk, self.context, self.fade, self.after),
            batch=batch,
            redo=redo,
        )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    step = draw(st.integers(1, 40))
    return Layout(step, draw(st.integers(0, step)), draw(st.integers(0, 60)), draw(st.integers(0, 60)))


lengths = st.integers(0, 500)
batches = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (2, samples)).astype(np.float32)


def identity(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([chunks, chunks], axis=1)


def awkward(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depends on the place in the chunk and on all of the chunk, so neighbors disagree; stems sum to it."""
    stems = np.empty((chunks.shape[0], 2, *chunks.shape[1:]), np.float32)
    gain = np.cos(np.arange(chunks.shape[-1], dtype=np.float32) * np.float32(0.37))
    for chunk, pair in zip(chunks, stems, strict=True):
        pair[0] = gain * np.tanh(3 * chunk) + np.abs(chunk).mean()
        pair[1] = chunk - pair[0]
    return stems


def separate(engine: OverlapAdd, signal: NDArray[np.float32], sizes: Iterator[int]) -> NDArray[np.float32]:
    """Push in pieces of the sizes given, the rest at once; check what holds for every push on the way."""
    parts, taken, returned = [], 0, 0
    while taken < signal.shape[1]:
        size = next(sizes, signal.shape[1])
        parts.append(engine.push(signal[:, taken : taken + size]))
        taken = min(taken + size, signal.shape[1])
        returned += parts[-1].shape[-1]
        assert 0 <= taken - returned <= engine.latency_samples
    parts.append(engine.flush())
    assert all(part.dtype == np.float32 and part.shape[:2] == (2, 2) for part in parts)
    return np.concatenate(parts, axis=-1)


def at_once(engine: OverlapAdd, signal: NDArray[np.float32]) -> NDArray[np.float32]:
    return separate(engine, signal, iter(()))


def plain_reference(process: Process, layout: Layout, signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """Overlap-add with the whole signal in hand, sample by sample weights, in float64."""
    length, kept = signal.shape[1], layout.chunk - layout.context - layout.after
    count = 0
    while length > 0 and (count == 0 or (count - 1) * layout.step + kept < length):
        count += 1
    total = np.zeros((2, 2, length + 2 * layout.chunk))
    margin = layout.context
    padded = np.zeros((2, margin + length + 3 * layout.chunk), np.float32)
    padded[:, margin : margin + length] = signal
    for k in range(count):
        start = k * layout.step
        stems = process(padded[None, :, start : start + layout.chunk])[0].astype(np.float64)
        for i in range(kept):
            weight = 1.0
            if k > 0 and i < layout.fade:
                weight = (i + 0.5) / layout.fade
            if k < count - 1 and i >= layout.step:
                weight = 1.0 - (i - layout.step + 0.5) / layout.fade
            total[:, :, start + i] += weight * stems[:, :, layout.context + i]
    return total[:, :, :length]


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), samples=lengths, batch=batches, seed=seeds)
def test_law_1_identity_returns_its_input(layout: Layout, samples: int, batch: int, seed: int) -> None:
    signal = noise(samples, seed)
    stems = at_once(layout.engine(identity, batch), signal)
    assert stems.shape == (2, 2, samples)
    np.testing.assert_allclose(stems, np.stack([signal, signal]), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), samples=lengths, batch=batches, sizes=st.lists(st.integers(0, 90)), seed=seeds)
def test_law_2_pushes_and_batches_change_no_bit(
    layout: Layout, samples: int, batch: int, sizes: list[int], seed: int
) -> None:
    signal = noise(samples, seed)
    whole = at_once(layout.engine(awkward), signal)
    np.testing.assert_array_equal(separate(layout.engine(awkward, batch), signal, iter(sizes)), whole)


def test_law_2_single_samples() -> None:
    layout, signal = Layout(step=300, fade=40, context=50, after=50), noise(5000)
    ones = separate(layout.engine(awkward, batch=3), signal, iter([1] * 5000))
    np.testing.assert_array_equal(ones, at_once(layout.engine(awkward), signal))


@pytest.mark.parametrize("batch", [1, 3])
def test_law_3_memory_is_bounded(batch: int) -> None:
    layout = Layout(step=4000, fade=500, context=600, after=600)
    signal = noise(200 * layout.step)
    one_push = at_once(layout.engine(identity, batch), signal)
    # In samples of one channel: the buffer and the copy handed to process; then the stems' chunks, their
    # finished steps, those joined, and the tails.
    mixture_chunks, stem_chunks = 2 * batch, 3 * batch + 2
    bound = (mixture_chunks + len(STEMS) * stem_chunks) * layout.chunk * 2 * 4
    tracemalloc.start()
    try:
        engine = layout.engine(identity, batch)
        done = 0
        for start in range(0, signal.shape[1], 1777):
            part = engine.push(signal[:, start : start + 1777])
            assert np.array_equal(part, one_push[..., done : done + part.shape[-1]])
            done += part.shape[-1]
        tail = engine.flush()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(tail, one_push[..., done:])
    assert peak < bound < signal.nbytes / 3, "the bound must be far below what an unbounded engine would hold"


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), samples=lengths, batch=batches)
def test_law_4_output_is_as_long_as_the_input(layout: Layout, samples: int, batch: int) -> None:
    calls: list[int] = []

    def counting(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(chunks.shape[0])
        return awkward(chunks)

    engine = layout.engine(counting, batch)
    assert at_once(engine, noise(samples)).shape == (2, 2, samples)
    assert sum(calls) == engine.plan.chunks(samples)
    assert all(call <= batch for call in calls)


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), samples=lengths, batch=batches, seed=seeds)
def test_law_5_stems_sum_to_the_mixture(layout: Layout, samples: int, batch: int, seed: int) -> None:
    signal = noise(samples, seed)
    stems = at_once(layout.engine(awkward, batch), signal)
    np.testing.assert_allclose(stems.sum(axis=0), signal, rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=100)
@given(layout=layouts(), samples=lengths, batch=batches, seed=seeds)
def test_agrees_with_a_plain_float64_reference(layout: Layout, samples: int, batch: int, seed: int) -> None:
    signal = noise(samples, seed)
    expected = plain_reference(awkward, layout, signal)
    np.testing.assert_allclose(
        at_once(layout.engine(awkward, batch), signal), expected, rtol=0, atol=TOLERANCE
    )


def test_reference_notices_wrong_fade_weights() -> None:
    layout, signal = Layout(step=30, fade=10, context=5, after=5), noise(300)
    engine = layout.engine(awkward)
    for weights in engine._fader.weights:
        weights[:10] = np.arange(10) / 10  # half a sample early
    assert np.abs(at_once(engine, signal) - plain_reference(awkward, layout, signal)).max() > 100 * TOLERANCE


@settings(deadline=None, max_examples=60)
@given(layout=layouts(), samples=lengths, batch=batches)
def test_context_is_discarded(layout: Layout, samples: int, batch: int) -> None:
    def dirty(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        stems = awkward(chunks)
        stems[..., : layout.context] = 1e6
        stems[..., layout.chunk - layout.after :] = -1e6
        return stems

    signal = noise(samples)
    clean = at_once(layout.engine(awkward, batch), signal)
    np.testing.assert_array_equal(at_once(layout.engine(dirty, batch), signal), clean)


def test_chunks_hold_the_real_neighborhood() -> None:
    layout = Layout(step=10, fade=2, context=3, after=3)
    seen: list[NDArray[np.float32]] = []

    def spy(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.extend(chunks)
        return identity(chunks)

    signal = np.tile(np.arange(1, 26, dtype=np.float32), (2, 1))
    at_once(layout.engine(spy, batch=2), signal)
    zeros = [0.0] * 10
    assert [chunk[0].tolist() for chunk in seen] == [
        [0, 0, 0, *range(1, 16)],
        [*range(8, 26)],
        [*range(18, 26), *zeros],
    ]


def test_a_process_may_reuse_its_output_and_keep_or_spoil_its_input() -> None:
    layout, signal = Layout(step=50, fade=20, context=7, after=7), noise(777)
    output = np.empty((1, 2, 2, layout.chunk), np.float32)

    def careless(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        output[:] = awkward(chunks)
        chunks[:] = np.nan
        return output

    expected = at_once(layout.engine(awkward), signal)
    np.testing.assert_array_equal(separate(layout.engine(careless), signal, iter([60] * 20)), expected)


def spoil(value: float, chunk: int, stem: int) -> Process:
    """``awkward``, but one value of one chunk of one stem is replaced."""
    done = 0

    def process(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal done
        stems = awkward(chunks)
        if done <= chunk < done + len(chunks):
            stems[chunk - done, stem, 1, 0] = value
        done += len(chunks)
        return stems

    return process


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_law_6_a_bad_value_raises_with_its_place(value: float, batch: int) -> None:
    layout = Layout(step=50, fade=10, context=5, after=5)
    engine = layout.engine(spoil(value, chunk=3, stem=1), batch)
    with pytest.raises(NonFiniteError, match=r"chunk 3 \(samples 145 to 215\) of other holds NaN or Inf: "):
        at_once(engine, noise(500))
    with pytest.raises(TfxError, match="ended"):
        engine.push(noise(1))


def test_law_6_the_range_of_the_first_and_the_last_chunk_lies_in_the_signal() -> None:
    layout = Layout(step=50, fade=10, context=5, after=5)
    with pytest.raises(NonFiniteError, match=r"chunk 0 \(samples 0 to 40\) of vocals holds"):
        at_once(layout.engine(spoil(math.nan, chunk=0, stem=0)), noise(40))


@pytest.mark.parametrize(("batch", "place"), [(1, 0), (2, 1), (4, 3)])
def test_law_6_a_bad_chunk_is_redone_and_reported(batch: int, place: int) -> None:
    layout, signal = Layout(step=50, fade=10, context=5, after=5), noise(500)
    again: list[tuple[tuple[int, ...], int]] = []

    def redo(chunk: NDArray[np.float32], at: int) -> NDArray[np.float32]:
        again.append((chunk.shape, at))
        return awkward(chunk)

    engine = layout.engine(spoil(math.nan, chunk=3, stem=1), batch, redo)
    np.testing.assert_array_equal(at_once(engine, signal), at_once(layout.engine(awkward), signal))
    assert again == [((1, 2, 70), place)]
    assert [(r.chunk, r.start, r.stop, r.stems) for r in engine.redone] == [(3, 145, 215, ("other",))]


def test_law_6_a_chunk_that_stays_bad_raises() -> None:
    layout = Layout(step=50, fade=10, context=5, after=5)
    still_bad = spoil(math.inf, 0, 0)
    engine = layout.engine(spoil(math.nan, 3, 1), 2, lambda chunk, _: still_bad(chunk))
    with pytest.raises(NonFiniteError, match=r"chunk 3 \(samples 145 to 215\) of other .* in float32 too: "):
        at_once(engine, noise(500))
    assert len(engine.redone) == 1


def test_law_6_a_redo_that_would_not_help_gives_its_reason() -> None:
    def redo(*_: object) -> NDArray[np.float32]:
        raise NonFiniteError("it is not the network: look elsewhere")

    layout = Layout(step=50, fade=10, context=5, after=5)
    engine = layout.engine(spoil(math.nan, 3, 1), 2, redo)
    with pytest.raises(
        NonFiniteError, match=r"^chunk 3 \(samples .*\) of other holds NaN or Inf: it is not .* elsewhere$"
    ):
        at_once(engine, noise(500))
    assert engine.redone == []


def test_large_finite_values_are_not_mistaken_for_inf() -> None:
    def loud(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((len(chunks), 2, *chunks.shape[1:]), 3e38, np.float32)

    stems = at_once(Layout(step=50, fade=10, context=5, after=5).engine(loud), noise(200))
    np.testing.assert_array_equal(stems, np.float32(3e38))


def test_wrong_output_of_process_is_named() -> None:
    layout = Layout(step=50, fade=10, context=5, after=5)
    with pytest.raises(TfxError, match=r"float32 \[1, 2, 70\], not float32 .* \[1, 2, 2, 70\]"):
        at_once(layout.engine(lambda chunks: chunks), noise(200))
    with pytest.raises(TfxError, match="returned float64"):
        at_once(layout.engine(lambda chunks: identity(chunks).astype(np.float64)), noise(200))


def test_wrong_input_and_use_after_the_end() -> None:
    engine = Layout(step=50, fade=10, context=5, after=5).engine(identity)
    for wrong in (np.zeros((3, 10), np.float32), np.zeros(10, np.float32)):
        with pytest.raises(TfxError, match="with C = 2"):
            engine.push(wrong)
    assert engine.push(np.zeros((2, 0), np.float32)).shape == (2, 2, 0)
    assert engine.flush().shape == (2, 2, 0)
    for call in (lambda: engine.push(noise(1)), engine.flush):
        with pytest.raises(TfxError, match="ended"):
            call()


def test_impossible_lengths_are_refused() -> None:
    for chunk, context, fade in ((10, 5, 0), (10, 0, 6), (10, -1, 2), (10, 1, -1), (0, 0, 0)):
        with pytest.raises(UsageError, match="lower them"):
            ChunkPlan(chunk, context, fade, context)
    with pytest.raises(UsageError, match=r"context 0 \+ -1 and fade 0"):
        ChunkPlan(10, 0, 0, -1)
    ChunkPlan(10, 0, 5, 0)
    with pytest.raises(UsageError, match="at least one"):
        OverlapAdd(identity, channels=2, stems=(), plan=ChunkPlan(9, 0, 0, 0))
