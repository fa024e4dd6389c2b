"""Localize: faults that are planted in a graph are found and named, and a sound graph has none."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.backends.torchscript import jit_allowed
from tfswa.runtime.cli import main
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import METADATA, BundleModel, embed, open_model, trust_code
from tfswa.runtime.parity.instrument import open_instrument
from tfswa.runtime.parity.localize import Located, Step, localize, worst_first
from tfswa.runtime.parity.reference import eager_network
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.transform import Stft

torch = pytest.importorskip("torch", reason="torch is not installed: networks need it")
onnx = pytest.importorskip("onnx", reason="onnx is not installed: graphs are looked into with it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: export to ONNX needs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: graphs run in it")


from tfswa.export import instruments  # noqa: E402
from tfswa.export.instruments import OnnxInstrument  # noqa: E402
from tfswa.export.onnx import _checked, build_graph  # noqa: E402
from tfswa.export.precision import typed  # noqa: E402
from tfswa.train.backend import load_network  # noqa: E402

SOUND_FP16_DB = 45.0  # what every module of a tiny network reaches at least when all of it is rounded


@pytest.fixture(scope="session")
def fresh_graphs(exported_bundle: Path) -> dict[str, Any]:
    """Exports by opset and sum of weights; what the shared bundle holds need not be made again."""
    network = load_network(open_model(exported_bundle))
    return {_key(network, 20): onnx.load(exported_bundle / "model.onnx")}


@pytest.fixture(autouse=True)
def one_export(monkeypatch: pytest.MonkeyPatch, fresh_graphs: dict[str, Any]) -> None:
    """Export a network afresh once, however often it is asked for: that takes longer than all the rest."""

    def build(network: Any, spec: Any, opset: int) -> Any:
        key = _key(network, opset)
        if key not in fresh_graphs:
            fresh_graphs[key] = build_graph(network, spec, opset)
        return fresh_graphs[key]

    monkeypatch.setattr(instruments, "build_graph", build)


def _key(network: Any, opset: int) -> str:
    return f"{opset} {sum(p.double().sum().item() for p in network.parameters())}"


def planes_of(model: BundleModel) -> NDArray[np.float32]:
    spec = model.spec
    chunk = synthetic_song(spec, seconds=1.0).mixture[:, : spec.chunk_samples]
    return Stft(spec.stft).planes(chunk[None])


def find(model: BundleModel, backend: str = "ort", precision: str = "fp32", **options: Any) -> Located:
    instrument = open_instrument(model, backend, precision)
    return localize(instrument, eager_network(model), planes_of(model), **options)


def perturb(model: BundleModel, module: str, factor: float = 1.5) -> None:
    """Change the largest weight of the first layer of a module in model.onnx."""
    path = model.bundle.path / "model.onnx"
    proto = onnx.load(path)
    node = next(
        n
        for n in proto.graph.node
        if n.name.rpartition("/")[0] == module and n.op_type in ("Conv", "MatMul", "Gemm")
    )
    tensor = next(t for t in proto.graph.initializer if t.name == node.input[1])
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight.flat[np.abs(weight).argmax()] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    model.bundle.add("model.onnx", lambda to: onnx.save(proto, to), kind="onnx", precision="fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_sound_graph_has_no_culprit(low: BundleModel, precision: str) -> None:
    found = find(low, precision=precision)
    assert found.culprit is found.operator is None
    assert found.skipped == []
    assert found.steps[-1].module == "network"
    assert all(step.snr_db >= SOUND_FP16_DB for step in found.steps) or precision == "bf16"


@pytest.mark.parametrize(
    ("module", "op"),
    [("encoder.0.conv.second", "Conv"), ("decoder.0.blocks.0.window_mlp.expand", "MatMul"), ("head", "Conv")],
)
def test_one_perturbed_weight_is_found(exported: BundleModel, module: str, op: str) -> None:
    perturb(exported, module)
    found = find(exported)
    assert found.culprit is not None
    assert found.operator is not None
    assert (found.culprit.module, found.operator.op) == (module, op)
    assert found.operator.node == f"{module}/{op}"
    assert found.culprit.before_db == found.ceiling_db > found.culprit.snr_db + found.threshold_db
    # What comes before is sound, what comes after is fed by it and is not blamed.
    at = found.steps.index(found.culprit)
    assert all(step.loss_db <= found.threshold_db for step in found.steps[:at])


def test_a_weight_that_no_module_call_sees_is_found_by_its_operator(exported: BundleModel) -> None:
    # The projections of an attention are cut out of one weight, so that its module is never called.
    perturb(exported, "encoder.1.blocks.0.time")
    found = find(exported)
    assert found.culprit is not None
    assert found.operator is not None
    assert found.culprit.module == "encoder.1.blocks.0.time.out"
    assert found.operator.node == "encoder.1.blocks.0.time/MatMul"
    assert len(found.within) > 5


def test_memory_is_bounded_by_portions(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    perturb(exported, "skip.0")
    asked: list[int] = []
    run = OnnxInstrument.run

    def counting(self: Any, planes: Any, values: Any) -> Any:
        asked.append(len(values))
        return run(self, planes, values)

    monkeypatch.setattr(OnnxInstrument, "run", counting)
    whole = find(exported)
    once = len(asked)
    parts = find(exported, budget_bytes=1 << 18)
    assert whole == parts
    assert len(asked) - once > once


@pytest.fixture
def overflowing(plain: BundleModel, tmp_path: Path) -> BundleModel:
    """Queries and keys so large that float16 cannot hold their products; float32 can."""
    weights = plain.bundle.weights()
    for name in ("query", "key_value"):
        key = f"encoder.1.blocks.0.time.{name}.weight"
        weights[key] = weights[key].astype(np.float32) * np.float32(4000.0)
    path = tmp_path / "loud.tfx"
    bundle = Bundle.create(path, plain.spec, weights)
    model = open_model(path)
    assert isinstance(model, BundleModel)
    graph = typed(instruments.build_graph(load_network(model), model.spec, 20), "fp16")
    graph = _checked(graph, model.spec, 20)
    graph.metadata_props.add(key=METADATA, value=embed(model.spec, "fp16", bundle.digest))
    model.bundle.add("model.fp16.onnx", lambda to: onnx.save(graph, to), kind="onnx", precision="fp16")
    return model


def test_a_softmax_that_overflows_in_fp16_is_found(overflowing: BundleModel) -> None:
    found = find(overflowing, precision="fp16")
    assert found.culprit is not None
    assert found.operator is not None
    assert found.culprit.module == "encoder.1.blocks.0.time.out"
    assert not np.isfinite(found.culprit.snr_db)
    # The scores that the softmax takes are the first that are not finite.
    assert found.operator.module == "encoder.1.blocks.0.time"
    assert found.operator.largest == np.inf
    assert found.operator.reference > 65504
    softmax = next(step for step in found.within if step.op == "Softmax")
    assert softmax.before_db == -np.inf


def test_a_perturbed_trace_is_found(exported: BundleModel) -> None:
    assert find(exported, "torchscript").culprit is None
    path = exported.bundle.path / "model.ts"
    with jit_allowed():
        loaded: Any = torch.jit.load(str(path))
        nodes = [n for n in loaded.graph.nodes() if n.kind() == "aten::_convolution"]
        weight = list(nodes[3].inputs())[1].toIValue()  # shared with the module's own
        weight.view(-1)[weight.abs().argmax()] *= 1.5
        exported.bundle.add(
            "model.ts", lambda to: torch.jit.save(loaded, str(to)), kind="torchscript", precision="fp32"
        )
    trust_code(exported)
    found = find(exported, "torchscript")
    assert found.culprit is not None
    convolutions = [step.module for step in found.steps if step.op == "_convolution"]
    assert found.culprit.module == convolutions[3]
    assert found.culprit.node == f"{convolutions[3]}/_convolution"


def test_a_trace_of_another_network_is_refused(exported: BundleModel, plain: BundleModel) -> None:
    with jit_allowed():
        traced: Any = torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
        exported.bundle.add(
            "model.ts", lambda to: torch.jit.save(traced, str(to)), kind="torchscript", precision="fp32"
        )
    trust_code(exported)
    with pytest.raises(BundleError, match="export it again"):
        open_instrument(exported, "torchscript", "fp32")


def nonsense(path: Path) -> None:
    path.write_bytes(b"\xff\xff")


def test_what_cannot_be_looked_into_is_refused(exported: BundleModel) -> None:
    with pytest.raises(UsageError, match="not into openvino"):
        open_instrument(exported, "openvino", "fp32")
    with pytest.raises(UsageError, match="unknown precision"):
        open_instrument(exported, "ort", "int3")
    with pytest.raises(BackendUnavailable, match="no onnx artifact in fp16"):
        open_instrument(exported, "ort", "fp16")
    exported.bundle.add("model.onnx", b"\xff\xff", kind="onnx", precision="fp32")
    with pytest.raises(BundleError, match="is not an ONNX file"):
        open_instrument(exported, "ort", "fp32")


def test_names_that_are_not_the_networks_are_refused(exported: BundleModel) -> None:
    proto = onnx.load(exported.bundle.path / "model.onnx")
    for number, node in enumerate(proto.graph.node):
        node.name = f"other.{number}/{node.op_type}"
    exported.bundle.add("model.onnx", lambda to: onnx.save(proto, to), kind="onnx", precision="fp32")
    with pytest.raises(UsageError, match="names no module of the network"):
        find(exported)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``run(*arguments)``: exit code, stdout and stderr of ``tfx parity``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tfx", "parity", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (int(left.value.code or 0), *capsys.readouterr())

    return call


def test_the_command_names_the_culprit(
    exported: BundleModel, run: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pictures need it")
    path, picture = exported.bundle.path, tmp_path / "depth.png"
    code, out, _ = run("localize", path, "--backend", "ort", "--picture", picture)
    assert code == 0
    assert "no layer loses more than 10 dB" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    perturb(exported, "encoder.1.blocks.0.time")
    code, out, err = run("localize", path, "--backend", "ort", "--json")
    assert code == 3
    assert err.splitlines()[-1].startswith(
        "tfx: model.onnx first loses more than 10 dB in encoder.1.blocks.0.time"
    )
    assert "node encoder.1.blocks.0.time/MatMul:" in err
    printed = json.loads(out)
    assert printed["operator"]["node"] == "encoder.1.blocks.0.time/MatMul"
    code, out, _ = run("localize", path, "--backend", "ort", "--threshold-db", "200")
    assert code == 0
    code, out, _ = run("localize", path, "--backend", "ort", "--picture", tmp_path / "other.png")
    assert code == 3
    assert "culprit: " in out
    assert "against a fresh export" in out


def test_the_command_refuses_in_one_line(
    exported: BundleModel, run: Callable[..., Any], tmp_path: Path
) -> None:
    path = exported.bundle.path
    shutil.copy(path / "model.onnx", tmp_path / "alone.onnx")
    for code, why, arguments in (
        (2, "needs the bundle", ("localize", tmp_path / "alone.onnx", "--backend", "ort")),
        (4, "tfx export", ("localize", path, "--backend", "ort:fp16")),
        (4, "POLYGRAPHY_USE_TENSORRT_RTX=1): polygraphy run", ("localize", path, "--backend", "trt")),
    ):
        left, out, err = run(*arguments)
        assert (left, out) == (code, "")
        assert why in err
        assert len(err.splitlines()) == 1


def test_the_worst_come_first() -> None:
    steps = [Step("a", "a/Conv", "Conv", 100.0, snr, 1.0, 1.0) for snr in (90.0, 20.0, 120.0, -np.inf)]
    assert [step.snr_db for step in worst_first(steps, 3)] == [-np.inf, 20.0, 90.0]
    assert Step("a", "a/Conv", "Conv", -np.inf, -np.inf, 1.0, 1.0).loss_db == 0.0
