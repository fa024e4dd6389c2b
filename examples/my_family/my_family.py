"""A network family of one's own: a mask from a few convolutions. Replace ``MyNetwork`` by what you have."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tfswa.runtime.model.spec import ChunkSpec, ModelSpec
from tfswa.train.families import Family


@dataclass(frozen=True)
class MyHyper:
    """Hyper-parameters with their defaults; a configuration sets them as ``model.hyper.width=32``."""

    width: int = 8


class MyNetwork(nn.Module):
    """Planes of a mixture ``[B, 2*C, T, F]`` to planes of stems ``[B, S, 2*C, T, F]``."""

    def __init__(self, spec: ModelSpec, hyper: MyHyper) -> None:
        super().__init__()
        self.stems = len(spec.outputs)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * spec.channels, hyper.width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hyper.width, self.stems, 3, padding=1),
        )

    def forward(self, mixture: Tensor) -> Tensor:
        mask = self.layers(mixture).sigmoid()  # [B, S, T, F]
        return mixture[:, None] * mask[:, :, None]


MY_FAMILY = Family(
    name="my_family",
    summary="a mask from two convolutions",
    hyper=MyHyper,
    network=MyNetwork,
    chunk=ChunkSpec(frames=128, context=8, fade=8, multiple=8),
)
