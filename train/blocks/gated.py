"""The transformer of RoFormers: RMSNorm, gated attention with rotary places, and the MLP behind it.

J. Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864, 2021.
Weights have the names and shapes that the field's state dictionaries have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-12  # the least length that a vector is divided by
ROTARY_BASE = 10_000.0


class RmsNorm(nn.Module):
    """Vectors of length ``sqrt(D)``, then a factor each: ``[..., D] -> [..., D]``.

    Source: B. Zhang and R. Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.length = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        found = torch.sqrt(x.square().sum(dim=-1, keepdim=True)).clamp_min(TINY)
        out: Tensor = x * (self.length / found) * self.gamma
        return out


class Rotary(nn.Module):
    """Places of a sequence as rotations of pairs of neighboring channels.

    Args:
        dim: channels of a head, even.

    Attributes:
        freqs: radians by which a pair turns from one place to the next, ``[dim / 2]``.
    """

    freqs: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("freqs", rotary_freqs(dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys ``[N, heads, L, D] -> [N, heads, L, D]``.

        Channels come in another order: first of all pairs, second of all pairs. Products of queries and keys,
        which is all that becomes of them, do not depend on that.
        """
        angles = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)[:, None] * self.freqs.float()
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotary_freqs(dim: int) -> Tensor:
    """Radians by which each pair of a head's channels turns from one place to the next, ``[dim / 2]``."""
    return ROTARY_BASE ** -(torch.arange(0, dim, 2).float() / dim)


class GatedAttention(nn.Module):
    """Attention whose heads are each turned down by a gate: ``[N, L, D]`` to what is added to it.

    Args:
        dim: D.
        heads: how many.
        dim_head: channels of a head.
        mixes_values: whether the first layer's values are mixed into these, by a weight for each head.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, *, mixes_values: bool = False):
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.rotary_embed = Rotary(dim_head)
        self.norm = RmsNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_value_residual_mix = nn.Linear(dim, heads) if mixes_values else None
        self.to_gates = nn.Linear(dim, heads)
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[N, L, D]``, the first layer's values ``[N, heads, L, D/heads]``; to the sum, and own values."""
        n, length, _ = x.shape
        normed = self.norm(x)
        query, key, value = (
            part.reshape(n, length, self.heads, -1).transpose(1, 2)
            for part in self.to_qkv(normed).chunk(3, dim=-1)
        )
        own = value
        if self.to_value_residual_mix is not None and first is not None:
            share = torch.sigmoid(self.to_value_residual_mix(normed)).transpose(1, 2)[..., None]
            value = value + share * (first - value)
        found = functional.scaled_dot_product_attention(
            self.rotary_embed(query), self.rotary_embed(key), value
        )
        found = found * torch.sigmoid(self.to_gates(normed)).transpose(1, 2)[..., None]
        out: Tensor = x + self.to_out(found.transpose(1, 2).reshape(n, length, -1))
        return out, own


class ChannelAttention(nn.Module):
    """Attention of channels among each other, over a whole sequence: ``[N, L, D] -> [N, L, D]``.

    Source: A. El-Nouby et al., XCiT: Cross-Covariance Image Transformers, NeurIPS 2021.
    """

    SCALE = 8.0

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.norm = RmsNorm(dim)
        self.to_qkv = nn.Sequential(nn.Linear(dim, 3 * inner, bias=False))
        self.temperature = nn.Parameter(torch.zeros(heads, 1, 1))
        self.to_out = nn.Sequential(nn.Identity(), nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """As of ``GatedAttention``; it takes no values of another layer."""
        n, length, _ = x.shape
        query, key, value = (
            part.reshape(n, length, self.heads, -1).permute(0, 2, 3, 1)  # [N, heads, D/heads, L]
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        scores = (query * self.temperature.exp()) @ key.transpose(2, 3) * self.SCALE
        found = scores.softmax(dim=-1) @ value
        out: Tensor = x + self.to_out(found.permute(0, 3, 1, 2).reshape(n, length, -1))
        return out, value


class FeedForward(nn.Module):
    """RMSNorm, Linear, GELU, Linear, added to the input: ``[..., D] -> [..., D]``."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        # Dropouts of the originals have places of their own and no weights.
        self.net = nn.Sequential(
            RmsNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        out: Tensor = x + self.net(x)
        return out
