"""Places that cannot be written to are found before the work."""

import os
from pathlib import Path

import pytest

from tfswa.runtime.errors import UsageError
from tfswa.runtime.files.checks import check_file, check_folder


def test_places_that_are_there_or_can_be_made(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b c" / "ä")
    check_file(tmp_path / "a" / "x.xml")
    check_file(tmp_path / "x.xml")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("file", "file/a/b", "gone/a"):
        with pytest.raises(UsageError, match=r"cannot be written \(.*: Not a directory\): choose another"):
            check_folder(tmp_path / name)
    with pytest.raises(UsageError, match="is a folder, not a place for a file"):
        check_file(tmp_path)
    with pytest.raises(UsageError, match="File name too long"):
        check_folder(tmp_path / ("a" * 300))


@pytest.mark.parametrize("place", ["locked", "locked/deep/er"])
def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Root may write anywhere: what the system would say is said for it."""
    (tmp_path / "locked").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    with pytest.raises(UsageError, match=r"locked: Permission denied\): choose another place"):
        check_folder(tmp_path / place)
