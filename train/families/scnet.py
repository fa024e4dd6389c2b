"""SCNet: bands that are compressed by as much as they matter little, and LSTMs along both axes between.

W. Tong et al., SCNet: Sparse Compression Network for Music Source Separation, ICASSP 2024, arXiv:2401.13276.
It gives complex spectrograms, not masks::

    mixture [B, 2C, F, T]
      | three bands, each strided along F by its own step
      | each along T: norm, 1D convolutions, gates, added; GELU
      |-- cat -- skip -----------------------------------------------.
      | 3x3                                                          |
      |  ... (a level each, dims channels)                           |
      | dual paths: norm, LSTM along F, norm, LSTM along T;          |
      |   behind each, the Fourier transform along T or its inverse  |
      |  ...                                                         |
      + <------------------------------------------------------------'
      | 3x3 of it twice, gates; three bands, each transposed by its step
    stems [B, S*2C, F, T]

The transform along T is a product with a constant matrix: T is the graph's own, and even. Weights have the
names and shapes of the field's state dictionaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.norm import GroupNorm
from tfswa.train.blocks.recurrent import heard
from tfswa.train.families import Family

BANDS = 3


@dataclass(frozen=True)
class ScnetHyper:
    """Hyper-parameters of SCNet; what there are three of is of the lowest, the middle and the highest band.

    Attributes:
        dims: channels of each level.
        shares: of the bins in the lowest and in the middle band; the highest has the others.
        strides: by how much a level compresses each band.
        kernels: bins that a strided convolution sees, no fewer than its stride.
        depths: 1D convolutions of each band, one after another.
        compress: channels of a level over those between such convolutions.
        kernel: frames that they see, odd.
        paths: how often LSTMs look along both axes, even: every second time behind the transform along T.
        expand: width of an LSTM in each direction, over its channels.
    """

    dims: tuple[int, ...] = (32, 64, 128)
    shares: tuple[float, float] = (0.175, 0.392)
    strides: tuple[int, int, int] = (1, 4, 16)
    kernels: tuple[int, int, int] = (3, 4, 16)
    depths: tuple[int, int, int] = (3, 2, 1)
    compress: float = 4.0
    kernel: int = 3
    paths: int = 6
    expand: int = 1


@dataclass(frozen=True)
class Cut:
    """How a level cuts its bins into three bands.

    Attributes:
        lengths: bins of each band before its strided convolution.
        pads: zeros below and above each.
        strided: bins of each behind it.
    """

    lengths: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strided: tuple[int, ...]


class Narrow(nn.Module):
    """Gated 1D convolutions along T, each added to its input: ``[N, D, T] -> [N, D, T]``."""

    def __init__(self, dim: int, depth: int, hyper: ScnetHyper):
        super().__init__()
        hidden, kernel = int(dim / hyper.compress), hyper.kernel
        self.layers = nn.ModuleList(
            nn.Sequential(
                GroupNorm(1, dim),
                nn.Conv1d(dim, 2 * hidden, kernel, padding=kernel // 2),
                nn.GLU(1),
                nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden),
                GroupNorm(1, hidden),
                nn.SiLU(),
                nn.Conv1d(hidden, dim, 1),
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, D, T] -> [N, D, T]``."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class Strided(nn.Module):
    """Three bands, each strided along F: ``[B, D, F, T]`` to three ``[B, D', F', T]``."""

    def __init__(self, inputs: int, outputs: int, cut: Cut, hyper: ScnetHyper):
        super().__init__()
        self.cut = cut
        sizes = zip(hyper.kernels, hyper.strides, strict=True)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)) for kernel, stride in sizes
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        parts = torch.split(x, list(self.cut.lengths), dim=2)
        padded = (functional.pad(part, (0, 0, *pad)) for part, pad in zip(parts, self.cut.pads, strict=True))
        return [conv(part) for conv, part in zip(self.convs, padded, strict=True)]


class Compression(nn.Module):
    """A level on the way down: ``[B, D, F, T]`` to the next one's, and the skip, both ``[B, D', F', T]``."""

    def __init__(self, inputs: int, outputs: int, cut: Cut, hyper: ScnetHyper):
        super().__init__()
        self.SDlayer = Strided(inputs, outputs, cut, hyper)
        self.conv_modules = nn.ModuleList(Narrow(outputs, depth, hyper) for depth in hyper.depths)
        self.globalconv = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        bands = []
        for along_time, band in zip(self.conv_modules, self.SDlayer(x), strict=True):
            b, d, f, t = band.shape
            rows = along_time(band.transpose(1, 2).reshape(b * f, d, t))
            bands.append(functional.gelu(rows.reshape(b, f, d, t).transpose(1, 2)))
        skip = torch.cat(bands, dim=2)
        return self.globalconv(skip), skip


class Fusion(nn.Module):
    """The skip added, a 3x3 convolution of the sum beside itself, gates: ``[B, D, F, T]`` to the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """See the class. What meets the same numbers twice is added first, which is half of the products."""
        weight = self.conv.weight[:, : x.shape[1]] + self.conv.weight[:, x.shape[1] :]
        return functional.glu(functional.conv2d(x + skip, weight, self.conv.bias, padding=1), dim=1)


class Transposed(nn.Module):
    """The bands to their bins, what was padded cut off: ``[B, D, F', T] -> [B, D', F, T]``."""

    def __init__(self, inputs: int, outputs: int, cut: Cut, hyper: ScnetHyper):
        super().__init__()
        self.cut = cut
        sizes = zip(hyper.kernels, hyper.strides, strict=True)
        self.convtrs = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, (kernel, 1), (stride, 1)) for kernel, stride in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        bands = []
        parts = torch.split(x, list(self.cut.strided), dim=2)
        for convtr, part, length in zip(self.convtrs, parts, self.cut.lengths, strict=True):
            found = convtr(part)
            start = (found.shape[2] - length) // 2
            bands.append(found[:, :, start : start + length])
        return torch.cat(bands, dim=2)


class DualPath(nn.Module):
    """Norm and LSTM along F, then along T, each added: ``[B, D, F, T] -> [B, D, F, T]``."""

    def __init__(self, dim: int, expand: int):
        super().__init__()
        width = dim * expand
        self.lstm_layers = nn.ModuleList(nn.LSTM(dim, width, bidirectional=True) for _ in range(2))
        self.linear_layers = nn.ModuleList(nn.Linear(2 * width, dim) for _ in range(2))
        self.norm_layers = nn.ModuleList(GroupNorm(1, dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for number, (there, back) in enumerate((((2, 0, 3, 1), (1, 3, 0, 2)), ((3, 0, 2, 1), (1, 3, 2, 0)))):
            rows = self.norm_layers[number](x).permute(there)  # [F or T, B, T or F, D]
            length, b, others, dim = rows.shape
            lstm = cast(nn.LSTM, self.lstm_layers[number])
            found = self.linear_layers[number](heard(lstm, rows.reshape(length, b * others, dim)))
            x = x + found.reshape(length, b, others, dim).permute(back)
        return x


class DualPaths(nn.Module):
    """Dual paths on ``[B, D, F, T]``; every second one on the transform along T, ``[B, 2*D, F, T/2 + 1]``."""

    there: Tensor
    back: Tensor

    def __init__(self, dim: int, frames: int, hyper: ScnetHyper):
        super().__init__()
        self.checkpointing = False
        self.dp_modules = nn.ModuleList(DualPath(dim * (1 + n % 2), hyper.expand) for n in range(hyper.paths))
        there, back = fourier(frames)
        self.register_buffer("there", there, persistent=False)
        self.register_buffer("back", back, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for number, path in enumerate(self.dp_modules):
            again = self.checkpointing and self.training
            x = checkpoint(path, x, use_reentrant=False) if again else path(x)
            if number % 2:
                x = torch.cat(x.chunk(2, dim=1), dim=3) @ self.back
            else:
                x = torch.cat((x @ self.there).chunk(2, dim=3), dim=1)
        return x


class Scnet(nn.Module):
    """The network of this file's drawing.

    Args:
        spec: contract; fixes C, T, F and the stems.
        hyper: hyper-parameters.

    Raises:
        ConfigError: numbers out of range, bands of which a level leaves nothing, or an odd T.
    """

    def __init__(self, spec: ModelSpec, hyper: ScnetHyper):
        super().__init__()
        cuts = _cuts(spec, hyper)
        planes, self.stems = 2 * spec.channels, len(spec.outputs)
        levels = list(zip(pairwise((planes, *hyper.dims)), cuts, strict=True))
        self.encoder = nn.ModuleList(Compression(*sizes, cut, hyper) for sizes, cut in levels)
        self.separation_net = DualPaths(hyper.dims[-1], spec.chunk.frames, hyper)
        self.decoder = nn.ModuleList()
        for level, ((outputs, inputs), cut) in reversed(list(enumerate(levels))):
            wanted = outputs if level else outputs * self.stems
            self.decoder.append(nn.ModuleList([Fusion(inputs), Transposed(inputs, wanted, cut, hyper)]))

    @property
    def checkpointing(self) -> bool:
        """Whether a training step keeps the inputs of dual paths alone, and computes them again."""
        return self.separation_net.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.separation_net.checkpointing = value

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, planes, t, f = mixture.shape
        x, skips = mixture.transpose(2, 3), []
        for encoder in self.encoder:
            x, skip = encoder(x)
            skips.append(skip)
        x = self.separation_net(x)
        for level in self.decoder:
            fusion, transposed = cast(nn.ModuleList, level)
            x = transposed(fusion(x, skips.pop()))
        out: Tensor = x.transpose(2, 3).reshape(b, self.stems, planes, t, f)
        return out


def fourier(frames: int) -> tuple[Tensor, Tensor]:
    """Matrices of the real Fourier transform of an even length and of its inverse, both of length 1.

    Returns:
        ``[T, 2*K]`` and ``[2*K, T]``, K = T / 2 + 1: real parts first, then imaginary ones. The inverse does
        not hear those of the first and of the last frequency.
    """
    count = frames // 2 + 1
    places = torch.arange(frames, dtype=torch.int64)[:, None] * torch.arange(count)
    angles = (places % frames).double() * (2 * math.pi / frames)  # of whole numbers: no digit is lost
    there = torch.cat((angles.cos(), -angles.sin()), dim=1) / math.sqrt(frames)
    weights = torch.full((count,), 2.0, dtype=torch.float64)
    weights[0] = weights[-1] = 1.0
    back = (there * weights.repeat(2)).T
    back[count] = back[-1] = 0.0
    return there.float(), back.contiguous().float()


def _cuts(spec: ModelSpec, hyper: ScnetHyper) -> list[Cut]:
    """The bands of each level.

    Raises:
        ConfigError: see ``Scnet``.
    """
    _check(spec, hyper)
    bins, cuts = spec.stft.bins, []
    for level in range(len(hyper.dims)):
        low, middle = hyper.shares
        ends = (0, math.ceil(bins * low), math.ceil(bins * (low + middle)), bins)
        lengths = tuple(end - start for start, end in pairwise(ends))
        if min(lengths) < 1:
            raise ConfigError(
                f"shares {list(hyper.shares)} leave a band of {bins} bins empty, those of level {level}: "
                "change shares, or have fewer dims or lower strides"
            )
        pads, strided = [], []
        for length, kernel, stride in zip(lengths, hyper.kernels, hyper.strides, strict=True):
            pad = kernel - 1 if stride == 1 else -length % stride
            pads.append((pad // 2, pad - pad // 2))
            strided.append((length + pad - kernel) // stride + 1)
            if strided[-1] < 1 or (strided[-1] - 1) * stride + kernel < length:
                raise ConfigError(
                    f"kernel {kernel} and stride {stride} do not give back a band of {length} bins, one of "
                    f"level {level}: change kernels or strides"
                )
        cuts.append(Cut(lengths, tuple(pads), tuple(strided)))
        bins = sum(strided)
    return cuts


def _check(spec: ModelSpec, hyper: ScnetHyper) -> None:
    if not hyper.dims or min(hyper.dims) < 1:
        raise ConfigError(f"dims {list(hyper.dims)} must be one or more, each 1 or above")
    for name in ("strides", "kernels", "depths"):
        values = getattr(hyper, name)
        if len(values) != BANDS or min(values) < (0 if name == "depths" else 1):
            raise ConfigError(f"{name} {list(values)} must be {BANDS} numbers above 0, one for each band")
    if len(hyper.shares) != 2 or min(hyper.shares) <= 0 or sum(hyper.shares) >= 1:
        raise ConfigError(f"shares {list(hyper.shares)} must be two above 0 that add up to less than 1")
    if not 0 < hyper.compress <= min(hyper.dims):
        raise ConfigError(
            f"compress {hyper.compress} must be above 0, and at most {min(hyper.dims)}, the least of dims"
        )
    if hyper.kernel < 1 or hyper.kernel % 2 == 0:
        raise ConfigError(f"kernel {hyper.kernel} must be odd: frames before and after are as many")
    if hyper.paths < 2 or hyper.paths % 2:
        raise ConfigError(f"paths {hyper.paths} must be even and above 0: each second one transforms back")
    if hyper.expand < 1:
        raise ConfigError(f"expand {hyper.expand} must be 1 or above")
    if spec.chunk.frames % 2:
        raise ConfigError(
            f"{spec.chunk.frames} frames of a chunk are odd, the transform along them is of an even length: "
            f"use {spec.chunk.frames + 1}"
        )


SCNET = Family(
    "scnet",
    "SCNet: three bands compressed by as much as they matter little, LSTMs along both axes, 10M",
    ScnetHyper,
    Scnet,
    chunk=ChunkSpec(frames=476, context=47, fade=23, multiple=2),
    stft=StftSpec(scale=1 / 64, window="none", padding="reflect", seen=(0, 2049)),
    published=10_578_768,
    published_stems=("drums", "bass", "other", "vocals"),
)
