"""BS-RoFormer and Mel-Band RoFormer: transformers over bands, along time and along bands in turn.

W.-T. Lu et al., Music Source Separation with Band-Split RoPE Transformer, arXiv:2309.02612, 2023;
J.-C. Wang et al., Mel-Band RoFormer for Music Source Separation, arXiv:2310.01809, 2023::

    planes [B, 2*C, T, F]
      | the bins of each band, RMSNorm, linear
    tokens [B, T, bands, D]
      | depth x (along time, along bands): gated attention, MLP
      | a perceptron for each stem and band, GLU
    complex masks of the bands; of bins in several bands, their mean
      | times the mixture
    stems [B, S, 2*C, T, F]

Bands are side by side (``fixed``), or overlap as filters of a mel bank do (``mel``). T is the graph's own:
the rotations are constants in it. Weights have the names and shapes of the field's state dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.train.blocks.bands import OfAllBands, complex_masked
from tfswa.train.blocks.gated import ChannelAttention, FeedForward, GatedAttention, RmsNorm
from tfswa.train.families import Family

WIDTHS = (*[2] * 24, *[4] * 12, *[12] * 8, *[24] * 8, *[48] * 8, 128, 129)  # of the published bands, in bins


@dataclass(frozen=True)
class RoformerHyper:
    """Hyper-parameters of RoFormers.

    Attributes:
        dim: D, width of a band's token.
        depth: how often time and bands take turns.
        bands: ``fixed``, as ``widths`` says, or ``mel``, as many as ``mel_bands``.
        widths: bins of each fixed band; they add up to F.
        mel_bands: filters of the mel bank.
        heads: attention heads.
        dim_head: channels of a head, even.
        linear_depth: layers of attention among channels in each turn, before time; mostly 0.
        time_depth: layers along time in each turn.
        frequency_depth: layers along bands in each turn.
        mlp_ratio: hidden width of an MLP over D.
        mask_layers: linear layers of a mask's perceptron.
        mask_ratio: its hidden width over D.
        norm: ``final``, one norm behind all turns, or ``each``, one behind every transformer.
        value_residual: whether later turns mix the first one's values into theirs.
        skips: whether what every turn gave is added to the input of all later ones.
        zero_dc: whether the lowest bin of all stems is zero.
    """

    dim: int = 384
    depth: int = 6
    bands: Literal["fixed", "mel"] = "fixed"
    widths: tuple[int, ...] = WIDTHS
    mel_bands: int = 60
    heads: int = 8
    dim_head: int = 64
    linear_depth: int = 0
    time_depth: int = 1
    frequency_depth: int = 1
    mlp_ratio: float = 4.0
    mask_layers: int = 2
    mask_ratio: float = 4.0
    norm: Literal["final", "each"] = "final"
    value_residual: bool = False
    skips: bool = False
    zero_dc: bool = False


class Transformer(nn.Module):
    """Attention and MLP in turn, over sequences ``[N, L, D]``."""

    def __init__(self, hyper: RoformerHyper, depth: int, *, among_channels: bool, mixes_values: bool):
        super().__init__()
        layers = []
        for _ in range(depth):
            attention = (
                ChannelAttention(hyper.dim, hyper.heads, hyper.dim_head)
                if among_channels
                else GatedAttention(hyper.dim, hyper.heads, hyper.dim_head, mixes_values=mixes_values)
            )
            layers.append(nn.ModuleList([attention, FeedForward(hyper.dim, hyper.mlp_ratio)]))
        self.layers = nn.ModuleList(layers)
        self.norm = RmsNorm(hyper.dim) if hyper.norm == "each" else nn.Identity()

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[N, L, D]`` to the same, and the values of its first layer."""
        values: list[Tensor] = []
        for layer in self.layers:
            attention, mlp = cast(nn.ModuleList, layer)
            x, own = attention(x, first)
            values.append(own)
            x = mlp(x)
        return self.norm(x), values[0]


class BandSplit(nn.Module):
    """The numbers of each band to a token: ``[B, T, sum of sizes] -> [B, T, bands, D]``."""

    def __init__(self, sizes: Sequence[int], dim: int):
        super().__init__()
        self.sizes = list(sizes)
        self.to_features = nn.ModuleList(nn.Sequential(RmsNorm(size), nn.Linear(size, dim)) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        bands = zip(torch.split(x, self.sizes, dim=-1), self.to_features, strict=True)
        return torch.stack([to_token(band) for band, to_token in bands], dim=2)


class MaskEstimator(nn.Module):
    """A token to the masks of its band: ``[B, T, bands, D] -> [B, T, sum of sizes]``."""

    def __init__(self, sizes: Sequence[int], hyper: RoformerHyper):
        super().__init__()
        hidden = int(hyper.dim * hyper.mask_ratio)
        self.to_freqs = nn.ModuleList(
            nn.Sequential(_perceptron(hyper.dim, hidden, 2 * size, hyper.mask_layers), nn.GLU(dim=-1))
            for size in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([of(x[:, :, band]) for band, of in enumerate(self.to_freqs)], dim=-1)


class Roformer(nn.Module):
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

    def __init__(self, spec: ModelSpec, hyper: RoformerHyper):
        super().__init__()
        members = _members(spec, hyper)
        self.hyper, self.checkpointing = hyper, False
        self.register_buffer("places", torch.tensor(np.concatenate(members)), persistent=False)
        self.of_all_bands = OfAllBands(members, spec.stft.bins) if hyper.bands == "mel" else nn.Identity()
        sizes = [2 * spec.channels * len(bins) for bins in members]
        self.band_split = BandSplit(sizes, hyper.dim)
        turns = []
        for turn in range(hyper.depth):
            mixes = hyper.value_residual and turn > 0
            kinds = [(hyper.linear_depth, True)] if hyper.linear_depth else []
            kinds += [(hyper.time_depth, False), (hyper.frequency_depth, False)]
            turns.append(
                nn.ModuleList(
                    Transformer(hyper, depth, among_channels=among, mixes_values=mixes and not among)
                    for depth, among in kinds
                )
            )
        self.layers = nn.ModuleList(turns)
        self.final_norm = RmsNorm(hyper.dim) if hyper.norm == "final" else nn.Identity()
        self.mask_estimators = nn.ModuleList(MaskEstimator(sizes, hyper) for _ in spec.outputs)

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        b, planes, t, _ = mixture.shape
        x = mixture.permute(0, 2, 3, 1)  # [B, T, F, 2*C]
        x = x if self.hyper.bands == "fixed" else x.index_select(2, self.places)
        x = self._turns(self.band_split(x.reshape(b, t, -1)))
        masks = torch.stack([of(x) for of in self.mask_estimators], dim=1)  # [B, S, T, sum of sizes]
        masks = self.of_all_bands(masks.reshape(b, -1, t, self.places.shape[0], planes))
        return self._masked(mixture, masks.permute(0, 1, 4, 2, 3))

    def _turns(self, x: Tensor) -> Tensor:
        """Tokens ``[B, T, bands, D]`` to the same."""
        first: list[Tensor | None] = [None] * len(cast(nn.ModuleList, self.layers[0]))
        kept: list[Tensor] = []
        for layer in self.layers:
            turn = cast(nn.ModuleList, layer)
            for other in kept:
                x = x + other
            for number, transformer in enumerate(turn):
                along = number - len(turn) + 2  # 0: time, 1: bands, -1: all places, among channels
                x, values = self._along(transformer, x, first[number], along)
                first[number] = values if first[number] is None else first[number]
            if self.hyper.skips:
                kept.append(x)
        out: Tensor = self.final_norm(x)
        return out

    def _along(
        self, transformer: nn.Module, x: Tensor, first: Tensor | None, along: int
    ) -> tuple[Tensor, Tensor]:
        b, t, bands, dim = x.shape
        if along < 0:
            rows = x.reshape(b, t * bands, dim)
        else:
            rows = (x.transpose(1, 2) if along == 0 else x).flatten(0, 1)
        if self.checkpointing and self.training:
            rows, values = checkpoint(transformer, rows, first, use_reentrant=False)
        else:
            rows, values = transformer(rows, first)
        if along == 0:
            return rows.reshape(b, bands, t, dim).transpose(1, 2), values
        return rows.reshape(b, t, bands, dim), values

    def _masked(self, mixture: Tensor, masks: Tensor) -> Tensor:
        """The mixture times complex masks ``[B, S, 2*C, T, F]``."""
        found = complex_masked(mixture, masks)
        if not self.hyper.zero_dc:
            return found
        return functional.pad(found[..., 1:], (1, 0))


def _perceptron(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def _members(spec: ModelSpec, hyper: RoformerHyper) -> list[NDArray[np.int64]]:
    """The bins of each band.

    Raises:
        ConfigError: hyper-parameters out of range, or bands that do not suit the transform.
    """
    _check(spec, hyper)
    stft = spec.stft
    if hyper.bands == "mel":
        return mel_members(stft, hyper.mel_bands)
    if sum(hyper.widths) != stft.bins:
        raise ConfigError(
            f"widths add up to {sum(hyper.widths)} bins, the network sees {stft.bins}: change either"
        )
    ends = np.cumsum((0, *hyper.widths))
    return [np.arange(start, end) for start, end in pairwise(ends)]


def mel_members(stft: StftSpec, bands: int) -> list[NDArray[np.int64]]:
    """The bins that each filter of a mel bank from 0 Hz to half the rate hears.

    Mels as in M. Slaney, Auditory Toolbox, 1998: straight up to 1 kHz, logarithmic above. A filter rises from
    the center of the one below and falls to that of the one above; at both it is silent. The lowest bin is
    given to the first filter, the highest to the last.

    Raises:
        ConfigError: a filter that hears no bin, or the network does not see all bins.
    """
    if (stft.first_bin, stft.bins) != (0, stft.all_bins):
        raise ConfigError(f"mel bands are of all {stft.all_bins} bins, the network sees {stft.bins} of them")
    straight, step, knee = 200 / 3, math.log(6.4) / 27, 1000.0
    top = stft.sample_rate / 2
    highest = knee / straight + math.log(top / knee) / step if top >= knee else top / straight
    mels = np.linspace(0.0, highest, bands + 2)
    edges = np.where(mels < knee / straight, mels * straight, knee * np.exp(step * (mels - knee / straight)))
    hertz = np.linspace(0.0, top, stft.all_bins)
    hears = (hertz > edges[:-2, None]) & (hertz < edges[2:, None])
    hears[0, 0] = hears[-1, -1] = True
    for band, row in enumerate(hears):
        if not row.any():
            raise ConfigError(
                f"mel band {band} of {bands} hears no bin of n_fft {stft.n_fft}: use fewer bands"
            )
    return [np.flatnonzero(row) for row in hears]


def _check(spec: ModelSpec, hyper: RoformerHyper) -> None:
    for name in ("dim", "depth", "mel_bands", "heads", "dim_head", "time_depth", "frequency_depth"):
        if getattr(hyper, name) < 1:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be 1 or above")
    for name in ("mlp_ratio", "mask_layers", "mask_ratio"):
        if not getattr(hyper, name) > 0:
            raise ConfigError(f"{name} {getattr(hyper, name)} must be above 0")
    if hyper.linear_depth < 0:
        raise ConfigError(f"linear_depth {hyper.linear_depth} must be 0 or above")
    if hyper.dim_head % 2:
        raise ConfigError(f"dim_head {hyper.dim_head} must be even: places turn pairs of channels")
    if not hyper.widths or min(hyper.widths) < 1:
        raise ConfigError(f"widths {list(hyper.widths)} must each be 1 or above")


ROFORMER = Family(
    "roformer",
    "BS-RoFormer and Mel-Band RoFormer: transformers over bands",
    RoformerHyper,
    Roformer,
    chunk=ChunkSpec(frames=801, context=80, fade=40, multiple=1),
    stft=StftSpec(n_fft=2048, hop=441, padding="reflect", seen=(0, 1025)),
    published_stems=("vocals",),
)
