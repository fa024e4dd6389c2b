"""The families of the lead and accompaniment study: published sizes, blocks, training, exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import assert_items_never_meet
from command_line import Tfx
from numpy.typing import NDArray
from planes import infer_planes

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.backend import TorchSession, new_bundle  # noqa: E402
from tfswa.train.config_files import find_config, load_config  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.tfc import Tdf, Tdsa, Tdt, sinusoids  # noqa: E402
from tfswa.train.loop import training_spec  # noqa: E402

# Parameters, and GFLOP of 128 frames, with one stem of two channels.
PUBLISHED = {"tfc_tdf": (1_804_076, 11.5), "tfc_tdsa": (5_291_228, 77.8), "tfc_tdt": (84_172, 20.8)}
STFT = StftSpec(n_fft=128, hop=64, sample_rate=8000)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
STEMS = ("vocals", "accompaniment")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("tfc_tdf", {}),
    ("tfc_tdsa", {}),
    ("tfc_tdsa", {"within": "frame"}),
    ("tfc_tdt", {"dropout": 0.0}),
]
GATE_DB = 90.0  # rounding alone, as in tests/export

Array = NDArray[np.float64]


def small(family: str, **hyper: Any) -> ModelSpec:
    """F = 64, T = 16, two stems, two channels, 6 channels inside."""
    return ModelSpec(family, STEMS, hyper={"width": 6, **hyper}, stft=STFT, chunk=CHUNK)


def build(spec: ModelSpec, seed: int = 0) -> Any:
    """A network whose norms have statistics that are not those of a new one."""
    torch.manual_seed(seed)
    return shaken(build_network(spec))


def shaken(module: Any) -> Any:
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            for value in part.state_dict().values():
                if value.dtype == torch.float32:
                    value.copy_(torch.rand_like(value) + 0.5)
    return module


def noise(spec: ModelSpec, batch: int = 1, seed: int = 1) -> Any:
    return torch.randn(spec.input_shape(batch), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_published_sizes(family: str) -> None:
    parameters, gflop = PUBLISHED[family]
    spec = new_spec(family, stems=("vocals",))
    assert spec.parameters == parameters
    assert spec.gflop_per_second * spec.chunk_samples / 44_100 == pytest.approx(gflop, abs=0.05)
    assert spec.input_shape(1) == (1, 4, 128, 1024)
    assert f"{parameters / 1e6:.1f}M" in get_family(family).summary
    assert new_spec(family).parameters == parameters + 4 * (3 * 24 + 1)  # the last layer, for a second stem
    assert spec.chunk.step % spec.chunk.multiple == 0


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_recipe_of_the_study_trains_the_published_network(family: str) -> None:
    path, _ = find_config("study")
    config = load_config(path, [f"model.family={family}"])
    spec = training_spec(config)
    assert spec.parameters == PUBLISHED[family][0]
    assert (spec.stems, spec.outputs, spec.residual_stem) == (STEMS, STEMS[:1], STEMS[1])
    optim, loss = config.optim, dataclasses.asdict(config.loss)
    assert (optim.optimizer, optim.lr, optim.weight_decay) == ("adam", 1e-3, 1e-6)
    assert (optim.schedule, optim.decay_factor, optim.batch, optim.length) == ("plateau", 0.3, 8, "13 epochs")
    assert (optim.frames - 1) * spec.stft.hop / 44_100 == pytest.approx(3, abs=0.06)
    on = {name: weight for name, weight in loss.items() if isinstance(weight, float) and weight}
    assert {name for name in on if name != "perceptual_network"} == {"spectrogram_mse"}


@pytest.mark.parametrize("family", PUBLISHED)
def test_it_trains(tfx: Tfx, song_root: Path, tmp_path: Path, family: str) -> None:
    done = tfx(
        *("train", "study", f"data.root={song_root}", f"model.family={family}", "model.hyper.width=4"),
        *("data.validation=['B']", "data.workers=0", f"data.cache={tmp_path / 'cache'}", "optim.length=2"),
        *("optim.batch=2", "optim.frames=16", "run.validation_seconds=1", "-o", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    spec = open_model(tmp_path / "run" / "best.tfx").spec
    assert (spec.family, spec.outputs, spec.residual_stem) == (family, STEMS[:1], STEMS[1])


# What follows is the arithmetic of the blocks in numpy, in float64; x is [D, T, F].


def normed(x: Array, layer: Any, axis: int) -> Array:
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    mean, var, gain, bias = (
        value.detach().double().numpy().reshape(shape)
        for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return np.asarray((x - mean) / np.sqrt(var + layer.eps) * gain + bias)


def attended(tokens: Array, layer: Any) -> Array:
    """Tokens ``[L, E]``, one by one."""
    weight = layer.query_key_value.weight.detach().double().numpy()
    bias = layer.query_key_value.bias.detach().double().numpy()
    query, key, value = np.split(tokens @ weight.T + bias, 3, axis=1)
    scores = query @ key.T / np.sqrt(tokens.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True) @ value)


def compared(block: Any, expected: Any) -> None:
    """Two items, in eval mode, against ``expected`` of each."""
    x = np.random.default_rng(3).standard_normal((2, 6, 4, 10))
    with torch.no_grad():
        found = shaken(block).eval()(torch.from_numpy(x).float()).double().numpy()
    for item in range(2):
        np.testing.assert_allclose(found[item], x[item] + expected(x[item]), atol=1e-5)


def test_tdf_is_a_linear_layer_along_frequency() -> None:
    block = Tdf(6, 10)
    weight = block.linear.weight.detach().double().numpy()
    compared(block, lambda x: np.maximum(normed(x, block.norm, 0) @ weight.T, 0))


@pytest.mark.parametrize("within", ["item", "frame"])
def test_tdsa_attends_among_spectra_of_one_item(within: str) -> None:
    block = Tdsa(10, within)

    def expected(x: Array) -> Array:
        x = normed(x, block.norm, 2)
        if within == "item":
            mixed = attended(x.reshape(-1, 10), block.attention).reshape(x.shape)
        else:
            mixed = np.stack([attended(x[:, t], block.attention) for t in range(x.shape[1])], axis=1)
        return np.asarray(np.maximum(mixed, 0))

    compared(block, expected)


def test_tdt_is_a_transformer_among_the_bins_of_a_frame() -> None:
    block = Tdt(6, 10, 0.5)
    weight, bias = (p.detach().double().numpy() for p in (block.linear.weight, block.linear.bias))

    def expected(x: Array) -> Array:
        out = np.empty_like(x)
        for t in range(x.shape[1]):
            tokens = x[:, t].T + sinusoids(10, 6).double().numpy()
            tokens = tokens + attended(tokens, block.attention)
            mean, var = tokens.mean(axis=1, keepdims=True), tokens.var(axis=1, keepdims=True)
            gain, shift = (p.detach().double().numpy() for p in (block.norm.weight, block.norm.bias))
            tokens = (tokens - mean) / np.sqrt(var + block.norm.eps) * gain + shift
            out[:, t] = (tokens + tokens @ weight.T + bias).T
        return out - x

    compared(block, expected)


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoids(50, 8).double().numpy()
    assert table.shape == (50, 8)
    for place, k in ((0, 0), (7, 1), (49, 3)):
        angle = place / 10_000 ** (2 * k / 8)
        np.testing.assert_allclose(table[place, 2 * k : 2 * k + 2], [np.sin(angle), np.cos(angle)], atol=1e-5)


@pytest.mark.parametrize(("family", "hyper"), VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_every_parameter_learns(family: str, hyper: dict[str, Any], training: bool) -> None:
    spec = small(family, **hyper)
    network = build(spec).train(training)
    network(noise(spec, 2)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        # In training a norm removes again what the bias before it adds; after the last of them there is none.
        before_norm = name.endswith("bias") and name.startswith(("down.", "up.")) and name != "up.2.bias"
        assert (training and before_norm) or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("family", "hyper"), VARIANTS)
def test_items_of_a_batch_never_meet_in_eval_mode(family: str, hyper: dict[str, Any]) -> None:
    spec = small(family, **hyper)
    network, batch = build(spec).eval(), noise(spec, 3)
    assert_items_never_meet(network, batch, noise(spec, seed=9)[0])


@pytest.mark.parametrize("within", ["item", "frame"])
def test_frames_meet_in_the_attention_of_an_item_alone(within: str) -> None:
    torch.manual_seed(0)
    block = shaken(Tdsa(8, within)).eval()
    x = torch.randn(2, 3, 4, 8)
    other = x.clone()
    other[0, :, 3] += 10.0
    with torch.no_grad():
        apart = (block(x) - block(other)).abs().amax(dim=(1, 3))  # [B, T]
    assert (apart[0, :3] > 1e-3).all() == (within == "item")
    assert (apart[1] < 1e-6).all()
    assert within == "item" or (apart[0, :3] < 1e-6).all()


@pytest.mark.parametrize(("family", "hyper"), VARIANTS)
@pytest.mark.parametrize("frames", [8, 24, 64])
def test_every_multiple_of_the_strides_is_a_length(family: str, hyper: dict[str, Any], frames: int) -> None:
    spec = small(family, **hyper)
    longer = dataclasses.replace(spec, chunk=ChunkSpec(frames, 0, 0, 8))
    assert build(spec).eval()(noise(longer)).shape == longer.output_shape(1)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [("a",), ("a", "b", "c")])
def test_channels_and_stems_are_the_specs(family: str, channels: int, stems: tuple[str, ...]) -> None:
    spec = dataclasses.replace(small(family), channels=channels, stems=stems, unseen_stem="")
    assert build(spec)(noise(spec, 2)).shape == spec.output_shape(2)


def test_other_depths_are_other_levels() -> None:
    spec = small("tfc_tdf", depth=1)
    network = build(spec)
    assert (len(network.encoder), len(network.decoder)) == (1, 1)
    assert network.bottleneck.block.linear.in_features == 32
    assert network(noise(spec)).shape == spec.output_shape(1)


def test_dropout_is_for_training_alone() -> None:
    spec = small("tfc_tdt", dropout=0.5)
    network = build(spec)
    rates = {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.5}
    with torch.no_grad():
        assert not torch.equal(network(noise(spec)), network(noise(spec)))
        network.eval()
        assert torch.equal(network(noise(spec)), network(noise(spec)))


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
@pytest.mark.parametrize(("family", "hyper"), VARIANTS)
def test_silence_and_loud_sound_have_finite_outputs_and_gradients(
    family: str, hyper: dict[str, Any], scale: float
) -> None:
    spec = small(family, **hyper)
    network = build(spec)
    out = network(noise(spec, 2) * scale)
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("family", "changes", "hyper", "match"),
    [
        (
            "tfc_tdf",
            {"chunk": ChunkSpec(12, 0, 0, 4)},
            {},
            "12 frames of a chunk are not a multiple of 8, dep",
        ),
        ("tfc_tdt", {"stft": StftSpec(n_fft=120, hop=60)}, {}, "60 bins are not a multiple of 8, depth 3"),
        ("tfc_tdsa", {}, {"depth": 5}, "16 frames of a chunk are not a multiple of 32, depth 5"),
        ("tfc_tdf", {}, {"depth": 0}, "width 6 and depth 0 must be above 0"),
        ("tfc_tdsa", {}, {"width": 0}, "width 0 and depth 3 must be above 0"),
        ("tfc_tdt", {}, {"width": 7}, "width 7 must be even"),
        ("tfc_tdt", {}, {"dropout": 1.0}, r"dropout 1\.0 must be a share"),
        ("tfc_tdt", {}, {"dropout": -0.1}, r"dropout -0\.1"),
        ("tfc_tdsa", {}, {"within": "batch"}, "within.*choose one of item, frame"),
        ("tfc_tdf", {}, {"dropout": 0.1}, "tfc_tdf has no hyper-parameter 'dropout'"),
        ("tfc_tdf", {}, {"widht": 6}, "did you mean 'width'"),
    ],
)
def test_what_cannot_be_built_is_refused(
    family: str, changes: dict[str, Any], hyper: dict[str, Any], match: str
) -> None:
    spec = small(family)
    with pytest.raises(ConfigError, match=match) as error:
        build(dataclasses.replace(spec, **changes, hyper={**spec.hyper, **hyper}))
    assert "\n" not in str(error.value)


@pytest.fixture
def one_stem(tmp_path: Path, request: pytest.FixtureRequest) -> BundleModel:
    """A small network that gives vocals alone; the accompaniment is what they leave."""
    family, hyper = request.param
    options = {"network_stems": ("vocals",), "residual_stem": "accompaniment", "stft": STFT, "chunk": CHUNK}
    path = tmp_path / "small.tfx"
    new_bundle(family, path, stems=STEMS, hyper={"width": 6, **hyper}, **options)
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("one_stem", VARIANTS, indirect=True)
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
        eager = infer_planes(TorchSession(model, BackendOptions()), planes)
        found = infer_planes(OrtSession(model, BackendOptions()), planes)
        value = snr_db(eager, found)
        assert found.shape == model.spec.output_shape(batch)
        assert value is not None
        assert value > GATE_DB
    song = np.random.default_rng(0).standard_normal((2, 20_000)) * 0.1
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
@pytest.mark.parametrize("one_stem", VARIANTS, indirect=True)
def test_rtx_builds_it(one_stem: BundleModel) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    from tfswa.export.engine import BuildOptions, build_engine
    from tfswa.export.onnx import export_onnx

    export_onnx(one_stem)
    model = open_model(one_stem.bundle.path)
    assert isinstance(model, BundleModel)
    built = build_engine(model, BuildOptions(flavor="rtx"))
    assert not built.cached


@pytest.mark.slow
@pytest.mark.parametrize("one_stem", VARIANTS[:1], indirect=True)
def test_parity_and_calibration_take_what_the_network_gives(
    one_stem: BundleModel, song_root: Path, tmp_path: Path, tfx: Tfx
) -> None:
    path = one_stem.bundle.path
    assert tfx("export", path).code == 0
    done = tfx("parity", path, "--backend", "ort", "--audio", song_root / "A", "--quick", "--json")
    assert done.code == 0, done.err
    done = tfx("calibrate", path, "--audio", song_root, "--json")
    assert done.code == 0, done.err
