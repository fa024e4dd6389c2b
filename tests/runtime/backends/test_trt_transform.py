"""The transform on the GPU: engines of it around a network's, on the simulated one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_place import ENGINE, Place, nothing_else_collected
from numpy.typing import NDArray
from planes import Tensors
from simulated_gpu import Error, SimulatedCuda

from tfswa.runtime import backends
from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.backends.chain import Link
from tfswa.runtime.backends.trt import TrtSession
from tfswa.runtime.backends.trt_choice import Built
from tfswa.runtime.backends.trt_execution import Execution
from tfswa.runtime.errors import BackendUnavailable, BundleError, DeviceMemoryError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import (
    AUDIO,
    DECODE,
    ENCODE,
    INPUT,
    NEXT,
    OUTPUT,
    SAMPLES,
    STATE,
    STEM_SAMPLES,
    ChunkSpec,
    ModelSpec,
    StftSpec,
)
from tfswa.runtime.stream.codec import Codec
from tfswa.runtime.stream.separator import Separator

CUDA = BackendOptions(device="cuda")
PLAIN = ModelSpec(
    family="plain",
    stems=("vocals", "rest"),
    stft=StftSpec(n_fft=128, hop=32, sample_rate=8000),
    chunk=ChunkSpec(frames=16, context=3, fade=2, multiple=8),
)
CAUSAL = ModelSpec(
    family="causal",
    stems=("vocals", "rest"),
    stft=StftSpec(n_fft=128, hop=32, sample_rate=8000),
    chunk=ChunkSpec(frames=16, context=3, fade=0, multiple=8, context_after=4, early=2),
    samples=True,
    state={"last": (4, 64)},
)


def network(given: Tensors) -> dict[str, NDArray[np.float32]]:
    """Nothing but the right item of every input in the right place gives these outputs."""
    planes = given[INPUT]
    out = {OUTPUT: np.stack((0.25 * planes, 0.5 * np.flip(planes, 2)), axis=1)}
    if SAMPLES in given:
        out[STEM_SAMPLES] = np.stack((0.25 * given[SAMPLES], -given[SAMPLES]), axis=1)
        last = given[f"{STATE}last"]
        out[OUTPUT] = out[OUTPUT] + last[:, None, :, None]
        out[f"{NEXT}last"] = 0.5 * last + planes[:, :, 8]
    return out


def encoder(spec: ModelSpec) -> Callable[[Tensors], dict[str, NDArray[np.float32]]]:
    codec = Codec(spec)
    return lambda given: {INPUT: codec.tensors(given[SAMPLES], codec.spectra(given[SAMPLES]))[INPUT]}


def decoder(spec: ModelSpec) -> Callable[[Tensors], dict[str, NDArray[np.float32]]]:
    codec = Codec(spec)

    def run(given: Tensors) -> dict[str, NDArray[np.float32]]:
        items = [{name: value[item] for name, value in given.items()} for item in range(len(given[OUTPUT]))]
        spectra = codec.spectra(given[SAMPLES])
        stems = [codec.stems(*one) for one in zip(given[SAMPLES], spectra, items, strict=True)]
        return {AUDIO: np.stack(stems)}

    return run


@pytest.fixture(params=[PLAIN, CAUSAL], ids=lambda spec: spec.family)
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    register: Callable[..., None],
) -> Place:
    if "trt" not in backends.backend_names():
        register(backends, "trt", TrtSession)
    bundle = Bundle.create(tmp_path / "mine.tfx", request.param, {"w": np.zeros(1, np.float32)})
    return made(bundle, monkeypatch)


def made(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(bundle, monkeypatch, net_of(bundle.spec))
    place.answer(net_of(bundle.spec))
    place.transforms({ENCODE: encoder(bundle.spec), DECODE: decoder(bundle.spec)})
    return place


def net_of(spec: ModelSpec) -> Callable[..., Any]:
    """The network as ``Place`` takes it: of one that takes planes alone, a function of these."""
    return network if spec.state else lambda planes: network({INPUT: planes})[OUTPUT]


def noise(place: Place, batch: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(batch)
    takes = {**place.spec.transforms[ENCODE][0], **place.spec.takes}
    del takes[INPUT]
    return {name: random.standard_normal((batch, *shape)).astype(np.float32) for name, shape in takes.items()}


def one_by_one(place: Place, given: Tensors) -> dict[str, NDArray[np.float32]]:
    found: dict[str, Any] = {**given, **encoder(place.spec)(given)}
    found |= network({name: found[name] for name in place.spec.takes})
    found |= decoder(place.spec)(found)
    return {name: value for name, value in found.items() if name == AUDIO or name.startswith(NEXT)}


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("profile", [(1, 2, 4), (3, 3, 3)])
def test_samples_go_in_and_stems_come_out(place: Place, profile: tuple[int, int, int], greedy: bool) -> None:
    place.machine(SimulatedCuda(greedy=greedy), net_of(place.spec), profile=profile)
    with closing(place.open()) as session:
        assert session.transform == "encode.onnx and decode.onnx on cuda:0"
        assert set(session.versions) == {"tensorrt_rtx", ENCODE, DECODE}
        for batch in (1, 2, 3, 5, 8, 1):
            given = noise(place, batch)
            found, right = session.infer_samples(given), one_by_one(place, given)
            assert found.keys() == right.keys()
            for name, value in right.items():
                np.testing.assert_array_equal(found[name], value)
    place.left_nothing()


def test_nothing_else_goes_over_the_bus(place: Place) -> None:
    with closing(place.open()) as session:
        given = noise(place, 4)
        session.infer_samples(given)
        place.cuda.log.clear()
        out = session.infer_samples(given)
    copied = {
        way: [entry[2] for entry in place.cuda.log if entry[:2] == ("copy", way)] for way in ("in", "out")
    }
    assert sorted(copied["in"]) == sorted(value.nbytes for value in given.values())
    assert sorted(copied["out"]) == sorted(value.nbytes for value in out.values())
    assert [entry[0] for entry in place.cuda.log].count("launch") == 1  # one CUDA graph of all three


def test_the_network_alone_can_be_asked_still(place: Place) -> None:
    given = noise(place, 3)
    whole = {**given, **encoder(place.spec)(given)}
    planes = {name: whole[name] for name in place.spec.takes}
    with closing(place.open()) as session:
        first = session.infer_samples(given)
        for name, value in network(planes).items():
            np.testing.assert_array_equal(session.infer(planes)[name], value)
        np.testing.assert_array_equal(session.infer_samples(given)[AUDIO], first[AUDIO])
    place.left_nothing()


def test_a_song_is_what_the_host_makes_of_it(place: Place) -> None:
    samples = 5 * place.spec.chunk_samples + 7
    song = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    with Separator(place.model, backend="trt", options=CUDA, batch=3) as there:
        assert there.description.endswith("batch up to 4, STFT by encode.onnx and decode.onnx on cuda:0")
        found = there.separate(song)
    place.library.others.clear()
    forget(place)
    with Separator(place.model, backend="trt", options=CUDA, batch=3) as here:
        assert here.description.endswith("batch up to 4, STFT on the CPU")
        np.testing.assert_array_equal(found, here.separate(song))


@pytest.mark.parametrize("place", [PLAIN], indirect=True, ids=["plain"])
def test_the_wiener_filter_keeps_the_spectra_here(place: Place) -> None:
    with Separator(place.model, backend="trt", options=CUDA, wiener=1) as separator:
        assert separator.description.endswith("STFT on the CPU")
        separator.separate(np.zeros((2, 3000), np.float32))


def forget(place: Place) -> None:
    """A bundle without the transform as graphs."""
    for name in (ENCODE, DECODE):
        place.add(name, b"other graph", kind="transform", precision="fp32")


@pytest.mark.parametrize(
    ("details", "why"),
    [
        ({"batch": [1, 1, 2]}, "no engine of encode.onnx in"),
        ({"version": "1.6.0"}, "no engine of encode.onnx in"),
        ({"target": "compute capability 7.5"}, "no engine of encode.onnx in"),
    ],
)
def test_engines_that_do_not_fit_leave_it_to_the_cpu(
    place: Place, details: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.transforms({ENCODE: encoder(place.spec)}, **details)
    with caplog.at_level("INFO"), closing(place.open()) as session:
        assert session.transform == ""
        assert set(session.versions) == {"tensorrt_rtx"}
    assert f"{why} {place.model.name} fits: the CPU transforms; `tfx build-engine" in caplog.text


def test_another_graph_leaves_it_to_the_cpu(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    forget(place)
    with caplog.at_level("INFO"), closing(place.open()) as session:
        assert session.transform == ""
    assert "no engine of encode.onnx in" in caplog.text


def test_a_network_of_float16_ends_leaves_it_to_the_cpu(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.library.types[INPUT] = "HALF"

    def rounded(planes: NDArray[np.float32]) -> NDArray[np.float32]:
        return planes.astype(np.float16).astype(np.float32)

    if place.spec.state:
        place.answer(lambda given: network({**given, INPUT: rounded(given[INPUT])}))
    else:
        place.answer(lambda planes: network({INPUT: rounded(planes)})[OUTPUT])
    with caplog.at_level("INFO"), closing(place.open()) as session:
        assert session.transform == ""
    assert f"{ENGINE} does not take float32: the CPU transforms" in caplog.text


def test_without_memory_for_it_the_cpu_transforms_and_that_is_said(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.open().close()
    most = place.cuda.most
    place.machine(SimulatedCuda(total=most - 1), net_of(place.spec), profile=(4, 4, 4))
    with closing(place.open()) as session:
        assert session.transform == ""
        given = noise(place, 2)
        planes = {name: {**given, **encoder(place.spec)(given)}[name] for name in place.spec.takes}
        np.testing.assert_array_equal(session.infer(planes)[OUTPUT], network(planes)[OUTPUT])
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the CPU transforms: ")
    assert "of GPU memory" in warning
    place.left_nothing()


@pytest.mark.parametrize("profile", [(1, 2, 4), (4, 4, 4)])
def test_what_is_tried_alone_takes_no_more_than_all_together(
    place: Place, profile: tuple[int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The network, once open, leaves no memory for what is tried beside it; all three in its place fit."""
    place.machine(SimulatedCuda(), net_of(place.spec), profile=profile)
    with closing(place.open()):
        needed = place.cuda.used
    for batch in profile[::2]:
        place.machine(SimulatedCuda(total=needed), net_of(place.spec), profile=profile)
        with closing(place.open()) as session:
            assert session.transform
            assert session.description.endswith(f"batch up to {profile[-1]}")
            given = noise(place, batch)
            right, found = one_by_one(place, given), session.infer_samples(given)
            np.testing.assert_array_equal(found[AUDIO], right[AUDIO])
            planes = {name: {**given, **encoder(place.spec)(given)}[name] for name in place.spec.takes}
            np.testing.assert_array_equal(session.infer(planes)[OUTPUT], network(planes)[OUTPUT])
            np.testing.assert_array_equal(session.infer_samples(given)[AUDIO], right[AUDIO])
            assert place.cuda.used <= needed
        place.left_nothing()
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_memory_that_runs_out_while_the_transform_is_tried_leaves_it_to_the_cpu(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts take memory of their own; one for another batch is made when it is first asked for."""
    made = Execution._context

    def full(self: Execution, stage: Link, config: Any, slot: Any, batch: int) -> Any:
        if AUDIO in stage.gives and batch == 1 and len(self._stages) == 3:
            raise DeviceMemoryError("tensorrt_rtx made no execution context for batch 1: out of memory")
        return made(self, stage, config, slot, batch)

    monkeypatch.setattr(Execution, "_context", full)
    with closing(place.open()) as session:
        assert session.transform == ""
        planes = {INPUT: np.ones(place.spec.input_shape(1), np.float32)}
        planes = {
            name: planes.get(name, np.zeros((1, *shape), np.float32))
            for name, shape in place.spec.takes.items()
        }
        np.testing.assert_array_equal(session.infer(planes)[OUTPUT], network(planes)[OUTPUT])
    place.left_nothing()


def test_the_engines_that_ran_are_named_among_the_versions(place: Place) -> None:
    """A certificate of one build does not hold for another, though the graphs are the same."""
    with closing(place.open()) as session:
        before = dict(session.versions)
    files = Bundle.open(place.path).files
    assert before[ENCODE] == files[place.engine_of(ENCODE)].sha256
    about = files[place.engine_of(ENCODE)].details
    again = b"engine of encode.onnx, built again"
    place.library.others[again] = place.library.others[b"engine of encode.onnx"]
    place.add(place.engine_of(ENCODE), again, kind="transform engine", precision="fp32", details=about)
    with closing(place.open()) as session:
        assert session.transform
        assert session.versions[ENCODE] != before[ENCODE]
        assert session.versions[DECODE] == before[DECODE]


def test_the_command_that_builds_one_is_named_once(place: Place) -> None:
    place.machine_of(ENCODE, lambda given: {INPUT: 0.5 * encoder(place.spec)(given)[INPUT]})
    name = str(place.path)
    build = f"tfx build-engine {name} --precision fp32 --flavor rtx --batch 1,2,4 --force"
    place.refuses(BundleError, f"rebuild it with `{re.escape(build)}`$")


@pytest.mark.parametrize("graph", [ENCODE, DECODE])
def test_one_that_does_not_give_its_answer_is_refused(place: Place, graph: str) -> None:
    def off(given: Tensors) -> dict[str, NDArray[np.float32]]:
        right = {ENCODE: encoder, DECODE: decoder}[graph](place.spec)(given)
        return {name: value * np.float32(1.001) for name, value in right.items()}

    place.machine_of(graph, off)
    place.refuses(BundleError, rf"{place.engine_of(graph)} reaches 60\.0 dB SNR in its self-test, fp32 must")


def test_a_wrong_stem_does_not_hide_behind_a_louder_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planes of scale 1 are large: noise in them is quiet beside the mixture in the residual stem."""
    stft = StftSpec(n_fft=4096, hop=1024, sample_rate=8000, scale=1.0)
    spec = dataclasses.replace(PLAIN, stft=stft, residual_stem="rest")
    place = made(Bundle.create(tmp_path / "mine.tfx", spec, {"w": np.zeros(1, np.float32)}), monkeypatch)

    def off(given: Tensors) -> dict[str, NDArray[np.float32]]:
        return decoder(spec)({**given, OUTPUT: given[OUTPUT] * np.float32(1.001)})

    place.machine_of(DECODE, off)
    place.refuses(BundleError, r"decode\.engine reaches 60\.\d dB SNR in its self-test, fp32 must reach 80")


def test_a_chain_that_gives_something_else_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only shows when all three are at work."""
    opened, count = TrtSession._open, [0]

    def watched(self: TrtSession, stages: Sequence[Link], built: Sequence[Built]) -> Execution:
        count[0] = len(stages)
        return opened(self, stages, built)

    def breaks(given: Tensors) -> dict[str, NDArray[np.float32]]:
        right = decoder(place.spec)(given)
        return {name: value + np.float32(0.5 * (count[0] == 3)) for name, value in right.items()}

    monkeypatch.setattr(TrtSession, "_open", watched)
    place.machine_of(DECODE, breaks)
    place.refuses(
        BundleError, r"give together -?\d+\.\d dB SNR of what they give one by one, fp32 must reach"
    )


def test_damaged_additions_to_a_sealed_bundle_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.create(tmp_path / "mine.tfx", PLAIN, {"w": np.zeros(1, np.float32)})
    bundle.seal()
    place = made(bundle, monkeypatch)
    for name in (place.engine_of(DECODE), ENCODE):
        with closing(place.open()) as session:
            assert session.transform
        whole = (bundle.home / name).read_bytes()
        (bundle.home / name).write_bytes(b"damaged")
        with closing(place.open()) as session:
            assert session.transform == ""
        assert f"{bundle.home / name} is damaged: it is left out" in caplog.text
        (bundle.home / name).write_bytes(whole)
    (bundle.home / ENGINE).write_bytes(b"damaged")
    place.refuses(BackendUnavailable, "holds no engine in fp32: build one with")


@pytest.mark.no_cover
def test_a_failure_at_any_point_of_opening_leaves_nothing(place: Place) -> None:
    place.open().close()
    calls = place.cuda.calls
    refused = 0
    with nothing_else_collected():
        for broken in range(1, calls + 1, 3):
            place.machine(net=net_of(place.spec))
            place.cuda.fail = lambda name, at=broken: (
                Error.cudaErrorInvalidValue
                if place.cuda.calls == at and "Free" not in name and "Destroy" not in name
                else None
            )
            try:
                place.open().close()
            except BackendUnavailable:
                refused += 1
            place.left_nothing()
    assert refused > 20
