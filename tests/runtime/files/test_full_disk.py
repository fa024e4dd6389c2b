"""A disk that is full at any of 45 levels: an error in one line, and what was there before is there whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import full_disk

from tfswa.runtime.errors import TfxError
from tfswa.runtime.files import caches
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec

LEVELS = 45
NEW = np.random.default_rng(0).bytes(20_000)
State = dict[str, bytes]


def everything(folder: Path) -> State:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holds(folder: Path, work: Callable[[], Any], largest: int) -> None:
    """Do some work that fails up to a level and is done from there on."""
    old, done = everything(folder), []
    for level in range(LEVELS):
        try:
            with full_disk(largest * level // (LEVELS - 1)):
                work()
        except (OSError, TfxError) as error:
            said = str(error)
            done.append(False)
        else:
            said = ""
            done.append(True)
        assert len(said.splitlines()) <= 1
        sweep(folder)
        found = everything(folder)
        if done[-1]:
            assert found != old
            old = found  # the same again has to be refused or done as well
        else:
            assert found == old, level
    assert done == sorted(done)
    assert (done[0], done[-1]) == (False, True)


def test_stems(tmp_path: Path) -> None:
    count = iter(range(LEVELS))
    names = {name: tmp_path / name for name in ("vocals.wav", "other.wav")}

    def work() -> None:
        staging, content = Staging(names, force=True, source=None), NEW + bytes([next(count)])
        try:
            staging.prepare(0)
            for partial in staging.partials:
                partial.write_bytes(content)
            staging.publish()
        finally:
            staging.discard()

    for path in names.values():
        path.write_bytes(b"old")
    holds(tmp_path, work, len(NEW) + 1)
    assert len({path.read_bytes() for path in names.values()}) == 1


def test_a_file(tmp_path: Path) -> None:
    count = iter(range(LEVELS))

    def work() -> None:
        with writing(tmp_path / "report.json") as stream:
            stream.write(NEW + bytes([next(count)]))

    (tmp_path / "report.json").write_bytes(b"old")
    holds(tmp_path, work, len(NEW) + 1)


def test_a_bundle(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    count = iter(range(LEVELS))
    path = tmp_path / "x.tfx"
    Bundle.create(path, tiny_spec, {"w": np.ones(3, np.float32)}).add("a", b"old", kind="document")

    def work() -> None:
        Bundle.open(path).add("a", NEW + bytes([next(count)]), kind="document")

    holds(path, work, len(NEW) + 1)
    assert Bundle.open(path).file("a").read_bytes().startswith(NEW)


def test_a_cache(private_cache: Path) -> None:
    count = iter(range(LEVELS))
    path = private_cache / "tfswa" / "auto" / "a.json"
    caches.put(path, b"old")
    holds(path.parent, lambda: caches.put(path, NEW + bytes([next(count)])), len(NEW) + 100)
    assert (caches.recall(path) or b"").startswith(NEW)


def test_a_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
    from tfswa.train.checkpoint import load_newest, save

    count = iter(range(LEVELS))
    largest = save(tmp_path, 1, {"w": torch.ones(4000), "n": 99}, keep=1).stat().st_size
    holds(
        tmp_path / "checkpoints",
        lambda: save(tmp_path, 1, {"w": torch.ones(4000), "n": next(count)}, keep=1),
        largest,
    )
    assert load_newest(tmp_path)["n"] == LEVELS - 1
