"""RoFormers: the package ``bs-roformer`` beside them, mel bands, exports, and what is refused."""

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
from tfswa.runtime.model.spec import OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.codec import Codec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from make_roformer import BS, FILE, MEL, MEL_SAMPLES, SAMPLES, STRIDE, WIDTHS, known  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.families import build_network  # noqa: E402
from tfswa.train.families.roformer import mel_members  # noqa: E402

FAMILY = "roformer"
CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
GATE_DB = 90.0  # rounding alone, as in tests/export
HYPER: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16}


def recorded(case: str) -> ModelSpec:
    """The network that a vector was recorded of."""
    own = {**BS, **MEL}[case]
    channels, stems = 2 if own["stereo"] else 1, own.get("num_stems", 1)
    hyper = {**HYPER, "mask_layers": own.get("mask_estimator_depth", 2)}
    if case in BS:
        hyper |= {"widths": list(WIDTHS), "value_residual": True}
        hyper |= {"frequency_depth": own["freq_transformer_depth"], "zero_dc": own.get("zero_dc", False)}
        stft, frames = StftSpec(64, 16, 44_100, padding="reflect", seen=(0, 33)), SAMPLES // 16 + 1
    else:
        hyper |= {"bands": "mel", "norm": "each", "mask_layers": 3, "zero_dc": False}
        hyper |= {"linear_depth": own["linear_transformer_depth"]}
        stft, frames = StftSpec(2048, 441, 44_100, padding="reflect", seen=(0, 1025)), MEL_SAMPLES // 441 + 1
    names = ("vocals", "rest")
    return ModelSpec(
        FAMILY,
        names,
        channels=channels,
        hyper=hyper,
        stft=stft,
        chunk=ChunkSpec(frames, context=2, fade=2, multiple=1),
        network_stems=None if stems == 2 else names[:1],
        residual_stem=None if stems == 2 else names[1],
    )


def here(key: str, case: str) -> str:
    """What the package calls a weight, as a name of ours: no wrappers, no empty place before time."""
    key = key.replace(".branch.", ".")
    if case == "mel":
        return re.sub(r"^(layers\.\d+)\.(\d)", lambda found: f"{found[1]}.{int(found[2]) - 1}", key)
    return key


@pytest.mark.parametrize("case", [*BS, *MEL])
def test_it_gives_what_the_package_gives(case: str) -> None:
    spec = recorded(case)
    network = build_network(spec).eval()
    with np.load(FILE) as vectors:
        right, keys = vectors[case], [str(key) for key in vectors[f"{case}_keys"]]
    state = network.state_dict()
    assert {here(key, case) for key in keys} == set(state)
    for key in keys:
        if not key.endswith("freqs"):
            name = here(key, case)
            state[name] = torch.from_numpy(known(key, tuple(state[name].shape)))
    network.load_state_dict(state)
    chunk = known("audio", (1, spec.channels, spec.chunk_samples), 0.1)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    with torch.no_grad():
        out = network(torch.from_numpy(codec.tensors(chunk, spectra)["mixture"]))
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: out.numpy()[0]})[: len(spec.outputs), :, ::STRIDE]
    assert stems.shape == right.shape
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert np.abs(right).max() > 0.005


def test_mel_bands_are_those_of_the_published_networks() -> None:
    """60 filters over 1025 bins: every bin is heard by one or two of them."""
    members = mel_members(StftSpec(2048, 441, 44_100, padding="reflect", seen=(0, 1025)), 60)
    counts = np.bincount(np.concatenate(members), minlength=1025)
    assert set(counts) == {1, 2}
    with np.load(FILE) as vectors:
        assert f"band_split.to_features.{len(members) - 1}.0.gamma" in vectors["mel_keys"]
    with pytest.raises(ConfigError, match="mel band 0 of 400 hears no bin of n_fft 2048: use fewer bands"):
        mel_members(StftSpec(2048, 441, 44_100, padding="reflect", seen=(0, 1025)), 400)
    with pytest.raises(ConfigError, match="mel bands are of all 1025 bins, the network sees 1024 of them"):
        mel_members(StftSpec(2048, 441, 44_100), 60)


def test_one_stem_and_its_complement_add_up(tmp_path: Path) -> None:
    spec = recorded("mel")
    network = build_network(spec)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    model = open_model(Bundle.create(tmp_path / "mel.tfx", spec, weights).path)
    from tfswa.runtime.stream.separator import Separator

    song = known("song", (2, 30_000), 0.3)
    with Separator(model, backend="torch") as separator:
        stems = separator.separate(song)
    assert np.abs(stems.sum(axis=0) - song).max() <= 2**-22
    assert np.abs(stems[0]).max() > 0


@pytest.mark.parametrize("case", ["bs", "mel_linear"])
def test_it_exports(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    spec = recorded(case)
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

    spec = recorded("bs")
    with pytest.raises(ConfigError, match=says) as error:
        build_network(dataclasses.replace(spec, hyper={**spec.hyper, **hyper}))
    assert "\n" not in str(error.value)
