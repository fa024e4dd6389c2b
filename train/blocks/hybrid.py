"""The convolutions of Hybrid Transformer Demucs: its two branches are the same layers on other axes.

A. Défossez, Hybrid Spectrogram and Waveform Source Separation, arXiv:2111.03600, 2021. A branch along
frequency has ``[B, C, F, T]`` and shortens F, one along time has ``[B, C, N]`` and shortens N::

    encoder    convolution, GELU -- residual branch along time -- 1x1, GLU
    decoder    + skip -- 3x3, GLU -- residual branch along time -- transposed convolution, GELU

Weights have the names and shapes that the state dictionaries of the package ``demucs`` have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfswa.train.blocks.norm import GroupNorm


@dataclass(frozen=True)
class LayerShape:
    """What the layers of a branch have in common.

    Attributes:
        frequency: whether the axis that is shortened is F; it is N otherwise.
        kernel: width of the convolution along it, twice the stride.
        stride: by which it is shortened.
        context: neighbors on each side that the convolution before the GLU sees.
        rewrite: whether there is that convolution.
        groups: of the norms; 0: no norms.
        branches: residual branches in a row; 0: none.
        squeeze: a residual branch has C over this as its channels.
        start: factor that a residual branch begins with.
    """

    frequency: bool
    kernel: int
    stride: int
    context: int
    rewrite: bool
    groups: int
    branches: int
    squeeze: float
    start: float

    def norm(self, channels: int) -> nn.Module:
        """The norm behind a convolution."""
        return GroupNorm(self.groups, channels) if self.groups else nn.Identity()

    def pointed(self, channels: int) -> nn.Module:
        """The convolution before a GLU, to twice the channels."""
        kind = nn.Conv2d if self.frequency else nn.Conv1d
        return kind(channels, 2 * channels, 1 + 2 * self.context, padding=self.context)

    def residual(self, channels: int) -> nn.Module:
        """The branches behind each other; nothing where there are none."""
        return ResidualBranches(channels, self) if self.branches else nn.Identity()


class LayerScale(nn.Module):
    """A factor for each channel, of ``[N, C, L]`` or with ``last`` of ``[N, L, C]``.

    Source: H. Touvron et al., Going deeper with Image Transformers, arXiv:2103.17239, 2021.
    """

    def __init__(self, channels: int, start: float, *, last: bool = False):
        super().__init__()
        self.last = last
        self.scale = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * (self.scale if self.last else self.scale[:, None])


class ResidualBranches(nn.Module):
    """Dilated convolutions of few channels, each added to its input: ``[N, C, L] -> [N, C, L]``."""

    def __init__(self, channels: int, shape: LayerShape):
        super().__init__()
        hidden = int(channels / shape.squeeze)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, hidden, 3, dilation=2**number, padding=2**number),
                GroupNorm(1, hidden),
                nn.GELU(),
                nn.Conv1d(hidden, 2 * channels, 1),
                GroupNorm(1, 2 * channels),
                nn.GLU(dim=1),
                LayerScale(channels, shape.start),
            )
            for number in range(shape.branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``[N, C, L]``; of ``[B, C, F, T]`` each bin is a row."""
        if x.dim() == 4:
            b, channels, bins, t = x.shape
            rows = self._along(x.transpose(1, 2).reshape(b * bins, channels, t))
            return rows.reshape(b, bins, channels, t).transpose(1, 2)
        return self._along(x)

    def _along(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class EncoderLayer(nn.Module):
    """``[B, inputs, F, T] -> [B, outputs, F / stride, T]``, or the same with N in place of F and T.

    Samples are filled up with zeros to a multiple of the stride.

    Args:
        inputs: channels.
        outputs: channels.
        shape: the rest.
        samples: N, of a branch along time.
    """

    def __init__(self, inputs: int, outputs: int, shape: LayerShape, samples: int = 0):
        super().__init__()
        kernel, stride, edge = shape.kernel, shape.stride, shape.kernel // 4
        if shape.frequency:
            self.conv: nn.Module = nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1), (edge, 0))
        else:
            self.conv = nn.Conv1d(inputs, outputs, kernel, stride, edge)
        self.lacking = 0 if shape.frequency else -samples % stride
        self.norm1 = shape.norm(outputs)
        self.rewrite = shape.pointed(outputs) if shape.rewrite else None
        self.norm2 = shape.norm(2 * outputs) if shape.rewrite else nn.Identity()
        self.dconv = shape.residual(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.pad(x, (0, self.lacking)) if self.lacking else x
        x = self.dconv(functional.gelu(self.norm1(self.conv(x))))
        return x if self.rewrite is None else functional.glu(self.norm2(self.rewrite(x)), dim=1)


class DecoderLayer(nn.Module):
    """``[B, inputs, F, T] -> [B, outputs, F * stride, T]``, or ``[B, inputs, L] -> [B, outputs, N]``.

    Args:
        inputs: channels.
        outputs: channels.
        shape: the rest.
        samples: N, of a branch along time.
        last: whether no GELU follows.
    """

    def __init__(self, inputs: int, outputs: int, shape: LayerShape, samples: int = 0, *, last: bool):
        super().__init__()
        kernel, stride = shape.kernel, shape.stride
        edge, self.frequency, self.last = kernel // 4, shape.frequency, last
        self.inside = slice(edge, -edge if shape.frequency else edge + samples)
        if shape.frequency:
            self.conv_tr: nn.Module = nn.ConvTranspose2d(inputs, outputs, (kernel, 1), (stride, 1))
        else:
            self.conv_tr = nn.ConvTranspose1d(inputs, outputs, kernel, stride)
        self.norm2 = shape.norm(outputs)
        self.rewrite = shape.pointed(inputs) if shape.rewrite else None
        self.norm1 = shape.norm(2 * inputs) if shape.rewrite else nn.Identity()
        self.dconv = shape.residual(inputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """What came from below, and what the encoder gave at this level, of one shape."""
        x = x + skip
        if self.rewrite is not None:
            x = functional.glu(self.norm1(self.rewrite(x)), dim=1)
        x = self.norm2(self.conv_tr(self.dconv(x)))
        # A norm counts what is cut off, so it is cut off behind it.
        x = x[:, :, self.inside] if self.frequency else x[..., self.inside]
        return x if self.last else functional.gelu(x)
