"""The graphs of the transform at work around a network: in ONNX Runtime, the way that GPUs are fed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Tfx

pytest.importorskip("onnx", reason="onnx is not installed: export needs it")
pytest.importorskip("torch", reason="torch is not installed: export needs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graphs")

from tfswa.export.onnx import export_onnx  # noqa: E402
from tfswa.export.transform import LEAST_DB, export_transform  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends import ort as ort_module  # noqa: E402
from tfswa.runtime.errors import BundleError  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.bundle import Bundle  # noqa: E402
from tfswa.runtime.model.opening import open_model  # noqa: E402
from tfswa.runtime.songs.synthetic import synthetic_song  # noqa: E402
from tfswa.runtime.stream.separator import Separator  # noqa: E402

ON_GPU = BackendOptions(device="cuda")
PLACE = ("CPUExecutionProvider", {"arena_extend_strategy": "kNextPowerOfTwo"})


@pytest.fixture
def path(plain_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.tfx"
    shutil.copytree(plain_bundle, path)
    export_onnx(open_model(path))
    return path


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's memory and kernels in the place of a GPU's; what is bound and handed on is the same."""
    monkeypatch.setattr(ort_module, "_providers", lambda *_: ([PLACE], ("cpu", 0)))
    monkeypatch.setattr(ort_module, "_CPU", PLACE)
    monkeypatch.setitem(ort_module._GPU, "cuda", PLACE[0])


@pytest.mark.usefixtures("as_cuda")
def test_a_song_through_the_graphs_is_the_song_through_the_host(path: Path) -> None:
    spec = open_model(path).spec
    song = synthetic_song(spec, 5.3 * spec.chunk_samples / spec.stft.sample_rate).mixture
    with Separator(path, backend="ort", options=ON_GPU, batch=2) as here:
        assert here.description.endswith("fp32 on cuda, STFT on the CPU")
        assert set(here.session.versions) == {"onnxruntime"}
        right = here.separate(song)
    export_transform(open_model(path))
    with Separator(path, backend="ort", options=ON_GPU, batch=2) as there:
        assert there.description.endswith("fp32 on cuda, STFT by encode.onnx and decode.onnx on cuda")
        files = Bundle.open(path).files
        assert there.session.versions["decode.onnx"] == files["decode.onnx"].sha256[:12]
        found = there.separate(song)
        again = there.with_batch(1).separate(song)
    for stem, other in zip(right, found, strict=True):
        assert (
            snr_db(stem, other) or np.inf
        ) >= LEAST_DB - 20  # the network lifts what little they differ by
    for stem, other in zip(found, again, strict=True):
        assert (snr_db(stem, other) or np.inf) >= LEAST_DB - 20
    with Separator(path, backend="ort", options=ON_GPU, wiener=1) as filtered:
        assert filtered.description.endswith("STFT on the CPU")


@pytest.mark.usefixtures("as_cuda")
def test_a_transform_of_another_model_is_refused(path: Path) -> None:
    bundle = Bundle.open(path)
    spec = bundle.spec
    other = dataclasses.replace(spec, chunk=dataclasses.replace(spec.chunk, frames=2 * spec.chunk.frames))
    from tfswa.export.transform import decode_graph, encode_graph

    for name, graph in (("encode.onnx", encode_graph(other)), ("decode.onnx", decode_graph(other))):
        bundle.add(name, graph.SerializeToString(), kind="transform", precision="fp32")
    with pytest.raises(BundleError, match=r"encode\.onnx has shape .* of samples, its spec says \[B, 2, "):
        Separator(path, backend="ort", options=ON_GPU)


@pytest.mark.usefixtures("as_cuda")
def test_a_damaged_addition_to_a_sealed_bundle_is_left_out(plain_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.tfx"
    shutil.copytree(plain_bundle, path)
    Bundle.open(path).seal()
    export_onnx(open_model(path))
    export_transform(open_model(path))
    with Separator(path, backend="ort", options=ON_GPU) as there:
        assert there.transforms_there
    (Bundle.open(path).home / "encode.onnx").write_bytes(b"damaged")
    with Separator(path, backend="ort", options=ON_GPU) as here:
        assert not here.transforms_there


@pytest.mark.usefixtures("as_cuda")
def test_without_memory_for_the_graphs_the_cpu_transforms(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    export_transform(open_model(path))
    made = onnxruntime.InferenceSession

    def full(file: str, *given: object, **more: object) -> object:
        if file.endswith("decode.onnx"):
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return made(file, *given, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with Separator(path, backend="ort", options=ON_GPU) as here:
        assert here.description.endswith("STFT on the CPU")
        assert set(here.session.versions) == {"onnxruntime"}
    assert "the CPU transforms: " in caplog.text


def test_the_cpu_transforms_by_itself(path: Path) -> None:
    """There the Fourier transform of the host is many times faster."""
    export_transform(open_model(path))
    with Separator(path, backend="ort") as separator:
        assert not separator.transforms_there
        assert separator.description == separator.session.description


def test_full_float32_is_asked_of_cuda(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_transform(open_model(path))
    asked = []
    made = onnxruntime.InferenceSession

    def watched(file: str, settings: object, providers: list[object], **more: object) -> object:
        asked.append((Path(file).name, providers))
        return made(file, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort_module, "_check_provider", lambda *_: None)
    ort_module.OrtSession(open_model(path), BackendOptions(device="cuda:1")).close()
    full = [("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"})]
    assert asked == [(name, full) for name in ("model.onnx", "encode.onnx", "decode.onnx")]


def test_engines_are_built_along_with_the_networks(tfx: Tfx, path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it builds engines")
    import json

    export_transform(open_model(path))
    done = tfx("build-engine", path, "--flavor", "rtx", "--batch", "1,2,3", "--json")
    assert done.code == 0, done.err
    built = json.loads(done.out)
    assert len(built["transforms"]) == 2
    files = Bundle.open(path).files
    kinds = {name: entry.kind for name, entry in files.items() if name.endswith(".engine")}
    assert sorted(kinds.values()) == ["engine", "transform engine", "transform engine"]
    for graph, file in zip(("encode.onnx", "decode.onnx"), built["transforms"], strict=True):
        name = f"engines/{Path(file).name}"
        assert files[name].details["onnx_sha256"] == files[graph].sha256
        assert files[name].details["batch"] == [1, 2, 3]
        assert files[name].precision == "fp32"
        assert name.replace(".engine", ".npy") in files
    again = tfx("build-engine", path, "--flavor", "rtx", "--batch", "1,2,3")
    assert "in the bundle already, not built again" in again.out
    assert again.out.count("of the transform, fp32") == 2
    copy = tfx("export", path, "--force", "-o", path.with_name("copy.tfx"))
    assert copy.code == 0, copy.err
    kept = {entry.kind for entry in Bundle.open(path.with_name("copy.tfx")).files.values()}
    assert kept >= {"transform", "transform engine"}
    assert "engine" not in kept


def test_a_network_of_float16_ends_gets_none(tfx: Tfx, path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it builds engines")
    assert tfx("export", path, "--precision", "fp16", "--io", "fp16").code == 0
    export_transform(open_model(path))
    done = tfx("build-engine", path, "--flavor", "rtx", "--precision", "fp16")
    assert done.code == 0, done.err
    assert "of the transform" not in done.out
