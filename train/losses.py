"""Loss terms and their weighted sum.

Every term is a mean in which all items of a batch weigh alike, so a batch that is done in equal parts, one
after another or on several processes, has the mean of their losses and gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tfswa.train.config import LossConfig
from tfswa.train.perceptual import perceptual_network

# Square of the magnitude below which a bin counts as silent: its gradient goes to 0 instead of NaN.
SILENCE = 1e-12


class SeparationLoss:
    """Weighted sum of the terms of a ``LossConfig``.

    Args:
        config: weights; a term of weight 0 is not computed, nor is its network loaded.
        sample_rate: of the waveforms, in Hz.
        device: of the windows and of the perceptual network.

    Raises:
        ConfigError: the perceptual network is missing or unusable.

    Attributes:
        left_out: terms that are 0 for now.
    """

    def __init__(self, config: LossConfig, sample_rate: int, device: torch.device):
        self.config = config
        self.left_out: frozenset[str] = frozenset()
        self.windows = [torch.hann_window(length, device=device) for length in config.windows]
        if config.perceptual > 0:
            self.features = perceptual_network(config.perceptual_network, sample_rate, device)

    @property
    def needs_waveform(self) -> bool:
        """Whether any term looks at waveforms."""
        return any(map(self._counts, ("waveform_l1", "multi_resolution_stft", "si_sdr", "perceptual")))

    def __call__(
        self, planes: Tensor, true_planes: Tensor, wave: Tensor | None, true_wave: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts, weighted and detached: the parts sum to the loss.

        The parts are tensors, because reading one waits for the device.

        Args:
            planes: estimate, ``[B, S, 2*C, T, F]``, float32.
            true_planes: truth, alike.
            wave: estimate, ``[B, S, C, N]``, float32, or None where no term needs it.
            true_wave: truth, alike.
        """
        error = planes - true_planes
        terms: dict[str, Tensor] = {name: error.new_zeros(()) for name in sorted(self.left_out)}
        if self._counts("magnitude_l1"):
            terms["magnitude_l1"] = (_plane_magnitude(planes) - _plane_magnitude(true_planes)).abs().mean()
        if self._counts("spectrogram_l1"):
            terms["spectrogram_l1"] = error.abs().mean()
        if self._counts("spectrogram_mse"):
            terms["spectrogram_mse"] = error.square().mean()
        if self.needs_waveform:
            assert wave is not None
            assert true_wave is not None
            if self._counts("waveform_l1"):
                terms["waveform_l1"] = (wave - true_wave).abs().mean()
            if self._counts("multi_resolution_stft"):
                terms["multi_resolution_stft"] = self._resolutions(wave, true_wave)
            if self._counts("si_sdr"):
                terms["si_sdr"] = -_si_sdr_db(wave, true_wave).mean()
            if self._counts("perceptual"):
                terms["perceptual"] = self._perceptual(wave, true_wave)
        terms = {name: getattr(self.config, name) * term for name, term in terms.items()}
        total = torch.stack(list(terms.values())).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def _counts(self, name: str) -> bool:
        return getattr(self.config, name) > 0 and name not in self.left_out

    def _resolutions(self, wave: Tensor, true_wave: Tensor) -> Tensor:
        """Mean over the windows of the mean absolute error of magnitudes."""
        pairs = ((_magnitude(wave, window), _magnitude(true_wave, window)) for window in self.windows)
        return torch.stack([(estimate - truth).abs().mean() for estimate, truth in pairs]).mean()

    def _perceptual(self, wave: Tensor, true_wave: Tensor) -> Tensor:
        """Mean over the layers of the mean absolute error of features; a stem is an item of its own."""
        layers = self.features(wave.flatten(0, 1))  # [B*S, C, N]
        with torch.no_grad():
            true_layers = self.features(true_wave.flatten(0, 1))
        pairs = zip(layers, true_layers, strict=True)
        return torch.stack([(estimate - truth).abs().mean() for estimate, truth in pairs]).mean()


def _si_sdr_db(wave: Tensor, true_wave: Tensor) -> Tensor:
    """Scale-invariant SDR, ``[B, S, C, N] -> [B, S]``.

    After J. Le Roux et al., SDR - Half-baked or Well Done?, ICASSP 2019, with -80 dBFS of noise in both
    energies: it ends at the level where nothing is heard, and a silent truth has a gradient.
    """
    estimate, truth = wave.flatten(2), true_wave.flatten(2)
    floor = 1e-8 * truth.shape[-1]
    energy = truth.square().sum(dim=-1)
    scale = (estimate * truth).sum(dim=-1) / (energy + floor)
    target = scale[..., None] * truth
    noise = (estimate - target).square().sum(dim=-1)
    return 10 * torch.log10((target.square().sum(dim=-1) + floor) / (noise + floor))


def _plane_magnitude(planes: Tensor) -> Tensor:
    """``[B, S, 2*C, T, F] -> [B, S, C, T, F]``."""
    return _root(planes[:, :, 0::2], planes[:, :, 1::2])


def _magnitude(wave: Tensor, window: Tensor) -> Tensor:
    """``[B, S, C, N] -> [B*S*C, F, T]``, divided by the root of the window's length."""
    length = len(window)
    spectrum = torch.stft(
        wave.flatten(0, 2), length, length // 4, window=window, pad_mode="constant", return_complex=True
    )
    # White noise is as loud at one resolution as at another, so all of them weigh alike.
    return _root(spectrum.real, spectrum.imag) / math.sqrt(length)


def _root(real: Tensor, imaginary: Tensor) -> Tensor:
    power: Tensor = real.square() + imaginary.square()
    return (power + SILENCE).sqrt()
