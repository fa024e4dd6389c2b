"""The exponential moving average of the weights, which is what is validated and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Average of a network's parameters, in the form they have in this process (whole, or a shard).

    Args:
        network: whose parameters are averaged, from their present values on.
        decay: of the average per step; 0 keeps the parameters themselves.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._parameters = list(network.parameters())
        self._means = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step number ``step`` (from 0)."""
        # Early on the average forgets faster, or it would hold the untrained weights for long.
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
            self._means, self._parameters, 0
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the parameters' present values."""
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.copy_(parameter)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the average for the length of a block, bit for bit back afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)
