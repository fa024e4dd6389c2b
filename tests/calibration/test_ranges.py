"""Ranges: histograms that lose no count, methods on distributions that are known, and the file of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the graph needs it")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("torch", reason="torch is not installed: calibration needs it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tfswa.calibration.ranges import BINS, METHODS, SAMPLES, Collector  # noqa: E402
from tfswa.export.quantize import LEVELS, item_shapes, layers  # noqa: E402
from tfswa.runtime.errors import NonFiniteError, UsageError  # noqa: E402
from tfswa.runtime.model.opening import open_model  # noqa: E402

Array = NDArray[Any]

TENSOR, LAYER = "mixture", "m/MatMul"


def toy(size: int, tensor: str = TENSOR, layer: str = LAYER) -> Any:
    """``mixture [batch, size]`` times a weight: one layer, and what it is given is what one gives."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])
        for name, columns in (("mixture", size), ("stems", 1))
    ]
    nodes = [helper.make_node("MatMul", [tensor, "w"], ["stems"], name=layer)]
    if tensor != TENSOR:
        nodes.insert(0, helper.make_node("Neg", ["mixture"], [tensor], name="neg"))
    weight = numpy_helper.from_array(np.zeros((size, 1), np.float32), "w")
    graph = helper.make_graph(nodes, "toy", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def collector(size: int = SAMPLES, **names: str) -> Collector:
    spec: Any = None
    return Collector(toy(size, **names), spec)


def collected(*chunks: Array) -> Collector:
    made = collector(chunks[0].size)
    for chunk in chunks:
        made.add(chunk.reshape(1, -1).astype(np.float32))
    return made


def found(method: str, *chunks: Array) -> float:
    return collected(*chunks).ranges(method)[LAYER]


def normal(seed: int = 0, scale: float = 1.0, size: int = SAMPLES) -> Array:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def planes(spec: Any, seed: int, scale: float = 1.0) -> Any:
    random = np.random.default_rng(seed)
    return (random.standard_normal(spec.input_shape(1)) * scale).astype(np.float32)


def same(one: Collector, two: Collector) -> None:
    assert one.chunks == two.chunks
    for name in ("counts", "shares", "widths", "peaks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for method in METHODS:
        assert one.ranges(method) == two.ranges(method)


class TestHistograms:
    @given(st.lists(st.floats(-12, 12), min_size=1, max_size=6))
    @settings(max_examples=25, deadline=None)
    def test_widening_keeps_every_count_in_its_place(self, exponents: list[float]) -> None:
        chunks = [normal(n, 10**exponent, 64) for n, exponent in enumerate(exponents)]
        made = collected(*chunks)
        values = np.abs(np.concatenate(chunks)).astype(np.float64)
        (width,) = made.widths
        assert np.log2(width) == round(np.log2(width))
        assert width * BINS / 2 < values.max() <= width * BINS
        right = np.bincount(np.minimum(values // width, BINS - 1).astype(int), minlength=BINS)
        np.testing.assert_array_equal(made.counts[0], right)
        assert made.peaks[0] == values.max()

    def test_the_order_of_chunks_does_not_matter_to_counts(self) -> None:
        chunks = [normal(n, 3.0**n, 256) for n in range(6)]
        one, two = collected(*chunks), collected(*chunks[::-1])
        np.testing.assert_array_equal(one.counts, two.counts)
        np.testing.assert_allclose(one.shares, two.shares, rtol=1e-12)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_peak_between_samples_is_exact(self, sign: int) -> None:
        chunk = normal(size=3 * SAMPLES)
        chunk[1] = sign * 123.456  # of three, the first is sampled
        made = collected(chunk)
        assert made.peaks[0] == np.float32(123.456)
        assert made.counts.sum() == SAMPLES
        assert not made.counts[0, BINS // 2 :].any()
        assert made.ranges("minmax") == {LAYER: float(np.float32(123.456))}

    def test_samples_are_evenly_spaced_and_not_along_a_column(self) -> None:
        size = 4 * SAMPLES
        chunk = np.arange(size, dtype=np.float32) / size
        made = collected(chunk)
        assert 0.75 * SAMPLES < made.counts.sum() <= SAMPLES
        used = made.counts[0, : int(np.ceil(1 / made.widths[0]))]
        assert used.min() >= used.max() - 1 > 0  # as uniform as the whole
        columns = np.tile(np.arange(4, dtype=np.float32), size // 4)
        held = np.unique(np.flatnonzero(collected(columns).counts[0]))
        assert len(held) == 4

    def test_every_window_and_band_of_a_network_is_sampled(self, full: Any, exported_bundle: Path) -> None:
        """What is folded into a free batch has no size in the graph; its first item is not all of it."""
        spec = open_model(exported_bundle).spec
        made, mixture = Collector(full, spec), planes(spec, 0)
        made.add(mixture)
        graph = onnx.ModelProto()
        graph.CopyFrom(full)
        graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in made.tensors)
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        assert len(made.tensors) > 20
        for index, values in enumerate(session.run(made.tensors, {"mixture": mixture})):
            assert values.size <= SAMPLES  # so that all of it counts
            right = np.abs(values.astype(np.float64)).ravel()
            assert made.counts[index].sum() == right.size
            assert made.peaks[index] == pytest.approx(right.max(), rel=1e-5)
            centers = (np.arange(BINS) + 0.5) * made.widths[index]
            mean = made.counts[index] @ centers / right.size
            assert mean == pytest.approx(right.mean(), abs=made.widths[index])

    def test_layers_that_share_a_tensor_share_its_range(self, full: Any, exported_bundle: Path) -> None:
        spec = open_model(exported_bundle).spec
        made = Collector(full, spec)
        made.add(planes(spec, 0))
        known = layers(full)
        assert made.tensors == list(dict.fromkeys(layer.activation for layer in known))
        for method in METHODS:
            ranges = made.ranges(method)
            assert list(ranges) == [layer.name for layer in known]
            by_tensor: dict[str, set[float]] = {}
            for layer in known:
                by_tensor.setdefault(layer.activation, set()).add(ranges[layer.name])
            assert all(len(values) == 1 for values in by_tensor.values())
            peaks = dict(zip(made.tensors, made.peaks, strict=True))
            assert all(0 < ranges[layer.name] <= peaks[layer.activation] for layer in known)

    def test_nothing_grows_with_the_audio(self, tmp_path: Path) -> None:
        made = collected(normal())
        made.save(tmp_path / "one.npz")
        for number in range(8):
            made.add(normal(number, 1.5**number).reshape(1, -1))
        made.save(tmp_path / "many.npz")
        sizes = {path.stat().st_size for path in tmp_path.glob("*.npz")}
        assert len(sizes) == 1

    def test_the_graph_gives_no_activation_as_a_whole(self, full: Any, exported_bundle: Path) -> None:
        spec = open_model(exported_bundle).spec
        made = Collector(full, spec)
        sizes = {name: int(np.prod(shape)) for name, shape in item_shapes(full).items()}
        assert max(sizes.values()) > SAMPLES
        given = made._session.run(None, {"mixture": planes(spec, 0)})
        assert max(array.size for array in given) <= SAMPLES


class TestZeros:
    @pytest.mark.parametrize("method", METHODS)
    def test_what_is_always_zero_has_the_range_1(self, method: str) -> None:
        assert found(method, np.zeros(64)) == 1.0
        assert collector(64).ranges(method) == {LAYER: 1.0}

    def test_zeros_before_and_after_sound(self) -> None:
        zeros, sound = np.zeros(SAMPLES), normal()
        made = collected(zeros, sound, zeros)
        alone = collected(sound)
        assert (made.widths, made.peaks) == (alone.widths, alone.peaks)
        extra = made.counts - alone.counts
        assert extra[0, 0] == SAMPLES  # those of the first chunk had no bin yet, and none is needed
        assert not extra[0, 1:].any()
        np.testing.assert_array_equal(made.shares, alone.shares)

    @pytest.mark.parametrize("peak", [1e-44, 1e-30, 1e30])
    def test_magnitudes_at_the_ends_of_float32(self, peak: float) -> None:
        chunk = np.linspace(-1, 1, 4096) * peak
        made = collected(chunk)
        assert made.counts.sum() == 4096
        for method in METHODS:
            assert 0 < made.ranges(method)[LAYER] <= made.peaks[0]


class TestNonFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 1, 2, 3 * SAMPLES - 1])
    def test_is_refused_wherever_it_is_and_changes_nothing(self, value: float, place: int) -> None:
        made, right = (collected(normal(size=3 * SAMPLES)) for _ in range(2))
        chunk = normal(1, 100.0, 3 * SAMPLES)
        chunk[place] = value
        with pytest.raises(NonFiniteError, match=f"{TENSOR} is not finite in float32: there is no range"):
            made.add(chunk.reshape(1, -1))
        same(made, right)

    def test_amid_a_network(self, full: Any, exported_bundle: Path) -> None:
        spec = open_model(exported_bundle).spec
        made, mixture = Collector(full, spec), planes(spec, 0)
        mixture[0, 3, 15, 255] = np.nan
        with pytest.raises(NonFiniteError, match="is not finite in float32"):
            made.add(mixture)
        assert made.chunks == 0
        assert not made.counts.any()


def squared_error(values: Array, limit: float) -> float:
    scale = limit / LEVELS
    rounded = np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale
    return float(np.square(values - rounded).sum())


class TestMethods:
    @pytest.mark.parametrize("method", METHODS)
    def test_uniform_values_are_kept_to_the_end(self, method: str) -> None:
        values = np.random.default_rng(0).uniform(-3, 3, SAMPLES)
        peak = np.abs(values).max()
        assert 0.97 * peak < found(method, values) <= peak * (1 + 1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_an_outlier_is_clipped_by_all_but_minmax(self, method: str) -> None:
        chunks = [normal(number) for number in range(64)]
        chunks[9][7] = 30
        limit = found(method, *chunks)
        if method == "minmax":
            assert limit == 30
        else:
            assert 2.5 < limit < 8

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("factor", [2.0**-20, 8.0])
    def test_a_range_has_the_unit_of_what_it_is_of(self, method: str, factor: float) -> None:
        scaled = found(method, normal() * np.float32(factor))
        assert scaled == pytest.approx(factor * found(method, normal()), rel=1e-9)

    @pytest.mark.parametrize("method", sorted({*METHODS} - {"entropy"}))  # which turns on where bins begin
    def test_where_bins_begin_does_not_matter(self, method: str) -> None:
        scaled = found(method, normal() * np.float32(1.3))
        assert scaled == pytest.approx(1.3 * found(method, normal()), rel=1e-3)

    @pytest.mark.parametrize("method", METHODS)
    def test_the_sign_does_not_matter(self, method: str) -> None:
        assert found(method, normal()) == found(method, -normal()) == found(method, np.abs(normal()))

    def test_percentile_is_the_percentile(self) -> None:
        chunks = [normal(number) for number in range(8)]
        made = collected(*chunks)
        right = np.quantile(np.abs(np.concatenate(chunks)), 0.9999)
        assert abs(made.ranges("percentile")[LAYER] - right) < 2 * made.widths[0]

    @pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "rectified"])
    def test_mse_is_near_the_best_of_all_limits(self, kind: str) -> None:
        random = np.random.default_rng(3)
        values = {
            "normal": random.standard_normal(SAMPLES),
            "laplace": random.laplace(size=SAMPLES),
            "uniform": random.uniform(-1, 1, SAMPLES),
            "rectified": np.maximum(random.standard_normal(SAMPLES), 0),
        }[kind].astype(np.float32)
        limit = found("mse", values)
        best = min(squared_error(values, step * np.abs(values).max()) for step in np.linspace(0.02, 1, 500))
        assert squared_error(values, limit) < 1.1 * best

    def test_mse_of_a_gaussian_is_the_published_optimum(self) -> None:
        """4 bits: 2.55, 8 bits: 3.9 standard deviations; Banner, Nahshan, Soudry, NeurIPS 2019."""
        limit = found("mse", *[normal(number) for number in range(16)])
        assert limit == pytest.approx(3.92, rel=0.07)  # of 64 steps, one is 6.4 %

    def test_relative_gives_a_quiet_chunk_the_say_of_a_loud_one(self) -> None:
        loud, quiet = normal(0, 10.0), [normal(number, 0.1) for number in range(1, 8)]
        chunks = [loud, *quiet]

        def error(limit: float) -> float:
            return sum(squared_error(x, limit) / float(np.square(x, dtype=np.float64).sum()) for x in chunks)

        made = collected(*chunks)
        limits = {method: made.ranges(method)[LAYER] for method in ("mse", "relative")}
        assert limits["relative"] < limits["mse"]
        best = min(error(step * np.abs(loud).max()) for step in np.linspace(0.02, 1, 500))
        assert error(limits["relative"]) < 1.1 * best

    def test_of_one_chunk_relative_is_mse(self) -> None:
        assert found("relative", normal()) == found("mse", normal())

    def test_entropy_clips_less_than_it_keeps(self) -> None:
        """The divergence of a clipped Laplacian grows without bound where much is clipped."""
        values = np.random.default_rng(0).laplace(size=SAMPLES)
        limit = found("entropy", values)
        assert 3 < limit < np.abs(values).max()
        assert (np.abs(values) > limit).mean() < 0.05


class TestResuming:
    @pytest.fixture
    def chunks(self) -> list[Array]:
        return [normal(number, 2.0**number / 3, 512).reshape(1, -1) for number in range(6)]

    @pytest.mark.parametrize("after", range(7))
    def test_half_way_is_the_same_as_all_at_once(
        self, tmp_path: Path, chunks: list[Array], after: int
    ) -> None:
        first, whole = collector(512), collector(512)
        for chunk in chunks[:after]:
            first.add(chunk)
        first.save(tmp_path / "deep" / "state.npz")
        second = collector(512)
        assert second.resume(tmp_path / "deep" / "state.npz")
        assert second.chunks == after
        for chunk in chunks[after:]:
            second.add(chunk)
        for chunk in chunks:
            whole.add(chunk)
        same(second, whole)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.npz"]

    def test_a_state_that_is_not_there(self, tmp_path: Path) -> None:
        assert not collector().resume(tmp_path / "none.npz")
        assert not collector().resume(tmp_path)

    @pytest.mark.parametrize("harm", ["empty", "text", "half", "npy", "pickle", "flip", "method"])
    def test_a_damaged_state_is_ignored(self, tmp_path: Path, chunks: list[Array], harm: str) -> None:
        path = tmp_path / "state.npz"
        made = collector(512)
        made.add(chunks[0])
        made.save(path)
        content = bytearray(path.read_bytes())
        if harm == "npy":
            with path.open("wb") as stream:
                np.save(stream, np.zeros(3))
        elif harm == "pickle":
            np.savez(path, **{**made._state(), "tensors": np.array([{}], object)})
        else:
            middle, last = len(content) // 2, bytes(content).rindex(b"PK\x01\x02")
            if harm == "flip":
                content[middle] ^= 1
            if harm == "method":
                content[last + 10] = 99  # a compression that nobody knows
            path.write_bytes({"empty": b"", "text": b"{}", "half": content[:middle]}.get(harm, content))
        fresh = collector(512)
        assert not fresh.resume(path)
        same(fresh, collector(512))

    def test_a_state_of_another_graph_is_ignored(self, tmp_path: Path, chunks: list[Array]) -> None:
        made = collector(512)
        made.add(chunks[0])
        made.save(tmp_path / "state.npz")
        other = collector(512, tensor="other")
        assert not other.resume(tmp_path / "state.npz")
        same(other, collector(512, tensor="other"))

    def test_a_state_of_other_bins_is_ignored(
        self, tmp_path: Path, chunks: list[Array], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tfswa.calibration.ranges.BINS", 1024)
        made = collector(512)
        made.add(chunks[0])
        made.save(tmp_path / "state.npz")
        monkeypatch.undo()
        assert not collector(512).resume(tmp_path / "state.npz")

    def test_what_was_saved_before_survives_a_save_that_fails(
        self, tmp_path: Path, chunks: list[Array], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "state.npz"
        made = collector(512)
        made.add(chunks[0])
        made.save(path)
        before = path.read_bytes()
        made.add(chunks[1])

        def stops(stream: Any, **arrays: Any) -> None:
            stream.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr("tfswa.calibration.ranges.np.savez", stops)
        with pytest.raises(KeyboardInterrupt):
            made.save(path)
        assert path.read_bytes() == before

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write"):
            collector(512).save(tmp_path / "file" / "state.npz")

    def test_a_network_too(
        self, full: Any, exported_bundle: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        spec = open_model(exported_bundle).spec
        mixtures = [planes(spec, number, 2.0**number) for number in range(4)]
        whole, first, second = (Collector(full, spec) for _ in range(3))
        for mixture in mixtures:
            whole.add(mixture)
        for mixture in mixtures[:2]:
            first.add(mixture)
        first.save(tmp_path / "state.npz")
        assert second.resume(tmp_path / "state.npz")
        for mixture in mixtures[2:]:
            second.add(mixture)
        same(second, whole)
        second.save(tmp_path / "again.npz")
        whole.save(tmp_path / "whole.npz")
        held = contents(tmp_path)
        shutil.rmtree(tmp_path)
        assert len(held["again.npz"]) == len(held["whole.npz"])
