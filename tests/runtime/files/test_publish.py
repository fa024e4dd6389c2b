"""A set of files is the old one or the new one: errors and kills at every rename and fsync."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from system_calls import STOPS, Stop, counted, die, refuse, status_of, stopped_at

from tfswa.runtime.errors import OutputExists, UsageError
from tfswa.runtime.files import publish as module
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.files.signals import ENDING
from tfswa.runtime.files.staging import Staging

STEMS = ("vocals.wav", "drums.wav", "other.wav")
SECOND = 11  # call of a publish that replaces three files: the second of them gets its name


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def staged(folder: Path, text: str, *, force: bool = True) -> Staging:
    staging = Staging({name: folder / name for name in STEMS}, force=force, source=None)
    staging.prepare(0)
    for partial in staging.partials:
        partial.write_text(text)
    return staging


@pytest.fixture(params=["renameat2", "refused"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that knows flags of renames, and one that does not."""
    if request.param == "refused":
        monkeypatch.setattr(module, "rename_flagged", lambda *given: False)
    return str(request.param)


def test_all_appear_and_nothing_else_is_left(tmp_path: Path, flags: str) -> None:
    for force in (False, True):
        staged(tmp_path, "new", force=force).publish()
        assert everything(tmp_path) == dict.fromkeys(STEMS, "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STEMS)


@pytest.mark.parametrize("taken", range(3))
def test_a_file_that_came_to_be_meanwhile_is_kept(tmp_path: Path, taken: int, flags: str) -> None:
    staging = staged(tmp_path, "new", force=False)
    (tmp_path / STEMS[taken]).write_text("somebody else's")
    with pytest.raises(OutputExists, match=STEMS[taken]):
        staging.publish()
    staging.discard()
    assert everything(tmp_path) == {STEMS[taken]: "somebody else's"}


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.write_text("outside")
    out.mkdir()
    (out / STEMS[1]).symlink_to(outside)
    staged(out, "new").publish()
    assert outside.read_text() == "outside"
    assert not (out / STEMS[1]).is_symlink()
    assert everything(out) == dict.fromkeys(STEMS, "new")


def test_a_folder_that_is_a_link_below_the_named_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "song").symlink_to(tmp_path / "outside")
    for deeper in (Path(), Path("deep")):
        path = tmp_path / "out" / "song" / deeper / "vocals.wav"
        staging = Staging({"vocals": path}, force=True, source=None, below=tmp_path / "out")
        with pytest.raises(UsageError, match="is a link to"):
            staging.prepare(0)
        staging.discard()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_that_becomes_a_link_meanwhile_is_noticed(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    staging = staged(out, "new")
    out.rename(tmp_path / "moved")
    out.symlink_to(outside)
    with pytest.raises(OSError, match=r"replaced|No such file"):
        staging.publish()
    staging.discard()
    assert list(outside.iterdir()) == []
    assert list((tmp_path / "moved").iterdir()) == []


def test_what_a_living_process_holds_is_not_swept(tmp_path: Path) -> None:
    staging = staged(tmp_path, "new")
    assert sweep(tmp_path) == []
    staging.publish()
    assert everything(tmp_path) == dict.fromkeys(STEMS, "new")


def test_other_names_and_links_are_not_swept(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / ".link.partial-0123456789abcdef").symlink_to(outside)
    for name in ("a.partial-0123456789abcdef", ".b.partial-17", ".hidden", "x.json"):
        (out / name).touch()
    before = sorted(path.name for path in out.iterdir())
    assert sweep(out) == []
    assert sorted(path.name for path in out.iterdir()) == before
    assert (outside / "precious").exists()


@pytest.mark.parametrize("final", ["../escaped", "/tmp/escaped", "link/escaped"])
def test_a_forged_journal_reaches_nothing_outside(tmp_path: Path, final: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    work = out / ".x.partial-0123456789abcdef"
    work.mkdir(parents=True)
    (out / "link").symlink_to(outside)
    (work / "0").write_text("planted")
    step = {"new": "0", "final": final, "inode": (work / "0").stat().st_ino, "old": None}
    (work / "journal.json").write_text(module._journal_text({"force": True, "steps": [step]}))
    sweep(out)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("journal", ["journal.json", "undo.json"])
@pytest.mark.parametrize("key", ["new", "old"])
def test_a_forged_journal_moves_nothing_into_or_out_of_other_folders(
    tmp_path: Path, journal: str, key: str
) -> None:
    """An archive that somebody unpacked holds it: what is in it belongs to the user then."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    work = out / ".x.partial-0123456789abcdef"
    work.mkdir(parents=True)
    (out / "planted").write_text("planted")
    for there in (True, False):
        if there:
            precious.write_text("precious")
        inode = precious.stat().st_ino if there else 0
        step = {"new": "0", "final": "planted", "inode": inode, "old": None, key: "../../precious"}
        work.mkdir(exist_ok=True)
        (work / journal).write_text(module._journal_text({"force": True, "steps": [step]}))
        sweep(out)
        assert everything(tmp_path) == {
            "out/planted": "planted",
            **({"precious": "precious"} if there else {}),
        }
        precious.unlink(missing_ok=True)


STEP = {"new": "0", "final": "x", "inode": 1, "old": None}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        f"{'0' * 64} " + "[" * 100_000,
        *map(module._journal_text, ([], {}, {"force": True, "steps": 5})),
        *(
            module._journal_text({"force": True, "steps": [{**STEP, key: value}]})
            for key in STEP
            for value in (1.5, [], {}, "a\0b", "..", "")
        ),
    ],
)
def test_a_journal_that_is_none_stops_no_command(tmp_path: Path, text: str) -> None:
    work = tmp_path / ".x.partial-0123456789abcdef"
    work.mkdir()
    (work / "journal.json").write_text(text)
    assert sweep(tmp_path) in ([work], [])


@pytest.mark.parametrize("old", [True, False])
def test_an_error_at_any_call_leaves_the_old_set_or_the_new(tmp_path: Path, old: bool, flags: str) -> None:
    at, reached = 0, True
    while reached:
        at += 1
        folder = tmp_path / str(at)
        if old:
            staged(folder, "old").publish()
        staging, raised = staged(folder, "new"), False
        with counted(at, refuse) as count:
            try:
                staging.publish()
            except OSError:
                raised = True
        reached = count[0] >= at
        staging.discard()
        sweep(folder)  # removing may fail too
        assert not list(folder.glob(".*"))
        expected = {} if not old and raised else dict.fromkeys(STEMS, "old" if raised else "new")
        assert everything(folder) == expected, at
    assert at > 8  # three files: three names and what reaches the disk, a journal


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("force", [True, False])
def test_stopped_at_any_call_the_set_is_the_old_or_the_new(
    tmp_path: Path, force: bool, stop: Stop, flags: str
) -> None:
    at, found, stopped = 0, set(), True
    while stopped:
        at += 1
        folder = tmp_path / str(at)
        if force:
            staged(folder, "old").publish()

        def work(folder: Path = folder) -> None:
            staged(folder, "new", force=force).publish()

        stopped = stopped_at(at, stop, work)
        sweep(folder)
        texts = set(everything(folder).values()) or {"old"}
        assert len(texts) == 1, at
        found |= texts
        assert everything(folder) == (
            {} if texts == {"old"} and not force else dict.fromkeys(STEMS, *texts)
        ), at
        assert not list(folder.glob(".*"))
    assert found == {"old", "new"}
    assert at > 10


@pytest.mark.parametrize("number", ENDING, ids=str)
def test_a_signal_waits_until_all_have_their_names(tmp_path: Path, number: signal.Signals) -> None:
    def work() -> None:
        staging = staged(tmp_path, "new")
        with counted(SECOND, lambda: signal.raise_signal(number)):
            staging.publish()

    staged(tmp_path, "old").publish()
    assert status_of(work) == 128 + number
    assert everything(tmp_path) == dict.fromkeys(STEMS, "new")  # at once, and nothing else is there


@pytest.mark.parametrize("old", [True, False])
def test_a_kill_at_any_call_after_an_error_leaves_one_set(tmp_path: Path, old: bool, flags: str) -> None:
    """A rollback that was stopped is carried on, and what is back already is not taken away again."""
    seconds = SECOND if old else SECOND - len(STEMS)  # without old files there are no links to them
    for failing in range(seconds - 3, seconds + 2):  # the journal's name, and those of the files
        at, status = failing - 1, -9
        while status == -9:
            at += 1
            folder = tmp_path / f"{failing}-{at}"
            if old:
                staged(folder, "old").publish()

            def work(folder: Path = folder, failing: int = failing, at: int = at) -> None:
                staging = staged(folder, "new")
                with counted(at, die), counted(failing, refuse), suppress(OSError):
                    staging.publish()

            status = status_of(work)
            sweep(folder)
            texts = set(everything(folder).values())
            assert everything(folder) == dict.fromkeys(STEMS if texts else (), *(texts or [""])), (
                failing,
                at,
            )
            assert bool(texts) >= old
            assert not list(folder.glob(".*"))
        assert status == 0


@pytest.mark.parametrize("stop", [signal.SIGKILL, "an error"], ids=str)
@pytest.mark.parametrize("undone", [True, False])
def test_a_sweep_that_is_stopped_at_any_call_is_carried_on(
    tmp_path: Path, stop: Stop, undone: bool, flags: str
) -> None:
    at, found, stopped = 0, set(), True
    while stopped:
        at += 1
        folder = tmp_path / str(at)
        staged(folder, "old").publish()

        def work(folder: Path = folder) -> None:
            staging = staged(folder, "new")
            then, first = (SECOND + 4, refuse) if undone else (SECOND, lambda: None)
            with counted(then, die), counted(SECOND, first):
                staging.publish()

        assert status_of(work) == -9  # some files have what they shall have, some have not
        stopped = stopped_at(at, stop, lambda folder=folder: sweep(folder))  # type: ignore[misc]
        sweep(folder)
        (text,) = set(everything(folder).values())
        assert everything(folder) == dict.fromkeys(STEMS, text), at
        assert not list(folder.glob(".*"))
        found.add(text)
    assert found == {"old"} if undone else "new" in found
    assert at > 3


def test_a_second_error_loses_nothing_either(tmp_path: Path) -> None:
    """What cannot be put back stays where it was kept, and the next sweep puts it back."""
    staged(tmp_path, "old").publish()
    staging, calls = staged(tmp_path, "new"), [0]

    def broken(*given: Any, **named: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:  # the journal's name, and two files
            raise OSError(5, "Input/output error")
        real(*given, **named)

    real = os.rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", broken)
        with pytest.raises(OSError, match="Input/output"):
            staging.publish()
        staging.discard()
    sweep(tmp_path)
    (text,) = set(everything(tmp_path).values())
    assert everything(tmp_path) == dict.fromkeys(STEMS, text)


def test_sets_that_are_published_at_once_do_not_mix(tmp_path: Path) -> None:
    stagings = [staged(tmp_path, str(number)) for number in range(8)]
    threads = [threading.Thread(target=staging.publish) for staging in stagings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (text,) = set(everything(tmp_path).values())
    assert everything(tmp_path) == dict.fromkeys(STEMS, text)
    assert not list(tmp_path.glob(".*"))
