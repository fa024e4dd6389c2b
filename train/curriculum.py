"""What a step trains on: how long its chunks are, and how much of the band they hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec
from tfswa.train.config import TrainConfig, steps_of


@dataclass(frozen=True)
class Phase:
    """A stretch of the training.

    Attributes:
        end: the first step after it.
        samples: N of a chunk.
        bandwidth_hz: what lies above is filtered out; 0 for everything.
        loss_without: terms of the loss that do not count.
    """

    end: float
    samples: int
    bandwidth_hz: float
    loss_without: tuple[str, ...] = ()


class Curriculum:
    """The phases of a training; the one after the last that is configured is the full training.

    Args:
        config: ``curriculum`` and ``optim.frames``.
        spec: hop, T multiple and sample rate.

    Raises:
        ConfigError: frames that the network cannot take, a band above half the sample rate.
    """

    def __init__(self, config: TrainConfig, spec: ModelSpec):
        self._config, self._spec = config, spec
        self.samples = self._samples("optim.frames", config.optim.frames)
        self._phases: list[Phase] = []
        nyquist = spec.stft.sample_rate / 2
        for index, phase in enumerate(config.curriculum):
            if phase.frames:
                self._samples(f"curriculum[{index}].frames", phase.frames)
            if phase.bandwidth_hz > nyquist:
                raise ConfigError(
                    f"curriculum[{index}].bandwidth_hz {phase.bandwidth_hz:g} is above half the sample rate, "
                    f"{nyquist:g}: lower it, or leave it out"
                )

    def fix(self, epoch_steps: int) -> None:
        """Fix the phases' ends, now that an epoch's length is known.

        Raises:
            ConfigError: a phase ends before it begins.
        """
        end = 0
        for index, phase in enumerate(self._config.curriculum):
            until = steps_of(phase.until, epoch_steps)
            if until <= end:
                raise ConfigError(
                    f"curriculum[{index}].until is step {until}, the phase before it ends at {end}: "
                    "let the phases follow each other"
                )
            end = until
            frames = phase.frames or self._config.optim.frames
            samples = self._samples("frames", frames)
            self._phases.append(Phase(end, samples, phase.bandwidth_hz, phase.loss_without))

    @property
    def longest(self) -> int:
        """Samples of the longest chunk of all phases."""
        return max([self.samples, *(phase.samples for phase in self._phases)])

    def phase(self, step: int) -> Phase:
        """Return the phase of step number ``step``, from 0."""
        for phase in self._phases:
            if step < phase.end:
                return phase
        return Phase(float("inf"), self.samples, 0.0)

    def _samples(self, name: str, frames: int) -> int:
        try:
            ChunkSpec(frames=frames, context=0, fade=0, multiple=self._spec.chunk.multiple)
        except BundleError as error:
            raise ConfigError(f"{name}: {error}") from error
        least = self._spec.first_counted + 1
        if frames <= least:
            raise ConfigError(
                f"{name} {frames} frames: {self._spec.family} passes over the first {self._spec.chunk.early} "
                f"and what they reach, use more than {least}"
            )
        return self._spec.samples_of(frames)


def band_limited(signals: Tensor, bandwidth_hz: float, rate: int) -> Tensor:
    """Remove what lies above ``bandwidth_hz`` from ``[..., N]``: a cut in the chunk's whole spectrum."""
    samples = signals.shape[-1]
    spectrum = torch.fft.rfft(signals)
    keep = int(bandwidth_hz * samples / rate) + 1
    spectrum[..., keep:] = 0
    limited: Tensor = torch.fft.irfft(spectrum, n=samples)
    return limited
