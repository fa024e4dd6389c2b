"""The embedded model on real audio: what ONNX Runtime and TorchScript lose against eager torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.gates import Gate, Gates, default_gates
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.compare import certify, compare
from tfswa.runtime.parity.corpus import Item, adversaries
from tfswa.runtime.parity.evidence import read_evidence, store
from tfswa.runtime.parity.judge import judge
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file

pytest.importorskip("torch", reason="torch is not installed: there is no reference")

# float32 on both sides leaves rounding alone, 120 dB and more; this is what is promised of the demo.
PROMISED = Gates("README", {"fp32": Gate(90.0, 0.001, 1e-6, 1e-4), "fp16": Gate(45.0, 0.02, 1e-3)})
IMPOSSIBLE = Gates("nothing", {"fp32": Gate(500.0, 0.0, 0.0)})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """The embedded model, with what is added to it kept out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield open_model("demo")


@pytest.fixture(scope="module")
def song(demo: BundleModel) -> Item:
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed")
    return Item.of(load_stem_file(path, demo.spec))


@pytest.mark.slow
def test_artifacts_of_the_demo_lose_nothing(demo: BundleModel, song: Item) -> None:
    from tfswa.export.torchscript import export_torchscript

    export_torchscript(demo)
    runs = [Candidate("ort"), Candidate("torchscript"), Candidate("openvino")]
    missing: dict[str, str] = {}
    found = certify(demo, [song, *adversaries(demo.spec)], runs, missing=missing)
    assert [certificate.backend for certificate in found][:2] == ["ort", "torchscript"]
    assert all("openvino" in reason for reason in missing.values())
    for certificate in found:
        assert judge(certificate, PROMISED) == []
        assert {row.stem for row in certificate.quality} == {"vocals", "accompaniment"}
        assert all(row.drift_db is not None for row in certificate.quality)
    store(demo, found)
    again = read_evidence(demo)
    for one, two in zip(found, again, strict=True):
        for gates in (PROMISED, default_gates(), IMPOSSIBLE):
            assert judge(one, gates) == judge(two, gates)
        assert judge(two, IMPOSSIBLE) != []


@pytest.mark.slow
def test_half_precision_loses_next_to_nothing(demo: BundleModel, song: Item) -> None:
    """ONNX Runtime's CPU provider rounds the weights alone; every other rounding is in ``snr_db``."""
    from tfswa.export.onnx import export_onnx

    made = export_onnx(demo, precision="fp16")
    assert min(made.snr_db.values()) >= PROMISED.of("fp16").snr_db
    found = compare(demo, [song], backend="ort", options=BackendOptions(precision="fp16"), axes=False)
    assert judge(found, PROMISED) == []
    assert all(row.drift_db is not None for row in found.quality)


@pytest.mark.slow
def test_a_graph_with_swapped_stems_fails(demo: BundleModel, song: Item, tmp_path: Path) -> None:
    """The fault is planted in the ONNX file itself, behind the back of the export's own comparison."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(demo.file("model.onnx"))
    output = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = ["unswapped" if name == output else name for name in node.output]
    order = onnx.helper.make_tensor("order", onnx.TensorProto.INT64, [2], [1, 0])
    graph.graph.initializer.append(order)
    graph.graph.node.append(onnx.helper.make_node("Gather", ["unswapped", "order"], [output], axis=1))
    bundle = Bundle.create(tmp_path / "swapped.tfx", demo.spec, demo.bundle.weights(), precision="fp16")
    bundle.add("model.onnx", lambda path: onnx.save(graph, path), kind="onnx", precision="fp32")
    found = compare(BundleModel("swapped", bundle), [song], backend="ort", axes=False)
    assert {breach.level for breach in judge(found, default_gates())} == {"graph", "signal", "quality"}
    assert all(row.snr_db is not None and row.snr_db < 20 for row in found.signal)
