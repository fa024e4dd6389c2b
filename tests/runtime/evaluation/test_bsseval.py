"""SDR, ISR, SIR, SAR are museval's to the last digit that means something, and defined where it gives up."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.evaluation import boxplot, bsseval
from tfswa.runtime.evaluation.bsseval import BssEval
from tfswa.runtime.metrics import sdr_windows_db

Audio = NDArray[Any]

AGREEMENT_DB = 1e-6  # the same arithmetic in another order


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


@pytest.fixture
def museval() -> Any:
    try:
        bsseval.require_museval()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return bsseval._metrics()


def theirs(museval: Any, references: Audio, estimates: Audio, window: int) -> Audio:
    """museval's figures of signals ``[S, C, N]``: ``[4, S, windows]``."""
    found = museval.bss_eval(
        references.transpose(0, 2, 1).astype(np.float64),
        estimates.transpose(0, 2, 1).astype(np.float64),
        compute_permutation=False,
        window=window,
        hop=window,
    )
    return np.stack(found[:4])


class TestBssEval:
    @pytest.mark.parametrize(("stems", "channels"), [(2, 1), (3, 1), (2, 2)])
    def test_is_musevals(self, museval: Any, stems: int, channels: int) -> None:
        references = noise(stems, channels, 3500)
        estimates = references + 0.4 * references[::-1] + 0.3 * noise(stems, channels, 3500, seed=1)
        windows = (1000, 3000, 9000)
        for window, found in zip(windows, BssEval(references, windows).evaluate(estimates), strict=True):
            expected = theirs(museval, references, estimates, window)
            assert found.shape == expected.shape == (4, stems, max(1, 3500 // window))
            assert np.isfinite(found).all()
            np.testing.assert_allclose(found, expected, rtol=0, atol=AGREEMENT_DB)

    def test_the_mixture_in_every_place(self, museval: Any) -> None:
        references = noise(2, 1, 2000)
        mixture = np.broadcast_to(references.sum(axis=0), references.shape)
        (found,) = BssEval(references, (1000,)).evaluate(mixture)
        # SAR is what rounding leaves of nothing.
        expected = theirs(museval, references, mixture, 1000)
        np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=AGREEMENT_DB)

    def test_a_window_with_a_silent_stem_counts_for_none(self, museval: Any) -> None:
        references = noise(2, 1, 3000)
        references[1, :, 1000:2000] = 0
        estimates = references + noise(2, 1, 3000, seed=1)
        (found,) = BssEval(references, (1000,)).evaluate(estimates)
        expected = theirs(museval, references, estimates, 1000)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        assert np.isnan(found[:, :, 1]).all()
        assert np.isfinite(found[:, :, [0, 2]]).all()

    def test_a_stem_that_is_silent_throughout_is_left_out(self, museval: Any) -> None:
        references = noise(3, 1, 2000)
        references[1] = 0
        estimates = references + noise(3, 1, 2000, seed=1)
        (found,) = BssEval(references, (1000,)).evaluate(estimates)
        assert np.isnan(found[:, 1]).all()
        pair = [0, 2]
        expected = theirs(museval, references[pair], estimates[pair], 1000)
        np.testing.assert_allclose(found[:, pair], expected, rtol=0, atol=AGREEMENT_DB)

    def test_a_silent_estimate_costs_the_others_nothing(self, museval: Any) -> None:
        references = noise(2, 1, 2000)
        estimates = references + noise(2, 1, 2000, seed=1)
        (whole,) = BssEval(references, (1000,)).evaluate(estimates)
        estimates[1] = 0
        (found,) = BssEval(references, (1000,)).evaluate(estimates)
        np.testing.assert_array_equal(found[:, 0], whole[:, 0])
        assert np.isnan(found[:, 1]).all()
        (nothing,) = BssEval(references, (1000,)).evaluate(np.zeros_like(estimates))
        assert np.isnan(nothing).all()

    def test_one_stem_that_sounds_has_no_interference(self, museval: Any) -> None:
        references = noise(2, 1, 2000)
        references[1] = 0
        (found,) = BssEval(references, (1000,)).evaluate(references + noise(2, 1, 2000, seed=1))
        assert np.isnan(found[2]).all()
        assert np.isfinite(found[[0, 1, 3], 0]).all()

    def test_stems_with_equal_channels(self, museval: Any) -> None:
        """Their correlations are singular, which NumPy may or may not notice; museval cannot cope."""
        references = np.repeat(np.sign(noise(2, 1, 2000)), 2, axis=1)  # integers: exactly singular
        estimates = references + noise(2, 2, 2000, seed=1)
        (found,) = BssEval(references, (1000,)).evaluate(estimates)
        assert np.isfinite(found).all()
        for index in range(2):
            expected = sdr_windows_db(references[index], estimates[index], 1000)
            np.testing.assert_allclose(found[0, index], expected, rtol=0, atol=1e-3)

    def test_correlations_that_cannot_be_solved(self, museval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        references = noise(2, 1, 2000)
        estimates = references + noise(2, 1, 2000, seed=1)
        (expected,) = BssEval(references, (1000,)).evaluate(estimates)
        solve, calls = museval._compute_projection_filters, []

        def fail_first(whole: Audio, spectra: Audio, signal: Audio) -> Audio:
            calls.append(whole)
            if len(calls) % 2:
                raise AttributeError("module 'numpy.linalg' has no attribute 'linalg'")
            assert np.abs(whole - calls[-2]).max() < 1e-6 * np.abs(whole).max()
            found: Audio = solve(whole, spectra, signal)
            return found

        monkeypatch.setattr(museval, "_compute_projection_filters", fail_first)
        (found,) = BssEval(references, (1000,)).evaluate(estimates)
        assert len(calls) == 8
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("missing", ["ffmpeg", "ffprobe"])
    def test_what_museval_needs_is_named(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("museval", reason="museval is not installed")
        monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/bin/{name}")
        with pytest.raises(BackendUnavailable, match=rf"museval needs {missing} on PATH"):
            bsseval.require_museval()

    def test_no_museval(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(BackendUnavailable, match=r"tfswa\[eval\]"):
            bsseval.require_museval()
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(BackendUnavailable, match=r"tfswa\[plots\].*, or --no-plot"):
            boxplot.require_boxplot()
