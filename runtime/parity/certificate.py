"""The certificate: what was measured of one artifact, and all that it is bound to.

It holds figures and no verdicts, so that it can be judged again, by other gates, without being measured
again. ``evidence.py`` keeps certificates and finds them again, ``judge.py`` says whether they pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tfswa.runtime.documents import from_json
from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.keys import EVIDENCE


@dataclass(frozen=True)
class GraphFigures:
    """The network alone, on the same planes. None where a figure is not defined.

    Attributes:
        item: what the planes were made from.
        stem: its name.
        relative_error: largest difference, relative to the reference's largest value.
        snr_db: reference against their difference; None also where they are identical.
        identical: whether both are equal to the bit.
    """

    item: str
    stem: str
    relative_error: float | None
    snr_db: float | None
    identical: bool


@dataclass(frozen=True)
class SignalFigures:
    """One stem of one item, end to end. None where a figure is not defined.

    Attributes:
        item: its name.
        kind: ``real``, ``adversarial``, or ``tiny``: below -60 dBFS, or shorter than a hop.
        stem: the stem's name.
        snr_db: as in ``GraphFigures``, over the whole item.
        si_sdr_db: the same, a common scale left out.
        identical: whether both outputs are equal to the bit.
        peak_error: largest difference of one sample, full scale 1.
        by_second_db: SNR of each second of a real item; the last one ends with it.
        worst_second: start of the one with the lowest SNR, in seconds.
    """

    item: str
    kind: str
    stem: str
    snr_db: float | None
    si_sdr_db: float | None
    identical: bool
    peak_error: float | None
    by_second_db: Sequence[float | None] = ()
    worst_second: int | None = None


@dataclass(frozen=True)
class QualityFigures:
    """One stem of one song against the truth, in dB. None where a figure is not defined.

    Attributes:
        item: the song's name.
        stem: the stem's name.
        reference: of the reference: ``sdr_u_db`` (whole song), ``sdr_c_db``, ``sir_c_db``, ``sar_c_db``
            (BSSEval v4, medians over windows of a second; None where they are not defined).
        artifact: the same of the artifact.
        drift_db: the change of ``sdr_u_db``.
        drift_c_db: the change of ``sdr_c_db``.
        worst_window: start of the second with the largest change of SDR.
        worst_drift_db: that change.
    """

    item: str
    stem: str
    reference: Mapping[str, float | None]
    artifact: Mapping[str, float | None]
    drift_db: float | None
    drift_c_db: float | None
    worst_window: int | None
    worst_drift_db: float | None


@dataclass(frozen=True)
class AxisFigures:
    """The artifact against itself, run in another way.

    Attributes:
        axis: ``again``, ``batch``, ``push`` (samples at a time) or ``threads``.
        value: of the axis.
        identical: whether the output is equal to the bit.
        snr_db: of the worst stem; None where all are identical or silent.
    """

    axis: str
    value: int
    identical: bool
    snr_db: float | None


@dataclass(frozen=True)
class Certificate:
    """What was measured of one artifact on one machine.

    Attributes:
        artifact: file name in the bundle.
        artifact_sha256: of that file.
        source: digest of the bundle (spec and weights).
        backend: its name.
        precision: of the artifact.
        device: as asked for; ``triton`` where a server ran it, whatever its address.
        threads: CPU threads, None for all.
        batch: chunks at once.
        versions: libraries and tfx, with their versions.
        cpu: the processor's name.
        reference: what it was measured against.
        date: UTC, ISO 8601.
        corpus_sha256: of all items.
        corpus: name of every item with its SHA-256.
        x_realtime: seconds of real audio separated per second.
        graph: the network alone.
        signal: end to end.
        quality: against true stems.
        axes: against itself.
        non_finite: NaN and Inf that the network gave, by item.
        reference_rounding_db: SNR of the float32 reference against the one in use, by stem; empty unless
            the reference is more precise.
    """

    artifact: str
    artifact_sha256: str
    source: str
    backend: str
    precision: str
    device: str
    threads: int | None
    batch: int
    versions: Mapping[str, str]
    cpu: str
    reference: str
    date: str
    corpus_sha256: str
    corpus: Mapping[str, str]
    x_realtime: float | None
    graph: Sequence[GraphFigures]
    signal: Sequence[SignalFigures]
    quality: Sequence[QualityFigures]
    axes: Sequence[AxisFigures]
    non_finite: Mapping[str, int]
    reference_rounding_db: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.backend} {self.precision}"

    @property
    def worst_snr_db(self) -> float | None:
        """The lowest SNR of a stem of real audio; None where all are identical or undefined."""
        known = [row.snr_db for row in self.signal if row.kind == "real" and row.snr_db is not None]
        return min(known, default=None)

    @property
    def worst_drift_db(self) -> float | None:
        """The largest drift either way; None without true stems."""
        known = [row.drift_db for row in self.quality if row.drift_db is not None]
        return max(known, key=abs, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote.

        Raises:
            BundleError: keys that are missing or unknown, or a value of another type.
        """
        try:
            levels = {
                name: [from_json(kind, row, name) for row in data[name]] for name, kind in _LEVELS.items()
            }
            return from_json(cls, {**data, **levels})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{EVIDENCE} is damaged ({error}): run `tfx parity` again") from error


_LEVELS: dict[str, type[Any]] = {
    "graph": GraphFigures,
    "signal": SignalFigures,
    "quality": QualityFigures,
    "axes": AxisFigures,
}
