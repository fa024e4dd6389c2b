"""Bandit: musical bands that overlap, recurrent layers along time and along bands in turn.

K. N. Watcharasupat et al., A Generalized Bandsplit Neural Network for Cinematic Audio Source Separation, IEEE
Open Journal of Signal Processing 5, 2024, arXiv:2309.02539. Each channel is heard by itself::

    planes [B, 2*C, T, F]
      | the bins of each band, norm, linear
    tokens [T, B*C, bands, D]
      | depth x (along time, along bands): norm, GRU or LSTM, linear, added
      | of each stem and band: norm, linear, tanh, linear, gates
    complex masks of the bands; of bins in several bands, their mean or their sum
      | times the mixture
    stems [B, S, 2*C, T, F]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.bands import OfAllBands, complex_masked
from tfswa.train.blocks.recurrent import heard
from tfswa.train.families import Family

LOWEST_HERTZ = 440.0 * 2.0 ** (-69 / 12)  # no band has its center below this note, the lowest of MIDI


@dataclass(frozen=True)
class BanditHyper:
    """Hyper-parameters of Bandit.

    Attributes:
        dim: D, width of a band's token.
        depth: how often time and bands take turns.
        bands: musical bands.
        cell: the recurrent layers.
        hidden: their width in each direction.
        mask_hidden: width within a mask's perceptron.
        order: how the numbers of a band lie, ``planes`` (all real parts, then all imaginary ones; version 1)
            or ``pairs`` (bin by bin; version 2).
        mean: whether masks of a bin in several bands are their mean; their sum otherwise.
    """

    dim: int = 128
    depth: int = 8
    bands: int = 64
    cell: Literal["gru", "lstm"] = "gru"
    hidden: int = 256
    mask_hidden: int = 512
    order: Literal["planes", "pairs"] = "planes"
    mean: bool = True


class Recurrent(nn.Module):
    """A recurrent layer along the first axis, added to its input: ``[L, N, M, D] -> [L, N, M, D]``."""

    def __init__(self, hyper: BanditHyper):
        super().__init__()
        layer = nn.GRU if hyper.cell == "gru" else nn.LSTM
        self.norm = nn.LayerNorm(hyper.dim)
        self.rnn = layer(hyper.dim, hyper.hidden, bidirectional=True)
        self.fc = nn.Linear(2 * hyper.hidden, hyper.dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        length, _, others, dim = x.shape
        found = self.fc(heard(self.rnn, self.norm(x).reshape(length, -1, dim)))
        return x + cast(Tensor, found).reshape(length, -1, others, dim)


class Bandit(nn.Module):
    """See this file's drawing.

    Args:
        spec: contract; fixes C, T, F and the stems.
        hyper: hyper-parameters.

    Attributes:
        checkpointing: whether a training step keeps the inputs of the turns alone, and computes them again.

    Raises:
        ConfigError: numbers that do not suit each other.
    """

    places: Tensor

    def __init__(self, spec: ModelSpec, hyper: BanditHyper):
        super().__init__()
        _check(spec, hyper)
        members = musical_members(spec.stft, hyper.bands)
        self.channels, self.checkpointing = spec.channels, False
        self.sizes = [2 * len(bins) for bins in members]
        self.register_buffer("places", _places(members, hyper.order), persistent=False)
        self.of_all_bands = OfAllBands(members, spec.stft.bins, mean=hyper.mean)
        self.band_split = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hyper.dim)) for size in self.sizes
        )
        self.turns = nn.ModuleList(Recurrent(hyper) for _ in range(2 * hyper.depth))
        self.masks = nn.ModuleList(
            nn.ModuleList(_perceptron(hyper, size) for size in self.sizes) for _ in spec.outputs
        )

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, _, t, f = mixture.shape
        pairs = mixture.reshape(b, self.channels, 2, t, f).permute(3, 0, 1, 4, 2)
        numbers = pairs.reshape(t, -1, 2 * f).index_select(2, self.places)
        bands = zip(torch.split(numbers, self.sizes, dim=2), self.band_split, strict=True)
        x = torch.stack([to_token(band) for band, to_token in bands], dim=2)  # [T, B*C, bands, D]
        for turn in self.turns:
            again = self.checkpointing and self.training
            x = checkpoint(turn, x, use_reentrant=False) if again else turn(x)
            x = x.transpose(0, 2)
        masks = torch.stack([self._masks(of, x) for of in self.masks], dim=2)  # [T, B*C, S, F, 2]
        masks = masks.reshape(t, b, self.channels, -1, f, 2).permute(1, 3, 2, 5, 0, 4)
        return complex_masked(mixture, masks.reshape(b, -1, 2 * self.channels, t, f))

    def _masks(self, of_bands: nn.Module, x: Tensor) -> Tensor:
        """Of one stem, of tokens ``[T, N, bands, D]``: ``[T, N, F, 2]``."""
        each = [of(x[:, :, band]) for band, of in enumerate(cast(nn.ModuleList, of_bands))]
        pairs = torch.cat(each, dim=2).reshape(x.shape[0], -1, sum(self.sizes) // 2, 2)
        found: Tensor = self.of_all_bands(pairs)
        return found


def _perceptron(hyper: BanditHyper, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(hyper.dim),
        nn.Linear(hyper.dim, hyper.mask_hidden),
        nn.Tanh(),
        nn.Linear(hyper.mask_hidden, 2 * size),
        nn.GLU(dim=-1),
    )


def _places(members: Sequence[NDArray[np.int64]], order: str) -> Tensor:
    """Of all numbers of all bands, where each lies among ``F`` pairs."""
    pairs = [2 * bins[:, None] + np.arange(2) for bins in members]  # [bins, 2]
    return torch.tensor(np.concatenate([(one if order == "pairs" else one.T).ravel() for one in pairs]))


def musical_members(stft: StftSpec, bands: int) -> list[NDArray[np.int64]]:
    """The bins of each musical band.

    Centers are equally many notes apart, from bin 1 to half the rate, and a band reaches one part of as many
    of the same interval to both sides, so that no bin is between bands. The lowest takes all bins below, the
    highest all above.

    Raises:
        ConfigError: the network does not see all bins.
    """
    if (stft.first_bin, stft.bins) != (0, stft.all_bins):
        raise ConfigError(
            f"musical bands are of all {stft.all_bins} bins, the network sees {stft.bins} of them"
        )
    highest = stft.n_fft / 2
    lowest = max(1.0, LOWEST_HERTZ * stft.n_fft / stft.sample_rate)
    centers = 2.0 ** np.linspace(math.log2(lowest), math.log2(highest), bands)
    reach = 2.0 ** (math.log2(highest) / bands)
    starts = np.floor(centers / reach).astype(int)
    ends = np.minimum(np.ceil(centers * reach).astype(int) + 1, stft.all_bins)
    starts[0], ends[-1] = 0, stft.all_bins
    return [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]


def _check(spec: ModelSpec, hyper: BanditHyper) -> None:
    for name in ("dim", "depth", "bands", "hidden", "mask_hidden"):
        if getattr(hyper, name) < 1:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 1 or above")
    if hyper.bands > spec.stft.all_bins:
        raise ConfigError(
            f"bands {hyper.bands} are more than the {spec.stft.all_bins} bins of n_fft {spec.stft.n_fft}: "
            "lower bands"
        )


BANDIT = Family(
    "bandit",
    "Bandit: musical bands that overlap, GRUs along time and bands: speech, music, effects",
    BanditHyper,
    Bandit,
    chunk=ChunkSpec(frames=517, context=51, fade=25, multiple=1),
    stft=StftSpec(n_fft=2048, hop=512, scale=(3 / 8 * 2048) ** -0.5, padding="zero", seen=(0, 1025)),
    published=37_022_688,
    published_stems=("speech", "music", "effects"),
)
