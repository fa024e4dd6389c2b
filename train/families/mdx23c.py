"""MDX23C: a U-Net of convolutions and linear layers along frequency, whose bins are folded into sub-bands.

TFC-TDF v3 of the Sound Demixing Challenge 2023; before it: M. Kim et al., KUIELab-MDX-Net: A Two-Stream
Neural Network for Music Demixing, arXiv:2111.12203, 2021. It gives complex spectrograms, not masks::

    mixture [B, 2C, T, F]
      | bins folded into sub-bands: [B, 2C*bands, T, F/bands] -------------------------------------.
      | 1x1 --------------------------------------------------------------------.                  |
      | stage --+-- skip ------------------------------- cat -- stage --------- x ------ cat ------'
      |         | norm, act, strided                      | norm, act, transposed           | 1x1, act, 1x1
      |         | stage --+-- skip ---- cat -- stage -----'                                 | unfolded
      |         |   ...   |  stage      |                                                 stems

A stage is a few blocks. A block is two TFCs (norm, activation, 3x3 convolution), between them a TDF that is
added (twice norm, activation, linear layer along bins: to a few, and back), around all a 1x1 convolution.

Weights have the names and shapes of the field's state dictionaries. With ``norm`` ``batch``, items of a batch
meet in training; in eval mode they meet nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.conv import fold, unfold
from tfswa.train.blocks.norm import GroupNorm
from tfswa.train.families import Family


@dataclass(frozen=True)
class Mdx23cHyper:
    """Hyper-parameters of MDX23C.

    Attributes:
        width: channels of the first level.
        growth: channels that each level below has more.
        depth: how often time and frequency are divided by ``stride``.
        stride: by how much, time and frequency.
        blocks: of a stage.
        bands: sub-bands that bins are folded into.
        narrowing: bins over the places between the two linear layers of a TDF.
        norm: of channels: each by itself, ``instance``; in ``groups``; over the ``batch``; or ``none``.
        groups: of channels; with ``group`` only.
        activation: between norm and layer.
        alpha: what ELU tends to below 0, sign changed; with ``elu`` only.
    """

    width: int = 128
    growth: int = 128
    depth: int = 5
    stride: tuple[int, int] = (2, 2)
    blocks: int = 2
    bands: int = 4
    narrowing: int = 4
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    groups: int = 8
    activation: Literal["gelu", "relu", "elu"] = "gelu"
    alpha: float = 1.0


class TfcTdf(nn.Module):
    """Two TFCs, a TDF, and a way around: ``[B, D, T, F] -> [B, D', T, F]``."""

    def __init__(self, inputs: int, outputs: int, bins: int, hyper: Mdx23cHyper):
        super().__init__()
        narrow = bins // hyper.narrowing
        self.tfc1 = _after_norm(hyper, inputs, nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        self.tdf = nn.Sequential(
            *_after_norm(hyper, outputs, nn.Linear(bins, narrow, bias=False)),
            *_after_norm(hyper, outputs, nn.Linear(narrow, bins, bias=False)),
        )
        self.tfc2 = _after_norm(hyper, outputs, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D', T, F]``."""
        found = self.tfc1(x)
        out: Tensor = self.tfc2(found + self.tdf(found)) + self.shortcut(x)
        return out


class TfcTdfStage(nn.Module):
    """Blocks, one after the other: ``[B, D, T, F] -> [B, D', T, F]``."""

    def __init__(self, inputs: int, outputs: int, bins: int, hyper: Mdx23cHyper):
        super().__init__()
        widths = [inputs, *[outputs] * (hyper.blocks - 1)]
        self.blocks = nn.ModuleList(TfcTdf(width, outputs, bins, hyper) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D', T, F]``."""
        for block in self.blocks:
            x = block(x)
        return x


class Resampled(nn.Module):
    """Norm, activation, and a convolution that changes frames and bins; ``conv`` is what they are called."""

    def __init__(self, hyper: Mdx23cHyper, inputs: int, layer: nn.Module):
        super().__init__()
        self.conv = _after_norm(hyper, inputs, layer)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F]`` to other sizes."""
        out: Tensor = self.conv(x)
        return out


class Mdx23c(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, T, F and the stems.
        hyper: hyper-parameters.

    Attributes:
        checkpointing: whether a training step keeps the inputs of the stages alone, and computes them again.

    Raises:
        ConfigError: numbers out of range, or T or F that bands and strides do not divide.
    """

    def __init__(self, spec: ModelSpec, hyper: Mdx23cHyper):
        super().__init__()
        _check(spec, hyper)
        self.hyper, self.stems, self.checkpointing = hyper, len(spec.outputs), False
        planes = 2 * spec.channels * hyper.bands
        widths, bins = _levels(spec, hyper)
        self.first_conv = nn.Conv2d(planes, hyper.width, 1, bias=False)
        self.encoder_blocks = nn.ModuleList()
        self.decoder_blocks = nn.ModuleList()
        for level in range(hyper.depth):
            here, below = widths[level], widths[level + 1]
            down = nn.Conv2d(here, below, hyper.stride, hyper.stride, bias=False)
            way = {
                "tfc_tdf": TfcTdfStage(here, here, bins[level], hyper),
                "downscale": Resampled(hyper, here, down),
            }
            self.encoder_blocks.append(nn.ModuleDict(way))
        self.bottleneck_block = TfcTdfStage(widths[-1], widths[-1], bins[-1], hyper)
        for level in reversed(range(hyper.depth)):
            here, below = widths[level], widths[level + 1]
            up = nn.ConvTranspose2d(below, here, hyper.stride, hyper.stride, bias=False)
            stage = TfcTdfStage(2 * here, here, bins[level], hyper)
            way = {"upscale": Resampled(hyper, below, up), "tfc_tdf": stage}
            self.decoder_blocks.append(nn.ModuleDict(way))
        self.final_conv = nn.Sequential(
            nn.Conv2d(hyper.width + planes, hyper.width, 1, bias=False),
            _activation(hyper),
            nn.Conv2d(hyper.width, self.stems * planes, 1, bias=False),
        )

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, planes, t, f = mixture.shape
        folded = fold(mixture, self.hyper.bands, "contiguous")
        first = self.first_conv(folded)
        x, skips = first, []
        for level in self.encoder_blocks:
            way = cast(nn.ModuleDict, level)
            x = self._staged(way["tfc_tdf"], x)
            skips.append(x)
            x = way["downscale"](x)
        x = self._staged(self.bottleneck_block, x)
        for level in self.decoder_blocks:
            way = cast(nn.ModuleDict, level)
            x = self._staged(way["tfc_tdf"], torch.cat((way["upscale"](x), skips.pop()), dim=1))
        found = self.final_conv(torch.cat((folded, x * first), dim=1))
        return unfold(found, self.hyper.bands, "contiguous").reshape(b, self.stems, planes, t, f)

    def _staged(self, stage: nn.Module, x: Tensor) -> Tensor:
        again = self.checkpointing and self.training
        out: Tensor = checkpoint(stage, x, use_reentrant=False) if again else stage(x)
        return out


NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": lambda channels, _: GroupNorm(channels, channels),
    "group": lambda channels, groups: GroupNorm(groups, channels),
    "batch": lambda channels, _: nn.BatchNorm2d(channels),
    "none": lambda _, __: nn.Identity(),
}


def _after_norm(hyper: Mdx23cHyper, channels: int, layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(NORMS[hyper.norm](channels, hyper.groups), _activation(hyper), layer)


def _activation(hyper: Mdx23cHyper) -> nn.Module:
    if hyper.activation == "elu":
        return nn.ELU(hyper.alpha)
    return nn.GELU() if hyper.activation == "gelu" else nn.ReLU()


def _levels(spec: ModelSpec, hyper: Mdx23cHyper) -> tuple[list[int], list[int]]:
    """Channels and bins of each level, the bottleneck's last."""
    levels = range(hyper.depth + 1)
    bins = spec.stft.bins // hyper.bands
    return [hyper.width + hyper.growth * n for n in levels], [bins // hyper.stride[1] ** n for n in levels]


def _check(spec: ModelSpec, hyper: Mdx23cHyper) -> None:
    for name in ("width", "depth", "blocks", "bands", "narrowing", "groups"):
        if getattr(hyper, name) < 1:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 1 or above")
    if hyper.growth < 0:
        raise ConfigError(f"growth {hyper.growth} must be 0 or above")
    if min(hyper.stride) < 1:
        raise ConfigError(f"stride {list(hyper.stride)} must each be 1 or above")
    frames, bins = hyper.stride[0] ** hyper.depth, hyper.bands * hyper.stride[1] ** hyper.depth
    for what, value, step, why in (
        ("frames of a chunk", spec.chunk.frames, frames, ""),
        ("bins", spec.stft.bins, bins, f"{hyper.bands} bands and "),
    ):
        if value % step:
            raise ConfigError(
                f"{value} {what} are not a multiple of {step}, {why}depth {hyper.depth} of stride "
                f"{list(hyper.stride)}: change either"
            )
    widths, bins_of = _levels(spec, hyper)
    if bins_of[-1] < hyper.narrowing:
        raise ConfigError(
            f"narrowing {hyper.narrowing} leaves nothing of the last level's {bins_of[-1]} bins: lower it"
        )
    odd = [width for width in widths if width % hyper.groups]
    if hyper.norm == "group" and odd:
        raise ConfigError(
            f"groups {hyper.groups} do not divide {odd[0]} channels, those of a level: change either"
        )


MDX23C = Family(
    "mdx23c",
    "MDX23C: a U-Net with linear layers along frequency, on sub-bands, 112M",
    Mdx23cHyper,
    Mdx23c,
    # 192 frames between chunks, a multiple of the strides: every chunk lies on one grid.
    chunk=ChunkSpec(frames=256, context=25, fade=13, multiple=32),
    stft=StftSpec(n_fft=8192, hop=1024, scale=1.0, padding="reflect", seen=(0, 4096)),
    published=111_990_272,
    published_stems=("vocals", "instrumental"),
)
