"""Separate music with an exported network: contract, STFT, stream engine, audio, backends, parity."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model, open_model
    from tfswa.runtime.stream.separator import Separator

__all__ = ["Model", "Separator", "open_model"]

_HOME = {"Model": "model.opening", "open_model": "model.opening", "Separator": "stream.separator"}


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that ``tfx --help`` imports no numpy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
