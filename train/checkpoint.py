"""Checkpoints of a run: complete or not there, the newest few, checked, readable without pickle's dangers.

run/checkpoints/00000500.ckpt  00001000.ckpt ...    named by the steps done

    what torch.save writes | b"tfx-sha256:" and its SHA-256 in hexadecimal
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from tfswa.runtime.errors import TrainingError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.model.archive import check_archive

FOLDER = "checkpoints"
ENDING = ".ckpt"
MARK = b"tfx-sha256:"
TAIL_BYTES = len(MARK) + 64
_END_BYTES = 22

log = logging.getLogger(__name__)


def save(run: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep`` up to it.

    Those of later steps are damaged ones that ``load_newest`` went back from: they take nobody's place.

    Raises:
        TrainingError: it cannot be written, a full disk for example; the older ones are as they were.
    """
    path = run / FOLDER / f"{step:08d}{ENDING}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.is_symlink():
            raise NotADirectoryError(20, f"{FOLDER} is a link, a folder is needed")
        with writing(path) as stream:
            hashing = _Hashing(stream)
            torch.save(dict(state), cast(IO[bytes], hashing))
            stream.write(MARK + hashing.sha256.hexdigest().encode())
        whole = [other for other in checkpoints(run) if other.name <= path.name]
        for old in whole[:-keep]:
            old.unlink()
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise TrainingError(
            f"{path} cannot be written ({reason(error)[:120]}): make room there and go on with --resume"
        ) from error
    return path


def checkpoints(run: Path) -> list[Path]:
    """All of a run, oldest first."""
    return sorted((run / FOLDER).glob(f"[0-9]*{ENDING}"))


def load_newest(run: Path) -> dict[str, Any]:
    """Read the newest checkpoint that is whole into memory, tensors on the CPU.

    One that is damaged stays where it is, is named in the log, and the one before is taken.

    Raises:
        TrainingError: there is none, or all are damaged.
    """
    found = checkpoints(run)
    if not found:
        raise TrainingError(f"{run / FOLDER} holds no checkpoint: nothing to resume")
    damage = ""
    for path, older in zip(reversed(found), [*reversed(found[:-1]), None], strict=True):
        try:
            _check(path)
            check_archive(path)
            return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load has no error of its own for what it cannot read
            why = reason(error).removeprefix(f"{path} ")  # a long one must not leave the words no room
            damage = f"{path} cannot be read ({why[:120]})"
            if older is not None:
                log.warning("%s: going on from %s, the one before", damage, older.name)
    raise TrainingError(f"{damage}, and there is no older one: start anew")


class _Hashing:
    """A file whose content is hashed as it is written, from the beginning on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.sha256.update(block)
        return self._stream.write(block)

    def flush(self) -> None:
        self._stream.flush()


def _check(path: Path) -> None:
    """See that a checkpoint is what was written."""
    digest, left = hashlib.sha256(), path.stat().st_size - TAIL_BYTES
    with path.open("rb") as stream:
        while left > 0:
            block = stream.read(min(left, 1 << 20))
            if not block:
                break
            digest.update(block)
            left -= len(block)
        tail = stream.read()
    if tail[-_END_BYTES:].startswith(b"PK\5\6"):  # of torch's archive: nothing follows it
        raise ValueError("an older tfx wrote it, without its SHA-256")
    if not tail.startswith(MARK):
        raise ValueError("it does not end with its SHA-256: cut short, or damaged there")
    if tail != MARK + digest.hexdigest().encode():
        raise ValueError(f"its SHA-256 is {digest.hexdigest()[:12]}, it says {tail[len(MARK) :][:12]!r}")
