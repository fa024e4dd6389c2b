"""Shifted-window attention (Swin) over the time-frequency plane.

Liu et al. 2021, section 3.2: windows of ``height x width`` tokens, frames x bins, attend within themselves;
every second block shifts the plane by half a window, cyclically, and masks what the shift brought together::

      unshifted            shifted by 2, size 4                 regions that may attend
    +----+----+          +--+----+--+                           each other in the last
    |    |    |          |  |    |  |     the cyclic shift      row / column of windows:
    +----+----+          +--+----+--+     puts the outer          A | B
    |    |    |          |  |    |  |     strips into one        ---+---   (corner window)
    +----+----+          +--+----+--+     window                  C | D

Only four window masks differ: inner, last column, last row, corner. These are stored, not the plane.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfswa.train.blocks.attention import project, split_heads

Sides = tuple[int, int]
"""Of a window, or of its shift: frames and bins. One number stands for both sides."""
MASKED = -100.0  # a score, not -inf: its exponential is 4e-44 in float32 and 0 in float16, never NaN


class WindowAttention(nn.Module):
    """W-MSA, or SW-MSA where ``shift`` is above 0, with a relative position bias; residual inside.

    Args:
        dim: D, a multiple of heads.
        heads: attention heads.
        size: sides of a window, in tokens.
        shift: cyclic shift in tokens, 0 <= shift < size on each side.
    """

    relative: Tensor
    masks: Tensor

    def __init__(self, dim: int, heads: int, size: int | Sides, shift: int | Sides):
        super().__init__()
        self.heads, self.size, self.shift = heads, both_sides(size), both_sides(shift)
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(math.prod(2 * side - 1 for side in self.size), heads))
        self.register_buffer("relative", relative_index(size), persistent=False)
        self.register_buffer("masks", shift_masks(size, shift), persistent=False)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """``[B*rows*columns, L, D]`` to the same, window by window of L tokens; see ``cut``."""
        tokens = self.norm(x)
        parts = project(self.qkv, tokens, 3, scale=self.scale)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        scores = self.bias[self.relative].permute(2, 0, 1)  # [heads, L, L]
        if any(self.shift):
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

    def plane(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of windows in a plane ``[B, T, F, D]``."""
        return x.shape[1] // self.size[0], x.shape[2] // self.size[1]

    def _shifted_scores(self, bias: Tensor, rows: int, columns: int) -> Tensor:
        """Bias and mask of every window, ``[rows*columns*heads, L, L]``."""
        four = self.masks[:, None] + bias  # [4, heads, L, L]
        inner = torch.cat((four[:1].expand(columns - 1, -1, -1, -1), four[1:2]))
        last = torch.cat((four[2:3].expand(columns - 1, -1, -1, -1), four[3:]))
        plane = torch.cat((inner.repeat(rows - 1, 1, 1, 1), last))
        return plane.reshape(-1, *bias.shape[1:])


def both_sides(value: int | Sides) -> Sides:
    """Frames and bins of what may be one number for both."""
    return (value, value) if isinstance(value, int) else value


def cut(x: Tensor, size: int | Sides, shift: int | Sides) -> Tensor:
    """Cut a plane, shifted cyclically, into windows: ``[B, T, F, D] -> [B*rows*columns, height*width, D]``.

    T and F are multiples of the sides. What is done to tokens singly can be done to windows as well.
    """
    b, t, f, d = x.shape
    (height, width), (down, right) = both_sides(size), both_sides(shift)
    if down or right:
        x = x.roll((-down, -right), dims=(1, 2))
    x = x.reshape(b, t // height, height, f // width, width, d).transpose(2, 3)
    return x.reshape(-1, height * width, d)


def join_windows(windows: Tensor, size: int | Sides, shift: int | Sides, rows: int, columns: int) -> Tensor:
    """Undo ``cut``: ``[B*rows*columns, height*width, D] -> [B, T, F, D]``."""
    (height, width), (down, right) = both_sides(size), both_sides(shift)
    x = windows.reshape(-1, rows, columns, height, width, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * height, columns * width, windows.shape[-1])
    return x.roll((down, right), dims=(1, 2)) if down or right else x


def relative_index(size: int | Sides) -> Tensor:
    """Index of the bias of token pair (i, j) of one window, ``[height*width, height*width]``."""
    height, width = both_sides(size)
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    place = place.flatten(1)  # [2, height*width]
    distance = place[:, :, None] - place[:, None, :]
    return (distance[0] + height - 1) * (2 * width - 1) + distance[1] + width - 1


def shift_masks(size: int | Sides, shift: int | Sides) -> Tensor:
    """The four masks ``[4, L, L]`` of L tokens: inner, last column, last row, corner; 0 or MASKED."""
    (height, width), (down, right) = both_sides(size), both_sides(shift)
    # The tokens that the roll brought round.
    row = (torch.arange(height) >= height - down).long()[:, None].expand(height, width).flatten()
    column = (torch.arange(width) >= width - right).long()[None, :].expand(height, width).flatten()
    regions = torch.stack((torch.zeros_like(row), column, row, 2 * row + column))
    return (regions[:, :, None] != regions[:, None, :]).float() * MASKED
