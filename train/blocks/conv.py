"""Convolutions between and around the attention blocks, on ``[B, D, T, F]``.

There is no batch normalization: it couples the items of a batch while training, so that a loss curve
depends on how a batch is spread over processes. A residual branch that starts small (SkipInit, De and
Smith 2020) trains as well here, and leaves nothing to fold away at export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BRANCH_INIT = 0.1


class ResidualConv(nn.Module):
    """Two 3x3 convolutions, each after a GELU, added to the input."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = nn.Conv2d(dim, dim, 3, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(BRANCH_INIT)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, T, F] -> [B, D, T, F]``."""
        out: Tensor = x + self.second(functional.gelu(self.first(functional.gelu(x))))
        return out


def fold(x: Tensor, factor: int, layout: str) -> Tensor:
    """Fold bins into planes: ``[B, P, T, F] -> [B, P*factor, T, F/factor]``.

    Args:
        x: planes.
        factor: bins that share one position.
        layout: ``adjacent`` puts neighboring bins into one position, ``contiguous`` bins of equal rank
            in ``factor`` sub-bands (TFSWA-ResUNet, MDX23C).
    """
    b, p, t, f = x.shape
    # Channels go last and come back as a view: convolutions are fastest on memory in that order.
    if layout == "adjacent":
        x = x.reshape(b, p, t, f // factor, factor).permute(0, 2, 3, 1, 4)
    else:
        x = x.reshape(b, p, t, factor, f // factor).permute(0, 2, 4, 1, 3)
    return x.reshape(b, t, f // factor, p * factor).permute(0, 3, 1, 2)


def unfold(x: Tensor, factor: int, layout: str) -> Tensor:
    """Undo ``fold``: ``[B, P*factor, T, F] -> [B, P, T, F*factor]``."""
    b, p, t, f = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b, t, f, p // factor, factor)
    order = (0, 3, 1, 2, 4) if layout == "adjacent" else (0, 3, 1, 4, 2)
    return x.permute(*order).reshape(b, p // factor, t, f * factor)
