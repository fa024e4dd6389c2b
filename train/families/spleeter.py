"""Spleeter: one U-Net of strided convolutions per stem, whose estimates share the mixture out as soft masks.

R. Hennequin et al., Spleeter: a fast and efficient music source separation tool with pre-trained models,
Journal of Open Source Software 5(50), 2020; the U-Net is that of A. Jansson et al., Singing voice separation
with deep U-Net convolutional networks, ISMIR 2017. One of them, for C channels of T frames::

    magnitudes [B, C, T, bins]
      | 5x5 stride 2     filters[0] ------------------------- cat -- 5x5 transposed -- 4x4 -- logits
      |   norm, LeakyReLU                                      |
      | 5x5 stride 2     filters[1] ---------------- cat -- 5x5 transposed
      |   norm, LeakyReLU                             |
      ...                                            ...
      | 5x5 stride 2     filters[5] -- 5x5 transposed

Skips and the bottleneck carry what a convolution gives, before its norm; after a transposed one come ReLU,
norm and dropout. A convolution is padded as TensorFlow does, and a transposed one is cropped alike::

    input        . | 0 1 2 3 4 5 ... n-1 | . .      1 before, 2 after
    output 0    [--------]                          bins 2k-1 ... 2k+3
    output 1          [--------]

In training a norm takes its statistics from the whole batch, so items of a batch meet there; in eval mode
they meet nowhere. The averaged weights of a run are used with the statistics of its last steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec
from tfswa.train.blocks.masking import magnitudes, masked
from tfswa.train.families import Family

TINY = 1e-12  # keeps the root's gradient finite; its root, 1e-6, is 150 dB below a full-scale sine
EPSILON = 1e-3
MOMENTUM = 0.01
SLOPE = 0.2
DROPPED = 3  # layers of the decoder that have dropout


@dataclass(frozen=True)
class SpleeterHyper:
    """Hyper-parameters of Spleeter.

    Attributes:
        bins: how many of the lowest bins the networks see; all stems are silent above.
        filters: channels of the encoder's convolutions; each halves time and frequency.
        dropout: share of the deepest decoder layers' outputs that is dropped in training.
    """

    bins: int = 1024
    filters: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    dropout: float = 0.5


class Down(nn.Module):
    """A 5x5 convolution of stride 2, and the norm and activation that the next one sees it through."""

    def __init__(self, inputs: int, outputs: int, *, last: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 5, stride=2)
        self.norm = nn.Identity() if last else nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, D, T, F] -> [B, D', T/2, F/2]``: the convolution, and what the next one sees."""
        x = self.conv(functional.pad(x, (1, 2, 1, 2)))
        return x, functional.leaky_relu(self.norm(x), SLOPE)


class Up(nn.Module):
    """A transposed 5x5 convolution of stride 2, ReLU, norm, dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D', 2*T, 2*F]``."""
        x = self.conv(x)[..., :-1, :-1]  # of 2n + 3 one is cropped in front, two behind
        up: Tensor = self.dropout(self.norm(functional.relu(x)))
        return up


class UNet(nn.Module):
    """The network of one stem; see this file's drawing.

    Args:
        channels: C.
        hyper: hyper-parameters.
    """

    def __init__(self, channels: int, hyper: SpleeterHyper):
        super().__init__()
        filters = hyper.filters
        self.encoder = nn.ModuleList(
            Down(inputs, outputs, last=level == len(filters))
            for level, (inputs, outputs) in enumerate(itertools.pairwise((channels, *filters)), 1)
        )
        outputs = (*filters[-2::-1], 1)
        inputs = (filters[-1], *(2 * width for width in outputs[:-1]))
        self.decoder = nn.ModuleList(
            Up(inputs[k], outputs[k], hyper.dropout if k < DROPPED else 0.0) for k in range(len(filters))
        )
        self.head = nn.Conv2d(1, channels, 4, padding=3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, bins]``, magnitudes to logits."""
        skips: list[Tensor] = []
        for layer in self.encoder:
            skip, x = layer(x)
            skips.append(skip)
        x = skips.pop()
        for layer in self.decoder:
            x = layer(x)
            if skips:
                x = torch.cat((skips.pop(), x), dim=1)
        logits: Tensor = self.head(x)
        return logits


class Spleeter(nn.Module):
    """A U-Net per stem, and the masks that they share.

    The estimate of stem i is ``e_i = sigmoid(logit_i) * magnitude``, its mask ``e_i^2 / sum_j e_j^2``. The
    magnitude cancels out, so that masks are computed from the logits alone: nothing there is small or large
    enough to leave float16, and silence needs no constant added. (Spleeter adds 1e-10 to the sum.)

    Args:
        spec: contract; fixes C, stems, F.
        hyper: hyper-parameters.

    Raises:
        ConfigError: one stem alone, or T or bins that the strides do not divide.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, hyper: SpleeterHyper):
        super().__init__()
        _check(spec, hyper)
        self.hyper, self.channels = hyper, spec.channels
        self._checkpointing = False
        # The published weights were trained on plain magnitudes: with them the mean is 0, and the deviation
        # is the scale of the contract's planes.
        self.register_buffer("mean", torch.zeros(spec.stft.bins))
        self.register_buffer("std", torch.ones(spec.stft.bins))
        self.unets = nn.ModuleList(UNet(spec.channels, hyper) for _ in spec.stems)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the input normalization: mean and standard deviation of the features per bin, ``[F]``."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-4))

    def features(self, mixture: Tensor) -> Tensor:
        """Return what is normalized: magnitudes, ``[B, C, T, F]``."""
        return magnitudes(mixture, self.channels, TINY)

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        bins = self.hyper.bins
        seen = mixture[..., :bins]
        logits = self._logits((self.features(seen) - self.mean[:bins]) / self.std[:bins])
        # log of sigmoid^2: its softmax over stems is a stem's share of the squares.
        mask = torch.softmax(-2.0 * functional.softplus(-logits), dim=1)  # [B, S, C, T, bins]
        return functional.pad(
            masked(seen, mask[:, :, :, None]), (0, mixture.shape[3] - bins)
        )  # [B, S, 2*C, T, F]

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess hidden features, the mean above ``bins``; see ``SeparationNetwork``."""
        truth = (self.features(mixture) - self.mean) / self.std
        f, bins = truth.shape[3], self.hyper.bins
        guess = self._logits(truth.masked_fill(hidden, 0.0)[..., :bins])
        return functional.pad(guess, (0, f - bins)), truth[:, None]

    @property
    def checkpointing(self) -> bool:
        """Whether the activations of one U-Net at a time are kept, computed again in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        # Computed twice, a batch enters the running statistics twice: two such steps are one of MOMENTUM.
        momentum = 1 - (1 - MOMENTUM) ** 0.5 if on else MOMENTUM
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def _logits(self, x: Tensor) -> Tensor:
        """Normalized magnitudes ``[B, C, T, bins]`` to logits ``[B, S, C, T, bins]``."""
        if self.checkpointing and self.training:
            each = [checkpoint(unet, x, use_reentrant=False) for unet in self.unets]
        else:
            each = [unet(x) for unet in self.unets]
        return torch.stack(each, dim=1)


def _check(spec: ModelSpec, hyper: SpleeterHyper) -> None:
    if len(spec.stems) < 2:
        raise ConfigError(
            f"spleeter shares the mixture out between its stems, {list(spec.stems)} is 1: name 2 or more"
        )
    if not hyper.filters or min(hyper.filters) < 1 or hyper.bins < 1:
        raise ConfigError(
            f"filters {hyper.filters} and bins {hyper.bins} must be above 0, one filter at least"
        )
    if not 0 <= hyper.dropout < 1:
        raise ConfigError(f"dropout {hyper.dropout} must be a share: 0 or above, and below 1")
    if hyper.bins > spec.stft.bins:
        raise ConfigError(f"bins {hyper.bins} are more than the {spec.stft.bins} of the STFT: lower bins")
    step = 2 ** len(hyper.filters)
    for name, value in (("frames of a chunk", spec.chunk.frames), ("bins", hyper.bins)):
        if value % step:
            raise ConfigError(
                f"{value} {name} are not a multiple of {step}, {len(hyper.filters)} filters of stride 2: "
                "change either"
            )


SPLEETER = Family(
    "spleeter",
    "a U-Net of strided convolutions per stem, soft masks, 19.6M",
    SpleeterHyper,
    Spleeter,
    # What strides give depends on where in their grid a frame lies: 448 frames between chunks, a multiple of
    # 64, are one grid. The edges, the least certain, weigh least in a long fade: on 80 s of four
    # songs it scores 4.28 dB for vocals on average, 28 frames of context and a fade of 7 score 4.27 dB.
    chunk=ChunkSpec(frames=512, context=0, fade=63, multiple=64),
)
