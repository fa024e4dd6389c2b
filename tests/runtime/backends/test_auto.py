"""What --backend auto takes, by what was measured here, and when that no longer holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planes import Tensors

from tfswa.runtime import backends
from tfswa.runtime.backends import BackendOptions, auto, open_session
from tfswa.runtime.backends.auto import choose, record, why
from tfswa.runtime.benchmark.bench import Benchmark, Plan, Row
from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.files import caches
from tfswa.runtime.machine import cores
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel

CPU = BackendOptions()


def fake(called: str, version: str = "1", missing: bool = False, gpu: bool = False) -> Any:
    """A backend that opens for any model, on the CPU or on a GPU alone."""

    class Session:
        name = called

        def __init__(self, model: Any, options: BackendOptions):
            if missing:
                raise BackendUnavailable(f"{called} is not installed")
            if gpu != (options.device == "cuda"):
                raise BackendUnavailable(f"{called} does not run on {options.device}")
            self.versions, self.description, self.closed = {"lib": version}, called, False

        def infer(self, given: Tensors) -> Tensors:
            return given

        def close(self) -> None:
            self.closed = True

    return Session


@pytest.fixture
def model(tiny_bundle: Bundle, register: Callable[..., None]) -> BundleModel:
    for name in ("slow", "fast"):
        register(backends, name, fake(name))
    register(backends, "gone", fake("gone", missing=True))
    register(backends, "newer", fake("newer", version="2"))
    return BundleModel("tiny", tiny_bundle)


def measured(*rows: tuple[str, str, float, bool]) -> Benchmark:
    made = [
        Row(name, precision, x_realtime=speed, passed=passed, versions={"lib": "1"})
        for name, precision, speed, passed in rows
    ]
    return Benchmark("tiny", {"date": "2026-11-22"}, "song", None, {}, made)


def test_the_fastest_that_passed_is_taken_and_why_is_said(model: BundleModel) -> None:
    rows = (("slow", "fp32", 2.0, True), ("fast", "fp32", 5.0, True), ("wrong", "fp32", 9.0, False))
    path = record(model, Plan(), measured(*rows))
    assert path.is_file()
    session = choose(model, CPU)
    assert session.name == open_session("auto", model, CPU).name == "fast"
    assert why(model, CPU, session) == "the fastest of 2 measured here, 5 x real time"


def test_bfloat16_goes_past_onnxruntime_that_has_none_on_the_cpu(
    tiny_bundle: Bundle, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tiny_bundle.add("model.bf16.onnx", lambda path: path.touch(), kind="onnx", precision="bf16")
    register(backends, "fast", fake("fast"))
    monkeypatch.setattr(auto, "PREFERENCE", ("ort", "fast"))
    model = BundleModel("tiny", tiny_bundle)
    bf16 = BackendOptions(precision="bf16")
    assert choose(model, bf16).name == "fast"
    with pytest.raises(BackendUnavailable, match="no bfloat16 convolutions on the CPU: use --backend openvi"):
        open_session("ort", model, bf16)


def test_precision_is_never_chosen(model: BundleModel) -> None:
    record(model, Plan(), measured(("slow", "fp32", 2.0, True), ("fast", "bf16", 9.0, True)))
    assert choose(model, CPU).name == "slow"
    assert choose(model, BackendOptions(precision="bf16")).name == "fast"


def test_what_compiles_for_minutes_is_not_kept(model: BundleModel, register: Callable[..., None]) -> None:
    slow_to_load = fake("compiled")
    slow_to_load.compiles = True
    register(backends, "compiled", slow_to_load)
    record(model, Plan(), measured(("compiled", "fp32", 9.0, True), ("slow", "fp32", 2.0, True)))
    session = choose(model, CPU)
    assert session.name == "slow"
    assert why(model, CPU, session) == "the fastest of 1 measured here, 2 x real time"


def test_a_backend_that_nobody_registers_any_more_is_passed_over(
    model: BundleModel,
) -> None:
    path = record(model, Plan(), measured(("fast", "fp32", 9.0, True), ("slow", "fp32", 2.0, True)))
    caches.put(path, (caches.recall(path) or b"").replace(b'"fast"', b'"removed"'))
    assert choose(model, CPU).name == "slow"


def test_a_cache_that_cannot_be_written_is_one_line(model: BundleModel, private_cache: Path) -> None:
    (private_cache / "tfswa").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*auto.*\.json: Not a directory"):
        record(model, Plan(), measured(("slow", "fp32", 2.0, True)))


def test_one_that_is_gone_or_of_another_version_is_passed_over(model: BundleModel) -> None:
    rows = (("gone", "fp32", 9.0, True), ("newer", "fp32", 8.0, True), ("slow", "fp32", 2.0, True))
    record(model, Plan(), measured(*rows))
    session = choose(model, CPU)
    assert session.name == "slow"
    assert why(model, CPU, session) == "number 3 of 3 measured here, 2 x real time"


OTHER_THREADS = 2 if cores() == 1 else 1


@pytest.mark.parametrize("options", [BackendOptions(threads=OTHER_THREADS), BackendOptions(device="cuda")])
def test_what_was_measured_otherwise_does_not_count(
    model: BundleModel,
    register: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    options: BackendOptions,
) -> None:
    record(model, Plan(), measured(("fast", "fp32", 5.0, True)))
    register(backends, "slow gpu", fake("slow", gpu=True))
    monkeypatch.setattr(auto, "PREFERENCE", ("slow" if options.device == "cpu" else "slow gpu",))
    session = choose(model, options)
    assert session.name == "slow"
    assert why(model, options, session) == "speeds not measured here, see `tfx bench --auto`"


def test_a_table_of_another_cpu_or_a_damaged_one_does_not_count(
    model: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(model, Plan(), measured(("fast", "fp32", 5.0, True)))
    monkeypatch.setattr(auto, "PREFERENCE", ("slow",))
    kept = caches.recall(path) or b""
    (row,) = json.loads(kept)["rows"]
    wrong = [{"rows": [{**row, key: value}]} for key in row for value in (None, [], {}, "cuda:x", -1, True)]
    texts = [kept[:20], b"[]", b'{"rows": 3}', b'{"rows": [3]}', b"", b"[" * 100_000]
    for content in (*texts, *(json.dumps(table).encode() for table in wrong)):
        caches.put(path, content)
        assert choose(model, CPU).name in ("slow", "fast")
        record(model, Plan(threads=99), measured(("fast", "fp32", 5.0, True)))  # the others are kept, or left
    for content in texts:
        caches.put(path, content)
        assert choose(model, CPU).name == "slow"
    caches.put(path, kept)
    assert choose(model, CPU).name == "fast"
    monkeypatch.setattr(auto, "cpu_name", lambda: "another")
    assert choose(model, CPU).name == "slow"


def test_an_exported_file_has_no_table(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = SimpleNamespace(name="model.onnx", bundle=None)
    monkeypatch.setattr(auto, "PREFERENCE", ("slow",))
    assert choose(file, CPU).name == "slow"
    with pytest.raises(UsageError, match="compared for bundles"):
        record(file, Plan(), measured())


def test_nothing_that_works_gives_every_reason(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "PREFERENCE", ("gone",))
    with pytest.raises(BackendUnavailable, match="no backend can run tiny: gone: gone is not installed"):
        choose(model, CPU)


ANY = BackendOptions(device="auto")


class TestGpu:
    @pytest.fixture(autouse=True)
    def card(self, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine with one GPU, and a backend that runs on it."""
        monkeypatch.setattr(auto, "gpu_name", lambda index=0: "H100" if index == 0 else None)
        monkeypatch.setattr(auto, "PREFERENCE", ("slow",))
        monkeypatch.setattr(auto, "ON_GPU", ("gone", "broken", "card"))
        register(backends, "card", fake("card", gpu=True))
        register(backends, "broken", broken)

    def test_one_that_works_is_taken_where_no_device_is_asked_for(self, model: BundleModel) -> None:
        session = choose(model, ANY)
        assert (session.name, session.options.device) == ("card", "cuda")
        assert choose(model, CPU).name == "slow"

    def test_none_that_works_is_no_error(self, model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auto, "ON_GPU", ("gone", "broken"))
        session = choose(model, ANY)
        assert (session.name, session.options.device) == ("slow", "cpu")

    def test_nothing_is_tried_where_there_is_none(
        self, model: BundleModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auto, "gpu_name", lambda index=0: None)
        monkeypatch.setattr(auto, "ON_GPU", ("no such backend",))
        assert choose(model, ANY).name == "slow"

    def test_rows_are_filed_under_what_they_ran_on(
        self, model: BundleModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = measured(("slow", "fp32", 2.0, True), ("card", "fp32", 50.0, True))
        rows.rows[1].device = "cuda"
        path = record(model, Plan(), rows)
        places = {row["backend"]: row["place"] for row in auto._rows(path)}
        assert places == {"slow": auto.cpu_name(), "card": "H100"}
        session = choose(model, ANY)
        assert (session.name, session.options.device) == ("card", "cuda")
        assert why(model, session.options, session) == "the fastest of 1 measured here, 50 x real time"
        assert choose(model, CPU).name == "slow"
        # Another card: what was measured on the first says nothing of it.
        monkeypatch.setattr(auto, "gpu_name", lambda index=0: "L4")
        monkeypatch.setattr(auto, "ON_GPU", ())
        assert choose(model, ANY).name == "slow"

    def test_one_place_measured_anew_leaves_the_others_alone(self, model: BundleModel) -> None:
        rows = measured(("slow", "fp32", 2.0, True), ("card", "fp32", 50.0, True))
        rows.rows[1].device = "cuda"
        record(model, Plan(), rows)
        path = record(model, Plan(), measured(("fast", "fp32", 3.0, True)))
        kept = [row["backend"] for row in auto._rows(path)]
        assert kept == ["card", "fast"]

    def test_what_transforms_for_a_gpu_is_said(self, model: BundleModel) -> None:
        from tfswa.runtime.stream.separator import Separator

        with Separator(model, options=ANY) as opened:
            assert opened.options.device == "cuda"
            assert opened.description == f"{opened.session.description}, STFT on the CPU"
        with Separator(model, options=CPU) as opened:
            assert opened.description == opened.session.description


class broken:  # noqa: N801
    """A backend whose library fails while it loads."""

    def __init__(self, model: Any, options: BackendOptions):
        raise RuntimeError("CUDA driver version is insufficient")
