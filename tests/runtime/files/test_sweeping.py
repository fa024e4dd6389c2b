"""What a dead process left goes, what a living one holds stays; its forked children hold nothing."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Tfx

from tfswa.runtime.files.atomic import new_folder
from tfswa.runtime.files.locks import locked
from tfswa.runtime.files.partial import new_temporary, temporary
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.files.sweeping import last_swept, own_temporary, sweep_all


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def dies(work: Callable[[], object]) -> None:
    """Do some work in a process that then dies without tidying up; what it returns lives until then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child touches files alone
        child = os.fork()
    if child == 0:
        try:
            kept = work()  # noqa: F841
            os._exit(0)
        finally:
            os._exit(9)
    assert os.waitpid(child, 0)[1] == 0


def test_temporary_folders_of_the_dead_go_and_of_the_living_stay(temporary_folder: Path) -> None:
    def work() -> object:
        folder = new_temporary("calibrate")
        (folder.path / "chunk.npy").touch()
        return folder

    dies(work)
    (temporary_folder / "tfx-somebody-elses").mkdir()
    (left,) = temporary_folder.glob("tfx-calibrate-*")
    with temporary("export") as mine:
        assert sweep_all() == [left] == last_swept()
        assert mine.is_dir()
    assert [path.name for path in temporary_folder.iterdir()] == ["tfx-somebody-elses"]


def test_a_temporary_folder_can_be_published_into(temporary_folder: Path) -> None:
    with temporary("export") as mine:
        handle = os.open(mine, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Whoever publishes waits for this lock: its owner, who must never wait for itself, too.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
        with new_folder(mine / "model.tfx", force=False) as folder:
            (folder / "weights").write_text("new")
        assert [path.name for path in mine.iterdir()] == ["model.tfx"]
    assert list(temporary_folder.iterdir()) == []


def test_what_a_dead_process_wrote_is_found_wherever_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep" / "a song"

    def work() -> object:
        staging = Staging({"vocals": out / "vocals.wav"}, force=False, source=None)
        staging.prepare(0)
        staging.partials[0].touch()
        return staging

    dies(work)
    assert list(out.glob(".vocals.wav.partial-*"))
    (tmp_path / "out" / "mine").touch()
    sweep_all()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]  # empty folders went, too
    assert sweep_all() == []


def test_doctor_says_what_it_swept(temporary_folder: Path, tmp_path: Path, tfx: Tfx) -> None:
    def work() -> object:
        folder = new_temporary("calibrate")
        (folder.path / "chunk.npy").touch()
        staging = Staging({"vocals": tmp_path / "a song.wav"}, force=False, source=None)
        staging.prepare(0)
        staging.partials[0].touch()
        return folder, staging

    dies(work)
    (left,) = temporary_folder.glob("tfx-calibrate-*")
    (partial,) = tmp_path.glob(".a song.wav.partial-*")
    done = tfx("doctor")
    (line,) = [line for line in done.out.splitlines() if "killed runs" in line]
    assert line.endswith(f"removed {left}, {partial}")
    assert not left.exists()
    assert not partial.exists()
    again = tfx("doctor", "--json").out
    (found,) = [one for one in json.loads(again)["findings"] if one["topic"] == "killed runs"]
    assert (found["level"], found["text"]) == ("ok", "left nothing behind")


def test_what_another_user_owns_is_not_touched(
    temporary_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> object:
        staging = Staging({"vocals": tmp_path / "vocals.wav"}, force=False, source=None)
        staging.prepare(0)
        return new_temporary("calibrate"), staging

    dies(work)
    others = [*temporary_folder.glob("tfx-*"), *tmp_path.glob(".vocals.wav.partial-*")]
    assert len(others) == 2
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert sweep_all() == []
    assert all(other.is_dir() for other in others)


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    staging = Staging({"vocals": tmp_path / "out" / "vocals.wav"}, force=False, source=None)
    staging.prepare(0)
    staging.partials[0].write_text("new")
    dies(sweep_all)  # another command
    staging.publish()
    assert (tmp_path / "out" / "vocals.wav").read_text() == "new"


def test_a_child_that_outlives_its_parent_holds_nothing(temporary_folder: Path) -> None:
    reader, writer = os.pipe()
    told, tells = os.pipe()

    def work() -> object:
        folder = new_temporary("train")
        if os.fork() == 0:  # a loader process, which waits until the test is over
            os.close(writer)
            os.write(tells, b"runs")
            os.read(reader, 1)
            os._exit(0)
        return folder

    dies(work)
    assert os.read(told, 4) == b"runs"  # until it runs, it has not let go of what it inherited
    assert list(temporary_folder.glob("tfx-train-*"))
    sweep_all()
    assert list(temporary_folder.iterdir()) == []
    for handle in (writer, reader, told, tells):
        os.close(handle)


def test_libraries_keep_their_temporary_files_in_ours(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfswa.runtime.files.sweeping.LONGEST_SOCKET_FOLDER", 500)
    monkeypatch.setenv("TMPDIR", str(temporary_folder))
    with own_temporary():
        inside = Path(tempfile.mkdtemp(prefix="pymp-"))
        assert os.environ["TMPDIR"] == str(inside.parent)
        assert inside.parent.parent.parent == temporary_folder
    assert list(temporary_folder.iterdir()) == []
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(temporary_folder)


def test_without_a_temporary_folder_or_a_cache_commands_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sweep_all() == []
    with own_temporary():
        pass


def test_a_thread_that_holds_a_folder_may_ask_again(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
