"""Families: their sizes, shapes and gradients, that batch items never meet, and what the masks mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from batching import assert_items_never_meet

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train import families  # noqa: E402
from tfswa.train.config_files import find_config, load_config  # noqa: E402
from tfswa.train.families import build_network, family_names, get_family, new_spec  # noqa: E402
from tfswa.train.loop import training_spec  # noqa: E402

Hyper = dict[str, Any]
OPTIONS = list(
    itertools.product(
        ("complex", "magnitude", "direct"),
        ("fixed", "instance"),
        ("serial", "cross"),
        ("adjacent", "contiguous"),
    )
)
TINY_STFT = StftSpec(n_fft=512, hop=128, sample_rate=8000)


def build(spec: ModelSpec, seed: int = 0, **hyper: Any) -> Any:
    torch.manual_seed(seed)
    return build_network(dataclasses.replace(spec, hyper={**spec.hyper, **hyper}))


def noise(spec: ModelSpec, batch: int = 1, seed: int = 1) -> Any:
    return torch.randn(spec.input_shape(batch), generator=torch.Generator().manual_seed(seed))


def with_head(network: Any, weight: float, bias: float) -> Any:
    """A network whose last layer gives ``bias`` everywhere."""
    torch.nn.init.constant_(network.head.weight, weight)
    torch.nn.init.constant_(network.head.bias, bias)
    return network.eval().requires_grad_(False)


@pytest.mark.slow
def test_the_families_have_their_published_sizes() -> None:
    unet, lite = new_spec("tfswa_unet"), new_spec("tfswa_lite")
    assert 14_500_000 <= unet.parameters <= 15_000_000
    assert 4 * unet.parameters < 60_000_000
    assert 1_200_000 <= lite.parameters <= 1_600_000
    assert 0 < lite.gflop_per_second < unet.gflop_per_second / 5
    for spec in (unet, lite):
        with torch.device("meta"):
            network = build_network(spec)
            out = network(torch.zeros(spec.input_shape(2)))
        assert out.shape == spec.output_shape(2)
        assert sum(p.numel() for p in network.parameters()) == spec.parameters
        summary = get_family(spec.family).summary
        assert f"{spec.parameters / 1e6:.1f}M" in summary


def test_the_deep_configuration_has_axial_attention_at_two_levels() -> None:
    spec = training_spec(load_config(find_config("deep")[0]))
    assert spec.parameters == 16_749_694
    assert spec.gflop_per_second < 0.6 * new_spec("tfswa_unet").gflop_per_second
    with torch.device("meta"):
        network = build_network(spec)
    places = {name.split(".blocks")[0] for name, module in network.named_modules() if name.endswith(".time")}
    assert places == {"encoder.2", "encoder.3", "decoder.0"}  # levels 2, 3, and 2 on the way up
    assert {len(stage.blocks) for stage in network.decoder} == {1, 2}


def test_axial_attention_begins_at_level_1_where_a_bundle_does_not_say(tiny_spec: ModelSpec) -> None:
    """Bundles that are older than the hyper-parameter, the embedded one among them."""
    assert "axial_from" not in tiny_spec.hyper
    said = dataclasses.replace(tiny_spec, hyper={**tiny_spec.hyper, "axial_from": 1})
    networks = []
    for spec in (tiny_spec, said):
        torch.manual_seed(0)
        networks.append(build_network(spec).state_dict())
    one, two = networks
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("axial_from", "levels"), [(0, {"encoder.0", "encoder.1", "decoder.0"}), (1, {"encoder.1"}), (2, set())]
)
def test_axial_attention_begins_where_it_is_told(
    tiny_spec: ModelSpec, axial_from: int, levels: set[str]
) -> None:
    spec = dataclasses.replace(tiny_spec, hyper={**tiny_spec.hyper, "axial_from": axial_from})
    network = build_network(spec)
    for part in ("time", "frequency"):
        names = [name for name, _ in network.named_modules() if name.endswith(f".{part}")]
        assert {name.split(".blocks")[0] for name in names} == levels
    embeddings = {name.removesuffix(".embedding") for name in network.state_dict() if "embedding" in name}
    assert embeddings == levels  # one is stored where it is used
    assert network(torch.randn(spec.input_shape(1))).shape == spec.output_shape(1)


def test_costs_are_counted_by_hand_for_one_convolution(register: Callable[..., None]) -> None:
    @dataclasses.dataclass(frozen=True)
    class NoHyper:
        """None."""

    class Pointwise(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, spec: ModelSpec, hyper: Any):
            super().__init__()
            self.conv = torch.nn.Conv2d(2 * spec.channels, 8, 1, bias=False)

        def forward(self, x: Any) -> Any:
            return self.conv(x).reshape(x.shape[0], 2, 4, *x.shape[2:])

    chunk = ChunkSpec(frames=16, context=0, fade=0, multiple=1)
    register(families, "pointwise", families.Family("pointwise", "", NoHyper, Pointwise, chunk, TINY_STFT))
    spec = new_spec("pointwise")
    assert spec.parameters == 4 * 8
    seconds = 15 * 128 / 8000
    assert spec.gflop_per_second == round(2 * 4 * 8 * 16 * 256 / seconds / 1e9, 2)
    assert "pointwise" in family_names()


def test_a_new_spec_is_complete(tiny_hyper: Hyper) -> None:
    chunk = ChunkSpec(frames=16, context=2, fade=1, multiple=8)
    options = {"hyper": tiny_hyper, "stft": TINY_STFT, "chunk": chunk}
    spec = new_spec("tfswa_lite", residual_stem="vocals", weights_license="MIT", **options)
    complete = {**tiny_hyper, "axial_from": 1}
    assert spec.hyper == complete
    assert (spec.stft, spec.chunk) == (TINY_STFT, chunk)
    assert (spec.residual_stem, spec.weights_license) == ("vocals", "MIT")
    partial = new_spec("tfswa_lite", **{**options, "hyper": {**tiny_hyper, "window": 2}})
    assert partial.hyper == {**complete, "window": 2}
    assert new_spec("tfswa_lite").hyper["mask"] == "magnitude"


@pytest.mark.parametrize(("mask", "normalization", "fusion", "fold_layout"), OPTIONS)
def test_every_parameter_learns_with_every_option(
    tiny_spec: ModelSpec, mask: str, normalization: str, fusion: str, fold_layout: str
) -> None:
    network = build(tiny_spec, mask=mask, normalization=normalization, fusion=fusion, fold_layout=fold_layout)
    out = network(noise(tiny_spec, 2))
    assert out.shape == tiny_spec.output_shape(2)
    assert out.dtype == torch.float32
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
@pytest.mark.parametrize("mask", ["complex", "magnitude", "direct"])
@pytest.mark.parametrize("normalization", ["fixed", "instance"])
def test_silence_and_loud_sound_have_finite_outputs_and_gradients(
    tiny_spec: ModelSpec, scale: float, mask: str, normalization: str
) -> None:
    network = build(tiny_spec, mask=mask, normalization=normalization)
    out = network(noise(tiny_spec) * scale)
    assert torch.isfinite(out).all()
    out.abs().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("normalization", ["fixed", "instance"])
@pytest.mark.parametrize("fusion", ["serial", "cross"])
def test_items_of_a_batch_never_meet(
    tiny_spec: ModelSpec, training: bool, normalization: str, fusion: str
) -> None:
    network = build(tiny_spec, normalization=normalization, fusion=fusion, mask="complex").train(training)
    assert_items_never_meet(network, noise(tiny_spec, 3), noise(tiny_spec, seed=9)[0])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [("a",), ("a", "b"), ("a", "b", "c")])
def test_channels_and_stems_are_the_specs(
    tiny_spec: ModelSpec, channels: int, stems: tuple[str, ...]
) -> None:
    spec = dataclasses.replace(tiny_spec, channels=channels, stems=stems, unseen_stem="")
    for mask in ("complex", "magnitude", "direct"):
        assert build(spec, mask=mask)(noise(spec)).shape == spec.output_shape(1)


def test_a_magnitude_mask_keeps_the_phase_and_never_exceeds_the_mixture(tiny_spec: ModelSpec) -> None:
    network = build(tiny_spec, mask="magnitude").eval()
    with torch.no_grad():
        network.head.weight.mul_(30)  # masks from nearly 0 to nearly 1
        mixture = noise(tiny_spec, 2)
        stems = network(mixture)
    for channel in range(2):
        re, im = mixture[:, None, 2 * channel], mixture[:, None, 2 * channel + 1]
        stem_re, stem_im = stems[:, :, 2 * channel], stems[:, :, 2 * channel + 1]
        assert (stem_re * im - stem_im * re).abs().max() < 1e-5  # parallel ...
        ratio = (stem_re * re + stem_im * im) / (re * re + im * im)
        assert float(ratio.min()) >= 0.0  # ... and not reversed
        assert float(ratio.max()) <= 1.0 + 1e-6
        assert float(ratio.min()) < 0.2 < 0.8 < float(ratio.max())


def test_a_magnitude_mask_of_one_half_halves(tiny_spec: ModelSpec) -> None:
    network, mixture = with_head(build(tiny_spec, mask="magnitude"), 0.0, 0.0), noise(tiny_spec)
    torch.testing.assert_close(network(mixture), 0.5 * mixture[:, None].expand(-1, 2, -1, -1, -1))


def test_a_complex_mask_multiplies_complex_numbers(tiny_spec: ModelSpec) -> None:
    network = with_head(build(tiny_spec, mask="complex"), 0.0, 0.0)
    planes = torch.tensor([0.5, -2.0, 1.0, 3.0, 1.0, 0.0, 0.0, 1.0])  # per stem, channel, re and im
    with torch.no_grad():
        network.head.bias.copy_(planes.repeat_interleave(4))  # each plane folded by 4
    mixture = noise(tiny_spec)
    stems = network(mixture)
    masks = torch.view_as_complex(planes.reshape(2, 2, 2))
    for stem, channel in itertools.product(range(2), range(2)):
        mixed = torch.complex(mixture[0, 2 * channel], mixture[0, 2 * channel + 1])
        expected = mixed * masks[stem, channel]
        torch.testing.assert_close(stems[0, stem, 2 * channel], expected.real)
        torch.testing.assert_close(stems[0, stem, 2 * channel + 1], expected.imag)
    # The second stem's masks are 1 and i: the mixture itself, and the mixture turned by 90 degrees.
    torch.testing.assert_close(stems[0, 1, :2], mixture[0, :2])
    torch.testing.assert_close(stems[0, 1, 2], -mixture[0, 3])


def test_direct_output_is_in_the_scale_of_each_bin(tiny_spec: ModelSpec) -> None:
    network = with_head(build(tiny_spec, mask="direct"), 0.0, 2.0)
    std = torch.linspace(0.5, 3.0, 256)
    network.set_statistics(torch.zeros(256), std)
    stems = network(noise(tiny_spec))
    torch.testing.assert_close(stems, (2 * std).expand(stems.shape))


def test_fixed_statistics_normalize_each_bin(tiny_spec: ModelSpec) -> None:
    network = build(tiny_spec, mask="complex").eval().requires_grad_(False)
    mixture, mean, std = noise(tiny_spec), torch.linspace(-1, 1, 256), torch.linspace(0.1, 4.0, 256)
    plain = network._normalize(mixture)
    torch.testing.assert_close(plain, mixture)
    network.set_statistics(mean, std)
    torch.testing.assert_close(network._normalize(mixture), (mixture - mean) / std)
    network.set_statistics(mean, torch.zeros(256))  # a bin that is always silent
    assert torch.isfinite(network(mixture)).all()


def test_statistics_travel_with_the_weights(tiny_spec: ModelSpec) -> None:
    one, two = build(tiny_spec, seed=0), build(tiny_spec, seed=1)
    one.set_statistics(torch.full((256,), -3.0), torch.full((256,), 2.0))
    two.load_state_dict(one.state_dict())
    mixture = noise(tiny_spec)
    torch.testing.assert_close(one(mixture), two(mixture))


def test_instance_normalization_takes_each_bins_own(tiny_spec: ModelSpec) -> None:
    network = build(tiny_spec, mask="complex", normalization="instance")
    x = network._normalize(noise(tiny_spec, 2) * torch.linspace(1, 100, 256) + 5)
    assert x.mean(dim=(1, 2)).abs().max() < 1e-4
    torch.testing.assert_close(x.square().mean(dim=(1, 2)), torch.ones(2, 256), atol=1e-3, rtol=0)


def test_magnitude_features_are_log_magnitudes(tiny_spec: ModelSpec) -> None:
    network, mixture = build(tiny_spec, mask="magnitude"), noise(tiny_spec)
    features = network.features(mixture)
    assert features.shape == (1, 2, 16, 256)
    expected = torch.log(torch.hypot(mixture[:, 2], mixture[:, 3]) + 1e-3)
    torch.testing.assert_close(features[:, 1], expected, atol=1e-4, rtol=1e-4)
    assert build(tiny_spec, mask="complex").features(mixture) is mixture


def test_the_same_seed_gives_the_same_weights(tiny_spec: ModelSpec) -> None:
    first, again, other = (build(tiny_spec, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"chunk": ChunkSpec(frames=12, context=0, fade=0, multiple=1)}, ("12 frames", "multiple of 8")),
        ({"stft": StftSpec(n_fft=336, hop=84)}, ("168 bins", "multiple of 32")),
    ],
)
def test_frames_and_bins_must_suit_the_windows(
    tiny_spec: ModelSpec, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    spec = dataclasses.replace(tiny_spec, **changes)
    with pytest.raises(ConfigError) as error:
        build_network(spec)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("hyper", "match"),
    [
        ({"dims": [8, 16, 32]}, r"dims \(8, 16, 32\).*one value a level"),
        ({"depths": [1]}, r"depths \(1,\)"),
        ({"heads": [1]}, r"heads \(1,\)"),
        ({"decoder_depths": [1, 1]}, r"decoder_depths \(1, 1\)"),
        ({"heads": [1, 3]}, "dims 16 is not an even multiple of its 3 heads"),
        ({"dims": [9, 16]}, "dims 9"),
        ({"heads": [1, 0]}, r"heads.*above 0"),
        ({"dims": [0, 16]}, r"dims.*above 0"),
        ({"window": 0}, r"window 0.*above 0"),
        ({"fold": 0}, r"fold 0.*above 0"),
        ({"fold": -4}, r"fold -4.*above 0"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio 0\.0.*above 0"),
        ({"depths": [1, -1]}, r"depths"),
        ({"fold": 3}, "256 bins are not a multiple of 24"),
        ({"window": 3}, "16 frames is not a multiple of 6"),
        ({"mask": "magnitud"}, "mask.*did you mean 'magnitude'"),
        ({"normalization": "batch"}, "normalization.*choose one of fixed, instance"),
        ({"fusion": "crossed"}, "fusion.*did you mean 'cross'"),
        ({"fold_layout": "neighbors"}, "fold_layout"),
        ({"window": "8"}, "window.*str.*int"),
        ({"window": 4.0}, "window.*float.*int"),
        ({"window": True}, "window.*bool.*int"),
        ({"dims": 8}, "dims.*not a list"),
        ({"mlp_ratio": float("inf")}, "hyper.mlp_ratio inf must be finite"),
        ({"mlp_ratio": float("nan")}, "hyper.mlp_ratio nan must be finite"),
        ({"dims": ["a", "b"]}, "dims"),
        ({"windw": 8}, "tfswa_lite has no hyper-parameter 'windw': did you mean 'window'"),
        ({"zzz": 8}, "'zzz': choose one of dims"),
    ],
)
def test_impossible_hyper_parameters_are_refused(tiny_spec: ModelSpec, hyper: Hyper, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build_network(dataclasses.replace(tiny_spec, hyper={**tiny_spec.hyper, **hyper}))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=match):
        new_spec("tfswa_lite", hyper={**tiny_spec.hyper, **hyper}, stft=tiny_spec.stft, chunk=tiny_spec.chunk)


def test_a_former_name_of_a_hyper_parameter_is_read(tiny_spec: ModelSpec) -> None:
    others = {name: value for name, value in tiny_spec.hyper.items() if name != "normalization"}
    network = build_network(dataclasses.replace(tiny_spec, hyper={**others, "normalisation": "instance"}))
    assert network.hyper.normalization == "instance"


def test_an_unknown_family_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown family 'tfswa_light': did you mean 'tfswa_lite'"):
        get_family("tfswa_light")
    with pytest.raises(
        ConfigError, match=r"unknown family 'convtasnet': choose one of .*tfswa_lite, .*tfswa_unet"
    ):
        new_spec("convtasnet")


def test_new_spec_refuses_numbers_that_contradict() -> None:
    for wrong in ({"stems": ("a", "a")}, {"residual_stem": "zzz"}, {"channels": 5}):
        with pytest.raises(ConfigError, match=r"distinct|zzz|channels 5"):
            new_spec("tfswa_lite", **wrong)


def test_a_third_party_family_is_found(tiny_family: str) -> None:
    assert tiny_family in family_names()
    spec = new_spec(
        tiny_family,
        hyper={
            "dims": [8, 16],
            "depths": [1, 1],
            "decoder_depths": [1],
            "heads": [1, 2],
            "window": 4,
            "fold": 4,
        },
    )
    assert spec.family == tiny_family
    assert spec.stft.bins == 256
    assert spec.parameters > 0
