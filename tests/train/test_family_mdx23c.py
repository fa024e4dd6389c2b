"""MDX23C: the package ``mdxnet-infer`` beside it, published files, exports, and what is refused."""

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
from make_mdx23c import AUDIO, CASES, COMMON, FILE, STEMS, STRIDE, weight  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.blocks.norm import GroupNorm  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.importers.kinds import Settings, recognized, spec_of_reading  # noqa: E402
from tfswa.train.importers.published import read_yaml  # noqa: E402

FAMILY = "mdx23c"
CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
GATE_DB = 90.0  # rounding alone, as in tests/export
STFT = StftSpec(256, 64, 44_100, scale=1.0, padding="reflect", seen=(0, 96))
OWN: dict[str, dict[str, Any]] = {  # as the package's words are called here
    "instance": {"norm": "instance"},
    "batch": {"norm": "batch", "activation": "relu"},
    "group": {"norm": "group", "groups": 4, "activation": "elu", "alpha": 0.5},
    "none": {"norm": "none"},
}


def recorded(case: str) -> ModelSpec:
    """The network that a vector was recorded of; bins above the 96 that it sees are zero."""
    told = {**COMMON, **CASES[case]}
    names = STEMS[: told["stems"]] if told["stems"] > 1 else (STEMS[0], "rest")
    hyper = {
        "width": told["num_channels"],
        "growth": told["growth"],
        "depth": told["num_scales"],
        "stride": list(told["scale"]),
        "blocks": told["num_blocks_per_scale"],
        "bands": told["num_subbands"],
        "narrowing": told["bottleneck_factor"],
    }
    return ModelSpec(
        FAMILY,
        names,
        hyper={**hyper, **OWN[case]},
        stft=STFT,
        chunk=ChunkSpec(16, context=2, fade=2, multiple=1),
        unseen_stem=None,
        network_stems=names[: told["stems"]],
        residual_stem=names[-1] if told["stems"] == 1 else None,
    )


def with_known_weights(spec: ModelSpec) -> Any:
    network = build_network(spec).eval()
    state = network.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
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
    chunk = known("audio", (1, 2, AUDIO["chunk_size"]), 0.1)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    with torch.no_grad():
        out = network(torch.from_numpy(codec.tensors(chunk, spectra)["mixture"]))
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: out.numpy()[0]})[: len(spec.outputs), :, ::STRIDE]
    assert stems.shape == right.shape
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert np.abs(right).max() > 0.02


def test_every_level_is_heard() -> None:
    """Known weights are no proof where what they are multiplied with is nothing."""
    spec = recorded("instance")
    network = with_known_weights(spec)
    planes = torch.from_numpy(known("planes", spec.input_shape(1), 2.0))
    with torch.no_grad():
        before = network(planes)
        for part in (network.encoder_blocks[1], network.bottleneck_block, network.decoder_blocks[0]):
            kept = {name: value.clone() for name, value in part.state_dict().items()}
            part.load_state_dict({name: 1.1 * value for name, value in kept.items()})
            assert (network(planes) - before).abs().max() > 0.01 * before.abs().max()
            part.load_state_dict(kept)


def test_training_takes_stages_again_and_finds_the_same() -> None:
    spec = recorded("instance")
    network = build_network(spec).train()
    planes = torch.from_numpy(known("planes", spec.input_shape(2), 1.0))
    grads = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        network(planes).square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_norms_are_exact_wherever_channels_lie_in_memory() -> None:
    spectra = torch.from_numpy(known("spectra", (1, 4, 256, 256), 1.0)).relu()
    spectra = 300 * spectra * torch.exp(-torch.arange(256) / 15)
    norm = GroupNorm(4, 4)
    with torch.no_grad():
        found = norm(spectra.to(memory_format=torch.channels_last)).numpy()
        right = norm.double()(spectra.double()).float().numpy()
    assert (snr_db(right, found) or np.inf) > 120


def settings_of(config: Path | None = None, **given: Any) -> Settings:
    return Settings(config=read_yaml(config) if config else {}, **given)


def imported(path: Path, settings: Settings) -> tuple[ModelSpec, Any]:
    """Spec and network of a published file."""
    tensors = torch.load(path, weights_only=True)
    tensors = tensors.get("state_dict", tensors)
    found = recognized(list(tensors))
    assert found is not None
    kind, prefix = found
    inner = {name[len(prefix) :]: value for name, value in tensors.items()}
    reading = kind.read({name: tuple(value.shape) for name, value in inner.items()}, settings)
    spec = spec_of_reading(kind, path.name, reading, settings)
    network = build_network(spec).eval()
    network.load_state_dict({reading.rename(name): value for name, value in inner.items()})
    return spec, network


def yaml_of(case: str, path: Path, **audio: Any) -> Path:
    """A published configuration of a case, as the training suite writes it."""
    model = {**COMMON, **CASES[case]}
    stems = model.pop("stems")
    lines = ["audio:", "  sample_rate: 44100"]
    lines += [f"  {key}: {value}" for key, value in {**AUDIO, **audio}.items()]
    lines += ["model:", "  scale: !!python/tuple", *(f"    - {step}" for step in model.pop("scale"))]
    lines += [f"  {key}: {value}" for key, value in model.items()]
    lines += ["training:", "  instruments:", *(f"    - {stem}" for stem in STEMS[: max(stems, 2)])]
    lines += [f"  target_instrument: {STEMS[0] if stems == 1 else 'null'}"]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_and_its_configuration(case: str, tmp_path: Path) -> None:
    spec = recorded(case)
    network = with_known_weights(spec)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "mdx.ckpt")
    found, made = imported(tmp_path / "mdx.ckpt", settings_of(yaml_of(case, tmp_path / "mdx.yaml")))
    hyper = {name: value for name, value in found.hyper.items() if name in spec.hyper}
    assert hyper == spec.hyper
    assert found.stft == spec.stft
    assert found.chunk.frames == 16
    assert found.unseen_stem is None  # bins above those that it sees are zero, as its authors have them
    assert found.outputs == spec.outputs
    assert found.residual_stem == (None if len(spec.outputs) > 1 else STEMS[1])
    planes = torch.from_numpy(known("planes", spec.input_shape(1), 2.0))
    with torch.no_grad():
        assert torch.equal(made(planes), network(planes))


def test_a_published_file_by_itself(tmp_path: Path) -> None:
    """What its shapes do not tell is asked for at once, and then it is the same network."""
    spec = recorded("instance")
    network = with_known_weights(spec)
    torch.save(network.state_dict(), tmp_path / "mdx.ckpt")
    with pytest.raises(UsageError) as error:
        imported(tmp_path / "mdx.ckpt", settings_of())
    told = str(error.value)
    assert "\n" not in told
    for part in ("MDX23C of 2 stems", "--config", "--stft n_fft=192", "--stft hop=48", "--stems"):
        assert part in told
    given = settings_of(stft={"n_fft": 256, "hop": 64}, stems=("vocals", "drums"))
    found, made = imported(tmp_path / "mdx.ckpt", given)
    assert (found.stft, found.channels, found.chunk.frames) == (spec.stft, 2, 256)
    assert found.chunk.step % 4 == 0
    assert found.hyper["norm"] == "instance"
    planes = torch.from_numpy(known("planes", spec.input_shape(1), 2.0))
    with torch.no_grad():
        assert torch.equal(made(planes), network(planes))


@pytest.mark.parametrize(
    ("audio", "model", "says"),
    [
        ({"dim_f": 100}, "", "audio.dim_f 100 of the configuration contradicts the weights, .* 96 bins"),
        ({"num_channels": 1}, "", "takes 16 planes, 1 channels in 4 sub-bands are 8"),
        ({}, "  act: swish\n", "model.act 'swish' of the configuration is none of gelu"),
        ({"n_fft": 128}, "", "seen .* must be among the 65 bins of n_fft 128"),
        ({"chunk_size": 64 * 14}, "", "chunk of 15 frames is not a multiple of 4"),
    ],
)
def test_a_configuration_of_another_network_is_refused(
    audio: dict[str, Any], model: str, says: str, tmp_path: Path
) -> None:
    network = build_network(recorded("instance"))
    torch.save(network.state_dict(), tmp_path / "mdx.ckpt")
    path = yaml_of("instance", tmp_path / "mdx.yaml", **audio)
    path.write_text(path.read_text().replace("  act: gelu\n", model or "  act: gelu\n"))
    with pytest.raises(TfxError, match=says) as error:
        imported(tmp_path / "mdx.ckpt", settings_of(path))
    assert "\n" not in str(error.value)


def test_weights_that_no_such_network_has_are_refused(tmp_path: Path) -> None:
    state = build_network(recorded("instance")).state_dict()
    state["final_conv.2.weight"] = torch.zeros(33, 8, 1, 1)
    torch.save(state, tmp_path / "mdx.ckpt")
    with pytest.raises(BundleError, match=r"gives 33 planes, first_conv\.weight takes 16"):
        imported(tmp_path / "mdx.ckpt", settings_of())
    del state["encoder_blocks.0.downscale.conv.2.weight"]
    torch.save(state, tmp_path / "mdx.ckpt")
    with pytest.raises(BundleError, match=r"downscale\.conv\.2\.weight is missing"):
        imported(tmp_path / "mdx.ckpt", settings_of())


def test_the_default_is_the_published_network() -> None:
    """Two stems, 8192: the file that is published has 319 tensors and 448 101 203 bytes."""
    family = get_family(FAMILY)
    spec = new_spec(FAMILY)
    assert spec.parameters == family.published == 111_990_272
    assert new_spec(FAMILY, unseen_stem=None).unseen_stem is None
    assert spec.chunk_samples == 261_120
    assert (family.chunk.step % 32, spec.stft.bins) == (0, 4096)
    with torch.device("meta"):
        assert len(build_network(spec).state_dict()) == 319


@pytest.mark.parametrize("case", ["instance", "batch"])
def test_it_exports(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    spec = recorded(case)
    spec = dataclasses.replace(spec, hyper={**spec.hyper, "depth": 1, "blocks": 1})
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
        ({"width": 0}, "width 0 must be 1 or above"),
        ({"growth": -1}, "growth -1 must be 0 or above"),
        ({"stride": [2, 0]}, r"stride \[2, 0\] must each be 1 or above"),
        ({"stride": [3, 2]}, "16 frames of a chunk are not a multiple of 9, depth 2 of stride"),
        ({"bands": 5}, "96 bins are not a multiple of 20, 5 bands and depth 2 of stride"),
        ({"narrowing": 7}, "narrowing 7 leaves nothing of the last level's 6 bins"),
        ({"norm": "group", "groups": 8}, "groups 8 do not divide 12 channels"),
        ({"norm": "layer"}, "norm.*choose one of instance, group, batch, none"),
        ({"activation": "swish"}, "activation.*choose one of gelu, relu, elu"),
    ],
)
def test_impossible_hyper_parameters_are_refused(hyper: dict[str, Any], says: str) -> None:
    spec = recorded("instance")
    with pytest.raises(ConfigError, match=says) as error:
        build_network(dataclasses.replace(spec, hyper={**spec.hyper, **hyper}))
    assert "\n" not in str(error.value)
