"""Loss terms against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: losses need it")

from tfswa.train.config import LossConfig  # noqa: E402
from tfswa.train.losses import SeparationLoss  # noqa: E402

Tensor = Any
CPU = torch.device("cpu")
NONE = LossConfig(spectrogram_l1=0.0, multi_resolution_stft=0.0, waveform_l1=0.0)


def loss_of(**weights: Any) -> SeparationLoss:
    return SeparationLoss(LossConfig(**{**vars(NONE), **weights}), CPU)


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PLANES, WAVE = (1, 2, 4, 3, 8), (1, 2, 2, 4096)


def test_l1_terms_are_weighted_means() -> None:
    planes, true_planes = torch.zeros(PLANES), torch.zeros(PLANES)
    planes[0, 0] = 3.0  # half of all elements are off by 3
    wave, true_wave = torch.zeros(WAVE), torch.full(WAVE, -0.5)
    total, parts = loss_of(spectrogram_l1=2.0, waveform_l1=10.0)(planes, true_planes, wave, true_wave)
    assert parts == pytest.approx({"spectrogram_l1": 3.0, "waveform_l1": 5.0})
    assert float(total) == pytest.approx(8.0)


def test_the_sign_of_an_error_does_not_matter() -> None:
    one = loss_of(spectrogram_l1=1.0)
    a, b, wave = noise(*PLANES), noise(*PLANES, seed=1), noise(*WAVE)
    assert float(one(a, b, None, wave)[0]) == pytest.approx(float(one(b, a, None, wave)[0]))


def test_equal_signals_have_no_loss() -> None:
    planes, wave = noise(*PLANES), noise(*WAVE)
    total, parts = loss_of(spectrogram_l1=1.0, waveform_l1=1.0, multi_resolution_stft=1.0)(
        planes, planes.clone(), wave, wave.clone()
    )
    assert float(total) == 0.0
    assert parts == {"spectrogram_l1": 0.0, "waveform_l1": 0.0, "multi_resolution_stft": 0.0}


def test_a_term_without_weight_is_not_computed() -> None:
    loss = loss_of(spectrogram_l1=1.0)
    assert not loss.needs_waveform
    assert loss(noise(*PLANES), noise(*PLANES), None, noise(*WAVE))[1].keys() == {"spectrogram_l1"}
    assert loss_of(waveform_l1=1.0).needs_waveform
    assert loss_of(multi_resolution_stft=1.0).needs_waveform


def test_gradients_are_finite_at_zero_and_at_equality() -> None:
    loss = loss_of(spectrogram_l1=1.0, waveform_l1=1.0, multi_resolution_stft=1.0)
    for start, truth in (
        (torch.zeros(WAVE), noise(*WAVE)),
        (torch.zeros(WAVE), torch.zeros(WAVE)),
        (noise(*WAVE), noise(*WAVE)),
    ):
        wave = start.clone().requires_grad_()
        planes = torch.zeros(PLANES, requires_grad=True)
        loss(planes, torch.zeros(PLANES), wave, truth)[0].backward()
        assert torch.isfinite(wave.grad).all()
        assert torch.isfinite(planes.grad).all()


def stft_term(wave: Tensor, truth: Tensor, **config: Any) -> float:
    planes = torch.zeros(PLANES)
    return float(loss_of(multi_resolution_stft=1.0, **config)(planes, planes, wave, truth)[0])


def test_the_stft_term_by_hand() -> None:
    """A constant of 1 against silence: bin 0 is the window's sum, bin 1 half of it, all others nothing."""
    length = 64
    wave = torch.ones(1, 1, 1, 64 * 64)
    inner = (length / 2 + length / 4) / length**0.5 / (length // 2 + 1)
    measured = stft_term(wave, torch.zeros_like(wave), windows=(length,))
    assert measured == pytest.approx(inner, rel=0.02)  # frames at both ends hold less, or spread more


def test_the_stft_term_is_level_true() -> None:
    wave, truth = noise(*WAVE), noise(*WAVE, seed=1)
    one = stft_term(wave, truth)
    assert stft_term(2 * wave, 2 * truth) == pytest.approx(2 * one, rel=1e-3)
    assert stft_term(truth, wave) == pytest.approx(one, rel=1e-6)
    # Only the level is wrong: the loss is the difference of levels.
    full = stft_term(wave, torch.zeros_like(wave))
    assert stft_term(0.75 * wave, wave) == pytest.approx(0.25 * full, rel=0.01)


def test_every_resolution_weighs_noise_alike() -> None:
    wave = noise(1, 2, 2, 32_768)
    each = [stft_term(wave, torch.zeros_like(wave), windows=(length,)) for length in (256, 512, 1024, 2048)]
    assert max(each) / min(each) < 1.1
    all_ = stft_term(wave, torch.zeros_like(wave), windows=(256, 512, 1024, 2048))
    assert all_ == pytest.approx(sum(each) / 4, rel=1e-5)


def test_the_stft_term_compares_items_stems_and_channels_each_with_its_own() -> None:
    wave = noise(2, 2, 2, 4096)
    for axis in range(3):
        assert stft_term(wave, wave.flip(axis)) > 0.01
    # Magnitudes do not hear a change of sign.
    assert stft_term(wave, -wave) == pytest.approx(0.0, abs=1e-6)
