"""Attention along time and along frequency (TSA, FSA).

Tokens are ``[B, T, F, D]`` throughout, channels last, so that FSA needs no transpose and TSA one.
"""

from __future__ import annotations

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


class TimeAttention(nn.Module):
    """TSA: every bin attends over its frames, positions by rotary embedding; residual inside.

    Rotary positions: Su et al. 2021 (RoFormer), section 3.4, halves rotated against each other.
    Only differences of frames matter, so a chunk does not depend on where it was cut.

    Args:
        dim: D, a multiple of heads; D / heads even.
        heads: attention heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``; keys and values come from ``source`` where given."""
        b, t, f, d = x.shape
        tokens = self.norm(x).transpose(1, 2)  # [B, F, T, D]
        origin = tokens if source is None else self.norm(source).transpose(1, 2)
        cos, sin = rotary_tables(t, d // self.heads, x.device)
        query = _rotate(_split(self.query(tokens), self.heads), cos, sin)  # [B*F, heads, T, D/heads]
        key, value = self.key_value(origin).chunk(2, dim=-1)
        key = _rotate(_split(key, self.heads), cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, _split(value, self.heads))
        mixed = mixed.transpose(1, 2).reshape(b, f, t, d)
        out: Tensor = x + self.out(mixed).transpose(1, 2)
        return out


class FrequencyAttention(nn.Module):
    """FSA: every frame attends over its bins, which a learned embedding tells apart; residual inside.

    Args:
        dim: D, a multiple of heads.
        heads: attention heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, embedding: Tensor, source: Tensor | None = None) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``; ``embedding`` is ``[F, D]``."""
        b, t, f, d = x.shape
        tokens = self.norm(x) + embedding
        origin = tokens if source is None else self.norm(source) + embedding
        query = _split(self.query(tokens), self.heads)  # [B*T, heads, F, D/heads]
        key, value = self.key_value(origin).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            query, _split(key, self.heads), _split(value, self.heads)
        )
        out: Tensor = x + self.out(mixed.transpose(1, 2).reshape(b, t, f, d))
        return out


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
        asked_time = self.time(time, source=frequency)
        asked_frequency = self.frequency(frequency, embedding, source=time)
        out: Tensor = 0.5 * (asked_time + asked_frequency)
        return out


def rotary_tables(frames: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T, head_dim]``, the second half repeating the first."""
    half = head_dim // 2
    rates = ROPE_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * rates
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    rotated: Tensor = x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)
    return rotated


def _split(x: Tensor, heads: int) -> Tensor:
    """``[B, A, L, D] -> [B*A, heads, L, D/heads]``."""
    b, a, length, d = x.shape
    return x.reshape(b * a, length, heads, d // heads).transpose(1, 2)
