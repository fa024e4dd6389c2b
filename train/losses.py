"""Loss terms and their weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from tfswa.train.config import LossConfig


class SeparationLoss:
    """Weighted sum of the terms of a ``LossConfig``.

    Args:
        config: weights; a term of weight 0 is not computed.
        device: of the windows.
    """

    def __init__(self, config: LossConfig, device: torch.device):
        self.config = config
        self.windows = [torch.hann_window(length, device=device) for length in config.windows]

    @property
    def needs_waveform(self) -> bool:
        """Whether any term looks at waveforms."""
        return self.config.waveform_l1 > 0 or self.config.multi_resolution_stft > 0

    def __call__(
        self, planes: Tensor, true_planes: Tensor, wave: Tensor | None, true_wave: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts.

        Args:
            planes: estimate, ``[B, S, 2*C, T, F]``.
            true_planes: truth, alike.
            wave: estimate, ``[B, S, C, N]``, or None where no term needs it.
            true_wave: truth, alike.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.spectrogram_l1 > 0:
            terms["spectrogram_l1"] = config.spectrogram_l1 * (planes - true_planes).abs().mean()
        if wave is not None and config.waveform_l1 > 0:
            terms["waveform_l1"] = config.waveform_l1 * (wave - true_wave).abs().mean()
        if wave is not None and config.multi_resolution_stft > 0:
            terms["multi_resolution_stft"] = config.multi_resolution_stft * self._magnitudes(wave, true_wave)
        total = torch.stack(list(terms.values())).sum()
        return total, {name: float(term.detach()) for name, term in terms.items()}

    def _magnitudes(self, wave: Tensor, true_wave: Tensor) -> Tensor:
        both = torch.stack((wave, true_wave)).flatten(1, -2)  # [2, B*S*C, N]
        distances = []
        for window in self.windows:
            length = len(window)
            flat, hop = both.flatten(0, 1), length // 4
            spectrum = torch.stft(flat, length, hop, window=window, pad_mode="constant", return_complex=True)
            # Divided by the window's energy, so that every resolution weighs alike.
            magnitude = (torch.view_as_real(spectrum).square().sum(-1) + 1e-8).sqrt() / length**0.5
            estimate, truth = magnitude.chunk(2)
            distances.append((estimate - truth).abs().mean())
        return torch.stack(distances).mean()
