"""One optimizer step, in one process or many: network, average, optimizer, and their state.

Knows batches and nothing of songs or files; the loop (loop.py) does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from tfswa.train.adapting import keep_still
from tfswa.train.average import Average
from tfswa.train.config import OptimConfig
from tfswa.train.curriculum import band_limited
from tfswa.train.data.loader import Batch
from tfswa.train.families import SeparationNetwork
from tfswa.train.scale import Autocast
from tfswa.train.tasks import Task

log = logging.getLogger(__name__)

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SKIPS_IN_A_ROW = 100


class NotFinite(Exception):
    """A step whose loss or gradient is NaN or Inf, and that was not to be skipped."""


class Trainer:
    """A network being trained.

    Args:
        network: freshly built, on the CPU.
        task: gives the loss.
        optim: how the weights are found.
        rate: samples per second of the audio.
        fabric: launched.
        autocast: of the fabric; None for float32.

    Attributes:
        step: steps done.
        skipped: of these, without effect because something was not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        optim: OptimConfig,
        rate: int,
        fabric: Fabric,
        autocast: Autocast | None,
    ):
        self.network, self.task, self.optim, self.rate = network, task, optim, rate
        self.fabric, self.autocast = fabric, autocast
        if optim.checkpointing:
            cast(SeparationNetwork, network).checkpointing = True
        if optim.compile:
            network.compile()
        self.wrapped = fabric.setup_module(network)
        if hasattr(network, "reconstruct"):
            self.wrapped.mark_forward_method("reconstruct")
        kind = torch.optim.AdamW if optim.optimizer == "adamw" else torch.optim.Adam
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._optimizer = kind(trained, lr=optim.lr, weight_decay=optim.weight_decay)
        self._stepper: Any = fabric.setup_optimizers(self._optimizer)
        self._average = Average(network, optim.ema)
        self.step = self.skipped = self._skips_in_a_row = 0

    def train(
        self, batch: Batch, rate: float, bandwidth_hz: float = 0.0, logs: bool = False
    ) -> dict[str, float]:
        """Take one step on this process's share of a batch.

        Args:
            batch: the share.
            rate: learning rate.
            bandwidth_hz: what lies above is filtered out; 0 for everything.
            logs: also compare the update with the weights.

        Returns:
            Loss, its parts, ``gradient_norm``, ``lr``, maybe ``update_ratio``: of the whole batch.

        Raises:
            NotFinite: a loss or gradient is NaN or Inf and must not be skipped; weights are as they were.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # For dropout: the same numbers after a resume.
        place = self.step * self.fabric.world_size + self.fabric.global_rank
        torch.manual_seed(self.optim.seed * 1_000_003 + place)
        row = {**self._backward(batch, bandwidth_hz), "lr": rate}
        norm = self.fabric.clip_gradients(
            self.wrapped, self._stepper, max_norm=self.optim.clip or math.inf, error_if_nonfinite=False
        )
        row["gradient_norm"] = _number(norm)
        # NaN in one process's loss is NaN in every process's gradient: all decide alike.
        healthy = math.isfinite(row["gradient_norm"]) and math.isfinite(row["loss"])
        before = [p.detach().clone() for p in self.network.parameters()] if logs and healthy else None
        if healthy or self.optim.precision == "fp16":
            self._stepper.step()  # with fp16 the loss scaler leaves out what is not finite, and scales down
        self._stepper.zero_grad(set_to_none=True)
        if healthy:
            self._average.update(self.step)
            self._skips_in_a_row = 0
        else:
            self._skip(row)
        self.step += 1
        if before is not None:
            row["update_ratio"] = self._update_ratio(before)
        return row

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lend the network in eval mode, with the average of the weights; not compiled."""
        self.network.eval()
        with self._average.in_place(), torch.compiler.set_stance("force_eager"):
            yield self.network

    def weights(self) -> dict[str, Tensor]:
        """Copy the whole weights to the CPU; in the first process alone where they are sharded."""
        whole = get_model_state_dict(self.network, options=WHOLE)
        return {name: cast(Tensor, value).clone() for name, value in whole.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; every process takes part."""
        with self._average.in_place():
            average = self.weights()
        return {
            "network": self.weights(),
            "average": average,
            "optimizer": get_optimizer_state_dict(self.network, self._optimizer, options=WHOLE),
            "autocast": self.autocast.state_dict() if self.autocast is not None else {},
            "step": self.step,
            "skipped": self.skipped,
            "skips_in_a_row": self._skips_in_a_row,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``, of any number of processes.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is another's, or none.
        """
        for name in ("average", "network", "optimizer"):  # an empty one torch would pass over in silence
            if not isinstance(state[name], Mapping) or not state[name]:
                raise ValueError(f"{name} holds nothing")
        set_model_state_dict(self.network, state["average"], options=WHOLE)
        self._average.reset()
        set_model_state_dict(self.network, state["network"], options=WHOLE)
        set_optimizer_state_dict(self.network, self._optimizer, state["optimizer"], options=WHOLE)
        if self.autocast is not None and state["autocast"]:
            self.autocast.load_state_dict(state["autocast"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self._skips_in_a_row = int(state["skips_in_a_row"])

    def _backward(self, batch: Batch, bandwidth_hz: float) -> dict[str, float]:
        """Gradients of the batch; loss and its parts, each the mean over all processes."""
        self.wrapped.train()
        keep_still(self.network)
        signals = batch.stems.to(self.fabric.device, non_blocking=True)
        if bandwidth_hz:
            signals = band_limited(signals, bandwidth_hz, self.rate)
        parts = self.optim.accumulate
        size = len(signals) // parts
        names, total = ["loss"], torch.zeros((), device=signals.device)
        for part in range(parts):
            mine = slice(part * size, (part + 1) * size)
            with self.fabric.no_backward_sync(self.wrapped, enabled=part < parts - 1):
                loss, terms = self.task.loss(self.wrapped, signals[mine], batch.indices[mine])
                self.fabric.backward(loss / parts)
            names = ["loss", *terms]
            total = total + torch.stack([loss.detach(), *terms.values()]) / parts
        reduced = cast(Tensor, self.fabric.all_reduce(total, reduce_op="mean"))
        return dict(zip(names, reduced.tolist(), strict=True))

    def _skip(self, row: Mapping[str, float]) -> None:
        self.skipped += 1
        self._skips_in_a_row += 1
        # fp16 gradients overflow now and then, until the scale of the loss has come down.
        overflow = self.optim.precision == "fp16" and math.isfinite(row["loss"])
        allowed = overflow or self.optim.nonfinite == "skip"
        what = f"loss is {row['loss']:g}, gradient norm {row['gradient_norm']:g}"
        if not allowed:
            raise NotFinite(what)
        if self._skips_in_a_row == SKIPS_IN_A_ROW:
            raise NotFinite(f"{what}, for {SKIPS_IN_A_ROW} steps in a row")
        log.info("step %d skipped: %s", self.step, what)

    def _update_ratio(self, before: list[Tensor]) -> float:
        """Length of the update over length of the weights."""
        norm = torch.nn.utils.get_total_norm
        with torch.no_grad():
            changes = [new - old for new, old in zip(self.network.parameters(), before, strict=True)]
            return _number(norm(changes)) / max(_number(norm(before)), 1e-12)


def _number(value: Any) -> float:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return float(whole)
