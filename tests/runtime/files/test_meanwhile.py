"""Outputs that come to be while a command works are not replaced without ``--force``."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from command_line import Tfx
from writing_commands import EXPORT, PARITY, furnish

from tfswa.runtime.files import atomic

COMMANDS = [
    ((*EXPORT[:-1], "-o", "mine.ts"), "mine.ts"),
    (PARITY[:-1], "p.md"),
    ((*PARITY[:-3], "--junit", "p.xml"), "p.xml"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[output for _, output in COMMANDS])
def test_a_file_that_came_to_be_meanwhile_is_kept(
    exported_bundle: Path,
    song_root: Path,
    tmp_path: Path,
    tfx: Tfx,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    output: str,
) -> None:
    songs = tmp_path / "one song"
    shutil.copytree(song_root / "A", songs / "A")
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    furnish(place, exported_bundle, songs, seconds=1)
    original = atomic.new_file

    def new_file(folder: int, name: str, *given: Any) -> AbstractContextManager[tuple[str, int]]:
        if name == output:
            with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=folder), "w") as stream:
                stream.write("somebody else's")
        return original(folder, name, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "new_file", new_file)
        done = tfx(*command)
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith(
        f"{output} came to be there meanwhile: add --force to replace it, or choose another place"
    )
    assert Path(output).read_text() == "somebody else's"
    assert tfx(*command, "--force").code in (0, 3)  # 3: the gate of an untrained network
    assert Path(output).read_bytes() != b"somebody else's"
    assert not list(place.glob(".*.partial-*"))
