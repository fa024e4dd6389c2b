"""The learning rate of every step: a linear warm-up, then one of four schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import OptimConfig, steps_of

RISE = 1e-4  # a validation score has risen if it is more than this above the best one so far


class Schedule:
    r"""Learning rates as an ``OptimConfig`` says; see ``OptimConfig.schedule``.

    ::

        lr      |    /\__                 cosine: lr at the end of the warm-up,
                |   /    \_               exactly lr_end at the last step
        lr_end  |__/________\
                  warmup   steps - 1

    Args:
        optim: rates and durations.
        epoch_steps: optimizer steps of an epoch.

    Attributes:
        steps: length of the training.

    Raises:
        ConfigError: the warm-up is longer than the training, or the rate would end above its peak.
    """

    def __init__(self, optim: OptimConfig, epoch_steps: int) -> None:
        self.optim = optim
        self.steps = steps_of(optim.length, epoch_steps)
        self.warmup = steps_of(optim.warmup, epoch_steps) if optim.warmup != 0 else 0
        self.decay_every = steps_of(optim.decay_every, epoch_steps)
        self.best, self.waited, self.times = -math.inf, 0, 0
        if self.warmup > self.steps:
            raise ConfigError(
                f"optim.warmup {optim.warmup!r} is {self.warmup} steps, more than optim.length "
                f"{optim.length!r}, {self.steps} steps: shorten the warm-up, or train longer"
            )
        if optim.schedule != "constant" and optim.lr_end > optim.lr:
            raise ConfigError(
                f"optim.lr_end {optim.lr_end} is above optim.lr {optim.lr}: lower it, "
                'or set optim.schedule to "constant"'
            )

    def rate(self, step: int) -> float:
        """Learning rate of the step with this index, from 0."""
        optim = self.optim
        if step < self.warmup:
            return optim.lr * ((step + 1) / self.warmup)
        if optim.schedule == "cosine":
            return self._cosine(step)
        if optim.schedule == "decay":
            return self._decayed((step - self.warmup) // self.decay_every)
        if optim.schedule == "plateau":
            return self._decayed(self.times)
        return optim.lr

    def validated(self, score: float) -> None:
        """Hear a validation score, higher is better: a plateau lowers the rate of the steps to come."""
        if score > self.best + RISE:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.optim.patience:
            self.times, self.waited = self.times + 1, 0

    def state(self) -> dict[str, float]:
        """What ``restore`` needs to go on exactly."""
        return {"best": self.best, "waited": self.waited, "times": self.times}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what ``state`` gave."""
        self.best = state["best"]
        self.waited, self.times = int(state["waited"]), int(state["times"])

    def _cosine(self, step: int) -> float:
        peak = max(0, self.warmup - 1)  # index of the last step of the warm-up
        span = self.steps - 1 - peak
        done = min(1.0, (step - peak) / span) if span > 0 else 1.0
        share = 0.5 * (1 + math.cos(math.pi * done))
        return self.optim.lr_end + (self.optim.lr - self.optim.lr_end) * share

    def _decayed(self, times: int) -> float:
        return max(self.optim.lr_end, self.optim.lr * self.optim.decay_factor**times)
