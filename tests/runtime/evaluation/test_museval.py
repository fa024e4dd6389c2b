"""Our SDR is the field's: museval's own evaluation of the same estimate, on real audio."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tfswa.runtime.metrics import sdr_windows_db
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file

TOLERANCE_DB = 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
def test_sdr_agrees_with_museval() -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg and ffprobe are missing, museval cannot be imported")
    museval = pytest.importorskip("museval")
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed")
    song = load_stem_file(path, ModelSpec("any", ("vocals", "accompaniment")))
    truth = np.stack([song.stems["vocals"].T, song.stems["accompaniment"].T]).astype(np.float64)
    random = np.random.default_rng(0)
    leak = 0.3 * truth[::-1] + 0.01 * random.standard_normal(truth.shape)
    estimate = truth + leak
    rate = 44_100
    theirs = museval.evaluate(truth, estimate, win=rate, hop=rate)[0]
    for index, stem in enumerate(("vocals", "accompaniment")):
        ours = sdr_windows_db(truth[index].T, estimate[index].T, rate)
        # museval drops a window for all stems where one of them is silent.
        sounding = ~np.isnan(theirs[index])
        assert sounding.any(), stem
        np.testing.assert_allclose(
            ours[: len(sounding)][sounding], theirs[index][sounding], atol=TOLERANCE_DB
        )
