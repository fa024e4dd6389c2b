"""A row of the log: means, speeds and shares, by a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")

from tfswa.train import meter as module  # noqa: E402
from tfswa.train.data.loader import Batch  # noqa: E402
from tfswa.train.meter import Meter  # noqa: E402

RATE = 100


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def batch_of(items: int, seconds: float, loading: float = 0.0) -> Batch:
    stems = torch.zeros(items, 2, 1, int(seconds * RATE))
    return Batch(stems, tuple(range(items)), loading)


def loaded(clock: Clock, batches: list[Batch], wait: float) -> Iterator[Batch]:
    for batch in batches:
        clock.passes(wait)
        yield batch
    clock.passes(wait)


def test_means_are_those_since_the_last_row(clock: Clock) -> None:
    meter = Meter(RATE)
    for begin in (1.0, 10.0):
        source = loaded(clock, [batch_of(2, 1.0)] * 3, 0.1)
        for number, batch in enumerate(meter.timed(source)):
            row = {"loss": begin + number}
            if number == 2:
                row["update_ratio"] = 0.5  # not in every step
            meter.add(row, batch, whole=2)
        found = meter.row()
        assert found["loss"] == pytest.approx(begin + 1)
        assert found["update_ratio"] == 0.5
        meter.reset()
    assert "loss" not in meter.row()


def test_a_mean_with_nan_in_it_is_nan(clock: Clock) -> None:
    meter = Meter(RATE)
    for loss, batch in zip(
        (1.0, math.nan), meter.timed(loaded(clock, [batch_of(1, 1.0)] * 2, 0)), strict=True
    ):
        meter.add({"loss": loss}, batch, whole=1)
    assert math.isnan(meter.row()["loss"])


def test_speeds_and_shares(clock: Clock) -> None:
    """Four steps: 1 s waiting, 3 s training each; a chunk of 6 s takes 0.5 s to load."""
    meter = Meter(RATE)
    for batch in meter.timed(loaded(clock, [batch_of(2, 6.0, loading=0.5)] * 4, 1.0)):
        clock.passes(3.0)
        meter.add({"loss": 0.0}, batch, whole=8)  # four processes
        assert meter.audio_seconds_per_second == pytest.approx(8 * 6 / 4)
    row = meter.row()
    # The last wait found the source at its end.
    assert row["x_realtime"] == pytest.approx(4 * 8 * 6 / (4 * 4 + 1))
    assert row["loader_wait_share"] == pytest.approx(5 / 17)
    assert row["loader_x_realtime_each"] == pytest.approx(6 / 0.5)


def test_chunks_of_another_length_count_by_their_own(clock: Clock) -> None:
    meter = Meter(RATE)
    batches = [batch_of(2, 1.0, loading=0.25), batch_of(2, 4.0, loading=0.5)]
    for batch in meter.timed(loaded(clock, batches, 0.0)):
        clock.passes(1.0)
        meter.add({}, batch, whole=2)
    row = meter.row()
    assert row["x_realtime"] == pytest.approx((2 * 1 + 2 * 4) / 2)
    assert row["loader_x_realtime_each"] == pytest.approx((1 + 4) / (0.25 + 0.5))
    assert row["loader_wait_share"] == 0


def test_what_is_done_between_steps_is_neither_training_nor_waiting(clock: Clock) -> None:
    meter = Meter(RATE)
    for batch in meter.timed(loaded(clock, [batch_of(1, 6.0)] * 2, 1.0)):
        clock.passes(2.0)
        meter.add({}, batch, whole=1)
        before = meter.row()
        clock.passes(1000.0)  # a validation
        assert meter.row() == before
        assert before["x_realtime"] == pytest.approx(6 / 3)
        assert before["loader_wait_share"] == pytest.approx(1 / 3)


def test_a_new_row_begins_with_nothing(clock: Clock) -> None:
    meter = Meter(RATE)
    source = meter.timed(loaded(clock, [batch_of(1, 6.0, loading=1.0)] * 2, 1.0))
    meter.add({"loss": 1.0}, next(source), whole=1)
    clock.passes(100.0)
    meter.reset()
    batch = next(source)
    clock.passes(1.0)
    meter.add({"loss": 2.0}, batch, whole=1)
    assert meter.row() == pytest.approx(
        {"loss": 2.0, "x_realtime": 3.0, "loader_wait_share": 0.5, "loader_x_realtime_each": 6.0}
    )


def test_before_anything_nothing_is_divided_by_zero(clock: Clock) -> None:
    assert set(Meter(RATE).row().values()) == {0.0}
    assert list(Meter(RATE).timed(iter(()))) == []


def test_batches_pass_in_order_and_only_when_asked_for(clock: Clock) -> None:
    batches = [batch_of(1, 1.0), batch_of(2, 1.0)]
    drawn = []

    def source() -> Iterator[Batch]:
        for batch in batches:
            drawn.append(batch)
            yield batch

    passed = Meter(RATE).timed(source())
    assert next(passed) is batches[0]
    assert len(drawn) == 1
    assert next(passed) is batches[1]
    with pytest.raises(StopIteration):
        next(passed)
