"""The plain reference: exact for an identity, and of one mind with the runtime's host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import INPUT, OUTPUT, ModelSpec, StftSpec
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.transform import Stft, pack, unpack

torch = pytest.importorskip("torch", reason="torch is not installed: the reference is torch's")

from tfswa.train.backend import load_network  # noqa: E402
from tfswa.train.families import build_network  # noqa: E402
from tfswa.train.reference import TorchReference, separate_whole  # noqa: E402
from tfswa.train.spectral import DifferentiableStft  # noqa: E402

AGREEMENT_DB = 100.0  # two float32 hosts around one network: rounding lies near 120 dB
LENGTHS = [0, 1, 127, 128, 1407, 1408, 1409, 1920, 4001, 20_011]


class Identity(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Every stem is its share of the mixture."""

    def __init__(self, *shares: float):
        super().__init__()
        self.shares = shares

    def forward(self, mixture: Any) -> Any:
        return torch.stack([share * mixture for share in self.shares], dim=1)


def noise(samples: int, channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.8, 0.8, (channels, samples)).astype(np.float32)


def by_the_runtime(network: Any, spec: ModelSpec, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stft and OverlapAdd around the same network."""
    stft = Stft(spec.stft)

    def process(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        spectrum = stft.forward(chunks)  # [B, C, T, F + 1]
        with torch.inference_mode():
            planes = network(torch.from_numpy(pack(spectrum, spec.stft))).numpy()  # [B, S, 2*C, T, F]
        spectra = np.zeros((*planes.shape[:2], *spectrum.shape[1:]), np.complex64)
        spectra[:, spec.stems.index(spec.unseen_stem)] = spectrum
        unpack(planes, spectra, spec.stft)
        stems = stft.inverse(spectra, chunks.shape[-1])
        if spec.residual_stem is not None:
            index = spec.stems.index(spec.residual_stem)
            others = [stem for stem in range(len(spec.stems)) if stem != index]
            stems[:, index] = chunks - stems[:, others].sum(axis=1)
        return stems

    engine = OverlapAdd(
        process,
        channels=spec.channels,
        stems=spec.stems,
        plan=ChunkPlan.of(spec),
        batch=2,
    )
    return np.concatenate((engine.push(mixture), engine.flush()), axis=-1)


@pytest.mark.parametrize("samples", LENGTHS)
def test_an_identity_returns_its_input(tiny_spec: ModelSpec, samples: int) -> None:
    spec = dataclasses.replace(tiny_spec, stems=("all",), unseen_stem="")
    mixture = noise(samples)
    stems = separate_whole(Identity(1.0), spec, torch.from_numpy(mixture))
    assert stems.shape == (1, 2, samples)
    assert stems.dtype == torch.float64
    if samples:
        assert np.abs(stems.numpy()[0] - mixture).max() < 1e-6


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("unseen_stem", ["a", "b"])
def test_stems_that_share_the_mixture_sum_to_it(
    tiny_spec: ModelSpec, unseen_stem: str, channels: int
) -> None:
    spec = dataclasses.replace(tiny_spec, stems=("a", "b"), unseen_stem=unseen_stem, channels=channels)
    mixture = noise(5000, channels)
    stems = separate_whole(Identity(0.25, 0.75), spec, torch.from_numpy(mixture)).numpy()
    assert np.abs(stems.sum(axis=0) - mixture).max() < 1e-6


def test_the_nyquist_bin_goes_to_its_stem_alone(tiny_spec: ModelSpec) -> None:
    buzz = np.tile(np.array([0.5, -0.5], np.float32), (2, 3000))  # a tone at the Nyquist frequency
    for index, name in enumerate(("a", "b")):
        spec = dataclasses.replace(tiny_spec, stems=("a", "b"), unseen_stem=name)
        stems = separate_whole(Identity(0.0, 0.0), spec, torch.from_numpy(buzz)).numpy()
        inner = np.abs(stems[..., 600:-600]).max(axis=(1, 2))
        assert inner[index] > 0.2  # the window leaves half of it in the bin below
        assert inner[1 - index] == 0.0


def test_the_residual_stem_is_what_the_others_leave(tiny_spec: ModelSpec) -> None:
    spec = dataclasses.replace(tiny_spec, residual_stem="accompaniment")
    mixture = noise(5000)
    stems = separate_whole(Identity(0.3, 0.1), spec, torch.from_numpy(mixture)).numpy()
    np.testing.assert_allclose(stems[1], mixture - stems[0], atol=1e-6)
    assert np.abs(stems[0] - 0.3 * mixture).mean() < 0.01  # the Nyquist bin is not its own


@pytest.mark.parametrize("mask", ["complex", "magnitude", "direct"])
@pytest.mark.parametrize("residual", [None, "vocals"])
def test_the_runtime_agrees(tiny_spec: ModelSpec, mask: str, residual: str | None) -> None:
    spec = dataclasses.replace(
        tiny_spec, hyper={**tiny_spec.hyper, "mask": mask}, residual_stem=residual, unseen_stem="vocals"
    )
    torch.manual_seed(0)
    network = build_network(spec).eval()
    with torch.no_grad():
        network.head.weight.mul_(10)
    for samples in (1, 1409, 9001):
        mixture = noise(samples)
        reference = separate_whole(network, spec, torch.from_numpy(mixture)).numpy()
        runtime = by_the_runtime(network, spec, mixture)
        for index in range(2):
            drift = snr_db(reference[index], runtime[index].astype(np.float64))
            assert drift is not None
            assert drift >= AGREEMENT_DB


def test_a_fault_of_one_host_shows(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = noise(9001)
    network = Identity(0.3, 0.7)
    other = dataclasses.replace(tiny_spec, chunk=dataclasses.replace(tiny_spec.chunk, fade=1))
    reference = separate_whole(network, tiny_spec, torch.from_numpy(mixture)).numpy()
    swapped = dataclasses.replace(tiny_spec, unseen_stem="vocals")
    drift = snr_db(reference[0], by_the_runtime(network, swapped, mixture)[0].astype(np.float64))
    assert drift is not None
    assert drift < 60
    torch.manual_seed(0)
    real = build_network(tiny_spec).eval()
    one = separate_whole(real, tiny_spec, torch.from_numpy(mixture)).numpy()
    seams = snr_db(one, by_the_runtime(real, other, mixture).astype(np.float64))
    assert seams is not None
    assert seams < AGREEMENT_DB


def test_the_reference_of_a_bundle(network_bundle: Bundle) -> None:
    model = open_model(network_bundle.path)
    reference = TorchReference(model)
    mixture = noise(3000)
    expected = separate_whole(load_network(model), model.spec, torch.from_numpy(mixture)).numpy()
    np.testing.assert_array_equal(reference.separate(mixture), expected)
    planes = np.random.default_rng(0).standard_normal(model.spec.input_shape(2)).astype(np.float32)
    found = reference.network_output({INPUT: planes})
    assert {name: value.shape for name, value in found.items()} == {OUTPUT: model.spec.output_shape(2)}
    assert "torch" in reference.description


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_the_transform_inverts_and_equals_the_runtimes(tiny_spec: ModelSpec, lead: tuple[int, ...]) -> None:
    signal = np.random.default_rng(0).uniform(-1, 1, (*lead, 2, 1920)).astype(np.float32)
    ours = DifferentiableStft(tiny_spec.stft)
    planes, spectrum = ours.forward(torch.from_numpy(signal))
    assert planes.shape == (*lead, 4, 16, 256)
    wanted = Stft(tiny_spec.stft).forward(signal)
    np.testing.assert_allclose(planes.numpy(), pack(wanted, tiny_spec.stft), atol=1e-5)
    np.testing.assert_allclose(spectrum.numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(ours.inverse(planes, spectrum, 1920).numpy(), signal, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        StftSpec(2048, 441, padding="reflect", scale=1.0, seen=(0, 1025), zero_below=1),
        StftSpec(768, 100, padding="reflect", seen=(3, 200), offset=50),
        StftSpec(768, 100, padding="reflect", fill=250),
        StftSpec(1024, 256, padding="reflect", offset=128, endless=True),
        StftSpec(512, 128, window="none", scale=512**-0.5),
    ],
)
def test_any_transform_equals_the_runtimes(spec: StftSpec) -> None:
    samples = 20 * spec.hop + 2 * spec.offset
    signal = noise(samples)
    ours, theirs = DifferentiableStft(spec), Stft(spec)
    planes, spectrum = ours.forward(torch.from_numpy(signal))
    np.testing.assert_allclose(planes.numpy(), theirs.planes(signal), atol=1e-4)
    changed = np.random.default_rng(1).standard_normal(planes.shape).astype(np.float32)
    for others in (None, spectrum):
        wanted = np.zeros(spectrum.shape, np.complex64) if others is None else theirs.forward(signal)
        unpack(changed, wanted, spec)
        back = ours.inverse(torch.from_numpy(changed), others, samples).numpy()
        np.testing.assert_allclose(back, theirs.inverse(wanted, samples), atol=1e-4)


def test_gradients_flow_through_the_transform(tiny_spec: ModelSpec) -> None:
    stft = DifferentiableStft(tiny_spec.stft)
    planes = torch.zeros(1, 4, 16, 256, requires_grad=True)
    stft.inverse(planes, None, 1920).sum().backward()
    assert torch.isfinite(planes.grad).all()
    assert planes.grad.abs().max() > 0


def test_one_pass_is_the_network_between_the_transforms(network_bundle: Bundle) -> None:
    reference = TorchReference(open_model(network_bundle.path))
    spec = reference.spec
    for chunks in (1, 3):
        long = dataclasses.replace(spec.chunk, frames=chunks * spec.chunk.frames, context=0, fade=0)
        mixture = noise((long.frames - 1) * spec.stft.hop)
        whole = separate_whole(
            reference.network, dataclasses.replace(spec, chunk=long), torch.from_numpy(mixture)
        )
        np.testing.assert_array_equal(reference.separate_once(mixture), whole.numpy())


def test_modules_tell_what_they_give(network_bundle: Bundle) -> None:
    reference = TorchReference(open_model(network_bundle.path))
    spec = reference.spec
    planes = np.random.default_rng(3).standard_normal(spec.input_shape(1)).astype(np.float32)
    shapes = reference.module_shapes(planes)
    modules = list(shapes)
    assert (modules[0], modules[-1]) == ("stem", "")
    assert (
        modules.index("encoder.0.conv.first") < modules.index("encoder.0.conv") < modules.index("encoder.0")
    )
    assert shapes[""] == spec.output_shape(1)
    assert not {"encoder.0.blocks", "encoder.1.blocks.0.time.query"} & set(modules)  # never called
    found = reference.module_outputs(planes, ["stem", "encoder.0"])
    assert {name: value.shape for name, value in found.items()} == {
        n: shapes[n] for n in ("stem", "encoder.0")
    }
    whole = reference.module_outputs(planes, modules)
    np.testing.assert_array_equal(whole[""], reference.network_output({INPUT: planes})[OUTPUT])
    np.testing.assert_array_equal(whole["stem"], found["stem"])
    assert not any(module._forward_hooks for module in reference.network.modules())
