"""Engines: what is built, under which key, and every reason not to build one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from simulated_gpu import SimulatedCuda
from system_calls import alone

onnx = pytest.importorskip("onnx", reason="onnx is not installed: export needs it")
torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export import builder, engine  # noqa: E402
from tfswa.export.artifact import bundle_copy  # noqa: E402
from tfswa.export.check import Rounding  # noqa: E402
from tfswa.export.engine import BuildOptions, build_engine  # noqa: E402
from tfswa.export.plan import Precision, PrecisionPlan  # noqa: E402
from tfswa.export.precision import typed  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends.engines import PORTABLE, probe, samples  # noqa: E402
from tfswa.runtime.backends.ort import OrtSession  # noqa: E402
from tfswa.runtime.backends.trt import TrtSession  # noqa: E402
from tfswa.runtime.errors import (  # noqa: E402
    BackendUnavailable,
    BundleError,
    ExportError,
    NonFiniteError,
    UsageError,
)
from tfswa.runtime.gates import gate_for  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.bundle import Bundle, _entries, read_manifest, write_manifest  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model  # noqa: E402
from tfswa.runtime.model.spec import OUTPUT  # noqa: E402


@pytest.fixture
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")


@pytest.fixture
def replace_onnx(exported: BundleModel) -> Callable[..., BundleModel]:
    """Put another graph into a bundle, recorded as fp32."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graph")

    def put(*nodes: Any, precision: str = "fp32") -> BundleModel:
        spec, kind = exported.spec, onnx.TensorProto.FLOAT
        mixture = onnx.helper.make_tensor_value_info("mixture", kind, ["batch", *spec.input_shape(1)[1:]])
        stems = onnx.helper.make_tensor_value_info("stems", kind, None)
        graph = onnx.helper.make_graph(nodes, "g", [mixture], [stems])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        data = model.SerializeToString()
        name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
        exported.bundle.add(name, lambda p: open_and_write(p, data), kind="onnx", precision=precision)
        return exported

    return put


def open_and_write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def node(kind: str, source: str, target: str, **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(kind, [source], [target], name=f"node_{target}", **attributes)


@pytest.mark.trt
def test_an_engine_is_built_recorded_and_found_again(
    trt: Any, exported: BundleModel, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    made = build_engine(exported, BuildOptions(flavor="rtx"), report=lines.append)
    assert len(lines) == 1
    assert made.file == exported.bundle.path / "engines" / f"{made.key}.engine"
    assert not made.cached
    assert made.details == {
        "onnx_sha256": exported.bundle.files["model.onnx"].sha256,
        "flavor": "rtx",
        "version": trt.__version__,
        "precision": "fp32",
        "batch": [1, 1, 1],
        "target": PORTABLE,
    }
    text = json.dumps(dict(made.details), sort_keys=True)
    assert made.key == hashlib.sha256(text.encode()).hexdigest()[:16]
    entry = Bundle.open(exported.bundle.path).files[f"engines/{made.key}.engine"]
    assert (entry.kind, entry.precision, dict(entry.details)) == ("engine", "fp32", made.details)
    entry = Bundle.open(exported.bundle.path).files[f"engines/{made.key}.npy"]
    assert (entry.kind, entry.precision) == ("answer", "")
    assert dict(entry.details) == {"onnx_sha256": made.details["onnx_sha256"]}
    assert json.loads(made.file.with_suffix(".json").read_text()) == made.details
    written = made.file.stat().st_mtime_ns
    again = build_engine(open_model(exported.name), BuildOptions(flavor="rtx"), report=lines.append)
    assert (again.cached, again.key, again.file) == (True, made.key, made.file)
    assert made.file.stat().st_mtime_ns == written
    assert len(lines) == 1
    assert capfd.readouterr() == ("", "")


def told_layer(takes: dict[str, Any], gives: dict[str, Any]) -> dict[str, Any]:
    return {"Name": "encoder.0", "Inputs": [takes], "Outputs": [gives], "TacticName": "half"}


# As the inspectors of TensorRT 10, of its Myelin compiler, and of 11 write them.
LONG = os.environ.get("TFX_LONG") == "1"
HALF_10 = told_layer(
    {"Format/Datatype": "Row major linear FP32"},
    {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"},
)
HALF_MYELIN = told_layer({"Format/Datatype": "Half"}, {"Format/Datatype": "Float"})
HALF_11 = told_layer({"DataType": "Half", "Format": "Row major"}, {"DataType": "Float"})
FULL_11 = told_layer({"DataType": "Float", "Format": "Row major"}, {"DataType": "Float"})
FULL_10 = told_layer({"Format/Datatype": "Row major linear FP32 format (kLINEAR)"}, {})


def inspected(*layers: Any) -> Any:
    """As much of a library as an engine is inspected by; without layers no engine can be loaded."""
    inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({form: list(layers)}))
    loaded = SimpleNamespace(create_engine_inspector=lambda: inspector) if layers else None
    library: Any = ModuleType("tensorrt")
    library.ILogger = type("ILogger", (), {})
    library.LayerInformationFormat = SimpleNamespace(JSON="Layers")
    library.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: loaded)
    return library


@pytest.mark.parametrize("layer", [HALF_10, HALF_MYELIN, HALF_11])
def test_an_engine_that_a_gpu_loads_is_inspected(layer: Any) -> None:
    library = inspected(FULL_10, layer, FULL_11, "a name only")
    line = builder.inspect_types(library, b"", "model.fp16.onnx", "fp16")
    assert line == "1 of the engine's 4 layers compute in fp16"


def test_an_engine_in_float32_is_never_called_fp16() -> None:
    with pytest.raises(ExportError, match=r"model\.fp16\.onnx computes in fp32, asked for is fp16: nothing"):
        builder.inspect_types(inspected(FULL_10, FULL_11), b"", "model.fp16.onnx", "fp16")


def test_what_an_engine_does_not_tell_is_said() -> None:
    assert "does not tell the types" in builder.inspect_types(inspected("a", "b"), b"", "m", "fp16")
    assert "cannot be loaded here" in builder.inspect_types(inspected(), b"", "m", "fp16")


@pytest.mark.trt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which inspects in earnest")
def test_an_engine_is_inspected_before_it_is_kept(
    trt: Any, exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_gpu", lambda: "8.9")
    lines: list[str] = []
    made = build_engine(exported, BuildOptions(flavor="rtx", capability="8.9"), report=lines.append)
    assert "cannot be loaded here" in lines[1]  # by the library itself, which finds no GPU

    def finds_another(*given: Any) -> str:
        raise ExportError("computes in fp32")

    monkeypatch.setattr(engine, "inspect_types", finds_another)
    with pytest.raises(ExportError, match="computes in fp32"):
        build_engine(exported, BuildOptions(flavor="rtx", batch=(1, 2, 2)))
    held = [name for name in Bundle.open(exported.bundle.path).files if name.endswith(".engine")]
    assert held == [f"engines/{made.key}.engine"]


@pytest.mark.trt
def test_another_batch_is_another_engine_and_force_builds_again(trt: Any, exported: BundleModel) -> None:
    one = build_engine(exported, BuildOptions(flavor="rtx"))
    four = build_engine(exported, BuildOptions(flavor="auto", batch=(1, 2, 4)))
    assert four.key != one.key
    assert four.details["batch"] == [1, 2, 4]
    kinds = [entry.kind for name, entry in sorted(exported.bundle.files.items()) if "engines/" in name]
    assert sorted(kinds) == ["answer", "answer", "engine", "engine", "engine key", "engine key"]
    before = one.file.stat().st_mtime_ns
    forced = build_engine(exported, BuildOptions(flavor="rtx"), force=True)
    assert (forced.key, forced.cached) == (one.key, False)
    assert one.file.stat().st_mtime_ns != before


@pytest.mark.trt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which would run the engine")
def test_the_backend_takes_what_was_built_as_far_as_the_library_does(
    trt: Any, exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real engine, the real library, and no GPU but a simulated one: loading is where it must end."""
    made = build_engine(exported, BuildOptions(flavor="rtx", batch=(1, 2, 4)))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimulatedCuda())
    command = r"`tfx build-engine .*exported\.tfx --precision fp32 --flavor rtx --batch 1,2,4 --force`"
    with pytest.raises(BundleError, match=rf"cannot load engines/{made.key}\.engine: .*{command}"):
        TrtSession(open_model(exported.name), BackendOptions(device="cuda"))


@pytest.mark.trt
def test_an_engine_without_its_answer_is_built_again(trt: Any, exported: BundleModel) -> None:
    made = build_engine(exported, BuildOptions(flavor="rtx"))
    manifest = read_manifest(exported.bundle.path)
    entries = _entries(exported.bundle.path, manifest)
    del entries[f"engines/{made.key}.npy"]  # as it was made before there were answers
    write_manifest(exported.bundle.path, manifest, entries)
    again = build_engine(open_model(exported.name), BuildOptions(flavor="rtx"))
    assert (again.cached, again.key) == (False, made.key)
    assert Bundle.open(exported.bundle.path).files[f"engines/{made.key}.npy"].kind == "answer"


def one(found: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """What a network gave of a single item."""
    assert all(len(value) == 1 for value in found.values())
    return {name: value[0] for name, value in found.items()}


def test_an_answer_is_what_the_network_gives(exported: BundleModel) -> None:
    right = engine.answer(exported)
    with closing(OrtSession(exported, BackendOptions())) as session:
        found = samples(one(session.infer(probe(exported.spec))))
    assert (right.dtype, right.ndim) == (np.float32, 1)
    assert 2000 < right.size <= 4096
    assert right.std() > 0.01
    assert (snr_db(right, found) or 0) > gate_for("fp32").snr_db


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_graph_of_low_precision_gives_the_answer_too(low: BundleModel, precision: Precision) -> None:
    graph = open_model(low.bundle.path / f"model.{precision}.onnx")
    assert isinstance(graph, FileModel)
    found = samples(one(Rounding(graph).infer(probe(low.spec))))
    assert (snr_db(engine.answer(low), found) or 0) > gate_for(precision).snr_db


def test_a_network_without_an_answer_is_not_built(
    exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {OUTPUT: np.full(exported.spec.output_shape(1), np.nan, np.float32)}
    monkeypatch.setattr(engine, "run_torch", lambda *_: broken)
    with pytest.raises(NonFiniteError, match="gives NaN or Inf for the self-test: train it again"):
        engine.answer(exported)


@pytest.mark.trt
def test_a_copy_takes_engines_with_their_answers_or_neither(
    trt: Any, exported: BundleModel, tmp_path: Path
) -> None:
    build_engine(exported, BuildOptions(flavor="rtx"))
    for without, left in (("model.ts", {"answer", "engine", "engine key"}), ("model.onnx", set())):
        path = tmp_path / f"without-{without}"
        with bundle_copy(exported.bundle, path, without=without, force=False):
            pass
        kinds = {entry.kind for entry in Bundle.open(path).files.values()}
        assert kinds & {"answer", "engine", "engine key"} == left


@pytest.mark.trt
def test_a_damaged_engine_is_not_a_cache_hit(trt: Any, exported: BundleModel) -> None:
    made = build_engine(exported, BuildOptions(flavor="rtx"))
    made.file.write_bytes(made.file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{made.key}\.engine is damaged"):
        build_engine(exported, BuildOptions(flavor="rtx"))
    assert build_engine(exported, BuildOptions(flavor="rtx"), force=True).bytes == made.bytes


@pytest.mark.trt
def test_an_engine_of_a_sealed_bundle_goes_to_the_cache(
    trt: Any, exported: BundleModel, seal: Any, private_cache: Path
) -> None:
    made = build_engine(seal(exported), BuildOptions(flavor="rtx"))
    assert made.file.is_relative_to(private_cache)


@pytest.mark.trt
def test_a_graph_in_half_precision_is_not_called_fp32(trt: Any, replace_onnx: Any) -> None:
    model = replace_onnx(node("Cast", "mixture", "half", to=10), node("Cast", "half", "stems", to=1))
    with pytest.raises(ExportError, match=r"model\.onnx is recorded as fp32, its layer .* gives HALF"):
        build_engine(model, BuildOptions(flavor="rtx"))
    assert not (model.bundle.path / "engines").exists()


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_is_built_from_its_own_graph(trt: Any, low: BundleModel, precision: Precision) -> None:
    made = build_engine(low, BuildOptions(precision, "rtx"))
    assert made.details["onnx_sha256"] == low.bundle.files[f"model.{precision}.onnx"].sha256
    assert made.details["precision"] == precision
    assert low.bundle.files[f"engines/{made.key}.engine"].precision == precision
    assert build_engine(low, BuildOptions(precision, "rtx")).cached


@pytest.mark.trt
def test_a_plan_is_known_to_the_engine(trt: Any, exported: BundleModel) -> None:
    plan = ["encoder.1.blocks.0.time"]
    data = typed(onnx.load(exported.file("model.onnx")), "fp16", plan=PrecisionPlan(tuple(plan)))

    def put(plan: list[str]) -> None:
        exported.bundle.add(
            "model.fp16.onnx",
            lambda path: open_and_write(path, data.SerializeToString()),
            kind="onnx",
            precision="fp16",
            details={"plan": plan},
        )

    put(plan)
    assert build_engine(exported, BuildOptions("fp16", "rtx")).bytes
    put([])
    with pytest.raises(ExportError, match=r"as fp16, its layer encoder\.1\.blocks\.0\.time.* gives FLOAT"):
        build_engine(exported, BuildOptions("fp16", "rtx"), force=True)


@pytest.mark.trt
def test_a_float32_graph_is_not_called_fp16(trt: Any, exported: BundleModel) -> None:
    data = exported.file("model.onnx").read_bytes()
    exported.bundle.add("model.fp16.onnx", lambda p: open_and_write(p, data), kind="onnx", precision="fp16")
    with pytest.raises(ExportError, match=r"model\.fp16\.onnx is recorded as fp16, its layer .* gives FLOAT"):
        build_engine(open_model(exported.name), BuildOptions("fp16", "rtx"))


@pytest.mark.trt
def test_a_compute_capability_is_another_engine(trt: Any, exported: BundleModel) -> None:
    one = build_engine(exported, BuildOptions(flavor="rtx", capability="8.9"))
    assert one.details["target"] == "compute capability 8.9"
    portable = build_engine(exported, BuildOptions(flavor="rtx"))
    assert portable.key != one.key
    with pytest.raises(
        UsageError, match=r"builds for compute capability 7\.5, .*, asked for is 9\.9: choose one"
    ):
        build_engine(exported, BuildOptions(flavor="rtx", capability="9.9"))


@pytest.mark.trt
def test_another_weight_is_a_miss(trt: Any, exported: BundleModel) -> None:
    one = build_engine(exported, BuildOptions(flavor="rtx"))
    graph = onnx.load(exported.file("model.onnx"))
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-6), bias.name)
    )
    data = graph.SerializeToString()
    exported.bundle.add("model.onnx", lambda p: open_and_write(p, data), kind="onnx", precision="fp32")
    two = build_engine(open_model(exported.name), BuildOptions(flavor="rtx"))
    assert not two.cached
    assert two.key != one.key


@pytest.mark.trt
def test_two_builders_at_once_make_one_engine(trt: Any, exported: BundleModel) -> None:
    command = [
        sys.executable,
        "-m",
        "tfswa.runtime",
        "build-engine",
        exported.name,
        "--flavor",
        "rtx",
        "--json",
    ]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [run.communicate(timeout=600) for run in runs]
    reports = [json.loads(out) for out, _ in answers]
    assert sorted(report["cached"] for report in reports) == [False, True]
    assert len({report["file"] for report in reports}) == 1
    assert sum("building with" in err for _, err in answers) == 1
    assert {path.suffix for path in (exported.bundle.path / "engines").iterdir()} == {
        ".engine",
        ".npy",
        ".json",
    }


@pytest.mark.trt
def test_rtx_has_no_use_for_a_timing_cache(trt: Any, exported: BundleModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="flavor rtx measures no kernels while it builds"):
        build_engine(exported, BuildOptions(flavor="rtx", timing_cache=tmp_path / "timings"))


def test_a_timing_cache_stays_out_of_the_bundle(exported: BundleModel) -> None:
    with pytest.raises(UsageError, match="timings is inside the bundle"):
        engine._check_timing_cache(exported.bundle.path / "engines" / "timings", exported.bundle, "tensorrt")


INTERRUPTED = """
import signal, sys
from pathlib import Path
from tfswa.export.engine import BuildOptions, build_engine
from tfswa.runtime.files.signals import end_cleanly
from tfswa.runtime.model.opening import open_model
model, number, told = open_model(Path(sys.argv[1])), int(sys.argv[2]), []

def interrupt(phase, done, steps):
    told.append((phase, done, steps))
    if len(told) == 3:
        signal.raise_signal(number)

end_cleanly()
before = signal.getsignal(number)
try:
    build_engine(model, BuildOptions(flavor="rtx"), progress=interrupt)
except (KeyboardInterrupt, SystemExit):
    assert not (model.bundle.path / "engines").exists()
    assert signal.getsignal(number) is before
    print(len(told))
"""


@pytest.mark.trt
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_build_tells_its_progress_and_ends_by_a_signal(
    trt: Any, exported: BundleModel, number: signal.Signals
) -> None:
    told: list[tuple[str, int, int]] = []
    stopped = int(alone(INTERRUPTED, exported.bundle.path, int(number)))
    build_engine(exported, BuildOptions(flavor="rtx"), progress=lambda *step: told.append(step))
    assert len(told) > stopped  # without the signal it goes on to the end
    assert all(0 <= done <= steps for _, done, steps in told)


@pytest.mark.trt
def test_a_file_where_engines_go_is_one_line(trt: Any, exported: BundleModel) -> None:
    (exported.bundle.path / "engines").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*engines: File exists; choose another place"):
        build_engine(exported, BuildOptions(flavor="rtx"))


class Timings:
    """What ``ITimingCache`` and ``IBuilderConfig`` do with timings: kernels in a set, one a byte."""

    def __init__(self, data: bytes = b"") -> None:
        self.kernels, self.fits = set(data), data != b"foreign"

    def create_timing_cache(self, data: bytes) -> Timings:
        return Timings(data)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.kernels |= cache.kernels
        return cache.fits

    def get_timing_cache(self) -> Timings:
        return self

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        self.kernels |= other.kernels
        return not ignore_mismatch

    def serialize(self) -> bytes:
        return bytes(sorted(self.kernels))


def test_timings_are_merged_with_those_of_other_builds(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    one, two = Timings(b"a"), Timings(b"b")
    for config in (one, two):
        builder._load_timings(config, path)  # both begin before either ends
    for config in (one, two):
        builder._store_timings(config, path)
    assert builder._timings(path) == b"ab"
    assert path.read_bytes().startswith(b"abtfx-sha256:")
    third = Timings()
    builder._load_timings(third, path)
    assert third.kernels == set(b"ab")
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_timings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"foreign")
    with pytest.raises(UsageError, match="timings is damaged, or not of tfx: its own SHA-256"):
        builder._load_timings(Timings(), path)
    path.unlink()
    stored = Timings()
    stored.kernels = set(b"foreign")
    stored.serialize = lambda: b"foreign"  # type: ignore[method-assign]
    builder._store_timings(stored, path)
    with pytest.raises(UsageError, match="timings is damaged, or of another GPU or version"):
        builder._load_timings(Timings(), path)


def test_a_place_without_room_for_timings_is_said_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/timings cannot be written .*: choose another place"):
        builder._load_timings(Timings(), tmp_path / "nowhere" / "timings")


@pytest.mark.trt
def test_what_the_parser_refuses_is_one_line(trt: Any, replace_onnx: Any) -> None:
    model = replace_onnx(node("Relu", "mixture", "x"), node("NoSuchOperator", "x", "stems"))
    with pytest.raises(
        ExportError, match=r"^model\.onnx is not accepted by tensorrt_rtx: .*NoSuchOperator"
    ) as e:
        build_engine(model, BuildOptions(flavor="rtx"))
    assert "\n" not in str(e.value)


@pytest.mark.trt
def test_a_truncated_graph_is_named(trt: Any, exported: BundleModel) -> None:
    path = exported.bundle.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: its SHA-256 is"):
        build_engine(exported, BuildOptions(flavor="rtx"))


def test_without_a_graph_the_command_that_makes_it_is_named(plain: BundleModel) -> None:
    with pytest.raises(BackendUnavailable, match=r"tfx export .* --format onnx"):
        build_engine(plain)


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 2), (1, 4, 2)])
def test_batches_out_of_order(exported: BundleModel, batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="is not MIN <= OPT <= MAX"):
        build_engine(exported, BuildOptions(batch=batch))


def test_a_missing_library_names_its_extra(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[trt-rtx\]'"):
        build_engine(exported, BuildOptions(flavor="rtx"))
    with pytest.raises(BackendUnavailable, match=r"flavor tensorrt needs tensorrt .*--flavor rtx"):
        build_engine(exported, BuildOptions(flavor="tensorrt"))


def test_tensorrt_needs_the_gpu_it_builds_for(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.0", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="0 CUDA devices found: use --flavor rtx"):
        build_engine(exported, BuildOptions(flavor="tensorrt"))


def test_an_exported_file_has_no_bundle(exported: BundleModel) -> None:
    with pytest.raises(UsageError, match="`tfx build-engine` needs a bundle"):
        build_engine(open_model(exported.bundle.path / "model.onnx"))


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.parametrize(
    "family",
    [
        "tfswa_lite",
        pytest.param(
            "tfswa_unet", marks=pytest.mark.skipif(not LONG, reason="minutes: TFX_LONG=1 builds it")
        ),
    ],
)
def test_the_default_networks_are_built_for_a_named_target(trt: Any, tmp_path: Path, family: str) -> None:
    """At full size; untrained, because the gate of an export takes minutes for 15 million weights."""
    from tfswa.export.onnx import build_graph
    from tfswa.train.backend import load_network, new_bundle

    model = BundleModel("full", new_bundle(family, tmp_path / "full.tfx", seed=1))
    graphs: dict[Precision, Any] = {"fp32": build_graph(load_network(model), model.spec)}
    graphs["fp16"] = typed(graphs["fp32"], "fp16")
    sizes = {}
    for precision, graph in graphs.items():
        data, name = graph.SerializeToString(), "model.onnx" if precision == "fp32" else "model.fp16.onnx"
        model.bundle.add(name, partial(open_and_write, data=data), kind="onnx", precision=precision)
        made = build_engine(model, BuildOptions(precision, "rtx", capability="8.9"))
        assert made.details["target"] == "compute capability 8.9"
        sizes[precision] = made.bytes
    weights = model.bundle.files["model.safetensors"].bytes
    assert sizes["fp32"] > weights  # every weight is there, and in fp16 every one is half as large
    assert sizes["fp32"] - sizes["fp16"] > 0.25 * weights  # biases and norms are padded, kernels differ
