"""The STFT of the contract in torch: differentiable, and independent of the runtime's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tfswa.runtime.model.spec import StftSpec


class DifferentiableStft:
    """Planes from waveforms and back, by torch's FFT and fold.

    Args:
        spec: the transform.
        device: of the window.
        dtype: of the window, and so of what it transforms.
    """

    def __init__(
        self, spec: StftSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        self.spec = spec
        self.window = torch.ones(spec.n_fft, device=device, dtype=dtype)
        if spec.window == "hann":
            self.window = torch.hann_window(spec.n_fft, periodic=True, device=device, dtype=dtype)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., C, N] -> planes [..., 2*C, T, F], spectrum [..., C, T, K]`` (complex)."""
        *lead, channels, samples = signal.shape
        n_fft, hop, first = self.spec.n_fft, self.spec.hop, self.spec.first_bin
        frames = self.spec.frames(samples)
        before = n_fft // 2 - self.spec.offset
        filled = F.pad(signal.reshape(-1, 1, samples), (0, self.spec.fill))
        pad = (before, (frames - 1) * hop + n_fft - before - filled.shape[-1])
        mode = "reflect" if self.spec.padding == "reflect" else "constant"
        padded = F.pad(filled, pad, mode)[:, 0]
        spectrum = torch.fft.rfft(padded.unfold(-1, n_fft, hop) * self.window) * self.spec.scale
        seen = spectrum[..., first : first + self.spec.bins]
        planes = torch.view_as_real(seen).permute(0, 3, 1, 2)
        shape = (*lead, 2 * channels, frames, self.spec.bins)
        return planes.reshape(shape), spectrum.reshape(*lead, channels, frames, self.spec.all_bins)

    def inverse(self, planes: Tensor, others: Tensor | None, samples: int) -> Tensor:
        """Planes to waveforms.

        Args:
            planes: ``[..., 2*C, T, F]``.
            others: complex ``[..., C, T, K]``, for the bins that planes do not have; None: zeros.
            samples: N.

        Returns:
            ``[..., C, N]``.
        """
        *lead, double, frames, bins = planes.shape
        n_fft, first = self.spec.n_fft, self.spec.first_bin
        pairs = planes.reshape(-1, 2, frames, bins).permute(0, 2, 3, 1).contiguous()
        seen = torch.view_as_complex(pairs)
        if self.spec.zero_below > first:
            seen = F.pad(seen[..., self.spec.zero_below - first :], (self.spec.zero_below - first, 0))
        if others is None:
            spectrum = F.pad(seen, (first, self.spec.all_bins - first - bins))
        else:
            others = others.reshape(-1, frames, self.spec.all_bins)
            spectrum = torch.cat((others[..., :first], seen, others[..., first + bins :]), dim=-1)
        pieces = torch.fft.irfft(spectrum / self.spec.scale, n_fft) * self.window  # [B, T, n_fft]
        before = n_fft // 2 - self.spec.offset
        total = self._overlap_add(pieces)[:, before : before + samples]
        # An endless signal has frames before the first and behind the last one.
        more = -(-n_fft // self.spec.hop) if self.spec.endless else 0
        squares = (self.window**2).to(pieces.dtype).expand(1, frames + 2 * more, -1)
        before += more * self.spec.hop
        weight = self._overlap_add(squares)[:, before : before + samples]
        return (total / weight).reshape(*lead, double // 2, samples)

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """``[B, T, n_fft] -> [B, (T - 1) * hop + n_fft]``."""
        frames, n_fft = pieces.shape[1:]
        length = (frames - 1) * self.spec.hop + n_fft
        columns = pieces.transpose(1, 2)
        return F.fold(columns, (1, length), (1, n_fft), stride=(1, self.spec.hop))[:, 0, 0]
