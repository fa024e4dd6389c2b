"""Evidence: certificates kept in a bundle's ``parity.json``, and found again for what is about to run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfswa.runtime.backends import BackendOptions, Session, certified_device
from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import BundleError, GateError, UsageError
from tfswa.runtime.files import seal
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.gates import Gates, default_gates
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.keys import EVIDENCE, signed_evidence
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.judge import judge, passes
from tfswa.runtime.plugins import entry_points

SCHEMA = 2
MEASURED = "measured"  # kind of what ``files/seal.py`` vouches for
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
    for certificate in certificates:
        seal.vouch(MEASURED, sha256_of_json(certificate.to_dict()))
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
        evidence = parse_json(read_document(path))
        if evidence["schema"] != SCHEMA:
            return []
        return [Certificate.from_dict(run) for run in evidence["certificates"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{name or path}: {EVIDENCE} is damaged ({error}): run `tfx parity` again"
        ) from error


def is_measured_here(certificate: Certificate) -> bool:
    """Whether ``store`` was given it on this machine, just as it is."""
    return seal.is_vouched(MEASURED, sha256_of_json(certificate.to_dict()))


def is_held(certificate: Certificate, bundle: Bundle) -> bool:
    """Whether it is of this model, and of a file that the bundle holds now."""
    hashes = {entry.sha256 for entry in bundle.files.values()}
    return certificate.artifact_sha256 in hashes and certificate.source == bundle.digest


def passing(
    model: Model, session: Session, options: BackendOptions, gates: Gates | None = None
) -> Certificate | None:
    """A certificate of just this combination that passes its gates, if the bundle holds one.

    Raises:
        BundleError: the evidence is damaged.
    """
    bound = (found for found in read_evidence(model) if _binds(found, model, session, options))
    return next((found for found in bound if passes(found, gates)), None)


def require_passing(
    model: Model, session: Session, options: BackendOptions, signed_by: Path | None = None
) -> None:
    """See that this combination has passed parity.

    Args:
        model: that is run.
        session: that runs it.
        options: that it was opened with.
        signed_by: a public key whose owner must have signed the certificate; None believes an unsigned one,
            which whoever can write into the bundle can write.

    Raises:
        GateError: it has not, or that was not signed.
        UsageError: no such key.
        BackendUnavailable: the library that checks signatures is missing.
        BundleError: the evidence is damaged.
    """
    if signed_by is not None and model.bundle is not None:
        try:
            signed_evidence(model.bundle, signed_by)
        except BundleError as error:
            raise GateError(f"{error}") from error
    if passing(model, session, options) is None:
        artifact, _ = session.artifact
        raise GateError(
            f"{artifact} of {model.name} holds no passing certificate for {session.description}"
            f"{_advice(model, session, options) or ': name the bundle that it came from'}"
        )


def describe_evidence(model: Model, session: Session, options: BackendOptions) -> str:
    """Say in a few words whether this combination has passed parity; never a reason not to separate."""
    advice = _advice(model, session, options) if _can_measure(model) else ""
    try:
        bound = [found for found in read_evidence(model) if _binds(found, model, session, options)]
    except BundleError:
        return f"the parity evidence is damaged{advice}"
    bound.sort(key=lambda found: found.date, reverse=True)
    for found in bound:
        if passes(found):
            figure = "silent" if found.worst_snr_db is None else f"{found.worst_snr_db:.0f} dB SNR"
            if all(row.identical for row in found.signal):
                figure = "identical"
            return f"parity passed ({figure}, {found.date[:10]})"
    if not bound:
        return f"no parity evidence here{advice}"
    try:
        why = str(judge(bound[0], default_gates())[0])
    except UsageError as error:  # there is no gate for its precision
        why = str(error)
    return f"parity FAILED on {bound[0].date[:10]} ({why})"


def _can_measure(model: Model) -> bool:
    """Whether a reference can run here; where it cannot, there is no use in asking for parity."""
    families = {point.name for point in entry_points(group="tfswa.families")}
    family = model.spec.family
    known = find_spec("onnxruntime") is not None if family is None else family in families
    return known and find_spec("torch") is not None


def _advice(model: Model, session: Session, options: BackendOptions) -> str:
    if model.bundle is None:
        return ""
    entry = session.name if options.precision in (None, "fp32") else f"{session.name}:{options.precision}"
    device = "" if options.device == "cpu" else f" --device {shlex.quote(options.device)}"
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
        "device": certified_device(session, options.device),
        "versions": versions_of(session),
    }
    return all(getattr(certificate, key) == value for key, value in now.items())


def _identity(certificate: Certificate) -> tuple[Any, ...]:
    versions = json.dumps(dict(certificate.versions), sort_keys=True)
    return (*(getattr(certificate, key) for key in _IDENTITY), versions)
