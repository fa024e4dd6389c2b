"""Norms whose trace fits any batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` without its check of sizes, which no trace follows: ``[B, D, ...] -> [B, D, ...]``.

    With as many groups as channels it is an instance norm, whose weights have the same names and shapes.

    Where channels lie last in memory, torch on a CPU adds up what a norm is of number by number (2.13): of a
    spectrum's 65536 that leaves 83 dB. So they are brought into order first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


def standardized(x: Tensor, tiny: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each item of a batch to mean 0 and deviation 1, and both as they were, ``[B, 1, ...]``.

    Args:
        x: ``[B, ...]``.
        tiny: that the deviation is raised by before it divides.
    """
    count = math.prod(x.shape[1:])
    mean = _mean(x)
    x = x - mean
    deviation = (_mean(x.square()) * (count / (count - 1))).sqrt()
    return x / (deviation + tiny), mean, deviation


def _mean(x: Tensor) -> Tensor:
    """Of an item, one axis after another: millions of numbers in one float32 sum lose 20 dB and more."""
    for axis in range(x.dim() - 1, 0, -1):
        x = x.mean(dim=axis, keepdim=True)
    return x
