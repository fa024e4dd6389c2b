"""The training part of the benchmark: processes that fail are named, figures follow from the times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import soundfile
from waiting import until

pytest.importorskip("torch", reason="torch is not installed: training needs it")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import bench_training  # noqa: E402
from bench_training import Cell  # noqa: E402

from tfswa.runtime.benchmark.process import Lost, Worker  # noqa: E402

ECHO = """
import sys
print("{}", flush=True)
for line in sys.stdin:
    print('{"said": "%s"}' % line.strip(), flush=True)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print('{"pid": %d}' % child.pid, flush=True)
input()
"""
TINY = (
    "model.hyper={dims=[8,16],depths=[1,1],decoder_depths=[1],heads=[1,2],window=4}",
    "optim.batch=2",
    "optim.frames=64",
)


def python(code: str) -> closing[Worker]:
    return closing(Worker([sys.executable, "-c", code]))


def cell(mode: str, seconds: list[float], norms: tuple[float, ...] = (1.0, 2.0)) -> Cell:
    """A cell that was measured: batches of 4 x 3 s."""
    return Cell(
        "net",
        mode,
        conditions={"batch": 4, "chunk_seconds": 3.0, "memory_mb": 300.0},
        warm_up=[{"seconds": 9.0, "loss": 1.0, "gradient_norm": norm} for norm in norms],
        steps=[{"seconds": value} for value in seconds],
        memory_mb=500.0,
    )


def test_a_process_answers_line_by_line() -> None:
    with python(ECHO) as trainee:
        assert trainee.ask() == {}
        assert trainee.ask("one") == {"said": "one"}
        assert trainee.ask("two", seconds=60) == {"said": "two"}


def test_the_first_step_of_a_turn_is_not_timed() -> None:
    code = """
import json
for count in (1, 3):
    assert input() == f"step {count}"
    print(json.dumps({"steps": [{"seconds": n} for n in range(count)], "memory_mb": 7.0}), flush=True)
"""
    with python(code) as trainee:
        measured = Cell("net", "eager", trainee)
        measured.warm()
        measured.turn(2)
    assert measured.warm_up == [{"seconds": 0}]
    assert measured.steps == [{"seconds": 1}, {"seconds": 2}]
    assert (measured.memory_mb, measured.note) == (7.0, "")


@pytest.mark.parametrize(
    ("code", "seconds", "why"),
    [
        ("import time; time.sleep(60)", 0.2, "not within 0.2 s"),
        ("import sys; sys.exit(3)", None, "died, exit code 3"),
        ('print(\'{"error": "OutOfMemoryError: 80 GiB"}\')', None, "OutOfMemoryError: 80 GiB"),
    ],
)
def test_a_lost_process_says_why(code: str, seconds: float | None, why: str) -> None:
    with python(code) as trainee:
        lost = Cell("net", "compiled", trainee)
        lost.warm(seconds)
        assert lost.note == why
        assert lost.trainee is None
        lost.turn(2)  # asked no more
        assert (lost.warm_up, lost.steps) == ([], [])


def test_what_a_process_started_ends_with_it() -> None:
    with python(PARENT) as trainee:
        pid = trainee.ask()["pid"]
        os.kill(pid, 0)

    def ended() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"  # dead, and not yet collected by whoever adopted it

    until(ended, said=lambda: f"process {pid} lives on")


def test_asking_the_dead_is_no_crash() -> None:
    with python("pass") as trainee:
        trainee._process.wait()
        with pytest.raises(Lost, match="exit code 0"):
            trainee.ask("step")


def test_figures_of_a_row() -> None:
    eager = cell("eager", [2.0, 4.0, 2.0, 2.0, 2.0])
    fast = cell("compiled", [1.0, 2.0, 1.0, 1.0, 8.0], norms=(1.0, 2.002))
    row = bench_training.step_row(fast, eager)
    assert row["median_ms"] == 1000.0
    assert row["p95_ms"] == 6800.0  # between 2 and 8 s, at 0.8 of the way
    assert row["x_eager"] == 2.0
    assert row["audio_s_per_s"] == 12.0
    assert row["compile_s"] == 8.0  # the first step took 9 s
    assert (row["memory_mb"], row["before_mb"]) == (500.0, 300.0)
    assert row["apart"] == "1.0e-03"
    assert bench_training.step_row(eager, eager)["apart"] == "identical"
    assert (row["hours_300_epochs"], row["within_aim"]) == (140.0, "no")  # 300 x 5.6 h / 12
    assert bench_training.step_row(cell("eager", [0.3]), eager)["within_aim"] == "yes"


def test_a_row_without_steps_keeps_its_columns_and_says_why() -> None:
    eager = cell("eager", [2.0])
    row = bench_training.step_row(Cell("net", "compiled", note="not within 600 s"), eager)
    assert list(row) == list(bench_training.step_row(eager, eager))
    assert {key: value for key, value in row.items() if value is not None} == {
        "network": "net",
        "mode": "compiled",
        "note": "not within 600 s",
    }


def test_workers_are_those_that_the_fastest_mode_needs() -> None:
    class Told:
        def ask(self, what: str, seconds: float | None = None) -> dict[str, Any]:
            if what == "load 7":
                return {"seconds": 1.5}
            assert what == "feed 7"
            return {"wait_seconds": [0.0, 0.5, 0.1], "step_seconds": [1.0, 1.2, 1.1]}

        def close(self) -> None: ...

    eager = cell("eager", [1.1])
    eager.trainee = Told()  # type: ignore[assignment]
    row = bench_training.loader_row([eager, Cell("net", "checkpointing"), cell("compiled", [0.4])], 7)
    assert row is not None
    assert (row["fastest"], row["workers_for_fastest"]) == ("compiled", 4)  # 1.5 / 0.4
    assert (row["chunks_per_s"], row["x_realtime"]) == (2.67, 8.0)
    assert (row["wait_ms"], row["longest_wait_ms"], row["step_ms"]) == (100.0, 500.0, 1100.0)
    assert row["wait_percent"] == pytest.approx(100 * 0.6 / 3.9, abs=0.01)
    assert bench_training.loader_row([Cell("net", "eager")], 7) is None


def test_songs_are_four_sources_of_a_minute(tmp_path: Path) -> None:
    bench_training.write_songs(tmp_path, seconds=8)
    files = sorted(tmp_path.glob("*/*.wav"))
    assert len(files) == 8
    assert {soundfile.info(path).frames for path in files} == {8 * 44_100}
    one, two = (soundfile.read(tmp_path / name / "drums.wav")[0] for name in ("one", "two"))
    assert abs(one - two).max() > 0.01  # begun at two places


@pytest.mark.slow
def test_bench_trains_and_writes_its_tables(tmp_path: Path) -> None:
    overrides = [part for value in TINY for part in ("--set", value)]
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPTS / "bench.py"), "--only", "training", "--networks", "tfswa_lite"),
            *("--steps", "1", "--compile-seconds", "0.5", "--output", str(tmp_path / "speed")),
            *overrides,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())
    eager, checkpointing, compiled = results["training"]
    for row in (eager, checkpointing):
        assert row["note"] is None
        assert row["memory_mb"] > row["before_mb"] > 100
        assert row["p95_ms"] >= row["median_ms"] > 0
    assert checkpointing["apart"] == "identical" or float(checkpointing["apart"]) < 1e-4
    assert compiled["note"] == "not within 0.5 s"
    assert compiled["median_ms"] is None
    conditions = results["training_conditions"][0]
    assert (conditions["batch"], conditions["frames"], conditions["steps"]) == (2, 64, 1)
    assert results["training_loader"][0]["x_realtime"] > 0
    page = (tmp_path / "speed.md").read_text()
    assert "| tfswa_lite | compiled | - |" in page
    assert "not within 0.5 s" in page


@pytest.mark.slow
def test_a_recipe_that_cannot_be_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), "--only", "training", "--set", "optim.bach=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "tfswa_lite cannot be trained" in done.stderr
    assert "did you mean 'batch'" in done.stderr
    assert "Traceback" not in done.stderr
