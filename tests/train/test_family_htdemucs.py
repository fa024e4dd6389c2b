"""Hybrid Transformer Demucs: the package ``demucs`` beside it, exports, streams, and what is refused."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import OUTPUT, STEM_SAMPLES, ModelSpec
from tfswa.runtime.stream.codec import Codec

torch = pytest.importorskip("torch", reason="torch is not installed: families need it")

from hybrids import recorded  # noqa: E402  # it finds the folder of the vectors
from make_htdemucs import CASES, FILE, N_FFT, SAMPLES, STRIDE, weight  # noqa: E402
from make_roformer import known  # noqa: E402

from tfswa.train.backend import TorchSession  # noqa: E402
from tfswa.train.families import build_network, get_family, new_spec  # noqa: E402
from tfswa.train.families.htdemucs import STEMS, STEMS_6  # noqa: E402

CLOSE = 1e-5  # of the peak: the same operations in float32, in another order
GATE_DB = 90.0  # rounding alone, as in tests/export
EDGE = 3 * N_FFT // 8  # samples at an end that the package plays quieter


def small(**hyper: Any) -> ModelSpec:
    """A network that exports fast."""
    spec = recorded("wide")
    few = {"depth": 2, "t_layers": 2, "norm_starts": 2, "bottom_channels": 8, "dconv_depth": 1}
    return dataclasses.replace(spec, hyper={**spec.hyper, **few, **hyper})


def bundle(spec: ModelSpec, path: Path) -> BundleModel:
    """A model with known weights."""
    state = build_network(spec).state_dict()
    weights = {key: weight(key, tuple(value.shape)) for key, value in state.items()}
    model = open_model(Bundle.create(path, spec, weights).path)
    assert isinstance(model, BundleModel)
    return model


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_package_gives(case: str) -> None:
    spec = recorded(case)
    network = build_network(spec).eval()
    with np.load(FILE) as vectors:
        right, spectra = vectors[case], vectors[f"{case}_planes"]
        keys = [str(key) for key in vectors[f"{case}_keys"]]
    state = network.state_dict()
    assert set(keys) == set(state)
    network.load_state_dict({key: torch.from_numpy(weight(key, tuple(state[key].shape))) for key in keys})
    chunk = known("audio", (1, spec.channels, SAMPLES), 0.3)
    codec = Codec(spec)
    planes = codec.spectra(chunk)
    with torch.no_grad():
        given = (torch.from_numpy(value) for value in codec.tensors(chunk, planes).values())
        found, waves = (value[0].numpy() for value in network(*given))
    thin = found.reshape(-1)[:: 4 * STRIDE]
    assert np.abs(thin - spectra).max() <= CLOSE * np.abs(spectra).max()
    stems = codec.stems(chunk[0], planes[0], {OUTPUT: found, STEM_SAMPLES: waves})[..., ::STRIDE]
    inside = slice(EDGE // STRIDE + 1, -EDGE // STRIDE)
    assert stems.shape == right.shape
    assert np.abs(stems - right)[..., inside].max() <= CLOSE * np.abs(right).max()
    assert min(np.abs(right).max(), np.abs(waves).max()) > 0.03  # both branches are heard


def test_the_published_networks_have_their_size() -> None:
    family = get_family("htdemucs")
    spec = new_spec("htdemucs", stems=family.published_stems)
    assert (spec.parameters, spec.stems) == (family.published, STEMS)
    assert (spec.chunk_samples, spec.stft.frames(343_980)) == (343_980, 336)
    assert new_spec("htdemucs", stems=STEMS_6, hyper={"bottom_channels": 0}).parameters == 27_414_996


def test_items_of_a_batch_do_not_meet(tmp_path: Path) -> None:
    model = bundle(small(), tmp_path / "mine.tfx")
    session = TorchSession(model, BackendOptions())
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((3, *shape), np.float32) for name, shape in model.spec.takes.items()}
    together = session.infer(given)
    for item in range(3):
        alone = session.infer({name: value[item : item + 1] for name, value in given.items()})
        for name in together:
            assert (snr_db(alone[name][0], together[name][item]) or np.inf) > GATE_DB


def test_level_and_direct_current_come_out_as_they_went_in(tmp_path: Path) -> None:
    """So that the whole track need not be heard before: what is left of that is TINY, and ``track_level``."""
    spec = small(track_level=0.5)
    loud, quiet = build_network(small()).eval(), build_network(spec).eval()
    quiet.load_state_dict(loud.state_dict())
    codec = Codec(spec)
    chunk = known("audio", (1, 2, SAMPLES), 0.3)
    takes = [torch.from_numpy(value) for value in codec.tensors(chunk, codec.spectra(chunk)).values()]
    with torch.no_grad():
        divided, plain, known_level = (
            loud(*(2 * value for value in takes)),
            loud(*takes),
            quiet(*takes),
        )
    for one, two, three in zip(divided, plain, known_level, strict=True):
        assert (snr_db(one.numpy() / 2, two.numpy()) or np.inf) > 60
        assert (snr_db(one.numpy() / 2, three.numpy()) or np.inf) > GATE_DB


def test_a_song_is_separated_chunk_by_chunk(tmp_path: Path) -> None:
    from tfswa.runtime.stream.separator import Separator

    spec = small()
    model = bundle(spec, tmp_path / "mine.tfx")
    song = known("song", (2, 2 * spec.chunk_samples), 0.3)
    with Separator(model, backend="torch") as separator:
        stems = separator.separate(song)
    assert stems.shape == (2, *song.shape)
    # What chunk 0 alone gives: it begins with silence for its context.
    chunk = np.zeros((1, 2, spec.chunk_samples), np.float32)
    chunk[0, :, spec.context_samples :] = song[:, : spec.chunk_samples - spec.context_samples]
    codec = Codec(spec)
    planes = codec.spectra(chunk)
    out = TorchSession(model, BackendOptions()).infer(codec.tensors(chunk, planes))
    first = codec.stems(chunk[0], planes[0], {name: value[0] for name, value in out.items()})
    kept = spec.chunk_samples - spec.context_samples - spec.context_after_samples - spec.fade_samples
    alone = first[..., spec.context_samples : spec.context_samples + kept]
    assert (snr_db(alone, stems[..., :kept]) or np.inf) > GATE_DB


def test_it_exports(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: exports need it")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript
    from tfswa.runtime.backends.ort import OrtSession

    model = bundle(small(), tmp_path / "mine.tfx")
    assert min(export_onnx(model).snr_db.values()) > GATE_DB
    assert min(export_torchscript(model).snr_db.values()) > GATE_DB
    assert min(export_onnx(model, precision="fp16").snr_db.values()) > 45
    graph = onnx.load(model.bundle.file("model.onnx")).graph
    assert not {node.op_type for node in graph.node} & {"Shape", "If", "Loop", "CastLike"}
    reopened = open_model(model.bundle.path)
    for batch in (1, 3):
        rng = np.random.default_rng(batch)
        given = {
            name: rng.standard_normal((batch, *shape), np.float32) for name, shape in model.spec.takes.items()
        }
        eager = TorchSession(reopened, BackendOptions()).infer(given)
        found = OrtSession(reopened, BackendOptions()).infer(given)
        for name in eager:
            assert (snr_db(eager[name], found[name]) or np.inf) > GATE_DB


@pytest.mark.parametrize(("groups", "length"), [(1, 50), (2, 70_000)])
def test_group_norms_are_exported_without_loss(groups: int, length: int, tmp_path: Path) -> None:
    """Those of the samples' branch are over 8 million numbers, which one float32 sum does not hold."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: exports need it")
    from tfswa.export.onnx import TRANSLATIONS
    from tfswa.train.blocks.norm import GroupNorm

    network = GroupNorm(groups, 16).eval()
    torch.nn.init.normal_(network.weight)
    x = 3 + torch.randn(2, 16, length, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.onnx.export(
            network,
            (x,),
            tmp_path / "norm.onnx",
            opset_version=20,
            verbose=False,
            custom_translation_table=TRANSLATIONS,
        )
    session = ort.InferenceSession(tmp_path / "norm.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    right = torch.group_norm(x.double(), groups, network.weight.double(), network.bias.double(), 1e-5)
    assert (snr_db(right.detach().numpy(), found) or np.inf) > 110


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"channels": 0}, "channels 0 must be 1 or above"),
        ({"bottom_channels": -1}, "bottom_channels -1 must be 0 or above"),
        ({"dconv_mode": 4}, "dconv_mode 4 must be 0, 1, 2 or 3"),
        ({"t_dropout": 1.0}, "t_dropout 1.0 must be 0 or above"),
        ({"track_level": 0.0}, "track_level 0.0 must be above 0"),
        ({"kernel_size": 6}, "kernel_size 6 must be twice the stride 4"),
        ({"depth": 4}, "256 bins are too few for 4 levels of stride 4"),
        ({"depth": 5}, "256 bins do not divide by 1024, 5 levels of stride 4"),
        ({"dconv_comp": 9.0}, "dconv_comp 9.0 leaves none of 8 channels"),
        ({"t_heads": 3}, "8 channels of the transformer must divide by t_heads 3 and by 4"),
        ({"norm_starts": 1, "norm_groups": 3}, "norm_groups 3 does not divide 16 channels"),
        ({"t_emb": "cape"}, "no hyper-parameter 't_emb'"),
    ],
)
def test_impossible_hyper_parameters_are_refused(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        build_network(small(**hyper))
    assert "\n" not in str(error.value)


def test_a_specification_without_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="htdemucs takes samples beside planes"):
        build_network(dataclasses.replace(small(), samples=False))
