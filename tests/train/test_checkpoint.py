"""Checkpoints: the newest few, complete or not there, and one line for everything that goes wrong."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from system_calls import STOPS, Stop, stopped_at

from tfswa.runtime.errors import TrainingError
from tfswa.runtime.files.publish import sweep

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")

from tfswa.train import checkpoint  # noqa: E402
from tfswa.train.checkpoint import checkpoints, load_newest, save  # noqa: E402


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def state(step: int) -> dict[str, Any]:
    return {
        "weights": {"a": torch.full((3, 2), float(step)), "b": torch.arange(4)},
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "step": step,
        "best": -float("inf"),
        "config": "{}",
        "list": [1, 2.5, None, True],
    }


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "deep" / "run", 17, state(17), keep=3)
    assert path == tmp_path / "deep" / "run" / "checkpoints" / "00000017.ckpt"
    found = load_newest(tmp_path / "deep" / "run")
    assert {name: value for name, value in found.items() if name not in ("weights", "half")} == {
        name: value for name, value in state(17).items() if name not in ("weights", "half")
    }
    assert torch.equal(found["weights"]["a"], torch.full((3, 2), 17.0))
    assert torch.equal(found["weights"]["b"], torch.arange(4))
    assert torch.equal(found["half"], state(17)["half"])


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 9, 10, 100, 99_999_999):
        save(tmp_path, step, state(step), keep=3)
    assert names(tmp_path) == ["00000010.ckpt", "00000100.ckpt", "99999999.ckpt"]
    assert [path.name for path in checkpoints(tmp_path)] == names(tmp_path)
    assert load_newest(tmp_path)["step"] == 99_999_999


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5), keep=1)
    save(tmp_path, 5, state(6), keep=1)
    assert names(tmp_path) == ["00000005.ckpt"]
    assert load_newest(tmp_path)["step"] == 6


def test_other_files_are_no_checkpoints_and_stay(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5), keep=1)
    for name in (".00000009.ckpt.partial-17", "notes.txt", "mine.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    save(tmp_path, 6, state(6), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["00000006.ckpt"]
    assert names(tmp_path) == [".00000009.ckpt.partial-17", "00000006.ckpt", "mine.ckpt", "notes.txt"]


def test_without_any_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "run") == []
    with pytest.raises(TrainingError, match=r"run/checkpoints holds no checkpoint: nothing to resume"):
        load_newest(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), r"\(No space left on device\)"),
        (RuntimeError("unexpected pos 64 vs 0\nstack"), r"\(unexpected pos 64 vs 0\)"),
        (RuntimeError(), r"\(RuntimeError\)"),
        (OSError(), r"\(OSError\)"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def half(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise error

    save(tmp_path, 5, state(5), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", half)
        with pytest.raises(
            TrainingError, match=rf"00000006\.ckpt cannot be written {reason}.*--resume"
        ) as caught:
            save(tmp_path, 6, state(6), keep=1)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["00000005.ckpt"]
    assert load_newest(tmp_path)["step"] == 5


def test_a_place_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot be written .* make room there"):
        save(tmp_path / "file", 1, state(1), keep=1)


def test_interrupted_while_saving_the_older_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    save(tmp_path, 5, state(5), keep=1)
    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 6, state(6), keep=1)
    assert names(tmp_path) == ["00000005.ckpt"]


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "flipped"])
def test_of_a_damaged_one_the_one_before_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5, state(5), keep=2)
    path = save(tmp_path, 6, state(6), keep=2)
    whole = path.read_bytes()
    middle = whole.index(b"archive/data.pkl")  # the archive's first name
    content = {
        "empty": b"",
        "garbage": b"no checkpoint\n" * 100,
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:middle] + bytes(64) + whole[middle + 64 :],
    }[damage]
    path.write_bytes(content)
    assert load_newest(tmp_path)["step"] == 5
    (line,) = caplog.messages
    assert re.search(r"00000006\.ckpt cannot be read \(.+\): going on from 00000005\.ckpt", line)
    assert "\n" not in line
    checkpoints(tmp_path)[0].write_bytes(content)
    expected = r"00000005\.ckpt cannot be read \(.+\), and .* start anew"
    with pytest.raises(TrainingError, match=expected) as error:
        load_newest(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_one_of_a_later_step_takes_nobody_s_place(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5), keep=2)
    save(tmp_path, 9, state(9), keep=2).write_bytes(b"damaged")
    assert load_newest(tmp_path)["step"] == 5
    save(tmp_path, 6, state(6), keep=1)  # the run went on from 5
    assert names(tmp_path) == ["00000006.ckpt", "00000009.ckpt"]
    assert load_newest(tmp_path)["step"] == 6
    save(tmp_path, 9, state(9), keep=1)
    assert names(tmp_path) == ["00000009.ckpt"]


def test_a_flipped_byte_anywhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5, state(5), keep=1)
    whole = path.read_bytes()
    assert len(whole) > 500
    for at in np.random.default_rng(0).integers(0, len(whole), 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(TrainingError, match="cannot be read"):
            load_newest(tmp_path)
    path.write_bytes(whole)
    assert load_newest(tmp_path)["step"] == 5


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stopped_at_any_call_the_old_one_is_there_or_both(tmp_path: Path, stop: Stop) -> None:
    at, stopped, found = 0, True, set()
    while stopped:
        at += 1
        run = tmp_path / str(at)
        save(run, 5, state(5), keep=2)
        stopped = stopped_at(at, stop, lambda run=run: save(run, 6, state(6), keep=2))  # type: ignore[misc]
        sweep(run / "checkpoints")
        found.add(load_newest(run)["step"])
        assert set(names(run)) <= {"00000005.ckpt", "00000006.ckpt"}
    assert found == {5, 6}


def test_a_folder_of_checkpoints_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(TrainingError, match="is a link"):
        save(tmp_path / "run", 1, state(1), keep=1)
    assert list((tmp_path / "outside").iterdir()) == []


def test_one_of_an_older_tfx_is_named_as_that(tmp_path: Path) -> None:
    path = save(tmp_path, 5, state(5), keep=1)
    path.write_bytes(path.read_bytes()[: -checkpoint.TAIL_BYTES])
    said = r"^\S+00000005\.ckpt cannot be read \(an older tfx wrote it, without its SHA-256\), and .* anew$"
    with pytest.raises(TrainingError, match=said):
        load_newest(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    save(tmp_path, 1, {"step": Evil()}, keep=1)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_newest(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_bomb_with_a_right_digest_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Whoever sends a run can write its SHA-256."""
    path = save(tmp_path, 1, {"w": torch.zeros(60 << 20, dtype=torch.uint8)}, keep=1)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in stored.infolist():
            content = stored.read(info)
            for copy in ("", *("abcdefgh" if info.file_size > 1 << 20 else "")):
                archive.writestr(info.filename + copy, content)
    text = packed.getvalue()
    assert len(text) < 1 << 20
    path.write_bytes(text + checkpoint.MARK + hashlib.sha256(text).hexdigest().encode())
    with pytest.raises(TrainingError, match=r"declares \d+ members of \d+"):
        load_newest(tmp_path)
