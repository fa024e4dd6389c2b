"""The host's transform by torch, for chunks that go to a GPU anyway.

The arithmetic is that of ``transform.py`` in another library's FFT: results are its to within the rounding of
float32, and each chunk is transformed by itself, so that they do not depend on batch or block size either.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import StftSpec
from tfswa.runtime.stream.transform import Stft


def transform_for(spec: StftSpec, device: str) -> Stft:
    """The transform for a backend on a device: on that GPU where torch with CUDA is, else on the CPU.

    Args:
        spec: lengths, scaling.
        device: as backends have it: ``cpu``, or a GPU by any of its names with ``:N`` after it.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return Stft(spec)
    try:
        torch: Any = import_module("torch")
    except (ImportError, OSError):  # engines and ONNX Runtime do without
        return Stft(spec)
    if not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count():
        return Stft(spec)
    return TorchStft(spec, f"cuda:{index or 0}")


class TorchStft(Stft):
    """``Stft`` on a device of torch; arguments, results and errors are the same.

    Args:
        spec: lengths, scaling.
        device: of torch, such as ``cuda:0``.
    """

    def __init__(self, spec: StftSpec, device: str) -> None:
        super().__init__(spec)
        self._torch: Any = import_module("torch")
        self._device = device
        self._windows = {
            name: self._torch.from_numpy(window).to(device)
            for name, window in (("analysis", self._analysis), ("synthesis", self._synthesis))
        }

    @property
    def place(self) -> str:
        """Where it computes, in words."""
        return self._device

    def _forward(self, padded: NDArray[np.float32], spectrum: NDArray[np.complex64]) -> None:
        with self._torch.inference_mode():
            frames = self._torch.from_numpy(padded).to(self._device)
            frames = frames.unfold(-1, self.spec.n_fft, self.spec.hop)  # [..., T, n_fft], a view
            found = self._torch.fft.rfft(frames * self._windows["analysis"])
            spectrum[...] = found.cpu().numpy()

    def _inverse(self, spectrum: NDArray[np.complex64], rows: NDArray[np.float32]) -> None:
        hop, frames = self.spec.hop, spectrum.shape[-2]
        with self._torch.inference_mode():
            pieces = self._torch.from_numpy(np.ascontiguousarray(spectrum)).to(self._device)
            pieces = self._torch.fft.irfft(pieces, self.spec.n_fft) * self._windows["synthesis"]
            total = self._torch.zeros(rows.shape, device=self._device)
            for j in range(-(-self.spec.n_fft // hop)):
                part = pieces[..., j * hop : (j + 1) * hop]
                total[..., j : j + frames, : part.shape[-1]] += part
            rows[...] = total.cpu().numpy()
