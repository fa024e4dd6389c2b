"""Bandit: the package ``pymss-core`` beside it, published files of both versions, exports, refusals."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.codec import Codec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from known_numbers import known  # noqa: E402
from make_bandit import CASES, COMMON, FILE, FRAMES, N_FFT, SAMPLES, STEMS, STRIDE, fixed, weight  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.blocks.bands import OfAllBands  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.bandit import musical_members  # noqa: E402
from tfswa.train.importers.checkpoint import Misfit, import_checkpoint  # noqa: E402
from tfswa.train.importers.kinds import Settings  # noqa: E402

FAMILY = "bandit"
CLOSE = 1e-4  # of the peak: the same operations in float32, in another order
GATE_DB = 90.0  # rounding alone, as in tests/export
WINDOW = (3 / 8 * N_FFT) ** -0.5  # the root of the window's power, over which spectra are divided
PACKAGE = N_FFT**-0.5  # as the package divides them


def published(case: str) -> dict[str, Any]:
    """Weights by the names of the package; those that it names twice are known by the second name."""
    state: dict[str, Any] = {}
    with np.load(FILE) as vectors:
        for key, sizes in zip(vectors[f"{case}_keys"], vectors[f"{case}_shapes"], strict=True):
            name, shape = str(key), tuple(int(size) for size in sizes if size)
            state[name] = torch.from_numpy(
                vectors[f"{case}_value_{name.replace('/', '|')}"] if fixed(name) else weight(name, shape)
            )
    for place, part in enumerate(("norm", "hidden", "output")):
        for name in [name for name in state if f".combined.{place}." in name and "norm_mlp" in name]:
            state[name.replace(f"combined.{place}", part)] = state[name].clone()
    return state


def config_of(case: str, **changed: Any) -> dict[str, Any]:
    """A published configuration of a case, as the training suite writes it."""
    rate = CASES[case]["fs"]
    model = {**COMMON, **CASES[case], "stems": STEMS[case], "hidden_activation": "Tanh", **changed}
    return {
        "audio": {"chunk_size": SAMPLES, "num_channels": 2, "sample_rate": rate},
        "model" if case == "first" else "kwargs": model,
        "training": {"instruments": STEMS[case], "target_instrument": None},
    }


def imported(case: str, folder: Path, settings: Settings | None = None, **state: Any) -> Bundle:
    """The bundle of a published file; ``state`` are other weights of it, None for one that lacks."""
    held = {
        f"model.{name}": value for name, value in {**published(case), **state}.items() if value is not None
    }
    torch.save({"state_dict": held}, folder / "bandit.chpt")
    settings = settings or Settings(config_of(case))
    return import_checkpoint(folder / "bandit.chpt", settings, folder / "bandit.tfx")[0]


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_gives_what_the_package_gives(case: str, tmp_path: Path) -> None:
    settings = Settings(config_of(case), stft={"scale": PACKAGE})
    model = open_model(imported(case, tmp_path, settings).path)
    spec = model.spec
    assert (spec.stems, spec.chunk_samples, spec.chunk.frames) == (tuple(STEMS[case]), SAMPLES, FRAMES)
    chunk = known("audio", (2, 1, SAMPLES), 0.1).reshape(1, 2, SAMPLES)
    codec = Codec(spec)
    spectra = codec.spectra(chunk)
    found = TorchSession(model, BackendOptions()).infer(codec.tensors(chunk, spectra))
    stems = codec.stems(chunk[0], spectra[0], {OUTPUT: found[OUTPUT][0]})[..., ::STRIDE]
    with np.load(FILE) as vectors:
        right = vectors[case]
    assert stems.shape == right.shape
    assert np.abs(stems - right).max() <= CLOSE * np.abs(right).max()
    assert np.abs(right).max() > 0.005


@pytest.mark.parametrize(("case", "cell", "order", "mean"), [
    ("first", "gru", "planes", True), ("second", "lstm", "pairs", True), ("sum", "gru", "pairs", False),
])  # fmt: skip
def test_what_a_published_file_tells(case: str, cell: str, order: str, mean: bool, tmp_path: Path) -> None:
    spec = imported(case, tmp_path).spec
    own = CASES[case]
    assert spec.hyper == {
        "dim": own["emb_dim"], "depth": own["n_sqm_modules"], "bands": own["n_bands"], "cell": cell,
        "hidden": own["rnn_dim"], "mask_hidden": own["mlp_dim"], "order": order, "mean": mean,
    }  # fmt: skip
    padding = "zero" if case == "first" else "reflect"
    assert spec.stft == StftSpec(N_FFT, 64, own["fs"], scale=WINDOW, padding=padding, seen=(0, 129))


def test_a_published_file_by_itself(tmp_path: Path) -> None:
    """What weights do not tell is as it was published, so that only another n_fft is to be said."""
    with pytest.raises(
        ConfigError, match=r"12 bands of .* numbers in all, musical ones of n_fft 2048 are others"
    ):
        imported("first", tmp_path, Settings())
    spec = imported("first", tmp_path, Settings(stft={"n_fft": N_FFT, "hop": 64})).spec
    assert (spec.stems, spec.stft.sample_rate, spec.channels) == (("speech", "music", "effects"), 44_100, 2)
    assert spec.stft.scale == WINDOW


def test_stems_keep_their_names_in_any_order(tmp_path: Path) -> None:
    plain = open_model(imported("first", tmp_path).path)
    planes = {"mixture": known("planes", plain.spec.input_shape(1), 1.0)}
    right = TorchSession(plain, BackendOptions()).infer(planes)["stems"][0]
    (tmp_path / "bandit.tfx").rename(tmp_path / "first.tfx")
    settings = Settings(config_of("first"), stems=("effects", "speech", "music"))
    turned = open_model(imported("first", tmp_path, settings).path)
    assert turned.spec.stems == ("effects", "speech", "music")
    found = TorchSession(turned, BackendOptions()).infer(planes)["stems"][0]
    np.testing.assert_array_equal(found, right[[2, 0, 1]])
    (tmp_path / "bandit.tfx").rename(tmp_path / "turned.tfx")
    with pytest.raises(
        ConfigError, match="stems a,b,c are named, those of the file are speech,music,effects"
    ):
        imported("first", tmp_path, Settings(config_of("first"), stems=("a", "b", "c")))


@pytest.mark.parametrize("every", [["vocals", "other"], ["other", "vocals"]])
def test_one_stem_leaves_another(every: list[str], tmp_path: Path) -> None:
    config = config_of("sum")
    config["training"] = {"instruments": every, "target_instrument": "vocals"}
    others = {name: None for name in published("sum") if "mask_estim.other." in name}
    spec = imported("sum", tmp_path, Settings(config), **others).spec
    assert (spec.outputs, spec.residual_stem) == (("vocals",), "other")


def test_a_stem_is_not_called_as_another_one_is(tmp_path: Path) -> None:
    config = config_of("sum")
    config["training"] = {"instruments": ["vocals", "other"], "target_instrument": "other"}
    others = {name: None for name in published("sum") if "mask_estim.other." in name}
    with pytest.raises(ConfigError, match="stems other,vocals are named, those of the file are vocals"):
        imported("sum", tmp_path, Settings(config), **others)


@pytest.mark.parametrize(("case", "said", "mean"), [
    ("first", None, True), ("first", False, False), ("second", None, False), ("second", True, True),
])  # fmt: skip
def test_a_file_of_parameters_alone(case: str, said: bool | None, mean: bool, tmp_path: Path) -> None:
    """Without shares: of the first version they are in use, unless a configuration says not."""
    without = {name: None for name in published(case) if "freq_weights" in name or "stft" in name}
    settings = Settings(config_of(case, use_freq_weights=said))
    assert imported(case, tmp_path, settings, **without).spec.hyper["mean"] is mean


@pytest.mark.parametrize("inside", ["bsrnn.", "band_split.", "tf_model.", "mask_estim.speech."])
def test_parts_may_have_been_compiled(inside: str, tmp_path: Path) -> None:
    right = imported("first", tmp_path).weights()
    (tmp_path / "bandit.tfx").rename(tmp_path / "first.tfx")
    compiled: dict[str, Any] = {}
    for name, value in published("first").items():
        compiled |= {name: None, name.replace(inside, f"{inside}_orig_mod."): value}
    found = imported("first", tmp_path, **compiled).weights()
    assert found.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_section_without_values_is_none(tmp_path: Path) -> None:
    settings = Settings({**config_of("first", pad_mode="reflect"), "kwargs": None})
    assert imported("first", tmp_path, settings).spec.stft.padding == "reflect"


@pytest.mark.parametrize(
    ("case", "changed", "says"),
    [
        (
            "first",
            {"hidden_activation": "ReLU"},
            "model.hidden_activation 'ReLU' of the configuration, only 'Tanh'",
        ),
        ("second", {"in_channels": 2}, "kwargs.in_channels 2 of the configuration, only 1 is known here"),
        ("first", {"band_specs": "dnr:vox7"}, "bands 'dnr:vox7' of the configuration, .* only musical ones"),
        (
            "first",
            {"pad_mode": "circular"},
            "model.pad_mode 'circular' of the configuration is none of constant",
        ),
        ("first", {"pad_mode": ["reflect"]}, r"model.pad_mode \['reflect'\] of the configuration is none of"),
        ("first", {"power": 2}, "model.power 2 of the configuration, only None is known here"),
        ("first", {"onesided": False}, "model.onesided False of the configuration, only True is known here"),
        ("first", {"wkwargs": {"periodic": False}}, "model.wkwargs .* only a periodic window is known here"),
        ("first", {"win_length": 128}, "model.win_length 128 of the configuration is not n_fft 256"),
        ("first", {"n_fft": 512, "win_length": 512}, "musical ones of n_fft 512 are others"),
    ],
)
def test_a_configuration_of_another_network_is_refused(
    case: str, changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        imported(case, tmp_path, Settings(config_of(case, **changed)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bandit.tfx").exists()


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    state = published("second")
    name = twice = "mask_estim.speech.norm_mlp.0.norm.weight"
    with pytest.raises(BundleError, match="are one weight of a Bandit, and differ: it is damaged"):
        imported("second", tmp_path, **{name: state[name] + 1})
    name = "mask_estim.speech.freq_weights/0"
    with pytest.raises(BundleError, match=r"freq_weights/0 is .*, in a Bandit as it is known here .*"):
        imported("second", tmp_path, **{name: state[name] / 2})
    with pytest.raises(Misfit, match=r"1 missing \(band_split.2.1.bias\)"):
        imported("second", tmp_path, **{"band_split.norm_fc_modules.2.combined.1.bias": None})
    with pytest.raises(BundleError, match="a Bandit with both axes side by side"):
        imported("second", tmp_path, **{"tf_model.seqband.0.0.norm.weight": torch.ones(6)})
    with pytest.raises(BundleError, match="3 recurrent layers, a Bandit has pairs"):
        imported("first", tmp_path, **{n: None for n in published("first") if ".seqband.3." in n})
    with pytest.raises(BundleError, match=r"norm.weight is no plain tensor of real numbers"):
        imported("second", tmp_path, **{twice: state[twice].to_sparse()})
    with pytest.raises(BundleError, match="no name is of a mask"):
        imported("first", tmp_path, **{n: None for n in published("first") if "norm_mlp" in n})
    far = f"bsrnn.tf_model.seqband.{'9' * 5000}.norm.weight"
    with pytest.raises(BundleError, match="5 recurrent layers, a Bandit has pairs"):
        imported("first", tmp_path, **{far: torch.ones(1)})
    stems = {f"bsrnn.mask_estim.s{n}.norm_mlp.0.norm.weight": torch.ones(1) for n in range(50)}
    with pytest.raises(BundleError, match="53 stems of 12 bands, and 400 names: some are missing"):
        imported("first", tmp_path, Settings(stft={"n_fft": N_FFT, "hop": 64}), **stems)
    with pytest.raises(ConfigError, match=r"chunk.frames is 'x'"):
        imported("first", tmp_path, Settings(config_of("first"), chunk={"frames": "x"}))
    assert not (tmp_path / "bandit.tfx").exists()


def test_weights_twice_that_claim_more_than_can_be_compared(tmp_path: Path) -> None:
    """Neither of them is read: torch can save one number as any count of them."""
    large = torch.zeros(1).expand(10**13)
    twice = [f"mask_estim.speech.norm_mlp.0.{part}.weight" for part in ("norm", "combined.0")]
    with pytest.raises(Misfit, match=r"1 of another shape .* is \[10000000000000\], the network's \[6\]"):
        imported("second", tmp_path, **dict.fromkeys(twice, large))
    with pytest.raises(BundleError, match=r"stft.window is \[10000000000000\], in a Bandit"):
        imported("second", tmp_path, **{"stft.window": torch.zeros(1).half().expand(10**13)})


def test_the_default_is_the_published_network() -> None:
    """As many parameters as the package counts, for either version; the paper says 37.0 million."""
    spec = get_family(FAMILY).new_spec()
    assert new_spec(FAMILY, stems=get_family(FAMILY).published_stems).parameters == 37_022_688
    members = musical_members(spec.stft, 64)
    assert [len(bins) for bins in members[:8]] == [3, 2, 2, 2, 2, 2, 3, 3]  # the package's
    assert sum(map(len, members)) == 2142


@pytest.mark.parametrize("bands", [1, 2, 3, 7, 64, 200])
@pytest.mark.parametrize(("n_fft", "rate"), [(2, 8000), (32, 44_100), (256, 48_000), (16_384, 44_100)])
def test_every_bin_is_in_a_musical_band(bands: int, n_fft: int, rate: int) -> None:
    members = musical_members(StftSpec(n_fft, 1, rate, seen=(0, n_fft // 2 + 1)), bands)
    assert len(members) == bands
    assert min(map(len, members)) > 0
    assert set(np.concatenate(members)) == set(range(n_fft // 2 + 1))


@pytest.mark.parametrize("mean", [True, False])
def test_masks_of_all_bands(mean: bool) -> None:
    members = [np.arange(0, 3), np.arange(1, 6), np.arange(2, 4)]
    masks = torch.from_numpy(known("masks", (2, 10, 2), 1.0))
    right = torch.zeros(2, 6, 2)
    for bins, part in zip(members, torch.split(masks, [3, 5, 2], dim=1), strict=True):
        right[:, bins] += part
    if mean:
        right /= torch.tensor([1, 2, 3, 2, 1, 1])[:, None]
    torch.testing.assert_close(OfAllBands(members, 6, mean=mean)(masks), right)


def small(**hyper: Any) -> ModelSpec:
    return new_spec(
        FAMILY,
        stems=("speech", "music"),
        hyper={"dim": 8, "depth": 1, "bands": 5, "hidden": 6, "mask_hidden": 8, **hyper},
        stft=StftSpec(32, 8, 44_100, scale=1 / 4, seen=(0, 17)),
        chunk=ChunkSpec(12, context=1, fade=0, multiple=1),
    )


def test_training_takes_turns_again_and_finds_the_same() -> None:
    network = build_network(small()).train()
    planes = torch.from_numpy(known("planes", small().input_shape(2), 1.0))
    grads = []
    for network.checkpointing in (False, True):  # type: ignore[assignment]
        network.zero_grad()
        network(planes).square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in network.parameters()])  # type: ignore[union-attr]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_exports(cell: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    spec = small(cell=cell)
    torch.manual_seed(0)
    weights = {key: value.numpy() for key, value in build_network(spec).state_dict().items()}
    model = open_model(Bundle.create(tmp_path / "mine.tfx", spec, weights).path)
    assert min(export_onnx(model).snr_db.values()) > GATE_DB
    assert min(export_torchscript(model).snr_db.values()) > GATE_DB
    assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
    model = open_model(model.bundle.path)  # type: ignore[union-attr]
    operators = [node.op_type for node in onnx.load(model.file("model.onnx")).graph.node]
    assert operators.count(cell.upper()) == 2
    assert not {"Loop", "Scan", "If"} & set(operators)
    for batch in (1, 3):
        planes = np.random.default_rng(batch).standard_normal(spec.input_shape(batch), np.float32)
        eager = TorchSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        found = OrtSession(model, BackendOptions()).infer({"mixture": planes})["stems"]
        assert (snr_db(eager, found) or np.inf) > GATE_DB


@pytest.mark.parametrize("name", ["dim", "depth", "bands", "hidden", "mask_hidden"])
def test_impossible_hyper_parameters_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} 0 must be 1 or above"):
        build_network(dataclasses.replace(small(), hyper={**small().hyper, name: 0}))


def test_more_bands_than_bins_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="bands 1000000000 are more than the 17 bins of n_fft 32: lower bands"
    ):
        small(bands=10**9)


def test_musical_bands_are_of_all_bins() -> None:
    with pytest.raises(ConfigError, match="musical bands are of all 17 bins, the network sees 16 of them"):
        build_network(dataclasses.replace(small(), stft=StftSpec(32, 8, 44_100)))
