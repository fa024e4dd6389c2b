"""What a caller gives as samples, checked once: floats, finite, of the shape that the model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, UsageError


def check_samples(samples: Any, channels: int, before: int = 0) -> NDArray[np.float32]:
    """Samples as float32 ``[C, n]``; what is that already is not copied.

    Whole numbers are refused, as nothing says what their full scale is: a file's 16 bits, or an array's 32.

    Args:
        samples: an array of floats, full scale 1.
        channels: C.
        before: samples of the signal that were given before, for the message.

    Raises:
        UsageError: no floats, or another shape.
        AudioError: NaN or Inf among them, or a number that float32 cannot hold.
    """
    given = np.asarray(samples)
    if given.dtype.kind != "f":
        scale = np.iinfo(given.dtype).max + 1 if given.dtype.kind in "iu" else None
        how = (
            f"divide 16-bit samples by 32768 ({given.dtype} of full range by {scale})" if scale else "convert"
        )
        raise UsageError(f"samples are {given.dtype}, wanted are floats with full scale 1: {how}")
    if given.ndim != 2 or given.shape[0] != channels:
        raise UsageError(
            f"samples {list(given.shape)} are not [C, n] with C = {channels}: {_mend(given.shape, channels)}"
        )
    with np.errstate(over="ignore"):
        single: NDArray[np.float32] = given.astype(np.float32, copy=False)
    if not all_finite(single):
        bad = ~np.isfinite(single)
        sample = int(np.argmax(bad.any(axis=0)))
        channel = int(np.argmax(bad[:, sample]))
        raise AudioError(
            f"the input holds {given[channel, sample]} at sample {before + sample} of channel {channel + 1} "
            f"of {channels}, not a number between -1 and 1: mend the input"
        )
    return single


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether all values are finite, in one pass without a mask in the common case."""
    # A sum that is finite has no NaN and no Inf among its terms; one that is not may only have overflowed.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


def _mend(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) == 2 and shape[1] == channels:
        return "pass samples.T"
    if len(shape) == 1 or (len(shape) == 2 and 1 in shape):
        return f"pass np.stack([signal] * {channels}), signal being {max(shape)} samples of one channel"
    return "reshape, or mix down to the model's channels"
