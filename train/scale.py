"""One process or many: Lightning Fabric, set up from what torchrun says of the processes.

tfx train CONFIG                                                one process
torchrun --nproc-per-node 4 -m tfswa.runtime train CONFIG       four on this machine
torchrun --nnodes 2 --nproc-per-node 8 ...                      two machines
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import OptimConfig


class Autocast(MixedPrecision):
    """Autocast that leaves the network's input in float32.

    Fabric would round it first, and with it the mixture that a mask is multiplied with.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the data as they are."""
        return data


def new_fabric(device: torch.device, optim: OptimConfig) -> tuple[Fabric, Autocast | None]:
    """Join the other processes, if there are any.

    Args:
        device: what was asked for; of several processes on a machine each takes the GPU of its rank.
        optim: precision and strategy.

    Returns:
        The fabric, launched, and its autocast where ``optim.precision`` is not fp32.

    Raises:
        ConfigError: a batch that the processes cannot share equally, or fp16 with fsdp.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    parts = world * optim.accumulate
    if optim.batch % parts:
        raise ConfigError(
            f"optim.batch {optim.batch} is not a multiple of {parts}, {world} processes x "
            f"{optim.accumulate} accumulated parts: change either"
        )
    autocast = None
    if optim.precision != "fp32":
        autocast = Autocast("bf16-mixed" if optim.precision == "bf16" else "16-mixed", device.type)
    strategy: Any = "auto"
    if optim.strategy == "fsdp":
        if optim.precision == "fp16":
            raise ConfigError("optim.precision fp16 and optim.strategy fsdp do not go together: use bf16")
        strategy = ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    elif world > 1:
        strategy = "ddp"
    devices: Any = local
    if world == 1 and device.type == "cuda":
        devices = [device.index or 0]
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=world // local,
        strategy=strategy,
        plugins=[autocast] if autocast else None,
    )
    fabric.launch()
    return fabric, autocast


def _shard(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard what the network is made of, one unit after the other, so that one at a time is whole."""
    for child in network.children():
        units = child if isinstance(child, nn.ModuleList) else [child]
        for unit in units:
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    # A stage ends in a permutation of axes; nothing here changes what a stage gave in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    return network
