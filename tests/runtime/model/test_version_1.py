"""A bundle of spec version 1, as the tfx of that time wrote it, is read and means what it meant.

``data/version-1.tfx`` holds untrained weights; ``version-1-vocals.npy`` what that tfx made of ``noise()``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.stream.separator import Separator

DATA = Path(__file__).parent / "data"
BUNDLE = DATA / "version-1.tfx"
# Bound to evidence, engines and caches: another one would make all of them another model's.
DIGEST = "0d8d8ea00c9d9cc681e7144214568e476b66f2e41bb26b4b41c552e631652ab7"


def noise() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3001)).astype(np.float32)


def test_it_is_of_version_1() -> None:
    assert json.loads((BUNDLE / "manifest.json").read_text())["spec"]["spec_version"] == 1


def test_its_digest_stays() -> None:
    model = open_model(BUNDLE)
    assert model.bundle is not None
    assert model.bundle.digest == DIGEST


@pytest.mark.parametrize("backend", ["ort", "torch"])
def test_it_separates_as_it_did(backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend), reason=f"{backend} is not installed")
    with Separator(BUNDLE, backend=backend) as separator:
        vocals, accompaniment = separator.separate(noise())
    # Another processor sums in another order, some 140 dB below; another meaning is no 20 dB away.
    assert (snr_db(np.load(DATA / "version-1-vocals.npy"), vocals) or 0.0) > 90.0
    np.testing.assert_allclose(accompaniment, noise() - vocals, atol=1e-6)
