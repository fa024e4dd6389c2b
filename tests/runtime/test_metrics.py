"""Measures against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError
from tfswa.runtime.metrics import sdr_db, sdr_windows_db, si_sdr_db, snr_db

Measure = Callable[[NDArray[Any], NDArray[Any]], float | None]


def stereo(*values: float) -> NDArray[np.float32]:
    return np.array([values, values], np.float32)


@pytest.mark.parametrize("measure", [snr_db, sdr_db])
@pytest.mark.parametrize(
    ("reference", "estimate", "expected"),
    [
        ([[3.0, 4.0]], [[3.0, 4.5]], 20.0),  # 25 against 0.25
        ([[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]], 10 * math.log10(4)),  # one of four is lost
        ([[1.0, -1.0]], [[0.0, 0.0]], 0.0),  # silence instead of the stem
        ([[1.0, -1.0]], [[-1.0, 1.0]], 10 * math.log10(1 / 4)),
        ([[1.0, 2.0]], [[1.0, 2.0]], math.inf),
        ([[0.0, 0.0]], [[1.0, 1.0]], None),
        ([[0.0, 0.0]], [[0.0, 0.0]], None),
        ([[], []], [[], []], None),
    ],
)
def test_ratio_over_all_channels_and_samples(
    measure: Measure, reference: list[list[float]], estimate: list[list[float]], expected: float | None
) -> None:
    value = measure(np.array(reference, np.float32), np.array(estimate, np.float32))
    assert value == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_small_drift_is_not_lost_in_float32() -> None:
    reference = np.ones(10_000_000, np.float32)
    estimate = reference.copy()
    estimate[::2] += np.float32(2**-20)  # half the samples, 20 bits down
    assert snr_db(reference, estimate) == pytest.approx(10 * math.log10(2 * 2.0**40), abs=1e-9)


def test_integers_do_not_overflow() -> None:
    reference = np.full((2, 100), 30_000, np.int16)
    assert snr_db(reference, -reference) == pytest.approx(10 * math.log10(1 / 4))


def test_windows_drop_the_rest_and_ignore_silence() -> None:
    #                   20 dB      equal      silent ref  silent est  6.02 dB    rest
    reference = stereo(3.0, 4.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.0, 9.0)
    estimate = stereo(3.0, 4.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    values = sdr_windows_db(reference, estimate, 2)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [20.0, math.inf, math.nan, math.nan, 10 * math.log10(4)], atol=1e-12)


def test_windows_have_museval_s_values() -> None:
    # What museval 0.4.1 says: bss_eval(window=1000, hop=1000), with its filters of 512 taps, although the
    # estimate is a delayed and scaled reference that those filters can explain.
    n = np.arange(3500.0)
    reference = np.stack([np.sin(0.001 * n**1.5), np.sin(0.07 * n + np.sin(0.013 * n))])
    estimate = 0.8 * np.roll(reference, 2, axis=1) + 0.1 * np.cos(0.0003 * n**2)
    values = sdr_windows_db(reference, estimate, 1000)
    np.testing.assert_allclose(values, [11.95959071, 11.98802523, 11.73360818], atol=1e-7)


def test_a_short_song_is_one_window() -> None:
    np.testing.assert_allclose(sdr_windows_db(stereo(3.0, 4.0), stereo(3.0, 4.5), 44_100), [20.0], atol=1e-12)


def test_an_empty_song_has_no_windows() -> None:
    assert sdr_windows_db(stereo(), stereo(), 2).shape == (0,)


def test_si_sdr_ignores_the_scale_alone() -> None:
    reference = np.array([[1.0, 0.0]])
    estimate = np.array([[5.0, 0.5]])  # 25 along the reference, 0.25 across
    assert si_sdr_db(reference, estimate) == pytest.approx(20.0)
    assert si_sdr_db(reference, 8 * estimate) == pytest.approx(20.0)
    assert si_sdr_db(reference, -estimate) == pytest.approx(20.0)
    assert sdr_db(reference, estimate) != pytest.approx(20.0)


def test_si_sdr_at_its_limits() -> None:
    reference = np.array([[1.0, 0.0]])
    assert si_sdr_db(reference, 4 * reference) == math.inf
    assert si_sdr_db(reference, np.array([[0.0, 1.0]])) == -math.inf
    assert si_sdr_db(reference, np.zeros((1, 2))) is None
    assert si_sdr_db(np.zeros((1, 2)), reference) is None


@pytest.mark.parametrize("measure", [snr_db, sdr_db, si_sdr_db])
def test_what_cannot_be_compared_is_refused(measure: Measure) -> None:
    good = np.ones((2, 4), np.float32)
    with pytest.raises(TfxError, match=r"\[2, 4\] and estimate \[2, 3\]"):
        measure(good, good[:, :3])
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(NonFiniteError, match="the estimate holds"):
        measure(good, bad)
    with pytest.raises(NonFiniteError, match="the reference holds"):
        measure(bad, good)


def test_a_window_has_a_length() -> None:
    with pytest.raises(TfxError, match="window_samples 0"):
        sdr_windows_db(stereo(1.0), stereo(1.0), 0)
