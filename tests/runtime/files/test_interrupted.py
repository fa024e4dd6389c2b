"""Signals just before and just after any system call: what was being written is whole or was never there."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from system_calls import CALLS, counted, status_of

from tfswa.runtime.files.atomic import folder, new_folder, writing
from tfswa.runtime.files.partial import beside, temporary
from tfswa.runtime.files.publish import Move, publish
from tfswa.runtime.files.signals import ENDING
from tfswa.runtime.files.staging import Staging

OPENING = (*CALLS, (os, "open"))
SIGNALS = ENDING if os.environ.get("TFX_LONG") else (signal.SIGTERM, signal.SIGINT)


def stems(place: Path) -> None:
    """Two files in new folders, as a song's stems are written."""
    names = ("vocals.wav", "other.wav")
    staging = Staging({name: place / "out" / "song" / name for name in names}, force=False, source=None)
    try:
        staging.prepare(0)
        for partial in staging.partials:
            partial.write_text("new")
        staging.publish()
    finally:
        staging.discard()


def stems_without_discard(place: Path) -> None:
    """As ``stems``, by a caller that was interrupted before its ``try``."""
    staging = Staging({"vocals": place / "out" / "song" / "vocals.wav"}, force=False, source=None)
    staging.prepare(0)
    staging.partials[0].write_text("new")
    staging.publish()


def one_file(place: Path) -> None:
    with writing(place / "model.onnx", force=False) as stream:
        stream.write(b"new")


def one_folder(place: Path) -> None:
    with new_folder(place / "model.tfx", force=False) as inner:
        (inner / "manifest.json").write_text("new")


def an_addition(place: Path) -> None:
    """As a bundle takes a file in."""
    target = place / "parity" / "certificate.json"
    with folder(target.parent), beside(target) as work:
        (work.path / "0").write_text("new")
        publish(work, [Move("0", target.name)], force=False)


def in_a_temporary_folder(place: Path) -> None:
    with temporary("export") as inner:
        (inner / "graph.onnx").write_text("new")


def everything(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "write", [stems, stems_without_discard, one_file, one_folder, an_addition, in_a_temporary_folder]
)
def test_interrupted_at_any_call_all_is_there_or_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    number: signal.Signals,
    after: bool,
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    write(place)
    whole, at, stopped = everything(place), 0, True
    while stopped:
        at, inner = at + 1, tmp_path / str(at)
        inner.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(inner))

        def work(inner: Path = inner, at: int = at) -> None:
            with counted(at, lambda: signal.raise_signal(number), calls=OPENING, after=after):
                write(inner)

        status = status_of(work)
        assert status in (0, 128 + number)
        stopped = status != 0
        assert everything(inner) in (([], whole) if stopped else (whole,)), at
    assert at > 4  # it was interrupted
