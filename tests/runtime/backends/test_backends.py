"""Backends: what is missing is said with its remedy, and nothing runs on another device than asked."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planes import infer_planes
from system_calls import alone

from tfswa.runtime import backends
from tfswa.runtime.backends import BackendOptions, backend_names, open_session
from tfswa.runtime.backends import ort as ort_module
from tfswa.runtime.backends.ort import OrtSession
from tfswa.runtime.backends.torchscript import TorchScriptSession, full_float32, torch_device
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.files import signals
from tfswa.runtime.model.bundle import WEIGHTS, Bundle
from tfswa.runtime.model.opening import BundleModel, Model, open_model, trust_code
from tfswa.runtime.model.spec import ModelSpec

CPU = BackendOptions()
CUDA = BackendOptions(device="cuda")


def planes(spec: ModelSpec, batch: int = 1, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(spec.input_shape(batch)).astype(np.float32)


def make_onnx(path: Path, spec: ModelSpec, stems: int, inputs: int = 1, half: bool = False) -> None:
    """A graph whose every stem is the mixture."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graphs that are run here")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    shape = ["B", *spec.input_shape(1)[1:]]
    names = ["mixture", *(f"spare{i}" for i in range(inputs - 1))]
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["mixture", "axis"], ["one"]),
            helper.make_node("Concat", ["one"] * stems, ["stems"], axis=1),
        ],
        "copies",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("stems", kind, ["B", stems, *shape[1:]])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture
def onnx_model(tiny_bundle: Bundle) -> Callable[..., BundleModel]:
    """``onnx_model(stems=2, ...)``: the tiny bundle with a graph of that many stems added."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def make(precision: str = "fp32", **graph: Any) -> BundleModel:
        tiny_bundle.add(
            "model.onnx",
            lambda path: make_onnx(path, tiny_bundle.spec, **{"stems": 2, **graph}),
            kind="onnx",
            precision=precision,
        )
        return BundleModel("tiny", tiny_bundle)

    return make


@pytest.fixture
def script_model(tiny_bundle: Bundle) -> BundleModel:
    """The tiny bundle with a TorchScript module whose stems are the mixture and its double."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Double(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.stack((x, 2 * x), dim=1)

    def write(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            shape = tiny_bundle.spec.input_shape(1)
            torch.jit.save(torch.jit.trace(Double(), torch.zeros(shape)), str(path))

    tiny_bundle.add("model.ts", write, kind="torchscript", precision="fp32")
    model = BundleModel("tiny", tiny_bundle)
    trust_code(model)
    return model


@pytest.fixture
def fake_ort(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An onnxruntime that says it has CUDA; what it starts is ``started``."""

    class Session:
        def __init__(self, path: str, settings: Any, providers: list[Any]):
            fake.asked = providers

        def get_providers(self) -> list[str]:
            return fake.started

    class SessionOptions(SimpleNamespace):
        def add_session_config_entry(self, key: str, value: str) -> None:
            fake.settings = {key: value}

    fake = SimpleNamespace(
        __version__="9.9",
        asked=None,
        started=["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=SessionOptions,
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


def hide(monkeypatch: pytest.MonkeyPatch, package: str, *ours: str) -> None:
    """Make a package impossible to import, and forget our modules that hold it already."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(ours)] if ours else []:
        monkeypatch.delitem(sys.modules, name)


def model_with(*artifacts: str) -> Model:
    """A model of which nothing is read before the library is looked for."""

    def artifact(kind: str, precision: str) -> tuple[str, str]:
        if kind not in artifacts:
            raise BackendUnavailable(f"holds no {kind}")
        return kind, "digest"

    model: Any = SimpleNamespace(
        name="m", spec=ModelSpec(family="x", stems=("a",)), bundle=None, artifact=artifact, file=Path
    )
    return model  # type: ignore[no-any-return]


def test_the_registered_backends_are_there() -> None:
    assert {"ort", "openvino", "torchscript", "torch"} <= set(backend_names())


def test_an_unknown_backend_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'onnx'.*auto.*ort.*torchscript") as error:
        open_session("onnx", model_with(), CPU)
    assert error.value.exit_code == 2


def test_a_third_party_backend_is_found(register: Callable[..., None]) -> None:
    class Theirs:
        def __init__(self, model: Model, options: BackendOptions):
            self.description = f"{model.name} on {options.device}"

    register(backends, "theirs", Theirs)
    assert "theirs" in backend_names()
    assert open_session("theirs", model_with(), CPU).description == "m on cpu"


def test_onnxruntime_runs_a_graph(onnx_model: Callable[..., BundleModel]) -> None:
    model = onnx_model()
    session = open_session("ort", model, BackendOptions(threads=1))
    for batch in (1, 3):
        mixture = planes(model.spec, batch)
        out = infer_planes(session, mixture)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, np.stack((mixture, mixture), axis=1))
    assert session.artifact == ("model.onnx", model.bundle.files["model.onnx"].sha256)
    assert "fp32 on cpu" in session.description
    assert session.versions.keys() == {"onnxruntime"}
    session.close()
    session.close()


def test_onnxruntime_takes_half_precision_planes_as_float32(onnx_model: Callable[..., BundleModel]) -> None:
    model = onnx_model(precision="fp16", half=True)
    mixture = planes(model.spec)
    out = infer_planes(open_session("ort", model, BackendOptions(precision="fp16")), mixture)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[:, 0], mixture.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("graph", [{"stems": 1}, {"stems": 3}])
def test_a_graph_of_another_shape_is_refused(
    onnx_model: Callable[..., BundleModel], graph: dict[str, int]
) -> None:
    with pytest.raises(
        BundleError,
        match=rf"model\.onnx has shape .*{graph['stems']}.* of stems, its spec says \[B, 2, 4, 16, 256\]$",
    ):
        open_session("ort", onnx_model(**graph), CPU)


def test_a_graph_with_a_second_input_is_refused(onnx_model: Callable[..., BundleModel]) -> None:
    with pytest.raises(
        BundleError,
        match=r"^model\.onnx has the inputs mixture, spare0, its spec says mixture: export it with `tfx exp",
    ):
        open_session("ort", onnx_model(inputs=2), CPU)


def test_a_file_that_is_no_graph_is_refused_in_one_line(tiny_bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tiny_bundle.add("model.onnx", lambda path: path.touch(), kind="onnx", precision="fp32")
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file, or damaged") as error:
        open_session("ort", BundleModel("tiny", tiny_bundle), CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["ort", "torchscript"])
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_a_missing_artifact_says_how_to_make_it(
    tiny_bundle: Bundle, backend: str, precision: str | None
) -> None:
    pytest.importorskip("onnxruntime" if backend == "ort" else "torch")
    kind, asked = "onnx" if backend == "ort" else "torchscript", precision or "fp32"
    with pytest.raises(BackendUnavailable, match=rf"holds no {kind} artifact in {asked}") as error:
        open_session(backend, BundleModel("tiny", tiny_bundle), BackendOptions(precision=precision))
    command = f": make it with `tfx export tiny --format {kind}"
    if asked == "fp32":
        assert str(error.value).endswith(f"{command}`")
    else:  # what the command makes is what was asked for, or no command is named
        assert str(error.value).endswith(f"{command} --precision {asked}`" if kind == "onnx" else asked)


def test_where_a_backend_runs_if_nobody_says() -> None:
    found = {name: backends.default_device(name) for name in ("auto", "ort", "trt", "torch")}
    assert found == {"auto": "auto", "ort": "cpu", "trt": "cuda", "torch": "cpu"}


def test_cuda_where_onnxruntime_has_none(
    fake_ort: SimpleNamespace, onnx_model: Callable[..., BundleModel]
) -> None:
    fake_ort.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(BackendUnavailable, match=r"cuda asked for.*CPUExecutionProvider.*ort-gpu") as error:
        open_session("ort", onnx_model(), CUDA)
    assert error.value.exit_code == 4
    assert fake_ort.asked is None


def test_cuda_that_falls_back_to_the_cpu_is_an_error(
    fake_ort: SimpleNamespace, onnx_model: Callable[..., BundleModel]
) -> None:
    for started in (["CPUExecutionProvider"], []):
        fake_ort.started = started
        with pytest.raises(BackendUnavailable, match=r"cuda:2 asked for, onnxruntime started .*--device cpu"):
            open_session("ort", onnx_model(), BackendOptions(device="cuda:2"))
        # Nor is the CPU offered to it: a graph that CUDA cannot run must not be split in silence.
        assert fake_ort.asked == [("CUDAExecutionProvider", {"device_id": 2, "use_tf32": "0"})]
        assert fake_ort.settings == {"session.disable_cpu_ep_fallback": "1"}


def test_no_node_runs_on_the_cpu_in_place_of_a_gpu(
    onnx_model: Callable[..., BundleModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself refuses, here with a provider that takes none of the nodes."""
    provider = "AzureExecutionProvider"
    if provider not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    monkeypatch.setattr(ort_module, "_providers", lambda *_: ([provider], ("cuda", 0)))
    with pytest.raises(BackendUnavailable, match=r"cuda asked for, onnxruntime would run part of"):
        open_session("ort", onnx_model(), CUDA)


@pytest.mark.parametrize(("device", "name"), [("tensorrt", "Tensorrt"), ("rtx:1", "NvTensorRTRTX")])
def test_a_tensorrt_provider_leaves_the_rest_to_cuda_and_never_to_the_cpu(
    fake_ort: SimpleNamespace, onnx_model: Callable[..., BundleModel], device: str, name: str
) -> None:
    with pytest.raises(BackendUnavailable, match=rf"device {device} asked for, this onnxruntime has CUDA"):
        open_session("ort", onnx_model(), BackendOptions(device=device))
    fake_ort.get_available_providers = lambda: [f"{name}ExecutionProvider", "CUDAExecutionProvider"]
    with pytest.raises(BackendUnavailable, match=rf"device {device} asked for, onnxruntime started CUDA"):
        open_session("ort", onnx_model(), BackendOptions(device=device))
    assert [provider for provider, _ in fake_ort.asked] == [
        f"{name}ExecutionProvider",
        "CUDAExecutionProvider",
    ]
    assert {settings["device_id"] for _, settings in fake_ort.asked} == {int(device.partition(":")[2] or 0)}


def test_bound_memory_gives_what_a_plain_run_gives(
    onnx_model: Callable[..., BundleModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that GPUs are fed, over the memory of the CPU."""
    model = onnx_model()
    plain = OrtSession(model, CPU)
    monkeypatch.setattr(ort_module, "_providers", lambda *_: (["CPUExecutionProvider"], ("cpu", 0)))
    bound = OrtSession(model, CPU)
    for batch in (1, 3, 1, 2):
        planes = np.random.default_rng(batch).standard_normal(model.spec.input_shape(batch), np.float32)
        first = infer_planes(bound, planes)
        assert np.array_equal(first, infer_planes(plain, planes))
    bound.close()
    bound.close()


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_an_unknown_device_is_refused(
    fake_ort: SimpleNamespace, onnx_model: Callable[..., BundleModel], device: str
) -> None:
    with pytest.raises(
        BackendUnavailable, match=r"unknown device.*use cpu, cuda or cuda:N, tensorrt or"
    ) as error:
        open_session("ort", onnx_model(), BackendOptions(device=device))
    assert error.value.exit_code == 4


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(BackendUnavailable, match=r"onnxruntime.*pip install 'tfswa\[ort\]'") as error:
        OrtSession(model_with("onnx"), CPU)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("backend", ["torchscript", "torch"])
def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    hide(monkeypatch, "torch", "tfswa.train")
    with pytest.raises(BackendUnavailable, match=r"torch.*pip install 'tfswa\[torch\]'") as error:
        open_session(backend, model_with("torchscript"), CPU)
    assert error.value.exit_code == 4


def test_auto_without_any_library_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "onnxruntime")
    hide(monkeypatch, "torch", "tfswa.train")
    with pytest.raises(BackendUnavailable, match=r"no backend can run m: ort: .*torchscript: .*torch: "):
        open_session("auto", model_with(), CPU)


def test_auto_takes_the_first_that_has_an_artifact(
    onnx_model: Callable[..., BundleModel], script_model: BundleModel
) -> None:
    assert open_session("auto", script_model, CPU).artifact[0] == "model.ts"
    assert open_session("auto", onnx_model(), CPU).artifact[0] == "model.onnx"


def test_auto_falls_to_the_eager_network(network_bundle: Bundle) -> None:
    assert open_session("auto", open_model(network_bundle.path), CPU).artifact[0] == WEIGHTS


def test_torchscript_runs_a_module(script_model: BundleModel) -> None:
    session = TorchScriptSession(script_model, CPU)
    mixture = planes(script_model.spec, 2)
    np.testing.assert_array_equal(infer_planes(session, mixture), np.stack((mixture, 2 * mixture), axis=1))
    assert session.artifact == ("model.ts", script_model.bundle.files["model.ts"].sha256)
    session.close()
    session.close()


def test_a_file_that_is_no_torchscript_is_refused_in_one_line(tiny_bundle: Bundle) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    tiny_bundle.add("model.ts", b"PK", kind="torchscript", precision="fp32")
    with pytest.raises(BundleError, match=r"model\.ts is not a file of torch, or damaged") as error:
        TorchScriptSession(open_model(tiny_bundle.path, trusted=True), CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", "mps", "meta"])
def test_torch_devices_of_other_kinds_are_refused(device: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(BackendUnavailable, match="use cpu, cuda or cuda:N"):
        torch_device(device)


@pytest.mark.parametrize(("device", "is_full"), [("cuda", True), ("cpu", False)])
def test_on_a_gpu_float32_is_no_tf32(device: str, is_full: bool) -> None:
    cudnn = pytest.importorskip("torch").backends.cudnn
    before = cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark
    with full_float32(SimpleNamespace(type=device)):
        assert cudnn.allow_tf32 is (False if is_full else before[0])
        assert (cudnn.enabled, cudnn.benchmark) == before[1:]
    assert (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark) == before


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_cuda_where_torch_finds_none(monkeypatch: pytest.MonkeyPatch, device: str, count: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(BackendUnavailable, match=f"{device} asked for, {count} CUDA devices") as error:
        torch_device(device)
    assert error.value.exit_code == 4


def test_the_eager_network_runs(network_bundle: Bundle) -> None:
    model = open_model(network_bundle.path)
    mixture = planes(model.spec, 2)
    session = open_session("torch", model, CPU)
    out = infer_planes(session, mixture)
    assert out.shape == model.spec.output_shape(2)
    assert out.dtype == np.float32
    assert session.artifact == (WEIGHTS, network_bundle.files[WEIGHTS].sha256)
    half = infer_planes(open_session("torch", model, BackendOptions(precision="bf16")), mixture)
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - out).max() < 0.1  # another precision, the same network
    session.close()
    session.close()


def test_weights_stored_in_half_precision_are_run_in_float32(tmp_path: Path, network_bundle: Bundle) -> None:
    weights = network_bundle.weights()
    half = Bundle.create(tmp_path / "half.tfx", network_bundle.spec, weights, precision="fp16")
    mixture = planes(half.spec)
    full = infer_planes(open_session("torch", open_model(network_bundle.path), CPU), mixture)
    near = infer_planes(open_session("torch", open_model(half.path), CPU), mixture)
    assert 0 < np.abs(near - full).max() < 1e-3


@pytest.mark.parametrize("precision", ["int8", "fp64"])
def test_a_precision_that_eager_torch_has_not(network_bundle: Bundle, precision: str) -> None:
    with pytest.raises(UsageError, match=rf"no precision '{precision}': choose fp32, fp16 or bf16"):
        open_session("torch", open_model(network_bundle.path), BackendOptions(precision=precision))


def test_weights_of_another_network_are_refused_by_name(tiny_bundle: Bundle) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(BundleError, match=r"tiny: weights do not fit tfswa_lite: .*Missing key") as error:
        open_session("torch", BundleModel("tiny", tiny_bundle), CPU)
    assert "\n" not in str(error.value)


def test_an_exported_file_has_no_eager_network() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(BackendUnavailable, match=r"m is an exported file.*ort or torchscript"):
        open_session("torch", model_with("onnx"), CPU)


def test_damaged_weights_stop_every_use(network_bundle: Bundle) -> None:
    path = network_bundle.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    with pytest.raises(BundleError, match="damaged"):
        open_session("torch", open_model(network_bundle.path), CPU)


# As pybind11 does, a stand-in takes an interruption for a failure of its own.
INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000):
        pass
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
ready = True
"""
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
from tfswa.runtime import backends
try:
    backends.import_library("interrupted_library", backend="any")
except KeyboardInterrupt:
    print("interrupted", sys.modules["interrupted_library"].ready)
"""


def test_ctrl_c_while_a_library_is_imported_is_no_missing_backend(tmp_path: Path) -> None:
    (tmp_path / "interrupted_library.py").write_text(INTERRUPTED)
    assert alone(IMPORTS, tmp_path) == "interrupted True\n"


LOADS = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib.metadata import EntryPoint
from tfswa.runtime.files.signals import load_point
try:
    load_point(EntryPoint("any", "interrupted_library:ready", "tfswa.backends"))
except KeyboardInterrupt:
    print("interrupted", sys.modules["interrupted_library"].ready)
"""
STATES = """
import sys
sys.path.insert(0, sys.argv[1])
from tfswa.runtime.files.signals import imports_held_back
with imports_held_back():
    try:
        import imports_it
    except KeyboardInterrupt:
        print("interrupted", sys.modules["interrupted_library"].ready, sys.modules["imports_it"].ready)
import json
"""


@pytest.mark.parametrize("program", [LOADS, STATES])
def test_ctrl_c_waits_until_a_library_is_imported_whoever_asks_for_it(program: str, tmp_path: Path) -> None:
    (tmp_path / "interrupted_library.py").write_text(INTERRUPTED)
    (tmp_path / "imports_it.py").write_text("import interrupted_library\nready = True\n")
    said = "interrupted True\n" if program is LOADS else "interrupted True True\n"
    assert alone(program, tmp_path) == said


def test_a_command_imports_uninterrupted(tmp_path: Path) -> None:
    """A library that a command's own lines import: Ctrl-C ends tfx as it always does."""
    (tmp_path / "soundfile.py").write_text(INTERRUPTED)
    program = "import sys\nsys.path.insert(0, sys.argv[1])\nsys.argv = ['tfx', 'separate', 'nowhere.wav']\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}from tfswa.runtime.cli import main\nmain()", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (130, "tfx: interrupted")


def test_an_import_that_finds_all_leaves_the_handlers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    @contextmanager
    def counted() -> Iterator[None]:
        held.append("held")
        yield

    monkeypatch.setattr(signals, "held_back", counted)
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    monkeypatch.delattr("json.tool", raising=False)
    with signals.imports_held_back():
        import json as found
        from json import dumps

        assert held == []
        from json import tool

        assert held == ["held"]
    assert (found.dumps, tool.__name__) == (dumps, "json.tool")
