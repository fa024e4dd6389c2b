"""The transformer of Hybrid Transformer Demucs: two sequences that attend to themselves and to each other.

S. Rouard, F. Massa and A. Défossez, Hybrid Transformers for Music Source Separation, arXiv:2211.08553, 2022::

    spectrum [B, D, F, T]           samples [B, D, N]
      | norm, + places                | norm, + places
      | attention to itself             | attention to itself    turns 0, 2, 4
      | attention to samples            | attention to spectrum  turns 1, 3

Both are computed of what the turn before gave. Weights have the names and shapes that the state dictionaries
of the package ``demucs`` have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfswa.train.blocks.hybrid import LayerScale
from tfswa.train.blocks.norm import GroupNorm

BEGINNING = 1e-4  # factor that what a layer adds begins with


@dataclass(frozen=True)
class TransformerShape:
    """Of the transformer's layers.

    Attributes:
        dim: D, width of a token.
        heads: attention heads.
        hidden: width of the perceptrons.
        layers: turns.
        dropout: share of numbers that training leaves out.
        norm_in: whether tokens are normalized before places are added.
        norm_out: whether all that a layer gives is normalized at once.
        scaled: whether what a layer adds has a factor for each channel.
        gelu: the activation; ReLU otherwise.
        cross_first: whether turns 0, 2, 4 are those in which the sequences ask each other.
        period: longest wave of the places, over 2 pi.
        place_weight: factor of the places.
    """

    dim: int
    heads: int
    hidden: int
    layers: int
    dropout: float
    norm_in: bool
    norm_out: bool
    scaled: bool
    gelu: bool
    cross_first: bool
    period: float
    place_weight: float


class Attention(nn.Module):
    """Tokens ``[B, L, D]`` ask ``[B, M, D]``: ``[B, L, D]``; one weight for queries, keys and values."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """``source`` is who is asked; None: the tokens themselves."""
        if source is None:
            query, key, value = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weight, bias = self.in_proj_weight, self.in_proj_bias
            query = functional.linear(x, weight[: self.dim], bias[: self.dim])
            key, value = functional.linear(source, weight[self.dim :], bias[self.dim :]).chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        query, key, value = self._heads(query), self._heads(key), self._heads(value)
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out: Tensor = self.out_proj(found.transpose(1, 2).reshape(x.shape))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)  # [B, heads, L, D / heads]


class SequenceNorm(GroupNorm):
    """A whole sequence to mean 0 and variance 1, then factors and biases: ``[B, L, D] -> [B, L, D]``."""

    def __init__(self, dim: int):
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each behind a norm and added: ``[B, L, D] -> [B, L, D]``.

    Args:
        shape: of the layer.
        cross: whether it asks another sequence; itself otherwise.
    """

    def __init__(self, shape: TransformerShape, *, cross: bool):
        super().__init__()
        dim = shape.dim
        attention = Attention(dim, shape.heads, shape.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if cross else None
        self.cross_attn = attention if cross else None
        self.self_attn = None if cross else attention
        self.linear1, self.linear2 = nn.Linear(dim, shape.hidden), nn.Linear(shape.hidden, dim)
        self.gamma_1, self.gamma_2 = (
            LayerScale(dim, BEGINNING, last=True) if shape.scaled else nn.Identity() for _ in range(2)
        )
        self.norm_out = SequenceNorm(dim) if shape.norm_out else nn.Identity()
        self.dropout, self.gelu = nn.Dropout(shape.dropout), shape.gelu

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Tokens ``[B, L, D]``, and the other sequence ``[B, M, D]``, which is not used without ``cross``."""
        if self.cross_attn is not None and self.norm3 is not None:
            found, norm = self.cross_attn(self.norm1(x), self.norm2(other)), self.norm3
        else:
            assert self.self_attn is not None
            found, norm = self.self_attn(self.norm1(x)), self.norm2
        x = x + self.gamma_1(self.dropout(found))
        hidden = self.linear1(norm(x))
        hidden = functional.gelu(hidden) if self.gelu else functional.relu(hidden)
        x = x + self.gamma_2(self.dropout(self.linear2(self.dropout(hidden))))
        out: Tensor = self.norm_out(x)
        return out


class CrossTransformer(nn.Module):
    """See this file's drawing.

    Args:
        shape: of the layers.
        bins: F of the spectrum.
        frames: T of the spectrum.
        samples: N.
    """

    places: Tensor
    places_t: Tensor

    def __init__(self, shape: TransformerShape, bins: int, frames: int, samples: int):
        super().__init__()
        dim = shape.dim
        self.norm_in = nn.LayerNorm(dim) if shape.norm_in else nn.Identity()
        self.norm_in_t = nn.LayerNorm(dim) if shape.norm_in else nn.Identity()
        crosses = [(turn % 2 == 1) != shape.cross_first for turn in range(shape.layers)]
        self.layers = nn.ModuleList(TransformerLayer(shape, cross=cross) for cross in crosses)
        self.layers_t = nn.ModuleList(TransformerLayer(shape, cross=cross) for cross in crosses)
        places = spectrum_places(dim, bins, frames, shape.period)
        places_t = sample_places(dim, samples, shape.period)
        self.register_buffer("places", shape.place_weight * places, persistent=False)
        self.register_buffer("places_t", shape.place_weight * places_t, persistent=False)

    def forward(self, x: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrum ``[B, D, F, T]`` and samples ``[B, D, N]``, to the same."""
        b, dim, bins, t = x.shape
        tokens = self.norm_in(x.permute(0, 3, 2, 1).reshape(b, t * bins, dim)) + self.places
        others = self.norm_in_t(line.transpose(1, 2)) + self.places_t
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            tokens, others = layer(tokens, others), layer_t(others, tokens)
        return tokens.reshape(b, t, bins, dim).permute(0, 3, 2, 1), others.transpose(1, 2)


def spectrum_places(dim: int, bins: int, frames: int, period: float) -> Tensor:
    """Sines and cosines, taking turns: half of the channels tell the frame, half the bin.

    Source: Z. Wang and J.-C. Liu, Translating Math Formula Images to LaTeX Sequences, IJDAR 24, 2021.

    Args:
        dim: D, a multiple of 4.
        bins: F.
        frames: T.
        period: longest wave, over 2 pi.

    Returns:
        float32 ``[T * F, D]``.
    """
    rates = torch.exp(-math.log(period) * torch.arange(0, dim // 2, 2).double() / (dim // 2))
    by_frame, by_bin = (
        torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        for angles in (torch.arange(count).double()[:, None] * rates for count in (frames, bins))
    )
    shape = (frames, bins, dim // 2)
    both = torch.cat((by_frame[:, None].expand(shape), by_bin[None].expand(shape)), dim=-1)
    return both.reshape(frames * bins, dim).float()


def sample_places(dim: int, samples: int, period: float) -> Tensor:
    """All cosines of the place, then all sines: float32 ``[N, D]``; D is even and above 2.

    Source: A. Vaswani et al., Attention Is All You Need, NeurIPS 2017.
    """
    half = dim // 2
    rates = period ** -(torch.arange(half).double() / (half - 1))
    angles = torch.arange(samples).double()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()
