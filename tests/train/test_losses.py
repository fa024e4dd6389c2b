"""Loss terms against numpy, and the laws that hold for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: losses need it")

from tfswa.runtime.errors import ConfigError  # noqa: E402
from tfswa.train.config import LossConfig  # noqa: E402
from tfswa.train.losses import SeparationLoss  # noqa: E402

Tensor = Any
CPU = torch.device("cpu")
RATE = 8000
PLANES, WAVE = (4, 2, 4, 3, 8), (4, 2, 2, 4096)
SPECTRAL = ("magnitude_l1", "spectrogram_l1", "spectrogram_mse")
TEMPORAL = ("waveform_l1", "multi_resolution_stft", "perceptual")  # and si_sdr, whose laws are others
TERMS = (*SPECTRAL, *TEMPORAL)
NONE = dict.fromkeys(TERMS, 0.0)


def loss_of(**weights: Any) -> SeparationLoss:
    return SeparationLoss(LossConfig(**{**NONE, **weights}), RATE, CPU)


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def term(name: str, estimate: Tensor, truth: Tensor, **config: Any) -> float:
    """Value of one term of weight 1; planes or waveforms, as it needs them."""
    loss = loss_of(**{name: 1.0}, **config)
    if name in SPECTRAL:
        return float(loss(estimate, truth, None, None)[0])
    silent = torch.zeros(len(estimate), *PLANES[1:])
    return float(loss(silent, silent, estimate, truth)[0])


def shape_of(name: str) -> tuple[int, ...]:
    return PLANES if name in SPECTRAL else WAVE


def numpy_stft(wave: Any, length: int, hop: int) -> Any:
    """``[B, S, C, N] -> [B, S, C, T, F]``, centered, zeros outside."""
    padded = np.pad(wave, ((0, 0),) * 3 + ((length // 2, length // 2),))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    starts = range(0, padded.shape[-1] - length + 1, hop)
    return np.stack([np.fft.rfft(padded[..., s : s + length] * window) for s in starts], axis=-2)


def numpy_magnitudes(planes: Any) -> Any:
    return np.abs(planes[:, :, [0, 2]] + 1j * planes[:, :, [1, 3]])


def numpy_term(name: str, estimate: Any, truth: Any) -> float:
    if name == "magnitude_l1":
        return float(np.mean(np.abs(numpy_magnitudes(estimate) - numpy_magnitudes(truth))))
    if name in ("spectrogram_l1", "waveform_l1"):
        return float(np.mean(np.abs(estimate - truth)))
    if name == "spectrogram_mse":
        return float(np.mean((estimate - truth) ** 2))
    if name == "multi_resolution_stft":
        distances = []
        for length in LossConfig().windows:
            one, two = (np.abs(numpy_stft(wave, length, length // 4)) for wave in (estimate, truth))
            distances.append(np.mean(np.abs(one - two)) / np.sqrt(length))
        return float(np.mean(distances))
    one, two = (numpy_log_mel(wave) for wave in (estimate, truth))
    return float(np.mean(np.abs(one - two)))


def numpy_log_mel(wave: Any) -> Any:
    """Log-mel by interpolation between the corners of each triangle."""
    bins = np.arange(1025) * RATE / 2048
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), 82) / 2595) - 1)
    bank = np.stack([np.interp(bins, edges[k : k + 3], [0, 1, 0]) for k in range(80)])
    return np.log(np.abs(numpy_stft(wave, 2048, 512)) ** 2 @ bank.T + 1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_what_numpy_computes(name: str) -> None:
    shape = shape_of(name)
    estimate, truth = noise(*shape), noise(*shape, seed=1)
    expected = numpy_term(name, estimate.double().numpy(), truth.double().numpy())
    assert expected > 1e-3
    assert term(name, estimate, truth) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_in_two_halves_has_the_loss_of_the_whole(name: str) -> None:
    """The halves differ in level, so an uneven weight would show."""
    estimate, truth = noise(*shape_of(name)), noise(*shape_of(name), seed=1)
    estimate[:2] *= 10
    halves = [term(name, estimate[part], truth[part]) for part in (slice(0, 2), slice(2, 4))]
    assert abs(halves[0] - halves[1]) > 0.01
    assert np.mean(halves) == pytest.approx(term(name, estimate, truth), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_closer_estimate_has_a_smaller_loss(name: str) -> None:
    truth, error = noise(*shape_of(name)), noise(*shape_of(name), seed=1)
    values = [term(name, truth + share * error, truth) for share in (0.0, 0.1, 0.3, 1.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[1] < 0.5 * values[3]


@pytest.mark.parametrize("name", TERMS)
def test_the_sign_of_an_error_does_not_matter(name: str) -> None:
    one, two = noise(*shape_of(name)), noise(*shape_of(name), seed=1)
    assert term(name, one, two) == pytest.approx(term(name, two, one), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_items_stems_and_channels_are_compared_each_with_its_own(name: str) -> None:
    signal = noise(*shape_of(name))
    for axis in range(3):
        assert term(name, signal, signal.flip(axis)) > 1e-3


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("case", ["silence", "silent estimate", "silent truth", "equal"])
def test_gradients_are_finite_where_magnitudes_vanish_or_agree(name: str, case: str) -> None:
    sound, silence = noise(*shape_of(name)), torch.zeros(shape_of(name))
    estimate = (silence if case in ("silence", "silent estimate") else sound).clone().requires_grad_()
    truth = silence if case in ("silence", "silent truth") else sound
    loss = loss_of(**{name: 1.0})
    planes = torch.zeros(PLANES)
    inputs = (estimate, truth, None, None) if name in SPECTRAL else (planes, planes, estimate, truth)
    loss(*inputs)[0].backward()
    assert torch.isfinite(estimate.grad).all()
    # A truth that is silent while the estimate is not must pull it down.
    assert bool((estimate.grad * estimate).sum() > 0) == (case == "silent truth")


def numpy_si_sdr(estimate: Any, truth: Any) -> Any:
    estimate, truth = (signal.reshape(*signal.shape[:2], -1) for signal in (estimate, truth))
    target = (estimate * truth).sum(-1, keepdims=True) / (truth**2).sum(-1, keepdims=True) * truth
    return 10 * np.log10((target**2).sum(-1) / ((estimate - target) ** 2).sum(-1))


def test_si_sdr_is_what_numpy_computes_and_knows_no_scale() -> None:
    truth = noise(*WAVE, seed=1)
    estimate = truth + noise(*WAVE, level=0.05)
    expected = -np.mean(numpy_si_sdr(estimate.double().numpy(), truth.double().numpy()))
    # The floor of -80 dBFS is 54 dB below this error, 1 part in 250,000 of it.
    assert term("si_sdr", estimate, truth) == pytest.approx(expected, abs=1e-3)
    assert term("si_sdr", 3 * estimate, truth) == pytest.approx(expected, abs=1e-3)
    halves = [term("si_sdr", estimate[part], truth[part]) for part in (slice(0, 2), slice(2, 4))]
    assert np.mean(halves) == pytest.approx(term("si_sdr", estimate, truth), abs=1e-4)


@pytest.mark.parametrize("case", ["silence", "silent estimate", "silent truth", "equal"])
def test_si_sdr_has_a_finite_gradient_everywhere(case: str) -> None:
    sound, silence = noise(*WAVE), torch.zeros(WAVE)
    estimate = (silence if case in ("silence", "silent estimate") else sound).clone().requires_grad_()
    truth = silence if case in ("silence", "silent truth") else sound
    planes = torch.zeros(PLANES)
    loss_of(si_sdr=1.0)(planes, planes, estimate, truth)[0].backward()
    assert torch.isfinite(estimate.grad).all()
    assert bool((estimate.grad * estimate).sum() > 0) == (case == "silent truth")


def test_a_term_that_is_left_out_is_zero_and_asks_for_no_waveform() -> None:
    loss = loss_of(spectrogram_l1=1.0, waveform_l1=1.0)
    planes, wave = noise(*PLANES), noise(*WAVE)
    whole = loss(planes, 2 * planes, wave, 2 * wave)[1]
    loss.left_out = frozenset({"waveform_l1"})
    assert not loss.needs_waveform
    total, parts = loss(planes, 2 * planes, None, None)
    assert parts == {"spectrogram_l1": whole["spectrogram_l1"], "waveform_l1": 0.0}
    assert total == whole["spectrogram_l1"]


def test_the_total_is_the_sum_of_weighted_parts_which_stay_tensors() -> None:
    weights = {name: 0.5 * index + 0.5 for index, name in enumerate(TERMS)}
    planes, true_planes = noise(*PLANES).requires_grad_(), noise(*PLANES, seed=1)
    wave, true_wave = noise(*WAVE), noise(*WAVE, seed=1)
    total, parts = loss_of(**weights)(planes, true_planes, wave, true_wave)
    assert total.requires_grad
    assert list(parts) == list(TERMS)
    assert all(isinstance(part, torch.Tensor) and not part.requires_grad for part in parts.values())
    for name, weight in weights.items():
        pair = (planes.detach(), true_planes) if name in SPECTRAL else (wave, true_wave)
        assert float(parts[name]) == pytest.approx(weight * term(name, *pair), rel=1e-5)
    assert float(total.detach()) == pytest.approx(sum(map(float, parts.values())), rel=1e-6)


def test_a_term_without_weight_is_not_computed() -> None:
    for name in TERMS:
        loss = loss_of(**{name: 1.0})
        assert loss.needs_waveform == (name in TEMPORAL)
        parts = loss(noise(*PLANES), noise(*PLANES), noise(*WAVE), noise(*WAVE))[1]
        assert parts.keys() == {name}


def test_the_perceptual_network_is_loaded_only_where_it_weighs() -> None:
    loss_of(spectrogram_l1=1.0, perceptual_network="missing.ts")
    with pytest.raises(ConfigError, match=r"missing\.ts"):
        loss_of(perceptual=1.0, perceptual_network="missing.ts")


def test_the_perceptual_term_is_a_mean_over_layers_of_different_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = loss_of(perceptual=2.0)
    monkeypatch.setattr(loss, "features", lambda wave: [wave, 3 * wave[..., :5]])
    wave = torch.ones(WAVE)
    total, _ = loss(torch.zeros(PLANES), torch.zeros(PLANES), wave, 0 * wave)
    assert float(total) == pytest.approx(2 * (1 + 3) / 2)


def test_no_gradient_flows_into_the_truth() -> None:
    loss = loss_of(perceptual=1.0)
    wave, truth = noise(*WAVE).requires_grad_(), noise(*WAVE, seed=1).requires_grad_()
    loss(torch.zeros(PLANES), torch.zeros(PLANES), wave, truth)[0].backward()
    assert wave.grad is not None
    assert truth.grad is None


def test_magnitudes_do_not_hear_a_phase() -> None:
    planes = noise(*PLANES)
    turned = torch.stack((-planes[:, :, 1::2], planes[:, :, 0::2]), dim=3).flatten(2, 3)  # by 90 degrees
    assert term("magnitude_l1", planes, turned) == pytest.approx(0, abs=1e-7)
    assert term("spectrogram_l1", planes, turned) > 0.05
    wave = noise(*WAVE)
    assert term("multi_resolution_stft", wave, -wave) == pytest.approx(0, abs=1e-6)
    assert term("perceptual", wave, -wave) == pytest.approx(0, abs=1e-5)


def test_the_stft_term_is_level_true() -> None:
    wave, truth = noise(*WAVE), noise(*WAVE, seed=1)
    one = term("multi_resolution_stft", wave, truth)
    assert term("multi_resolution_stft", 2 * wave, 2 * truth) == pytest.approx(2 * one, rel=1e-4)


def test_every_resolution_weighs_noise_alike() -> None:
    wave = noise(1, 2, 2, 32_768)
    lengths = (256, 512, 1024, 2048)
    each = [term("multi_resolution_stft", wave, 0 * wave, windows=(length,)) for length in lengths]
    assert max(each) / min(each) < 1.1
    together = term("multi_resolution_stft", wave, 0 * wave, windows=lengths)
    assert together == pytest.approx(sum(each) / 4, rel=1e-5)


def test_waveforms_shorter_than_a_window_are_compared() -> None:
    wave = noise(1, 1, 2, 300)
    for name in ("multi_resolution_stft", "perceptual"):
        assert term(name, wave, 0 * wave) > 0
