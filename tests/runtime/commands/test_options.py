import os
from pathlib import Path

import pytest

from tfswa.runtime.commands.options import GivenPath


def test_an_input_that_may_not_be_read_is_no_fault_of_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told when it is opened, beside the others; root may read all, so the system's answer is given."""
    song = tmp_path / "song.wav"
    song.write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert GivenPath().convert(str(song), None, None) == song
