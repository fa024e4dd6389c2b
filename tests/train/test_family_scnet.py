"""SCNet: the package ``pymss-core`` beside it, published files, exports, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import BundleError, ConfigError, TfxError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.codec import Codec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from known_numbers import known  # noqa: E402
from make_scnet import CASES, COMMON, FILE, FRAMES, SAMPLES, SOURCES, STFT, STRIDE, weight  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.scnet import Fusion, fourier  # noqa: E402
from tfswa.train.importers.kinds import Settings, recognized, spec_of_reading  # noqa: E402
from tfswa.train.importers.published import read_yaml  # noqa: E402

FAMILY = "scnet"
CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
GATE_DB = 90.0  # rounding alone, as in tests/export


def recorded(case: str, **hyper: Any) -> ModelSpec:
    """The network that a vector was recorded of."""
    told = {**COMMON, **CASES[case]}
    own = {
        "dims": told["dims"][1:],
        "shares": told["band_SR"][:2],
        "strides": told["band_stride"],
        "kernels": told["band_kernel"],
        "depths": told["conv_depths"],
        "compress": float(told.get("compress", 4)),
        "kernel": told.get("conv_kernel", 3),
        "paths": told["num_dplayer"],
        "expand": told.get("expand", 1),
    }
    stft = StftSpec(256, 64, 44_100, window="none", padding="reflect", seen=(0, 129))
    stft = dataclasses.replace(stft, scale=1 / 16 if told["normalized"] else 1.0)
    chunk = ChunkSpec(FRAMES, context=1, fade=0, multiple=2)
    return ModelSpec(
        FAMILY,
        tuple(SOURCES[case]),
        channels=told["audio_channels"],
        hyper={**own, **hyper},
        stft=stft,
        chunk=chunk,
    )


def with_known_weights(spec: ModelSpec) -> Any:
    network = build_network(spec).eval()
    state = network.state_dict()
    for name, value in state.items():
        state[name] = torch.from_numpy(weight(name, tuple(value.shape)))
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_package_gives(case: str) -> None:
    spec = recorded(case)
    network = with_known_weights(spec)
    with np.load(FILE) as vectors:
        right, keys = vectors[case], [str(key) for key in vectors[f"{case}_keys"]]
    assert set(keys) == set(network.state_dict())
    chunk = np.zeros((1, spec.channels, spec.chunk_samples), np.float32)
    chunk[..., :SAMPLES] = known("audio", (1, spec.channels, SAMPLES), 0.1)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    with torch.no_grad():
        out = network(torch.from_numpy(codec.tensors(chunk, spectra)["mixture"]))
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: out.numpy()[0]})[:, :, :SAMPLES:STRIDE]
    assert stems.shape == right.shape
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert np.abs(right).max() > 0.02


@pytest.mark.parametrize("frames", [2, 16, 476])
def test_the_transform_along_time_is_that_of_torch(frames: int) -> None:
    there, back = fourier(frames)
    x = torch.from_numpy(known("frames", (3, frames), 1.0))
    spectrum = torch.fft.rfft(x, norm="ortho")
    found = x @ there
    torch.testing.assert_close(found, torch.cat((spectrum.real, spectrum.imag), dim=1), atol=1e-5, rtol=0)
    any_numbers = torch.from_numpy(known("spectrum", (3, 2 * (frames // 2 + 1)), 1.0))
    right = torch.fft.irfft(torch.complex(*any_numbers.chunk(2, dim=1)), frames, norm="ortho")
    torch.testing.assert_close(any_numbers @ back, right, atol=1e-5, rtol=0)


def test_a_fusion_meets_the_same_numbers_twice() -> None:
    fusion = Fusion(4)
    x, skip = (torch.from_numpy(known(name, (2, 4, 5, 6), 1.0)) for name in ("x", "skip"))
    twice = fusion.conv((x + skip).repeat(1, 2, 1, 1))
    torch.testing.assert_close(fusion(x, skip), torch.nn.functional.glu(twice, dim=1))


def test_training_takes_dual_paths_again_and_finds_the_same() -> None:
    spec = recorded("stereo")
    network = build_network(spec).train()
    planes = torch.from_numpy(known("planes", spec.input_shape(2), 1.0))
    grads = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        network(planes).square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in network.parameters()])
    assert network.checkpointing
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def settings_of(config: Path | None = None, **given: Any) -> Settings:
    return Settings(config=read_yaml(config) if config else {}, **given)


def imported(path: Path, settings: Settings) -> tuple[ModelSpec, Any]:
    """Spec and network of a published file."""
    tensors = torch.load(path, weights_only=True)
    found = recognized(list(tensors))
    assert found is not None
    kind, prefix = found
    inner = {name[len(prefix) :]: value for name, value in tensors.items()}
    reading = kind.read({name: tuple(value.shape) for name, value in inner.items()}, settings)
    spec = spec_of_reading(kind, path.name, reading, settings)
    network = build_network(spec).eval()
    network.load_state_dict({reading.rename(name): value for name, value in inner.items()})
    return spec, network


def yaml_of(case: str, path: Path, **changed: Any) -> Path:
    """A published configuration of a case, as the training suite writes it."""
    model = {**STFT, **COMMON, **CASES[case], **changed}
    lines = ["audio:", f"  chunk_size: {SAMPLES}", "  sample_rate: 44100", "model:"]
    lines += [f"  {key}: {str(value).lower()}" for key, value in model.items()]
    lines += ["training:", "  instruments:", *(f"    - {name}" for name in SOURCES[case])]
    lines += ["  target_instrument: null"]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_and_its_configuration(case: str, tmp_path: Path) -> None:
    spec = recorded(case)
    network = with_known_weights(spec)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "scnet.ckpt")
    found, made = imported(tmp_path / "scnet.ckpt", settings_of(yaml_of(case, tmp_path / "scnet.yaml")))
    assert found.hyper == spec.hyper
    assert found.stft == dataclasses.replace(spec.stft, fill=37)
    assert found.chunk_samples == SAMPLES
    assert (found.chunk.frames, found.stems, found.channels) == (FRAMES, spec.stems, spec.channels)
    planes = torch.from_numpy(known("planes", spec.input_shape(1), 2.0))
    with torch.no_grad():
        assert torch.equal(made(planes), network(planes))


def test_a_published_file_by_itself_wants_its_configuration(tmp_path: Path) -> None:
    torch.save(build_network(recorded("stereo")).state_dict(), tmp_path / "scnet.ckpt")
    with pytest.raises(UsageError, match=r"an SCNet of 3 stems: .*: add --config YAML") as error:
        imported(tmp_path / "scnet.ckpt", settings_of())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"compress": 2}, "model.compress 2 of the configuration contradicts .*, 2 channels for 8"),
        ({"win_size": 128}, "model.win_size 128 of the configuration is not nfft 256"),
        ({"band_SR": [0.2, 0.8]}, r"model.band_SR \[0.2, 0.8\] of the configuration must be 3 numbers"),
        ({"band_stride": [1, 2, 9]}, "kernel 4 and stride 9 do not give back a band of"),
    ],
)
def test_a_configuration_of_another_network_is_refused(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    torch.save(build_network(recorded("stereo")).state_dict(), tmp_path / "scnet.ckpt")
    path = yaml_of("stereo", tmp_path / "scnet.yaml", **changed)
    with pytest.raises(TfxError, match=says) as error:
        imported(tmp_path / "scnet.ckpt", settings_of(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hop", ["64", 0, -64, 6.5, None])
def test_a_hop_that_is_none_is_refused(hop: Any, tmp_path: Path) -> None:
    torch.save(build_network(recorded("stereo")).state_dict(), tmp_path / "scnet.ckpt")
    path = yaml_of("stereo", tmp_path / "scnet.yaml")
    with pytest.raises(TfxError, match="hop") as error:
        imported(tmp_path / "scnet.ckpt", settings_of(path, stft={"hop": hop}))
    assert "\n" not in str(error.value)


def test_weights_that_no_such_network_has_are_refused(tmp_path: Path) -> None:
    state = build_network(recorded("stereo")).state_dict()
    state["decoder.1.1.convtrs.0.weight"] = torch.zeros(8, 13, 3, 1)
    torch.save(state, tmp_path / "scnet.ckpt")
    with pytest.raises(BundleError, match="takes 4 planes and gives 13"):
        imported(tmp_path / "scnet.ckpt", settings_of())


def test_the_default_is_the_published_network() -> None:
    """Four stems of MUSDB18; the package counts as many, and 42 181 232 for the large one."""
    stems = get_family(FAMILY).published_stems
    assert new_spec(FAMILY, stems=stems).parameters == 10_578_768
    large = {"dims": [64, 128, 256], "shares": [0.225, 0.372]}
    assert new_spec(FAMILY, stems=stems, hyper=large).parameters == 42_181_232
    with torch.device("meta"):
        assert len(build_network(new_spec(FAMILY, stems=stems)).state_dict()) == 372


def test_it_exports(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    # Torch traces LSTMs frame by frame and bin by bin: few of both.
    spec = dataclasses.replace(
        recorded("stereo", dims=[8], depths=[1, 1, 0]),
        stft=StftSpec(32, 8, 44_100, scale=1 / 8, window="none", padding="reflect", seen=(0, 17)),
        chunk=ChunkSpec(8, context=1, fade=0, multiple=2),
    )
    weights = {key: value.numpy() for key, value in with_known_weights(spec).state_dict().items()}
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
        ({"dims": []}, r"dims \[\] must be one or more"),
        ({"dims": [8, 0]}, r"dims \[8, 0\] must be one or more, each 1 or above"),
        ({"strides": [1, 2, 0]}, r"strides \[1, 2, 0\] must be 3 numbers above 0"),
        ({"shares": [0.5, 0.6]}, r"shares \[0.5, 0.6\] must be two above 0"),
        ({"shares": [0.5, 0.499]}, r"shares \[0.5, 0.499\] leave a band of 129 bins empty"),
        ({"kernels": [3, 2, 2]}, "kernel 2 and stride 4 do not give back a band"),
        ({"compress": 9.0}, "compress 9.0 must be above 0, and at most 8"),
        ({"kernel": 4}, "kernel 4 must be odd"),
        ({"paths": 3}, "paths 3 must be even and above 0"),
        ({"expand": 0}, "expand 0 must be 1 or above"),
    ],
)
def test_impossible_hyper_parameters_are_refused(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        build_network(recorded("stereo", **hyper))
    assert "\n" not in str(error.value)


def test_an_odd_count_of_frames_is_refused() -> None:
    spec = dataclasses.replace(recorded("stereo"), chunk=ChunkSpec(17, context=1, fade=0, multiple=1))
    with pytest.raises(ConfigError, match=r"17 frames of a chunk are odd, .*: use 18"):
        build_network(spec)
