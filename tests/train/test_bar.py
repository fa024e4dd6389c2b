"""What ``tfx train`` says where there is no terminal: often enough, and not too often."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.bar import TrainingBar, silent_songs, spoken
from tfswa.train.loop import TrainingProgress


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_a_long_training(capsys: pytest.CaptureFixture[str]) -> None:
    clock, told = Clock(), [1000.0]
    with TrainingBar(clock) as bar:
        for done in range(5):  # 40 s of decoding, 10 s a part
            bar.doing("decoding", done, 5)
            told += [clock.now] if capsys.readouterr().err else []
            clock.now += 10
        for step in range(1, 101):
            bar.report(TrainingProgress(step, 100, 0.5, 12.0))
            told += [clock.now] if capsys.readouterr().err else []
            clock.now += 3
    pauses = [after - before for before, after in pairwise(told)]
    assert max(pauses) <= 30
    assert len(told) < 25  # not a line a step


def test_what_a_line_says(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with TrainingBar(clock) as bar:
        bar.report(TrainingProgress(3, 50, 0.51, 12.34))
        clock.now += 94
        bar.report(TrainingProgress(50 - 47 + 2, 50, 0.25, 12.0))
        scores, quiet = {"vocals": 6.321}, {"vocals": 2}
        bar.report(TrainingProgress(6, 50, 0.25, 12.0, scores, quiet))
        bar.report(TrainingProgress(7, 50, 0.25, 12.0, {}, {}))
    assert capsys.readouterr().err.splitlines() == [
        "step 3/50  loss 0.5100  12.3 x real time",
        "step 5/50  loss 0.2500  12.0 x real time  35 min left",
        "step 6/50  loss 0.2500  validation  SDR vocals 6.32 dB  (left out: vocals of 2 songs)",
        "step 7/50  loss 0.2500  validation  nothing to score",
    ]


def test_words() -> None:
    assert [spoken(s) for s in (3.2, 89, 90, 5399, 12600)] == ["3 s", "89 s", "2 min", "90 min", "3.5 h"]
    assert silent_songs({"vocals": 1, "bass": 3}) == "  (left out: vocals of 1 song, bass of 3 songs)"
    assert silent_songs({}) == ""
