"""Recurrent layers on ``[T, B, D]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def heard(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """What bidirectional LSTMs hear in frames, ``[T, B, D] -> [T, B, 2*H]``.

    On the device ``meta``, where shapes and operations are counted, torch takes them frame by frame, which is
    minutes. There the products of all frames are one: as many operations, and no numbers in either.
    """
    if x.device.type != "meta":
        out: Tensor = lstm(x)[0]
        return out
    directions = [weights[:2] for weights in lstm.all_weights]
    for layer in range(lstm.num_layers):
        last = x.new_zeros(*x.shape[:2], lstm.hidden_size)
        both = [
            functional.linear(x, new) + functional.linear(last, old)  # the four gates
            for new, old in directions[2 * layer : 2 * layer + 2]
        ]
        x = torch.cat([gates[..., : lstm.hidden_size] for gates in both], dim=-1)
    return x
