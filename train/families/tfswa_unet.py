"""TFSWA-UNet: a U-Net whose stages attend along time, along frequency, and in shifted windows.

After TFSWA-ResUNet (EURASIP J. Adv. Signal Process. 2025:39), made complex, folded and pre-normed::

    mixture [B, 2C, T, F]
      | features, per-bin normalization, fold            F -> F / fold
      | 3x3 stem                                         dims[0]
      | stage 0 ------------ 1x1 ---------------------- + -- stage 0' -- 3x3 head -- unfold -- mask
      |   2x2 stride 2                                  | 2x2 transposed
      | stage 1 ------------ 1x1 -------------- + -- stage 1'
      |   2x2 stride 2                          | 2x2 transposed
      | stage 2 ------------ 1x1 ------ + -- stage 2'
      |   2x2 stride 2                  | 2x2 transposed
      | stage 3 ------------------------+

A stage is one residual convolution, then blocks of TSA -> FSA -> Swin, each followed by its MLP. Stages
above ``axial_from`` have Swin blocks alone: in stage 0, full attention over the bins would cost more than
all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec
from tfswa.train.blocks.attention import (
    CrossAttention,
    FrequencyAttention,
    Mlp,
    TimeAttention,
    from_bins,
    over_bins,
    over_frames,
)
from tfswa.train.blocks.conv import ResidualConv, fold, unfold
from tfswa.train.blocks.masking import magnitudes, masked
from tfswa.train.blocks.window import WindowAttention, cut, join_windows
from tfswa.train.families import Family

TINY = 1e-8


@dataclass(frozen=True)
class TfswaHyper:
    """Hyper-parameters of TFSWA-UNet.

    Attributes:
        dims: channels per level.
        depths: blocks per level of the encoder; the last is the bottleneck.
        decoder_depths: blocks per level of the decoder, deepest first.
        heads: attention heads per level.
        mlp_ratio: hidden width of an MLP over its input's.
        window: side of a Swin window; blocks alternate between no shift and half a window.
        fold: bins per position.
        fold_layout: ``adjacent`` or ``contiguous``.
        mask: ``complex`` (unbounded, times the mixture), ``magnitude`` (0 to 1, mixture phase), or
            ``direct`` (the spectrogram itself).
        normalization: ``fixed`` statistics of the training set per bin, or ``instance``: those of the
            chunk, per bin and item.
        fusion: ``serial`` TSA -> FSA, or ``cross``: both from the same input, then cross-attention.
        axial_from: first level with TSA and FSA; finer levels have Swin alone.
    """

    dims: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    decoder_depths: tuple[int, ...] = (6, 2, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratio: float = 4.0
    window: int = 8
    fold: int = 4
    fold_layout: Literal["adjacent", "contiguous"] = "adjacent"
    mask: Literal["complex", "magnitude", "direct"] = "complex"
    normalization: Literal["fixed", "instance"] = "fixed"
    fusion: Literal["serial", "cross"] = "serial"
    axial_from: int = 1  # what bundles that do not say have


@dataclass(frozen=True)
class TfswaLiteHyper(TfswaHyper):
    """Defaults of the lightweight network: a tenth of the parameters and of the operations."""

    dims: tuple[int, ...] = (16, 32, 64, 128)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratio: float = 2.0
    fold: int = 8
    mask: Literal["complex", "magnitude", "direct"] = "magnitude"


class Block(nn.Module):
    """TSA -> FSA -> Swin, each with its MLP; if not axial, Swin alone. Tokens ``[B, T, F, D]``."""

    def __init__(self, dim: int, heads: int, hyper: TfswaHyper, *, axial: bool, shifted: bool):
        super().__init__()
        self.axial, self.cross = axial, hyper.fusion == "cross"
        if axial:
            self.time, self.time_mlp = TimeAttention(dim, heads), Mlp(dim, hyper.mlp_ratio)
            self.frequency, self.frequency_mlp = FrequencyAttention(dim, heads), Mlp(dim, hyper.mlp_ratio)
            if self.cross:
                self.fusion = CrossAttention(dim, heads)
        shift = hyper.window // 2 if shifted else 0
        self.window = WindowAttention(dim, heads, hyper.window, shift)
        self.window_mlp = Mlp(dim, hyper.mlp_ratio)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[B, T, F, D] -> [B, T, F, D]``; ``embedding`` is the stage's, ``[F, D]``."""
        b, t, f, d = x.shape
        if self.axial:
            time = from_bins(self.time_mlp(self.time(over_bins(x))), b)
            bins = over_frames(x if self.cross else time)
            x = self.frequency_mlp(self.frequency(bins, embedding)).reshape(b, t, f, d)
            if self.cross:
                x = self.fusion(time, x, embedding)
        size, shift = self.window.size, self.window.shift
        plane = self.window.plane(x)
        windows = self.window_mlp(self.window(cut(x, size, shift), *plane))
        return join_windows(windows, size, shift, *plane)


class Stage(nn.Module):
    """One residual convolution, then blocks: ``[B, D, T, F] -> [B, D, T, F]``."""

    def __init__(self, level: int, bins: int, depth: int, hyper: TfswaHyper, *, decoder: bool):
        super().__init__()
        self.checkpointing = False
        dim, heads, axial = hyper.dims[level], hyper.heads[level], level >= hyper.axial_from
        self.conv = ResidualConv(dim)
        # Shifts alternate; the decoder starts shifted, so that stages of depth 1 still meet both.
        self.blocks = nn.ModuleList(
            Block(dim, heads, hyper, axial=axial, shifted=(index + decoder) % 2 == 1)
            for index in range(depth)
        )
        if axial:
            self.embedding = nn.Parameter(torch.empty(bins, dim))
        else:
            self.register_buffer("embedding", torch.zeros(1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        x = self.conv(x).permute(0, 2, 3, 1)  # [B, T, F, D]
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, self.embedding, use_reentrant=False)
            else:
                x = block(x, self.embedding)
        return x.permute(0, 3, 1, 2)


class TfswaUnet(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, stems, F.
        hyper: hyper-parameters.

    Raises:
        ConfigError: levels of unequal number, or T or F that the windows do not divide.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, hyper: TfswaHyper):
        super().__init__()
        levels = len(hyper.dims)
        _check(spec, hyper, levels)
        self.hyper, self.stems, self.channels = hyper, len(spec.outputs), spec.channels
        bins = spec.stft.bins // hyper.fold
        planes = spec.channels * (1 if hyper.mask == "magnitude" else 2)
        self.register_buffer("mean", torch.zeros(spec.stft.bins))
        self.register_buffer("std", torch.ones(spec.stft.bins))
        self.stem = nn.Conv2d(planes * hyper.fold, hyper.dims[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            Stage(level, bins >> level, hyper.depths[level], hyper, decoder=False) for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            Stage(level, bins >> level, depth, hyper, decoder=True)
            for level, depth in zip(reversed(range(levels - 1)), hyper.decoder_depths, strict=True)
        )
        pairs = list(zip(hyper.dims[:-1], hyper.dims[1:], strict=True))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(pairs)
        )
        self.skip = nn.ModuleList(nn.Conv2d(fine, fine, 1) for fine, _ in reversed(pairs))
        self.head = nn.Conv2d(hyper.dims[0], self.stems * planes * hyper.fold, 3, padding=1)
        self.apply(_initialize)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the input normalization: mean and standard deviation of the features per bin, ``[F]``."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-4))

    def features(self, mixture: Tensor) -> Tensor:
        """Return what is normalized: the mixture's planes, or log-compressed magnitudes, ``[B, P, T, F]``."""
        if self.hyper.mask != "magnitude":
            return mixture
        return torch.log(magnitudes(mixture, self.channels, TINY) + 1e-3)

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        return self._apply_mask(mixture, self._planes(self._normalize(self.features(mixture))))

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess hidden features; see ``SeparationNetwork``."""
        truth = self._normalize(self.features(mixture))
        out = self._planes(truth.masked_fill(hidden, 0.0))
        b, _, t, f = out.shape
        return out.reshape(b, self.stems, -1, t, f), truth[:, None]

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass instead of being kept."""
        return any(stage.checkpointing for stage in (*self.encoder, *self.decoder))

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for stage in (*self.encoder, *self.decoder):
            stage.checkpointing = on

    def _planes(self, x: Tensor) -> Tensor:
        """Normalized features ``[B, P, T, F]`` to the network's output ``[B, S*P, T, F]``."""
        x = self.stem(fold(x, self.hyper.fold, self.hyper.fold_layout))
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=False):
            x = stage(x)
            skips.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for stage, up, skip in zip(self.decoder, self.up, self.skip, strict=True):
            x = stage(up(x) + skip(skips.pop()))
        return unfold(self.head(x), self.hyper.fold, self.hyper.fold_layout)

    def _normalize(self, x: Tensor) -> Tensor:
        if self.hyper.normalization == "fixed":
            return (x - self.mean) / self.std
        mean = x.mean(dim=(1, 2), keepdim=True)
        variance = (x - mean).square().mean(dim=(1, 2), keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5)

    def _apply_mask(self, mixture: Tensor, out: Tensor) -> Tensor:
        """Network output ``[B, S*P, T, F]`` to stems ``[B, S, 2*C, T, F]``."""
        b, _, t, f = out.shape
        if self.hyper.mask == "direct":
            # Undo the normalization's scale, so that the head works in units near 1.
            return out.reshape(b, self.stems, 2 * self.channels, t, f) * self.std
        if self.hyper.mask == "magnitude":
            return masked(mixture, out.reshape(b, self.stems, self.channels, 1, t, f).sigmoid())
        mixed = mixture.reshape(b, 1, self.channels, 2, t, f)
        mask = out.reshape(b, self.stems, self.channels, 2, t, f)
        real = mixed[:, :, :, 0] * mask[:, :, :, 0] - mixed[:, :, :, 1] * mask[:, :, :, 1]
        imaginary = mixed[:, :, :, 0] * mask[:, :, :, 1] + mixed[:, :, :, 1] * mask[:, :, :, 0]
        stems = torch.stack((real, imaginary), dim=3)
        return stems.reshape(b, self.stems, 2 * self.channels, t, f)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.bias, std=0.02)
    elif isinstance(module, Stage) and isinstance(module.embedding, nn.Parameter):
        nn.init.trunc_normal_(module.embedding, std=0.02)


def check_levels(hyper: Any, *positive: str) -> None:
    """Refuse levels of unequal number, dims that heads do not divide, and numbers that must be above 0.

    Args:
        hyper: with ``dims``, ``depths``, ``decoder_depths`` and ``heads``.
        positive: names of further numbers that must be above 0.

    Raises:
        ConfigError: naming the values.
    """
    levels = len(hyper.dims)
    lengths = {len(hyper.depths), len(hyper.heads), len(hyper.decoder_depths) + 1, levels}
    if len(lengths) != 1:
        raise ConfigError(
            f"dims {hyper.dims}, depths {hyper.depths}, heads {hyper.heads} need one value a level, "
            f"decoder_depths {hyper.decoder_depths} one less"
        )
    for name in ("dims", "heads", *positive):
        value = getattr(hyper, name)
        if not min(value if isinstance(value, tuple) else (value,)) > 0:
            raise ConfigError(f"{name} {value} must be above 0")
    if min(hyper.depths + hyper.decoder_depths) < 0:
        raise ConfigError(f"depths {hyper.depths} and {hyper.decoder_depths} must be 0 or above")
    for dim, heads in zip(hyper.dims, hyper.heads, strict=True):
        if dim % (2 * heads):
            raise ConfigError(f"dims {dim} is not an even multiple of its {heads} heads: change either")


def _check(spec: ModelSpec, hyper: TfswaHyper, levels: int) -> None:
    check_levels(hyper, "mlp_ratio", "window", "fold")
    if not 0 <= hyper.axial_from <= levels:
        raise ConfigError(f"axial_from {hyper.axial_from} must be 0 to {levels}, the number of levels")
    step = hyper.window << (levels - 1)
    if spec.chunk.frames % step:
        raise ConfigError(
            f"chunk of {spec.chunk.frames} frames is not a multiple of {step}, "
            f"window {hyper.window} on {levels} levels: change either"
        )
    if spec.stft.bins % (hyper.fold * step):
        raise ConfigError(
            f"{spec.stft.bins} bins are not a multiple of {hyper.fold * step}, "
            f"fold {hyper.fold} x window {hyper.window} on {levels} levels: change either"
        )


RENAMED = {"normalisation": "normalization"}

TFSWA_UNET = Family(
    "tfswa_unet",
    "time-frequency and shifted-window attention U-Net, 15.0M",
    TfswaHyper,
    TfswaUnet,
    renamed=RENAMED,
)
TFSWA_LITE = Family(
    "tfswa_lite",
    "the same at a tenth of the cost, 1.5M",
    TfswaLiteHyper,
    TfswaUnet,
    chunk=ChunkSpec(frames=256, context=16, fade=8, multiple=64),
    renamed=RENAMED,
)
