"""Old or new, never in between: errors, refused system calls, and kill -9 at random moments."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfswa.runtime.files import atomic
from tfswa.runtime.files.atomic import exchange, sweep, writing

KILLS = 20
SIZE = 1 << 18


@pytest.fixture(params=["renameat2", "refused", "missing"])
def rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The system call as it is, refused by the file system, and absent from the C library."""
    kind: str = request.param
    if kind != "renameat2":
        libc = SimpleNamespace(renameat2=lambda *given: -1) if kind == "refused" else SimpleNamespace()
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name, use_errno: libc)
    return kind


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(work: Callable[[], None], begun: Callable[[], bool]) -> None:
    """Let a forked child work without end, and kill it at a random moment after it has begun."""
    with warnings.catch_warnings():
        # The child touches files alone, so other tests' threads do not matter to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    limit = time.monotonic() + 30
    while not begun():
        assert time.monotonic() < limit
        time.sleep(0.0005)
    time.sleep(random.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL  # it had not failed by itself


def test_the_old_content_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    with writing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["x.json"]


def test_a_new_file_is_not_there_before_the_end(tmp_path: Path) -> None:
    with writing(tmp_path / "x") as stream:
        stream.write(b"new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [b"old", None])
def test_an_error_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)

    def fail() -> None:
        with writing(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["x"] if old is not None else [])
    assert old is None or path.read_bytes() == old


def test_what_a_full_disk_refuses_at_the_end_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"), writing(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_directory_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"), writing(tmp_path / "x") as stream:
        stream.write(b"new")
    assert names(tmp_path) == ["x"]


def test_all_of_it_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        fsync(handle)
        state = os.fstat(handle)
        done.append(("fsync", -1 if stat.S_ISDIR(state.st_mode) else state.st_size))

    def spy_replace(source: Path, target: Path) -> None:
        done.append(("replace", source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", spy_fsync)
    monkeypatch.setattr(atomic.os, "replace", spy_replace)
    with writing(tmp_path / "x") as stream:
        stream.write(b"new")  # stays in the stream's buffer
    assert done == [("fsync", 3), ("replace", 3), ("fsync", -1)]  # the file, its name, the folder


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def work() -> None:
        for letter in (b"a", b"b"):
            with writing(path) as stream:
                for _ in range(8):
                    stream.write(letter * (SIZE // 8))
                    stream.flush()
                    time.sleep(0.0005)  # or a kill would wait for the file system, and land after a rename

    torn = 0
    for _ in range(KILLS):
        killed(work, path.exists)
        content = path.read_bytes()
        assert content in (b"a" * SIZE, b"b" * SIZE)
        torn += len(names(tmp_path)) > 1
        sweep(tmp_path)
        assert names(tmp_path) == ["x"]
        path.unlink()
    assert torn  # some kills came while a file was half-written, or this tests nothing


def test_files_change_places(tmp_path: Path, rename: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    exchange(one, two)
    assert (one.read_text(), two.read_text()) == ("2", "1")
    assert names(tmp_path) == ["one", "two"]


def test_directories_change_places(tmp_path: Path, rename: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        (path / "inner").mkdir(parents=True)
        (path / "inner" / path.name).touch()
    monkeypatch.chdir(tmp_path)
    exchange(Path("one"), Path("two"))
    assert (names(one / "inner"), names(two / "inner")) == (["two"], ["one"])
    assert names(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("present", ["one", "two"])
def test_what_is_missing_cannot_be_exchanged(tmp_path: Path, rename: str, present: str) -> None:
    (tmp_path / present).write_text(present)
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "two")
    assert names(tmp_path) == [present]
    assert (tmp_path / present).read_text() == present


@pytest.mark.parametrize("fails", [1, 2, 3])
@pytest.mark.parametrize("rename", ["refused"], indirect=True)
def test_a_failure_gives_everything_back(
    tmp_path: Path, rename: str, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    real, calls = Path.rename, iter(range(1, 10))

    def failing(self: Path, target: Path) -> Any:
        if next(calls) == fails:
            raise OSError(5, "Input/output error")
        return real(self, target)

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        exchange(one, two)
    assert (one.read_text(), two.read_text()) == ("1", "2")
    assert names(tmp_path) == ["one", "two"]


def test_a_killed_exchange_leaves_both(tmp_path: Path, rename: str) -> None:
    """Where three renames stand in for one, sweeping gives back what was put aside."""
    for _ in range(KILLS if rename != "missing" else 2):
        folder = tmp_path / str(random.random())
        new, place, begun = folder / ".x.partial-1", folder / "x", folder / "begun"
        for path, text in ((new, "new"), (place, "old")):
            path.mkdir(parents=True)
            (path / "content").write_text(text)

        def work(new: Path = new, place: Path = place, begun: Path = begun) -> None:
            exchange(new, place)
            begun.touch()

        killed(work, begun.exists)
        contents = sorted(path.read_text() for path in folder.glob("*/content"))
        if rename == "renameat2":
            assert new.exists()
            assert place.exists()
        assert contents == ["new", "old"]
        sweep(folder)
        assert names(folder) == ["begun", "x"]
        assert (place / "content").read_text() in ("old", "new")


def test_sweeping_removes_half_written_files_and_folders_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".a.json.partial-17").touch()
    (tmp_path / ".b.tfx.partial-17" / "inner").mkdir(parents=True)
    (tmp_path / ".b.tfx.partial-17" / "inner" / "weights").touch()
    for name in ("a.json", "b.partial-1", ".hidden", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / ".c.partial-1").touch()
    sweep(tmp_path)
    assert names(tmp_path) == [".hidden", ".lock", "a.json", "b.partial-1", "deeper"]
    assert names(tmp_path / "deeper") == [".c.partial-1"]  # somebody else's


def test_sweeping_what_is_not_there_or_empty_is_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "missing")
    sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("came", [False, True])
def test_sweeping_gives_back_what_an_exchange_put_aside(tmp_path: Path, came: bool) -> None:
    (tmp_path / ".x.tfx.aside-17").mkdir()
    (tmp_path / ".x.tfx.aside-17" / "old").touch()
    if came:
        (tmp_path / "x.tfx").mkdir()
        (tmp_path / "x.tfx" / "new").touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["x.tfx"]
    assert names(tmp_path / "x.tfx") == ["new" if came else "old"]
