"""Every error tfx raises on purpose, with the exit code the command line gives it.

    TfxError                      1
    ├── UsageError                2   the request itself cannot be honored
    │   ├── ConfigError           2   a training or export configuration is wrong
    │   └── OutputExists          2   an output is there already and --force was not given
    ├── AudioError                1   a file cannot be decoded, or holds NaN or Inf
    ├── BundleError               1   a bundle or model file is damaged or not ours
    ├── NonFiniteError            1   a network produced NaN or Inf
    ├── ExportError               1   an exported graph does not match the network
    ├── TrainingError             1   training cannot go on
    ├── GateError                 3   a parity gate was not met
    └── BackendUnavailable        4   a backend, a device or a library is missing
        ├── UntrustedError        4   its file is machine code that nobody vouches for
        └── CudaError             4   a call to CUDA, or to a library on it, failed
            └── DeviceMemoryError 4   the GPU, or the host's pinned memory, is full

A message is one line with three parts: what is wrong, the two values that disagree, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable


def reason(error: BaseException) -> str:
    """What a library's error says in its first line; the name of its type where it says nothing."""
    said = getattr(error, "strerror", None) or str(error).strip()
    return str(said).splitlines()[0] if said else type(error).__name__


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``, did you mean 'fp16'?``, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(given.lower(), list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


class TfxError(Exception):
    """Root of the tree; catch this to catch everything tfx raises on purpose."""

    exit_code = 1


class UsageError(TfxError):
    """The request cannot be honored as it was made."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or override is wrong."""


class OutputExists(UsageError):
    """An output is there already and overwriting was not asked for."""


class AudioError(TfxError):
    """Audio that cannot be decoded, encoded, or that holds NaN or Inf."""


class BundleError(TfxError):
    """A bundle or a model file that is damaged, incomplete, or not tfx's."""


class NonFiniteError(TfxError):
    """A network produced NaN or Inf."""


class ExportError(TfxError):
    """An exported graph does not match the network it came from."""


class TrainingError(TfxError):
    """Training cannot go on."""


class GateError(TfxError):
    """A parity gate was not met."""

    exit_code = 3


class BackendUnavailable(TfxError):
    """A backend, a device or a library that was asked for is missing."""

    exit_code = 4


class UntrustedError(BackendUnavailable):
    """A file is machine code that this machine did not make and no known key signed."""


class CudaError(BackendUnavailable):
    """A call to CUDA failed, or one to a library that runs on it."""


class DeviceMemoryError(CudaError):
    """The GPU has no memory left, or the host none that can be pinned."""
