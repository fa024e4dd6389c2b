"""Bundles to measure: one without a network, and one with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity_fakes import CHUNK, HYPER, STEMS, STFT

from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.model.spec import ModelSpec


@pytest.fixture
def model(tmp_path: Path) -> BundleModel:
    """A bundle without a network."""
    spec = ModelSpec(family="none", stems=STEMS, stft=STFT, chunk=CHUNK)
    path = tmp_path / "tiny.tfx"
    return BundleModel(str(path), Bundle.create(path, spec, {"w": np.zeros(1, np.float32)}))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """A tiny eager network."""
    pytest.importorskip("torch", reason="torch is not installed: the reference is an eager network")
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("network") / "tiny.tfx"
    return BundleModel(str(path), new_bundle("tfswa_lite", path, hyper=HYPER, stft=STFT, chunk=CHUNK))
