"""Attention weights of a network, whatever its family: where every attention module looks.

Fused attention never forms its weights. Here they are formed beside it: while the network runs, every call
of ``scaled_dot_product_attention`` is seen by a TorchFunctionMode, its weights are computed once more in
slices, and averaged at once. What the network computes is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SLICE = 1 << 18  # numbers of an array at once: 1 MB in float32. Larger ones fragment the heap by 100 MB

Maps = dict[str, NDArray[np.float32]]


def attention_maps(network: nn.Module, *given: Tensor) -> Maps:
    """Attention weights of every module that calls ``scaled_dot_product_attention``.

    Args:
        network: in eval mode, not compiled; its output and its state stay as they are.
        given: what it takes, of one item, on its device: planes ``[1, 2*C, T, F]``, and what else there is.

    Returns:
        Per module the mean weights over items, heads and bins, frames or windows: float32 ``[L, S]``, row
        i says how much of each place place i takes in; rows sum to 1. By name of the module, in the order
        of the calls; a second call of the same module is ``<name>.2``. Of TFSWA-UNet: ``....time [T, T]``
        (TSA), ``....frequency [F, F]`` (FSA), ``....window [w^2, w^2]`` (Swin), of the level's T and F.
        Empty where attention is written out otherwise (nn.MultiheadAttention included).
    """
    maps: Maps = {}
    with torch.no_grad(), _running(network) as names, _Listener(names, maps):
        network(*given)
    return maps


class _Listener(TorchFunctionMode):
    """Puts the weights of each attention call into ``maps``, under the innermost running module's name."""

    def __init__(self, names: Sequence[str], maps: Maps):
        super().__init__()
        self.names, self.maps = names, maps

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            found = _mean_weights(*args, **kwargs)
            self.maps[_free(self.names[-1], self.maps)] = found.float().cpu().numpy()
        return func(*args, **kwargs)


@contextmanager
def _running(network: nn.Module) -> Iterator[list[str]]:
    """Yield a list that holds the names of the modules that run, innermost last."""
    names: list[str] = []
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            own = name or type(network).__name__

            def enter(module: nn.Module, inputs: Any, own: str = own) -> None:
                names.append(own)

            def leave(module: nn.Module, inputs: Any, output: Any) -> None:
                names.pop()

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield names


def _free(name: str, taken: Mapping[str, Any]) -> str:
    if name not in taken:
        return name
    return next(f"{name}.{n}" for n in range(2, len(taken) + 3) if f"{name}.{n}" not in taken)


def _mean_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Weights that a call with these arguments has, but for dropout; ``[L, S]`` float64.

    They are the mean over all leading axes of ``query [..., L, D]`` and ``key [..., S, D]``.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    length, places = query.shape[-2], key.shape[-2]
    lead: torch.Size = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])  # type: ignore[no-untyped-call]
    query, key = (x.expand(*lead, *x.shape[-2:]) for x in (query, key))
    if is_causal:
        attn_mask = torch.ones(length, places, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*lead, length, places)  # a view
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    total = torch.zeros(length, places, dtype=torch.float64, device=query.device)
    count = math.prod(lead)
    size = max(1, SLICE // (length * max(places, query.shape[-1])))
    for start in range(0, count, size):
        flat = torch.arange(start, min(start + size, count), device=query.device)
        index = torch.unravel_index(flat, lead) if lead else ()
        scores = (query[index].float() * factor) @ key[index].float().mT  # [n, L, S]
        if attn_mask is not None:
            mask = attn_mask[index]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill_(~mask, -math.inf)
            else:
                scores += mask
            del mask
        total += scores.softmax(dim=-1).reshape(-1, length, places).sum(dim=0, dtype=torch.float64)
    mean: Tensor = total / count
    return mean
