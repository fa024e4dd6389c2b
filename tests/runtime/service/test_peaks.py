"""Outlines of stems: the same wherever blocks are cut, and never more than so many parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.service.peaks import FIRST, PARTS, Outline, outline_of


@pytest.mark.parametrize("samples", [0, 1, FIRST, FIRST + 1, PARTS * FIRST - 1, PARTS * FIRST, 1_000_003])
def test_an_outline_holds_the_lowest_and_the_highest_of_each_part(samples: int) -> None:
    random = np.random.default_rng(samples)
    signal = random.standard_normal((2, samples), np.float32)
    outline, at = Outline(), 0
    while at < samples:
        step = int(random.integers(0, 70_000))
        outline.push(signal[:, at : at + step])
        at += step
    lows, highs = outline.found()
    parts = [signal[:, start : start + outline.part] for start in range(0, samples, outline.part)]
    np.testing.assert_array_equal(lows, [part.min() for part in parts])
    np.testing.assert_array_equal(highs, [part.max() for part in parts])
    assert len(lows) <= PARTS
    assert samples < PARTS * FIRST or len(lows) >= PARTS // 2


def test_the_outline_of_a_file_is_at_its_own_rate(tmp_path: Path) -> None:
    sound = np.zeros((1000, 2), np.float32)
    sound[100, 0], sound[500, 1] = -0.25, 0.75
    path = tmp_path / "stem.wav"
    soundfile.write(path, sound, 8000, subtype="FLOAT")
    found = outline_of(path)
    assert (found["sample_rate"], found["samples"], found["samples_per_part"]) == (8000, 1000, FIRST)
    lows, highs = found["lows"], found["highs"]
    assert isinstance(lows, list)
    assert isinstance(highs, list)
    assert [place for place, low in enumerate(lows) if low] == [100 // FIRST]
    assert [place for place, high in enumerate(highs) if high] == [500 // FIRST]
    assert (min(lows), max(highs)) == (-0.25, 0.75)
