"""Open-Unmix: recurrent networks on magnitudes, one for each stem, whose masks are not tied to each other.

F.-R. Stöter et al., Open-Unmix - A Reference Implementation for Music Source Separation, Journal of Open
Source Software 4(41), 2019. One of them, on unscaled magnitudes::

    magnitudes [B, C, T, F] -----------------------------------------------------------.
      | of the lowest bins: + input_mean, x input_scale                                |
      | linear, norm, tanh ----------------- cat -- linear, norm, ReLU                 |
      |                                       |       | linear, norm                   |
      '-- 3 bidirectional LSTMs over frames --'       | x output_scale + output_mean   |
                                                    ReLU, the mask ------------------- x -- of the stem

A mask is never below 0 and may be above 1; the phase is the mixture's. Weights have the names, shapes and
units of the package ``openunmix``. Its transform has no scale, so its magnitudes are those of the contract's
planes divided by ``stft.scale``. What it does after its networks, multichannel Wiener filtering, is not done
here.

In training the norms take their statistics from the whole batch, so items of a batch meet there; in eval mode
they meet nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.masking import magnitudes, masked
from tfswa.train.blocks.recurrent import heard
from tfswa.train.families import Family

TINY = 1e-12  # keeps the root's gradient finite; its root, 1e-6, is 150 dB below a full-scale sine
LEAST = 1e-4  # deviation that a bin is divided by, over the largest one


@dataclass(frozen=True)
class OpenUnmixHyper:
    """Hyper-parameters of Open-Unmix.

    Attributes:
        hidden: width of the layers, even: half of it in each direction of an LSTM.
        layers: LSTMs, one after another.
        bins: how many of the lowest bins a network sees, 1487 up to 16 kHz; it gives a mask for all.
        dropout: share of an LSTM's outputs that the next one does not see in training.
    """

    hidden: int = 512
    layers: int = 3
    bins: int = 1487
    dropout: float = 0.4


class Net(nn.Module):
    """The network of one stem; see this file's drawing. Its parameters are called as in the package.

    Args:
        channels: C.
        bins: F.
        hyper: hyper-parameters.
    """

    def __init__(self, channels: int, bins: int, hyper: OpenUnmixHyper):
        super().__init__()
        hidden = hyper.hidden
        self.input_mean = nn.Parameter(torch.zeros(hyper.bins))
        self.input_scale = nn.Parameter(torch.ones(hyper.bins))
        self.output_scale = nn.Parameter(torch.ones(bins))
        self.output_mean = nn.Parameter(torch.ones(bins))
        self.fc1 = nn.Linear(channels * hyper.bins, hidden, bias=False)  # a norm comes next, as below
        self.bn1 = nn.BatchNorm1d(hidden)
        dropout = hyper.dropout if hyper.layers > 1 else 0.0
        self.lstm = nn.LSTM(hidden, hidden // 2, hyper.layers, bidirectional=True, dropout=dropout)
        self.fc2 = nn.Linear(2 * hidden, hidden, bias=False)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.fc3 = nn.Linear(hidden, channels * bins, bias=False)
        self.bn3 = nn.BatchNorm1d(channels * bins)

    def normalized(self, x: Tensor) -> Tensor:
        """Unscaled magnitudes of the ``bins`` as the network hears them, ``[B, C, T, bins]`` to the same."""
        return (x + self.input_mean) * self.input_scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalized magnitudes ``[B, C, T, bins]`` to the mask before its ReLU, ``[B, C, T, F]``."""
        b, channels, t, bins = x.shape
        rows = x.permute(2, 0, 1, 3).reshape(t * b, channels * bins)  # frames first, as the LSTMs want them
        first = torch.tanh(self.bn1(self.fc1(rows)))
        context = heard(self.lstm, first.reshape(t, b, -1)).reshape(t * b, -1)
        rows = torch.relu(self.bn2(self.fc2(torch.cat((first, context), dim=1))))
        mask = self.bn3(self.fc3(rows)).reshape(t, b, channels, -1)
        out: Tensor = (mask * self.output_scale + self.output_mean).permute(1, 2, 0, 3)
        return out


class OpenUnmix(nn.Module):
    """A network per stem, and the masks that they give.

    Args:
        spec: contract; fixes C, stems, F and the scale of its planes.
        hyper: hyper-parameters.

    Raises:
        ConfigError: numbers out of range.
    """

    statistics = "nets.0.input_mean"

    def __init__(self, spec: ModelSpec, hyper: OpenUnmixHyper):
        super().__init__()
        _check(spec, hyper)
        self.hyper, self.channels, self.scale = hyper, spec.channels, spec.stft.scale
        self.nets = nn.ModuleList(Net(spec.channels, spec.stft.bins, hyper) for _ in spec.outputs)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the input normalization: mean and standard deviation of the features per bin, ``[F]``.

        Both are learned from there on, as all weights are.
        """
        bins = self.hyper.bins
        std = std.clamp_min(max(LEAST * float(std.max()), LEAST))
        for net in self._each():
            net.input_mean.copy_(-mean[:bins])
            net.input_scale.copy_(1 / std[:bins])

    def features(self, mixture: Tensor) -> Tensor:
        """Return what is normalized: unscaled magnitudes, ``[B, C, T, F]``."""
        return magnitudes(mixture, self.channels, TINY) / self.scale

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        seen = self.features(mixture[..., : self.hyper.bins])
        masks = [net(net.normalized(seen)) for net in self._each()]
        return masked(mixture, torch.relu(torch.stack(masks, dim=1))[:, :, :, None])

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Guess hidden features, of which only the ``bins`` lowest are seen; see ``SeparationNetwork``.

        Features are normalized as for the first stem, and are 0 above ``bins``.
        """
        bins, nets = self.hyper.bins, self._each()
        seen, blind = self.features(mixture[..., :bins]), hidden[..., :bins]
        truth = nets[0].normalized(seen).detach()
        guess = [net(net.normalized(seen).masked_fill(blind, 0.0)) for net in nets]
        above = (0, mixture.shape[3] - bins)
        return torch.stack(guess, dim=1), nn.functional.pad(truth, above)[:, None]

    def _each(self) -> list[Net]:
        return cast(list[Net], list(self.nets))


def in_the_package(name: str, spec: ModelSpec) -> str:
    """The name that a weight has in state dictionaries of ``openunmix``, of ours.

    Of one stem these are a target's own; of several they are those of ``Separator.target_models``.
    """
    _, index, rest = name.split(".", 2)
    return rest if len(spec.outputs) == 1 else f"{spec.outputs[int(index)]}.{rest}"


def _check(spec: ModelSpec, hyper: OpenUnmixHyper) -> None:
    if hyper.hidden < 2 or hyper.hidden % 2:
        raise ConfigError(f"hidden {hyper.hidden} must be even and above 0: half of it is for each direction")
    if hyper.layers < 1 or hyper.bins < 1:
        raise ConfigError(f"layers {hyper.layers} and bins {hyper.bins} must be above 0")
    if not 0 <= hyper.dropout < 1:
        raise ConfigError(f"dropout {hyper.dropout} must be a share: 0 or above, and below 1")
    if hyper.bins > spec.stft.bins:
        raise ConfigError(f"bins {hyper.bins} are more than the {spec.stft.bins} of the STFT: lower bins")


OPEN_UNMIX = Family(
    "open_unmix",
    "bidirectional LSTMs on magnitudes, one network for each stem, 8.9M a stem",
    OpenUnmixHyper,
    OpenUnmix,
    # T may be anything: a longer chunk lets the LSTMs hear more, and the package lets them hear a whole song.
    chunk=ChunkSpec(frames=512, context=32, fade=16, multiple=1),
    stft=StftSpec(padding="reflect", seen=(0, 2049)),
    published=8_893_348,
    published_stems=("vocals",),
    elsewhere=in_the_package,
)
