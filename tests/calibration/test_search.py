"""The search for a plan, and what it is made of: groups of layers, what they cost, what rounding loses."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the graph needs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("torch", reason="torch is not installed: calibration needs it")

from tfswa.calibration import cost  # noqa: E402
from tfswa.calibration.corpus import Chunk  # noqa: E402
from tfswa.calibration.groups import Group, groups  # noqa: E402
from tfswa.calibration.loss import SUPPOSED_SDR_DB, HeldOut, Loss  # noqa: E402
from tfswa.calibration.search import EASY, MARGIN, Found, Search  # noqa: E402
from tfswa.calibration.simulate import FULL, HALF, INT8  # noqa: E402
from tfswa.export.plan import PrecisionPlan  # noqa: E402
from tfswa.export.quantize import layers, quantize_graph  # noqa: E402
from tfswa.runtime.backends.openvino import process_core  # noqa: E402
from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, UsageError  # noqa: E402
from tfswa.runtime.files import caches  # noqa: E402
from tfswa.runtime.model.opening import open_model  # noqa: E402
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec  # noqa: E402
from tfswa.runtime.stream.transform import Stft  # noqa: E402

Planes = NDArray[np.float32]

SPEC = ModelSpec(
    "none", ("vocals", "accompaniment"), stft=StftSpec(512, 128, 8000), chunk=ChunkSpec(16, 2, 2, 8)
)


@pytest.fixture(scope="module")
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def graphs(full: Any, exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """In float32 and all in 8 bits."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    names = [layer.name for layer in layers(full)]
    path.write_bytes(quantize_graph(full, dict.fromkeys(names, 4.0), names).SerializeToString())
    return exported_bundle / "model.onnx", path


class TestGroups:
    def test_are_modules_in_the_graphs_order(self, full: Any) -> None:
        found = groups(full)
        known = {layer.name: layer for layer in layers(full)}
        names = [name for group in found.values() for name in group.layers]
        assert sorted(names) == sorted(known)
        assert len(names) == len(set(names))
        firsts = [group.layers[0] for group in found.values()]
        assert firsts == [name for name in known if name in firsts]
        for name, group in found.items():
            assert group.name == name
            assert all(layer.startswith((f"{name}/", f"{name}.")) for layer in group.layers)
            assert group.macs == sum(known[layer].macs for layer in group.layers) > 0

    def test_depth_tells_them_apart(self, full: Any) -> None:
        assert {"encoder.0.blocks.0.window", "encoder.0.blocks.0.window_mlp"} <= set(groups(full, 5))
        assert groups(full, 5)["encoder.0.blocks.0.window"].layers == (
            "encoder.0.blocks.0.window/MatMul",
            "encoder.0.blocks.0.window/MatMul_2",
            "encoder.0.blocks.0.window/MatMul_3",
            "encoder.0.blocks.0.window.out/MatMul",
        )
        assert "encoder.0.blocks.0.window_mlp.expand" in groups(full, 6)
        assert list(groups(full, 1)) == ["stem", "encoder", "down", "up", "skip", "decoder", "head"]
        whole = {sum(group.macs for group in groups(full, depth).values()) for depth in range(1, 8)}
        assert len(whole) == 1

    @pytest.mark.parametrize("depth", range(1, 8))
    def test_a_plan_that_names_one_means_its_layers_and_no_others(self, full: Any, depth: int) -> None:
        names = [layer.name for layer in layers(full)]
        for group in groups(full, depth).values():
            plan = PrecisionPlan(int8=(group.name,))
            assert tuple(name for name in names if plan.quantizes(name)) == group.layers


class TestCounted:
    def test_shares_sum_to_what_a_precision_is_wide(self, full: Any) -> None:
        members = groups(full)
        found = cost.counted(members)
        assert list(found) == list(members)
        for kind, whole in ((FULL, 1.0), (HALF, 0.5), (INT8, 0.25)):
            assert sum(costs[kind] for costs in found.values()) == pytest.approx(whole)

    def test_a_share_is_that_of_the_products(self) -> None:
        found = cost.counted({"a": Group("a", ("a/Conv",), 30), "b": Group("b", ("b/Conv",), 10)})
        assert found == {"a": {FULL: 0.75, HALF: 0.375, INT8: 0.1875}, "b": pytest.approx(found["b"])}
        assert found["b"][FULL] == 0.25

    def test_of_nothing_is_nothing(self) -> None:
        assert cost.counted({}) == {}
        assert cost.counted({"a": Group("a", (), 0)})["a"] == {FULL: 0, HALF: 0, INT8: 0}


class TestMeasured:
    def test_every_group_takes_time_in_every_precision(
        self, openvino: Any, full: Any, exported_bundle: Path, graphs: tuple[Path, Path]
    ) -> None:
        if "BF16" not in process_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bfloat16")
        members = groups(full)
        found = cost.measured(members, *graphs, open_model(exported_bundle).spec, "bf16")
        assert list(found) == list(members)
        for name, costs in found.items():
            assert set(costs) == {FULL, HALF, INT8}
            assert all(0 < seconds < 1 for seconds in costs.values()), name

    @pytest.mark.parametrize("index", [0, 1])
    def test_all_of_the_time_is_some_groups(
        self, openvino: Any, full: Any, exported_bundle: Path, graphs: tuple[Path, Path], index: int
    ) -> None:
        """Or a precision would look cheaper by what it needs around its products."""
        members, spec = groups(full), open_model(exported_bundle).spec
        request, owner = cost._compiled(process_core(), graphs[index], "f32", spec, members)
        request.infer([np.zeros(spec.input_shape(1), np.float32)])
        ran = [info for info in request.profiling_info if info.real_time.total_seconds() > 0]
        assert len(ran) > 50
        assert [info.node_name for info in ran if owner.get(info.node_name) not in members] == []
        for name, group in owner.items():
            module = name.partition("/")[0]
            if module in members:
                assert group == module
        if index:
            pairs = {name: group for name, group in owner.items() if name.endswith("_QuantizeLinear")}
            assert pairs

    def test_the_owner_is_the_last_part_that_has_one(self) -> None:
        members = {name: Group(name, (), 1) for name in ("a.b", "a.b.c.d", "e")}
        for names, right in (
            (["a.b/Conv"], "a.b"),
            (["a.b.x.out/MatMul"], "a.b"),
            (["a.b.c.d.out/MatMul_2", "MVN_7"], "a.b.c.d"),
            (["a.b/Conv", "e/Gelu"], "e"),
            (["a/Transpose", "Reshape_7", ""], ""),
            (["a.bc/Conv"], ""),
        ):
            assert cost._owner(names, members) == right

    def test_without_openvino_the_extra_is_named(
        self, full: Any, graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[openvino\]'") as error:
            cost.measured(groups(full), *graphs, SPEC, "bf16")
        assert error.value.exit_code == 4

    @pytest.mark.parametrize(
        ("able", "half"), [(["FP32", "INT8"], "bf16"), (["FP32", "BF16"], "fp16"), (["FP16"], "fp16")]
    )
    def test_a_half_precision_that_openvino_has_not_here(
        self,
        openvino: Any,
        full: Any,
        graphs: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
        able: list[str],
        half: str,
    ) -> None:
        core = SimpleNamespace(get_property=lambda device, name: able)
        monkeypatch.setattr("tfswa.runtime.backends.openvino.process_core", lambda: core)
        message = f"openvino has no {half} on this CPU: count the cost with --cost counted"
        with pytest.raises(BackendUnavailable, match=message):
            cost.measured(groups(full), *graphs, SPEC, half)


def chunk(seed: int, level: float = 1.0, known: bool = True, **stems: Any) -> Chunk:
    random = np.random.default_rng(seed)
    audio = {
        name: (random.standard_normal((2, SPEC.chunk_samples)) * 0.1 * level).astype(np.float32)
        for name in SPEC.stems
    }
    mixture = np.sum(list(audio.values()), axis=0).astype(np.float32)
    return Chunk(f"song {seed}", "music", mixture, {**audio, **stems} if known else {})


def planes_of(audio: Any) -> Planes:
    planes: Planes = Stft(SPEC.stft).planes(audio[None])
    return planes


def halves(planes: Planes) -> Planes:
    """A network that gives each stem half of the mixture."""
    return np.stack([planes, planes], axis=1) * np.float32(0.5)


def noisy(gains: Sequence[float]) -> Any:
    """The same, each stem off by white noise of that gain."""

    def infer(planes: Planes) -> Planes:
        noise = np.random.default_rng(int(abs(planes).sum() * 1e3)).standard_normal(halves(planes).shape)
        return (halves(planes) + noise * np.reshape(gains, (1, -1, 1, 1, 1))).astype(np.float32)

    return infer


def held(chunks: Sequence[Chunk], full: Any = halves) -> HeldOut:
    return HeldOut(lambda: iter(chunks), SPEC, full)


def decibels(signal: Any, noise: Any) -> float:
    return float(
        10
        * np.log10(np.sum(np.square(signal, dtype=np.float64)) / np.sum(np.square(noise, dtype=np.float64)))
    )


class TestLoss:
    @pytest.mark.parametrize("known", [True, False])
    def test_of_a_network_against_itself_there_is_none(self, known: bool) -> None:
        loss = held([chunk(0, known=known), chunk(1, known=known)]).measure(halves)
        assert loss.snr_db == dict.fromkeys(SPEC.stems, math.inf)
        assert loss.drift_db == loss.expected_db == dict.fromkeys(SPEC.stems, 0.0)
        assert (loss.worst_snr_db, loss.worst_drift_db, loss.known) == (math.inf, 0.0, known)

    def test_known_noise_gives_its_snr_and_its_drift(self) -> None:
        chunks = [chunk(0), chunk(1, 10.0), chunk(2, 0.1)]
        infer = noisy((0.01, 0.1))
        loss = held(chunks).measure(infer)
        assert loss.known
        mixtures = [planes_of(item.mixture) for item in chunks]
        right, got = (np.concatenate([run(x) for x in mixtures]) for run in (halves, infer))
        for index, stem in enumerate(SPEC.stems):
            truth = np.concatenate([planes_of(item.stems[stem]) for item in chunks])
            before, after = (decibels(truth, truth - x[:, index]) for x in (right, got))
            assert loss.snr_db[stem] == pytest.approx(
                decibels(right[:, index], right[:, index] - got[:, index]), abs=1e-3
            )
            assert loss.drift_db[stem] == pytest.approx(after - before, abs=1e-3)
            assert loss.drift_db[stem] < 0
        assert loss.snr_db["vocals"] == pytest.approx(loss.snr_db["accompaniment"] + 20, abs=0.5)
        assert loss.worst_snr_db == loss.snr_db["accompaniment"]

    def test_an_accident_of_signs_is_not_believed(self) -> None:
        """An error that happens to leave SDR as it was is judged by what one of its size takes."""
        item = chunk(0)
        truth = np.stack([planes_of(item.stems[stem]) for stem in SPEC.stems], axis=1)

        def mirrored(planes: Planes) -> Planes:  # as far from the truth, on its other side
            return 2 * truth - halves(planes)

        loss = held([item]).measure(mirrored)
        assert max(map(abs, loss.drift_db.values())) < 1e-4
        for stem in SPEC.stems:  # twice as far away: four times the energy of the error that there was
            assert loss.expected_db[stem] == pytest.approx(-10 * math.log10(1 + 4), abs=1e-3)
        assert loss.worst_drift_db == -min(loss.expected_db.values()) > 1

    def test_what_is_expected_is_what_independent_noise_takes(self) -> None:
        loud = np.float32(math.sqrt(2))  # so that stems have the energy of the true ones

        def full(planes: Planes) -> Planes:
            return halves(planes) * loud

        infer = noisy((0.01, 0.1))
        loss = held([chunk(0), chunk(1)], full).measure(lambda planes: infer(planes) * loud)
        for stem in SPEC.stems:
            assert loss.expected_db[stem] == pytest.approx(loss.drift_db[stem], rel=0.05, abs=0.01)
        doubted = [abs(loss.drift_db[stem]) + 2 * loss.scatter_db[stem] for stem in SPEC.stems]
        assert loss.worst_drift_db == max(*doubted, *map(abs, loss.expected_db.values()))

    def test_chunks_that_disagree_are_doubted(self) -> None:
        """One loses what the other gains: nothing on the whole, and nobody knows of a third."""
        items = [chunk(0), chunk(0)]
        truth = np.stack([planes_of(items[0].stems[stem]) for stem in SPEC.stems], axis=1)
        moved = iter([1.1, math.sqrt(2 - 1.1**2)] * 2)  # of the distance from the truth, in turns

        def swaying(planes: Planes) -> Planes:
            return truth + np.float32(next(moved)) * (halves(planes) - truth)

        loss = held(items).measure(swaying)
        assert max(map(abs, loss.drift_db.values())) < 1e-3
        far, near = -20 * math.log10(1.1), -10 * math.log10(2 - 1.1**2)
        for stem in SPEC.stems:  # of two, each left out once: half of what lies between them
            assert loss.scatter_db[stem] == pytest.approx((near - far) / 2, abs=1e-3)
        assert loss.worst_drift_db == pytest.approx(near - far, abs=5e-3)
        assert held(items[:1]).measure(noisy((0.01, 0.01))).scatter_db == dict.fromkeys(SPEC.stems, 0.0)

    def test_drift_counts_either_way(self) -> None:
        item = chunk(0)
        better = np.stack([planes_of(item.stems[stem]) for stem in SPEC.stems], axis=1)
        loss = held([item]).measure(lambda planes: 0.5 * (halves(planes) + better))
        assert min(loss.drift_db.values()) == pytest.approx(20 * math.log10(2), abs=1e-3)
        assert loss.worst_drift_db == max(loss.drift_db.values()) > 6

    @pytest.mark.parametrize("lacks", [0, 1])
    def test_where_the_truth_is_unknown_drift_is_what_such_noise_takes(self, lacks: int) -> None:
        chunks = [chunk(0, known=lacks != 0), chunk(1, known=lacks != 1)]
        loss = held(chunks).measure(noisy((0.01, 0.1)))
        assert not loss.known
        for stem in SPEC.stems:
            noise = 10 ** (-SUPPOSED_SDR_DB / 10)  # of a stem of energy 1
            after = -10 * math.log10(noise + 10 ** (-loss.snr_db[stem] / 10))
            assert loss.drift_db[stem] == pytest.approx(after - SUPPOSED_SDR_DB)
            assert loss.expected_db[stem] == loss.drift_db[stem]

    def test_a_stem_that_is_missing_makes_all_unknown(self) -> None:
        item = chunk(0)
        some = replace(item, stems={"vocals": item.stems["vocals"]})
        assert not held([item, some]).measure(halves).known

    def test_a_stem_that_is_silent_gives_numbers(self) -> None:
        silent = np.zeros((2, SPEC.chunk_samples), np.float32)
        loss = held([chunk(0, vocals=silent)]).measure(noisy((0.01, 0.01)))
        assert all(map(math.isfinite, [*loss.snr_db.values(), *loss.drift_db.values()]))

    def test_a_network_that_is_right_can_only_lose(self) -> None:
        item = chunk(0)

        def exact(planes: Planes) -> Planes:
            return np.stack([planes_of(item.stems[stem]) for stem in SPEC.stems], axis=1)

        measured = held([item], exact)
        assert measured.measure(exact).worst_drift_db == 0
        assert measured.measure(lambda planes: exact(planes) * np.float32(0.99)).worst_drift_db == math.inf

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_is_an_error(self, value: float) -> None:
        def broken(planes: Planes) -> Planes:
            stems = halves(planes)
            stems[0, 1, 2, 3, 4] = value
            return stems

        with pytest.raises(NonFiniteError, match=r"the float32 network gives NaN or Inf on .*: train"):
            held([chunk(0)], broken)
        with pytest.raises(NonFiniteError, match="the network gives NaN or Inf on song 7"):
            held([chunk(7)]).measure(broken)

    def test_chunks_are_told_as_they_are_done(self) -> None:
        told: list[int] = []
        chunks = [chunk(number) for number in range(3)]
        measured = held(chunks)
        measured.measure(halves, lambda: told.append(1))
        assert len(told) == len(measured) == 3


NAMES = ("a", "b", "c", "d", "e", "f")


def loss_of(noise: float) -> Loss:
    """Of a stem of energy 1 and an unknown truth."""
    snr = math.inf if noise <= 0 else -10 * math.log10(noise)
    drift = 0.0 if noise <= 0 else -10 * math.log10(1 + 10 ** ((SUPPOSED_SDR_DB - snr) / 10))
    return Loss({"vocals": snr}, {"vocals": drift}, False)


class Additive:
    """A simulator and its held-out audio: each group adds the noise of its precision."""

    def __init__(self, noise: Mapping[str, Mapping[str, float]], stop_after: int | None = None) -> None:
        self.noise, self.stop_after = noise, stop_after
        self.plans: list[dict[str, str]] = []

    def infer(self, planes: Any, plan: Mapping[str, str]) -> Any:
        self.plans.append(dict(plan))
        return sum(self.noise[name].get(kind, 0.0) for name, kind in plan.items())

    def measure(self, infer: Any) -> Loss:
        if self.stop_after is not None and len(self.plans) >= self.stop_after:
            raise KeyboardInterrupt
        return loss_of(infer(None))


Table = dict[str, dict[str, float]]


def search(costs: Table, noise: Table, budget_db: float, **options: Any) -> tuple[Found, Additive]:
    both: Any = options.pop("both", None) or Additive(noise)
    return Search(both, both, costs, budget_db, **options).run(), both


def table(names: Sequence[str], full: Any, half: Any, int8: Any) -> Table:
    """The same number for all, or one for each."""

    def of(values: Any, index: int) -> float:
        return float(values[index] if isinstance(values, Sequence) else values)

    return {
        name: {FULL: of(full, index), HALF: of(half, index), INT8: of(int8, index)}
        for index, name in enumerate(names)
    }


def drift(noise: float) -> float:
    return abs(loss_of(noise).drift_db["vocals"])


COSTS = table(NAMES, 1.0, 0.5, (0.1, 0.2, 0.25, 0.3, 0.4, 0.45))
NOISE = table(NAMES, 0.0, 1e-9, (1e-4, 5e-4, 1e-5, 1e-3, 1e-6, 1e-3))
ORDER = "ecabdf"  # of time gained for noise added

noises = st.floats(1e-7, 1e-2)


class TestSearch:
    @pytest.mark.parametrize("count", range(7))
    def test_takes_the_groups_that_gain_most_for_their_noise(self, count: int) -> None:
        chosen = set(ORDER[:count])
        noise = sum(NOISE[name][INT8 if name in chosen else HALF] for name in NAMES)
        found, _ = search(COSTS, NOISE, drift(noise) * 1.0001)
        assert set(found.best.int8) == chosen
        assert found.best.fp32 == ()
        assert found.best.cost == pytest.approx(
            sum(COSTS[name][INT8 if name in chosen else HALF] for name in NAMES)
        )
        assert found.best.loss == loss_of(noise)
        assert list(found.best.int8) == sorted(chosen)  # in the graph's order

    @given(
        st.lists(st.tuples(noises, st.floats(0.05, 1.2), st.floats(0.05, 1.2)), min_size=1, max_size=9),
        st.floats(1e-4, 0.5),
    )
    @settings(max_examples=200, deadline=None)
    def test_where_half_precision_is_easy_it_is_the_longest_run_of_that_order(
        self, drawn: list[tuple[float, float, float]], budget_db: float
    ) -> None:
        names = [f"g{index}" for index in range(len(drawn))]
        noise = table(names, 0.0, 0.0, [item[0] for item in drawn])
        costs = table(names, 1.0, [item[1] for item in drawn], [item[2] for item in drawn])
        found, both = search(costs, noise, budget_db)
        gain = {name: costs[name][HALF] - costs[name][INT8] for name in names}
        order = sorted(
            (name for name in names if gain[name] > MARGIN * costs[name][INT8]),
            key=lambda name: gain[name] / noise[name][INT8],
            reverse=True,
        )
        runs = [order[:count] for count in range(len(order) + 1)]
        within = [run for run in runs if drift(sum(noise[name][INT8] for name in run)) <= budget_db]
        assert set(found.best.int8) == set(within[-1])
        assert found.best.fp32 == ()
        assert found.best.loss.worst_drift_db <= budget_db
        assert found.best in found.points
        assert len(both.plans) == len({json.dumps(plan, sort_keys=True) for plan in both.plans})

    @given(
        st.lists(
            st.tuples(noises, noises, *[st.floats(0.05, 1.2)] * 3),
            min_size=1,
            max_size=7,
        ),
        st.floats(1e-4, 0.3),
    )
    @settings(max_examples=200, deadline=None)
    def test_nothing_is_taken_that_gains_nothing(
        self, drawn: list[tuple[float, float, float, float, float]], budget_db: float
    ) -> None:
        """Half precision that costs much is asked for by group; 8 bits cost more decibels than it."""
        names = [f"g{index}" for index in range(len(drawn))]
        noise = table(names, 0.0, [x[0] for x in drawn], [x[0] + x[1] for x in drawn])
        costs = table(names, *([x[column] for x in drawn] for column in (2, 3, 4)))
        found, _ = search(costs, noise, budget_db)
        easy = drift(sum(noise[name][HALF] for name in names)) <= EASY * budget_db
        kinds = dict.fromkeys(names, HALF)
        kinds |= dict.fromkeys(found.best.int8, INT8) | dict.fromkeys(found.best.fp32, FULL)
        for name, kind in kinds.items():
            others = [HALF] if easy else [FULL, HALF]
            if kind == INT8:
                assert costs[name][INT8] < min(costs[name][other] for other in others)
            if kind == HALF and not easy:
                assert costs[name][HALF] < costs[name][FULL]
        total = sum(noise[name][kind] for name, kind in kinds.items())
        assert found.best.loss == loss_of(total)
        assert found.best.loss.worst_drift_db <= budget_db
        assert found.best.cost == pytest.approx(sum(costs[name][kind] for name, kind in kinds.items()))
        if easy:
            assert found.best.fp32 == ()
        else:
            assert all(set(found.alone[name]) == {INT8, HALF} for name in names)

    def test_half_precision_that_is_dear_is_asked_for_by_group(self) -> None:
        noise = table(NAMES, 0.0, (1e-3, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9), 1.0)
        found, _ = search(COSTS, noise, drift(1e-4))
        assert found.best.fp32 == ("a",)
        assert found.best.int8 == ()
        assert found.alone["a"][HALF] == loss_of(1e-3)

    def test_where_half_precision_is_easy_no_group_is_asked(self) -> None:
        found, both = search(COSTS, NOISE, 0.5)
        assert all(set(losses) == {INT8} for losses in found.alone.values())
        assert {name: losses[INT8] for name, losses in found.alone.items()} == {
            name: loss_of(NOISE[name][INT8]) for name in NAMES
        }
        assert dict.fromkeys(NAMES, HALF) in both.plans

    def test_where_precisions_do_not_mix_the_rest_is_in_one(self) -> None:
        """Half precision takes half of the budget: that is bearable, and no group is asked for it."""
        noise = table(NAMES, 0.0, 1e-4, 2e-4)
        budget_db = drift(12e-4)
        found, _ = search(COSTS, noise, budget_db)
        assert all(set(losses) == {INT8, HALF} for losses in found.alone.values())
        found, _ = search(COSTS, noise, budget_db, mixes=False)
        assert all(set(losses) == {INT8} for losses in found.alone.values())
        assert (len(found.best.int8), found.best.fp32) == (6, ())
        noise["a"] = {FULL: 0.0, HALF: 1.0, INT8: 1e-9}  # not bearable: float32, and 8 bits against that
        costs = {**COSTS, "b": {FULL: 0.3, HALF: 0.5, INT8: 0.4}}
        found, both = search(costs, noise, budget_db, mixes=False)
        assert found.best.int8 == ("a", "c", "d", "e", "f")
        assert found.best.fp32 == ("b",)
        assert all(HALF not in plan.values() for plan in both.plans if plan != dict.fromkeys(NAMES, HALF))

    def test_half_precision_that_is_slower_than_float32_is_not_taken(self) -> None:
        """As bfloat16 is in OpenVINO on a CPU that has AVX512_BF16 and no AMX."""
        costs = {name: {**COSTS[name], HALF: 1.1} for name in NAMES}
        found, both = search(costs, NOISE, 0.5, mixes=False)
        assert (found.best.int8, found.best.fp32) == (NAMES, ())
        found, both = search(costs, NOISE, drift(1.2e-4), mixes=False)
        assert set(found.best.int8) == set("eca")
        assert set(found.best.fp32) == set("bdf")
        assert [plan for plan in both.plans if HALF in plan.values()] == [dict.fromkeys(NAMES, HALF)]

    def test_a_budget_of_almost_nothing_leaves_all_in_float32(self) -> None:
        found, _ = search(COSTS, NOISE, 1e-12)
        assert found.best.int8 == ()
        assert found.best.fp32 == NAMES
        assert found.best.loss.worst_drift_db == 0

    def test_a_budget_of_everything_takes_all_that_gains(self) -> None:
        slow = {**COSTS, "c": {FULL: 1.0, HALF: 0.5, INT8: 0.6}, "d": {FULL: 1.0, HALF: 0.5, INT8: 0.5}}
        found, _ = search(slow, NOISE, 100.0)
        assert found.best.int8 == ("a", "b", "e", "f")
        assert found.best.fp32 == ()

    def test_8_bits_that_are_slower_than_half_precision_are_not_taken_after_it(self) -> None:
        costs = table("ab", 1.0, 0.3, (0.5, 0.2))
        noise = table("ab", 0.0, 1e-4, 2e-4)
        found, _ = search(costs, noise, drift(4e-4))  # half precision takes half of the budget: not easy
        assert set(found.alone["a"]) == {INT8, HALF}
        assert found.best.int8 == ("b",)
        assert found.best.fp32 == ()

    def test_8_bits_that_are_slower_than_float32_are_not_taken(self) -> None:
        costs = table("ab", 0.5, 1.0, (0.7, 0.4))
        noise = table("ab", 0.0, 1e-4, 1e-4)
        found, _ = search(costs, noise, drift(2.5e-4))
        assert found.best.int8 == ("b",)
        assert found.best.fp32 == ("a",)

    def test_a_group_that_loses_nothing_comes_first(self) -> None:
        noise = {**NOISE, "f": {FULL: 0.0, HALF: 0.0, INT8: 0.0}}
        found, _ = search(COSTS, noise, drift(6e-9) * 5)
        assert found.best.int8 == ("f",)

    def test_plans_of_a_quarter_a_half_and_three_quarters_are_shown(self) -> None:
        found, _ = search(COSTS, NOISE, drift(1e-5))
        sizes = {len(point.int8) for point in found.points}
        assert {0, 2, 3, 4, 6} <= sizes  # 1.5 is 2, 4.5 is 4
        assert len(found.points) == len({point.int8 for point in found.points})
        for point in found.points:
            plan = {name: INT8 if name in point.int8 else HALF for name in NAMES}
            assert point.loss == loss_of(sum(NOISE[name][kind] for name, kind in plan.items()))
            assert point.cost == pytest.approx(sum(COSTS[name][kind] for name, kind in plan.items()))

    def test_few_plans_are_measured(self) -> None:
        names = [f"g{index}" for index in range(200)]
        random = np.random.default_rng(0)
        noise = table(names, 0.0, 0.0, list(random.uniform(1e-7, 1e-4, 200)))
        _, both = search(table(names, 1.0, 0.5, 0.25), noise, 0.05)
        assert len(both.plans) <= 200 + 1 + 1 + 9 + 3  # alone, half, none, by halving, shares

    def test_progress_runs_to_its_end(self) -> None:
        told: dict[str, list[tuple[int, int]]] = {}
        for noise in (NOISE, table(NAMES, 0.0, 1e-3, 1e-2)):
            told.clear()
            search(
                COSTS,
                noise,
                0.01,
                step=lambda what, done, steps: told.setdefault(what, []).append((done, steps)),
            )
            assert next(iter(told)) == "each group in int8 alone"
            assert list(told)[-1] == "plans"
            assert len(told) == (2 if noise is NOISE else 3)
            for steps in told.values():
                assert [done for done, _ in steps] == sorted(done for done, _ in steps)
                assert len({whole for _, whole in steps}) == 1
                assert steps[-1][0] == steps[-1][1]


class TestCache:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        return tmp_path / "deep" / "plans.json"

    def run(self, cache: Path | None, key: str = "k", budget_db: float = 0.02, **options: Any) -> Any:
        return search(COSTS, NOISE, budget_db, cache=cache, key=key, **options)

    def test_a_second_run_measures_nothing(self, cache: Path) -> None:
        first, measured = self.run(cache)
        second, again = self.run(cache)
        assert len(measured.plans) > 8
        assert again.plans == []
        assert second == first
        assert [path.name for path in cache.parent.iterdir()] == [cache.name]

    def test_without_a_cache_nothing_is_kept(self, tmp_path: Path) -> None:
        first, measured = self.run(None)
        second, again = self.run(None)
        assert second == first
        assert len(again.plans) == len(measured.plans)
        assert not list(tmp_path.iterdir())

    def test_one_of_another_key_is_not_used(self, cache: Path) -> None:
        _, measured = self.run(cache, "one")
        _, again = self.run(cache, "two")
        assert again.plans == measured.plans
        assert self.run(cache, "two")[1].plans == []

    def test_another_budget_asks_for_other_plans_alone(self, cache: Path) -> None:
        self.run(cache)
        found, again = self.run(cache, budget_db=0.0005)
        assert found == self.run(None, budget_db=0.0005)[0]
        assert all(set(plan) == set(NAMES) for plan in again.plans)  # none of one group

    @pytest.mark.parametrize("after", [0, 1, 4, 7, 9])
    def test_a_search_that_was_stopped_goes_on(self, cache: Path, after: int) -> None:
        whole, all_of_it = self.run(None)
        stopped = Additive(NOISE, stop_after=after)
        with pytest.raises(KeyboardInterrupt):
            self.run(cache, both=stopped)
        assert len(stopped.plans) == after
        found, rest = self.run(cache)
        assert found == whole
        assert stopped.plans + rest.plans == all_of_it.plans

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"key": "k"}',
            '{"key": "k", "losses": []}',
            '{"key": "k", "losses": {"[]": {"snr": 1}}}',
            '{"key": "k", "losses": {"[]": {"snr_db": [1], "drift_db": {}, "known": true}}}',
            '{"key": "k", "losses": {"[]": {"snr_db": {"a": "1"}, "drift_db": {}, "known": true}}}',
        ],
    )
    def test_a_damaged_one_is_ignored(self, cache: Path, text: str) -> None:
        caches.put(cache, text.encode())  # as another tfx might: what it says is not damaged
        assert self.run(cache)[0] == self.run(None)[0]
        assert self.run(cache)[1].plans == []

    def test_infinite_ratios_are_kept(self, cache: Path) -> None:
        nothing = table(NAMES, 0.0, 0.0, 0.0)
        first, _ = search(COSTS, nothing, 0.01, cache=cache)
        second, again = search(COSTS, nothing, 0.01, cache=cache)
        assert second == first
        assert second.best.loss.worst_snr_db == math.inf
        assert again.plans == []

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write"):
            self.run(tmp_path / "file" / "plans.json")
