"""The cache of decoded audio, in real processes: shared, bounded, and none the worse for kills."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from system_calls import STOPS, Stop, stopped_at
from waiting import until

from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.errors import AudioError, ConfigError
from tfswa.runtime.files.partial import partials
from tfswa.train.data import cache as module
from tfswa.train.data.cache import decoded, default_folder
from tfswa.train.data.decode import Recording, is_intact, read_decoded

RATE = 8000
ENTRY = 2 * 6 * RATE * 4  # bytes of a source of the fixture's songs, about
LIMIT = 1e9

# argv: cache folder, limit in bytes, log, mode, files. Says "open" once all is mapped, then waits for stdin.
CHILD = """
import os, sys, time
from pathlib import Path
from tfswa.runtime.errors import TfxError
from tfswa.train.data import decode
from tfswa.train.data.cache import decoded
folder, limit, log, mode, *files = sys.argv[1:]
original = decode.Recording.write
def write(self, file):
    with open(log, "a") as stream:
        stream.write(f"{self.parts[0][0].name} {self.parts[0][0].parent.name}\\n")
    if mode == "slow":
        time.sleep(0.05)
    if mode == "hang":
        file.write(b"half")
        file.flush()
        print("hangs", flush=True)
        time.sleep(60)
    if mode == "pause":
        print("pauses", flush=True)
        sys.stdin.readline()
    original(self, file)
decode.Recording.write = write
recordings = [decode.Recording(((Path(name), 0),), 8000, 2) for name in files]
try:
    found = decoded(recordings, Path(folder), float(limit))
except TfxError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    sys.exit(0)
print("open", sum(float(one.audio.sum()) for one in found), flush=True)
if mode == "fork" and os.fork():
    os._exit(0)  # its child, as a loader's worker would, goes on using the maps
sys.stdin.read()
"""


class Child:
    """A process that opens recordings and holds them until told to end."""

    def __init__(self, folder: Path, files: list[Path], limit: float = LIMIT, mode: str = "quick"):
        self.log = folder.parent / "log"
        arguments = [sys.executable, "-c", CHILD, folder, f"{limit}", self.log, mode, *files]
        self.process = subprocess.Popen(
            list(map(str, arguments)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(600)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """``start(files, ...)``: a process on the cache of this test."""
    children: list[Child] = []

    def begin(files: list[Path], **more: Any) -> Child:
        children.append(Child(tmp_path / "cache", files, **more))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        for stream in (child.process.stdin, child.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def files(song_root: Path) -> list[Path]:
    return sorted(song_root.glob("*/*.wav"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def of(path: Path) -> Recording:
    return Recording(((path, 0),), RATE, 2)


def entries(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.npy")}


def decodings(folder: Path) -> list[str]:
    log = folder.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def truth(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    with open_audio(path) as source:
        return np.concatenate(list(source.blocks()), axis=1)


def test_two_processes_decode_each_file_once_and_both_have_all(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    one, two = start(files, mode="slow"), start(files, mode="slow")
    said = {one.line(), two.line()}
    assert len(said) == 1  # the same sum
    assert said.pop().startswith("open ")
    assert len(decodings(folder)) == len(files)
    assert len(set(decodings(folder))) == len(files)
    assert entries(folder) == {of(path).key for path in files}
    assert not list(folder.glob(".*.partial-*"))


def turn(path: Path) -> str:
    """Name of the turn to decode a file."""
    return f".{of(path).key}.npy.partial-{of(path).key[:16]}"


def begun(folder: Path) -> Counter[str]:
    """What is being decoded: of each entry its turn, and what there is of it under a random name."""
    return Counter(path.name.partition(".npy")[0][1:] for path in folder.glob(".*.partial-*"))


def test_a_kill_while_decoding_leaves_nothing_that_is_read(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    child = start(files[:1], mode="hang")
    assert child.line() == "hangs"
    assert entries(folder) == set()
    assert begun(folder) == {of(files[0]).key: 2}
    assert (folder / turn(files[0])).stat().st_size == 0
    child.kill()
    found = decoded([of(files[0])], folder, LIMIT)
    np.testing.assert_array_equal(found[0].audio, truth(files[0]))
    assert not list(folder.glob(".*.partial-*"))


def test_what_a_killed_process_began_is_swept_by_whoever_comes(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    dead, alive = start(files[:1], mode="hang"), start(files[1:2], mode="hang")
    assert (dead.line(), alive.line()) == ("hangs", "hangs")
    dead.kill()
    decoded([of(files[2])], folder, LIMIT)
    assert begun(folder) == {of(files[1]).key: 2}  # still at it
    assert len(list((folder / "leases").iterdir())) == 2  # of the living


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_what_is_planted_at_the_name_of_a_turn_stays_as_it_is(
    files: list[Path], folder: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    folder.mkdir(exist_ok=True)
    link(folder / turn(files[0]), outside)
    (folder / f"{of(files[0]).key}.npy").symlink_to(outside)
    found = decoded([of(files[0])], folder, LIMIT)
    np.testing.assert_array_equal(found[0].audio, truth(files[0]))
    assert outside.read_bytes() == b"outside"
    assert not begun(folder)


@pytest.mark.parametrize("where", ["tfswa", "tfswa/decoded", "tfswa/decoded/leases"])
def test_a_link_in_place_of_a_folder_of_ours_is_refused_by_name(
    files: list[Path], private_cache: Path, tmp_path: Path, where: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (private_cache / where).parent.mkdir(parents=True, exist_ok=True)
    (private_cache / where).symlink_to(outside)
    with pytest.raises(ConfigError, match=f"{where} is a link to {outside}, .*: remove it") as caught:
        decoded([of(files[0])], default_folder(), LIMIT)
    assert "\n" not in str(caught.value)
    assert list(outside.iterdir()) == []


def test_a_folder_that_the_user_named_may_be_a_link(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    decoded([of(files[0])], tmp_path / "link", LIMIT)
    assert entries(tmp_path / "disk") == {of(files[0]).key}


def test_whoever_waits_for_a_process_that_is_killed_does_its_work(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    first = start(files[:1], mode="hang")
    assert first.line() == "hangs"
    second = start(files[:2])
    until(lambda: len(decodings(folder)) >= 2)  # it has done the other file meanwhile
    assert second.process.poll() is None
    first.kill()
    assert second.line().startswith("open ")
    np.testing.assert_array_equal(decoded([of(files[0])], folder, LIMIT)[0].audio, truth(files[0]))


def test_whoever_waits_for_a_process_that_finishes_does_nothing(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    first = start(files[:1], mode="pause")
    assert first.line() == "pauses"
    second = start(files[:1])
    until(lambda: len(list((folder / "leases").glob("*"))) >= 2)
    time.sleep(0.2)  # from its lease to the lock it is a few lines
    assert first.process.stdin is not None
    first.process.stdin.write("go on\n")
    first.process.stdin.flush()
    assert first.line() == second.line() != ""
    assert len(decodings(folder)) == 1


def test_the_least_recently_used_go_first(files: list[Path], folder: Path) -> None:
    keys = [of(path).key for path in files]
    for path in files[:3]:
        decoded([of(path)], folder, LIMIT)
        time.sleep(0.01)
    decoded([of(files[0])], folder, LIMIT)  # used again
    decoded([of(files[3])], folder, 3.5 * ENTRY)
    assert entries(folder) == {keys[0], keys[2], keys[3]}
    decoded([of(files[4]), of(files[5])], folder, 3.5 * ENTRY)
    assert entries(folder) == {keys[3], keys[4], keys[5]}
    assert sum(path.stat().st_size for path in folder.glob("*.npy")) <= 3.5 * ENTRY


def test_what_a_living_process_uses_is_never_evicted(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    user = start(files[:2])
    assert user.line().startswith("open ")
    time.sleep(0.01)
    decoded([of(files[2])], folder, LIMIT)
    decoded([of(files[3])], folder, 3.5 * ENTRY)  # newer, and not in use: it goes instead
    assert entries(folder) == {of(files[index]).key for index in (0, 1, 3)}
    match = r"in use needs 0\.00\d+ GB \(0\.00\d+ GB of it by other runs\), data\.cache_gb allows 0\.00\d+ GB"
    with pytest.raises(ConfigError, match=match):
        decoded([of(path) for path in files[2:4]], folder, 3.5 * ENTRY)
    user.kill()  # however it ends
    decoded([of(path) for path in files[2:4]], folder, 2.5 * ENTRY)
    assert entries(folder) == {of(files[2]).key, of(files[3]).key}


def test_the_workers_of_a_process_hold_its_lease(
    start: Callable[..., Child], files: list[Path], folder: Path
) -> None:
    parent = start(files[:2], mode="fork")
    assert parent.line().startswith("open ")
    assert parent.process.wait(600) == 0
    with pytest.raises(ConfigError, match="by other runs"):
        decoded([of(files[2])], folder, 2.5 * ENTRY)
    parent.end()

    def fits() -> bool:
        try:
            return bool(decoded([of(files[2])], folder, 2.5 * ENTRY))
        except ConfigError:
            return False

    until(fits)  # the worker has seen the end of its input


def test_what_is_mapped_here_stays_and_what_is_dropped_may_go(files: list[Path], folder: Path) -> None:
    held = decoded([of(files[0])], folder, LIMIT)[0].audio[:, 100:200]  # a view keeps it, too
    with pytest.raises(ConfigError, match="in use"):
        decoded([of(files[1])], folder, 1.5 * ENTRY)
    del held
    decoded([of(files[1])], folder, 1.5 * ENTRY)
    assert entries(folder) == {of(files[1]).key}


def test_too_small_a_limit_is_said_before_anything_is_decoded(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "write", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ConfigError, match=r"needs 0\.00\d+ GB, data\.cache_gb allows 0\.00\d+ GB: raise it"):
        decoded([of(path) for path in files], folder, 11.5 * ENTRY)
    assert entries(folder) == set()


def test_too_small_a_limit_shows_late_where_no_length_is_declared(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "expected_bytes", lambda self: 0)
    with pytest.raises(ConfigError, match=r"data\.cache_gb allows"):
        decoded([of(path) for path in files[:3]], folder, 2.5 * ENTRY)
    assert sum(path.stat().st_size for path in folder.glob("*.npy")) <= 2.5 * ENTRY
    assert not list(folder.glob(".*.partial-*"))


def test_a_cache_full_of_others_makes_room_before_it_decodes(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded([of(path) for path in files[:4]], folder, LIMIT)
    seen = []
    original = Recording.write

    def write(self: Recording, file: Any) -> None:
        seen.append(sum(path.stat().st_size for path in folder.glob("*.npy")))
        original(self, file)

    monkeypatch.setattr(Recording, "write", write)
    decoded([of(path) for path in files[4:7]], folder, 4.5 * ENTRY)
    assert max(seen) <= 3.5 * ENTRY
    assert len(entries(folder)) == 4


def test_a_damaged_entry_is_decoded_again(files: list[Path], folder: Path) -> None:
    decoded([of(files[0])], folder, LIMIT)
    path = folder / f"{of(files[0]).key}.npy"
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(decoded([of(files[0])], folder, LIMIT)[0].audio, truth(files[0]))


def test_the_same_recording_twice_is_one_entry(files: list[Path], folder: Path) -> None:
    one, two = decoded([of(files[0])] * 2, folder, 1.5 * ENTRY)
    np.testing.assert_array_equal(one.audio, two.audio)
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), AudioError("torn at 2 s")])
def test_a_failure_leaves_no_half_entry(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(self: Recording, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(Recording, "write", fails)
    kind = ConfigError if isinstance(error, OSError) else AudioError
    with pytest.raises(kind, match=r"No space left|torn") as caught:
        decoded([of(path) for path in files], folder, LIMIT)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob(".*.partial-*"))
    monkeypatch.undo()
    assert len(decoded([of(path) for path in files], folder, LIMIT)) == len(files)


def test_a_folder_that_cannot_be_made(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache .*file/below cannot be written"):
        decoded([of(files[0])], tmp_path / "file" / "below", LIMIT)


def test_a_file_that_is_gone(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav cannot be opened"):
        decoded([of(tmp_path / "none.wav")], folder, LIMIT)


def test_keys_tell_files_streams_and_forms_apart(files: list[Path], tmp_path: Path) -> None:
    base = of(files[0])
    copy = tmp_path / "copy.wav"
    copy.write_bytes(files[0].read_bytes())
    later = tmp_path / "later.wav"
    later.write_bytes(files[0].read_bytes())
    os.utime(later, ns=(5, 5))
    different = [
        base,
        of(files[1]),
        of(copy),
        dataclasses.replace(base, sample_rate=16_000),
        dataclasses.replace(base, channels=1),
        dataclasses.replace(base, parts=((files[0], 1),)),
        dataclasses.replace(base, parts=base.parts * 2),
    ]
    assert len({one.key for one in different}) == len(different)
    before = of(later).key
    os.utime(later, ns=(5, 6))
    assert of(later).key != before
    link = tmp_path / "link.wav"
    link.symlink_to(files[0])
    assert of(link).key == base.key


def test_more_recordings_than_files_may_be_open(files: list[Path], folder: Path) -> None:
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, hard))\n"
        "from tfswa.train.data.cache import decoded\n"
        "from tfswa.train.data.decode import Recording\n"
        "parts = ((Path(sys.argv[1]), 0),)\n"
        "wanted = [Recording(parts, 8000 + rate, 1) for rate in range(40)]\n"
        "print(len(decoded(wanted, Path(sys.argv[2]), 1e9)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, files[0], folder], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr


def test_a_lease_lists_what_is_in_use(start: Callable[..., Child], files: list[Path], folder: Path) -> None:
    child = start(files[:2])
    child.line()
    (path,) = (folder / "leases").iterdir()
    assert set(json.loads(path.read_text())) == {of(one).key for one in files[:2]}
    with path.open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert read_decoded(folder / f"{of(files[0]).key}.npy") is not None


def test_a_flipped_byte_anywhere_is_decoded_again(
    files: list[Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoded([of(files[0])], folder, LIMIT)
    path = folder / f"{of(files[0]).key}.npy"
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 20)
    for at in (0, 9, 127, 128, len(whole) - 5, len(whole) - 1, *places):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not is_intact(path)
    (found,) = decoded([of(files[0])], folder, LIMIT)
    np.testing.assert_array_equal(found.audio, truth(files[0]))
    assert path.read_bytes() == whole
    assert "is damaged: decoding it again" in caplog.text


def test_an_entry_that_is_cut_short_or_longer_is_not_intact(files: list[Path], folder: Path) -> None:
    decoded([of(files[0])], folder, LIMIT)
    path = folder / f"{of(files[0]).key}.npy"
    whole = path.read_bytes()
    assert is_intact(path)
    for content in (b"", whole[:100], whole[:-1], whole + b"x"):
        path.write_bytes(content)
        assert not is_intact(path)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_there_is_an_entry_or_none(files: list[Path], tmp_path: Path, stop: Stop) -> None:
    at, stopped, found = 0, True, set()
    while stopped:
        at += 1
        folder = tmp_path / str(at)
        stopped = stopped_at(at, stop, lambda folder=folder: decoded([of(files[0])], folder, LIMIT))  # type: ignore[misc]
        there = entries(folder)
        assert all(is_intact(folder / f"{key}.npy") for key in there)
        found.add(bool(there))
        (again,) = decoded([of(files[0])], folder, LIMIT)
        np.testing.assert_array_equal(again.audio, truth(files[0]))
        assert entries(folder) == {of(files[0]).key}
        assert not list(folder.glob(".*"))
        assert len(list((folder / "leases").iterdir())) == 1  # this process's
    assert found == {True, False}
    assert at > 3


def test_a_lease_whose_owner_ends_this_moment_is_no_error(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded([of(files[0])], folder, LIMIT)
    gone = folder / "leases" / ".lease.partial-0123456789abcdef"
    monkeypatch.setattr(module, "partials", lambda place: [*partials(place), place / gone.name])
    assert len(decoded([of(files[1])], folder, LIMIT)) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"a": "x"}', "\udcff"])
def test_a_damaged_lease_of_a_living_process_is_no_error(files: list[Path], folder: Path, text: str) -> None:
    decoded([of(files[0])], folder, LIMIT)
    lease = folder / "leases" / ".lease.partial-0123456789abcdef"
    lease.write_text(text, "utf-8", "surrogateescape")
    with lease.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(decoded([of(files[1])], folder, LIMIT)) == 1
