"""The trt backend, on a simulated GPU: what it computes, in which order, what it refuses, what it leaves."""

from __future__ import annotations

import gc
import hashlib
import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_place import ENGINE, Place, network, nothing_else_collected
from numpy.typing import NDArray
from planes import Tensors, infer_planes
from simulated_gpu import Context, Engine, Error, RuntimeConfig, SimulatedCuda

from tfswa.runtime import backends
from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.backends.engines import probe, probe_planes
from tfswa.runtime.backends.trt import TrtSession
from tfswa.runtime.errors import BackendUnavailable, BundleError, CudaError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.separator import Separator

CUDA = BackendOptions(device="cuda")
SAME = 1e-6  # of full scale: float32, the same operations
PROBE = (
    "2b3c0f8ffd5ba6ef"  # SHA-256 of the probe's bits: another one would refuse every engine that was built
)


def planes(spec: ModelSpec, batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal(spec.input_shape(batch)).astype(np.float32)


@pytest.fixture
def registered(register: Callable[..., None]) -> None:
    if "trt" not in backends.backend_names():  # the tree has not been installed since it has this backend
        register(backends, "trt", TrtSession)


@pytest.fixture
def place(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, registered: None) -> Place:
    place = Place(tiny_bundle, monkeypatch)
    place.answer(network)
    return place


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("profile", [(1, 2, 4), (2, 2, 4), (3, 3, 3), (1, 1, 1)])
def test_any_batch_gives_the_right_stems(place: Place, profile: tuple[int, int, int], greedy: bool) -> None:
    place.machine(SimulatedCuda(greedy=greedy), profile=profile)
    with closing(place.open()) as session:
        for batch in (1, 2, 3, 5, 8, 13, 1):
            mixture = planes(place.spec, batch)
            stems = infer_planes(session, mixture)
            assert (stems.shape, stems.dtype) == (place.spec.output_shape(batch), np.float32)
            np.testing.assert_array_equal(stems, network(mixture))


def causal_network(given: Tensors) -> dict[str, NDArray[np.float32]]:
    """Nothing but the right item of every input in the right place gives these outputs."""
    mixture, memory, total = given["mixture"], given["state.memory"], given["state.total"]
    return {
        "stems": network(mixture) + total[:, :1, np.newaxis, np.newaxis, np.newaxis],
        "stem_samples": np.stack((0.25 * given["samples"], 0.5 * np.flip(given["samples"], -1)), axis=1),
        "next.memory": np.flip(memory, -1) + np.round(mixture[:, 0, :3, :5]),
        "next.total": total + memory.sum(axis=1)[:, :2],
    }


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("profile", [(1, 2, 4), (3, 3, 3)])
@pytest.mark.parametrize("kind", ["FLOAT", "HALF"])
def test_a_network_with_state_and_samples_goes_through_in_pieces(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registered: None,
    profile: tuple[int, int, int],
    greedy: bool,
    kind: str,
) -> None:
    spec = ModelSpec(
        family="causal",
        stems=("vocals", "accompaniment"),
        stft=StftSpec(n_fft=512, hop=128, sample_rate=8000),
        chunk=ChunkSpec(frames=16, context=3, fade=2, multiple=8, context_after=4, early=2),
        samples=True,
        state={"memory": (3, 5), "total": (2,)},
    )
    filled: list[bool] = []  # of each run, whether what lies behind the first item was silence

    def watched(given: Tensors) -> Tensors:
        filled.append(not any(value[1:].any() for value in given.values()))
        return causal_network(given)

    bundle = Bundle.create(tmp_path / "causal.tfx", spec, {"w": np.zeros(1, np.float32)})
    place = Place(bundle, monkeypatch, causal_network)
    place.machine(SimulatedCuda(greedy=greedy), watched, profile=profile)
    place.library.types |= dict.fromkeys(("state.memory", "next.memory"), kind)  # small integers: exact
    place.answer(causal_network)
    with closing(place.open()) as session:
        for batch in (1, 2, 3, 5, 8, 13, 1):
            random = np.random.default_rng(batch)
            given = {
                name: random.integers(-9, 10, (batch, *shape)).astype(np.float32)
                for name, shape in spec.takes.items()
            }
            found, wanted = session.infer(given), causal_network(given)
            assert list(found) == list(spec.gives)
            for name, value in found.items():
                assert (value.shape, value.dtype) == ((batch, *spec.gives[name]), np.float32)
                np.testing.assert_array_equal(value, wanted[name])
        assert filled[-1]  # the last batch was one item
    place.left_nothing()


def test_a_session_says_what_it_runs(place: Place) -> None:
    session = open_session("trt", place.model, CUDA)
    assert session.name == "trt"
    assert session.artifact == (ENGINE, place.model.bundle.files[ENGINE].sha256)
    assert session.versions == {"tensorrt_rtx": "1.7.1.116"}
    about = "tensorrt_rtx 1.7.1.116, fp32 on NVIDIA Simulated (cuda:0), batch up to 4"
    assert session.description == about
    session.close()
    session.close()
    place.left_nothing()


def test_float16_at_both_ends(place: Place) -> None:
    place.library.types = {"mixture": "HALF", "stems": "HALF"}
    place.add("model.fp16.onnx", b"half", kind="onnx", precision="fp16")
    digest = place.model.bundle.files["model.fp16.onnx"].sha256
    place.engine(precision="fp16", onnx_sha256=digest)
    mixture = planes(place.spec, 3)
    with closing(place.open(precision="fp16")) as session:
        stems = infer_planes(session, mixture)
    half = np.float16
    np.testing.assert_array_equal(stems, network(mixture.astype(half).astype(np.float32)).astype(half))


def test_a_small_piece_is_filled_up_with_silence(place: Place) -> None:
    seen: list[NDArray[np.float32]] = []

    def watched(mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(mixture.copy())
        return network(mixture)

    place.machine(net=watched, profile=(3, 3, 3))
    with closing(place.open()) as session:
        infer_planes(session, planes(place.spec, 3) + 10)
        infer_planes(session, planes(place.spec, 1))
    assert seen[-1].shape[0] == 3
    assert seen[-1][0].any()
    assert not seen[-1][1:].any()


def test_an_answer_is_the_callers_own(place: Place) -> None:
    with closing(place.open()) as session:
        first = infer_planes(session, planes(place.spec, 2))
        kept = first.copy()
        infer_planes(session, planes(place.spec, 2) + 1)
        np.testing.assert_array_equal(first, kept)


def test_copies_overlap_with_compute(place: Place) -> None:
    """Piece k + 1 is on its way, and queued behind piece k, before the host waits for piece k."""
    with closing(place.open()) as session:
        place.cuda.log.clear()
        infer_planes(session, planes(place.spec, 16))
    kinds = [entry[0] if entry[0] != "copy" else entry[1] for entry in place.cuda.log]
    piece = ["in", "launch", "out"]
    assert kinds == piece * 2 + (["wait", *piece]) * 2 + ["wait"] * 2
    waits = [entry[1] for entry in place.cuda.log if entry[0] == "wait"]
    assert waits[0] != waits[1]
    assert waits == waits[:2] * 2


def test_a_graph_is_recorded_once_per_batch_and_slot_and_replayed(place: Place) -> None:
    with closing(place.open()) as session:
        for _ in range(3):
            infer_planes(session, planes(place.spec, 8 + 3))
        log = place.cuda.log
        # Batch 4 in both slots and batch 1 in the second one by the self-test, batch 3 in the first one here.
        assert [entry for entry in log if entry[0] == "captured"] == [("captured", 1)] * 4
        assert sorted(entry[1] for entry in log if entry[0] == "enqueue") == [1, 1, 3, 3, 4, 4, 4, 4]
        launches = [entry[1] for entry in log if entry[0] == "launch"]
        assert len(launches) == 2 + 3 * 3
        assert len(set(launches)) == 4


@pytest.mark.parametrize("how", ["asked", "begin", "end", "instantiate"])
def test_without_a_graph_the_stems_are_the_same(
    place: Place, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = {
        "begin": "cudaStreamBeginCapture",
        "end": "cudaStreamEndCapture",
        "instantiate": "cudaGraphInstantiate",
    }
    if how == "asked":
        place.library.capturable = False
    else:
        unable = Error.cudaErrorStreamCaptureUnsupported
        place.cuda.fail = lambda name: unable if name == names[how] else None
    mixture = planes(place.spec, 7)
    with caplog.at_level("INFO"), closing(place.open()) as session:
        np.testing.assert_array_equal(infer_planes(session, mixture), network(mixture))
    assert "going on without" in caplog.text
    assert not [entry for entry in place.cuda.log if entry[0] == "launch"]
    place.left_nothing()


def test_a_small_batch_may_need_more_scratch_memory_than_a_large_one(place: Place) -> None:
    place.library.scratch = lambda batch: 1000 // batch
    mixture = planes(place.spec, 11)
    with closing(place.open()) as session:
        for batch in (11, 6, 1, 11):
            np.testing.assert_array_equal(infer_planes(session, mixture[:batch]), network(mixture[:batch]))
    place.left_nothing()


def test_two_sessions_do_not_meet(place: Place) -> None:
    one, two = place.open(), place.open()
    first, second = planes(place.spec, 5), planes(place.spec, 6)
    np.testing.assert_array_equal(infer_planes(one, first), network(first))
    np.testing.assert_array_equal(infer_planes(two, second), network(second))
    one.close()
    np.testing.assert_array_equal(infer_planes(two, first), network(first))
    two.close()
    place.left_nothing()


def test_another_thread_and_another_gpu(place: Place) -> None:
    place.machine(SimulatedCuda(devices=2))
    session = place.open(device="cuda:1")
    assert "(cuda:1)" in session.description
    found = []
    thread = threading.Thread(target=lambda: found.append(infer_planes(session, planes(place.spec, 3))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], network(planes(place.spec, 3)))
    session.close()


def test_a_thousand_sessions_leave_nothing(place: Place) -> None:
    place.machine(profile=(1, 1, 1))
    model = place.model
    for _ in range(1000):
        TrtSession(model, CUDA).close()
    place.left_nothing()


@pytest.mark.no_cover
def test_a_failure_at_any_point_of_opening_leaves_nothing(place: Place) -> None:
    place.open().close()
    calls = place.cuda.calls
    refused = 0
    with nothing_else_collected():
        for broken in range(1, calls + 1):
            place.machine()
            place.cuda.fail = lambda name, at=broken: (
                Error.cudaErrorInvalidValue if place.cuda.calls == at and not give_back(name) else None
            )
            try:
                place.open().close()
            except BackendUnavailable:
                refused += 1
            place.left_nothing()
    assert refused > 40


def give_back(name: str) -> bool:
    return "Free" in name or "Destroy" in name


def test_an_error_in_a_song_leaves_a_session_that_works(place: Place) -> None:
    session, mixture = place.open(), planes(place.spec, 12)
    for name in ("cudaMemcpyAsync", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"):
        left = iter([None, Error.cudaErrorInvalidValue])
        place.cuda.fail = lambda found, name=name, left=left: next(left, None) if found == name else None
        with pytest.raises(CudaError, match=rf"^{name} on cuda:0 gave cudaErrorInvalidValue, it failed$"):
            infer_planes(session, mixture)
        assert place.cuda.idle
        np.testing.assert_array_equal(infer_planes(session, mixture), network(mixture))
    session.close()
    place.left_nothing()


def test_what_cannot_be_given_back_is_said_and_the_rest_is(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    session = place.open()
    place.cuda.fail = lambda name: Error.cudaErrorInvalidValue if name == "cudaEventDestroy" else None
    session.close()
    assert caplog.text.count("cudaEventDestroy on cuda:0 gave") == 6
    gc.collect()
    assert {kind for kind, count in place.cuda.live.items() if count} == {"event"}


def test_without_memory_it_goes_on_with_half_the_batch(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    item = 4 * (np.prod(place.spec.input_shape(1)) + np.prod(place.spec.output_shape(1)))
    place.machine(SimulatedCuda(total=int(2 * 2 * item + 1000)))
    session = place.open()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    reason = "cudaMalloc on cuda:0 gave cudaErrorMemoryAllocation, out of memory"
    assert warnings == [f"no memory for batch 4 ({reason}): going on with batch 2"]
    assert session.description.endswith("batch up to 2")
    mixture = planes(place.spec, 7)
    np.testing.assert_array_equal(infer_planes(session, mixture), network(mixture))
    session.close()
    place.left_nothing()


def test_a_library_that_finds_no_memory_is_understood(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """And what it said then is not the reason of a later failure."""
    made = Engine.create_execution_context
    reasons = ["Error Code 2: OutOfMemory (Requested size was 7 bytes.)", "Error Code 9: Internal"]

    def refuse(engine: Engine, config: Any) -> Any:
        if not reasons:
            return made(engine, config)
        place.library.logger.log(place.library.ILogger.ERROR, reasons.pop(0))
        return None

    place.patch.setattr(Engine, "create_execution_context", refuse)
    place.refuses(CudaError, r"1\.116 made no execution context for batch 2: Error Code 9: Internal$")
    assert "no memory for batch 4 (tensorrt_rtx 1.7.1.116 made no execution context" in caplog.text
    place.open().close()


def test_without_memory_for_the_smallest_batch_both_figures_are_said(place: Place) -> None:
    place.machine(SimulatedCuda(total=2 << 20), profile=(8, 8, 12))
    place.refuses(
        BackendUnavailable,
        r"abcdef\.engine needs about 4 MB of GPU memory, cuda:0 has 2 of 2 MB free \(.*\): end what else",
    )


def test_weights_that_do_not_fit(place: Place) -> None:
    place.library.refuses = "Error Code 2: OutOfMemory (Requested size was 7 bytes.)"
    place.refuses(BackendUnavailable, r"needs about 1 MB .*OutOfMemory .*: end what else uses it")


def test_an_engine_that_cannot_be_loaded(place: Place) -> None:
    place.engine(b"foreign")
    place.refuses(
        BundleError,
        r"tensorrt_rtx 1\.7\.1\.116 cannot load .*abcdef\.engine: magic tag does not match; rebuild it with "
        r"`tfx build-engine .*tiny\.tfx --precision fp32 --flavor rtx --batch 1,2,4 --force`",
    )


def test_a_truncated_engine(place: Place) -> None:
    (place.path / ENGINE).write_bytes(b"engin")
    place.refuses(BundleError, r"abcdef\.engine is damaged: its SHA-256 is")


def test_an_engine_that_does_not_run(place: Place) -> None:
    place.library.refuses = ""
    loaded = place.library._engine

    def load(plan: bytes) -> Any:
        engine, place.library.refuses = loaded(plan), "Error Code 1: Cuda Runtime (invalid argument)"
        return engine

    place.library._engine = load  # type: ignore[method-assign]
    place.refuses(BackendUnavailable, r"could not run the engine: Error Code 1: Cuda Runtime \(invalid arg")


@pytest.mark.parametrize(
    ("details", "match"),
    [
        (
            {"target": "compute capability 8.9"},
            r"abcdef\.engine was built for compute capability 8\.9, cuda:0 is NVIDIA Simulated, compute "
            r"capability 9\.0: rebuild it with `tfx build-engine .* --precision fp32 --flavor rtx",
        ),
        ({"target": "NVIDIA Other, compute capability 9.0"}, "was built for NVIDIA Other, compute"),
        ({"version": "1.6.0"}, r"was built by version 1\.6\.0, tensorrt_rtx here is 1\.7\.1\.116: rebuild"),
        (
            {"onnx_sha256": "0" * 64},
            r"was built from other weights \(SHA-256 0{12}, model\.onnx has \w{12}\)",
        ),
        ({"version": "1", "target": "compute capability 7.5"}, r"version 1, .* and was built for .*7\.5, "),
    ],
)
def test_an_engine_of_another_place_is_refused(place: Place, details: dict[str, Any], match: str) -> None:
    place.engine(**details)
    place.refuses(BackendUnavailable, match)


@pytest.mark.parametrize("target", ["compute capability 9.0", "NVIDIA Simulated, compute capability 9.0"])
def test_an_engine_of_this_gpu_is_run_before_a_portable_one(place: Place, target: str) -> None:
    name = "engines/own.engine"
    place.engine(name=name, target=target, batch=[1, 1, 1])
    place.answer(network, name)
    with closing(place.open()) as session:
        assert session.artifact[0] == name


def test_of_several_engines_the_one_that_is_nearest_is_named(place: Place) -> None:
    place.engine(version="1", onnx_sha256="0" * 64)
    place.engine(name="engines/near.engine", version="2")
    place.refuses(BackendUnavailable, r"engines/near\.engine was built by version 2, ")


def test_a_model_without_an_engine_in_the_precision(place: Place) -> None:
    place.refuses(
        BackendUnavailable,
        r"tiny\.tfx holds no engine in fp16: build one with `tfx build-engine .*tiny\.tfx --precision fp16`",
        precision="fp16",
    )


def test_an_unknown_precision(place: Place) -> None:
    place.refuses(UsageError, "no precision 'int4': choose fp32, fp16, bf16", precision="int4")


@pytest.mark.parametrize(
    ("device", "match"),
    [
        ("cpu", "device cpu asked for, engines run on GPUs: use --device cuda"),
        ("cuda:1", "device cuda:1 asked for, 1 CUDA devices found: use --device cuda"),
        ("cuda:", "unknown device 'cuda:'"),
        ("gpu", "unknown device 'gpu': engines run on cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(place: Place, device: str, match: str) -> None:
    place.refuses(BackendUnavailable, match, device=device)


@pytest.mark.parametrize(("driver", "advice"), [(True, "mend the NVIDIA driver, or use"), (False, "use")])
def test_no_gpu(place: Place, tmp_path: Path, driver: bool, advice: str) -> None:
    place.patch.setattr("tfswa.runtime.backends.cuda.DRIVER", tmp_path if driver else tmp_path / "none")
    place.cuda.fail = lambda name: Error.cudaErrorNoDevice if name == "cudaGetDeviceCount" else None
    place.refuses(
        BackendUnavailable,
        r"device cuda:0 asked for, no CUDA device can be used \(cudaGetDeviceCount on cuda:0 gave "
        rf"cudaErrorNoDevice, no CUDA-capable device is detected\): {advice} another --backend$",
    )
    place.machine(SimulatedCuda(devices=0))
    place.refuses(BackendUnavailable, "cuda:0 asked for, 0 CUDA devices found: use another --backend")


def test_the_real_cuda_without_a_gpu(place: Place) -> None:
    place.patch.delitem(sys.modules, "cuda.bindings.runtime")
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU here")
    place.refuses(BackendUnavailable, r"no CUDA device can be used \(cudaGetDeviceCount on cuda:0 gave cuda")


def test_a_missing_library_names_its_extra(place: Place) -> None:
    place.patch.setitem(sys.modules, "tensorrt_rtx", None)
    place.refuses(BackendUnavailable, r"backend trt needs tensorrt_rtx .*pip install 'tfswa\[trt-rtx\]'")
    place.engine(onnx_sha256="0" * 64)
    place.refuses(
        BackendUnavailable, "needs tensorrt_rtx, which is not here and was built from other weights"
    )
    place.patch.setitem(sys.modules, "cuda.bindings.runtime", None)
    place.refuses(BackendUnavailable, r"needs cuda\.bindings\.runtime .*pip install 'tfswa\[trt-rtx\]'")


def test_an_exported_file_is_refused(place: Place) -> None:
    from tfswa.runtime.model.opening import FileModel

    model = FileModel("model.onnx", place.path / "model.onnx", "onnx", "fp32", place.spec, "0" * 64)
    with pytest.raises(BackendUnavailable, match=r"model\.onnx is an exported file, engines are in bundles"):
        TrtSession(model, CUDA)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"types": {"mixture": "FLOAT", "stems": "INT8"}},
            r"abcdef\.engine has mixture FLOAT, stems INT8, each may be FLOAT or HALF$",
        ),
        (
            {"tensors": {"mixture": "input", "stems": "input"}},
            "has the inputs and outputs mixture, stems, its model's are mixture and stems: build it with",
        ),
        (
            {"tensors": {"mixture": "input", "a": "output", "b": "output"}},
            "has the inputs and outputs mixture, a, b, its model's are mixture and stems: build it with",
        ),
        (
            {"takes": {"mixture": (2, 16, 256)}},
            r"takes \[1, 2, 16, 256\], the model's spec says \[1, 4, 16, 256\]: exp",
        ),
        (
            {"gives": {"stems": (3, 4, 16, 256)}},
            r"stems are \[4, 3, 4, 16, 256\], the model's spec says \[4, 2, 4, 16, ",
        ),
    ],
)
def test_an_engine_that_is_not_the_specs(place: Place, change: dict[str, Any], match: str) -> None:
    for name, value in change.items():
        setattr(place.library, name, value)
    place.refuses(BundleError, match)


def test_an_engine_that_gives_another_answer_is_refused(place: Place) -> None:
    place.machine(net=lambda mixture: network(mixture) * np.float32(1.001))
    place.refuses(
        BundleError,
        r"abcdef\.engine reaches 60\.0 dB SNR in its self-test, fp32 must reach 80: rebuild it with `tfx",
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_an_engine_that_fails_at_one_batch_alone_is_refused(place: Place, batch: int) -> None:
    def blank(mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        return network(mixture) * (len(mixture) != batch)

    place.machine(net=blank)
    place.refuses(BundleError, r"reaches 0\.0 dB SNR in its self-test")


def test_an_engine_that_gives_nan_is_refused(place: Place) -> None:
    def overflow(mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        stems = network(mixture)
        stems[:, 0, 0, 0, 0] = np.nan  # one number in 32768, between the samples of the answer
        return stems

    place.machine(net=overflow)
    place.refuses(BundleError, r"abcdef\.engine gives NaN or Inf in its self-test on this GPU: rebuild")


def test_an_engine_without_an_answer_is_refused(place: Place) -> None:
    name = "engines/old.engine"
    place.engine(name=name, target="compute capability 9.0")
    place.refuses(
        BackendUnavailable,
        r"old\.engine was built without an answer to its self-test, engines/old\.npy: rebuild it with `tfx",
    )


def test_an_answer_of_another_size_is_refused(place: Place) -> None:
    place.answer(lambda mixture: network(mixture)[..., ::2])
    place.refuses(BundleError, r"\.npy has \d+ numbers, the engine gives \d+: rebuild it")


def test_silence_answers_silence(place: Place) -> None:
    place.answer(lambda mixture: network(mixture) * 0)
    place.refuses(BundleError, "reaches -inf dB SNR in its self-test")
    place.machine(net=lambda mixture: network(mixture) * 0)
    place.open().close()


def test_the_simulated_cuda_has_the_calls_of_the_real_one(place: Place) -> None:
    place.patch.delitem(sys.modules, "cuda.bindings.runtime")
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    calls = {name: call for name, call in vars(SimulatedCuda).items() if inspect.isfunction(call)}
    calls = {name: call for name, call in calls.items() if name.startswith("cuda")}
    assert len(calls) > 20
    for name, call in calls.items():
        signature = (getattr(runtime, name).__doc__ or "").split("\n")[0]
        arguments = signature.partition("(")[2].rpartition(")")[0]
        assert len(inspect.signature(call).parameters) - 1 == len(arguments.split(",")) * bool(arguments), (
            name
        )
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        names = [name for name in vars(getattr(SimulatedCuda, kind)) if name.startswith("cuda")]
        assert names
        assert all(hasattr(getattr(runtime, kind), name) for name in names)
    assert SimulatedCuda.cudaEventDisableTiming == runtime.cudaEventDisableTiming
    assert SimulatedCuda.cudaStreamNonBlocking == runtime.cudaStreamNonBlocking


@pytest.mark.trt
def test_the_simulated_tensorrt_has_the_members_of_the_real_one(place: Place) -> None:
    place.patch.delitem(sys.modules, "tensorrt_rtx")
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    for fake, name in (
        (Engine, "ICudaEngine"),
        (Context, "IExecutionContext"),
        (RuntimeConfig, "IRuntimeConfig"),
    ):
        members = [member for member in vars(fake) if not member.startswith("_")]
        assert members
        assert [member for member in members if not hasattr(getattr(real, name), member)] == []
    assert hasattr(real.ICudaEngine, "device_memory_size_v2")
    assert hasattr(real.ICudaEngine, "num_io_tensors")
    assert hasattr(real.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(real.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(real.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert {"FLOAT", "HALF"} <= set(real.DataType.__members__)
    assert {"INPUT", "OUTPUT"} <= set(real.TensorIOMode.__members__)


def test_the_probe_is_the_same_for_ever(place: Place) -> None:
    first = probe_planes(place.spec)
    assert (first.shape, first.dtype) == (place.spec.input_shape(1), np.float32)
    np.testing.assert_array_equal(first, probe_planes(place.spec))
    (alone,) = probe(place.spec).values()
    np.testing.assert_array_equal(first, alone)
    assert hashlib.sha256(first.tobytes()).hexdigest()[:16] == PROBE
    assert 0.05 < float(first.std()) < 1.0
    assert float(np.abs(first).max()) <= 4.0


def test_a_song_through_the_whole_house(
    network_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    """The simulated engine computes what onnxruntime computes, so both give the same stems."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: export makes the graph")
    from tfswa.export.engine import answer
    from tfswa.export.onnx import export_onnx

    model = open_model(network_bundle.path)
    export_onnx(model)
    place = Place(Bundle.open(network_bundle.path), monkeypatch)
    noise = np.random.default_rng(11).standard_normal((2, 9 * place.spec.chunk_samples)).astype(np.float32)
    with Separator(place.model, backend="ort") as reference:
        place.machine(net=partial(infer_planes, reference.session))
        place.store_answer(answer(model))
        with Separator(place.model, backend="trt", options=CUDA, batch=6) as separator:
            stems = separator.separate(0.1 * noise)
        np.testing.assert_allclose(stems, reference.separate(0.1 * noise), rtol=0, atol=SAME)
    place.left_nothing()
