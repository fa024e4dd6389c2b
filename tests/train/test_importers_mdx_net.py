"""MDX-Net's graphs as they are: which one it is, what is refused, what a bundle gives beside UVR's way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is not installed: published graphs need it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: published graphs need it")
pytest.importorskip("torch", reason="torch is not installed: the reference needs it")

from mdx_like import BINS, FRAMES, HOP, N_FFT, RATE, STFT, uvr_way, write_mdx  # noqa: E402

from tfswa.runtime.errors import (  # noqa: E402
    BackendUnavailable,
    BundleError,
    ConfigError,
    OutputExists,
    TfxError,
    UsageError,
)
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle  # noqa: E402
from tfswa.runtime.model.opening import open_model  # noqa: E402
from tfswa.runtime.model.spec import ModelSpec  # noqa: E402
from tfswa.runtime.parity.reference import load_reference, usual_reference  # noqa: E402
from tfswa.runtime.stream.separator import Separator  # noqa: E402
from tfswa.train.importers import mdx_net  # noqa: E402
from tfswa.train.importers.mdx_known import HASHED_BYTES, Known, known_graphs, tail_md5  # noqa: E402
from tfswa.train.importers.mdx_net import import_mdx_net, knows_onnx  # noqa: E402

STEMS = ("vocals", "accompaniment")
LEAST_DB = 60.0  # float32 against UVR's way with its transform in float64: 120 dB and more are usual


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_mdx(tmp_path / "Voc FT ü.onnx")


@pytest.fixture
def imported(graph: Path, tmp_path: Path) -> Bundle:
    return import_mdx_net(graph, tmp_path / "mdx.tfx", stft=STFT, stems=STEMS, compensate=1.02)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    soundfile.write(path, mixture(2 * RATE).T, RATE, subtype="FLOAT")
    return path


def mixture(samples: int) -> NDArray[np.float32]:
    """A tone and noise, ``[2, N]``."""
    random, time = np.random.default_rng(3), np.arange(samples) / RATE
    tone = 0.2 * np.sin(2 * np.pi * 220 * time)
    return (tone + 0.05 * random.standard_normal((2, samples))).astype(np.float32)


def separated(bundle: Bundle, sound: NDArray[np.float32], backend: str = "ort") -> NDArray[np.float64]:
    with Separator(open_model(str(bundle.path)), backend=backend) as separator:
        return separator.separate(sound).astype(np.float64)


@pytest.mark.parametrize("samples", [1, 500, 3001])
@pytest.mark.parametrize("opset", [9, 11, 13])
def test_a_bundle_gives_what_uvrs_way_gives(opset: int, samples: int, tmp_path: Path) -> None:
    path = write_mdx(tmp_path / "net.onnx", opset=opset)
    bundle = import_mdx_net(path, tmp_path / "net.tfx", stft=STFT, stems=STEMS, compensate=1.02)
    sound = mixture(samples)
    right = uvr_way(path, sound, n_fft=N_FFT, hop=HOP)
    stem, rest = separated(bundle, sound)
    assert snr_db(right, stem) > LEAST_DB
    assert snr_db(sound - 1.02 * right, rest) > LEAST_DB
    assert np.abs(right).max() > 0.1 * np.abs(sound).max()  # the network says something


def test_a_hop_that_does_not_divide_the_window(tmp_path: Path) -> None:
    """As 7680 and 1024: 3.75 hops to half a window, so that four frames are left out at either end."""
    path = write_mdx(tmp_path / "net.onnx", bins=96)
    stft = ("n_fft=240", "hop=32", f"sample_rate={RATE}")
    bundle = import_mdx_net(path, tmp_path / "net.tfx", stft=stft, stems=("drums",))
    assert (bundle.spec.chunk.context, bundle.spec.stft.seen) == (4, (0, 96))
    sound = mixture(2000)
    right = uvr_way(path, sound, n_fft=240, hop=32, bins=96)
    (stem,) = separated(bundle, sound)
    assert snr_db(right, stem) > LEAST_DB


def test_the_spec_and_the_files(graph: Path, imported: Bundle) -> None:
    spec = imported.spec
    assert (spec.family, spec.stems, spec.outputs) == (None, STEMS, ("vocals",))
    assert (spec.residual_stem, spec.residual_gain, spec.unseen_stem) == ("accompaniment", 1.02, None)
    assert (spec.stft.window, spec.stft.padding, spec.stft.scale) == ("hann", "reflect", 1.0)
    assert (spec.stft.seen, spec.chunk.frames, spec.chunk.multiple) == ((0, BINS), FRAMES, FRAMES)
    assert (spec.chunk.context, spec.chunk.fade, spec.weights_license) == (2, 0, "not stated")
    held = onnx.load(graph).graph.initializer
    assert spec.parameters == sum(int(np.prod(tensor.dims)) for tensor in held)
    assert spec.gflop_per_second > 0
    assert set(imported.files) == {GRAPH, "model.onnx"}
    assert imported.file(GRAPH).read_bytes() == graph.read_bytes()
    assert imported.files[GRAPH].kind == "published"
    assert imported.provenance["graph_sha256"] == imported.files[GRAPH].sha256
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    alone = open_model(imported.file("model.onnx"))  # carries its spec, and ends in a digest of itself
    assert alone.spec == spec
    assert knows_onnx(graph)
    assert not knows_onnx(imported.file("model.onnx"))
    assert not knows_onnx(imported.path / MANIFEST)
    assert not knows_onnx(graph.with_name("none.onnx"))


def test_a_known_graph_needs_nothing_said(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Known(N_FFT, BINS, FRAMES, "instrumental", 1.035, "Some_HQ")
    monkeypatch.setattr(mdx_net, "known_graphs", lambda: {tail_md5(graph): row})
    bundle = import_mdx_net(graph, tmp_path / "known.tfx", stft=("hop=32",), license_="MIT")
    assert bundle.spec.stems == ("accompaniment", "vocals")
    assert (bundle.spec.residual_gain, bundle.spec.stft.n_fft) == (1.035, N_FFT)
    assert bundle.spec.weights_license == "MIT"
    assert bundle.provenance["published_as"] == "Some_HQ"
    other = Known(N_FFT, BINS, 2 * FRAMES, "reverb", 1.035, "")
    monkeypatch.setattr(mdx_net, "known_graphs", lambda: {tail_md5(graph): other})
    with pytest.raises(BundleError, match=r"has 48 bins and 16 frames, the table says 48 and 32"):
        import_mdx_net(graph, tmp_path / "other.tfx", stft=("hop=32",))
    free = write_mdx(tmp_path / "free.onnx", sizes=False)
    row = Known(N_FFT, BINS, FRAMES, "reverb", 1.035, "")
    monkeypatch.setattr(mdx_net, "known_graphs", lambda: {tail_md5(free): row})
    bundle = import_mdx_net(free, tmp_path / "free.tfx", stft=("hop=32",))
    assert bundle.spec.stems == ("reverb", "no_reverb")


def test_the_table() -> None:
    table = known_graphs()
    assert len(table) == 42
    voice = table["77d07b2667ddf05b9e3175941b4454a0"]
    assert voice == Known(7680, 3072, 256, "vocals", 1.021, "UVR-MDX-NET-Voc_FT")
    for digest, known in table.items():
        assert len(digest) == 32
        assert known.bins <= known.n_fft // 2 + 1
        assert 1.0 <= known.compensate < 2.0
        assert known.primary in ("vocals", "instrumental", "drums", "bass", "other", "reverb")


def test_the_hash_is_of_the_end_of_a_long_file_and_of_all_of_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    assert tail_md5(path) == hashlib.md5(b"short").hexdigest()
    end = b"e" * HASHED_BYTES
    path.write_bytes(b"beginning" + end)
    assert tail_md5(path) == hashlib.md5(end).hexdigest()


def half(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def flat(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3:]


def two_inputs(model: Any) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


def elsewhere(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def foreign(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def custom(model: Any) -> None:
    model.graph.node[0].domain = "mine"
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))


def too_new(model: Any) -> None:
    model.opset_import[0].version = 99


def other_frames(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 2 * FRAMES


def nan(model: Any) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "first")
    tensor.raw_data = np.full(tuple(tensor.dims), np.nan, np.float32).tobytes()


def unknown_operator(model: Any) -> None:
    model.graph.node[1].op_type = "Transpoze"


def baked_batch(model: Any) -> None:
    shape = onnx.numpy_helper.from_array(np.array([1, 4, BINS, FRAMES], np.int64), "baked")
    model.graph.initializer.append(shape)
    last = model.graph.node[-1]
    model.graph.node.append(onnx.helper.make_node("Reshape", ["before", "baked"], ["output"]))
    last.output[0] = "before"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mono": ({"planes": 2}, "takes 2 and gives 2 planes, an MDX-Net takes and gives 4"),
    "gives two planes": ({"gives": 2}, "takes 4 and gives 2 planes"),
    "float16": ({"bad": half}, "input is float16 with 4 axes, must be float with 4"),
    "three axes": ({"bad": flat}, "input is float with 3 axes"),
    "two inputs": ({"bad": two_inputs}, "has 2 inputs and 1 outputs"),
    "external data": ({"bad": elsewhere}, "keeps numbers in another file"),
    "operators of ONNX Runtime": ({"bad": foreign}, "uses operators of com.microsoft"),
    "operators of its own": ({"bad": custom}, "has custom operators of 'mine'"),
    "an opset to come": ({"bad": too_new}, "has opset 99, at most 25 is read"),
    "other frames": ({"bad": other_frames}, "any, 4, 48, 16.* and gives .any, 4, 48, 32"),
    "NaN": ({"bad": nan}, "gives NaN or Inf on generated music"),
    "an unknown operator": ({"bad": unknown_operator}, "cannot be rewritten to mixture .* in opset 13"),
    "a batch of one": ({"bad": baked_batch}, "computes one chunk at a time: export it with a free batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    path = write_mdx(tmp_path / "net.onnx", **options)
    refused(path, tmp_path, message, BundleError)


def refused(path: Path, folder: Path, message: str, kind: type[TfxError], **options: Any) -> None:
    options = {"stft": STFT, "stems": STEMS, **options}
    before = {one.name for one in folder.iterdir()}
    with pytest.raises(kind, match=message) as caught:
        import_mdx_net(path, folder / "bundle.tfx", **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert {one.name for one in folder.iterdir()} == before


def test_a_truncated_file_at_every_place(graph: Path, tmp_path: Path) -> None:
    whole = graph.read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in (0, 1, 20, len(whole) // 3, len(whole) // 2, len(whole) - 300, len(whole) - 1):
        cut.write_bytes(whole[:length])
        assert not knows_onnx(cut)
        refused(cut, tmp_path, "cut.onnx", BundleError)


def test_what_is_said_and_does_not_fit(graph: Path, tmp_path: Path) -> None:
    missing = r"\[any, 4, 48, 16\], and is no graph that is known by its MD5, [0-9a-f]{32}: say what .* are, "
    n_fft = r"--stft n_fft=N, at least 94"
    refused(graph, tmp_path, f"{missing}{n_fft} --stems STEM,REST$", UsageError, stft=(), stems=None)
    refused(graph, tmp_path, f"{missing}{n_fft}$", UsageError, stft=())
    refused(graph, tmp_path, f"{missing}--stems STEM,REST$", UsageError, stems=None)
    refused(graph, tmp_path, "3 stems", UsageError, stems=("a", "b", "c"))
    refused(graph, tmp_path, "stems", ConfigError, stems=("a", "a"))
    refused(
        graph,
        tmp_path,
        "seen .* must be among the 33 bins of n_fft 64",
        ConfigError,
        stft=("n_fft=64", "hop=16"),
    )
    refused(graph, tmp_path, "unknown key 'stft.nfft'", ConfigError, stft=("n_fft=128", "nfft=1"))
    refused(graph, tmp_path, "hop", ConfigError, stft=("n_fft=128", "hop='a'"))
    refused(graph, tmp_path, "leave .* of 16 frames", ConfigError, chunk=("context=9",))
    refused(graph, tmp_path, "must be float, above 0", ConfigError, compensate=-1.0)
    refused(tmp_path / "none.onnx", tmp_path, "none.onnx cannot be read", UsageError)
    free = write_mdx(tmp_path / "free.onnx", sizes=False)
    wanted = r"--stft seen=\[0,BINS\] --chunk frames=FRAMES$"
    refused(free, tmp_path, wanted, UsageError)
    said = (*STFT, f"seen=[0,{BINS}]")
    bundle = import_mdx_net(free, tmp_path / "free.tfx", stft=said, chunk=(f"frames={FRAMES}",), stems=STEMS)
    assert bundle.spec.input_shape(1) == (1, 4, FRAMES, BINS)


def test_an_export_of_tfx_is_used_as_it_is(imported: Bundle, tmp_path: Path) -> None:
    path = imported.file("model.onnx")
    refused(path, tmp_path, "is an export of tfx, .*: use it as it is", UsageError)


def test_what_is_there_is_replaced_by_force_alone(graph: Path, imported: Bundle) -> None:
    with pytest.raises(OutputExists, match="--force"):
        import_mdx_net(graph, imported.path, stft=STFT, stems=STEMS)
    again = import_mdx_net(graph, imported.path, stft=STFT, stems=("bass",), force=True)
    assert again.spec.stems == ("bass",)


def test_nodes_are_named_as_ours_are(tmp_path: Path) -> None:
    taken = Counter[str]()

    def torchs(model: Any) -> None:
        for node in model.graph.node:
            count = f"_{taken[node.op_type]}" if taken[node.op_type] else ""  # each is named once
            taken[node.op_type] += 1
            node.name = f"/layers.0/layers.0.1/deep/{node.op_type}{count}"

    path = write_mdx(tmp_path / "net.onnx", bad=torchs)
    bundle = import_mdx_net(path, tmp_path / "net.tfx", stft=STFT, stems=STEMS)
    names = [node.name for node in onnx.load(bundle.file("model.onnx")).graph.node]
    assert {"layers.0.1.deep/Conv", "layers.0.1.deep/Conv_2", "takes/Mul", "gives/Unsqueeze"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_exports_are_made_of_the_graph(precision: str, imported: Bundle, tfx: Tfx, tmp_path: Path) -> None:
    done = tfx("export", imported.path, "--precision", precision, "-o", tmp_path / "copy.tfx")
    assert (done.code, "against the published graph" in done.out) == (0, True)
    copy = Bundle.open(tmp_path / "copy.tfx")
    assert copy.digest == imported.digest
    assert copy.file(GRAPH).read_bytes() == imported.file(GRAPH).read_bytes()
    name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
    made = onnx.load(copy.file(name))
    assert made.opset_import[0].version == (22 if precision == "bf16" else 13)
    if precision != "bf16":  # ONNX Runtime's CPU provider has no bfloat16
        with Separator(open_model(str(copy.path)), backend="ort") as separator:
            assert np.isfinite(separator.separate(mixture(1000))).all()


def test_an_opset_of_ones_own(imported: Bundle, tfx: Tfx, tmp_path: Path) -> None:
    assert tfx("export", imported.path, "--opset", 18, "-o", tmp_path / "new.onnx").code == 0
    assert onnx.load(tmp_path / "new.onnx").opset_import[0].version == 18
    done = tfx("export", imported.path, "--opset", 11, "-o", tmp_path / "old.onnx")
    assert (done.code, "opset 11 is not one of 13 to 25: use 13" in done.err) == (2, True)


def test_parity_is_measured_against_the_published_bytes(imported: Bundle, song: Path, tfx: Tfx) -> None:
    model = open_model(str(imported.path))
    assert usual_reference(model) == "graph"
    assert "published.onnx, as it was published" in load_reference("graph")(model).description
    done = tfx("parity", imported.path, "--backend", "ort", "--audio", song, "--quick")
    assert done.code == 0
    assert "against published.onnx, as it was published, in onnxruntime" in done.out
    assert tfx("separate", song, "-m", imported.path, "-o", song.parent / "out", "--require-parity").code == 0


def test_parity_sees_a_graph_that_computes_something_else(imported: Bundle, song: Path, tfx: Tfx) -> None:
    path = imported.file("model.onnx")
    made = onnx.load(path)
    tensor = next(one for one in made.graph.initializer if one.name == "seen_bins")
    mask = np.ones(BINS, np.float32)  # the lowest bins are heard
    tensor.raw_data = mask.tobytes()
    imported.add("model.onnx", made.SerializeToString(), kind="onnx", precision="fp32")
    done = tfx("parity", imported.path, "--backend", "ort", "--audio", song, "--quick")
    assert (done.code, "vocals" in done.err) == (3, True)


def test_the_reference_of_one_pass_takes_one_chunk(imported: Bundle) -> None:
    reference = load_reference("graph")(open_model(str(imported.path)))
    samples = imported.spec.chunk_samples
    assert reference.separate_once(mixture(samples)).shape == (2, 2, samples)
    with pytest.raises(UsageError, match="in one pass, the published graph takes 480"):
        reference.separate_once(mixture(samples + 1))


WITHOUT_WEIGHTS: dict[str, tuple[tuple[object, ...], str, int]] = {
    "separate by torch": (
        ("separate", "SONG", "-m", "M", "--backend", "torch", "-o", "O"),
        "use --backend ort",
        4,
    ),
    "TorchScript": (("export", "M", "--format", "torchscript"), "use --format onnx", 2),
    "compiled code": (("export", "M", "--format", "aotinductor"), "use --format onnx", 2),
    "reference torch": (("parity", "M", "--reference", "torch", "--quick"), "use --reference graph", 2),
    "reference float64": (("parity", "M", "--reference", "float64", "--quick"), "use --reference graph", 2),
    "seams": (("parity", "seams", "M"), "compares the graph as a whole", 2),
    "localize": (("parity", "localize", "M", "--backend", "ort"), "compares the graph as a whole", 2),
    "attention": (("inspect", "M", "--attention", "SONG"), "compares the graph as a whole", 2),
}


@pytest.mark.parametrize("case", WITHOUT_WEIGHTS)
def test_what_needs_weights_is_refused_in_one_line(
    case: str,
    imported: Bundle,
    song: Path,
    tfx: Tfx,
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(song.parent)
    arguments, message, code = WITHOUT_WEIGHTS[case]
    places = {"M": imported.path, "SONG": song, "O": song.parent / "out"}
    before = contents(imported.path)
    done = tfx(*(places.get(str(one), one) for one in arguments))
    (line,) = (one for one in done.err.splitlines() if one.startswith("tfx: "))
    assert (done.code, message in line) == (code, True)
    assert "is a published graph without weights" in line
    assert "Traceback" not in done.err
    assert contents(imported.path) == before


def test_training_does_not_begin_with_a_graph(imported: Bundle) -> None:
    import torch

    from tfswa.train.config import ModelConfig
    from tfswa.train.tasks import initialize

    with pytest.raises(ConfigError, match="is a published graph without weights to begin from"):
        initialize(torch.nn.Linear(2, 2), ModelConfig(init=str(imported.path)))


def test_the_graph_reference_is_for_graphs(network_bundle: Bundle) -> None:
    model = open_model(str(network_bundle.path))
    assert usual_reference(model) == "torch"
    with pytest.raises(UsageError, match="holds weights and no published graph: use --reference torch"):
        load_reference("graph")(model)


def test_a_chunk_is_computed_again_by_the_graph(imported: Bundle) -> None:
    from tfswa.runtime.stream.fallback import Fallback

    fallback = Fallback(open_model(str(imported.path)))
    assert fallback.backend == "ort"
    fallback.close()
    (imported.path / "model.onnx").unlink()
    manifest = Bundle.open(imported.path)
    manifest._own.pop("model.onnx")
    from tfswa.runtime.model.opening import BundleModel

    with pytest.raises(BackendUnavailable, match="it is a published graph without weights, and it holds no"):
        Fallback(BundleModel("mdx", manifest))


def test_a_bundle_holds_weights_or_a_graph(imported: Bundle, network_bundle: Bundle) -> None:
    imported.add(WEIGHTS, b"weights", kind="weights")
    with pytest.raises(BundleError, match=r"lists no published.onnx, or model.safetensors too"):
        Bundle.open(imported.path)
    network_bundle.add(GRAPH, b"graph", kind="published")
    with pytest.raises(BundleError, match=r"lists no model.safetensors, or published.onnx too"):
        Bundle.open(network_bundle.path)


def test_inspect_and_models_say_that_there_is_no_family(
    imported: Bundle, graph: Path, tfx: Tfx, private_cache: Path
) -> None:
    done = tfx("inspect", imported.path)
    assert (done.code, "family: none, a published graph" in done.out) == (0, True)
    from tfswa.runtime.model.opening import named_model

    place = named_model("voice")
    place.parent.mkdir(parents=True)
    import_mdx_net(graph, place, stft=STFT, stems=STEMS)
    assert "voice        published graph, " in tfx("models").out


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_built_of_it(precision: Any, imported: Bundle, tfx: Tfx) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    if precision != "fp32":
        assert tfx("export", imported.path, "--precision", precision).code == 0
    assert tfx("build-engine", imported.path, "--flavor", "rtx", "--precision", precision).code == 0
    kinds = [entry.kind for entry in Bundle.open(imported.path).files.values()]
    assert {"engine", "answer"} <= set(kinds)


def test_openvino_runs_it(imported: Bundle) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    sound = mixture(1500)
    assert snr_db(separated(imported, sound), separated(imported, sound, "openvino")) > LEAST_DB


def test_it_can_be_calibrated(imported: Bundle, song: Path, tfx: Tfx) -> None:
    songs = song.parent / "songs"
    songs.mkdir()
    for number in range(4):
        soundfile.write(
            songs / f"{number}.wav", np.roll(mixture(2 * RATE), 99 * number).T, RATE, subtype="FLOAT"
        )
    assert (
        tfx("calibrate", imported.path, "--audio", songs, "--chunks", 4, "--method", "percentile").code == 0
    )
    assert tfx("parity", imported.path, "--backend", "ort:int8", "--audio", song, "--quick").code == 0
