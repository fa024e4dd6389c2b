"""Recurrent layers on ``[T, B, D]``, and their operator in exported graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_whole = ContextVar("_whole", default=False)


def heard(layers: nn.LSTM | nn.GRU, x: Tensor) -> Tensor:
    """What bidirectional LSTMs or GRUs hear in frames, ``[T, B, D] -> [T, B, 2*H]``.

    On the device ``meta``, where shapes and operations are counted, torch takes them frame by frame, which is
    minutes. There the products of all frames are one: as many operations, and no numbers in either.
    """
    if _whole.get():
        found: Tensor = recurrent(x, [w for each in layers.all_weights for w in each], layers.mode)
        return found
    if x.device.type != "meta":
        out: Tensor = layers(x)[0]
        return out
    directions = [weights[:2] for weights in layers.all_weights]
    for layer in range(layers.num_layers):
        last = x.new_zeros(*x.shape[:2], layers.hidden_size)
        both = [
            functional.linear(x, new) + functional.linear(last, old)  # all gates
            for new, old in directions[2 * layer : 2 * layer + 2]
        ]
        x = torch.cat([gates[..., : layers.hidden_size] for gates in both], dim=-1)
    return x


@contextmanager
def whole_layers() -> Iterator[None]:
    """Within, ``heard`` calls ``recurrent``, which a graph can hold as it is.

    ``torch.export`` follows torch's own layers frame by frame to learn what shape they give: a minute for
    each 1500 frames (torch 2.13). Where the batch is free, ``torch.onnx`` makes loops of them too.
    """
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)


@torch.library.custom_op("tfswa::recurrent", mutates_args=())
def recurrent(x: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    """Bidirectional layers, one after another, as one operator.

    Args:
        x: ``[T, B, D]``.
        weights: of each layer and direction in turn four, as torch has them: of the input, of the state, and
            their biases.
        mode: ``LSTM`` or ``GRU``.

    Returns:
        ``[T, B, 2*H]``.
    """
    count, hidden = len(weights) // 8, weights[1].shape[1]
    start = x.new_zeros(2 * count, x.shape[1], hidden)
    told = (weights, True, count, 0.0, False, True, False)
    found: Tensor = (
        torch.lstm(x, (start, start), *told)[0] if mode == "LSTM" else torch.gru(x, start, *told)[0]
    )
    return found


@recurrent.register_fake
def _shape(x: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    return x.new_empty(*x.shape[:2], 2 * weights[1].shape[1])
