"""The embedded model on real audio: what ONNX Runtime and TorchScript lose against eager torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.bundle import Bundle
from tfswa.runtime.models import BundleModel, open_model
from tfswa.runtime.parity import Gate, compare
from tfswa.runtime.truth import Song, example_stem_file, load_stem_file

pytest.importorskip("torch", reason="torch is not installed: there is no reference")

# float32 on both sides leaves rounding alone, 120 dB and more; this is what is promised of the demo.
GATE = Gate(snr_db=90.0, drift_db=0.001)
HALF = Gate(snr_db=45.0, drift_db=0.02)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """The embedded model, with what is added to it kept out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield open_model("demo")


@pytest.fixture(scope="module")
def songs(demo: BundleModel) -> Sequence[Song]:
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed")
    return [load_stem_file(path, demo.spec)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ort", "torchscript"])
def test_artifacts_of_the_demo_lose_nothing(demo: BundleModel, songs: Sequence[Song], backend: str) -> None:
    if backend == "torchscript":
        from tfswa.export.torchscript import export_torchscript

        export_torchscript(demo)
    report = compare(demo, songs, backend=backend, gate=GATE)
    assert report.passed, report.to_dict()
    assert {stem.stem for stem in report.stems} == {"vocals", "accompaniment"}
    assert all(stem.drift_db is not None for stem in report.stems)


@pytest.mark.slow
def test_half_precision_loses_next_to_nothing(demo: BundleModel, songs: Sequence[Song]) -> None:
    """ONNX Runtime's CPU provider rounds the weights alone; every other rounding is in ``snr_db``."""
    from tfswa.export.onnx import export_onnx

    made = export_onnx(demo, precision="fp16")
    assert min(made.snr_db.values()) >= HALF.snr_db
    report = compare(demo, songs, backend="ort", options=BackendOptions(precision="fp16"), gate=HALF)
    assert report.passed, report.to_dict()
    assert all(stem.drift_db is not None for stem in report.stems)


@pytest.mark.slow
def test_a_graph_with_swapped_stems_fails(demo: BundleModel, songs: Sequence[Song], tmp_path: Path) -> None:
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
    report = compare(BundleModel("swapped", bundle), songs, backend="ort")
    assert not report.passed
    assert all(stem.snr_db is not None and stem.snr_db < 20 for stem in report.stems)
