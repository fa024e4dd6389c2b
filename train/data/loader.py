"""Batches of chunks, loaded ahead in other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tfswa.runtime.audio.decoders import one_line
from tfswa.runtime.errors import TfxError, TrainingError
from tfswa.train.data.chunks import Chunks, LoadedChunk

AHEAD = 2  # batches a worker


class Batch(NamedTuple):
    """Chunks of one length.

    Attributes:
        stems: ``[B, S, C, N]`` float32; in pinned memory where that was asked for.
        indices: of the chunks.
        seconds: spent on a chunk, mean.
    """

    stems: Tensor
    indices: tuple[int, ...]
    seconds: float


def batches(
    chunks: Chunks, keys: Iterable[list[tuple[int, int]]], workers: int, pin: bool
) -> Iterator[Batch]:
    """Load batches in the order of their keys.

    Args:
        chunks: to load from.
        keys: (index, samples) of each chunk of each batch; drawn from a few batches ahead, so it may be
            endless.
        workers: processes; 0 loads in this one, when asked.
        pin: copy to pinned memory, from which a GPU reads without waiting.

    Raises:
        TrainingError: a loader process died.
        TfxError: what loading raised.
    """
    loader = DataLoader(
        chunks,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collated,
        multiprocessing_context="fork" if workers else None,  # the maps are shared, not copied
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pin,
    )
    try:
        yield from loader
    except TfxError as error:
        # From a worker it comes with that worker's traceback before the one line that was meant.
        line = str(error).strip().splitlines()[-1]
        raise type(error)(line.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = one_line(str(error).splitlines()[0])
        raise TrainingError(f"{reason}: lower data.workers, or see to memory and /dev/shm") from error


def _collated(items: list[LoadedChunk]) -> Batch:
    seconds = sum(item.seconds for item in items) / len(items)
    return Batch(torch.stack([item.stems for item in items]), tuple(item.index for item in items), seconds)
