"""Model repositories for Triton: read into NVIDIA's own message, loaded by a server that goes by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx

pytest.importorskip("torch", reason="torch is not installed: export needs it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: export to ONNX needs it")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: it has Triton's messages")

from google.protobuf import text_format
from triton_server import Served, read_config
from tritonclient.grpc import model_config_pb2

from tfswa.export.triton import Serving, config_text, export_triton
from tfswa.runtime.backends import triton
from tfswa.runtime.errors import BackendUnavailable, BundleError, OutputExists, UsageError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import trust
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

Contents = Callable[[Path], dict[str, bytes]]
NAMES = "repository of März"  # a space, and a letter beyond ASCII


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_the_graph_lies_there_byte_for_byte_and_the_configuration_says_what_it_is(
    exported: BundleModel, tmp_path: Path
) -> None:
    made = export_triton(exported, tmp_path / NAMES, Serving())
    assert made.path == tmp_path / NAMES / "exported"
    assert sorted(str(path.relative_to(made.path)) for path in made.path.rglob("*")) == [
        "1",
        "1/model.onnx",
        "config.pbtxt",
    ]
    assert [path.name for path in (tmp_path / NAMES).iterdir()] == ["exported"]  # nothing is left beside it
    graph = exported.bundle.path / "model.onnx"
    assert made.file.read_bytes() == graph.read_bytes()
    assert (made.made, made.backend, made.artifact, made.max_batch) == (False, "onnxruntime", "model.onnx", 8)
    config = read_config(made.path / "config.pbtxt")
    assert (config.name, config.backend, config.platform) == ("exported", "onnxruntime", "onnxruntime_onnx")
    assert (config.max_batch_size, config.default_model_filename) == (8, "model.onnx")
    for ends, shapes in ((config.input, exported.spec.takes), (config.output, exported.spec.gives)):
        assert {end.name: tuple(end.dims) for end in ends} == shapes
        assert {end.data_type for end in ends} == {model_config_pb2.TYPE_FP32}
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [(group.kind, group.count, list(group.gpus)) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1, [])
    ]
    assert parameters(config) == {
        "tfx.spec": triton.spec_digest(exported.spec),
        "tfx.artifact": "model.onnx",
        "tfx.sha256": sha256_of(graph),
        "tfx.precision": "fp32",
        "tfx.version": "0.1.0",
    }
    assert [one.batch_size for one in config.model_warmup] == [1, 8]
    for one in config.model_warmup:
        assert {name: tuple(end.dims) for name, end in one.inputs.items()} == exported.spec.takes
        assert all(end.zero_data for end in one.inputs.values())


def test_a_server_loads_it_and_warms_it_up(exported: BundleModel, tmp_path: Path) -> None:
    made = export_triton(exported, tmp_path, Serving(max_batch=3))
    served = Served(made.path)  # which compares the graph with the configuration
    assert (served.warmed, served.runs) == ([1, 3], [])
    served.close()
    text = (made.path / "config.pbtxt").read_text()
    (made.path / "config.pbtxt").write_text(text.replace("dims: 4\n", "dims: 5\n"))
    with pytest.raises(ValueError, match="the configuration says"):
        Served(made.path)


@pytest.mark.parametrize(
    ("serving", "kind", "gpus", "sizes", "delay_us"),
    [
        (Serving(device="cuda:2", max_batch=6, queue_delay_ms=0.5), "KIND_GPU", [2], [2, 4, 6], 500),
        (Serving(device="cuda", max_batch=2), "KIND_GPU", [0], [2], 2000),
        (Serving(max_batch=1), "KIND_CPU", [], None, None),
    ],
)
def test_what_was_asked_for_is_written(
    serving: Serving,
    kind: str,
    gpus: list[int],
    sizes: list[int] | None,
    delay_us: int | None,
    exported: BundleModel,
    tmp_path: Path,
) -> None:
    config = read_config(export_triton(exported, tmp_path, serving).path / "config.pbtxt")
    (group,) = config.instance_group
    assert (type(group).Kind.Name(group.kind), list(group.gpus)) == (kind, gpus)
    assert config.HasField("dynamic_batching") is (sizes is not None)
    if sizes is not None:
        assert list(config.dynamic_batching.preferred_batch_size) == sizes
        assert config.dynamic_batching.max_queue_delay_microseconds == delay_us
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(one.name, dict(one.parameters)) for one in accelerators] == (
        [("cuda", {"use_tf32": "0"})] if kind == "KIND_GPU" else []
    )


def test_fp16_with_ends_in_float16_is_served_by_another_name(low: BundleModel, tmp_path: Path) -> None:
    from tfswa.export.onnx import export_onnx

    plain = export_triton(low, tmp_path, Serving("fp16"))
    config = read_config(plain.path / "config.pbtxt")
    assert plain.path.name == "low-fp16"
    assert config.optimization.graph.level == 1
    assert {end.data_type for end in (*config.input, *config.output)} == {model_config_pb2.TYPE_FP32}
    assert parameters(config)["tfx.artifact"] == "model.fp16.onnx"
    export_onnx(low, precision="fp16", low_io=True, force=True)
    model = open_model(low.name)
    low_ends = read_config(export_triton(model, tmp_path, Serving("fp16", name="h")).path / "config.pbtxt")
    assert {end.data_type for end in (*low_ends.input, *low_ends.output)} == {model_config_pb2.TYPE_FP16}
    assert {end.data_type for end in low_ends.model_warmup[0].inputs.values()} == {model_config_pb2.TYPE_FP16}
    Served(tmp_path / "h").close()


def test_a_graph_that_is_not_there_is_exported_into_the_bundle_first(
    plain: BundleModel, tmp_path: Path
) -> None:
    made = export_triton(plain, tmp_path, Serving())
    assert made.made
    assert made.file.read_bytes() == (plain.bundle.path / "model.onnx").read_bytes()
    assert not export_triton(plain, tmp_path, Serving(name="again")).made


def test_a_file_alone_can_be_served(exported: BundleModel, tmp_path: Path) -> None:
    alone = tmp_path / "my voice.onnx"
    shutil.copy(exported.bundle.path / "model.onnx", alone)
    made = export_triton(open_model(alone), tmp_path / "repository", Serving())
    assert made.path.name == "my_voice"
    assert parameters(read_config(made.path / "config.pbtxt"))["tfx.artifact"] == "my voice.onnx"
    Served(made.path).close()


def test_state_goes_in_and_comes_out_like_all_else(tmp_path: Path) -> None:
    from tfswa.train.backend import new_bundle

    hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 2], "decoder_depths": [1], "heads": [1, 2]}
    hyper |= {"memory": 12, "window": 4, "fold": 4}
    chunk = ChunkSpec(20, context=3, fade=0, multiple=1, context_after=3, early=2)
    path = tmp_path / "live.tfx"
    new_bundle("tfswa_causal", path, seed=3, hyper=hyper, stft=StftSpec(512, 128, 8000), chunk=chunk)
    model = open_model(path)
    made = export_triton(model, tmp_path / "repository", Serving(max_batch=2))
    config = read_config(made.path / "config.pbtxt")
    assert {end.name for end in config.input} == set(model.spec.takes)
    assert {end.name for end in config.output} == set(model.spec.gives)
    assert len(config.input) > 1
    served = Served(made.path)
    found = served.run({name: np.zeros((1, *shape), np.float32) for name, shape in model.spec.takes.items()})
    assert {name: value.shape[1:] for name, value in found.items()} == model.spec.gives
    served.close()


def test_a_model_that_is_there_is_replaced_with_force_alone_and_only_if_it_is_ours(
    exported: BundleModel, tmp_path: Path, contents: Contents
) -> None:
    made = export_triton(exported, tmp_path, Serving(max_batch=2))
    before = contents(tmp_path)
    with pytest.raises(OutputExists, match=r"exported is there already: replace it with --force"):
        export_triton(exported, tmp_path, Serving(max_batch=4))
    assert contents(tmp_path) == before
    export_triton(exported, tmp_path, Serving(max_batch=4), force=True)
    assert read_config(made.path / "config.pbtxt").max_batch_size == 4
    (made.path / "config.pbtxt").write_text('name: "exported"\n')
    before = contents(tmp_path)
    with pytest.raises(OutputExists, match="not written by tfx: not replaced"):
        export_triton(exported, tmp_path, Serving(), force=True)
    assert contents(tmp_path) == before


def test_what_is_there_is_said_before_the_work(plain: BundleModel, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for force in (False, True):
        with pytest.raises(OutputExists):
            export_triton(plain, tmp_path, Serving(), force=force)
    assert not (plain.bundle.path / "model.onnx").exists()


def test_a_damaged_graph_is_not_served(exported: BundleModel, tmp_path: Path) -> None:
    graph = exported.bundle.path / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="damaged"):
        export_triton(exported, tmp_path / "repository", Serving())
    assert not list((tmp_path / "repository").glob("*"))


def test_a_repository_that_cannot_be_written_is_said_before_the_work(
    plain: BundleModel, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        export_triton(plain, tmp_path / "file" / "repository", Serving())
    assert not (plain.bundle.path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"precision": "bf16"}, "serves fp32 and fp16, asked for is bf16"),
        ({"name": "../x"}, "cannot be a model's name"),
        ({"name": ""}, "cannot be a model's name"),
        ({"name": ".hidden"}, "cannot be a model's name"),
        ({"name": "Stimme ü"}, "cannot be a model's name"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"engine": True, "device": "cpu"}, "engines run on GPUs"),
        ({"max_batch": 0}, "max-batch 0"),
        ({"queue_delay_ms": -1.0}, "queue-delay -1 ms"),
    ],
)
def test_what_triton_would_not_take_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Serving(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class TestEngines:
    def add(self, model: BundleModel, name: str, content: bytes = b"plan", **changes: Any) -> BundleModel:
        graph = model.bundle.files["model.onnx"].sha256
        details = {"flavor": "tensorrt", "batch": [1, 2, 4], "onnx_sha256": graph, **changes}
        path = model.bundle.add(
            f"engines/{name}.engine", content, kind="engine", precision="fp32", details=details
        )
        trust.made_here(sha256_of(path))
        return BundleModel(model.name, Bundle.open(model.bundle.path))

    def test_the_one_with_the_largest_batch_is_served(self, exported: BundleModel, tmp_path: Path) -> None:
        self.add(exported, "small", b"small", batch=[1, 1, 1])
        self.add(exported, "rtx", b"rtx", flavor="rtx", batch=[1, 8, 16])
        model = self.add(exported, "large", b"large")
        made = export_triton(model, tmp_path, Serving(engine=True))
        assert (made.file.name, made.file.read_bytes(), made.backend) == ("model.plan", b"large", "tensorrt")
        config = read_config(made.path / "config.pbtxt")
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 4)
        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert not config.HasField("optimization")
        assert parameters(config)["tfx.sha256"] == sha256_of(made.file)
        assert {end.name: tuple(end.dims) for end in config.input} == model.spec.takes

    def test_an_engine_of_rtx_is_refused_in_one_line(self, exported: BundleModel, tmp_path: Path) -> None:
        model = self.add(exported, "rtx", flavor="rtx")
        with pytest.raises(BackendUnavailable) as caught:
            export_triton(model, tmp_path / "repository", Serving(engine=True))
        assert str(caught.value) == (
            f"no TensorRT engine of {model.name} in fp32, engines/rtx.engine is of TensorRT-RTX, which "
            f"Triton has no backend for: run `tfx build-engine {model.name} --flavor tensorrt "
            "--precision fp32`"
        )
        assert not (tmp_path / "repository").exists()

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            (
                {"onnx_sha256": "f" * 64},
                BackendUnavailable,
                "other weights (SHA-256 ffffffffffff, model.onnx has ",
            ),
            ({"batch": [2, 2, 4]}, BackendUnavailable, "takes batches of 2 to 4, Triton sends any from 1"),
            ({"batch": "many"}, BundleError, "takes batches of 'many'"),
        ],
    )
    def test_one_that_triton_cannot_serve(
        self,
        changes: dict[str, Any],
        error: type[Exception],
        words: str,
        exported: BundleModel,
        tmp_path: Path,
    ) -> None:
        model = self.add(exported, "one", **changes)
        with pytest.raises(error) as caught:
            export_triton(model, tmp_path / "repository", Serving(engine=True))
        assert words in str(caught.value)

    def test_without_one_it_says_how_to_build_it(self, exported: BundleModel, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable, match="holds none: run `tfx build-engine"):
            export_triton(exported, tmp_path, Serving(engine=True))

    def test_a_batch_beyond_the_engines(self, exported: BundleModel, tmp_path: Path) -> None:
        model = self.add(exported, "one")
        with pytest.raises(UsageError, match=r"max-batch 5 is more than engines/one.engine takes, 4"):
            export_triton(model, tmp_path, Serving(engine=True, max_batch=5))


class TestText:
    def test_what_is_written_is_what_is_read(self) -> None:
        text = config_text(
            {
                "name": 'a "quoted" name\n',
                "max_batch_size": 3,
                "model_warmup": [{"name": "one", "batch_size": 1}, {"name": "two"}],
                "parameters": {"key": "ä", "value": {"string_value": "b\\c"}},
            }
        )
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert (config.name, config.max_batch_size) == ('a "quoted" name\n', 3)
        assert [one.name for one in config.model_warmup] == ["one", "two"]
        assert parameters(config) == {"ä": "b\\c"}


class TestCommand:
    def test_it_says_where_and_how_to_run_it(self, tfx: Tfx, exported: BundleModel, tmp_path: Path) -> None:
        line = ("export", exported.name, "--format", "triton", "-o", tmp_path / "r", "--name", "voice")
        done = tfx(*line, "--max-batch", 4, "--queue-delay", 0)
        assert done.code == 0, done.err
        first, second = done.out.splitlines()
        assert first.startswith(f"{tmp_path / 'r' / 'voice'}  0.")
        assert second.strip() == "--device grpc://HOST:8001/voice runs it, up to 4 chunks a call"
        config = read_config(tmp_path / "r" / "voice" / "config.pbtxt")
        assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (4, 0)
        assert tfx(*line).code == 2
        report = tfx(*line, "--force", "--json").json
        assert report["file"] == str(tmp_path / "r" / "voice" / "1" / "model.onnx")
        assert (report["max_batch"], report["made"]) == (8, False)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--format", "triton"), "name its folder with -o REPOSITORY"),
            (("--name", "x"), "--name x is for --format triton, asked for is onnx: leave it out"),
            (("--engine",), "--engine is for --format triton, asked for is onnx: leave it out"),
            (("--format", "triton", "-o", "r", "--opset", "20"), "--opset 20 is for --format onnx"),
            (("--format", "triton", "-o", "r", "--io", "fp16"), "--io fp16 is for --format onnx"),
            (("--format", "torchscript", "--precision", "fp16"), "is for --format onnx or triton"),
            (("--format", "triton", "-o", "r", "--precision", "int8"), "serves fp32 and fp16"),
            (("--format", "triton", "-o", "r", "--transform"), "--transform and --format triton"),
        ],
    )
    def test_options_that_do_not_go_together(
        self, options: tuple[str, ...], words: str, tfx: Tfx, exported: BundleModel
    ) -> None:
        done = tfx("export", exported.name, *options)
        assert (done.code, done.out) == (2, "")
        assert words in done.err

    def test_some_of_the_stems(
        self, tfx: Tfx, tmp_path: Path, tiny_spec: ModelSpec, tiny_hyper: dict[str, Any]
    ) -> None:
        """The network of one stem goes into the bundle, so that its owner can ask the server for it."""
        from tfswa.train.backend import new_bundle

        path = tmp_path / "two.tfx"
        stft, chunk = tiny_spec.stft, tiny_spec.chunk
        new_bundle("tfswa_lite", path, seed=1, hyper=tiny_hyper, stft=stft, chunk=chunk)
        done = tfx("export", path, "--stems", "vocals", "--format", "triton", "-o", tmp_path / "r", "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["name"] == "vocals"
        inside = open_model(path / "only" / "vocals.tfx")
        said = parameters(read_config(tmp_path / "r" / "vocals" / "config.pbtxt"))
        assert said["tfx.spec"] == triton.spec_digest(inside.spec)
        assert inside.artifact("onnx", "fp32") == ("model.onnx", said["tfx.sha256"])
