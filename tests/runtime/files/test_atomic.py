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

import pytest
from waiting import until

from tfswa.runtime.errors import OutputExists
from tfswa.runtime.files import publish
from tfswa.runtime.files.atomic import new_folder, writing
from tfswa.runtime.files.publish import sweep

KILLS = 20
SIZE = 1 << 18


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
    until(begun)
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
    monkeypatch.setattr(os, "fsync", fsync)
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

    def spy_replace(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append(("replace", (tmp_path / source).stat().st_size))
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
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


def test_a_link_that_tfx_named_is_replaced_and_one_that_a_user_named_is_followed(tmp_path: Path) -> None:
    for named in (False, True):
        outside, link = tmp_path / f"outside-{named}", tmp_path / f"link-{named}"
        outside.write_bytes(b"outside")
        link.symlink_to(outside)
        with writing(link, named=named) as stream:
            stream.write(b"new")
        assert link.is_symlink() == named
        assert link.read_bytes() == b"new"
        assert outside.read_bytes() == (b"new" if named else b"outside")


def test_a_pipe_that_a_user_named_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with writing(pipe, named=True) as stream:
        stream.write(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_that_became_a_link_meanwhile_is_noticed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    def write() -> None:
        with writing(inside / "x") as stream:
            stream.write(b"new")
            inside.rename(tmp_path / "moved")
            inside.symlink_to(outside)

    with pytest.raises(OSError, match="replaced by another"):
        write()
    assert names(outside) == names(tmp_path / "moved") == []


def test_permissions_are_the_umasks(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with writing(tmp_path / "x") as stream:
            stream.write(b"new")
        with new_folder(tmp_path / "y", force=False) as folder:
            (folder / "z").write_bytes(b"new")
    finally:
        os.umask(before)
    found = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert found == {"x": "0o640", "y": "0o750", "z": "0o640"}


@pytest.mark.parametrize("flags", ["flags", "no flags"])
@pytest.mark.parametrize("kind", ["file", "link", "link that the user named"])
def test_what_came_to_be_meanwhile_is_not_replaced_without_force(
    tmp_path: Path, kind: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags == "no flags":
        monkeypatch.setattr(publish, "rename_flagged", lambda *given: False)
    path, other = tmp_path / "report.xml", tmp_path / "other"
    named = kind == "link that the user named"
    if named:
        path.symlink_to(other)

    def write(force: bool) -> None:
        with writing(path, named=named, force=force) as stream:
            stream.write(b"new")
            if kind == "link":
                path.unlink(missing_ok=True)
                path.symlink_to(other)
            else:
                path.write_bytes(b"theirs")

    with pytest.raises(OutputExists, match="came to be there meanwhile: add --force"):
        write(force=False)
    assert path.is_symlink() == (kind != "file")
    assert kind == "link" or path.read_bytes() == b"theirs"
    assert not list(tmp_path.glob(".*"))
    write(force=True)
    assert path.read_bytes() == b"new"
    assert other.exists() == named
