"""Parity: what an artifact lost against the eager network, in dB, bound to what was measured.

The artifact goes through the real separator; the reference shares no host code with it (another STFT,
another overlap-add), so that a fault of the host cannot cancel out.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, Session
from tfswa.runtime.errors import AudioError, BackendUnavailable, BundleError, NonFiniteError, UsageError
from tfswa.runtime.metrics import sdr_db, snr_db
from tfswa.runtime.models import Model
from tfswa.runtime.separator import Separator
from tfswa.runtime.truth import Song

EVIDENCE = "parity.json"
SCHEMA = 1
REFERENCES = "tfswa.references"


@dataclass(frozen=True)
class Gate:
    """What an artifact must reach on every stem of every song.

    Attributes:
        snr_db: least signal-to-noise ratio of the artifact's output against the reference's.
        drift_db: largest change of SDR against the true stems, either way.

    Raises:
        UsageError: a limit that is no number, or a drift below 0.
    """

    snr_db: float
    drift_db: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.snr_db) or not 0 <= self.drift_db < math.inf:
            raise UsageError(
                f"a gate of {self.snr_db} dB SNR and {self.drift_db} dB drift cannot be measured against: "
                "give finite numbers, the drift 0 or more"
            )


# float32 differs by rounding alone: about 120 dB. An error at 40 dB costs a stem of 8 dB 0.003 dB of SDR.
GATES = {"fp32": Gate(80.0, 0.01), "fp16": Gate(45.0, 0.05), "bf16": Gate(36.0, 0.05)}


def gate_for(precision: str | None, snr_db: float | None = None, drift_db: float | None = None) -> Gate:
    """The gate of a precision (None is fp32), with what was asked for in place of its defaults.

    Raises:
        UsageError: a precision without defaults, and not both limits given; or limits that are no numbers.
    """
    default = GATES.get(precision or "fp32")
    if snr_db is not None and drift_db is not None:
        return Gate(snr_db, drift_db)
    if default is None:
        raise UsageError(f"no default gate for precision {precision!r}: give --min-snr-db and --max-drift-db")
    return Gate(
        default.snr_db if snr_db is None else snr_db, default.drift_db if drift_db is None else drift_db
    )


@dataclass(frozen=True)
class StemParity:
    """One stem of one song. None where a figure is not defined (silence, unknown truth).

    Attributes:
        song: the song's name.
        stem: the stem's name.
        snr_db: reference output against their difference; None also where they are identical.
        identical: whether both outputs are equal to the bit.
        reference_sdr_db: SDR of the reference against the true stem.
        sdr_db: SDR of the artifact against the true stem.
        drift_db: ``sdr_db`` - ``reference_sdr_db``.
        non_finite: NaN and Inf in the network's output planes, up to the chunk that they stopped.
    """

    song: str
    stem: str
    snr_db: float | None
    identical: bool
    reference_sdr_db: float | None
    sdr_db: float | None
    drift_db: float | None
    non_finite: int

    def passes(self, gate: Gate) -> bool:
        """Whether this stem meets the gate. A stem with nothing to measure passes only if identical."""
        if self.non_finite:
            return False
        if self.drift_db is not None and abs(self.drift_db) > gate.drift_db:
            return False
        return self.identical or (self.snr_db is not None and self.snr_db >= gate.snr_db)


@dataclass(frozen=True)
class ParityReport:
    """A parity run: figures, and what they are bound to.

    Attributes:
        artifact: file name in the bundle.
        artifact_sha256: of that file.
        source: digest of the bundle (spec and weights).
        corpus_sha256: of all songs.
        backend: its name.
        precision: of the artifact.
        device: as asked for.
        threads: CPU threads, None for all.
        batch: chunks at once.
        versions: libraries, with their versions.
        reference: what it was measured against.
        gate: what had to be reached.
        date: UTC, ISO 8601.
        stems: the figures.
    """

    artifact: str
    artifact_sha256: str
    source: str
    corpus_sha256: str
    backend: str
    precision: str
    device: str
    threads: int | None
    batch: int
    versions: Mapping[str, str]
    reference: str
    gate: Gate
    date: str
    stems: Sequence[StemParity]

    @property
    def passed(self) -> bool:
        """Whether every stem of every song meets the gate."""
        return bool(self.stems) and all(stem.passes(self.gate) for stem in self.stems)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, verdict included."""
        whole = asdict(self)
        whole["stems"] = [{**asdict(stem), "passed": stem.passes(self.gate)} for stem in self.stems]
        return {**whole, "passed": self.passed}


class Reference(Protocol):
    """What parity is measured against; found through the entry-point group ``tfswa.references``."""

    description: str

    def __init__(self, model: Model): ...

    def separate(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]``."""


def compare(
    model: Model,
    songs: Sequence[Song],
    *,
    backend: str,
    options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
    batch: int = 1,
    reference: str = "torch",
    gate: Gate | None = None,
) -> ParityReport:
    """Run songs through an artifact and through the reference, and compare.

    Args:
        model: a bundle's model.
        songs: what to separate.
        backend: which backend runs the artifact.
        options: precision, device, threads.
        batch: chunks at once.
        reference: name of the reference.
        gate: what to reach; the precision's default if left out.

    Raises:
        UsageError: an exported file (it holds no weights for the reference), or no such reference.
        BackendUnavailable: backend or reference is missing here.
        AudioError: no song holds any sound, so that nothing would be measured.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file: parity needs the bundle that it came from")
    limits = gate or gate_for(options.precision)
    if not any(song.mixture.any() for song in songs):
        raise AudioError(
            f"{', '.join(song.name for song in songs) or 'the corpus'} holds no sound, which every "
            "artifact separates alike: measure on music"
        )
    truth = load_reference(reference)(model)
    stems: list[StemParity] = []
    with Separator(model, backend=backend, options=options, batch=batch) as separator:
        session = _Counting(separator.session)
        separator.session = session
        for song in songs:
            stems += _compare_song(separator, session, truth, song)
        return ParityReport(
            *session.artifact,
            source=model.bundle.digest,
            corpus_sha256=corpus_sha256(songs),
            backend=session.name,
            precision=options.precision or "fp32",
            device=options.device,
            threads=options.threads,
            batch=batch,
            versions=_versions(session),
            reference=truth.description,
            gate=limits,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            stems=stems,
        )


def corpus_sha256(songs: Sequence[Song]) -> str:
    """Hash that binds evidence to the songs it was measured on."""
    return hashlib.sha256("".join(song.sha256 for song in songs).encode()).hexdigest()


def load_reference(name: str) -> type[Reference]:
    """Find a reference by name.

    Raises:
        UsageError: no such reference.
        BackendUnavailable: its library is missing.
    """
    known = {point.name: point for point in entry_points(group=REFERENCES)}
    if name not in known:
        raise UsageError(f"unknown reference {name!r}: choose one of {', '.join(sorted(known))}")
    try:
        return cast(type[Reference], known[name].load())
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"reference {name} needs {error.name}: pip install 'tfswa[torch]'"
        ) from error


def store(model: Model, report: ParityReport) -> Path:
    """Add a report to the bundle's evidence, in place of an older one of the same combination.

    Raises:
        UsageError: the bundle cannot be written.
    """
    assert model.bundle is not None
    new = report.to_dict()
    try:
        old = read_evidence(model)
    except BundleError:
        old = []  # damaged: the one way to mend it is to write it anew
    kept = [run for run in old if _identity(run) != _identity(new)]
    text = json.dumps({"schema": SCHEMA, "runs": [*kept, new]}, indent=1, allow_nan=False) + "\n"
    return model.bundle.add(EVIDENCE, lambda path: _write(path, text), kind="evidence")


def read_evidence(model: Model) -> list[dict[str, Any]]:
    """All parity runs that a bundle holds; none for an exported file.

    Raises:
        BundleError: the evidence is damaged.
    """
    if model.bundle is None or EVIDENCE not in model.bundle.files:
        return []
    try:
        evidence = json.loads(model.bundle.file(EVIDENCE).read_text())
        return list(evidence["runs"]) if evidence["schema"] == SCHEMA else []
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{model.name}: {EVIDENCE} is damaged ({error}): run `tfx parity` again") from error


def describe_evidence(model: Model, session: Session, options: BackendOptions) -> str:
    """Say in a few words whether this combination has passed parity; never a reason not to separate."""
    advice = "" if model.bundle is None else f": run `tfx parity {model.name} --backend {session.name}`"
    try:
        runs = read_evidence(model)
    except BundleError:
        return f"the parity evidence is damaged{advice}"
    for run in runs:
        if run["passed"] and _binds(run, model, session, options):
            worst = [stem["snr_db"] for stem in run["stems"] if stem["snr_db"] is not None]
            figure = f"{min(worst):.0f} dB SNR" if worst else "identical"
            return f"parity passed ({figure}, {run['date'][:10]})"
    return f"no passing parity evidence here{advice}"


def _binds(run: Mapping[str, Any], model: Model, session: Session, options: BackendOptions) -> bool:
    """Whether a run measured just this: model, artifact, backend, libraries, our own code included."""
    name, sha256 = session.artifact
    now = {
        "artifact": name,
        "artifact_sha256": sha256,
        "source": None if model.bundle is None else model.bundle.digest,
        "backend": session.name,
        "precision": options.precision or "fp32",
        "device": options.device,
        "versions": _versions(session),
    }
    return all(run[key] == value for key, value in now.items())


def _versions(session: Session) -> dict[str, str]:
    return {"tfswa": version("tfswa"), **session.versions}


def _compare_song(
    separator: Separator, session: _Counting, reference: Reference, song: Song
) -> list[StemParity]:
    session.non_finite = 0
    # Rounded as the artifact's output is, so that what is identical differs by nothing at all.
    expected = reference.separate(song.mixture).astype(np.float32)
    try:
        found = separator.separate(song.mixture)
    except NonFiniteError:
        return [
            StemParity(song.name, stem, None, False, None, None, None, session.non_finite)
            for stem in separator.spec.stems
        ]
    rows = []
    for index, stem in enumerate(separator.spec.stems):
        true = song.stems.get(stem)
        before = None if true is None else _finite(sdr_db(true, expected[index]))
        after = None if true is None else _finite(sdr_db(true, found[index]))
        drift = None if before is None or after is None else after - before
        identical = bool(np.array_equal(expected[index], found[index]))
        snr = _finite(snr_db(expected[index], found[index]))
        rows.append(StemParity(song.name, stem, snr, identical, before, after, drift, session.non_finite))
    return rows


class _Counting:
    """A session that counts what is not finite."""

    def __init__(self, session: Session):
        self._session = session
        self.name, self.artifact, self.description = session.name, session.artifact, session.description
        self.versions = session.versions
        self.non_finite = 0

    def infer(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        out = self._session.infer(mixture)
        self.non_finite += int(out.size - np.count_nonzero(np.isfinite(out)))
        return out

    def close(self) -> None:
        self._session.close()


def _identity(run: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = (
        "artifact",
        "artifact_sha256",
        "corpus_sha256",
        "backend",
        "precision",
        "device",
        "threads",
        "batch",
    )
    return (*(run[key] for key in keys), json.dumps(run["versions"], sort_keys=True))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
