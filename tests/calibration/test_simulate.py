"""The simulator: a plan in its one session is the real graph of that plan, a switch its group's alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the graph needs it")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("torch", reason="torch is not installed: calibration needs it")

from tfswa.calibration.groups import Group, groups  # noqa: E402
from tfswa.calibration.ranges import Collector  # noqa: E402
from tfswa.calibration.simulate import FULL, HALF, INT8, Simulator  # noqa: E402
from tfswa.export.plan import Low  # noqa: E402
from tfswa.export.precision import rounded, typed  # noqa: E402
from tfswa.export.quantize import KINDS, layers, quantize_graph  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import open_model  # noqa: E402
from tfswa.runtime.stream.transform import Stft  # noqa: E402

Planes = NDArray[np.float32]

SAME_DB = 90.0  # the order of sums alone
SIMULATED_DB = 35.0  # what is asked of a simulation of 8 bits
CLOSER_DB = 20.0  # than the float32 network is: it is these 8 bits that are simulated, and no others


@pytest.fixture(scope="module")
def planes(exported_bundle: Path) -> Planes:
    """Two chunks in which every group of layers matters: voices with vibrato, bursts and a floor of noise."""
    spec = open_model(exported_bundle).spec
    random, rate = np.random.default_rng(20_251), spec.stft.sample_rate
    seconds = np.arange(2 * spec.chunk_samples) / rate
    signal = 1e-3 * random.standard_normal((spec.channels, seconds.size))
    for pitch_hz in (110.0, 277.2, 415.3):
        vibrato = 0.006 * np.sin(2 * np.pi * random.uniform(4.5, 6.5) * seconds)
        phase = 2 * np.pi * pitch_hz * (seconds + vibrato / 6.0)
        pan = random.uniform(0.3, 1.0, (spec.channels, 1))
        for harmonic in range(1, int(min(12.0, rate / 2 / pitch_hz))):
            signal += pan / harmonic * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    for start in range(0, seconds.size, rate // 4):
        burst = min(rate // 8, seconds.size - start)
        decay = np.exp(-np.arange(burst) / (0.02 * rate))
        signal[:, start : start + burst] += 3.0 * decay * random.standard_normal((spec.channels, burst))
    signal *= 0.2 / np.sqrt(np.mean(signal**2))
    chunks = np.stack(np.split(signal.astype(np.float32), 2, axis=-1))
    return Stft(spec.stft).planes(chunks)


@pytest.fixture(scope="module")
def ranges(full: Any, exported_bundle: Path, planes: Planes) -> dict[str, float]:
    collector = Collector(full, open_model(exported_bundle).spec)
    for chunk in planes:
        collector.add(chunk[None])
    return collector.ranges("mse")


@pytest.fixture(scope="module")
def members(full: Any) -> dict[str, Group]:
    return groups(full)


@pytest.fixture(scope="module")
def simulator(full: Any, members: dict[str, Group], ranges: dict[str, float]) -> Simulator:
    return Simulator(full, members, ranges, "bf16")


@pytest.fixture(scope="module")
def right(full: Any, planes: Planes) -> Planes:
    """What the float32 graph gives."""
    return run(full, planes)


def run(graph: Any, planes: Planes) -> Planes:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    stems: Planes = session.run(None, {"mixture": planes})[0]
    return stems


def real(full: Any, ranges: dict[str, float], members: dict[str, Group], chosen: Collection[str]) -> Any:
    """The graph with these groups in 8 bits."""
    return quantize_graph(full, ranges, [name for group in chosen for name in members[group].layers])


def near(one: Planes, two: Planes) -> float:
    return snr_db(one, two) or 0.0


def test_no_plan_is_the_float_graph(simulator: Simulator, planes: Planes, right: Planes) -> None:
    found = simulator.infer(planes, {})
    assert (found.shape, found.dtype) == (right.shape, np.float32)
    assert near(right, found) > SAME_DB
    named = simulator.infer(planes, dict.fromkeys(simulator.groups, FULL))
    np.testing.assert_array_equal(found, named)


def test_all_in_8_bits_is_the_real_graph(
    full: Any,
    simulator: Simulator,
    ranges: dict[str, float],
    members: dict[str, Group],
    planes: Planes,
    right: Planes,
) -> None:
    artifact = run(real(full, ranges, members, members), planes)
    found = simulator.infer(planes, dict.fromkeys(members, INT8))
    away = near(right, artifact)
    assert 30 < away < 70
    assert near(artifact, found) > max(SIMULATED_DB, away + CLOSER_DB)


@pytest.mark.parametrize("seed", range(4))
def test_any_plan_is_its_real_graph(
    full: Any,
    simulator: Simulator,
    ranges: dict[str, float],
    members: dict[str, Group],
    planes: Planes,
    right: Planes,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    chosen = [name for name in members if random.random() < 0.4]
    artifact = run(real(full, ranges, members, chosen), planes)
    found = simulator.infer(planes, dict.fromkeys(chosen, INT8))
    assert near(artifact, found) > max(SIMULATED_DB, near(right, artifact) + CLOSER_DB)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.0.blocks.0.window", "head"),
        ("up.0", "encoder.1.blocks.0.time"),
        ("down.0", "skip.0"),  # which are given the same tensor
        ("stem", "decoder.0.conv.first"),
    ],
)
def test_a_switch_is_its_groups_alone(
    full: Any,
    simulator: Simulator,
    ranges: dict[str, float],
    members: dict[str, Group],
    planes: Planes,
    right: Planes,
    one: str,
    other: str,
) -> None:
    results = {}
    for chosen in ((one,), (other,), (one, other)):
        results[chosen] = simulator.infer(planes, dict.fromkeys(chosen, INT8))
        artifact = run(real(full, ranges, members, chosen), planes)
        assert near(artifact, results[chosen]) > near(right, artifact) + CLOSER_DB, chosen
    assert near(results[one,], results[other,]) < SAME_DB
    assert near(results[one,], results[one, other]) < SAME_DB
    off = simulator.infer(planes, {one: FULL, other: FULL})
    assert near(right, off) > SAME_DB  # nothing is kept from one call to the next


def test_every_kind_of_layer_has_a_switch(full: Any, members: dict[str, Group]) -> None:
    kinds = {layer.name: layer.kind for layer in layers(full)}
    assert {kinds[name] for group in members.values() for name in group.layers} == set(KINDS)


def test_each_group_makes_a_difference_in_each_precision(
    simulator: Simulator, members: dict[str, Group], planes: Planes
) -> None:
    chunk = planes[:1]
    off = simulator.infer(chunk, {})
    for name in members:
        for kind in (HALF, INT8):
            found = simulator.infer(chunk, {name: kind})
            assert not np.array_equal(found, off), (name, kind)
            assert near(off, found) > 40, (name, kind)


@pytest.mark.parametrize(("half", "digits"), [("fp16", 11), ("bf16", 8)])
def test_half_precision_loses_about_what_a_typed_graph_loses(
    full: Any,
    members: dict[str, Group],
    ranges: dict[str, float],
    planes: Planes,
    right: Planes,
    half: Low,
    digits: int,
) -> None:
    """The typed graph rounds between layers too: the same order of loss, and somewhat more."""
    simulator = Simulator(full, members, ranges, half)
    found = near(right, simulator.infer(planes, dict.fromkeys(members, HALF)))
    made = typed(full, half)
    del made.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(made, data_prop=True)
    artifact = near(right, run(rounded(graph)[0], planes))
    assert artifact - 3 < found < artifact + 12
    assert found == pytest.approx(6.02 * digits + 6, abs=12)  # of one rounding: 6 dB a binary digit


def test_half_precision_of_some_groups_is_less_than_that_of_all(
    simulator: Simulator, members: dict[str, Group], planes: Planes, right: Planes
) -> None:
    some = near(right, simulator.infer(planes, dict.fromkeys(list(members)[::2], HALF)))
    every = near(right, simulator.infer(planes, dict.fromkeys(members, HALF)))
    assert every < some < SAME_DB


def test_8_bits_and_half_precision_in_one_plan(
    full: Any,
    simulator: Simulator,
    ranges: dict[str, float],
    members: dict[str, Group],
    planes: Planes,
    right: Planes,
) -> None:
    names = list(members)
    chosen = names[: len(names) // 2]
    plan = {name: INT8 if name in chosen else HALF for name in names}
    only = run(real(full, ranges, members, chosen), planes)
    found = simulator.infer(planes, plan)
    assert near(only, found) > near(right, found) - 3  # errors of the two kinds add
    assert near(right, found) < near(right, only) + 0.5
    assert near(only, found) < SAME_DB


def test_an_item_does_not_depend_on_its_batch(
    simulator: Simulator, members: dict[str, Group], planes: Planes
) -> None:
    plan = dict.fromkeys(members, INT8)
    both = simulator.infer(planes, plan)
    for item in range(len(planes)):
        assert near(both[item : item + 1], simulator.infer(planes[item : item + 1], plan)) > 60


def test_coarser_groups_switch_all_that_is_theirs(
    full: Any, ranges: dict[str, float], planes: Planes, right: Planes
) -> None:
    coarse = groups(full, 1)
    assert set(coarse) == {"stem", "encoder", "down", "up", "skip", "decoder", "head"}
    simulator = Simulator(full, coarse, ranges, "bf16")
    artifact = run(real(full, ranges, coarse, ["encoder"]), planes)
    found = simulator.infer(planes, {"encoder": INT8})
    assert near(artifact, found) > near(right, artifact) + CLOSER_DB


def test_the_graph_it_is_given_stays_as_it_was(
    full: Any, members: dict[str, Group], ranges: dict[str, float]
) -> None:
    before = full.SerializeToString(deterministic=True)
    Simulator(full, members, ranges, "fp16")
    assert full.SerializeToString(deterministic=True) == before
