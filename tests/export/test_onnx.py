"""The ONNX graph: its contract, what it carries, that it computes what eager computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planes import infer_planes

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")
onnx = pytest.importorskip("onnx", reason="onnx is not installed: export needs it")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: export needs it")

from onnx import TensorProto, numpy_helper  # noqa: E402
from torch.nn import functional  # noqa: E402

from tfswa.export.onnx import build_graph, export_onnx  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends.ort import OrtSession  # noqa: E402
from tfswa.runtime.errors import ExportError, OutputExists, UsageError  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model  # noqa: E402
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec  # noqa: E402
from tfswa.train.backend import TorchSession, new_bundle  # noqa: E402
from tfswa.train.blocks.norm import GroupNorm  # noqa: E402

RUNTIME_GATE_DB = 90.0  # random weights, no training: rounding alone, 115 dB and better


@pytest.fixture(scope="module")
def graph(exported_bundle: Path) -> Any:
    return onnx.load(exported_bundle / "model.onnx")


@pytest.fixture
def tiny_shapes() -> ModelSpec:
    """``[B, 2, 8, 16] -> [B, 1, 2, 8, 16]``, for networks of a few operations."""
    stft, chunk = StftSpec(n_fft=32, hop=16), ChunkSpec(frames=8, context=0, fade=1, multiple=8)
    return ModelSpec(family="toy", stems=("all",), channels=1, stft=stft, chunk=chunk)


def run(graph: Any, mixture: Any) -> Any:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"mixture": mixture})[0]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnxruntime_gives_what_eager_gives(exported: BundleModel, batch: int) -> None:
    planes = np.random.default_rng(batch).standard_normal(exported.spec.input_shape(batch), np.float32)
    eager = infer_planes(TorchSession(exported, BackendOptions()), planes)
    out = infer_planes(OrtSession(exported, BackendOptions()), planes)
    assert out.shape == exported.spec.output_shape(batch)
    value = snr_db(eager, out)
    assert value is not None
    assert value >= RUNTIME_GATE_DB


def test_near_silence_keeps_its_small_constants(exported: BundleModel) -> None:
    # sqrt(x + 1e-8): torch's own optimizer takes 1e-8 for 0, and is 20 dB off here.
    planes = np.random.default_rng(0).standard_normal(exported.spec.input_shape(1), np.float32) * 1e-5
    planes = planes.astype(np.float32)
    eager = infer_planes(TorchSession(exported, BackendOptions()), planes)
    value = snr_db(eager, infer_planes(OrtSession(exported, BackendOptions()), planes))
    assert value is not None
    assert value >= RUNTIME_GATE_DB


def test_contract(graph: Any, exported: BundleModel) -> None:
    spec = exported.spec
    (mixture,), (stems,) = graph.graph.input, graph.graph.output
    for value, name, shape in (
        (mixture, "mixture", spec.input_shape(1)),
        (stems, "stems", spec.output_shape(1)),
    ):
        assert value.name == name
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        assert tuple(dim.dim_value for dim in dims[1:]) == shape[1:]
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
    assert not graph.functions


def test_only_float32_and_whole_numbers(graph: Any) -> None:
    allowed = {TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL}
    assert {tensor.data_type for tensor in graph.graph.initializer} <= allowed
    assert {value.type.tensor_type.elem_type for value in graph.graph.value_info} <= allowed


def test_weights_are_those_of_the_bundle(graph: Any, exported: BundleModel) -> None:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    stored = exported.bundle.weights()
    assert stored["stem.weight"].dtype == np.float16
    np.testing.assert_array_equal(found["stem.weight"], stored["stem.weight"].astype(np.float32))


def test_nothing_is_stored_twice_or_written_out(graph: Any, exported: BundleModel) -> None:
    tensors = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    keys = [(tensor.dtype.str, tensor.shape, tensor.tobytes()) for tensor in tensors]
    assert len(keys) == len(set(keys))
    area, parameters = 16, sum(value.size for value in exported.bundle.weights().values())
    # Besides the weights: bias per window position, four masks, rotary tables. Not the planes of masks.
    assert sum(tensor.size for tensor in tensors) < parameters + 8 * area * area + 1024
    used = {name for node in graph.graph.node for name in node.input}
    assert {tensor.name for tensor in graph.graph.initializer} <= used


def test_no_shape_is_computed_at_run_time(graph: Any) -> None:
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"Shape", "Mod", "Identity", "Cast", "CastLike", "Constant", "Range", "Cos", "Sin"}


def test_one_file_without_the_makers_folders(graph: Any, exported_bundle: Path) -> None:
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert b".py" not in (exported_bundle / "model.onnx").read_bytes()
    assert graph.producer_name == "tfx"


def test_the_file_alone_is_a_model(exported: BundleModel) -> None:
    file = open_model(exported.bundle.path / "model.onnx")
    assert isinstance(file, FileModel)
    assert (file.kind, file.precision, file.spec) == ("onnx", "fp32", exported.spec)
    details = exported.bundle.files["model.onnx"].details
    assert details["opset"] == 20
    assert details["torch"] == torch.__version__
    assert details["compared_on"] == "generated music"
    assert all(value > 100 for value in details["snr_db"].values())


@pytest.mark.parametrize("opset", [17, 26])
def test_opsets_out_of_range_are_a_usage_error(plain: BundleModel, opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} is not one of 18 to 25: use 20"):
        export_onnx(plain, opset=opset)


def test_an_existing_artifact_needs_force(exported: BundleModel) -> None:
    with pytest.raises(OutputExists, match="--force"):
        export_onnx(exported)


@pytest.mark.parametrize("opset", [18, 25])
def test_attention_and_rolls_are_exact_in_every_opset(tiny_shapes: ModelSpec, opset: int) -> None:
    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))

        def forward(self, mixture: Any) -> Any:
            x = mixture.roll((3, -5), dims=(-2, 3)) * 1e-4 + 1e-8
            x = x * (1.0 + 2**-20)  # neither 0 nor 1: must stay
            x = functional.scaled_dot_product_attention(mixture, x * 1e4, mixture + x, self.mask, scale=0.5)
            return functional.gelu(x)[:, None]

    mixture = np.random.default_rng(4).standard_normal((3, 2, 8, 16), np.float32)
    graph = build_graph(Toy().eval(), tiny_shapes, opset)
    value = snr_db(Toy()(torch.from_numpy(mixture)).numpy(), run(graph, mixture))
    assert value is not None
    assert value >= 110.0


def test_group_norms_are_one_node_for_any_batch(tiny_shapes: ModelSpec) -> None:
    """Of channels with factors the node has them; of groups, and without factors, it has ones and zeros."""

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            self.weight = torch.nn.Parameter(torch.randn(2, generator=generator))
            self.bias = torch.nn.Parameter(torch.randn(2, generator=generator))

        def forward(self, mixture: Any) -> Any:
            x = torch.group_norm(mixture, 2, self.weight, self.bias)
            rows = x.transpose(1, 2).reshape(-1, 2, 16)  # the batch and the frames
            x = torch.group_norm(rows, 1, self.weight, self.bias, 1e-3).reshape(-1, 8, 2, 16).transpose(1, 2)
            return torch.group_norm(x, 1)[:, None]

    toy = Toy().eval()
    graph = build_graph(toy, tiny_shapes)
    norms = [node.op_type for node in graph.graph.node if "Norm" in node.op_type]
    assert norms == ["InstanceNormalization"] * 3
    for batch in (1, 3):
        mixture = 5 + np.random.default_rng(batch).standard_normal((batch, 2, 8, 16), np.float32)
        with torch.no_grad():
            right = toy(torch.from_numpy(mixture)).numpy()
        value = snr_db(right, run(graph, mixture))
        assert value is not None
        assert value >= 110.0


@pytest.mark.parametrize("groups", [1, 2])
def test_norms_of_many_numbers_are_as_exact_as_those_of_few(groups: int) -> None:
    """Of spectra, whose lowest bins are loud; one node for them would leave 80 to 100 dB."""
    stft, chunk = StftSpec(n_fft=1024, hop=512), ChunkSpec(frames=256, context=0, fade=1, multiple=8)
    spec = ModelSpec(family="toy", stems=("all",), channels=1, stft=stft, chunk=chunk)

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = GroupNorm(groups, 2)
            self.norm.weight.data, self.norm.bias.data = torch.tensor([0.5, -2.0]), torch.tensor([3.0, 0.1])

        def forward(self, mixture: Any) -> Any:
            return self.norm(functional.relu(mixture))[:, None]

    mixture = np.random.default_rng(1).standard_normal((2, 2, 256, 512), np.float32)
    mixture *= 300 * np.exp(-np.arange(512, dtype=np.float32) / 30)
    with torch.no_grad():
        right = Toy().double()(torch.from_numpy(mixture).double()).float().numpy()
    value = snr_db(right, run(build_graph(Toy().eval(), spec), mixture))
    assert value is not None
    assert value >= 120.0


def test_what_cannot_be_written_out_says_so(tiny_shapes: ModelSpec) -> None:
    class Causal(torch.nn.Module):
        def forward(self, mixture: Any) -> Any:
            return functional.scaled_dot_product_attention(mixture, mixture, mixture, is_causal=True)[:, None]

    with pytest.raises(ExportError, match=r"cannot export toy to opset 20: attention with dropout, causal"):
        build_graph(Causal().eval(), tiny_shapes)


def test_an_output_of_another_shape_is_refused(tiny_shapes: ModelSpec) -> None:
    class Short(torch.nn.Module):
        def forward(self, mixture: Any) -> Any:
            return mixture[:, None, :, 1:]

    with pytest.raises(ExportError, match=r"the graph of toy has .*'stems': \['batch', 1, 2, 7, 16\]"):
        build_graph(Short().eval(), tiny_shapes)


@pytest.mark.slow
def test_the_whole_lightweight_network(tmp_path: Path) -> None:
    new_bundle("tfswa_lite", tmp_path / "lite.tfx", precision="fp16")
    model = open_model(tmp_path / "lite.tfx")
    made = export_onnx(model)
    assert made.bytes < 7_000_000
    assert min(made.snr_db.values()) >= RUNTIME_GATE_DB
    planes = np.random.default_rng(0).standard_normal(model.spec.input_shape(2), np.float32)
    again = open_model(tmp_path / "lite.tfx")
    eager, session = TorchSession(again, BackendOptions()), OrtSession(again, BackendOptions())
    for batch in (1, 2):
        value = snr_db(infer_planes(eager, planes[:batch]), infer_planes(session, planes[:batch]))
        assert value is not None
        assert value >= RUNTIME_GATE_DB
