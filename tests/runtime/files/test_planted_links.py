"""Links planted at every name that a command uses: what they point to stays as it is.

Names are recorded from a first run. Names of incomplete files cannot be planted: they are random.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Tfx

from tfswa.runtime.model.bundle import Bundle

RATE = 8000
SEPARATE = ("separate", "song.wav", "-m", "mine.tfx", "-o", "out", "--backend", "ort", "--force")
EVALUATE = ("evaluate", "mine.tfx", "--data", "songs", "-o", "scores", "--jobs", "1", "--no-plot", "--force")
EXPORT = ("export", "mine.tfx", "--format", "torchscript", "--force")
PARITY = ("parity", "mine.tfx", "--backend", "ort", "--audio", "song.wav", "--quick")
CALIBRATE = ("calibrate", "mine.tfx", "--audio", "songs", "--chunks", "2", "--held-out", "1", "--force")
TRAIN = ("train", "tiny.toml", "-o", "run", "--threads", "1")
COMMANDS = [SEPARATE, EVALUATE, EXPORT, PARITY, CALIBRATE, TRAIN]
CONFIG = """
[model]
family = "tfswa_lite"
[model.hyper]
fold = 32
dims = [8, 8]
depths = [1, 1]
decoder_depths = [1]
heads = [1, 1]
mlp_ratio = 1.0
[data]
root = "songs"
cache = "decoded"
workers = 0
sources = {vocals = ["vocals"], accompaniment = ["drums"]}
[optim]
length = 1
batch = 1
frames = 64
warmup = 0
[run]
pictures = false
statistics_batches = 1
"""
NAMED = {"out", "scores", "run", "decoded", "mine.tfx"}  # a user named these: a link there is followed


@pytest.fixture
def place(
    exported_bundle: Path, song_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Path]:
    def make() -> Path:
        folder = tmp_path / "place"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        monkeypatch.chdir(folder)
        shutil.copytree(exported_bundle, folder / "mine.tfx")
        shutil.copytree(song_root / "A", folder / "songs" / "A")
        noise = np.random.default_rng(0).standard_normal((RATE * 2, 2)).astype(np.float32) * 0.1
        soundfile.write("song.wav", noise, RATE, subtype="FLOAT")
        Path("tiny.toml").write_text(CONFIG)
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
    place: Callable[[], Path], command: tuple[str, ...], tfx: Tfx, tmp_path: Path
) -> None:
    folder = place()
    before = state(folder)
    first = tfx(*command)
    assert first.code in (0, 3), first.err  # 3: the gate of an untrained network
    after = state(folder)
    written = [name for name in after if after[name] is not None and after[name] != before.get(name)]
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
        tfx(*command)
        assert state(outside) == kept, names
        left = [path.name for path in folder.rglob("*") if ".partial-" in path.name]
        assert not [name for name in left if not name.startswith(".lease.")]  # this process's own
        if command not in (SEPARATE, TRAIN) and not folders.intersection(names):
            assert Bundle.open(folder / "mine.tfx").weights()
