"""tfx bench: what is timed beside what, which figures follow, and what is missing or lost."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tfswa.runtime.benchmark import bench as module
from tfswa.runtime.benchmark.bench import Benchmark, Plan, Row, bench
from tfswa.runtime.benchmark.page import benchmark_page, benchmark_text
from tfswa.runtime.benchmark.process import Lost, Worker
from tfswa.runtime.commands.bench import bench as command
from tfswa.runtime.errors import BackendUnavailable, OutputExists, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import Song
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.arrangement import One


@pytest.fixture
def worker() -> Iterator[Callable[[str], Worker]]:
    """``worker(program)``: a Python program as a worker."""
    made = []

    def start(program: str) -> Worker:
        made.append(Worker([sys.executable, "-c", program]))
        return made[-1]

    yield start
    for one in made:
        one.close()


class Fake:
    """A worker of known times and outputs."""

    def __init__(self, seconds: list[float], output: Any = None, dies: str = "") -> None:
        self.seconds, self.output, self.dies = iter(seconds), output, dies

    def ask(self, what: str = "", seconds: float | None = None) -> dict[str, Any]:
        if self.dies and what.startswith(f'["{self.dies}"'):
            raise Lost("died, exit code -9")
        if not what:
            started = {"open_s": 1.0, "first_s": 0.5, "memory_mb": 10.0, "gpu_memory_mb": None}
            return {**started, "session": "fake", "versions": {"fake": "1"}}
        word, *rest = json.loads(what)
        if word == "run":
            return {"seconds": [next(self.seconds) for _ in range(rest[0])], "memory_mb": 20.0}
        np.save(rest[1], self.output(np.load(rest[0])))
        return {"memory_mb": 30.0}

    def close(self) -> None:
        pass


@pytest.fixture
def song(tiny_spec: ModelSpec) -> Song:
    return synthetic_song(tiny_spec)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, song: Song) -> Callable[..., Benchmark]:
    """``fakes({"a": Fake(...), ...}, rounds=3)``: a run of these."""
    monkeypatch.setattr(module, "_ceilings", lambda *_: {"fp32": 100.0})
    costly = dataclasses.replace(tiny_bundle.spec, gflop_per_second=2.0)
    monkeypatch.setattr(tiny_bundle, "spec", costly)

    def run(workers: dict[str, Fake], rounds: int = 3, asked: bool = True) -> Benchmark:
        def start(given: list[str], extra: Any) -> Fake:
            return workers[json.loads(given[-1])["backend"]]

        monkeypatch.setattr(module, "Worker", start)
        monkeypatch.setattr(module, "backend_names", lambda: list(workers))
        monkeypatch.setattr(module, "default_device", lambda name: "cpu")
        entries = [(name, "fp32") for name in workers]
        monkeypatch.setattr(module, "_all_entries", lambda compiled: entries)
        return bench(One(BundleModel("tiny", tiny_bundle)), song, Plan(entries if asked else (), rounds))

    return run


def halves(gain: float = 0.5) -> Any:
    return lambda mixture: np.stack((mixture * gain, mixture * gain))


def test_what_compiles_for_minutes_is_measured_on_request() -> None:
    pytest.importorskip("torch", reason="torch is not installed: torch-compile needs it")
    named = [{name for name, _ in module._all_entries(compiled)} for compiled in (False, True)]
    assert named[1] - named[0] == {"torch-compile"}


def test_figures_follow_from_times_and_outputs(fakes: Callable[..., Benchmark], tiny_spec: ModelSpec) -> None:
    found = fakes({"a": Fake([0.2, 0.4, 0.2], halves()), "b": Fake([0.1, 0.2, 0.4], halves(0.505))})
    one, two = found.rows
    seconds = tiny_spec.chunk_samples / tiny_spec.stft.sample_rate
    assert (one.median_ms, two.median_ms, two.p95_ms) == (200.0, 200.0, 380.0)
    assert one.x_realtime == pytest.approx(seconds / 0.2, abs=0.01)
    assert (one.x_first, two.x_first) == (1.0, 1.0)  # what the medians give
    assert (one.snr_db, two.snr_db) == (None, 40.0)
    assert one.drift_db == 0.0
    assert two.drift_db != 0.0
    assert (one.passed, two.passed) == (True, False)  # 40 dB are not enough for float32
    assert (one.open_s, one.cold_s, one.memory_mb) == (1.0, 1.5, 30.0)
    assert one.ceiling == pytest.approx(2.0 * one.x_realtime / 100.0)
    assert found.machine["cores"] >= 1


def test_slower_than_the_first_is_said(fakes: Callable[..., Benchmark]) -> None:
    found = fakes({"a": Fake([0.1] * 3, halves()), "b": Fake([0.2] * 3, halves())})
    assert [row.note for row in found.rows] == ["", "slower than a fp32"]


@pytest.mark.parametrize("when", ["run", "song"])
def test_one_that_dies_is_said_and_the_others_go_on(fakes: Callable[..., Benchmark], when: str) -> None:
    found = fakes({"a": Fake([0.1] * 3, halves()), "b": Fake([0.2] * 3, halves(), dies=when)})
    assert [row.backend for row in found.rows] == ["a", "b"]
    notes = {"run": "died, exit code -9", "song": "died, exit code -9; slower than a fp32"}
    assert found.rows[1].note == notes[when]
    assert found.rows[1].snr_db is None
    assert found.rows[0].median_ms == 100.0
    assert found.to_dict()["errors"] == [{"input": "b:fp32", "error": "b:fp32 died, exit code -9"}]
    assert found.failures[0].error.exit_code == 1


def test_one_that_cannot_run_comes_last_and_is_a_failure_where_it_was_asked_for(
    fakes: Callable[..., Benchmark],
) -> None:
    class Refuses(Fake):
        def ask(self, what: str = "", seconds: float | None = None) -> dict[str, Any]:
            raise Lost("no such artifact")

    workers = {"a": Refuses([]), "b": Fake([0.1] * 3, halves())}
    found = fakes(workers, asked=False)
    assert [(row.backend, row.note) for row in found.rows] == [("b", ""), ("a", "no such artifact")]
    assert not found.failures
    found = fakes({"a": Refuses([]), "b": Fake([0.1] * 3, halves())})
    assert [(row.backend, row.x_first) for row in found.rows] == [("b", 1.0), ("a", None)]
    told = {"input": "a:fp32", "error": "a:fp32 cannot run here: no such artifact"}
    assert found.to_dict()["errors"] == [told]
    assert isinstance(found.failures[0].error, BackendUnavailable)
    with pytest.raises(BackendUnavailable, match="a:fp32 cannot run here: no such artifact"):
        fakes({"a": Refuses([])})
    for workers in ({"a": Refuses([])}, {"a": Refuses([]), "c": Refuses([])}):
        with pytest.raises(BackendUnavailable, match="no backend can run tiny: no such artifact"):
            fakes(workers, asked=len(workers) > 1)


def test_rounds_are_at_least_one(tiny_bundle: Bundle, song: Song) -> None:
    with pytest.raises(UsageError, match="rounds 0 and batch 1 must be at least 1"):
        bench(One(BundleModel("tiny", tiny_bundle)), song, Plan(rounds=0))


def test_a_process_that_says_why_it_fails(worker: Callable[[str], Worker]) -> None:
    with pytest.raises(Lost, match="no memory"):
        worker('print(\'{"error": "no memory"}\')').ask()
    with pytest.raises(Lost, match="died, exit code 3"):
        worker("raise SystemExit(3)").ask()
    with pytest.raises(Lost, match=r"not within 0\.2 s"):
        worker("import time; time.sleep(60)").ask(seconds=0.2)


@pytest.mark.slow
def test_the_real_thing(network_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager torch in two precisions, on the tiny network, through the command."""
    (tmp_path / "a place é").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a place é"))  # as TMPDIR has it
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    entries = ["--backend", "torch", "--backend", "torch:bf16"]
    where = tmp_path / "new" / "speed"
    arguments = [str(network_bundle.path), *entries, "--rounds", "3", "--threads", "1", "-o", str(where)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "new" / "speed.json").read_text())
    full, low = report["rows"]
    assert (full["backend"], low["precision"]) == ("torch", "bf16")
    assert full["snr_db"] is None
    assert 20 < low["snr_db"] < 90
    assert report["ceilings"]["fp32"] > 1
    assert 0 < full["ceiling"] < 1
    assert full["cold_s"] > full["open_s"] > 0
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| torch | bf16 |" in (tmp_path / "new" / "speed.md").read_text()
    again = CliRunner().invoke(command, arguments)
    assert isinstance(again.exception, OutputExists)


@pytest.mark.slow
def test_what_cannot_run_is_named_by_the_command(network_bundle: Bundle) -> None:
    result = CliRunner().invoke(command, [str(network_bundle.path), "--backend", "ort"])
    assert isinstance(result.exception, BackendUnavailable)
    assert "ort:fp32 cannot run here: " in str(result.exception)
    assert "tfx export" in str(result.exception)
    both = ["--backend", "ort", "--backend", "torch", "--rounds", "1", "--threads", "1", "--json"]
    result = CliRunner().invoke(command, [str(network_bundle.path), *both])
    assert isinstance(result.exception, BackendUnavailable)
    assert str(result.exception) == "1 of 2 backends failed"
    printed = json.loads(result.stdout)
    assert [row["backend"] for row in printed["rows"] if row["median_ms"]] == ["torch"]
    assert [error["input"] for error in printed["errors"]] == ["ort:fp32"]
    assert f"tfx: {printed['errors'][0]['error']}\n" in result.stderr
    result = CliRunner().invoke(command, [str(network_bundle.path), "--backend", "nothing"])
    assert isinstance(result.exception, UsageError)
    assert "unknown backend 'nothing'" in str(result.exception)


def test_what_cannot_run_is_one_line_below_the_table() -> None:
    rows = [Row("a", "fp32", median_ms=1.0, session="a 1"), Row("b", "fp32"), Row("c", "int8")]
    rows[1].remark("a long reason " * 30)
    lines = benchmark_text(Benchmark("tiny", {}, "song", None, {}, rows)).splitlines()
    assert lines[-1] == "cannot run here: b fp32, c int8; --json says why"
    assert sum("a " in line for line in lines[1:-1]) == 1
    assert not any("b " in line for line in lines[1:-1])
    assert max(map(len, lines)) < 160


def test_what_transforms_for_a_gpu_is_named() -> None:
    rows = [
        Row("a", "fp32", median_ms=1.0, session="a 1, fp32 on cpu"),
        Row("b", "fp16", "cuda", median_ms=1.0, session="b 2, fp16 on cuda, STFT by encode.onnx"),
    ]
    found = Benchmark("mine", {"cpu": "x"}, "a song", None, {}, rows)
    for text in (benchmark_text(found), benchmark_page(found)):
        assert text.rstrip("\n").splitlines()[-1] == "b fp16: b 2, fp16 on cuda, STFT by encode.onnx"
        assert "a 1" not in text


def test_a_row_without_figures_is_json() -> None:
    assert json.loads(json.dumps(Row("a", "fp32").to_dict()))["median_ms"] is None
