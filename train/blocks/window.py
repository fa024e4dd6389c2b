"""Shifted-window attention (Swin) over the time-frequency plane.

Liu et al. 2021, section 3.2: windows of ``size x size`` tokens attend within themselves; every second
block shifts the plane by half a window, cyclically, and masks what the shift brought together::

      unshifted            shifted by 2, size 4                 regions that may attend
    +----+----+          +--+----+--+                           each other in the last
    |    |    |          |  |    |  |     the cyclic shift      row / column of windows:
    +----+----+          +--+----+--+     puts the outer          A | B
    |    |    |          |  |    |  |     strips into one        ---+---   (corner window)
    +----+----+          +--+----+--+     window                  C | D

Only four window masks differ: inner, last column, last row, corner. These are stored, not the plane.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED = -100.0  # a score, not -inf: its exponential is 4e-44 in float32 and 0 in float16, never NaN


class WindowAttention(nn.Module):
    """W-MSA, or SW-MSA where ``shift`` is above 0, with a relative position bias; residual inside.

    Args:
        dim: D, a multiple of heads.
        heads: attention heads.
        size: side of a window, in tokens; T and F must be multiples of it.
        shift: cyclic shift in tokens, 0 <= shift < size.
    """

    relative: Tensor
    masks: Tensor

    def __init__(self, dim: int, heads: int, size: int, shift: int):
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.register_buffer("relative", relative_index(size), persistent=False)
        self.register_buffer("masks", shift_masks(size, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``."""
        b, t, f, d = x.shape
        rows, columns, size, heads = t // self.size, f // self.size, self.size, self.heads
        tokens = self.qkv(self.norm(x))
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
        # [B, rows, size, columns, size, 3, heads, d] -> [3, B, rows, columns, heads, size, size, d]
        tokens = tokens.reshape(b, rows, size, columns, size, 3, heads, d // heads)
        tokens = tokens.permute(5, 0, 1, 3, 6, 2, 4, 7)
        scores = self.bias[self.relative].permute(2, 0, 1)  # [heads, size^2, size^2]
        if self.shift:
            # Fused attention wants four axes: windows, which differ in their mask, join the heads.
            scores = self._shifted_scores(scores, rows, columns)
            tokens = tokens.reshape(3, b, rows * columns * heads, size * size, d // heads)
        else:
            tokens = tokens.reshape(3, b * rows * columns, heads, size * size, d // heads)
        mixed = functional.scaled_dot_product_attention(
            tokens[0], tokens[1], tokens[2], attn_mask=scores[None].to(tokens.dtype)
        )
        mixed = mixed.reshape(b, rows, columns, heads, size, size, d // heads)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, t, f, d)
        if self.shift:
            mixed = mixed.roll((self.shift, self.shift), dims=(1, 2))
        out: Tensor = x + self.out(mixed)
        return out

    def _shifted_scores(self, bias: Tensor, rows: int, columns: int) -> Tensor:
        """Bias and mask of every window, ``[rows*columns*heads, size^2, size^2]``."""
        four = self.masks[:, None] + bias  # [4, heads, size^2, size^2]
        inner = torch.cat((four[:1].expand(columns - 1, -1, -1, -1), four[1:2]))
        last = torch.cat((four[2:3].expand(columns - 1, -1, -1, -1), four[3:]))
        plane = torch.cat((inner.repeat(rows - 1, 1, 1, 1), last))
        return plane.reshape(-1, *bias.shape[1:])


def relative_index(size: int) -> Tensor:
    """Index of the bias of token pair (i, j) of one window, ``[size^2, size^2]``."""
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    place = place.flatten(1)  # [2, size^2]
    distance = place[:, :, None] - place[:, None, :] + size - 1
    return distance[0] * (2 * size - 1) + distance[1]


def shift_masks(size: int, shift: int) -> Tensor:
    """The four masks ``[4, size^2, size^2]``: inner, last column, last row, corner; 0 or MASKED."""
    beyond = (torch.arange(size) >= size - shift).long()  # the tokens that the roll brought round
    row = beyond[:, None].expand(size, size).flatten()
    column = beyond[None, :].expand(size, size).flatten()
    regions = torch.stack((torch.zeros_like(row), column, row, 2 * row + column))
    return (regions[:, :, None] != regions[:, None, :]).float() * MASKED
