"""The published TFSWA-ResUNet: its size, its modules, the ablation, training, exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import assert_items_never_meet
from command_line import Tfx
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.backend import TorchSession, new_bundle  # noqa: E402
from tfswa.train.config_files import find_config, load_config  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.tfswa_resunet import (  # noqa: E402
    AttentionModule,
    ResidualModule,
    ResunetHyper,
    SequenceAttention,
)
from tfswa.train.loop import training_spec  # noqa: E402

FAMILY = "tfswa_resunet"
STFT = StftSpec(n_fft=256, hop=64, sample_rate=8000)
CHUNK = ChunkSpec(frames=40, context=4, fade=3, multiple=20)  # two pools and windows of 5: a map of 10 x 8
STEMS = ("vocals", "accompaniment")
HYPER: dict[str, Any] = {"dims": [6, 8], "depth": 2, "modules": 2}
# What the bottleneck of the published size has, and parameters of the whole.
ABLATION = {
    "none": 25_501_408,
    "conv": 36_715_744,
    "time": 30_233_824,
    "frequency": 30_233_824,
    "axial": 34_966_240,
    "tfswa": 44_439_232,
}
GATE_DB = 90.0  # rounding alone, as in tests/export

Array = NDArray[np.float64]


def small(stems: tuple[str, ...] = STEMS, **hyper: Any) -> ModelSpec:
    """F = 128, T = 40, two channels."""
    return ModelSpec(FAMILY, stems, hyper={**HYPER, **hyper}, stft=STFT, chunk=CHUNK)


def build(spec: ModelSpec, seed: int = 0) -> Any:
    """A network whose norms have statistics that are not those of a new one."""
    torch.manual_seed(seed)
    return shaken(build_network(spec))


def shaken(module: Any) -> Any:
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            for value in part.state_dict().values():
                if value.dtype == torch.float32:
                    value.copy_(torch.rand_like(value) + 0.5)
    return module


def noise(spec: ModelSpec, batch: int = 1, seed: int = 1) -> Any:
    return torch.randn(spec.input_shape(batch), generator=torch.Generator().manual_seed(seed))


def test_the_published_size() -> None:
    family = get_family(FAMILY)
    spec = new_spec(FAMILY, stems=("vocals",))
    assert spec.parameters == ABLATION["tfswa"]
    assert family.published is not None
    assert abs(spec.parameters - family.published) < 500_000
    assert "44.4M" in family.summary
    assert spec.input_shape(1) == (1, 4, 320, 1024)
    assert spec.chunk.step % 32 == 0
    assert (spec.stft.n_fft, spec.stft.hop) == (2048, 441)


@pytest.mark.parametrize("bottleneck", ABLATION)
def test_every_network_of_the_ablation_has_its_size(bottleneck: str) -> None:
    family = get_family(FAMILY)
    spec = ModelSpec(FAMILY, ("vocals",), {"bottleneck": bottleneck}, stft=family.stft, chunk=family.chunk)
    with torch.device("meta"):
        network = build_network(spec)
    assert sum(parameter.numel() for parameter in network.parameters()) == ABLATION[bottleneck]


def test_the_map_and_the_planes_are_those_of_the_paper() -> None:
    seen = []
    with torch.device("meta"):
        network = build_network(new_spec(FAMILY, stems=("vocals",))).eval()
        network.encoder[0].register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
        network.bottleneck.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
        network(torch.zeros(1, 4, 320, 1024))
    assert seen == [(1, 8, 320, 256), (1, 384, 10, 8)]
    assert [len(level) for level in (*network.encoder, *network.decoder)] == [4] * 10
    shifts = [block.window.shift for module in network.bottleneck for block in module.swin]
    assert shifts == [(0, 0), (2, 2)] * 4
    assert {block.window.size for module in network.bottleneck for block in module.swin} == {(5, 4)}


def test_sub_bands_are_contiguous_planes() -> None:
    """With an identity between them, the planes come back in their places."""
    network = build(small(("a",))).eval()
    seen = []
    network.encoder[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    mixture = noise(small(("a",)))
    network(mixture)
    magnitude = torch.hypot(mixture[:, 0::2], mixture[:, 1::2])
    for channel in range(2):
        for band in range(4):
            expected = magnitude[:, channel, :, 32 * band : 32 * (band + 1)]
            torch.testing.assert_close(seen[0][:, 4 * channel + band], expected)


# What follows is the arithmetic of the modules in numpy, in float64.


def weights(layer: Any) -> list[Array]:
    return [value.detach().double().numpy() for value in (layer.weight, layer.bias)]


def gelu(x: Array) -> Array:
    return np.asarray(torch.nn.functional.gelu(torch.from_numpy(x)).numpy())


def convolved(x: Array, kernel: Array) -> Array:
    out = np.zeros((len(kernel), *x.shape[1:]))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            out += np.einsum("oi,itf->otf", kernel[:, :, i, j], part)
    return out


def batch_normed(x: Array, layer: Any) -> Array:
    gain, bias = weights(layer)
    mean, var = (value.double().numpy()[:, None, None] for value in (layer.running_mean, layer.running_var))
    return np.asarray((x - mean) / np.sqrt(var + layer.eps) * gain[:, None, None] + bias[:, None, None])


def test_a_residual_module_is_norm_gelu_convolution_twice() -> None:
    torch.manual_seed(0)
    module = shaken(ResidualModule(3, 5)).eval()
    x = np.random.default_rng(0).standard_normal((3, 4, 6))
    inner = convolved(gelu(batch_normed(x, module.norm1)), module.conv1.weight.detach().double().numpy())
    inner = convolved(gelu(batch_normed(inner, module.norm2)), module.conv2.weight.detach().double().numpy())
    weight, bias = weights(module.shortcut)
    expected = inner + np.einsum("oi,itf->otf", weight[:, :, 0, 0], x) + bias[:, None, None]
    with torch.no_grad():
        found = module(torch.from_numpy(x).float()[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sequence_attention_has_its_residual_around_the_mlp_alone() -> None:
    torch.manual_seed(0)
    block = shaken(SequenceAttention(8, 4, 2.0)).eval()
    x = np.random.default_rng(0).standard_normal((5, 8))
    gain, shift = weights(block.norm)
    mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    tokens = (x - mean) / np.sqrt(var + block.norm.eps) * gain + shift
    weight, bias = weights(block.query)
    query = tokens @ weight.T + bias
    weight, bias = weights(block.key_value)
    key, value = np.split(tokens @ weight.T + bias, 2, axis=1)
    heads = []
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(2))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, part])
    weight, bias = weights(block.out)
    mixed = np.concatenate(heads, axis=1) @ weight.T + bias
    (expand, first), (contract, second) = weights(block.expand), weights(block.contract)
    expected = mixed + gelu(mixed @ expand.T + first) @ contract.T + second
    with torch.no_grad():
        found = block(torch.from_numpy(x).float()[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("bottleneck", "reached"),
    [("time", "frames of its bin"), ("frequency", "bins of its frame"), ("axial", "all"), ("tfswa", "all")],
)
def test_attention_reaches_what_its_name_says(bottleneck: str, reached: str) -> None:
    torch.manual_seed(0)
    module = AttentionModule(8, ResunetHyper(bottleneck=bottleneck)).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 8, 10, 8)
    other = x.clone()
    other[0, 0, 3, 6] += 5.0
    with torch.no_grad():
        moved = (module(x) - module(other)).abs().amax(dim=1) > 1e-7  # [B, T, F]
    expected = torch.zeros(10, 8, dtype=torch.bool)
    if reached == "all":
        expected[:] = True
    elif reached == "frames of its bin":
        expected[:, 6] = True
    else:
        expected[3] = True
    assert torch.equal(moved[0], expected)
    assert not moved[1].any()


@pytest.mark.parametrize("bottleneck", ABLATION)
def test_every_bottleneck_builds_and_differs(bottleneck: str) -> None:
    """A new network of the same weights around another bottleneck gives something else."""
    spec = small(bottleneck=bottleneck)
    network, plain = build(spec).eval(), build(small(bottleneck="none")).eval()
    assert len(network.bottleneck) == (0 if bottleneck == "none" else 2)
    plain.load_state_dict({name: v for name, v in network.state_dict().items() if "bottleneck" not in name})
    with torch.no_grad():
        found = network(noise(spec, 2))
        assert found.shape == spec.output_shape(2)
        assert torch.equal(found, plain(noise(spec, 2))) == (bottleneck == "none")


@pytest.mark.parametrize("bottleneck", ABLATION)
@pytest.mark.parametrize("training", [False, True])
def test_every_parameter_learns(bottleneck: str, training: bool) -> None:
    spec = small(bottleneck=bottleneck)
    network = build(spec).train(training)
    network(noise(spec, 2)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_items_of_a_batch_never_meet_in_eval_mode() -> None:
    spec = small()
    network, batch = build(spec).eval(), noise(spec, 3)
    assert_items_never_meet(network, batch, noise(spec, seed=9)[0])


def test_stems_have_the_phase_of_the_mixture_and_magnitudes_of_their_own() -> None:
    spec = small()
    network, mixture = build(spec), noise(spec)
    with torch.no_grad():
        raw = network(mixture)[0]
        network.eval()
        stems = network(mixture)[0]
        made = network._magnitudes(network.features(mixture))[0]
    re, im = mixture[0, 0::2], mixture[0, 1::2]
    assert ((stems[:, 0::2] * im - stems[:, 1::2] * re).abs() < 1e-4).all()  # parallel,
    assert (stems[:, 0::2] * re + stems[:, 1::2] * im > -1e-6).all()  # and not turned round
    length = torch.hypot(stems[:, 0::2], stems[:, 1::2])
    torch.testing.assert_close(length, made.relu(), atol=1e-4, rtol=1e-4)
    assert (made < 0).any()
    # In training, what is below 0 is not cut off: it would have no gradient.
    assert (raw[:, 0::2] * re + raw[:, 1::2] * im < -0.01).any()


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_silence_gives_silence_in_every_precision(kind: str) -> None:
    spec = small()
    network = build(spec).eval().to(getattr(torch, kind))
    mixture = noise(spec).to(getattr(torch, kind))
    mixture[..., 10:20, :] = 0.0
    mixture[..., 40:] = 0.0
    with torch.no_grad():
        stems = network(mixture)
    assert torch.isfinite(stems).all()
    assert stems[..., :10, :40].abs().max() > 0.01
    assert not stems[..., 10:20, :].any()
    assert not stems[..., 40:].any()
    with torch.no_grad():
        assert not network(mixture * 0).any()


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_silence_and_loud_sound_have_finite_outputs_and_gradients(scale: float) -> None:
    spec = small()
    network, mixture = build(spec), (noise(spec, 2) * scale).requires_grad_()
    out = network(mixture)
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    assert torch.isfinite(mixture.grad).all()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [("a",), ("a", "b", "c")])
def test_channels_and_stems_are_the_specs(channels: int, stems: tuple[str, ...]) -> None:
    spec = dataclasses.replace(small(stems), channels=channels)
    assert build(spec)(noise(spec, 2)).shape == spec.output_shape(2)


def test_reconstruct_does_not_see_what_is_hidden() -> None:
    spec = small()
    network, mixture = build(spec).eval(), noise(spec)
    hidden = torch.zeros(1, 1, 40, 128, dtype=torch.bool)
    hidden[..., 4:8, 10:100] = True
    guess, truth = network.reconstruct(mixture, hidden)
    assert guess.shape == (1, 2, 2, 40, 128)
    assert truth.shape == (1, 1, 2, 40, 128)
    torch.testing.assert_close(network.reconstruct(torch.where(hidden, 7.0, mixture), hidden)[0], guess)


@pytest.mark.parametrize(
    ("changes", "hyper", "match"),
    [
        ({"chunk": ChunkSpec(44, 0, 0, 4)}, {}, "44 frames of a chunk are not a multiple of 20, 2 pools x w"),
        ({"chunk": ChunkSpec(42, 0, 0, 2)}, {"bottleneck": "conv"}, "42 frames of a chunk .* of 4, 2 pools"),
        ({"stft": StftSpec(n_fft=192, hop=48)}, {}, "96 bins are not a multiple of 64, 4 bands x 2 pools x"),
        ({}, {"dims": []}, "dims .* has no level"),
        ({}, {"dims": [6, 6]}, "dims 6 of the bottleneck are not a multiple of its 4 heads"),
        ({}, {"depth": 0}, "depth 0 must be above 0"),
        ({}, {"window": [5, 0]}, r"window \(5, 0\) must be above 0"),
        ({}, {"bottleneck": "swin"}, "bottleneck.*choose one of none, conv, time"),
        ({}, {"head": 4}, "did you mean 'heads'"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], hyper: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build(dataclasses.replace(small(**hyper), **changes))
    assert "\n" not in str(error.value)


def test_its_configuration_is_the_recipe_of_the_paper() -> None:
    config = load_config(find_config(FAMILY)[0])
    spec = training_spec(config)
    assert spec.parameters == ABLATION["tfswa"]
    assert (spec.stems, spec.outputs, spec.residual_stem) == (STEMS, STEMS[:1], STEMS[1])
    optim, loss = config.optim, dataclasses.asdict(config.loss)
    assert (optim.optimizer, optim.lr, optim.batch, optim.length) == ("adam", 1e-3, 16, "30 epochs")
    assert (optim.schedule, optim.decay_factor, optim.decay_every) == ("decay", 0.9, "1.5 epochs")
    assert (optim.frames, optim.precision, optim.ema, optim.warmup) == (320, "fp32", 0.0, 0)
    assert config.augment.remix > 0
    on = {name: weight for name, weight in loss.items() if isinstance(weight, float) and weight}
    on.pop("perceptual_network", None)
    assert on == {"waveform_l1": 1.0}


def test_it_trains(tfx: Tfx, song_root: Path, tmp_path: Path) -> None:
    done = tfx(
        *("train", FAMILY, f"data.root={song_root}", "model.hyper={dims=[4,4],depth=1,modules=1}"),
        *("data.validation=['B']", "data.workers=0", f"data.cache={tmp_path / 'cache'}", "optim.length=2"),
        *("optim.batch=2", "optim.frames=160", "run.validation_seconds=1", "-o", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    spec = open_model(tmp_path / "run" / "best.tfx").spec
    assert (spec.family, spec.outputs, spec.residual_stem) == (FAMILY, STEMS[:1], STEMS[1])


@pytest.fixture
def one_stem(tmp_path: Path, request: pytest.FixtureRequest) -> BundleModel:
    """A small network that gives vocals alone; the accompaniment is what they leave."""
    hyper = {"dims": [6, 8], "depth": 1, "modules": 1, "bottleneck": request.param}
    options = {"network_stems": ("vocals",), "residual_stem": "accompaniment", "stft": STFT, "chunk": CHUNK}
    path = tmp_path / "small.tfx"
    new_bundle(FAMILY, path, stems=STEMS, hyper=hyper, **options)
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("one_stem", ["tfswa"], indirect=True)
def test_it_exports_and_separates(one_stem: BundleModel, tmp_path: Path, tfx: Tfx) -> None:
    """Small as it is: what the exports do to the layers."""
    pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    import soundfile

    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    for made in (export_onnx(one_stem), export_torchscript(one_stem)):
        assert list(made.snr_db) == ["vocals"]
        assert min(made.snr_db.values()) > GATE_DB
    assert min(export_onnx(one_stem, precision="fp16").snr_db.values()) > 45
    model = open_model(one_stem.bundle.path)
    for batch in (1, 3):
        planes = np.random.default_rng(batch).standard_normal(model.spec.input_shape(batch), np.float32)
        planes[:, :, 5:9] = 0.0
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        for precision in ("fp32", "fp16"):
            found = OrtSession(model, BackendOptions(precision=precision)).infer({"mixture": planes})["stems"]
            value = snr_db(eager, found)
            assert found.shape == model.spec.output_shape(batch)
            assert not found[..., 5:9, :].any()
            assert value is not None
            assert value > (GATE_DB if precision == "fp32" else 45)
    song = np.random.default_rng(0).standard_normal((2, 20_000)) * 0.1
    song[:, 8000:12_000] = 0.0
    soundfile.write(tmp_path / "song.wav", song.T, 8000, subtype="FLOAT")
    stems = {}
    for backend in ("ort", "torch"):
        out = tmp_path / backend
        done = tfx(
            "separate", tmp_path / "song.wav", "-m", one_stem.bundle.path, "--backend", backend, "-o", out
        )
        assert done.code == 0, done.err
        stems[backend] = {path.stem: soundfile.read(path)[0] for path in out.rglob("*.wav")}
    assert set(stems["ort"]) == set(STEMS)
    for stem in STEMS:
        value = snr_db(stems["torch"][stem], stems["ort"][stem])
        assert value is not None
        assert value > 70  # files of 24 bits


@pytest.mark.trt
@pytest.mark.parametrize("one_stem", ["tfswa"], indirect=True)
def test_rtx_builds_it(one_stem: BundleModel) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    from tfswa.export.engine import BuildOptions, build_engine
    from tfswa.export.onnx import export_onnx

    export_onnx(one_stem, precision="fp16")
    export_onnx(one_stem)
    model = open_model(one_stem.bundle.path)
    assert isinstance(model, BundleModel)
    for precision in ("fp32", "fp16"):
        assert not build_engine(model, BuildOptions(flavor="rtx", precision=precision)).cached
