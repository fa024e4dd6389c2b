"""More chunks than one for every sample: the laws of the stream engine, and all rules against plain code."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import awkward, noise, pushed

from tfswa.runtime.errors import NonFiniteError, UsageError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.cutter import Cutter, PlacedChunk
from tfswa.runtime.stream.fader import Fader
from tfswa.runtime.stream.overlap import OverlapAdd, Process
from tfswa.runtime.stream.overlaps import plan_of
from tfswa.runtime.stream.plan import ChunkPlan, StreamPlan
from tfswa.runtime.stream.suites import DemucsPlan, MsstPlan

Audio = NDArray[np.float32]
STFT = StftSpec(512, 128, 8000)
CAUSAL = ModelSpec(
    family="any", stems=("a", "b"), stft=STFT, chunk=ChunkSpec(16, 3, 2, 8, 3, 2), state={"last": (4,)}
)
# The mean moves in float32 from chunk to chunk: each step rounds at 6e-8 of full scale.
TOLERANCE = 1e-6


@st.composite
def shifted(draw: st.DrawFn) -> ChunkPlan:
    distance, context, after = draw(st.integers(8, 60)), draw(st.integers(0, 40)), draw(st.integers(0, 40))
    fade = draw(st.integers(0, distance))
    return ChunkPlan(distance + fade + context + after, context, fade, after, draw(st.sampled_from((2, 4))))


@st.composite
def suites(draw: st.DrawFn) -> MsstPlan:
    return MsstPlan(draw(st.integers(8, 130)), draw(st.integers(2, 8)))


@st.composite
def triangles(draw: st.DrawFn) -> DemucsPlan:
    return DemucsPlan(draw(st.integers(8, 130)), draw(st.sampled_from((0.0, 0.25, 0.3, 0.5, 0.8))))


plans = st.one_of(shifted(), suites(), triangles())


class Counted(OverlapAdd):
    network_seconds = 0.0


def engine(plan: StreamPlan, process: Process | None = None, batch: int = 1) -> Counted:
    return Counted(process or awkward(2), channels=2, stems=("a", "b"), plan=plan, batch=batch)


@settings(deadline=None, max_examples=150)
@given(plan=plans, samples=st.integers(0, 500), batch=st.integers(1, 5), sizes=st.lists(st.integers(0, 90)))
def test_pushes_and_batches_change_no_bit(
    plan: StreamPlan, samples: int, batch: int, sizes: list[int]
) -> None:
    signal, calls = noise(samples), []

    def counting(chunks: Audio) -> Audio:
        calls.append(len(chunks))
        return awkward(2)(chunks)

    whole = pushed(engine(plan), signal, iter(()))
    assert whole.shape == (2, 2, samples)
    found = engine(plan, counting, batch)
    np.testing.assert_array_equal(pushed(found, signal, iter(sizes)), whole)
    assert sum(calls) == plan.chunks(samples + 2 * found._cutter._ends.added)


@settings(deadline=None, max_examples=100)
@given(
    plan=plans,
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    size=st.integers(1, 5),
    turns=st.randoms(),
)
def test_chunks_of_several_signals_go_through_a_network_together(
    plan: StreamPlan, lengths: list[int], size: int, turns: random.Random
) -> None:
    """In batches of any make: each signal comes out as it does alone, bit by bit."""
    signals = [noise(samples, seed) for seed, samples in enumerate(lengths)]
    process = awkward(2)
    cutters, faders = [Cutter(plan, 2) for _ in signals], [Fader(plan) for _ in signals]
    found: list[list[Audio]] = [[] for _ in signals]
    given_out = [
        itertools.chain(cutter.push(signal), cutter.flush())
        for cutter, signal in zip(cutters, signals, strict=True)
    ]
    waiting: list[tuple[int, PlacedChunk]] = []
    open_ones = list(range(len(signals)))
    while open_ones or waiting:
        one = turns.choice(open_ones) if open_ones else None
        if one is not None and (chunk := next(given_out[one], None)) is not None:
            waiting.append((one, chunk))
        elif one is not None:
            open_ones.remove(one)
        if len(waiting) == size or (waiting and not open_ones):
            stems = process(np.stack([chunk.samples for _, chunk in waiting]))
            for (whose, chunk), of_chunk in zip(waiting, stems, strict=True):
                found[whose].append(faders[whose].add(chunk, of_chunk))
            waiting = []
    for signal, fader, parts in zip(signals, faders, found, strict=True):
        if (rest := fader.rest(signal.shape[1])) is not None:
            parts.append(rest)
        together = np.concatenate([np.zeros((2, 2, 0), np.float32), *parts], axis=-1)
        np.testing.assert_array_equal(together, pushed(engine(plan), signal, iter(())))


@settings(deadline=None, max_examples=100)
@given(plan=plans, samples=st.integers(0, 500), batch=st.integers(1, 5))
def test_identity_returns_its_input(plan: StreamPlan, samples: int, batch: int) -> None:
    signal = noise(samples)
    same = pushed(engine(plan, lambda chunks: np.stack([chunks, chunks], axis=1), batch), signal, iter(()))
    np.testing.assert_array_equal(same, np.stack([signal, signal]))


@settings(deadline=None, max_examples=100)
@given(plan=shifted(), samples=st.integers(1, 400))
def test_every_sample_is_the_weighted_mean_of_as_many_chunks_as_asked_for(
    plan: ChunkPlan, samples: int
) -> None:
    """Sample by sample, with the whole signal in hand."""
    signal, kept, distance = noise(samples), plan.kept, plan.kept - plan.fade_samples
    step = distance // plan.overlap
    margin = 2 * plan.chunk_samples
    padded = np.pad(signal, ((0, 0), (margin, margin + plan.chunk_samples)))
    total, weight, count = np.zeros((2, 2, samples)), np.zeros(samples), np.zeros(samples, int)
    first = -(plan.overlap - 1) * step
    for begin in range(first, samples, step):
        at = margin + begin - plan.context_samples
        chunk = padded[np.newaxis, :, at : at + plan.chunk_samples]
        stems = awkward(2)(np.ascontiguousarray(chunk))[0].astype(np.float64)
        for i in range(kept):
            if 0 <= begin + i < samples:
                fade = max(plan.fade_samples, 1)
                own = min(1.0, (i + 0.5) / fade, (kept - i - 0.5) / fade) if plan.fade_samples else 1.0
                total[..., begin + i] += own * stems[..., plan.context_samples + i]
                weight[begin + i] += own
                count[begin + i] += 1
    assert count.min() >= plan.overlap
    found = pushed(engine(plan), signal, iter(()))
    np.testing.assert_allclose(found, total / weight, rtol=0, atol=TOLERANCE)


def by_the_suites_rule(signal: Audio, chunk: int, overlap: int, process: Process) -> NDArray[np.float64]:
    """As it is published: the whole song, its sums, and one division at the end."""
    step, fade, length = chunk // overlap, chunk // 10, signal.shape[1]
    border = chunk - step
    mirrored = length > 2 * border
    if mirrored:
        signal = np.pad(signal, ((0, 0), (border, border)), "reflect")
    total, weight = np.zeros((2, 2, signal.shape[1])), np.zeros(signal.shape[1])
    for start in range(0, signal.shape[1], step):
        part = signal[:, start : start + chunk]
        there = part.shape[1]
        mode = "reflect" if there > chunk // 2 else "constant"
        part = np.pad(part, ((0, 0), (0, chunk - there)), mode)  # type: ignore[call-overload]
        window = np.ones(chunk)
        if fade and start > 0:
            window[:fade] = np.linspace(0, 1, fade)
        if fade and start + step < signal.shape[1]:
            window[-fade:] = np.linspace(1, 0, fade)
        stems = process(part[np.newaxis])[0].astype(np.float64)
        total[..., start : start + there] += (stems * window)[..., :there]
        weight[start : start + there] += window[:there]
    found: NDArray[np.float64] = total / weight
    return found[..., border:-border] if mirrored else found


@settings(deadline=None, max_examples=150)
@given(plan=suites(), samples=st.integers(1, 600))
def test_the_suites_rule_is_repeated(plan: MsstPlan, samples: int) -> None:
    signal = noise(samples)
    expected = by_the_suites_rule(signal, plan.chunk_samples, plan.overlap, awkward(2))
    np.testing.assert_allclose(pushed(engine(plan), signal, iter([50] * 3)), expected, rtol=0, atol=TOLERANCE)


def by_the_packages_rule(signal: Audio, chunk: int, overlap: float, process: Process) -> NDArray[np.float64]:
    """As ``demucs`` does it with a whole song."""
    length, step = signal.shape[1], int((1 - overlap) * chunk)
    triangle = np.minimum(np.arange(1, chunk + 1), np.arange(chunk, 0, -1)).astype(np.float64)
    total, weight = np.zeros((2, 2, length)), np.zeros(length)
    padded = np.pad(signal, ((0, 0), (chunk, chunk)))
    for start in range(0, length, step):
        there = min(chunk, length - start)
        before = (chunk - there) // 2
        part = padded[:, chunk + start - before :][:, :chunk]
        stems = process(part[np.newaxis].copy())[0, ..., before : before + there].astype(np.float64)
        total[..., start : start + there] += stems * triangle[:there]
        weight[start : start + there] += triangle[:there]
    found: NDArray[np.float64] = total / weight
    return found


@settings(deadline=None, max_examples=150)
@given(plan=triangles(), samples=st.integers(1, 600))
def test_the_packages_rule_is_repeated(plan: DemucsPlan, samples: int) -> None:
    signal = noise(samples)
    expected = by_the_packages_rule(signal, plan.chunk_samples, plan.overlap, awkward(2))
    np.testing.assert_allclose(pushed(engine(plan), signal, iter([50] * 3)), expected, rtol=0, atol=TOLERANCE)


def test_a_bad_chunk_is_named_by_its_place_in_the_signal() -> None:
    calls = 0

    def spoilt(chunks: Audio) -> Audio:
        nonlocal calls
        calls += 1
        return awkward(2)(chunks) * np.float32(math.nan if calls == 3 else 1)

    with pytest.raises(NonFiniteError, match=r"chunk 2 \(samples 0 to 75\) of a, b holds NaN"):
        pushed(engine(MsstPlan(100, 4), spoilt), noise(500), iter(()))
    # That was 2 * 25 - 75 to 75; this is 2 * 30 - 30 - 10 to 110.
    calls = 0
    with pytest.raises(NonFiniteError, match=r"chunk 2 \(samples 20 to 110\) of a, b holds NaN"):
        pushed(engine(ChunkPlan(90, 10, 10, 10, 2), spoilt), noise(500), iter(()))


class TestChoosing:
    SPEC = ModelSpec(family="none", stems=("a", "b"), stft=STFT, chunk=ChunkSpec(16, 2, 2, 8))

    def test_by_name(self) -> None:
        assert plan_of(self.SPEC) == ChunkPlan.of(self.SPEC) == plan_of(self.SPEC, "1")
        assert plan_of(self.SPEC, 2) == ChunkPlan.of(self.SPEC, 2) == plan_of(self.SPEC, "2")
        samples = self.SPEC.chunk_samples
        assert plan_of(self.SPEC, "msst:4") == MsstPlan(samples, 4)
        assert plan_of(self.SPEC, "mean:3") == ChunkPlan(samples, 0, 0, 0, 3)
        assert plan_of(self.SPEC, "demucs:0.25") == DemucsPlan(samples, 0.25)

    @pytest.mark.parametrize(
        "overlap",
        [0, 3, -1, "many", True, "1:", "msst", "msst:", "msst:x", "msst:1", "msst:65", "msst:0.5", "mean:x"],
    )
    def test_what_is_not_there(self, overlap: int | str) -> None:
        with pytest.raises(UsageError, match=r"overlap .*: choose "):
            plan_of(self.SPEC, overlap)

    @pytest.mark.parametrize("share", ["", "x", "-1", "0.99", "1", "nan", "1e9"])
    def test_shares_that_cannot_be(self, share: str) -> None:
        with pytest.raises(UsageError, match=r"overlap .*: choose "):
            plan_of(self.SPEC, f"demucs:{share}")

    @pytest.mark.parametrize("overlap", [2, "msst:2", "mean:2", "demucs:0.25"])
    def test_state_goes_from_chunk_to_chunk_once(self, overlap: int | str) -> None:
        assert plan_of(CAUSAL) == ChunkPlan.of(CAUSAL)
        with pytest.raises(UsageError, match=r"overlap .*: .* has state that goes from chunk to chunk once"):
            plan_of(CAUSAL, overlap)

    def test_lengths_that_cannot_be(self) -> None:
        with pytest.raises(UsageError, match="overlap 4 must be from 1 to 3"):
            ChunkPlan(3, 0, 0, 0, 4)


def test_a_plain_mean_is_refused_where_chunks_end_more_quietly() -> None:
    stft = StftSpec(512, 128, 8000, padding="reflect", offset=64, endless=True)
    spec = ModelSpec("any", ("a",), stft=stft, chunk=ChunkSpec(20, 3, 2, 1))
    for overlap in (1, 2, "msst:2", "demucs:0.25"):
        plan_of(spec, overlap)
    with pytest.raises(UsageError, match=r"^overlap mean:2: any plays the ends of a chunk more quietly"):
        plan_of(spec, "mean:2")
