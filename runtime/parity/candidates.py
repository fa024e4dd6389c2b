"""Candidates: the artifacts that parity is to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tfswa.runtime.backends import BackendOptions, backend_names, compiles, default_device, precisions_of
from tfswa.runtime.errors import UsageError


@dataclass(frozen=True)
class Candidate:
    """One artifact to measure: a backend, and how it is run."""

    backend: str
    options: BackendOptions = BackendOptions()
    batch: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.backend} {self.options.precision or 'fp32'}"


def candidates_of(
    entries: Sequence[str],
    device: str | None = None,
    threads: int | None = None,
) -> tuple[list[Candidate], bool]:
    """What to measure, and whether the user named it."""
    if entries:
        pairs = [(name, kind or None) for name, _, kind in (entry.partition(":") for entry in entries)]
    else:
        names = [name for name in backend_names() if not compiles(name)]
        pairs = [(name, kind) for name in names for kind in precisions_of(name)]
    if any(name == "auto" for name, _ in pairs):
        raise UsageError("parity measures backends one by one: name them with --backend ort, openvino, ...")
    runs = [
        Candidate(name, BackendOptions(kind, device or default_device(name), threads)) for name, kind in pairs
    ]
    return runs, bool(entries)
