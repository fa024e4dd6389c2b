"""TFSWA-ResUNet as published: a U-Net of residual convolutions on magnitudes, attention in its bottleneck.

EURASIP J. Adv. Signal Process. 2025:39, doi 10.1186/s13634-025-01249-0. Each channel is split into contiguous
sub-bands, which become planes of one fourth of the bins (8 of 320 frames x 256 bins)::

    magnitudes [B, C, T, F] -- bands [B, 4C, T, F/4]
      | 4 residual modules      32 ------------------------------------- cat -- 4 modules -- stems' magnitudes
      |   2x2 average pool                                                |  bilinear x2
      | 4 residual modules      64 ------------------------ cat -- 4 modules
      ...                                                   ...
      | 4 residual modules     384 ------- cat -- 4 modules
      |   2x2 average pool                  |  bilinear x2
      | bottleneck: 4 TFSWA modules --------+

A residual module is norm, GELU, 3x3 convolution, twice, added to a 1x1 convolution of its input. A TFSWA
module is TSA (attention along time, per bin), FSA (along frequency, per frame), and a residual branch of two
Swin blocks, the second one shifted. TSA and FSA have a residual around their MLP, none around the attention,
and no positions.

The network gives the magnitudes of the stems, which get the phase of the mixture. In training they may be
below 0, because what is cut off has no gradient; in eval mode they are cut off at 0. In training the norms
take their statistics from the whole batch, so items of a batch meet there; in eval mode they meet nowhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.attention import AxialAttention, Mlp, from_bins, over_bins, over_frames
from tfswa.train.blocks.conv import fold, unfold
from tfswa.train.blocks.masking import magnitudes, with_phase
from tfswa.train.blocks.window import WindowAttention, cut, join_windows
from tfswa.train.families import Family

TINY = 1e-7  # above 0 in float16 too; its root, 3e-4, is 94 dB below a full-scale sine


@dataclass(frozen=True)
class ResunetHyper:
    """Hyper-parameters of TFSWA-ResUNet.

    Attributes:
        dims: channels per level.
        depth: residual modules per level, of the encoder and of the decoder.
        bands: contiguous sub-bands per audio channel.
        bottleneck: of what it is made: ``tfswa``; or for comparison ``axial`` (TSA and FSA), ``time`` (TSA),
            ``frequency`` (FSA), ``conv`` (residual modules), ``none``.
        modules: how many there are of it.
        heads: attention heads.
        mlp_ratio: hidden width of an MLP over its input's.
        window: sides of a Swin window, frames and bins of the bottleneck.
    """

    dims: tuple[int, ...] = (32, 64, 128, 256, 384)
    depth: int = 4
    bands: int = 4
    bottleneck: Literal["none", "conv", "time", "frequency", "axial", "tfswa"] = "tfswa"
    modules: int = 4
    heads: int = 4
    mlp_ratio: float = 2.0
    window: tuple[int, int] = (5, 4)


class ResidualModule(nn.Module):
    """Norm, GELU, 3x3 convolution, twice, and a 1x1 convolution around them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D', T, F]``."""
        inner = self.conv1(functional.gelu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(functional.gelu(self.norm2(inner)))
        return out


class SequenceAttention(AxialAttention):
    """TSA or FSA: norm, attention, and an MLP with a residual around it, on sequences ``[N, L, D]``."""

    def __init__(self, dim: int, heads: int, ratio: float):
        super().__init__(dim, heads)
        self.expand = nn.Linear(dim, int(dim * ratio))
        self.contract = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, L, D] -> [N, L, D]``."""
        tokens = self.norm(x)
        mixed = self.attend(tokens, tokens, lambda z: z)
        out: Tensor = mixed + self.contract(functional.gelu(self.expand(mixed)))
        return out


class SwinBlock(nn.Module):
    """Window attention and its MLP, each with norm and residual, on ``[B, T, F, D]``."""

    def __init__(self, dim: int, hyper: ResunetHyper, *, shifted: bool):
        super().__init__()
        height, width = hyper.window
        shift = (height // 2, width // 2) if shifted else (0, 0)
        self.window = WindowAttention(dim, hyper.heads, hyper.window, shift)
        self.window_mlp = Mlp(dim, hyper.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``."""
        size, shift, plane = self.window.size, self.window.shift, self.window.plane(x)
        return join_windows(self.window_mlp(self.window(cut(x, size, shift), *plane)), size, shift, *plane)


class AttentionModule(nn.Module):
    """TSA, FSA and two Swin blocks, or those of them that ``bottleneck`` names."""

    def __init__(self, dim: int, hyper: ResunetHyper):
        super().__init__()
        kind, ratio = hyper.bottleneck, hyper.mlp_ratio
        self.time = SequenceAttention(dim, hyper.heads, ratio) if kind != "frequency" else None
        self.frequency = SequenceAttention(dim, hyper.heads, ratio) if kind != "time" else None
        pair = [SwinBlock(dim, hyper, shifted=shifted) for shifted in (False, True)]
        self.swin = nn.Sequential(*pair) if kind == "tfswa" else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        x = x.permute(0, 2, 3, 1)  # [B, T, F, D]
        if self.time is not None:
            x = from_bins(self.time(over_bins(x)), x.shape[0])  # len() would fix B in a graph
        if self.frequency is not None:
            x = self.frequency(over_frames(x)).reshape(x.shape)
        if self.swin is not None:
            x = x + self.swin(x)
        return x.permute(0, 3, 1, 2)


class TfswaResunet(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, stems, F.
        hyper: hyper-parameters.

    Raises:
        ConfigError: numbers out of range, or T or F that bands, pools or windows do not divide.
    """

    def __init__(self, spec: ModelSpec, hyper: ResunetHyper):
        super().__init__()
        _check(spec, hyper)
        self.hyper, self.channels, self.stems = hyper, spec.channels, len(spec.outputs)
        dims, bands = hyper.dims, spec.channels * hyper.bands
        self.encoder = nn.ModuleList(
            _level(inputs, outputs, hyper.depth) for inputs, outputs in itertools.pairwise((bands, *dims))
        )
        bottleneck = (_bottleneck(dims[-1], hyper) for _ in range(hyper.modules))
        self.bottleneck = nn.Sequential(*(bottleneck if hyper.bottleneck != "none" else ()))
        outputs = (*dims[-2::-1], self.stems * bands)  # of a level of the decoder, deepest first
        self.decoder = nn.ModuleList(
            _level(below + skip, out, hyper.depth)
            for below, skip, out in zip((dims[-1], *outputs), dims[::-1], outputs, strict=False)
        )

    def features(self, mixture: Tensor) -> Tensor:
        """Return what the network sees: magnitudes, ``[B, C, T, F]``."""
        return magnitudes(mixture, self.channels, TINY)

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        made = self._magnitudes(self.features(mixture))
        return with_phase(mixture, made if self.training else made.relu(), TINY)

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess hidden magnitudes, of which the network sees 0; see ``SeparationNetwork``."""
        truth = self.features(mixture)
        return self._magnitudes(truth.masked_fill(hidden, 0.0)), truth[:, None]

    def _magnitudes(self, x: Tensor) -> Tensor:
        """Magnitudes of the mixture ``[B, C, T, F]`` to those of the stems ``[B, S, C, T, F]``."""
        b, channels, t, f = x.shape
        x = fold(x, self.hyper.bands, "contiguous")
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.bottleneck(x)
        for level in self.decoder:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = level(torch.cat((x, skips.pop()), dim=1))
        return unfold(x, self.hyper.bands, "contiguous").reshape(b, self.stems, channels, t, f)


def _level(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Residual modules, the first of which changes the number of channels."""
    return nn.Sequential(*(ResidualModule(outputs if k else inputs, outputs) for k in range(depth)))


def _bottleneck(dim: int, hyper: ResunetHyper) -> nn.Module:
    return ResidualModule(dim, dim) if hyper.bottleneck == "conv" else AttentionModule(dim, hyper)


def _check(spec: ModelSpec, hyper: ResunetHyper) -> None:
    if not hyper.dims:
        raise ConfigError("dims () has no level: name one channel count a level")
    for name in ("dims", "depth", "bands", "modules", "heads", "mlp_ratio", "window"):
        value = getattr(hyper, name)
        if not min(value if isinstance(value, tuple) else (value,)) > 0:
            raise ConfigError(f"{name} {value} must be above 0")
    windows = hyper.window if hyper.bottleneck == "tfswa" else (1, 1)
    if hyper.bottleneck not in ("none", "conv") and hyper.dims[-1] % hyper.heads:
        raise ConfigError(
            f"dims {hyper.dims[-1]} of the bottleneck are not a multiple of its {hyper.heads} heads: "
            "change either"
        )
    pool = 2 ** len(hyper.dims)
    if spec.chunk.frames % (pool * windows[0]):
        raise ConfigError(
            f"{spec.chunk.frames} frames of a chunk are not a multiple of {pool * windows[0]}, "
            f"{len(hyper.dims)} pools x window {windows[0]}: change either"
        )
    if spec.stft.bins % (hyper.bands * pool * windows[1]):
        raise ConfigError(
            f"{spec.stft.bins} bins are not a multiple of {hyper.bands * pool * windows[1]}, "
            f"{hyper.bands} bands x {len(hyper.dims)} pools x window {windows[1]}: change either"
        )


TFSWA_RESUNET = Family(
    "tfswa_resunet",
    "the published TFSWA-ResUNet on magnitudes, 44.4M",
    ResunetHyper,
    TfswaResunet,
    # 288 frames between chunks, a multiple of the pools' 32: every chunk lies on one grid of them. T is a
    # multiple of 160, a window of 5 under 5 pools.
    chunk=ChunkSpec(frames=320, context=12, fade=7, multiple=160),
    stft=StftSpec(n_fft=2048, hop=441),
    published=44_300_000,
    published_stems=("vocals",),
)
