"""Links planted at every name that a command uses: what they point to stays as it is.

Names are recorded from a first run, those in the cache too. Names of incomplete files cannot be planted: they
are random.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Tfx
from small_import import small_import
from writing_commands import BUILD, CALIBRATE, EVALUATE, EXPORT, IMPORT, PARITY, SEPARATE, TRAIN, furnish

from tfswa.runtime.files import own_folders, seal
from tfswa.runtime.model.bundle import Bundle

COMMANDS = [SEPARATE, EXPORT, CALIBRATE, PARITY, TRAIN, (*EVALUATE, "--jobs", "1"), IMPORT, BUILD]
# By the user: links are followed. In the cache and the state they name one folder, all below it are ours.
NAMED = {"out", "scores", "run", "decoded", "mine.tfx", "new.tfx", "p.md", "cache", "state"}


@pytest.fixture
def place(
    exported_bundle: Path, song_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Path]:
    songs = tmp_path / "one song"
    shutil.copytree(song_root / "A", songs / "A")

    def make() -> Path:
        folder = tmp_path / "place"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        seal._key.cache_clear()
        own_folders._warn_once.cache_clear()
        furnish(folder, exported_bundle, songs, seconds=2)
        return folder

    return make


def state(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_nothing_outside_changes(
    place: Callable[[], Path],
    command: tuple[str, ...],
    tfx: Tfx,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if command is BUILD:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    folder = place()
    before = state(folder)
    with small_import():
        first = tfx(*command)
    assert first.code in (0, 3), first.err  # 3: the gate of an untrained network
    after = state(folder)
    written = [
        name
        for name in after
        if after[name] is not None and after[name] != before.get(name) and name not in NAMED
    ]
    folders = {
        parent for name in written for parent in map(str, Path(name).parents) if parent not in {".", *NAMED}
    }
    assert written
    fresh = [name for name in written if not name.endswith(".ckpt")]  # with these a run is there already
    sets = [written] if fresh == written else [written, fresh]
    for names in (*sets, *([name] for name in sorted(folders))):
        folder, outside = place(), tmp_path / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        for number, name in enumerate(names):
            path, target = folder / name, outside / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in folders:
                target.mkdir()
            else:  # what the command reads there it may still read
                target.write_bytes(path.read_bytes() if path.exists() else b"outside")
                path.unlink(missing_ok=True)
            path.symlink_to(target)
        kept = state(outside)
        with small_import():
            done = tfx(*command)
        assert state(outside) == kept, names
        if Path(names[0]).parts[0] in ("cache", "state") and folders.intersection(names):
            assert f"{names[0]} is a link to" in done.err + caplog.text
            refused = done.code == 2 and f"{names[0]} is a link to" in done.err.splitlines()[-1]
            assert refused or done.code == first.code
        left = [path.name for path in folder.rglob("*") if ".partial-" in path.name]
        assert not [name for name in left if not name.startswith(".lease.")]  # this process's own
        if command not in (SEPARATE, TRAIN) and not folders.intersection(names):
            assert Bundle.open(folder / "mine.tfx").weights()
