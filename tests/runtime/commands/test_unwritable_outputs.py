"""Every place that a command is told to write to is looked at before the work: exit code 2, and one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_line import Tfx

from tfswa.runtime.cli import tfx as group
from tfswa.runtime.commands.options import GivenPath, OutputPath
from tfswa.runtime.errors import TfxError

READ = {  # options and arguments that name what is read; all others are written
    *("inputs", "source", "root", "--audio", "--corpus", "--data", "--attention", "--file", "--plan"),
    *("--gates", "--judge", "--key", "--verify", "--require-signed"),
}


def commands(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All that can be typed, but for what needs a package that is not here."""
    if not isinstance(command, click.Group):
        yield words, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        try:
            found = command.get_command(context, name)
        except (TfxError, ImportError, click.ClickException):
            continue
        if found is not None:
            yield from commands(found, *words, name)


PATHS = [
    (words, param.opts[-1], param.type)
    for words, command in commands(group)
    for param in command.params
    if isinstance(param.type, click.Path)
]
WRITTEN = [(*words, option) for words, option, kind in PATHS if isinstance(kind, OutputPath)]


def test_every_path_is_read_or_is_looked_at_before_it_is_written() -> None:
    for words, option, kind in PATHS:
        assert isinstance(kind, GivenPath), (words, option)
        assert (option in READ) != isinstance(kind, OutputPath), (words, option)
    assert len(WRITTEN) > 5


@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_what_cannot_be_written_is_said_before_the_work(
    words: tuple[str, ...], tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first option: what else is wrong, or missing, was not looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    allowed = os.access  # root may write anywhere: what the system would say is said for it
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    before = sorted(tmp_path.rglob("*"))
    for place, why in (
        ("/dev/null/x.onnx", "Not a directory"),
        ("file/a b/x.png", "Not a directory"),
        ("locked/deep/er.xml", "Permission denied"),
        ("a" * 300 + "/x", "File name too long"),
    ):
        done = tfx(*words, place)
        assert done.code == 2, (place, done.err)
        assert f"{why}): choose another place" in done.err
        assert len(done.err.splitlines()) == 1
        assert done.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_default_that_is_not_used_need_not_be_written(
    tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "separated").touch()
    assert tfx("inspect", "demo").code == 0
    done = tfx("separate", "song.wav")
    assert done.code == 2
    assert "separated cannot be written" in done.err


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("evaluate", "nothing.tfx", "--data", "songs"), "evaluation/nothing"),
        (("inspect", "nothing.tfx", "--attention", "song.wav"), "attention"),
        (("import", "song.wav", "--family", "nothing"), "."),
    ],
)
def test_a_default_that_depends_is_looked_at_before_the_work(
    words: tuple[str, ...], place: str, tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else is named is not there: it was not looked for."""
    pytest.importorskip("torch", reason="torch is not installed: an import needs it")
    (tmp_path / "locked" / "songs").mkdir(parents=True)
    (tmp_path / "locked" / "song.wav").touch()
    monkeypatch.chdir(tmp_path / "locked")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    done = tfx(*words)
    assert done.code == 2
    assert f"{place} cannot be written" in done.err
    assert "Permission denied" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("place", ["/dev/null", "link"])
def test_a_device_and_a_link_to_another_place_may_be_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a device need not be writable, nor that of a link: what they mean is written."""
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target / "x.xml")
    closed = {Path("/dev"), tmp_path}
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in closed and allowed(path, mode))
    monkeypatch.chdir(tmp_path)
    for kind in ("file", "new"):
        OutputPath(kind).convert(place, None, None)  # type: ignore[arg-type]
