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

from tfswa.train.blocks.attention import project, split_heads

MASKED = -100.0  # a score, not -inf: its exponential is 4e-44 in float32 and 0 in float16, never NaN


class WindowAttention(nn.Module):
    """W-MSA, or SW-MSA where ``shift`` is above 0, with a relative position bias; residual inside.

    Args:
        dim: D, a multiple of heads.
        heads: attention heads.
        size: side of a window, in tokens.
        shift: cyclic shift in tokens, 0 <= shift < size.
    """

    relative: Tensor
    masks: Tensor

    def __init__(self, dim: int, heads: int, size: int, shift: int):
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.register_buffer("relative", relative_index(size), persistent=False)
        self.register_buffer("masks", shift_masks(size, shift), persistent=False)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """``[B*rows*columns, size^2, D]`` to the same, window by window; see ``cut``."""
        tokens = self.norm(x)
        parts = project(self.qkv, tokens, 3, scale=self.scale)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        scores = self.bias[self.relative].permute(2, 0, 1)  # [heads, size^2, size^2]
        if self.shift:
            # Fused attention wants four axes: windows, which differ in their mask, join the heads.
            scores = self._shifted_scores(scores, rows, columns)
            joined = (-1, rows * columns * self.heads, *query.shape[2:])
            query, key, value = query.reshape(joined), key.reshape(joined), value.reshape(joined)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=scores[None].to(query.dtype), scale=1.0
        )
        mixed = mixed.reshape(-1, self.heads, *mixed.shape[2:]).transpose(1, 2)
        out: Tensor = x + self.out(mixed.flatten(2))
        return out

    def _shifted_scores(self, bias: Tensor, rows: int, columns: int) -> Tensor:
        """Bias and mask of every window, ``[rows*columns*heads, size^2, size^2]``."""
        four = self.masks[:, None] + bias  # [4, heads, size^2, size^2]
        inner = torch.cat((four[:1].expand(columns - 1, -1, -1, -1), four[1:2]))
        last = torch.cat((four[2:3].expand(columns - 1, -1, -1, -1), four[3:]))
        plane = torch.cat((inner.repeat(rows - 1, 1, 1, 1), last))
        return plane.reshape(-1, *bias.shape[1:])


def cut(x: Tensor, size: int, shift: int) -> Tensor:
    """Cut a plane, shifted cyclically, into windows: ``[B, T, F, D] -> [B*rows*columns, size^2, D]``.

    T and F are multiples of size. What is done to tokens singly can be done to windows as well.
    """
    b, t, f, d = x.shape
    if shift:
        x = x.roll((-shift, -shift), dims=(1, 2))
    x = x.reshape(b, t // size, size, f // size, size, d).transpose(2, 3)
    return x.reshape(-1, size * size, d)


def join_windows(windows: Tensor, size: int, shift: int, rows: int, columns: int) -> Tensor:
    """Undo ``cut``: ``[B*rows*columns, size^2, D] -> [B, T, F, D]``."""
    x = windows.reshape(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * size, columns * size, windows.shape[-1])
    return x.roll((shift, shift), dims=(1, 2)) if shift else x


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
