"""A song's figures and a data set's: two conventions, baselines, and what is undefined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from separated import noise, write_arrays

from tfswa.runtime.evaluation.baselines import BASELINES, baseline, ratio_mask
from tfswa.runtime.evaluation.bsseval import MEASURES, BssEval
from tfswa.runtime.evaluation.scores import (
    FIGURES,
    MEANS,
    MEDIANS,
    WINDOWS,
    Score,
    score_song,
    song_figures,
    summarize,
)
from tfswa.runtime.evaluation.signals import BLOCK
from tfswa.runtime.metrics import sdr_db, snr_db
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.transform import Stft

Audio = NDArray[Any]

RATE = 8000
AGREEMENT_DB = 1e-6  # the same arithmetic in another order
SPEC = ModelSpec(
    "none", ("vocals", "accompaniment"), stft=StftSpec(512, 128, RATE), chunk=ChunkSpec(16, 2, 2, 8)
)


def masked(mixture: Audio, references: Audio) -> Audio:
    return np.concatenate(list(ratio_mask(mixture, list(references), SPEC.stft)), axis=-1)


def by_bsseval(references: Audio, estimates: Audio) -> Audio:
    """``[4, S, windows]`` of a second."""
    return BssEval(list(references), [RATE]).evaluate(list(estimates))[0].values


class TestBaselines:
    def test_the_oracle_separates_what_does_not_overlap(self) -> None:
        time = np.arange(4000) / RATE
        tones = np.stack([np.tile(np.sin(2 * np.pi * f * time), (2, 1)) for f in (500, 2000)]).astype(
            np.float32
        )
        found = masked(tones.sum(axis=0), tones)
        assert all((snr_db(tone, estimate) or 0) > 30 for tone, estimate in zip(tones, found, strict=True))

    def test_oracle_estimates_sum_to_the_mixture(self) -> None:
        stems = noise(3, 2, 3000)
        found = masked(stems.sum(axis=0), stems)
        np.testing.assert_allclose(found.sum(axis=0), stems.sum(axis=0), atol=1e-5)

    def test_what_no_stem_holds_goes_to_none(self) -> None:
        stems, rest = noise(2, 1, 3000), noise(1, 3000, seed=1)
        mixture = stems.sum(axis=0) + rest
        found = masked(mixture, stems)
        with_rest = masked(mixture, np.concatenate((stems, rest[None])))
        np.testing.assert_allclose(found, with_rest[:2], atol=1e-6)

    def test_silence_is_0_db_and_digital_silence_stays_finite(self, tmp_path: Path) -> None:
        stems = noise(2, 1, 3000)
        silence = baseline("silence", stems.sum(axis=0), list(stems), SPEC.stft, tmp_path)
        assert [song_figures(*pair)[0] for pair in zip(stems, silence, strict=True)] == [0.0, 0.0]
        zeros = np.zeros_like(stems)
        assert not masked(zeros[0], zeros).any()

    def test_the_mixture_is_the_mixture(self, tmp_path: Path) -> None:
        stems = noise(2, 1, 300)
        found = baseline("mixture", stems.sum(axis=0), list(stems), SPEC.stft, tmp_path)
        np.testing.assert_array_equal([one[:, :] for one in found], np.stack([stems.sum(axis=0)] * 2))

    @pytest.mark.parametrize("more", [0, 1, 100_000])
    def test_the_oracle_of_parts_is_that_of_the_whole_to_the_bit(self, more: int, tmp_path: Path) -> None:
        transform = Stft(SPEC.stft)
        samples = 2 * BLOCK + more
        stems = noise(2, 2, samples)
        mixture = (stems.sum(axis=0) + noise(2, samples, seed=1)).astype(np.float32)
        mixture[1] = stems[:, 1].sum(axis=0)  # nothing is left in this channel
        found = baseline("oracle", mixture, list(stems), SPEC.stft, tmp_path)
        for channel in range(2):
            sources = [*stems[:, channel]]
            if channel == 0:
                sources.append(mixture[channel] - stems[:, channel].sum(axis=0))
            magnitudes = [np.abs(transform.forward(source)) for source in sources]
            total = np.sum(magnitudes, axis=0)
            total[total == 0.0] = 1.0
            for index in range(2):
                whole = (magnitudes[index] / total * transform.forward(mixture[channel])).astype(np.complex64)
                expected = transform.inverse(whole, samples)
                np.testing.assert_array_equal(found[index][:, :][channel], expected)


class TestScores:
    def test_a_songs_figures(self, tmp_path: Path) -> None:
        references = noise(2, 1, 3 * RATE)
        estimates = references + 0.5 * noise(2, 1, 3 * RATE, seed=1)
        found = score_song(write_arrays(tmp_path, references, estimates), SPEC, baselines=False)
        assert [(score.stem, score.estimator) for score in found] == [
            ("vocals", "model"),
            ("accompaniment", "model"),
        ]
        expected = by_bsseval(references, estimates)
        for index, score in enumerate(found):
            assert tuple(score.figures) == FIGURES
            assert list(score.windows) == [f"{m}_{s}s_db" for s in (1, 10) for m in MEASURES]
            for row, measure in enumerate(MEASURES):
                np.testing.assert_allclose(
                    score.windows[f"{measure}_1s_db"], expected[row, index], atol=AGREEMENT_DB
                )
                median = np.median(expected[row, index])
                assert score.figures[f"{measure}_c_db"] == pytest.approx(median, abs=AGREEMENT_DB)
                assert (
                    len(score.windows[f"{measure}_10s_db"]) == 1
                )  # as in museval, a short song is one window
            assert score.figures["sdr_u_db"] == sdr_db(references[index], estimates[index])
            assert score.figures["sdr_10s_c_db"] == pytest.approx(score.figures["sdr_u_db"], abs=AGREEMENT_DB)
            assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score

    def test_below_a_second_there_is_no_window(self, tmp_path: Path) -> None:
        references = noise(2, 1, RATE - 1)
        folder = write_arrays(tmp_path, references, references + noise(2, 1, RATE - 1, seed=1))
        for score in score_song(folder, SPEC, baselines=True):
            assert all(score.figures[name] is None for name in MEDIANS)
            assert score.figures["sdr_u_db"] is not None
            assert score.windows == {}

    def test_baselines_come_along(self, tmp_path: Path) -> None:
        references = noise(2, 1, RATE)
        found = score_song(write_arrays(tmp_path, references, references[::-1]), SPEC, baselines=True)
        assert [score.estimator for score in found[::2]] == ["model", *BASELINES]
        silence = found[4]
        assert silence.figures["sdr_u_db"] == 0.0
        assert {name for name in FIGURES if silence.figures[name] is not None} == {"sdr_u_db"}
        assert (found[6].figures["sdr_c_db"] or 0) > (found[2].figures["sdr_c_db"] or 0)

    def test_silent_stems_and_perfect_ones_are_undefined(self, tmp_path: Path) -> None:
        references = noise(2, 1, RATE)
        references[0] = 0
        silent, perfect = score_song(write_arrays(tmp_path, references, references), SPEC, baselines=False)
        assert set(silent.figures.values()) == {None}
        assert perfect.figures["sdr_u_db"] is None
        json.dumps(perfect.to_dict(), allow_nan=False)

    def test_a_single_stem_is_paired_with_the_rest(self, tmp_path: Path) -> None:
        one = ModelSpec("none", ("vocals",), stft=SPEC.stft, chunk=SPEC.chunk)
        references, estimates = noise(2, 1, RATE), noise(2, 1, RATE, seed=1)
        mixture = references.sum(axis=0)
        folder = write_arrays(tmp_path, references[:1], estimates[:1], mixture)
        (found,) = score_song(folder, one, baselines=False)
        pair = np.stack((estimates[0], mixture - estimates[0]))
        expected = by_bsseval(references, pair)[:, 0]
        np.testing.assert_allclose(
            [found.figures[f"{measure}_c_db"] or 0 for measure in MEASURES], expected[:, 0], atol=1e-4
        )

    def test_what_is_not_defined_is_null_and_says_why(self, tmp_path: Path) -> None:
        one = noise(1, 1, 2 * RATE)
        one[..., -5:] = 0
        references = np.concatenate((one, np.roll(one, 5, axis=-1)))  # a stem and its echo
        estimates = references + noise(2, 1, 2 * RATE, seed=1)
        scores = score_song(write_arrays(tmp_path, references, estimates), SPEC, baselines=False)
        lost = [name for name in MEDIANS if not name.startswith("sdr")]
        for score in scores:
            assert [name for name in FIGURES if score.figures[name] is None] == lost
            assert list(score.undefined) == lost
            assert "singular" in score.undefined["sir_c_db"]
            assert set(score.windows["sir_1s_db"]) == {None}
            assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score
        assert summarize([scores, scores])[0].undefined_songs == dict.fromkeys(lost, 2)
        fine = score_song(tmp_path, SPEC, baselines=False, method="continuous")
        assert fine[0].undefined == {}
        assert fine[0].figures["sir_c_db"] is not None

    def test_c_is_a_median_and_u_a_mean(self) -> None:
        def song(value: float | None) -> list[Score]:
            return [Score("vocals", name, dict.fromkeys(FIGURES, value), {}) for name in ("oracle", "model")]

        first, second = summarize([song(1.0), song(2.0), song(None), song(9.0)])
        assert (first.estimator, second.estimator) == ("model", "oracle")
        assert all(first.figures[name] == 2.0 for name in MEDIANS)
        assert all(first.figures[name] == 4.0 for name in MEANS)
        told = {"stem": "vocals", "estimator": "model", **first.figures, "undefined_songs": {}}
        assert first.to_dict() == told
        assert set(summarize([song(None)])[0].figures.values()) == {None}

    def test_names_tell_the_conventions_apart(self) -> None:
        assert set(FIGURES) == {
            *(f"{measure}{window}_c_db" for measure in MEASURES for window in ("", "_10s")),
            *("sdr_u_db", "si_sdr_u_db"),
        }
        assert list(WINDOWS.values()) == [1.0, 10.0]
