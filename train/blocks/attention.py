"""Attention along time and along frequency (TSA, FSA).

Both work on sequences ``[N, L, D]``: TSA on the frames of every bin, FSA on the bins of every frame. A block
changes from one to the other once. Three axes and not four: OpenVINO fuses a LayerNorm on those alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 10_000.0


class Mlp(nn.Module):
    """LayerNorm, then Linear, GELU, Linear, added to the input: ``[..., D] -> [..., D]``."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        out: Tensor = x + self.contract(functional.gelu(self.expand(self.norm(x))))
        return out


class AxialAttention(nn.Module):
    """Attention within sequences ``[N, L, D]``.

    Args:
        dim: D, a multiple of heads.
        heads: attention heads.

    Attributes:
        mix: what attends: scaled queries, keys and values ``[N, heads, L, D/heads]`` to the same shape. A
            family may put another in place of ``mix_all``.
    """

    mix: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.mix = mix_all
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def attend(self, tokens: Tensor, origin: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """Let ``tokens`` ask ``origin``, both ``[N, L, D]``; ``turn`` marks queries and keys by place."""
        (query,) = project(self.query, tokens, 1, scale=self.scale)
        key, value = project(self.key_value, origin, 2, scale=1.0)
        mixed = self.mix(
            turn(split_heads(query, self.heads)),  # [N, heads, L, D/heads]
            turn(split_heads(key, self.heads)),
            split_heads(value, self.heads),
        )
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(tokens.shape))
        return out


class TimeAttention(AxialAttention):
    """TSA: every bin attends over its frames, positions by rotary embedding; residual inside.

    Rotary positions: Su et al. 2021 (RoFormer), section 3.4, halves rotated against each other.
    Only differences of frames matter, so a chunk does not depend on where it was cut. D / heads is even.
    """

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """``[B*F, T, D]`` to the same; keys and values come from ``source`` where given."""
        tokens = self.norm(x)
        origin = tokens if source is None else self.norm(source)
        cos, sin = rotary_tables(x.shape[1], x.shape[2] // self.heads, x.device)
        return x + self.attend(tokens, origin, lambda z: rotate(z, cos, sin))


class FrequencyAttention(AxialAttention):
    """FSA: every frame attends over its bins, which a learned embedding tells apart; residual inside."""

    def forward(self, x: Tensor, embedding: Tensor, source: Tensor | None = None) -> Tensor:
        """``[B*T, F, D]`` to the same; ``embedding`` is ``[F, D]``."""
        tokens = self.norm(x) + embedding
        origin = tokens if source is None else self.norm(source) + embedding
        return x + self.attend(tokens, origin, lambda z: z)


class CrossAttention(nn.Module):
    """Let the TSA and the FSA stream ask each other before they are averaged.

    The time stream queries the frequency stream along time, the frequency stream queries the time
    stream along frequency.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.time = TimeAttention(dim, heads)
        self.frequency = FrequencyAttention(dim, heads)

    def forward(self, time: Tensor, frequency: Tensor, embedding: Tensor) -> Tensor:
        """Two streams ``[B, T, F, D]`` into one."""
        asked_time = self.time(over_bins(time), source=over_bins(frequency))
        asked_frequency = self.frequency(over_frames(frequency), embedding, source=over_frames(time))
        b, t, f, d = time.shape
        out: Tensor = 0.5 * (from_bins(asked_time, b) + asked_frequency.reshape(b, t, f, d))
        return out


def mix_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every place attends to every other; queries are scaled already."""
    return functional.scaled_dot_product_attention(query, key, value, scale=1.0)


def over_bins(x: Tensor) -> Tensor:
    """The frames of every bin: ``[B, T, F, D] -> [B*F, T, D]``."""
    return x.transpose(1, 2).flatten(0, 1)


def over_frames(x: Tensor) -> Tensor:
    """The bins of every frame: ``[B, T, F, D] -> [B*T, F, D]``."""
    return x.flatten(0, 1)


def from_bins(x: Tensor, items: int) -> Tensor:
    """Undo ``over_bins`` for B items: ``[B*F, T, D] -> [B, T, F, D]``."""
    return x.reshape(items, -1, *x.shape[1:]).transpose(1, 2)


def rotary_tables(frames: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T, head_dim]``, the second half repeating the first."""
    half = head_dim // 2
    rates = ROPE_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * rates
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``[..., L, head_dim]`` by the angles of ``rotary_tables``."""
    first, second = x.chunk(2, dim=-1)
    rotated: Tensor = x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)
    return rotated


def project(layer: nn.Linear, x: Tensor, parts: int, *, scale: float) -> list[Tensor]:
    """The parts of what a layer gives, each a product of its own: parts of one result would be copied.

    The first is scaled, by its weights: an exported graph holds them scaled, and never touches the tokens.
    """
    size = layer.out_features // parts
    made = []
    for index in range(parts):
        weight, bias = (p[index * size : (index + 1) * size] for p in (layer.weight, layer.bias))
        if index == 0 and scale != 1.0:
            weight, bias = weight * scale, bias * scale
        made.append(functional.linear(x, weight, bias))
    return made


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[N, L, D] -> [N, heads, L, D/heads]``."""
    n, length, d = x.shape
    return x.reshape(n, length, heads, d // heads).transpose(1, 2)
