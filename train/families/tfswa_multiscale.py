"""TFSWA-UNet whose heads along time and along frequency attend at several scales.

The network is that of ``tfswa_unet.py``, weights included; only what TSA and FSA attend to is another. Heads
come in groups of equal size, one a scale. At scale s, keys and values are averaged over s neighbors::

    heads 0, 1    scale 1    keys  k0 k1 k2 k3 k4 k5 k6 k7     every place, exactly
    heads 2, 3    scale 4    keys  [   mean   ] [   mean   ]    the surroundings, for a quarter of the scores

Keys are averaged after their rotation, so the score of a group is the mean of the scores of its places, and
depends on differences of frames alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.model.spec import ModelSpec
from tfswa.train.blocks.attention import AxialAttention, mix_all
from tfswa.train.families import Family
from tfswa.train.families.tfswa_unet import TfswaHyper, TfswaUnet


@dataclass(frozen=True)
class TfswaMultiscaleHyper(TfswaHyper):
    """Hyper-parameters of TFSWA-UNet, and the scales of its axial attention.

    Attributes:
        scales: places that a key and a value are averaged over, one a group of heads; divisors of ``window``,
            so that they divide every length. Heads of axial levels are a multiple of their number.
    """

    scales: tuple[int, ...] = (1, 4)


@dataclass(frozen=True)
class MixScales:
    """Attention of groups of heads, each with keys and values at a scale of its own.

    Attributes:
        scales: one a group.
    """

    scales: tuple[int, ...]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Three of ``[N, heads, L, D/heads]`` to the same shape; queries are scaled already."""
        groups = zip(*(x.chunk(len(self.scales), dim=1) for x in (query, key, value)), strict=True)
        mixed = [
            mix_all(q, averaged(k, scale), averaged(v, scale))
            for scale, (q, k, v) in zip(self.scales, groups, strict=True)
        ]
        return torch.cat(mixed, dim=1)


class TfswaMultiscale(TfswaUnet):
    """TFSWA-UNet with ``MixScales`` in every TSA and FSA, those of ``fusion = "cross"`` included.

    Raises:
        ConfigError: what ``TfswaUnet`` refuses, scales that do not divide the window, or heads that are no
            multiple of the number of scales.
    """

    def __init__(self, spec: ModelSpec, hyper: TfswaMultiscaleHyper):
        super().__init__(spec, hyper)
        _check(hyper)
        for module in self.modules():
            if isinstance(module, AxialAttention):
                module.mix = MixScales(hyper.scales)


def averaged(x: Tensor, scale: int) -> Tensor:
    """Means of ``scale`` neighbors: ``[N, heads, L, D] -> [N, heads, L/scale, D]``."""
    if scale == 1:
        return x
    n, heads, length, d = x.shape
    return x.reshape(n, heads, length // scale, scale, d).mean(dim=3)


def _check(hyper: TfswaMultiscaleHyper) -> None:
    scales = hyper.scales
    if not scales or any(scale < 1 or hyper.window % scale for scale in scales):
        raise ConfigError(f"scales {scales} must be divisors of window {hyper.window}: change either")
    for level, heads in enumerate(hyper.heads):
        if level >= hyper.axial_from and heads % len(scales):
            raise ConfigError(
                f"{heads} heads at level {level} cannot be shared among {len(scales)} scales {scales}: "
                "change either, or raise axial_from"
            )


TFSWA_MULTISCALE = Family(
    "tfswa_multiscale",
    "tfswa_unet whose heads attend at scales 1 and 4, 15.0M",
    TfswaMultiscaleHyper,
    TfswaMultiscale,
)
