"""A model's verdict: its certificates, measured now or held by its bundle, beside their gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa.runtime.errors import BackendUnavailable, GateError, UsageError
from tfswa.runtime.failures import Failure
from tfswa.runtime.gates import Gates
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.compare import certify
from tfswa.runtime.parity.corpus import adversaries, songs
from tfswa.runtime.parity.evidence import read_evidence, store
from tfswa.runtime.parity.judge import Breach, judge
from tfswa.runtime.parity.pace import ParityStep
from tfswa.runtime.parity.polygraphy import command_line

if TYPE_CHECKING:
    from tfswa.runtime.parity.report.excerpts import Showcase


@dataclass(frozen=True)
class Measurement:
    """What is to be measured of a model, and how it is judged.

    Attributes:
        candidates: backends and precisions.
        named: whether the user named them.
        gates: what must be reached.
        audio: songs; None for a generated one.
        reference: its name; None for the usual one.
        quick: the songs alone.
    """

    candidates: Sequence[Candidate]
    named: bool
    gates: Gates
    audio: Path | None
    reference: str | None
    quick: bool


@dataclass(frozen=True)
class Verdict:
    """What was found of one model.

    Attributes:
        model: the model.
        judged: certificates, each with what does not reach its gate.
        gates: by which.
        missing: reasons why others were not measured, by name.
        failures: songs, and candidates that were named, that are in no figures.
        items: how many songs and candidates there were.
        evidence: where the certificates are kept; None where nothing was measured.
    """

    model: Model
    judged: Sequence[tuple[Certificate, Sequence[Breach]]]
    gates: Gates
    missing: dict[str, str] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    items: int = 0
    evidence: Path | None = None

    def check(self) -> None:
        """See that every gate is met.

        Raises:
            GateError: one is not.
        """
        failed = [(certificate, breaches) for certificate, breaches in self.judged if breaches]
        if failed:
            certificate, breaches = failed[0]
            more = sum(len(others) for _, others in failed) - 1
            also = f" (and {more} more)" if more else ""
            raise GateError(f"{certificate.name}: {breaches[0]}{also}")

    def polygraphy(self, certificate: Certificate) -> str | None:
        """The line that repeats the comparison of the graph alone, where polygraphy can run it."""
        limit = self.gates.of(certificate.precision).snr_db
        bundle = self.model.bundle
        if bundle is None or certificate.artifact not in bundle.files or not isfinite(limit):
            return None
        return command_line(bundle, certificate.artifact, limit)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        rows = [
            {
                **certificate.to_dict(),
                "passed": not breaches,
                "breaches": [asdict(breach) for breach in breaches],
                "polygraphy": self.polygraphy(certificate),
            }
            for certificate, breaches in self.judged
        ]
        place = None if self.evidence is None else str(self.evidence)
        return {
            "model": self.model.name,
            "evidence": place,
            "certificates": rows,
            "missing": dict(self.missing),
            "errors": [failure.to_dict() for failure in self.failures],
        }


def measure_and_judge(
    model: Model,
    task: Measurement,
    *,
    report: Callable[[ParityStep], None] = lambda step: None,
    showcase: Showcase | None = None,
) -> Verdict:
    """Measure a model's artifacts, keep the certificates in its bundle, and judge them.

    A song that cannot be loaded and a candidate that fails cost the others nothing: they are in ``failures``.

    Args:
        model: a bundle's model.
        task: what is measured.
        report: told what is under way.
        showcase: listens, for a page.

    Raises:
        UsageError: an exported file, or a candidate that was named has no gate.
        BackendUnavailable: all candidates are missing here.
        AudioError: no song can be loaded and holds sound.
    """
    candidates, missing = _with_gates(task)
    heard, failures = songs(task.audio, model.spec), list[Failure]()
    corpus = [*heard, *([] if task.quick else adversaries(model.spec))]
    certificates = certify(
        model,
        corpus,
        candidates,
        reference=task.reference,
        axes=not task.quick,
        missing=None if task.named else missing,
        failures=failures,
        report=report,
        listener=None if showcase is None else showcase.listen,
        resume=True,
    )
    if not certificates:
        if len(failures) == 1 and not missing:
            raise failures[0].error
        reasons = "; ".join(
            [*(f"{name}: {why}" for name, why in missing.items()), *(one.told for one in failures)]
        )
        raise BackendUnavailable(f"no backend can run {model.name}: {reasons}")
    judged = [(found, judge(found, task.gates)) for found in certificates]
    items = len(heard) + len(candidates)
    return Verdict(model, judged, task.gates, missing, failures, items, store(model, certificates))


def judge_held(model: Model, task: Measurement) -> Verdict:
    """Judge what a bundle holds of its present files; nothing is measured.

    Raises:
        UsageError: it holds nothing of that.
    """
    certificates = [found for found in read_evidence(model) if _is_meant(found, model, task)]
    if not certificates:
        name = model.name
        raise UsageError(f"{name} holds no certificate of that: measure first, `tfx parity {name}`")
    return Verdict(model, [(found, judge(found, task.gates)) for found in certificates], task.gates)


def _with_gates(task: Measurement) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates that can be judged, and why the others cannot; raises where the user named one of those."""
    kept, missing = [], {}
    for candidate in task.candidates:
        try:
            task.gates.of(candidate.options.precision or "fp32")
            kept.append(candidate)
        except UsageError as error:
            if task.named:
                raise
            missing[candidate.name] = str(error)
    return kept, missing


def _is_meant(certificate: Certificate, model: Model, task: Measurement) -> bool:
    """Whether it is of a file that the bundle holds now, and of a backend that was named, if any was."""
    assert model.bundle is not None  # or there is no evidence
    held = {entry.sha256 for entry in model.bundle.files.values()}
    names = {candidate.name for candidate in task.candidates}
    return certificate.artifact_sha256 in held and (certificate.name in names or not task.named)
