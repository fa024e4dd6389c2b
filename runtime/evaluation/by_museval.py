"""The library museval, for figures that are its own, ill-conditioned or not (``--bsseval museval``)."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable


def require_museval() -> None:
    """See that museval can be imported.

    Raises:
        BackendUnavailable: it is not installed, or ffmpeg or ffprobe, which it asks for, are not on PATH.
    """
    if importlib.util.find_spec("museval") is None:
        raise BackendUnavailable("--bsseval museval needs museval: pip install 'tfswa[eval]'")
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        raise BackendUnavailable(
            f"museval needs {' and '.join(missing)} on PATH: install ffmpeg (apt-get install ffmpeg)"
        )


def museval_figures(references: NDArray[Any], estimates: NDArray[Any], window: int) -> NDArray[np.float64]:
    """SDR, ISR, SIR, SAR in dB, ``[4, S, windows]``, of signals ``[S, C, N]`` that sound.

    NaN throughout where museval finds the correlations singular.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from museval import metrics
    stems, found = (
        np.ascontiguousarray(signals.transpose(0, 2, 1), np.float64) for signals in (references, estimates)
    )
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            figures = metrics.bss_eval(stems, found, window=window, hop=window, compute_permutation=False)
    except (AttributeError, np.linalg.LinAlgError):
        # Its way out of singular correlations asks for numpy.linalg.linalg, which NumPy 2 does not have.
        return np.full((4, len(stems), max(1, stems.shape[1] // window)), np.nan)
    return np.stack(figures[:4])
