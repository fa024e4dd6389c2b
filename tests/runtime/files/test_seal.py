"""What this machine vouches for."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from system_calls import STOPS, Stop, stopped_at

from tfswa.runtime.files import seal
from tfswa.runtime.files.sweeping import sweep_all

HASH = "ab" * 32


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    forget(monkeypatch)
    return tmp_path / "tfswa"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    seal._key.cache_clear()
    monkeypatch.setattr(seal, "_here", set())


def test_the_key_is_the_users_alone_and_stays(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = seal.tag("a", b"x")
    assert (state / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == ["key"]
    forget(monkeypatch)
    assert seal.is_tagged("a", b"x", tag)
    for name, content, found in (("b", b"x", tag), ("a", b"y", tag), ("a", b"x", tag[:-1]), ("a", b"x", "é")):
        assert not seal.is_tagged(name, content, found)


def test_a_key_that_others_may_read_or_of_another_length_is_replaced(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tag = seal.tag("a", b"x")
    (state / "key").chmod(0o644)
    forget(monkeypatch)
    assert not seal.is_tagged("a", b"x", tag)
    assert "the user's alone" in caplog.text
    (state / "key").write_bytes(b"short")
    forget(monkeypatch)
    assert len(seal.tag("a", b"x")) == 64
    assert len((state / "key").read_bytes()) == seal.KEY_BYTES


def test_what_was_vouched_for_is_known_in_the_next_process(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not seal.is_vouched("code", HASH)
    seal.vouch("code", HASH)
    seal.vouch("code", HASH)
    forget(monkeypatch)
    assert seal.is_vouched("code", HASH)
    assert not seal.is_vouched("certificate", HASH)
    assert not seal.is_vouched("code", "cd" * 32)
    assert (state / "vouched").read_text().count(HASH) == 1


def test_lines_that_nobody_here_wrote_count_for_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal.vouch("code", HASH)
    known = state / "vouched"
    line = known.read_text().strip()
    forged = line.replace("ab" * 32, "cd" * 32)
    known.write_bytes(b"\xff\xfe junk\ncode\n" + forged.encode() + b"\n" + line[:80].encode())
    forget(monkeypatch)
    assert not seal.is_vouched("code", "cd" * 32)
    assert not seal.is_vouched("code", HASH)  # cut off
    seal.vouch("code", HASH)
    forget(monkeypatch)
    assert seal.is_vouched("code", HASH)


def test_where_nothing_can_be_written_it_holds_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    forget(monkeypatch)
    seal.vouch("code", HASH)
    assert seal.is_vouched("code", HASH)
    assert seal.tag("a", b"x") == seal.tag("a", b"x")
    forget(monkeypatch)
    assert not seal.is_vouched("code", HASH)


def test_links_in_the_place_of_its_files_are_replaced_and_nothing_is_written_through_them(
    state: Path, tmp_path: Path
) -> None:
    key, list_ = tmp_path / "their key", tmp_path / "their list"
    key.write_bytes(b"k" * seal.KEY_BYTES)
    key.chmod(0o600)
    list_.write_text("theirs")
    state.mkdir()
    (state / "key").symlink_to(key)
    (state / "vouched").symlink_to(list_)
    seal.vouch("code", HASH)
    assert not (state / "key").is_symlink()
    assert (state / "key").read_bytes() != key.read_bytes()
    assert not (state / "vouched").is_symlink()
    assert list_.read_text() == "theirs"


def test_a_link_in_the_place_of_the_folder_is_named_and_nothing_there_is_believed_or_written(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seal.vouch("code", HASH)
    moved = state.rename(tmp_path / "moved")
    state.symlink_to(moved)
    before = {path.name: path.read_bytes() for path in moved.iterdir()}
    forget(monkeypatch)
    assert not seal.is_vouched("code", HASH)
    seal.vouch("code", "cd" * 32)
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == before
    assert f"{state} is a link to {moved}" in caplog.text


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_there_is_a_key_or_none_and_the_next_command_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop
) -> None:
    at, stopped = 0, True
    while stopped:
        at += 1
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / str(at)))
        forget(monkeypatch)
        stopped = stopped_at(at, stop, lambda: seal.tag("a", b"x"))
        sweep_all()
        folder = tmp_path / str(at) / "tfswa"
        assert not folder.exists() or {path.name for path in folder.iterdir()} <= {"key"}
        assert not (folder / "key").exists() or (folder / "key").stat().st_size == seal.KEY_BYTES
    assert at > 3


def _tag(queue: multiprocessing.Queue[str], folder: str) -> None:
    os.environ["XDG_STATE_HOME"] = folder
    seal._key.cache_clear()
    queue.put(seal.tag("a", b"x"))


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    many = [context.Process(target=_tag, args=(queue, str(tmp_path))) for _ in range(8)]
    for one in many:
        one.start()
    tags = {queue.get() for _ in many}
    for one in many:
        one.join()
    assert len(tags) == 1
