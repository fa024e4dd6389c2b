"""What of a network is trained: all, all but what is frozen, or low-rank changes of linear layers alone.

E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022::

    a linear layer's weight   W [out, in]
    in training               W + B A, of which B [out, rank] and A [rank, in] alone learn
    in the bundle             their sum, under the name of W: the family is the same
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import ModelConfig
from tfswa.train.strict import suggestion

WEIGHT = "weight"
_BASE = f".parametrizations.{WEIGHT}.original"
_CHANGE = f".parametrizations.{WEIGHT}.0."
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class LowRankChange(nn.Module):
    """A weight and what is learned beside it: ``[out, in]`` to the sum; nothing at first.

    Args:
        weight: of a linear layer.
        rank: of the change.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out, inputs = weight.shape
        self.a = nn.Parameter(torch.randn(rank, inputs, device=weight.device) / rank**0.5)
        self.b = nn.Parameter(torch.zeros(out, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """See the class."""
        return weight + self.b @ self.a


def adapt(network: nn.Module, model: ModelConfig) -> None:
    """Leave to the optimizer what ``model.frozen`` and ``model.lora`` leave to it.

    Weights that ``model.init_skip`` left random are trained whatever ``lora`` says.

    Raises:
        ConfigError: a name that no weight has, a rank that no layer has room for, or nothing left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for beginning in model.frozen:
        if not any(name.startswith(beginning) for name in names):
            raise ConfigError(
                f"model.frozen {beginning!r} begins the name of no weight of {model.family}"
                f"{suggestion(beginning, _tops(names))}"
            )
    for name, parameter in network.named_parameters():
        kept = model.lora_rank and not name.startswith(model.init_skip or ("\0",))
        parameter.requires_grad_(not (kept or name.startswith(model.frozen or ("\0",))))
    if model.lora_rank:
        _change(network, model)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"model.frozen {list(model.frozen)} leaves nothing of {model.family} to train")


def keep_still(network: nn.Module) -> None:
    """Let batch norms whose weights are frozen keep their statistics too; the network is in train mode."""
    for module in network.modules():
        if isinstance(module, _NORMS) and module.affine and not module.weight.requires_grad:
            module.eval()


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the family: changes of low rank are added to what they change."""
    found = {}
    for name, value in weights.items():
        if _CHANGE in name:
            continue
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            value = value + weights[f"{layer}{_CHANGE}b"] @ weights[f"{layer}{_CHANGE}a"]
            name = f"{layer}.{WEIGHT}"
        found[name] = value
    return found


def _change(network: nn.Module, model: ModelConfig) -> None:
    """Give linear layers changes of low rank."""
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    ends = sorted({name.rpartition(".")[2] if not _numbered(name) else name for name in linears})
    for part in model.lora:
        if not any(part in name for name in linears):
            raise ConfigError(
                f"model.lora {part!r} is in the name of no linear layer of {model.family}"
                f"{suggestion(part, ends)}"
            )
    chosen = {name: module for name, module in linears.items() if any(part in name for part in model.lora)}
    if not chosen:
        shown = ", ".join(ends[:8])
        raise ConfigError(
            f"model.lora_rank {model.lora_rank} without model.lora: name parts of the names of linear "
            f"layers, which are {shown}"
        )
    for name, module in chosen.items():
        if name.startswith(model.frozen or ("\0",)):
            continue
        room = min(module.weight.shape)
        if model.lora_rank > room:
            raise ConfigError(f"model.lora_rank {model.lora_rank} is more than {name} has room for, {room}")
        parametrize.register_parametrization(module, WEIGHT, LowRankChange(module.weight, model.lora_rank))


def _numbered(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


def _tops(names: list[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in names})
