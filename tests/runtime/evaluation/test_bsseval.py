"""SDR, ISR, SIR, SAR are museval's to the last digit that means something, else not defined."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from numpy.typing import NDArray
from separated import noise

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.evaluation import boxplot, bsseval, by_museval
from tfswa.runtime.evaluation.bsseval import BssEval, Method
from tfswa.runtime.evaluation.projection import FILTER_SAMPLES, Projection

Audio = NDArray[Any]

AGREEMENT_DB = 1e-6  # both compute in float64; white noise has a condition of some 100, so 1e-12 dB are left


def low(stems: int, channels: int, samples: int, cutoff: float = 0.7) -> Audio:
    """Noise that fades in and out, with nothing above a share of half the rate: -140 dB, as AAC leaves it."""
    taps = scipy.signal.firwin(1001, cutoff, window=("kaiser", 14.0))
    whole = noise(stems, channels, samples) * scipy.signal.windows.tukey(samples, 0.2)
    return np.asarray(scipy.signal.oaconvolve(whole, taps.reshape(1, 1, -1), mode="same", axes=-1))


def figures(references: Audio, estimates: Audio, window: int, method: Method = "v4") -> bsseval.Figures:
    (found,) = BssEval(list(references), (window,), method).evaluate(list(estimates))
    return found


@pytest.fixture
def museval() -> None:
    try:
        by_museval.require_museval()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("museval")
class TestMuseval:
    @pytest.mark.parametrize(
        ("stems", "channels", "samples"), [(1, 2, 12_000), (2, 1, 16_384), (3, 1, 12_001), (2, 2, 9000)]
    )
    def test_figures_are_the_same(self, stems: int, channels: int, samples: int) -> None:
        references = noise(stems, channels, samples) * np.linspace(1, 8, stems).reshape(-1, 1, 1)
        one = references + 0.4 * references[::-1] + 0.3 * noise(stems, channels, samples, seed=1)
        two = 0.7 * references + noise(stems, channels, samples, seed=2)
        windows = (4000, 90_000)
        ours, library = BssEval(list(references), windows), BssEval(list(references), windows, "museval")
        for estimates in (one, two):
            for found, right in zip(
                ours.evaluate(list(estimates)), library.evaluate(list(estimates)), strict=True
            ):
                assert not any(found.undefined)
                shown = slice(None) if stems > 1 else [0, 1, 3]
                assert np.isfinite(found.values[shown]).all()
                np.testing.assert_allclose(found.values, right.values, rtol=0, atol=AGREEMENT_DB)

    def test_the_mixture_in_every_place(self) -> None:
        references = noise(2, 1, 9000)
        mixture = np.broadcast_to(references.sum(axis=0), references.shape)
        found, right = (figures(references, mixture, 4000, method) for method in ("v4", "museval"))
        # SAR is what rounding leaves of nothing.
        np.testing.assert_allclose(found.values[:3], right.values[:3], rtol=0, atol=AGREEMENT_DB)
        assert (found.values[3] > 140).all()  # float32 rounds the mixture

    def test_a_window_with_a_silent_stem_counts_for_none(self) -> None:
        references = noise(2, 1, 12_000)
        references[1, :, 4000:8000] = 0
        estimates = references + noise(2, 1, 12_000, seed=1)
        found, right = (figures(references, estimates, 4000, method) for method in ("v4", "museval"))
        assert np.isnan(found.values[:, :, 1]).all()
        assert np.isfinite(found.values[:, :, [0, 2]]).all()
        np.testing.assert_allclose(found.values, right.values, rtol=0, atol=AGREEMENT_DB)

    def test_a_stem_that_is_silent_throughout_is_left_out(self) -> None:
        references = noise(3, 1, 9000)
        references[1] = 0
        estimates = references + noise(3, 1, 9000, seed=1)
        found = figures(references, estimates, 4000)
        assert np.isnan(found.values[:, 1]).all()
        pair = [0, 2]
        right = figures(references[pair], estimates[pair], 4000, "museval")
        np.testing.assert_allclose(found.values[:, pair], right.values, rtol=0, atol=AGREEMENT_DB)

    def test_it_says_what_cannot_be_true_where_it_is_asked(self) -> None:
        references = low(2, 1, 40_000)
        estimates = references + 0.1 * references[::-1] + 1e-2 * noise(2, 1, 40_000, seed=1)
        found = figures(references, estimates, 4000, "museval")
        sdr, _, sir, _ = np.median(found.values, axis=-1)
        assert (sdr > sir + 6).all()  # interference alone is four times the error that it is a part of
        assert not any(found.undefined)

    def test_singular_correlations_end_nothing(self) -> None:
        references = np.repeat(np.sign(noise(2, 1, 2000)), 2, axis=1)  # integers: exactly singular
        found = figures(references, references + noise(2, 2, 2000, seed=1), 1000, "museval")
        assert found.values.shape == (4, 2, 2)


class TestSilence:
    def test_a_silent_estimate_costs_the_others_nothing(self) -> None:
        references = noise(2, 1, 9000)
        estimates = references + noise(2, 1, 9000, seed=1)
        whole = figures(references, estimates, 4000)
        estimates[1] = 0
        found = figures(references, estimates, 4000)
        np.testing.assert_array_equal(found.values[:, 0], whole.values[:, 0])
        assert np.isnan(found.values[:, 1]).all()
        nothing = figures(references, np.zeros_like(estimates), 4000)
        assert nothing.values.shape == (4, 2, 2)
        assert np.isnan(nothing.values).all()

    def test_one_stem_that_sounds_has_no_interference(self) -> None:
        references = noise(2, 1, 9000)
        references[1] = 0
        found = figures(references, references + noise(2, 1, 9000, seed=1), 4000)
        assert np.isnan(found.values[2]).all()
        assert np.isfinite(found.values[[0, 1, 3], 0]).all()

    def test_no_stem_sounds(self) -> None:
        found = figures(np.zeros((2, 1, 9000)), noise(2, 1, 9000), 4000)
        assert np.isnan(found.values).all()
        assert not any(found.undefined)


def dense(references: Audio, estimate: Audio) -> NDArray[np.float64]:
    """Projection onto all delays of all channels by a dense least-squares solver, ``[C, N + 511]``."""
    rows = references.reshape(-1, references.shape[-1]).astype(np.float64)
    columns = [scipy.linalg.convolution_matrix(row, FILTER_SAMPLES) for row in rows]
    matrix = np.concatenate(columns, axis=1)
    right = np.pad(estimate, ((0, 0), (0, FILTER_SAMPLES - 1))).T
    solved = scipy.linalg.lstsq(matrix, right, cond=1e-9)[0]
    return np.asarray((matrix @ solved).T)


class TestDefined:
    @pytest.mark.parametrize("right", [0.0, 0.3, 1.0, -0.7])
    def test_a_mono_stem(self, right: float) -> None:
        """Its channels are one signal: their correlations are singular, the space that they span is not."""
        references = noise(1, 2, 3000)
        references[0, 1] = np.float32(right) * references[0, 0]
        estimates = references + noise(1, 2, 3000, seed=1)
        assert Projection(list(references)).condition < 1e4
        found = figures(references, estimates, 3000)
        explained = dense(references[:, :1], estimates[0])
        error = np.pad(estimates[0], ((0, 0), (0, FILTER_SAMPLES - 1))) - explained
        expected = 10 * np.log10(np.sum(explained**2) / np.sum(error**2))
        assert found.values[3, 0, 0] == pytest.approx(expected, abs=1e-5)  # float32 rounds the second channel

    def test_an_empty_band_is_singular(self) -> None:
        references = low(2, 1, 40_000)
        estimates = references + 0.1 * references[::-1] + 1e-2 * noise(2, 1, 40_000, seed=1)
        found = figures(references, estimates, 4000)
        assert np.isfinite(found.values[0]).all()
        assert np.isnan(found.values[1:]).all()
        assert all(set(why) == {"isr", "sir", "sar"} for why in found.undefined)
        assert "singular" in found.undefined[0]["sir"]

    def test_a_band_that_is_nearly_empty_makes_clicks_of_cuts(self) -> None:
        references = low(2, 1, 40_000) + 1e-5 * noise(2, 1, 40_000, seed=2)
        estimates = references + 0.1 * references[::-1] + 1e-2 * noise(2, 1, 40_000, seed=1)
        assert Projection(list(references)).condition < bsseval.CONDITION
        short, whole = BssEval(list(references), (4000, 40_000)).evaluate(list(estimates))
        assert all("artifacts by +" in why["sar"] for why in short.undefined)
        assert np.isnan(short.values[3]).all()
        assert not any(whole.undefined)  # nothing is cut but the song's ends
        sdr, _, sir, _ = whole.values[..., 0]
        assert (sir > sdr).all()

    def test_continuous_is_defined_in_an_empty_band(self) -> None:
        references = low(2, 1, 40_000)
        estimates = references + 0.1 * references[::-1] + 1e-2 * noise(2, 1, 40_000, seed=1)
        found = figures(references, estimates, 4000, "continuous")
        assert not any(found.undefined)
        _, isr, sir, sar = np.median(found.values, axis=-1)
        np.testing.assert_allclose(sir, 20.0, atol=0.3)  # a tenth of the other stem, of equal energy
        assert (isr > 35).all()
        np.testing.assert_allclose(sar, 40 + 10 * np.log10(0.7), atol=0.6)  # noise 40 dB below such stems

    def test_stems_that_are_filtered_copies(self) -> None:
        one = noise(1, 1, 9000)
        one[..., -5:] = 0  # so that the copy is whole
        references = np.concatenate((one, np.roll(one, 5, axis=-1)))
        found = figures(references, references + noise(2, 1, 9000, seed=1), 4000)
        assert all("singular" in why["sir"] for why in found.undefined)
        assert np.isnan(found.values[1:]).all()
        assert np.isfinite(found.values[0]).all()

    def test_a_quiet_stem_is_no_reason(self) -> None:
        references = noise(2, 1, 9000) * np.array([1.0, 1e-6]).reshape(2, 1, 1)
        found = figures(references, references * 1.1 + 1e-7 * noise(2, 1, 9000, seed=1), 4000)
        assert not any(found.undefined)
        assert np.isfinite(found.values).all()

    @pytest.mark.parametrize("method", ["v4", "continuous"])
    def test_parts_add_up_over_the_whole_song(self, method: Method) -> None:
        """SDR's error is the sum of three orthogonal parts: each ratio gives its part's energy back."""
        references = noise(2, 2, 60_000)
        estimates = references + 0.2 * references[::-1] + 0.1 * noise(2, 2, 60_000, seed=1)
        found = figures(references, estimates, 60_000, method)
        energy = (references.astype(np.float64) ** 2).sum(axis=(1, 2))
        sdr, isr, sir, sar = 10 ** (found.values[..., 0] / 10)
        for place in range(2):
            error, spatial = energy[place] / sdr[place], energy[place] / isr[place]
            # own = stem + spatial, all = own + interference, estimate = all + artifacts; each sum orthogonal
            total = (estimates[place].astype(np.float64) ** 2).sum()
            artifacts = total / (1 + sar[place])
            interference = (total - artifacts) / (1 + sir[place])
            # Continuous figures leave out what rings past the song's end: 511 of 60,000 samples.
            within = 1e-9 if method == "v4" else 0.02
            assert spatial + interference + artifacts == pytest.approx(error, rel=within)

    def test_continuous_windows_are_the_whole_song_cut(self) -> None:
        references = noise(2, 1, 8000)
        estimates = references + 0.2 * references[::-1] + 0.1 * noise(2, 1, 8000, seed=1)
        evaluation = BssEval(list(references), (2000, 4000), "continuous")
        short, long = evaluation.evaluate(list(estimates))
        energy = (references.astype(np.float64) ** 2).sum(axis=1).reshape(2, 4, 2000).sum(axis=2)
        spatial = energy / 10 ** (short.values[1] / 10)
        together = energy.reshape(2, 2, 2).sum(axis=2) / spatial.reshape(2, 2, 2).sum(axis=2)
        np.testing.assert_allclose(10 * np.log10(together), long.values[1], rtol=0, atol=1e-9)


class TestMissing:
    @pytest.mark.parametrize("missing", ["ffmpeg", "ffprobe"])
    def test_what_museval_needs_is_named(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("museval", reason="museval is not installed")
        monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/bin/{name}")
        with pytest.raises(BackendUnavailable, match=rf"museval needs {missing} on PATH"):
            by_museval.require_museval()

    def test_no_museval(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(BackendUnavailable, match=r"tfswa\[eval\]"):
            by_museval.require_museval()
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(BackendUnavailable, match=r"tfswa\[plots\].*, or --no-plot"):
            boxplot.require_boxplot()
