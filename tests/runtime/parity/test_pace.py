"""What a measuring says of the time left."""

from __future__ import annotations

import pytest

from tfswa.runtime.parity.pace import Pace, ParityStep


def test_before_anything_ran_nothing_is_said() -> None:
    assert Pace([100, 100], ["reference", "ort"]).left(0, "reference") is None


def test_what_is_left_is_samples_by_the_pace_of_each_program() -> None:
    pace = Pace([100, 50, 50], ["reference", "ort"])
    pace.took("reference", 100, 200.0)
    assert pace.left(0, "ort") == pytest.approx(100 * 2 + 100 * 4)  # nothing of ort is known: as the other
    pace.took("ort", 100, 100.0)
    assert pace.left(1, "reference") == pytest.approx(100 * 3)
    assert pace.left(1, "ort") == pytest.approx(50 * 1 + 50 * 3)


def test_songs_of_unknown_length_are_taken_to_be_as_long_as_those_before() -> None:
    pace = Pace([None, None, 10], ["ort"])
    pace.found(0, 1000)
    pace.took("ort", 1000, 10.0)
    assert pace.left(1, "ort") == pytest.approx(0.01 * 10)  # its own length is found when its turn comes
    pace.found(1, 3000)
    assert pace.left(0, "ort") == pytest.approx(0.01 * (1000 + 3000 + 10))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.2, ", about 1 s left"),
        (89, ", about 89 s left"),
        (600, ", about 10 min left"),
        (7300, ", about 2 h 2 min left"),
    ],
)
def test_a_step_is_a_line(seconds: float | None, words: str) -> None:
    assert str(ParityStep(3, 24, "a song", True, "ort fp32", seconds)) == f"3 of 24: a song, ort fp32{words}"
