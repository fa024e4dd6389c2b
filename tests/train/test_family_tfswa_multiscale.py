"""The family whose heads attend at several scales: its formula, its limits, its exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import assert_items_never_meet
from command_line import Tfx

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.attention import attention_maps  # noqa: E402
from tfswa.train.backend import TorchSession, new_bundle  # noqa: E402
from tfswa.train.blocks.attention import FrequencyAttention, TimeAttention, rotary_tables  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.tfswa_multiscale import MixScales, averaged  # noqa: E402

FAMILY = "tfswa_multiscale"
GATE_DB = 90.0  # rounding alone, as in tests/export

Small = Callable[..., ModelSpec]


@pytest.fixture
def small(tiny_spec: ModelSpec, tiny_hyper: dict[str, Any]) -> Small:
    """``small(scales=(1, 2))``: the spec of a tiny network with these hyper-parameters."""

    def make(**hyper: Any) -> ModelSpec:
        return dataclasses.replace(tiny_spec, family=FAMILY, hyper={**tiny_hyper, **hyper})

    return make


def seeded(network: Any, seed: int = 0) -> Any:
    """Weights large enough that attention is not nearly uniform."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(query: Any, key: Any, value: Any, scales: tuple[int, ...]) -> Any:
    """``[N, heads, L, D]`` each, a head, a query and a group of places at a time, in float64."""
    query, key, value = (x.detach().double().numpy() for x in (query, key, value))
    n, heads, length, _ = query.shape
    out = np.empty_like(query)
    for item, head, place in np.ndindex(n, heads, length):
        scale = scales[head * len(scales) // heads]
        groups = [slice(start, start + scale) for start in range(0, length, scale)]
        # The score of a group is the mean of the scores of its places.
        scores = [np.mean(key[item, head, group] @ query[item, head, place]) for group in groups]
        weights = np.exp(np.array(scores) - max(scores))
        means = np.stack([value[item, head, group].mean(axis=0) for group in groups])
        out[item, head, place] = weights / weights.sum() @ means
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("scales", [(1,), (1, 4), (4, 1), (2, 8), (1, 2, 4, 8)])
def test_groups_of_heads_attend_at_their_scales(scales: tuple[int, ...]) -> None:
    query, key, value = (noise(3, 4, 8, 6, seed=seed) for seed in range(3))
    found = MixScales(scales)(query, key, value)
    torch.testing.assert_close(found, by_hand(query, key, value, scales), atol=1e-5, rtol=1e-5)


def test_averages_are_of_neighbors() -> None:
    x = torch.arange(8.0).reshape(1, 1, 8, 1)
    assert averaged(x, 4).flatten().tolist() == [1.5, 5.5]
    assert averaged(x, 1) is x


def test_one_scale_of_1_is_tfswa_unet(small: Small) -> None:
    spec = small(scales=(1,))
    ours = seeded(build_network(spec))
    hyper = {name: value for name, value in spec.hyper.items() if name != "scales"}
    plain = dataclasses.replace(spec, family="tfswa_lite", hyper=hyper)
    theirs = build_network(plain).eval()
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes
    planes = noise(*spec.input_shape(2))
    with torch.no_grad():
        torch.testing.assert_close(ours(planes), theirs(planes), atol=1e-6, rtol=1e-6)
        wide = build_network(small(scales=(1, 4))).eval()
        wide.load_state_dict(ours.state_dict())
        assert (wide(planes) - theirs(planes)).abs().max() > 1e-4


def test_every_axial_attention_has_the_scales_and_no_window_has() -> None:
    spec = new_spec(FAMILY, hyper={"fusion": "cross"})
    with torch.device("meta"):
        network = build_network(spec)
    axial = [m for m in network.modules() if isinstance(m, TimeAttention | FrequencyAttention)]
    assert len(axial) == 4 * (2 + 6 + 2 + 6 + 2)  # TSA, FSA, and both again in the fusion, from level 1 on
    assert {module.mix for module in axial} == {MixScales((1, 4))}
    assert sum(hasattr(module, "mix") for module in network.modules()) == len(axial)


def test_time_attention_depends_on_differences_of_frames_alone() -> None:
    """Moved by a whole group, a frame's score for a group is what it was."""
    cos, sin = rotary_tables(64, 8, torch.device("cpu"))
    query, keys = noise(8), noise(4, 8, seed=2)

    def rotated(x: Any, frames: slice) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos[frames] + torch.cat((-second, first), dim=-1) * sin[frames]

    def score(frame: int, start: int) -> float:
        group = averaged(rotated(keys, slice(start, start + 4))[None, None], 4)[0, 0, 0]
        return float(rotated(query, slice(frame, frame + 1))[0] @ group)

    for start in range(4, 56, 4):
        assert score(start + 1, start + 4) == pytest.approx(score(1, 4), abs=2e-5)
    assert abs(score(1, 4) - score(1, 8)) > 1e-3


def test_the_size_is_that_of_tfswa_unet_and_the_work_is_less() -> None:
    ours, plain = new_spec(FAMILY), new_spec("tfswa_unet")
    assert ours.parameters == plain.parameters == 14_961_548
    assert f"{ours.parameters / 1e6:.1f}M" in get_family(FAMILY).summary
    assert list(ours.hyper["scales"]) == [1, 4]
    # Of axial scores and sums, half of the heads do a quarter: five eighths stay.
    t, seconds, hyper = plain.chunk.frames, plain.chunk_samples / 44_100, plain.hyper
    depths = [e + d for e, d in zip(hyper["depths"], (*reversed(hyper["decoder_depths"]), 0), strict=True)]
    full = 0
    for level in range(1, 4):
        frames, bins = t >> level, (plain.stft.bins // hyper["fold"]) >> level
        full += depths[level] * 4 * hyper["dims"][level] * frames * bins * (frames + bins)
    assert plain.gflop_per_second - ours.gflop_per_second == pytest.approx(
        full * 3 / 8 / seconds / 1e9, abs=0.02
    )


def test_maps_of_attention_are_of_both_scales(small: Small) -> None:
    spec = small()
    maps = attention_maps(seeded(build_network(spec)), noise(*spec.input_shape(1)))
    shapes = {name: found.shape for name, found in maps.items() if not name.endswith("window")}
    assert shapes == {
        "encoder.1.blocks.0.time": (8, 8),
        "encoder.1.blocks.0.time.2": (8, 2),
        "encoder.1.blocks.0.frequency": (32, 32),
        "encoder.1.blocks.0.frequency.2": (32, 8),
    }
    for found in maps.values():
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("fusion", ["serial", "cross"])
def test_items_of_a_batch_never_meet(small: Small, fusion: str) -> None:
    spec = small(fusion=fusion)
    network, batch = seeded(build_network(spec)), noise(*spec.input_shape(3))
    assert_items_never_meet(network, batch, noise(*spec.input_shape(1), seed=9)[0])


@pytest.mark.parametrize("fusion", ["serial", "cross"])
def test_every_parameter_learns(small: Small, fusion: str) -> None:
    spec = small(fusion=fusion)
    network = seeded(build_network(spec)).train()
    network(noise(*spec.input_shape(2))).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("hyper", "match"),
    [
        ({"scales": ()}, r"scales \(\) must be divisors of window 4"),
        ({"scales": (1, 0)}, r"scales \(1, 0\) must be divisors of window 4"),
        ({"scales": (1, -4)}, r"scales \(1, -4\) must be"),
        ({"scales": (1, 3)}, r"scales \(1, 3\) must be divisors of window 4: change either"),
        ({"scales": (1, 8)}, r"scales \(1, 8\) must be divisors of window 4"),
        ({"scales": (1, 2, 4)}, r"2 heads at level 1 cannot be shared among 3 scales \(1, 2, 4\): change"),
        ({"heads": (1, 1)}, r"1 heads at level 1 cannot be shared among 2 scales \(1, 4\)"),
        ({"axial_from": 0}, r"1 heads at level 0 cannot be shared among 2 scales \(1, 4\)"),
        ({"axial_from": 3}, r"axial_from 3 must be 0 to 2, the number of levels"),
        ({"axial_from": -1}, r"axial_from -1 must be 0 to 2"),
    ],
)
def test_what_cannot_be_built_is_refused(small: Small, hyper: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build_network(small(**hyper))
    assert "\n" not in str(error.value)


def test_levels_without_axial_attention_may_have_any_heads(small: Small) -> None:
    network = build_network(small(heads=(1, 1), axial_from=2))
    assert not any(isinstance(module, TimeAttention) for module in network.modules())


@pytest.fixture
def bundle(small: Small, tmp_path: Path) -> BundleModel:
    spec, path = small(), tmp_path / "small.tfx"
    new_bundle(FAMILY, path, seed=3, hyper=spec.hyper, stft=spec.stft, chunk=spec.chunk)
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


@pytest.mark.slow
def test_it_exports_and_items_stay_apart(bundle: BundleModel) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    for made in (export_onnx(bundle), export_torchscript(bundle)):
        assert min(made.snr_db.values()) > GATE_DB
    assert min(export_onnx(bundle, precision="fp16").snr_db.values()) > 45
    model = open_model(bundle.bundle.path)
    for batch in (1, 3):
        planes = noise(*model.spec.input_shape(batch), seed=batch).numpy()
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = OrtSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        value = snr_db(eager, found)
        assert value is not None
        assert value > GATE_DB


@pytest.mark.slow
def test_parity_and_calibration_take_it(bundle: BundleModel, song_root: Path, tfx: Tfx) -> None:
    path = bundle.bundle.path
    assert tfx("export", path).code == 0
    done = tfx("parity", path, "--backend", "ort", "--audio", song_root / "A", "--quick", "--json")
    assert done.code == 0, done.err
    done = tfx("calibrate", path, "--audio", song_root, "--json")
    assert done.code == 0, done.err


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_builds_it(bundle: BundleModel, precision: Any) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    from tfswa.export.engine import BuildOptions, build_engine
    from tfswa.export.onnx import export_onnx

    export_onnx(bundle, precision=precision)
    model = open_model(bundle.bundle.path)
    assert isinstance(model, BundleModel)
    built = build_engine(model, BuildOptions(flavor="rtx", precision=precision))
    assert not built.cached
