"""Caches: bounded, and believed only if they are what was put there."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from command_line import Tfx
from system_calls import STOPS, Stop, status_of, stopped_at

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.files import caches, locks
from tfswa.runtime.files.partial import partial_name
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.model.bundle import Bundle

PLACES = 200 if os.environ.get("TFX_LONG") else 20


def put(path: Path, size: int, used: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


@pytest.fixture
def root(private_cache: Path) -> Path:
    return private_cache / "tfswa"


def test_bytes_come_back_as_they_were(root: Path) -> None:
    path = root / "auto" / "a.json"
    for content in (b"", b"\n", b"x" * 5000):
        caches.put(path, content)
        assert caches.recall(path) == content
    assert caches.recall(root / "auto" / "b.json") is None


def test_one_flipped_bit_anywhere_is_told_once_and_made_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / "calibration" / "ranges" / "a.npz"
    random = np.random.default_rng(0)
    content = random.bytes(700)
    caches.put(path, content)
    whole = path.read_bytes()
    for place in {0, len(whole) - 1, *map(int, random.integers(0, len(whole), PLACES))}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        caplog.clear()
        assert caches.recall(path) is None
        assert len(caplog.records) == 1
        assert caches.recall(path) is None
        assert len(caplog.records) == 1  # it is gone
    caches.put(path, content)
    assert caches.recall(path) == content


def test_what_was_kept_under_another_name_is_not_believed(root: Path) -> None:
    one, two = root / "auto" / "a.json", root / "auto" / "b.json"
    caches.put(one, b"fast")
    two.write_bytes(one.read_bytes())
    assert caches.recall(two) is None


def test_a_folder_is_believed_if_nothing_in_it_changed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = root / "openvino" / "key"
    with caches.compiled(place):
        (place / "deep").mkdir()
        (place / "deep" / "a.blob").write_bytes(b"abc")
        (place / "b.blob").write_bytes(b"def")
    with caches.compiled(place):
        assert (place / "deep" / "a.blob").read_bytes() == b"abc"
    for change in ("flip", "more", "less", "seal"):
        with caches.compiled(place):
            (place / "b.blob").write_bytes(b"def")
        if change == "flip":
            (place / "b.blob").write_bytes(b"deg")
        elif change == "more":
            (place / "c.blob").write_bytes(b"")
        elif change == "less":
            (place / "b.blob").unlink()
        else:
            (place / "seal").write_text("é" * 64)
        caplog.clear()
        with caches.compiled(place):
            assert list(place.iterdir()) == [], change
        assert [record.levelname for record in caplog.records] == ["WARNING"], change


def test_what_a_failed_block_left_is_not_believed(root: Path) -> None:
    place = root / "openvino" / "key"

    def fail() -> None:
        with caches.compiled(place):
            (place / "half.blob").write_bytes(b"abc")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with caches.compiled(place):
        assert list(place.iterdir()) == []


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_what_is_kept_is_the_old_or_the_new(
    root: Path, stop: Stop, caplog: pytest.LogCaptureFixture
) -> None:
    at, stopped, found = 0, True, set()
    while stopped:
        at += 1
        path = root / "auto" / str(at) / "a.json"
        caches.put(path, b"old")
        stopped = stopped_at(at, stop, lambda path=path: caches.put(path, b"new"))  # type: ignore[misc]
        sweep(path.parent)
        found.add(caches.recall(path))
        assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    assert found == {b"old", b"new"}
    assert not caplog.records


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_what_was_compiled_is_whole_or_compiled_again(root: Path, stop: Stop) -> None:
    def compile_in(place: Path) -> bool:
        with caches.compiled(place):
            blob = place / "a.blob"
            if blob.exists():
                assert blob.read_bytes() == b"whole"
                return True
            blob.write_bytes(b"half")
            os.rmdir(tempfile.mkdtemp())  # two more calls to be stopped at
            blob.write_bytes(b"whole")
        return False

    at, stopped, found = 0, True, set()
    while stopped:
        at += 1
        place = root / "openvino" / str(at)
        stopped = stopped_at(at, stop, lambda place=place: compile_in(place))  # type: ignore[misc]
        found.add(compile_in(place))
        assert compile_in(place)
    assert found == {False, True}
    assert at > 3


def test_a_folder_that_is_gone_when_the_block_ends_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(place: Path) -> dict[str, tuple[int, int]]:
        raise PermissionError(13, "Permission denied")

    place = root / "openvino" / "key"
    with caches.compiled(place):
        shutil.rmtree(place)
    with caches.compiled(place):
        (place / "a.blob").write_bytes(b"abc")
        listing = caches._listing
        monkeypatch.setattr(caches, "_listing", fails)
    monkeypatch.setattr(caches, "_listing", listing)
    with caches.compiled(place):
        assert list(place.iterdir()) == []


def test_a_link_in_the_place_of_a_folder_is_not_written_through(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "openvino").mkdir(parents=True)
    (root / "openvino" / "key").symlink_to(outside)
    with (
        pytest.raises(OSError, match="key is a link to"),
        caches.compiled(root / "openvino" / "key"),
    ):
        pytest.fail("it was opened")


def test_a_forked_child_does_not_hold_its_parent_s_folder(root: Path) -> None:
    place = root / "openvino" / "key"

    def look(handles: set[int]) -> None:
        for handle in handles:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(handle)

    with caches.compiled(place):
        held = {handle for handle in locks._held if locks.is_at(handle, place)}
        assert len(held) == 1
        assert status_of(lambda: look(held)) == 0


def test_least_recently_used_goes_first_whatever_its_kind(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = put(root / "downloads" / "old.tgz", 400_000, 1)
    folder = root / "openvino" / "key"
    put(folder / "a.blob", 400_000, 3)
    os.utime(folder, (2, 2))
    new = put(root / "calibration" / "ranges" / "new.npz", 400_000, 3)
    others = [put(root / "decoded" / "x.npy", 900_000, 0), put(root / "models" / "m.tfx" / "w", 900_000, 0)]
    monkeypatch.setenv("TFX_CACHE_GB", "0.0009")
    with caplog.at_level(logging.INFO):
        caches.trim()
    assert [old.exists(), folder.exists(), new.exists()] == [False, True, True]
    assert str(old) in caplog.text
    caches.touch(folder)
    monkeypatch.setenv("TFX_CACHE_GB", "0.0005")
    caches.trim()
    assert [folder.exists(), new.exists()] == [True, False]
    assert all(path.exists() for path in others)


def test_a_download_that_is_not_complete_goes_first_and_its_note_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = put(root / "downloads" / "a.ckpt", 400_000, 1)
    record = put(root / "downloads" / "a.ckpt.sha256", 65, 9)
    part = put(root / "downloads" / "b.ckpt.part", 400_000, 5)
    note = put(root / "downloads" / "b.ckpt.part.json", 100, 5)
    found = {entry.path.name: entry.bytes for entry in caches.entries("downloads")}
    assert found == {"a.ckpt": 400_065, "b.ckpt.part": 400_100}
    monkeypatch.setenv("TFX_CACHE_GB", "0.0005")
    caches.trim()
    assert [path.exists() for path in (whole, record, part, note)] == [True, True, False, False]
    monkeypatch.setenv("TFX_CACHE_GB", "0")
    caches.trim()
    assert not any((root / "downloads").iterdir())
    left = put(root / "downloads" / "c.ckpt.part.json", 100, 1)  # of a part that is gone
    assert [entry.path for entry in caches.entries("downloads")] == [left]
    assert caches.clear("downloads") == (100, 0)


def test_what_is_in_use_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(root / "downloads" / "a.tgz", 1000, 1)
    monkeypatch.setenv("TFX_CACHE_GB", "0")
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        caches.trim()
        assert path.exists()
        assert caches.clear("downloads") == (0, 1000)
    place = root / "openvino" / "key"
    with caches.compiled(place):
        (place / "a.blob").write_bytes(b"abc")
        caches.trim()
        assert place.exists()
    caches.trim()
    assert not path.exists()
    assert not place.exists()


ADDS = """
import sys
from pathlib import Path
from tfswa.runtime.model.bundle import Bundle
def content(path):
    print("writes", flush=True)
    sys.stdin.readline()
    path.write_bytes(b"new")
print(Bundle.open(Path(sys.argv[1])).add("model.onnx", content, kind="onnx"))
"""


@pytest.mark.parametrize("inside", ["", "only/a.tfx"])
@pytest.mark.parametrize("how", ["trim", "clear"])
def test_what_another_process_adds_to_stays(
    tiny_bundle: Bundle, tfx: Tfx, monkeypatch: pytest.MonkeyPatch, root: Path, how: str, inside: str
) -> None:
    tiny_bundle.seal()
    place = tiny_bundle.path
    if inside:  # a bundle in the place of what is added to a sealed one
        place = tiny_bundle.home / inside
        Bundle.create(place, tiny_bundle.spec, tiny_bundle.weights())
    idle = put(root / "auto" / "a.json", 10, 1)
    child = subprocess.Popen(
        [sys.executable, "-c", ADDS, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writes\n"
    if how == "trim":
        monkeypatch.setenv("TFX_CACHE_GB", "0")
        caches.trim()
    else:
        assert tfx("doctor", "--clear-cache").code == 0
    said, _ = child.communicate("go\n", timeout=600)
    assert child.returncode == 0
    assert Path(said.strip()).read_bytes() == b"new"
    assert Bundle.open(place).file("model.onnx").read_bytes() == b"new"
    assert not idle.exists()
    caches.clear("bundles")
    assert not (root / "bundles").exists() or not list((root / "bundles").iterdir())


def test_a_link_in_a_cache_loses_its_name_and_not_what_it_names(root: Path, tmp_path: Path) -> None:
    mine = put(tmp_path / "mine" / "a", 10, 1)
    (root / "bundles").mkdir(parents=True)
    (root / "bundles" / "link").symlink_to(mine.parent)
    (root / "bundles" / "nowhere").symlink_to(tmp_path / "nowhere")
    caches.clear("bundles")
    assert list((root / "bundles").iterdir()) == []
    assert mine.exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "1e12"])
def test_a_limit_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TFX_CACHE_GB", text)
    with pytest.raises(ConfigError, match=rf"TFX_CACHE_GB is '{text}': give gigabytes, such as 10"):
        caches.trim()


def test_clearing_one_kind_or_all(
    root: Path, tfx: Tfx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(root / "downloads" / "a.tgz", 2_000_000, 1)
    put(root / "openvino" / "key" / "a.blob", 1_000_000, 1)
    put(root / "decoded" / "x.npy", 3_000_000, 1)
    model = put(root / "models" / "m.tfx" / "w", 10, 1)
    lease = put(root / "decoded" / "leases" / partial_name("lease"), 0, 1)
    shown = tfx("doctor").out
    assert "decoded 3.0 MB" in shown
    assert "0.00 GB of the 10 GB that TFX_CACHE_GB allows" in shown
    done = tfx("doctor", "--clear-cache", "downloads")
    assert (done.code, done.out) == (0, "downloads: 2.0 MB removed\n")
    with lease.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "decoded: 0.0 MB removed, 3.0 MB are in use" in tfx("doctor", "--clear-cache").out
    done = tfx("doctor", "--clear-cache")
    assert "decoded: 3.0 MB removed" in done.out
    assert not (root / "openvino" / "key").exists()
    assert model.exists()
    done = tfx("doctor", "--clear-cache", "sound")
    assert done.code == 2
    assert "no cache 'sound': choose one of auto, bundles" in done.err


@pytest.mark.parametrize("where", ["tfswa", "tfswa/downloads"])
def test_a_folder_that_is_a_link_loses_nothing_and_is_told_by_name(
    private_cache: Path, tfx: Tfx, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trimming, clearing and keeping leave alone what is behind a link that nobody asked to be followed."""
    behind = tmp_path / "documents"
    (private_cache / where).parent.mkdir(parents=True, exist_ok=True)
    mine = put(behind / ("downloads/mine" if where == "tfswa" else "mine"), 2_000_000, 1)
    (private_cache / where).symlink_to(behind)
    monkeypatch.setenv("TFX_CACHE_GB", "0")
    caches.trim()
    root = private_cache / "tfswa"
    with pytest.raises(OSError, match=f"{where} is a link to {behind}"):
        caches.put(root / "downloads" / "x", b"x")
    assert caches.recall(root / "downloads" / "mine") is None
    done = tfx("doctor", "--clear-cache", "downloads")
    assert done.code == 1
    assert f"downloads ({private_cache / where} is a link to {behind}" in done.err
    assert tfx("doctor", "--clear-cache").code == 1  # and the others are cleared
    shown = tfx("doctor")
    assert shown.code == 1
    assert shown.out.count(f"{private_cache / where} is a link to {behind}") == 1
    assert mine.read_bytes() == bytes(2_000_000)
    assert [path for path in behind.rglob("*") if path.is_file()] == [mine]


def test_the_folder_that_the_user_chose_may_be_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    path = tmp_path / "link" / "tfswa" / "auto" / "a.json"
    caches.put(path, b"kept")
    assert caches.recall(path) == b"kept"
    assert (tmp_path / "disk" / "tfswa" / "auto" / "a.json").exists()
