"""Chunks as a training would hear them, written as audio with what was done to each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.escape import json_text, shown
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.songs.finding import MIXTURE
from tfswa.train.config import TrainConfig
from tfswa.train.data.chunks import ChunkRecipe, Chunks
from tfswa.train.data.songs import load_training_songs
from tfswa.train.families import get_family

CHANNELS = 2
LISTING = "preview.json"


def preview(config: TrainConfig, out: Path, count: int, *, force: bool = False) -> list[dict[str, Any]]:
    """Write the first ``count`` chunks of a training: one folder each, float WAV.

        out/preview.json, preview.txt       what was done
        out/chunk-0000/mixture.wav          the sum of the others
        out/chunk-0000/vocals.wav ...       one file a stem

    All files appear together, or none. What an earlier preview wrote and this one does not name is removed.

    Returns:
        The plan of each chunk, and its files, as in ``preview.json``.

    Raises:
        ConfigError: see ``load_training_songs`` and ``Chunks.plan``.
        AudioError: a song cannot be decoded, or there is no room.
        OutputExists: files are there and ``force`` is false.
    """
    family = get_family(config.model.family)
    stft = family.stft
    groups = dict(config.data.sources)
    if not config.pretrain.share:
        groups = {stem: groups[stem] for stem in config.model.stems}
    samples = (config.optim.frames - 1) * stft.hop + 2 * stft.offset - stft.fill - family.chunk.short
    names = [*groups] if MIXTURE in groups else [MIXTURE, *groups]
    paths = {
        f"{folder}/{name}": out / folder / f"{name}.wav"
        for folder in map(_folder, range(count))
        for name in names
    }
    texts = {name: out / name for name in (LISTING, "preview.txt")}
    staging = Staging(paths | texts, force=force, source=None, below=out)
    stale = _listed(out) - set(paths.values())
    try:
        songs, _ = load_training_songs(config.data, stft.sample_rate, CHANNELS)
        chunks = Chunks(
            songs,
            list(groups.values()),
            config.data,
            config.augment,
            stft.sample_rate,
            config.optim.seed,
            stems=list(groups),
        )
        plans = [chunks.plan(index, samples) for index in range(count)]
        staging.prepare(CHANNELS * samples * 4)
        partials = iter(staging.partials)
        for plan in plans:
            _write(dict(zip(groups, chunks.render(plan), strict=True)), names, stft.sample_rate, partials)
        entries = [_entry(plan, out, names) for plan in plans]
        next(partials).write_text(json_text({"chunks": entries}, indent=1) + "\n", encoding="utf-8")
        next(partials).write_text("".join(_text(plan) for plan in plans), encoding="utf-8")
        staging.publish()
    finally:
        staging.discard()
    _remove(stale)
    return entries


def _write(
    audio: dict[str, NDArray[np.float32]], names: Sequence[str], rate: int, partials: Iterator[Path]
) -> None:
    """The stems of a chunk and their sum, in the order of ``names``."""
    audio.setdefault(MIXTURE, np.sum(list(audio.values()), axis=0))
    for name in names:
        soundfile.write(next(partials), audio[name].T, rate, format="WAV", subtype="FLOAT")


def _listed(out: Path) -> set[Path]:
    """What the preview that lies in a folder names, as if written to this path; nothing where it is none."""
    try:
        chunks = parse_json(read_document(out / LISTING))["chunks"]
        return {
            out / _folder(chunk["index"]) / f"{name}.wav"
            for chunk in chunks
            for name in chunk["files"]
            if name == Path(name).name  # nothing outside of it, whoever wrote the list
        }
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _remove(files: Collection[Path]) -> None:
    """Take files away, and their folders unless something else lives there."""
    for path in files:
        if path.is_file():
            path.unlink()
    for folder in {path.parent for path in files}:
        with suppress(OSError):
            folder.rmdir()


def _folder(index: int) -> str:
    return f"chunk-{index:04d}"


def _entry(plan: ChunkRecipe, out: Path, names: list[str]) -> dict[str, Any]:
    files = {name: str(out / _folder(plan.index) / f"{name}.wav") for name in names}
    return {**plan.to_dict(), "files": files}


def _text(plan: ChunkRecipe) -> str:
    kind = "from different songs" if plan.remix else "from one place"
    return "\n".join(
        [f"{_folder(plan.index)}, {kind}", *(f"  {shown(source)}" for source in plan.sources), ""]
    )
