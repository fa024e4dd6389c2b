"""That the items of a batch never meet in a network."""

from __future__ import annotations

from typing import Any


def assert_items_never_meet(network: Any, batch: Any, other: Any) -> None:
    """The second of three items comes out the same beside other items, and alone.

    In float64: kernels are chosen by the batch's size and by the processor, and a network of large random
    weights makes of their float32 rounding what it likes, while a true meeting is as large as it was.

    Args:
        network: gives ``[3, ...]`` of ``[3, ...]``.
        batch: its input, ``[3, ...]``.
        other: what takes the third item's place, ``[...]``; the first becomes 100 throughout.
    """
    import torch

    network, batch = network.double(), batch.double()
    neighbors = batch.clone()
    neighbors[0], neighbors[2] = 100.0, other
    with torch.no_grad():
        one, two, alone = network(batch)[1], network(neighbors)[1], network(batch[1:2])[0]
    assert one.abs().max() > 0.01
    torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(one, alone, atol=1e-9, rtol=1e-9)
