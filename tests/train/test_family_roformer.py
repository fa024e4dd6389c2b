"""RoFormers: mel bands, exports, lengths in half precision, and what is refused.

Beside the package ``bs-roformer``: test_importers_published.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.separator import Separator

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from known_numbers import known  # noqa: E402
from make_roformer import FILE  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.families.roformer import mel_members  # noqa: E402

GATE_DB = 90.0  # rounding alone, as in tests/export
HYPER: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "value_residual": True}


def small(bands: str, **hyper: Any) -> ModelSpec:
    """A small network of each layout; of mel bands with attention among channels and skips as well."""
    names = ("vocals", "rest")
    if bands == "fixed":
        stft, own = StftSpec(64, 16, padding="reflect", seen=(0, 33)), {"widths": [2, 2, 4, 8, 17]}
    else:
        stft = StftSpec(256, 57, padding="reflect", seen=(0, 129))
        own = {"mel_bands": 12, "norm": "each", "linear_depth": 1, "skips": True, "mask_layers": 3}
    return new_spec(
        "roformer",
        stems=names,
        hyper={"bands": bands, **HYPER, **own, **hyper},
        stft=stft,
        chunk=ChunkSpec(20, context=2, fade=2, multiple=1),
        network_stems=names if bands == "fixed" else names[:1],
        residual_stem=None if bands == "fixed" else names[1],
    )


def test_mel_bands_are_those_of_the_published_networks() -> None:
    """60 filters over 1025 bins: every bin is heard by one or two of them."""
    members = mel_members(StftSpec(2048, 441, 44_100, padding="reflect", seen=(0, 1025)), 60)
    counts = np.bincount(np.concatenate(members), minlength=1025)
    assert set(counts) == {1, 2}
    with np.load(FILE) as vectors:
        assert f"band_split.to_features.{len(members) - 1}.0.gamma" in vectors["mel_keys"]
    with pytest.raises(ConfigError, match="mel band 13 of 400 hears no bin of n_fft 2048: use fewer bands"):
        mel_members(StftSpec(2048, 441, 44_100, padding="reflect", seen=(0, 1025)), 400)
    with pytest.raises(ConfigError, match="mel bands are of all 1025 bins, the network sees 1024 of them"):
        mel_members(StftSpec(2048, 441, 44_100), 60)


def test_one_stem_and_its_complement_add_up(tmp_path: Path) -> None:
    spec = small("mel")
    network = build_network(spec)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    model = open_model(Bundle.create(tmp_path / "mel.tfx", spec, weights).path)
    song = known("song", (2, 30_000), 0.3)
    with Separator(model, backend="torch") as separator:
        stems = separator.separate(song)
    assert np.abs(stems.sum(axis=0) - song).max() <= 2**-22
    assert np.abs(stems[0]).max() > 0


@pytest.mark.parametrize("bands", ["fixed", "mel"])
def test_it_exports(bands: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    spec = small(bands)
    torch.manual_seed(0)
    weights = {key: value.numpy() for key, value in build_network(spec).state_dict().items()}
    model = open_model(Bundle.create(tmp_path / "mine.tfx", spec, weights).path)
    assert min(export_onnx(model).snr_db.values()) > GATE_DB
    assert min(export_torchscript(model).snr_db.values()) > GATE_DB
    assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
    model = open_model(model.bundle.path)  # type: ignore[union-attr]
    for batch in (1, 3):
        planes = np.random.default_rng(batch).standard_normal(spec.input_shape(batch), np.float32)
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = OrtSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        assert (snr_db(eager, found) or np.inf) > GATE_DB


def test_half_precision_hears_silence_and_noise(tmp_path: Path) -> None:
    """Lengths are computed in float32: in half, large squares are infinite, and so is 1 / nothing."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.precision import rounded

    onnx = pytest.importorskip("onnx")
    spec = small("mel", linear_depth=0, depth=1)
    torch.manual_seed(0)
    weights = {key: value.numpy() for key, value in build_network(spec).state_dict().items()}
    for key, value in weights.items():
        if re.match(r"band_split\.to_features\.\d+\.1\.", key):
            weights[key] = value * (0 if key.endswith("bias") else 300)
    model = open_model(Bundle.create(tmp_path / "mine.tfx", spec, weights).path)
    export_onnx(model, precision="fp16")
    model = open_model(model.bundle.path)  # type: ignore[union-attr]
    graph, _ = rounded(onnx.load(model.file(model.artifact("onnx", "fp16")[0])))
    session = ort.InferenceSession(graph.SerializeToString())
    noise = np.random.default_rng(0).standard_normal(spec.input_shape(1)).astype(np.float32)
    for level in (0.0, 1e-9, 1e-4, 1.0, 1e4):
        planes = np.float32(level) * noise
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = session.run(["stems"], {"mixture": planes})[0]
        assert np.isfinite(found).all(), level
        assert (snr_db(eager, found) or np.inf) > 40, level


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"widths": [2, 2]}, "widths add up to 4 bins, the network sees 33"),
        ({"widths": []}, "widths"),
        ({"dim_head": 15}, "dim_head 15 must be even"),
        ({"depth": 0}, "depth 0 must be 1 or above"),
        ({"linear_depth": -1}, "linear_depth -1"),
        ({"mask_layers": 0}, "mask_layers 0 must be above 0"),
        ({"bands": "bark"}, "bands.*choose one of fixed, mel"),
    ],
)
def test_impossible_hyper_parameters_are_refused(hyper: dict[str, Any], says: str) -> None:
    import dataclasses

    spec = small("fixed")
    with pytest.raises(ConfigError, match=says) as error:
        build_network(dataclasses.replace(spec, hyper={**spec.hyper, **hyper}))
    assert "\n" not in str(error.value)
