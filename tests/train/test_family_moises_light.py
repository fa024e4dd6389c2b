"""Moises-Light: the package ``moises-light`` beside it, files, training, exports, and what is refused."""

from __future__ import annotations

import re
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
from tfswa.runtime.stream.separator import Separator

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from known_numbers import known  # noqa: E402
from make_moises_light import (  # noqa: E402
    ATTENTION,
    CASES,
    COMMON,
    FILE,
    FRAMES,
    SAMPLES,
    SOURCES,
    STRIDE,
    weight,
)

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.importers.checkpoint import import_checkpoint  # noqa: E402
from tfswa.train.importers.kinds import Settings  # noqa: E402
from tfswa.train.importers.moises_light import ACTIVATIONS, NORMS  # noqa: E402

FAMILY = "moises_light"
CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
GATE_DB = 80.0  # rounding alone; masks of random weights lift it
HALF_GATE_DB = 45.0  # as of every export in fp16


def recorded(case: str, **hyper: Any) -> ModelSpec:
    """The network that a vector was recorded of."""
    told = {**COMMON, **CASES[case], **ATTENTION[case]}
    own = {
        "width": told["G"],
        "depth": told["n_enc"],
        "heavy": told["n_dec"],
        "bands": told["n_bands"],
        "splits": told["n_split_enc"],
        "splits_up": told.get("n_split_dec", 1),
        "narrowing": told["bn_factor"],
        "kernel": told.get("edge_kernel_size", 3),
        "turns": told["n_rope"],
        "heads": told["heads"],
        "dim_head": told["dim_head"],
        "mlp_ratio": float(told["ff_mult"]),
        "mask": told.get("use_mask", True),
        "norm": NORMS.get(told.get("norm_name"), "batch"),
        "activation": ACTIVATIONS[told.get("act_name", "ReLU")],
    }
    scale = 1 / 16 if told.get("normalized", True) else 1.0
    return ModelSpec(
        FAMILY,
        tuple(SOURCES[case]),
        channels=told["audio_channels"],
        hyper={**own, **hyper},
        stft=StftSpec(256, 64, 44_100, scale=scale, padding="reflect", seen=(0, told["freq_dim"])),
        chunk=ChunkSpec(FRAMES, context=1, fade=0, multiple=2 ** told["n_enc"]),
        unseen_stem=None,
    )


def with_known_weights(spec: ModelSpec) -> Any:
    network = build_network(spec).eval()
    state = network.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.from_numpy(weight(name, tuple(value.shape)))
    network.load_state_dict(state)
    return network


def package_state(case: str) -> dict[str, Any]:
    """A state dictionary as the package leaves it, its constants among the weights."""
    spec = recorded(case)
    state = dict(with_known_weights(spec).state_dict())
    half = ATTENTION[case]["dim_head"] // 2
    with np.load(FILE) as vectors:
        keys = [str(key) for key in vectors[f"{case}_keys"]]
    for key in keys:
        if key.endswith("freqs"):
            state[key] = 10_000.0 ** -(torch.arange(half) / half)
    state["stft_window"] = torch.hann_window(spec.stft.n_fft)
    state["freq_pad"] = torch.zeros(1, 2 * spec.channels, spec.stft.all_bins - spec.stft.bins, 1)
    assert set(state) == set(keys)
    return state


def yaml_of(case: str, path: Path, **changed: Any) -> Path:
    """A configuration with the package's arguments, as a training suite writes it."""
    model = {"n_fft": 256, "hop_size": 64, **COMMON, **CASES[case], **changed}
    lines = ["audio:", f"  chunk_size: {SAMPLES}", "  sample_rate: 44100", "model:"]
    lines += [
        f"  {key}: {str(value).lower() if value in (True, False) else value}" for key, value in model.items()
    ]
    lines += ["training:", "  instruments:", *(f"    - {name}" for name in SOURCES[case])]
    lines += [f"  target_instrument: {SOURCES[case][0] if len(SOURCES[case]) == 1 else 'null'}"]
    path.write_text("\n".join(lines) + "\n")
    return path


def imported(case: str, folder: Path, *, state: dict[str, Any] | None = None, **changed: Any) -> Bundle:
    """A file of the package and its configuration, made into a bundle."""
    from tfswa.train.importers.published import read_yaml

    torch.save(package_state(case) if state is None else state, folder / "light.ckpt")
    settings = Settings(read_yaml(yaml_of(case, folder / "light.yaml", **changed)))
    return import_checkpoint(folder / "light.ckpt", settings, folder / "light.tfx")[0]


@pytest.mark.parametrize("case", CASES)
def test_an_imported_file_gives_what_the_package_gives(case: str, tmp_path: Path) -> None:
    """From the state dictionary to samples, through the bundle."""
    bundle, right_spec = imported(case, tmp_path), recorded(case)
    spec = bundle.spec
    assert {**spec.hyper} == {**right_spec.hyper}
    assert (spec.stft, spec.chunk.frames, spec.channels) == (right_spec.stft, FRAMES, right_spec.channels)
    assert (spec.outputs, spec.unseen_stem) == (right_spec.outputs, None)
    with np.load(FILE) as vectors:
        right = vectors[case]
    chunk = np.zeros((1, spec.channels, spec.chunk_samples), np.float32)
    chunk[..., :SAMPLES] = known("audio", (1, spec.channels, SAMPLES), 0.1)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    given = codec.tensors(chunk, spectra)
    found = TorchSession(open_model(bundle.path), BackendOptions()).infer(given)
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: found[OUTPUT][0]})[: len(right), :, :SAMPLES:STRIDE]
    assert stems.shape == right.shape
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert np.abs(right).max() > 0.01


def test_a_song_is_streamed(tmp_path: Path) -> None:
    bundle = imported("stereo", tmp_path)
    song = known("song", (2, 5000), 0.3)
    with Separator(open_model(bundle.path), backend="torch") as separator:
        stems = separator.separate(song)
    assert stems.shape == (3, *song.shape)
    assert np.isfinite(stems).all()
    assert stems.any(axis=(1, 2)).all()


def test_the_default_is_the_published_network() -> None:
    """The package counts 16 rotations of each attention as parameters; here they are constants."""
    family = get_family(FAMILY)
    rotations = family.hyper().dim_head // 2
    large = new_spec(FAMILY, stems=family.published_stems)
    assert large.parameters + 2 * large.hyper["turns"] * rotations == family.published == 5_451_216
    small = new_spec(FAMILY, stems=family.published_stems, hyper={"width": 32, "turns": 6})
    assert small.parameters + 2 * 6 * rotations == 2_558_768


def test_a_file_of_the_published_size_tells_all_but_one_stem_its_name(tmp_path: Path) -> None:
    """Of the sizes that the package has, nothing has to be said; of one stem, what it is."""
    hyper = {"width": 4, "depth": 1, "turns": 1, "splits": 1}  # of their transform, and of little else
    for stems in (get_family(FAMILY).published_stems, ("vocals",)):
        spec = new_spec(FAMILY, stems=stems, hyper=hyper)
        state = dict(build_network(spec).state_dict())
        state["stft_window"], state["freq_pad"] = torch.hann_window(6144), torch.zeros(1, 4, 1025, 1)
        torch.save({"state_dict": state}, tmp_path / "light.ckpt")
        if len(stems) == 1:
            with pytest.raises(UsageError, match=r"do not tell the names of the stems: .* --stems vocals"):
                import_checkpoint(tmp_path / "light.ckpt", Settings(), tmp_path / "light.tfx", force=True)
            continue
        bundle, _ = import_checkpoint(tmp_path / "light.ckpt", Settings(), tmp_path / "light.tfx")
        assert bundle.spec.stems == stems
        assert bundle.spec.stft == spec.stft
        assert (bundle.spec.chunk.frames, bundle.spec.chunk.multiple) == (260, 2)
        assert (bundle.spec.chunk.step % 2, bundle.spec.weights_license) == (0, "not stated")


def test_another_length_of_transform_wants_its_hop(tmp_path: Path) -> None:
    torch.save(package_state("stereo"), tmp_path / "light.ckpt")
    with pytest.raises(UsageError, match="do not tell the hop of the transform and the names") as error:
        import_checkpoint(tmp_path / "light.ckpt", Settings(), tmp_path / "light.tfx")
    assert "\n" not in str(error.value)


def test_a_file_in_half_precision_holds_its_constants_in_it_too(tmp_path: Path) -> None:
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in package_state("wide").items()
    }
    assert imported("wide", tmp_path, state=state).spec.hyper == recorded("wide").hyper


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"n_fft": 512}, "model.n_fft 512 of the configuration contradicts the weights, which are of 256"),
        ({"freq_dim": 64}, "model.freq_dim 64 of the configuration contradicts the weights, which are of 96"),
        ({"act_name": "Tanh"}, "model.act_name 'Tanh' of the configuration is none of ReLU, GELU"),
    ],
)
def test_a_configuration_of_another_network_is_refused(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(TfxError, match=says) as error:
        imported("stereo", tmp_path, **changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("stft_window", torch.ones(256), "stft_window is 1.0, .*: it is another network"),
        ("stft_window", torch.hann_window(128), "a window of 128 samples for a transform of 129 bins"),
        ("first_conv.conv.weight", torch.zeros(8, 3, 3, 3), "takes 3 planes a sub-band and gives 16 in all"),
        (
            "bottleneck.rope_blocks.0.time_transformer.layers.1.0.norm.gamma",
            torch.ones(32),
            "a Moises-Light with several layers, or norms, in a turn",
        ),
    ],
)
def test_weights_that_no_such_network_has_are_refused(
    name: str, value: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(TfxError, match=says) as error:
        imported("stereo", tmp_path, state={**package_state("stereo"), name: value})
    assert isinstance(error.value, BundleError | ConfigError)
    assert "\n" not in str(error.value)


def test_training_takes_turns_again_and_finds_the_same() -> None:
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


def test_a_few_steps_lower_the_loss() -> None:
    """And silence in a batch leaves no gradient that is not a number."""
    torch.manual_seed(0)
    spec = recorded("stereo")
    network = build_network(spec).train()
    planes = torch.from_numpy(known("planes", spec.input_shape(2), 1.0))
    planes[1] = 0
    target = planes[:, None] * torch.tensor([0.9, 0.1, 0.0]).reshape(3, 1, 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(planes) - target).abs().mean()
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_norms_of_channels_stay_apart_from_layers_along_bins() -> None:
    """Where channels are as many as places: torch's freezing made one of both, along the wrong axis."""
    from tfswa.export.torchscript import trace

    spec = recorded("stereo")
    network = with_known_weights(spec)
    assert network.encoder_blocks[2].tdf.bn2.num_features == network.encoder_blocks[2].tdf.fc2.out_features
    planes = torch.from_numpy(known("planes", spec.input_shape(1), 1.0))
    with torch.no_grad():
        right, found = network(planes), trace(network, spec)(planes)
    assert (snr_db(right.numpy(), found.numpy()) or np.inf) > GATE_DB


def test_of_silence_it_gives_silence() -> None:
    spec = recorded("stereo")
    with torch.no_grad():
        out = with_known_weights(spec)(torch.zeros(spec.input_shape(1)))
    assert not out.any()


@pytest.mark.parametrize("case", CASES)
def test_it_exports(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    spec = recorded(case)
    weights = {key: value.numpy() for key, value in with_known_weights(spec).state_dict().items()}
    model = open_model(Bundle.create(tmp_path / "mine.tfx", spec, weights).path)
    assert min(export_onnx(model).snr_db.values()) > GATE_DB
    assert min(export_torchscript(model).snr_db.values()) > GATE_DB
    if spec.hyper["norm"] != "instance":  # quiet channels made loud: random weights are refused, at 43 dB
        assert min(export_onnx(model, precision="fp16").snr_db.values()) > HALF_GATE_DB
    model = open_model(model.bundle.path)  # type: ignore[union-attr]
    for batch in (1, 3):
        planes = np.random.default_rng(batch).standard_normal(spec.input_shape(batch), np.float32)
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = OrtSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        assert (snr_db(eager, found) or np.inf) > GATE_DB


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"depth": 0}, "depth 0 must be 1 or above"),
        ({"turns": 0}, "turns 0 must be 1 or above"),
        ({"heavy": 4}, "heavy 4 must be 0 to 3, the depth"),
        ({"kernel": 4}, "kernel 4 must be odd"),
        ({"dim_head": 7}, "dim_head 7 must be even"),
        ({"mlp_ratio": 0.01}, "mlp_ratio 0.01 leaves an MLP nothing"),
        ({"depth": 5}, "16 frames of a chunk are not a multiple of 32, depth 5 halves them"),
        ({"bands": 5}, "96 bins are not a multiple of 5, sub-bands have equally many"),
        ({"width": 10}, "10 channels of width are not a multiple of 4"),
        ({"narrowing": 25}, "narrowing 25 leaves nothing of a sub-band's 24 bins"),
        ({"norm": "group"}, "hyper.norm is 'group': choose one of batch, instance, layer"),
    ],
)
def test_impossible_hyper_parameters_are_refused(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        build_network(recorded("stereo", **hyper))
    assert "\n" not in str(error.value)
