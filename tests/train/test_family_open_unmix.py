"""Open-Unmix: its size, the package ``openunmix`` beside it, training, exports."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
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
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.backend import TorchSession, load_network, new_bundle  # noqa: E402
from tfswa.train.blocks.recurrent import heard  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402

FAMILY = "open_unmix"
STFT = StftSpec(n_fft=128, hop=32, sample_rate=8000, padding="reflect", seen=(0, 65))
CHUNK = ChunkSpec(frames=24, context=3, fade=2, multiple=1)
STEMS = ("vocals", "accompaniment")
HYPER: dict[str, Any] = {"hidden": 16, "layers": 3, "bins": 40, "dropout": 0.0}
GATE_DB = 90.0  # rounding alone, as in tests/export
LSTM_DB = 100.0  # of the LSTMs too: ONNX Runtime and torch take the same steps in another order


def small(stems: tuple[str, ...] = STEMS, **hyper: Any) -> ModelSpec:
    """F = 65, of which 40 are seen, T = 24, two channels."""
    return ModelSpec(FAMILY, stems, hyper={**HYPER, **hyper}, stft=STFT, chunk=CHUNK)


def shaken(network: Any, seed: int = 0) -> Any:
    """All weights and statistics as none is at first; the masks are neither 0 everywhere nor nowhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.dtype == torch.float32 and ("bn" in name or "put_" in name):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            if "mean" in name or name.endswith("bias"):
                value.sub_(1.0)
    return network


def build(spec: ModelSpec, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return shaken(build_network(spec), seed)


def noise(spec: ModelSpec, batch: int = 1, seed: int = 1) -> Any:
    """As loud as music is in the contract's planes, whose scale is 1/32."""
    return torch.randn(spec.input_shape(batch), generator=torch.Generator().manual_seed(seed)) / 32


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module ``openunmix.model``; it imports torchaudio, of which its networks use nothing."""
    if "torchaudio" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    return pytest.importorskip(
        "openunmix.model", reason="openunmix is not installed: pip install --no-deps openunmix==1.3.0"
    )


def target(package: Any, seed: int, **sizes: Any) -> Any:
    torch.manual_seed(seed)
    return shaken(package.OpenUnmix(nb_channels=2, **sizes), seed).eval()


SIZES = {"nb_bins": 65, "hidden_size": 16, "max_bin": 40}


def agrees(model: Any, stems: Any, mixture: Any, theirs: Any, scale: float) -> None:
    """Stems ``[B, 2*C, T, F]`` against a network of the package's on the same magnitudes."""
    magnitude = torch.hypot(mixture[:, 0::2], mixture[:, 1::2]) / scale
    with torch.no_grad():
        expected = theirs(magnitude.transpose(2, 3)).transpose(2, 3)  # [B, C, T, F]
    found = torch.hypot(stems[:, 0::2], stems[:, 1::2]) / scale
    assert expected.max() > 0.1
    assert ((expected == 0).float().mean() < 0.9).item()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parallel = stems[:, 0::2] * mixture[:, 1::2] - stems[:, 1::2] * mixture[:, 0::2]
    assert parallel.abs().max() < 1e-6


@pytest.mark.parametrize("stems", [("vocals",), ("drums", "vocals")])
def test_state_dictionaries_of_the_package_are_imported_and_agree(
    package: Any, tfx: Tfx, tmp_path: Path, stems: tuple[str, ...]
) -> None:
    """One target by itself, as published; and a Separator of several, in another order."""
    theirs = {stem: target(package, seed, **SIZES) for seed, stem in enumerate(("vocals", "drums"))}
    options = []
    if len(stems) == 1:
        torch.save(theirs["vocals"].state_dict(), tmp_path / "umx.pth")
    else:
        torch.save(package.Separator(theirs).state_dict(), tmp_path / "umx.pth")
        options = ["--prefix", "target_models."]
    for option, value in (("hyper", HYPER), ("stft", dataclasses.asdict(STFT))):
        for key, item in value.items():
            options += [f"--{option}", f"{key}={json.dumps(item)}"]  # which TOML reads too
    options += ["--chunk", "frames=24", "--chunk", "context=3", "--chunk", "fade=2"]
    done = tfx(
        *("import", tmp_path / "umx.pth", "--family", FAMILY, "--stems", ",".join(stems)),
        *(*options, "-o", tmp_path / "umx.tfx"),
    )
    assert done.code == 0, done.err
    model = open_model(tmp_path / "umx.tfx")
    network, mixture = load_network(model), noise(model.spec, 2)
    with torch.no_grad():
        made = network(mixture)
    for index, stem in enumerate(stems):
        agrees(model, made[:, index], mixture, theirs[stem], STFT.scale)


def test_the_published_network_is_the_packages(package: Any) -> None:
    spec = new_spec(FAMILY, stems=("vocals",))
    theirs = target(package, 0, nb_bins=2049, hidden_size=512, max_bin=1487)
    with torch.device("meta"):
        network = build_network(spec)
    rename = get_family(FAMILY).elsewhere
    assert rename is not None
    ours = {rename(name, spec): value.shape for name, value in network.state_dict().items()}
    assert ours == {name: value.shape for name, value in theirs.state_dict().items()}
    assert spec.parameters == sum(parameter.numel() for parameter in theirs.parameters())


def test_weights_of_its_own_are_imported_under_their_own_names(tfx: Tfx, tmp_path: Path) -> None:
    new_bundle(FAMILY, tmp_path / "own.tfx", stems=("a",), hyper=HYPER, stft=STFT, chunk=CHUNK)
    weights = load_network(open_model(tmp_path / "own.tfx")).state_dict()
    torch.save({f"model.{name}": value for name, value in weights.items()}, tmp_path / "own.pt")
    options = ["--stft", "n_fft=128", "--stft", "seen=[0,65]", "--stft", "hop=32"]
    for key, value in HYPER.items():
        options += ["--hyper", f"{key}={value}"]
    done = tfx(
        *("import", tmp_path / "own.pt", "--family", FAMILY, "--stems", "a", *options),
        *("-o", tmp_path / "again.tfx"),
    )
    assert done.code == 0, done.err
    again = load_network(open_model(tmp_path / "again.tfx")).state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_the_published_size() -> None:
    family = get_family(FAMILY)
    one, two = new_spec(FAMILY, stems=("vocals",)), new_spec(FAMILY)
    assert one.parameters == family.published == 8_893_348
    assert two.parameters == 2 * 8_893_348
    assert "8.9M" in family.summary
    assert one.input_shape(1) == (1, 4, 512, 2049)
    highest = one.hyper["bins"] - 1
    assert highest * 44_100 / 4096 <= 16_000 < (highest + 1) * 44_100 / 4096


def test_operations_are_counted_without_going_through_the_frames() -> None:
    """What counts shapes and operations has those of the LSTMs."""
    lstm = torch.nn.LSTM(6, 4, 2, bidirectional=True)
    x = torch.randn(5, 3, 6)
    assert torch.equal(heard(lstm, x), lstm(x)[0])
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        out = heard(lstm.to("meta"), x.to("meta"))
    assert out.shape == (5, 3, 8)
    # Of 15 frames, in two directions: four gates of 4, of the input (6, then 8) and of the last output (4).
    assert counter.get_total_flops() == 2 * 15 * 2 * (16 * (6 + 4) + 16 * (8 + 4))


@pytest.mark.parametrize("training", [False, True])
def test_every_parameter_learns(training: bool) -> None:
    spec = small()
    network = build(spec).train(training)
    (network(noise(spec, 2)) * 32).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_items_of_a_batch_never_meet_in_eval_mode() -> None:
    spec = small()
    network, batch = build(spec).eval(), noise(spec, 3)
    assert_items_never_meet(network, batch, noise(spec, seed=9)[0])


@pytest.mark.parametrize("frames", [1, 7, 50])
def test_weights_know_no_number_of_frames(frames: int) -> None:
    spec = small()
    longer = dataclasses.replace(spec, chunk=ChunkSpec(frames, 0, 0, 1)) if frames > 1 else spec
    network = build(spec).eval()
    other = build(longer)
    other.load_state_dict(network.state_dict())
    mixture = noise(spec)[:, :, :1].expand(-1, -1, frames, -1)
    assert network(mixture).shape == (1, 2, 4, frames, 65)


def test_frames_hear_each_other_both_ways_and_bins_above_are_not_seen() -> None:
    spec = small(("a",))
    network, mixture = build(spec).eval(), noise(spec)
    for frame, low, high in ((12, 0, 40), (12, 40, 65)):
        other = mixture.clone()
        other[:, :, frame, low:high] *= 3.0
        with torch.no_grad():
            moved = (network(other) - network(mixture)).abs().amax(dim=(0, 1, 2, 4)) > 1e-7
        assert moved[[0, 23]].all() == (low == 0)
        assert moved[12]


def test_silence_gives_silence() -> None:
    spec = small()
    network, mixture = build(spec).eval(), noise(spec)
    mixture[:, :, 10:14] = 0.0
    with torch.no_grad():
        stems = network(mixture)
        assert not stems[:, :, :, 10:14].any()
        assert stems.abs().max() > 0.01
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


def test_statistics_normalize_what_is_seen() -> None:
    spec = small()
    network = build(spec).eval()
    features = network.features(noise(spec, 4))
    network.set_statistics(features.mean(dim=(0, 1, 2)), features.std(dim=(0, 1, 2)))
    seen = (features[..., :40] + network.nets[1].input_mean) * network.nets[1].input_scale
    torch.testing.assert_close(seen.mean(dim=(0, 1, 2)), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(dim=(0, 1, 2)), torch.ones(40), atol=1e-5, rtol=0)
    network.set_statistics(torch.zeros(65), torch.zeros(65))  # silence alone
    assert torch.isfinite(network(noise(spec))).all()


def test_reconstruct_does_not_see_what_is_hidden() -> None:
    spec = small()
    network, mixture = build(spec).eval(), noise(spec)
    hidden = torch.zeros(1, 1, 24, 65, dtype=torch.bool)
    hidden[..., 4:8, 10:50] = True
    guess, truth = network.reconstruct(mixture, hidden)
    assert guess.shape == (1, 2, 2, 24, 65)
    assert truth.shape == (1, 1, 2, 24, 65)
    torch.testing.assert_close(network.reconstruct(torch.where(hidden, 7.0, mixture), hidden)[0], guess)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [("a",), ("a", "b", "c")])
def test_channels_and_stems_are_the_specs(channels: int, stems: tuple[str, ...]) -> None:
    spec = dataclasses.replace(small(stems), channels=channels)
    assert build(spec)(noise(spec, 2)).shape == spec.output_shape(2)


@pytest.mark.parametrize(
    ("hyper", "match"),
    [
        ({"bins": 66}, "bins 66 are more than the 65 of the STFT"),
        ({"bins": 0}, "layers 3 and bins 0 must be above 0"),
        ({"hidden": 15}, "hidden 15 must be even"),
        ({"layers": 0}, "layers 0 and bins 40"),
        ({"dropout": 1.0}, r"dropout 1\.0 must be a share"),
        ({"hiden": 4}, "did you mean 'hidden'"),
    ],
)
def test_what_cannot_be_built_is_refused(hyper: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build(small(**hyper))
    assert "\n" not in str(error.value)


def test_it_trains_and_goes_on_from_weights_with_their_statistics(
    tfx: Tfx, song_root: Path, tmp_path: Path
) -> None:
    common = [
        *(
            "train",
            "seed",
            f"data.root={song_root}",
            f"model.family={FAMILY}",
            "optim.batch=2",
            "optim.warmup=0",
        ),
        *("model.hyper={hidden=8,layers=2}", "data.validation=['B']", "data.workers=0", "optim.frames=24"),
        *(f"data.cache={tmp_path / 'cache'}", "run.validation_seconds=1", "run.pictures=false"),
    ]
    done = tfx(*common, "optim.length=1", "optim.ema=0.0", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    first = open_model(tmp_path / "run" / "last.tfx")
    assert first.spec.outputs == STEMS
    before = load_network(first).state_dict()["nets.0.input_mean"]
    assert (before < 0).any()
    init = f"model.init={tmp_path / 'run' / 'last.tfx'}"
    done = tfx(
        *common,
        init,
        "optim.length=1",
        "optim.ema=0.0",
        "optim.lr=1e-9",
        "optim.lr_end=0.0",
        "-o",
        tmp_path / "next",
    )
    assert done.code == 0, done.err
    after = load_network(open_model(tmp_path / "next" / "last.tfx")).state_dict()["nets.0.input_mean"]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.fixture
def model(tmp_path: Path) -> BundleModel:
    path = tmp_path / "small.tfx"
    new_bundle(FAMILY, path, stems=STEMS, hyper=HYPER, stft=STFT, chunk=CHUNK)
    opened = open_model(path)
    assert isinstance(opened, BundleModel)
    return opened


@pytest.mark.slow
def test_it_exports_and_separates(model: BundleModel, tmp_path: Path, tfx: Tfx) -> None:
    """Small as it is: what the exports do to the layers."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    import soundfile

    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession
    from tfswa.runtime.backends.torchscript import TorchScriptSession

    made = export_onnx(model)
    assert min(made.snr_db.values()) > GATE_DB
    traced = export_torchscript(model)
    assert min(traced.snr_db.values()) > GATE_DB
    assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
    operators = [node.op_type for node in onnx.load(made.file).graph.node]
    assert operators.count("LSTM") == 2 * HYPER["layers"]
    assert not {"Loop", "Scan"} & set(operators)
    model = open_model(model.bundle.path)  # type: ignore[assignment]
    for batch in (1, 3):
        planes = np.random.default_rng(batch).standard_normal(model.spec.input_shape(batch), np.float32)
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = TorchScriptSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        value = snr_db(eager, found)
        assert value is not None
        assert value > LSTM_DB
        for precision, least in (("fp32", LSTM_DB), ("fp16", 45.0)):
            found = OrtSession(model, BackendOptions(precision=precision)).infer({"mixture": planes})["stems"]
            value = snr_db(eager, found)
            assert found.shape == model.spec.output_shape(batch)
            assert value is not None
            assert value > least
    song = np.random.default_rng(0).standard_normal((2, 9000)) * 0.1
    soundfile.write(tmp_path / "song.wav", song.T, 8000, subtype="FLOAT")
    stems = {}
    for backend in ("ort", "torch"):
        out = tmp_path / backend
        done = tfx(
            "separate", tmp_path / "song.wav", "-m", model.bundle.path, "--backend", backend, "-o", out
        )
        assert done.code == 0, done.err
        stems[backend] = {path.stem: soundfile.read(path)[0] for path in out.rglob("*.wav")}
    assert set(stems["ort"]) == set(STEMS)
    for stem in STEMS:
        value = snr_db(stems["torch"][stem], stems["ort"][stem])
        assert value is not None
        assert value > 70  # files of 24 bits


@pytest.mark.trt
def test_rtx_builds_it(model: BundleModel) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    from tfswa.export.engine import BuildOptions, build_engine
    from tfswa.export.onnx import export_onnx

    export_onnx(model, precision="fp16")
    export_onnx(model)
    opened = open_model(model.bundle.path)
    assert isinstance(opened, BundleModel)
    for precision in ("fp32", "fp16"):
        assert not build_engine(opened, BuildOptions(flavor="rtx", precision=precision)).cached  # type: ignore[arg-type]
