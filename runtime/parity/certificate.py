"""The certificate: what was measured of one artifact, and all that it is bound to.

It holds figures and no verdicts, so that it can be judged again, by other gates, without being measured
again. A bundle keeps its certificates in ``parity.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from tfswa.runtime.backends import BackendOptions, Session
from tfswa.runtime.errors import BundleError, GateError, UsageError
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.gates import Gates, default_gates, judge

EVIDENCE = "parity.json"
SCHEMA = 2


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
        by_second_db: SNR of each second of a real item.
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
            (museval's medians over windows of a second; None where museval is not installed).
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
        device: as asked for.
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
            BundleError: keys that are missing or unknown.
        """
        try:
            levels = {name: [kind(**row) for row in data[name]] for name, kind in _LEVELS.items()}
            return cls(**{**data, **levels})
        except (KeyError, TypeError) as error:
            raise BundleError(f"{EVIDENCE} is damaged ({error}): run `tfx parity` again") from error


_LEVELS: dict[str, type[Any]] = {
    "graph": GraphFigures,
    "signal": SignalFigures,
    "quality": QualityFigures,
    "axes": AxisFigures,
}
_IDENTITY = (
    "artifact",
    "artifact_sha256",
    "corpus_sha256",
    "backend",
    "precision",
    "device",
    "threads",
    "batch",
    "cpu",
    "reference",
)


def store(model: Model, certificates: Sequence[Certificate]) -> Path:
    """Add certificates to the bundle's evidence, each in place of an older one of the same combination.

    Raises:
        UsageError: the bundle cannot be written.
    """
    assert model.bundle is not None
    try:
        old = read_evidence(model)
    except BundleError:
        old = []  # damaged: the one way to mend it is to write it anew
    new = [_identity(certificate) for certificate in certificates]
    kept = [certificate for certificate in old if _identity(certificate) not in new]
    runs = [certificate.to_dict() for certificate in (*kept, *certificates)]
    text = json.dumps({"schema": SCHEMA, "certificates": runs}, indent=1, allow_nan=False) + "\n"
    return model.bundle.add(EVIDENCE, text.encode(), kind="evidence")


def read_evidence(model: Model) -> list[Certificate]:
    """All certificates that a bundle holds; none for an exported file.

    Raises:
        BundleError: the evidence is damaged.
    """
    if model.bundle is None or EVIDENCE not in model.bundle.files:
        return []
    return read_certificates(model.bundle.file(EVIDENCE), model.name)


def read_certificates(path: Path, name: str = "") -> list[Certificate]:
    """Certificates of a ``parity.json``; none where it is of another schema.

    Raises:
        BundleError: it is damaged.
    """
    try:
        evidence = json.loads(path.read_text())
        if evidence["schema"] != SCHEMA:
            return []
        return [Certificate.from_dict(run) for run in evidence["certificates"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{name or path}: {EVIDENCE} is damaged ({error}): run `tfx parity` again"
        ) from error


def passing(
    model: Model, session: Session, options: BackendOptions, gates: Gates | None = None
) -> Certificate | None:
    """A certificate of just this combination that passes its gates, if the bundle holds one.

    Raises:
        BundleError: the evidence is damaged.
    """
    bound = (found for found in read_evidence(model) if _binds(found, model, session, options))
    return next((found for found in bound if passes(found, gates)), None)


def passes(certificate: Certificate, gates: Gates | None = None) -> bool:
    """Whether a certificate meets its gates, by default those of ``gates.toml``."""
    try:
        return not judge(certificate, gates or default_gates())
    except UsageError:  # there is no gate for its precision
        return False


def require_passing(model: Model, session: Session, options: BackendOptions) -> None:
    """See that this combination has passed parity.

    Raises:
        GateError: it has not.
        BundleError: the evidence is damaged.
    """
    if passing(model, session, options) is None:
        artifact, _ = session.artifact
        raise GateError(
            f"{artifact} of {model.name} holds no passing certificate for {session.description}"
            f"{_advice(model, session, options) or ': name the bundle that it came from'}"
        )


def describe_evidence(model: Model, session: Session, options: BackendOptions) -> str:
    """Say in a few words whether this combination has passed parity; never a reason not to separate."""
    try:
        found = passing(model, session, options)
    except BundleError:
        return f"the parity evidence is damaged{_advice(model, session, options)}"
    if found is None:
        return f"no passing parity evidence here{_advice(model, session, options)}"
    figure = "silent" if found.worst_snr_db is None else f"{found.worst_snr_db:.0f} dB SNR"
    if all(row.identical for row in found.signal):
        figure = "identical"
    return f"parity passed ({figure}, {found.date[:10]})"


def _advice(model: Model, session: Session, options: BackendOptions) -> str:
    if model.bundle is None:
        return ""
    entry = session.name if options.precision in (None, "fp32") else f"{session.name}:{options.precision}"
    device = "" if options.device == "cpu" else f" --device {options.device}"
    return f": run `tfx parity {model.name} --backend {entry}{device}`"


def versions_of(session: Session) -> dict[str, str]:
    """Libraries of a session, and our own code."""
    return {"tfswa": version("tfswa"), **session.versions}


def _binds(certificate: Certificate, model: Model, session: Session, options: BackendOptions) -> bool:
    """Whether it is of just this: model, artifact, backend, libraries, our own code included."""
    name, sha256 = session.artifact
    now = {
        "artifact": name,
        "artifact_sha256": sha256,
        "source": None if model.bundle is None else model.bundle.digest,
        "backend": session.name,
        "precision": options.precision or "fp32",
        "device": options.device,
        "versions": versions_of(session),
    }
    return all(getattr(certificate, key) == value for key, value in now.items())


def _identity(certificate: Certificate) -> tuple[Any, ...]:
    versions = json.dumps(dict(certificate.versions), sort_keys=True)
    return (*(getattr(certificate, key) for key in _IDENTITY), versions)
