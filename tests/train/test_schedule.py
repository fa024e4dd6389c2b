"""The learning rate: exact at the points that matter, and its laws for every configuration."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfswa.runtime.errors import ConfigError

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.config import OptimConfig
from tfswa.train.schedule import RISE, Schedule

LR, END = 1e-3, 1e-5


def schedule_of(epoch_steps: int = 10, **values: Any) -> Schedule:
    return Schedule(
        OptimConfig(**{"length": 100, "warmup": 0, "lr": LR, "lr_end": END, **values}), epoch_steps
    )


def rates(schedule: Schedule) -> list[float]:
    return [schedule.rate(step) for step in range(schedule.steps)]


@st.composite
def schedules(draw: st.DrawFn, *, kind: str | None = None) -> Schedule:
    steps = draw(st.integers(1, 300))
    return schedule_of(
        length=steps,
        warmup=draw(st.integers(0, steps)),
        schedule=kind or draw(st.sampled_from(["cosine", "decay", "plateau", "constant"])),
        lr=draw(st.floats(1e-5, 1.0)),
        decay_factor=draw(st.floats(0.01, 0.99)),
        decay_every=draw(st.integers(1, 50)),
    )


@given(schedules())
def test_rates_rise_linearly_to_the_peak_and_never_again(schedule: Schedule) -> None:
    all_ = rates(schedule)
    warmup, lr = schedule.warmup, schedule.optim.lr
    assert all_[:warmup] == pytest.approx([lr * (step + 1) / warmup for step in range(warmup)])
    after = all_[max(0, warmup - 1) :]
    assert after == sorted(after, reverse=True)
    assert max(all_) <= lr
    if warmup:
        assert all_[warmup - 1] == lr
    assert min(all_[warmup:], default=END) >= END * (1 - 1e-12)


@given(schedules(kind="cosine"))
def test_the_cosine_ends_exactly_at_lr_end(schedule: Schedule) -> None:
    if schedule.warmup < schedule.steps:
        assert schedule.rate(schedule.steps - 1) == END
        assert schedule.rate(schedule.steps) == END


def test_the_cosine_without_warm_up_begins_at_lr_and_is_half_way_in_the_middle() -> None:
    schedule = schedule_of(length=101)
    assert schedule.rate(0) == pytest.approx(LR, rel=1e-12)
    assert schedule.rate(50) == pytest.approx((LR + END) / 2)
    assert schedule.rate(25) == pytest.approx(END + (LR - END) * (0.5 + 0.125**0.5))


def test_the_cosine_spans_what_the_warm_up_leaves() -> None:
    schedule = schedule_of(length=110, warmup=10)
    assert schedule.rate(0) == pytest.approx(LR / 10)
    assert schedule.rate(9) == LR
    assert schedule.rate(59) == pytest.approx((LR + END) / 2)
    assert schedule.rate(109) == END


def test_a_training_that_is_all_warm_up_ends_at_the_peak() -> None:
    assert rates(schedule_of(length=4, warmup=4)) == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])


def test_the_decay_steps_down_after_the_warm_up_to_its_floor() -> None:
    schedule = schedule_of(schedule="decay", warmup=5, decay_factor=0.1, decay_every=10)
    assert [schedule.rate(step) for step in (4, 5, 14)] == [LR] * 3
    assert [schedule.rate(step) for step in (15, 24)] == pytest.approx([LR * 0.1] * 2)
    assert schedule.rate(25) == pytest.approx(END)
    assert schedule.rate(99) == END


def test_constant_stays_even_below_lr_end() -> None:
    assert set(rates(schedule_of(schedule="constant", lr=1e-6))) == {1e-6}


@pytest.mark.parametrize("unit", ["epochs", "epoch"])
def test_durations_are_counted_in_the_steps_of_an_epoch(unit: Literal["epochs", "epoch"]) -> None:
    schedule = schedule_of(
        epoch_steps=40,
        length=f"2.5 {unit}",
        warmup=f"0.5 {unit}",
        schedule="decay",
        decay_every=f"1 {unit}",
        decay_factor=0.5,
    )
    assert (schedule.steps, schedule.warmup, schedule.decay_every) == (100, 20, 40)
    assert [schedule.rate(step) for step in (59, 60)] == [LR, LR / 2]


def test_a_plateau_waits_for_patience_validations_in_a_row() -> None:
    schedule = schedule_of(schedule="plateau", patience=2, decay_factor=0.1)
    seen = []
    for score in (1.0, 0.9, 1.1, 1.1, 1.1, 1.0, 1.2, 1.1, 1.1):
        schedule.validated(score)
        seen.append(round(schedule.rate(50) / LR, 6))
    assert seen == [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01]


def test_a_plateau_counts_anew_after_each_decay_down_to_the_floor() -> None:
    schedule = schedule_of(schedule="plateau", patience=3, decay_factor=0.3)
    schedule.validated(0.0)
    seen = []
    for _ in range(18):
        schedule.validated(0.0)
        seen.append(schedule.rate(50))
    assert seen[:9] == pytest.approx([LR] * 2 + [0.3 * LR] * 3 + [0.09 * LR] * 3 + [0.027 * LR])
    assert seen[-1] == END


@pytest.mark.parametrize(("rise", "times"), [(0.5 * RISE, 1), (2 * RISE, 0)])
def test_a_rise_counts_from_a_ten_thousandth(rise: float, times: int) -> None:
    schedule = schedule_of(schedule="plateau", patience=1)
    schedule.validated(0.0)
    schedule.validated(rise)
    assert schedule.times == times


def test_many_rises_too_small_to_count_add_up() -> None:
    schedule = schedule_of(schedule="plateau", patience=3)
    for number in range(30):
        schedule.validated(0.4 * RISE * number)
    assert schedule.times == 0


def test_the_warm_up_of_a_plateau_is_not_lowered() -> None:
    schedule = schedule_of(schedule="plateau", patience=1, warmup=10)
    schedule.validated(0.0)
    schedule.validated(0.0)
    assert schedule.rate(4) == pytest.approx(LR / 2)
    assert schedule.rate(10) == pytest.approx(0.3 * LR)


@pytest.mark.parametrize("kind", ["cosine", "decay", "constant"])
def test_other_schedules_do_not_hear_scores(kind: str) -> None:
    schedule = schedule_of(schedule=kind, patience=1)
    before = rates(schedule)
    for _ in range(5):
        schedule.validated(0.0)
    assert rates(schedule) == before


@given(st.lists(st.floats(-10, 10), max_size=20), st.lists(st.floats(-10, 10), max_size=20))
def test_a_restored_schedule_goes_on_exactly(before: list[float], after: list[float]) -> None:
    one = schedule_of(schedule="plateau", patience=2)
    for score in before:
        one.validated(score)
    two = schedule_of(schedule="plateau", patience=2)
    two.restore(json.loads(json.dumps(one.state())))
    for score in after:
        one.validated(score)
        two.validated(score)
        assert rates(one) == rates(two)
        assert one.state() == two.state()


def test_a_score_that_is_no_number_has_not_risen() -> None:
    schedule = schedule_of(schedule="plateau", patience=2)
    for score in (1.0, float("nan"), float("nan"), 1.5):
        schedule.validated(score)
    assert schedule.times == 1
    assert schedule.best == 1.5


def test_a_warm_up_longer_than_the_training_is_refused_with_both() -> None:
    match = r"warmup '2 epochs' is 20 steps, more than optim\.length 19, 19 steps: shorten the warm-up"
    with pytest.raises(ConfigError, match=match) as error:
        schedule_of(length=19, warmup="2 epochs")
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    schedule_of(length=20, warmup="2 epochs")


@pytest.mark.parametrize("kind", ["cosine", "decay", "plateau"])
def test_an_end_above_the_peak_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr_end 1e-05 is above optim\.lr 1e-06: lower it"):
        schedule_of(schedule=kind, lr=1e-6)
