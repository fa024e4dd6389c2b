"""What this machine vouches for."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from tfswa.runtime.files import seal

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
