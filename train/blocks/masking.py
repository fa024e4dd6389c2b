"""Magnitudes of complex planes, and masks and magnitudes turned back into planes.

Planes are ``re(0), im(0), re(1), im(1), ...``: two to a channel, as everywhere in the contract.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitudes(planes: Tensor, channels: int, tiny: float) -> Tensor:
    """Magnitudes ``[B, 2*C, T, F] -> [B, C, T, F]``.

    Args:
        planes: real and imaginary parts.
        channels: C.
        tiny: added to the square of the magnitude; its gradient in silence is 0 instead of NaN.
    """
    b, _, t, f = planes.shape
    return torch.sqrt(planes.square().reshape(b, channels, 2, t, f).sum(dim=2) + tiny)


def masked(planes: Tensor, mask: Tensor) -> Tensor:
    """Planes ``[B, 2*C, T, F]`` times a real mask ``[B, S, C, 1, T, F]``, as ``[B, S, 2*C, T, F]``."""
    b, stems, channels, _, t, f = mask.shape
    mixed = planes.reshape(b, 1, channels, 2, t, f) * mask
    return mixed.reshape(b, stems, 2 * channels, t, f)


def with_phase(planes: Tensor, magnitude: Tensor, tiny: float) -> Tensor:
    """Magnitudes ``[B, S, C, T, F]`` with the phase of planes ``[B, 2*C, T, F]``, as ``[B, S, 2*C, T, F]``.

    The phase is that of ``planes / sqrt(power + tiny)``: of length 1 where there is sound, and shorter near
    silence, in which no phase is known. There it is 0, not NaN, and so are the stems.
    """
    b, _, t, f = planes.shape
    channels = magnitude.shape[2]
    # The phase first: a magnitude over what is nearly 0 would leave float16.
    length = magnitudes(planes, channels, tiny)
    phase = planes.reshape(b, channels, 2, t, f) / length[:, :, None]
    return masked(phase, magnitude[:, :, :, None])
