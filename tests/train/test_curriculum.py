"""What a step trains on: phases that end where they should, and the band that they leave."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")

from tfswa.train.config import OptimConfig, PhaseConfig, TrainConfig  # noqa: E402
from tfswa.train.curriculum import Curriculum, Phase, band_limited  # noqa: E402

RATE = 44_100
HOP = 128  # of the tiny contract, whose T is a multiple of 8


def curriculum_of(spec: ModelSpec, *phases: dict[str, Any], epoch_steps: int = 10) -> Curriculum:
    config = TrainConfig(optim=OptimConfig(frames=16), curriculum=tuple(PhaseConfig(**p) for p in phases))
    curriculum = Curriculum(config, spec)
    curriculum.fix(epoch_steps)
    return curriculum


def sine(frequency: float, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples, dtype=torch.float64) / RATE)


def level_db(signal: torch.Tensor, reference: torch.Tensor) -> float:
    return 10 * math.log10(float(signal.square().mean() / reference.square().mean()) + 1e-30)


def test_without_phases_all_of_it_is_the_full_training(tiny_spec: ModelSpec) -> None:
    curriculum = curriculum_of(tiny_spec)
    for step in (0, 1, 10**9):
        assert curriculum.phase(step) == Phase(math.inf, 15 * HOP, 0.0)


def test_chunks_have_the_frames_that_are_asked_for_whatever_the_first_is_centered_on(
    tiny_spec: ModelSpec,
) -> None:
    stft = dataclasses.replace(tiny_spec.stft, offset=HOP // 2)
    spec = dataclasses.replace(tiny_spec, stft=stft)
    curriculum = curriculum_of(spec)
    assert stft.frames(curriculum.samples) == 16
    assert curriculum.samples == spec.chunk_samples == 16 * HOP


def test_each_step_has_its_phase(tiny_spec: ModelSpec) -> None:
    curriculum = curriculum_of(
        tiny_spec, {"until": 3, "frames": 8, "bandwidth_hz": 1000.0}, {"until": 5, "bandwidth_hz": 2000.0}
    )
    found = [(p.samples, p.bandwidth_hz) for p in map(curriculum.phase, range(7))]
    assert found == [(7 * HOP, 1000.0)] * 3 + [(15 * HOP, 2000.0)] * 2 + [(15 * HOP, 0.0)] * 2
    assert curriculum.samples == 15 * HOP  # of the full training, whatever came before


def test_a_phase_may_leave_out_terms_of_the_loss(tiny_spec: ModelSpec) -> None:
    curriculum = curriculum_of(tiny_spec, {"until": 2, "loss_without": ("multi_resolution_stft",)})
    found = [curriculum.phase(step).loss_without for step in range(4)]
    assert found == [("multi_resolution_stft",)] * 2 + [()] * 2


def test_a_phase_may_have_longer_chunks_than_the_full_training(tiny_spec: ModelSpec) -> None:
    curriculum = curriculum_of(tiny_spec, {"until": 1, "frames": 64})
    assert [curriculum.phase(step).samples for step in (0, 1)] == [63 * HOP, 15 * HOP]


@pytest.mark.parametrize(
    ("until", "epoch_steps", "end"),
    [("2 epochs", 10, 20), ("0.5 epochs", 7, 4), ("1 epoch", 1, 1), (4, 10, 4)],
)
def test_a_phase_ends_in_steps_or_epochs(
    tiny_spec: ModelSpec, until: int | str, epoch_steps: int, end: int
) -> None:
    curriculum = curriculum_of(tiny_spec, {"until": until, "frames": 8}, epoch_steps=epoch_steps)
    assert curriculum.phase(end - 1) == Phase(end, 7 * HOP, 0.0)
    assert curriculum.phase(end) == Phase(math.inf, 15 * HOP, 0.0)


@pytest.mark.parametrize("second", [5, 4, "0.5 epochs", "0.001 epochs"])
def test_phases_must_rise(tiny_spec: ModelSpec, second: int | str) -> None:
    with pytest.raises(
        ConfigError, match=r"curriculum\[1\]\.until is step \d, the phase before it ends at 5"
    ):
        curriculum_of(tiny_spec, {"until": 5}, {"until": second})


@pytest.mark.parametrize("frames", [12, 7, 1])
def test_frames_that_the_network_cannot_take(tiny_spec: ModelSpec, frames: int) -> None:
    match = rf"{frames} frames is not a multiple of 8: use \d+"
    with pytest.raises(ConfigError, match=rf"curriculum\[1\]\.frames: chunk of {match}") as error:
        curriculum_of(tiny_spec, {"until": 1}, {"until": 2, "frames": frames})
    assert not isinstance(error.value, BundleError)
    with pytest.raises(ConfigError, match=rf"optim\.frames: chunk of {match}"):
        Curriculum(TrainConfig(optim=OptimConfig(frames=frames)), tiny_spec)


def test_a_band_above_half_the_sample_rate(tiny_spec: ModelSpec) -> None:
    curriculum_of(tiny_spec, {"until": 1, "bandwidth_hz": 4000.0})
    with pytest.raises(
        ConfigError, match=r"curriculum\[0\]\.bandwidth_hz 4000\.5 .* half the sample rate, 4000"
    ):
        curriculum_of(tiny_spec, {"until": 1, "bandwidth_hz": 4000.5})


@pytest.mark.parametrize("samples", [RATE, RATE + 1])
@pytest.mark.parametrize("bandwidth", [1000.0, 4000.0, 12_345.6])
def test_the_band_is_kept_and_the_rest_removed(samples: int, bandwidth: float) -> None:
    """Sines of whole periods, up to a bin (1 Hz) from the edge."""
    bins = int(bandwidth * samples / RATE)
    for count in (1, bins // 2, bins - 1, bins):
        kept = sine(count * RATE / samples, samples)
        assert level_db(band_limited(kept, bandwidth, RATE), kept) == pytest.approx(0.0, abs=0.1)
        assert level_db(band_limited(kept, bandwidth, RATE) - kept, kept) < -60
    for count in (bins + 1, bins + 2, bins * 3 // 2, samples // 2 - 1):
        removed = sine(count * RATE / samples, samples)
        assert level_db(band_limited(removed, bandwidth, RATE), removed) < -60


@pytest.mark.parametrize("frequency", [100.3, 1777.7, 3601.9])
def test_tones_below_keep_their_level_at_any_pitch(frequency: float) -> None:
    signal = sine(frequency, RATE)
    assert level_db(band_limited(signal, 4000.0, RATE), signal) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("frequency", [4807.7, 8000.3, 15_001.9])
def test_tones_above_are_gone_but_for_the_ends_of_the_chunk(frequency: float) -> None:
    """A chunk cuts a tone anywhere, and that cut is a click, part of which lies in the band."""
    signal = sine(frequency, RATE)
    middle = band_limited(signal, 4000.0, RATE)[RATE // 20 : -RATE // 20]
    assert level_db(middle, signal) < -60


def test_stems_still_sum_to_the_mixture_and_nothing_is_changed_in_place() -> None:
    stems = torch.randn(2, 3, 2, 1000, generator=torch.Generator().manual_seed(0))
    before = stems.clone()
    limited = band_limited(stems, 5000.0, RATE)
    assert limited.shape == stems.shape
    assert limited.dtype == stems.dtype
    assert torch.equal(stems, before)
    torch.testing.assert_close(limited.sum(dim=1), band_limited(stems.sum(dim=1), 5000.0, RATE))
    power = np.abs(np.fft.rfft(limited.numpy()))
    edge = int(5000.0 * 1000 / RATE) + 1
    assert power[..., edge:].max() < 1e-3 < 1 < power[..., :edge].max()


def test_the_whole_band_is_everything() -> None:
    signal = torch.randn(2, 999, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(band_limited(signal, RATE / 2, RATE), signal)
