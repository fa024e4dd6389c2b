"""The library museval, for figures that are its own, ill-conditioned or not (``--bsseval museval``)."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.evaluation.signals import Signal


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


def museval_figures(
    references: Sequence[Signal], estimates: Sequence[Signal], window: int
) -> NDArray[np.float64]:
    """SDR, ISR, SIR, SAR in dB, ``[4, S, windows]``, of signals ``[C, N]`` that sound.

    NaN throughout where museval finds the correlations singular.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from museval import metrics
    stems, found = (
        np.stack([np.asarray(one[:, :].T, np.float64) for one in signals])
        for signals in (references, estimates)
    )
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            figures = metrics.bss_eval(stems, found, window=window, hop=window, compute_permutation=False)
    except (AttributeError, np.linalg.LinAlgError):
        # Its way out of singular correlations asks for numpy.linalg.linalg, which NumPy 2 does not have.
        return np.full((4, len(stems), max(1, stems.shape[1] // window)), np.nan)
    return np.stack(figures[:4])
