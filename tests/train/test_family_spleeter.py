"""The family spleeter: its layers against numpy, its masks against the formula, and training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import assert_items_never_meet
from numpy.typing import NDArray

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.backend import new_bundle  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402

STFT = StftSpec(n_fft=512, hop=128, sample_rate=8000)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
BINS = 192
HYPER: dict[str, Any] = {"bins": BINS, "filters": [4, 6, 8], "dropout": 0.5}

Array = NDArray[np.float64]


@pytest.fixture
def spec() -> ModelSpec:
    """F = 256 of which 192 are seen, T = 16, two stems, two channels."""
    stems = ("vocals", "accompaniment")
    return ModelSpec(family="spleeter", stems=stems, hyper=dict(HYPER), stft=STFT, chunk=CHUNK)


def build(spec: ModelSpec, seed: int = 0, **hyper: Any) -> Any:
    """A network whose norms have statistics that are not those of a new one."""
    torch.manual_seed(seed)
    network = build_network(dataclasses.replace(spec, hyper={**spec.hyper, **hyper}))
    for name, value in network.state_dict().items():
        if "norm" in name and value.dtype == torch.float32:
            value.copy_(torch.rand_like(value) + 0.5)
    return network


def noise(spec: ModelSpec, batch: int = 1, seed: int = 1) -> Any:
    return torch.randn(spec.input_shape(batch), generator=torch.Generator().manual_seed(seed))


# What follows is TensorFlow's arithmetic in numpy; x is [I, T, F], kernels are HWIO, transposed ones HWOI.


def same(x: Array, kernel: Array, bias: Array, stride: int, dilation: int = 1) -> Array:
    size = dilation * (kernel.shape[0] - 1) + 1
    out = [-(-n // stride) for n in x.shape[1:]]
    pads = [(0, 0)]
    for n, o in zip(x.shape[1:], out, strict=True):
        total = max((o - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, pads)
    result = np.zeros((kernel.shape[3], *out))
    for h, w in np.ndindex(kernel.shape[:2]):
        rows = slice(h * dilation, h * dilation + (out[0] - 1) * stride + 1, stride)
        columns = slice(w * dilation, w * dilation + (out[1] - 1) * stride + 1, stride)
        result += np.einsum("itf,io->otf", padded[:, rows, columns], kernel[h, w])
    return result + bias[:, None, None]


def transposed(x: Array, kernel: Array, bias: Array) -> Array:
    """The matrix of ``same`` from twice the size, turned over."""
    small, large = x.shape, (kernel.shape[2], 2 * x.shape[1], 2 * x.shape[2])
    columns = []
    for unit in np.eye(int(np.prod(large))):
        columns.append(same(unit.reshape(large), kernel, np.zeros(small[0]), 2).ravel())
    return (np.stack(columns) @ x.ravel()).reshape(large) + bias[:, None, None]


def norm(x: Array, layer: Any) -> Array:
    mean, var, gain, bias = (
        value.detach().double().numpy()[:, None, None]
        for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return np.asarray((x - mean) / np.sqrt(var + 1e-3) * gain + bias)


def kernel_of(layer: Any) -> tuple[Array, Array]:
    return layer.weight.detach().double().permute(2, 3, 1, 0).numpy(), layer.bias.detach().double().numpy()


def unet(network: Any, x: Array) -> Array:
    skips = []
    for level in network.encoder:
        skips.append(same(x, *kernel_of(level.conv), 2))
        x = skips[-1]
        if not isinstance(level.norm, torch.nn.Identity):
            x = norm(x, level.norm)
            x = np.where(x > 0, x, 0.2 * x)
    x = skips.pop()
    for level in network.decoder:
        x = norm(np.maximum(transposed(x, *kernel_of(level.conv)), 0), level.norm)
        if skips:
            x = np.concatenate((skips.pop(), x))
    return same(x, *kernel_of(network.head), 1, dilation=2)


def test_a_unet_is_tensorflows(spec: ModelSpec) -> None:
    chunk, stft = ChunkSpec(8, 0, 0, 4), StftSpec(n_fft=32, hop=8, sample_rate=8000)
    tiny = dataclasses.replace(spec, stft=stft, chunk=chunk)
    network = build(tiny, bins=12, filters=[3, 4]).eval().unets[0]
    x = np.random.default_rng(0).random((2, 8, 12))
    with torch.no_grad():
        found = network(torch.from_numpy(x).float()[None])[0].double().numpy()
    np.testing.assert_allclose(found, unet(network, x), atol=1e-5)


def test_masks_are_the_shares_of_squared_estimates(spec: ModelSpec) -> None:
    network, mixture = build(spec).eval(), noise(spec)
    network.set_statistics(torch.zeros(256), torch.full((256,), STFT.scale))
    with torch.no_grad():
        stems = network(mixture)[0].double().numpy()
        planes = mixture[0].double().numpy().reshape(2, 2, 16, 256)[..., :BINS]
        magnitude = np.hypot(planes[:, 0], planes[:, 1]) / STFT.scale
        each = [one(torch.from_numpy(magnitude).float()[None])[0].double().numpy() for one in network.unets]
    estimates = [magnitude / (1 + np.exp(-logits)) for logits in each]
    power = sum(estimate**2 for estimate in estimates) + 1e-10
    for index, estimate in enumerate(estimates):
        mask = (estimate**2 + 1e-10 / 2) / power
        expected = (planes * mask[:, None]).reshape(4, 16, BINS)
        np.testing.assert_allclose(stems[index, ..., :BINS], expected, atol=1e-4)
        assert not stems[index, ..., BINS:].any()


def test_stems_sum_to_the_mixture_up_to_the_highest_bin(spec: ModelSpec) -> None:
    mixture = noise(spec, 2)
    stems = build(spec).eval()(mixture)
    assert stems.shape == spec.output_shape(2)
    torch.testing.assert_close(stems.sum(dim=1)[..., :BINS], mixture[..., :BINS])
    assert not stems[..., BINS:].any()


def test_masks_of_any_logits_are_finite_in_half_precision(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, mixture = build(spec).eval().half(), noise(spec).half()
    for high, low in ((0.0, -3e4), (3e4, -3e4), (-20.0, -30.0), (-3e4, -3e4)):
        logits = torch.stack((torch.full((1, 2, 16, BINS), high), torch.full((1, 2, 16, BINS), low)), 1)
        monkeypatch.setattr(type(network), "_logits", lambda *_, logits=logits: logits.half())
        stems = network(mixture)
        assert torch.isfinite(stems).all()
        torch.testing.assert_close(stems.sum(dim=1)[..., :BINS], mixture[..., :BINS])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [("a", "b"), ("a", "b", "c")])
def test_channels_and_stems_are_the_specs(spec: ModelSpec, channels: int, stems: tuple[str, ...]) -> None:
    spec = dataclasses.replace(spec, channels=channels, stems=stems, unseen_stem="")
    assert build(spec)(noise(spec, 2)).shape == spec.output_shape(2)


@pytest.mark.parametrize("frames", [8, 24, 64])
def test_every_multiple_of_the_strides_is_a_length(spec: ModelSpec, frames: int) -> None:
    longer = dataclasses.replace(spec, chunk=ChunkSpec(frames, 0, 0, 8))
    network = build(spec).eval()
    assert network(noise(longer)).shape == longer.output_shape(1)


def test_items_of_a_batch_never_meet_in_eval_mode(spec: ModelSpec) -> None:
    network, batch = build(spec).eval(), noise(spec, 3)
    assert_items_never_meet(network, batch, noise(spec, seed=9)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e4])
def test_every_parameter_learns_and_no_gradient_is_lost(spec: ModelSpec, scale: float) -> None:
    network, mixture = build(spec), noise(spec, 2) * scale
    mixture.requires_grad_()
    out = network(mixture)
    (out - 0.3 * mixture[:, None]).square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(mixture.grad).all()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        # What a norm removes again cannot learn: the convolution's bias before it.
        before_norm = name.endswith("conv.bias") and "encoder" in name
        assert scale != 1.0 or before_norm or parameter.grad.abs().max() > 0, name


def test_dropout_is_for_training_alone(spec: ModelSpec) -> None:
    network, mixture = build(spec), noise(spec, 2)
    with torch.no_grad():
        assert not torch.equal(network(mixture), network(mixture))
        network.eval()
        assert torch.equal(network(mixture), network(mixture))
    assert [layer.dropout.p for layer in build(spec, filters=[2, 2, 2, 2]).unets[1].decoder] == [
        *[0.5] * 3,
        0.0,
    ]


def test_checkpointing_gives_the_same_gradients_and_running_statistics(spec: ModelSpec) -> None:
    results = []
    for on in (False, True):
        network = build(spec)
        network.checkpointing = on
        assert network.checkpointing is on
        torch.manual_seed(5)
        network(noise(spec, 2)).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        running = {name: value for name, value in network.named_buffers() if "running" in name}
        results.append((gradients, running))
    for plain, again in zip(*results, strict=True):
        assert plain.keys() == again.keys()
        for name in plain:
            torch.testing.assert_close(plain[name], again[name], msg=name)
    network.checkpointing = False
    assert {layer.norm.momentum for layer in network.unets[0].decoder} == {0.01}


def test_statistics_normalize_magnitudes_and_travel_with_the_weights(spec: ModelSpec) -> None:
    one, two, mixture = build(spec).eval(), build(spec, seed=1).eval(), noise(spec)
    features = one.features(mixture)
    torch.testing.assert_close(features[:, 1], torch.hypot(mixture[:, 2], mixture[:, 3]))
    before = one(mixture)
    one.set_statistics(torch.full((256,), 0.5), torch.linspace(0.0, 2.0, 256))  # 0: a bin always silent
    after = one(mixture)
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after)
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(two(mixture), after)


def test_reconstruct_does_not_see_what_is_hidden(spec: ModelSpec) -> None:
    network, mixture = build(spec).eval(), noise(spec)
    hidden = torch.zeros(1, 1, 16, 256, dtype=torch.bool)
    hidden[..., 4:8, 10:100] = True
    guess, truth = network.reconstruct(mixture, hidden)
    assert guess.shape == (1, 2, 2, 16, 256)
    assert truth.shape == (1, 1, 2, 16, 256)
    other = torch.where(hidden, 7.0, mixture)
    torch.testing.assert_close(network.reconstruct(other, hidden)[0], guess)


def test_the_published_size() -> None:
    spec = new_spec("spleeter")
    assert spec.parameters == 19_645_450
    assert "19.6M" in get_family("spleeter").summary
    assert spec.input_shape(1) == (1, 4, 512, 2048)
    assert spec.chunk.step % spec.chunk.multiple == 0


@pytest.mark.parametrize(
    ("changes", "hyper", "match"),
    [
        ({"stems": ("a",), "unseen_stem": "a"}, {}, r"between its stems, \['a'\] is 1: name 2 or more"),
        ({"chunk": ChunkSpec(12, 0, 0, 4)}, {}, "12 frames of a chunk are not a multiple of 8, 3 filters"),
        ({}, {"bins": 100}, "100 bins are not a multiple of 8"),
        ({}, {"bins": 320}, "bins 320 are more than the 256"),
        ({}, {"bins": 0}, "bins 0.*above 0"),
        ({}, {"filters": []}, r"filters \(\).*one filter at least"),
        ({}, {"filters": [4, 0]}, r"filters \(4, 0\)"),
        ({}, {"dropout": 1.0}, r"dropout 1\.0 must be a share"),
        ({}, {"dropout": -0.1}, r"dropout -0\.1"),
        ({}, {"filter": [4]}, "spleeter has no hyper-parameter 'filter': did you mean 'filters'"),
    ],
)
def test_what_cannot_be_built_is_refused(
    spec: ModelSpec, changes: dict[str, Any], hyper: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build(dataclasses.replace(spec, **changes), **hyper)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_exports(tmp_path: Path) -> None:
    """Small as it is: what the exports do to the layers, not to the published weights."""
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.model.opening import open_model

    pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    new_bundle("spleeter", tmp_path / "small.tfx", hyper=HYPER, stft=STFT, chunk=CHUNK)
    model = open_model(tmp_path / "small.tfx")
    for made in (export_onnx(model), export_torchscript(model)):
        assert min(made.snr_db.values()) > 90
    assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
