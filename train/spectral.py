"""The STFT of the contract in torch: differentiable, and independent of the runtime's."""

from __future__ import annotations

import torch
from torch import Tensor

from tfswa.runtime.model.spec import StftSpec


class DifferentiableStft:
    """Planes from waveforms and back, by torch.stft and torch.istft.

    Args:
        spec: the transform.
        device: of the window.
        dtype: of the window, and so of what it transforms.
    """

    def __init__(
        self, spec: StftSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        self.spec = spec
        self.window = torch.hann_window(spec.n_fft, periodic=True, device=device, dtype=dtype)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., C, N] -> planes [..., 2*C, T, F], nyquist [..., C, T]`` (complex); N a multiple of hop."""
        *lead, channels, samples = signal.shape
        spectrum = torch.stft(
            signal.reshape(-1, samples),
            self.spec.n_fft,
            self.spec.hop,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        spectrum = (spectrum * self.spec.scale).transpose(1, 2)  # [..., T, F + 1]
        frames, bins = spectrum.shape[1], self.spec.bins
        planes = torch.view_as_real(spectrum[..., :bins]).permute(0, 3, 1, 2)
        nyquist = spectrum[..., bins].reshape(*lead, channels, frames)
        return planes.reshape(*lead, 2 * channels, frames, bins), nyquist

    def inverse(self, planes: Tensor, nyquist: Tensor, samples: int) -> Tensor:
        """``[..., 2*C, T, F], [..., C, T] -> [..., C, N]``."""
        *lead, double, frames, bins = planes.shape
        pairs = planes.reshape(-1, 2, frames, bins).permute(0, 2, 3, 1).contiguous()
        spectrum = torch.cat((torch.view_as_complex(pairs), nyquist.reshape(-1, frames, 1)), dim=-1)
        signal = torch.istft(
            (spectrum / self.spec.scale).transpose(1, 2),
            self.spec.n_fft,
            self.spec.hop,
            window=self.window,
            center=True,
            length=samples,
        )
        return signal.reshape(*lead, double // 2, samples)
