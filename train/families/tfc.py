"""TFC-TDF-, TFC-TDSA- and TFC-TDT-UNet: one U-Net of convolutions, three ways to look along frequency.

Of a study of lead and accompaniment that compares them. Spectrograms are complex, as channels, and predicted
directly, without a mask. Every level has ``width`` channels; one level down, frames and bins are halved::

    mixture [B, 2C, T, F]
      | 1x3                                                                  1x3 -- stems
      | stage -- 2x2 stride 2 --+-- skip --------- cat -- stage -- 2x2 transposed
                                | stage -- 2x2 stride 2 --+-- skip -- cat -- stage -- 2x2 transposed
                                                         ...  stage

Skips are taken after the stride, so that no stage of the decoder works on all bins. A stage is a TFC (norm,
3x3 convolution, ReLU), and adds to that what its block makes of it. The blocks, for F bins and D channels:

* TDF: norm, a linear layer along the bins, ReLU, added to its input.
* TDSA: the bins of one channel of one frame are a token ``[F]``. Norm, attention among tokens, ReLU, added to
  its input. The original attends among the tokens of a whole batch, so that a result depends on what else is
  in the batch; here the items of a batch are kept apart. ``within`` keeps the frames apart as well.
* TDT: in each frame the bins are tokens ``[D]``. Positions are added, then attention among bins with residual
  and norm, then a linear layer with dropout and residual.

Attention has one head, and no layer after it. In training, the norms of a TFC take their statistics from the
whole batch, so items of a batch meet there; in eval mode they meet nowhere.

The parameters published, 1 804 076, 5 291 228 and 84 172, are those of two channels and one stem: one stem
more has 292 more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.attention import project
from tfswa.train.families import Family

POSITION_BASE = 10_000.0


@dataclass(frozen=True)
class TdfHyper:
    """Hyper-parameters of TFC-TDF-UNet.

    Attributes:
        width: channels of every level.
        depth: how often time and frequency are halved.
    """

    width: int = 24
    depth: int = 3

    def block(self, bins: int) -> nn.Module:
        """Make what looks along this many bins."""
        return Tdf(self.width, bins)


@dataclass(frozen=True)
class TdsaHyper(TdfHyper):
    """Hyper-parameters of TFC-TDSA-UNet.

    Attributes:
        within: a token attends to those of all frames of its ``item``, or to those of its ``frame`` alone,
            which is a third of the operations.
    """

    within: Literal["item", "frame"] = "item"

    def block(self, bins: int) -> nn.Module:
        """Make what looks along this many bins."""
        return Tdsa(bins, self.within)


@dataclass(frozen=True)
class TdtHyper(TdfHyper):
    """Hyper-parameters of TFC-TDT-UNet.

    Attributes:
        dropout: share of the linear layers' outputs that is dropped in training.
    """

    dropout: float = 0.1

    def block(self, bins: int) -> nn.Module:
        """Make what looks along this many bins."""
        return Tdt(self.width, bins, self.dropout)


class Tfc(nn.Sequential):
    """Norm, 3x3 convolution, ReLU: ``[B, D, T, F] -> [B, D', T, F]``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


class SingleHead(nn.Module):
    """Attention of one head among tokens ``[N, L, E]``: values are averaged, and that is all."""

    def __init__(self, size: int):
        super().__init__()
        self.scale = size**-0.5
        self.query_key_value = nn.Linear(size, 3 * size)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L, E] -> [N, L, E]``."""
        parts = project(self.query_key_value, tokens, 3, scale=self.scale)
        query, key, value = (part[:, None] for part in parts)  # [N, 1, L, E]
        mixed: Tensor = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return mixed[:, 0]


class Tdf(nn.Module):
    """A linear layer along the bins of every channel and frame."""

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(bins, bins, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        out: Tensor = x + functional.relu(self.linear(self.norm(x)))
        return out


class Tdsa(nn.Module):
    """Attention among the spectra of the channels, of one frame or of all frames of an item."""

    def __init__(self, bins: int, within: str):
        super().__init__()
        self.within = within
        self.norm = nn.BatchNorm1d(bins)
        self.attention = SingleHead(bins)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        b, d, t, f = x.shape
        tokens = self.norm(x.reshape(-1, f))
        if self.within == "item":
            mixed = self.attention(tokens.reshape(b, d * t, f)).reshape(b, d, t, f)
        else:
            frames = tokens.reshape(b, d, t, f).transpose(1, 2).reshape(b * t, d, f)
            mixed = self.attention(frames).reshape(b, t, d, f).transpose(1, 2)
        return x + functional.relu(mixed)


class Tdt(nn.Module):
    """A small transformer among the bins of every frame."""

    positions: Tensor

    def __init__(self, width: int, bins: int, dropout: float):
        super().__init__()
        self.register_buffer("positions", sinusoids(bins, width), persistent=False)
        self.attention = SingleHead(width)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        b, d, t, f = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(b * t, f, d) + self.positions.to(x.dtype)
        tokens = self.norm(tokens + self.attention(tokens))
        tokens = tokens + self.dropout(self.linear(tokens))
        out: Tensor = tokens.reshape(b, t, f, d).permute(0, 3, 1, 2)
        return out


class TfcStage(nn.Module):
    """A TFC, and what the family's block adds to it: ``[B, D, T, F] -> [B, D', T, F]``."""

    def __init__(self, inputs: int, bins: int, hyper: TdfHyper):
        super().__init__()
        self.tfc = Tfc(inputs, hyper.width)
        self.block = hyper.block(bins)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D', T, F]``."""
        x = self.tfc(x)
        out: Tensor = x + self.block(x)
        return out


class TfcUnet(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, stems, F.
        hyper: hyper-parameters, which make the family's block.

    Raises:
        ConfigError: numbers out of range, or T or F that the strides do not divide.
    """

    def __init__(self, spec: ModelSpec, hyper: TdfHyper):
        super().__init__()
        _check(spec, hyper)
        width, planes, self.stems = hyper.width, 2 * spec.channels, len(spec.outputs)
        bins = [spec.stft.bins >> level for level in range(hyper.depth + 1)]
        self.first = nn.Conv2d(planes, width, (1, 3), padding=(0, 1), bias=False)  # a norm comes next
        self.encoder = nn.ModuleList(TfcStage(width, f, hyper) for f in bins[:-1])
        self.down = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in bins[:-1])
        self.bottleneck = TfcStage(width, bins[-1], hyper)
        self.decoder = nn.ModuleList(TfcStage(2 * width, f, hyper) for f in bins[:0:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in bins[:0:-1])
        self.last = nn.Conv2d(width, self.stems * planes, (1, 3), padding=(0, 1))

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, planes, t, f = mixture.shape
        x = self.first(mixture)
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            x = down(stage(x))
            skips.append(x)
        x = self.bottleneck(x)
        for stage, up in zip(self.decoder, self.up, strict=True):
            x = up(stage(torch.cat((skips.pop(), x), dim=1)))
        out: Tensor = self.last(x).reshape(b, self.stems, planes, t, f)
        return out


def sinusoids(length: int, width: int) -> Tensor:
    """Positions ``[length, width]``: sines in even places, cosines in odd ones, ever slower.

    A. Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    rates = POSITION_BASE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def _check(spec: ModelSpec, hyper: TdfHyper) -> None:
    if hyper.width < 1 or hyper.depth < 1:
        raise ConfigError(f"width {hyper.width} and depth {hyper.depth} must be above 0")
    step = 2**hyper.depth
    for name, value in (("frames of a chunk", spec.chunk.frames), ("bins", spec.stft.bins)):
        if value % step:
            raise ConfigError(
                f"{value} {name} are not a multiple of {step}, depth {hyper.depth} of stride 2: change either"
            )
    if isinstance(hyper, TdtHyper):
        if hyper.width % 2:
            raise ConfigError(f"width {hyper.width} must be even: positions are pairs of sine and cosine")
        if not 0 <= hyper.dropout < 1:
            raise ConfigError(f"dropout {hyper.dropout} must be a share: 0 or above, and below 1")


STFT = StftSpec(n_fft=2048, hop=1024)
# 104 frames between chunks, a multiple of the strides: every chunk lies on one grid.
CHUNK = ChunkSpec(frames=128, context=8, fade=7, multiple=8)


def _family(name: str, summary: str, hyper: type[TdfHyper], published: int) -> Family:
    return Family(
        name, summary, hyper, TfcUnet, CHUNK, STFT, published=published, published_stems=("vocals",)
    )


TFC_TDF = _family("tfc_tdf", "U-Net with a linear layer along frequency, 1.8M", TdfHyper, 1_804_076)
TFC_TDSA = _family("tfc_tdsa", "the same with attention among spectra, 5.3M", TdsaHyper, 5_291_228)
TFC_TDT = _family("tfc_tdt", "the same with a transformer along frequency, 0.1M", TdtHyper, 84_172)
