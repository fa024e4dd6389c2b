"""Checkpoints of a run: complete or not there, the newest few, readable without pickle's dangers.

run/checkpoints/00000500.ckpt  00001000.ckpt ...    named by the steps done
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from tfswa.runtime.errors import TrainingError, reason
from tfswa.runtime.files.atomic import writing

FOLDER = "checkpoints"
ENDING = ".ckpt"


def save(run: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``.

    Raises:
        TrainingError: it cannot be written, a full disk for example; the older ones are as they were.
    """
    path = run / FOLDER / f"{step:08d}{ENDING}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as stream:
            torch.save(dict(state), stream)
        for old in checkpoints(run)[:-keep]:
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
    """Read the newest checkpoint of a run into memory, tensors on the CPU.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    found = checkpoints(run)
    if not found:
        raise TrainingError(f"{run / FOLDER} holds no checkpoint: nothing to resume")
    path = found[-1]
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load has no error of its own for damage
        older = f"remove it to go on from {found[-2].name}" if len(found) > 1 else "start anew"
        raise TrainingError(f"{path} cannot be read ({reason(error)[:120]}): {older}") from error
