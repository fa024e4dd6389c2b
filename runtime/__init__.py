"""Separate music with an exported network: contract, STFT, stream engine, audio, backends, parity.

    from tfswa.runtime import Separator

    with Separator("demo") as separator:
        result = separator.separate_file("song.mp3", "stems")  # files; result.written.paths has them
        stems = separator.separate(mixture)  # floats [C, N] -> [S, C, N], at separator.spec.stft.sample_rate
        stream = separator.stream()  # stream.push(block) as samples come, then stream.flush()

Every error is a ``TfxError``. ``tfswa`` is a namespace without a module, so the version is here.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfswa.runtime import errors
    from tfswa.runtime.backends import BackendOptions, backend_names
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.model.opening import Model, model_names, open_model
    from tfswa.runtime.stream.chain import Chain
    from tfswa.runtime.stream.combination import Combination
    from tfswa.runtime.stream.files import FileResult
    from tfswa.runtime.stream.separator import Separator, Stream

    __version__: str

__all__ = [
    "BackendOptions",
    "Chain",
    "Combination",
    "FileResult",
    "Model",
    "Separator",
    "Stream",
    "TfxError",
    "__version__",
    "backend_names",
    "errors",
    "model_names",
    "open_model",
]

_HOME = {
    "BackendOptions": "backends",
    "Chain": "stream.chain",
    "Combination": "stream.combination",
    "FileResult": "stream.files",
    "Model": "model.opening",
    "Separator": "stream.separator",
    "Stream": "stream.separator",
    "TfxError": "errors",
    "backend_names": "backends",
    "model_names": "model.opening",
    "open_model": "model.opening",
}

# ONNX Runtime writes a device id and looks up a server of its maker's as soon as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that ``tfx --help`` imports no numpy."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tfswa")
    if name == "errors":
        return import_module(f"{__name__}.errors")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
