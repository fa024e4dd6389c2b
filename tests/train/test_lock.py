"""The lock of a run's folder: one process holds it, and it ends with that process, however it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tfswa.runtime.errors import UsageError

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.lock import RunLock

HOLD = """
import os, sys
from pathlib import Path
from tfswa.train.lock import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "forks" else 1
    if child == 0:  # outlives its parent, as a loader process may for a moment
        sys.stdin.read()
        os._exit(0)
    print("held", child, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(out: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line or is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("held")
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with holder(out):
        with pytest.raises(
            UsageError, match=r"run is in use by another training: wait, or choose another -o"
        ):
            RunLock(out)
        assert out.is_dir()
        with pytest.raises(UsageError, match="in use"):
            RunLock(out)
    with RunLock(out):
        pass


def test_the_lock_ends_when_the_block_does(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunLock(out):
        (out / "log.csv").touch()
    with holder(out):
        pass


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, how: str) -> None:
    out = tmp_path / "run"
    with holder(out, how) as process:
        process.kill()
        process.wait()
        with RunLock(out):  # though a child of it may still live
            pass


def test_a_forked_child_that_ends_leaves_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = f"""
import os, subprocess, sys
from pathlib import Path
from tfswa.train.lock import RunLock
with RunLock(Path({str(out)!r})):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    other = "from pathlib import Path; from tfswa.train.lock import RunLock; RunLock(Path({str(out)!r}))"
    sys.exit(subprocess.run([sys.executable, "-c", other], capture_output=True).returncode)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1  # refused


def test_a_folder_that_nothing_came_of_is_taken_away_again(tmp_path: Path) -> None:
    with RunLock(tmp_path / "a" / "b" / "run"):
        assert (tmp_path / "a" / "b" / "run").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_something_came_of_stays(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    with RunLock(out):
        (out / "config.json").touch()
    assert (out / "config.json").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    out.parent.mkdir()
    with RunLock(out):
        pass
    assert list(tmp_path.iterdir()) == [out.parent]
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    with RunLock(out):
        pass
    assert out.is_dir()


def test_a_neighbor_that_came_meanwhile_is_no_error(tmp_path: Path) -> None:
    """It would hide what the training failed of."""
    with RunLock(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "two").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]


def test_a_folder_that_somebody_removed_is_no_error(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "run"):
        with pytest.raises(UsageError, match=r"cannot be made \(.+\): choose another -o") as error:
            RunLock(out)
        assert "\n" not in str(error.value)


def test_the_lock_file_is_gone_before_the_lock_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or another process could lock the file in between, and a third one its successor."""
    out, seen = tmp_path / "run", []
    unlink = Path.unlink

    def spy(self: Path, missing_ok: bool = False) -> None:
        code = HOLD.replace("sys.stdin.readline()", "")
        done = subprocess.run(
            [sys.executable, "-c", code, str(out), "alone"], capture_output=True, check=False
        )
        seen.append(b"in use by another training" in done.stderr)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", spy)
    with RunLock(out):
        pass
    assert seen == [True]
