"""``tfx parity`` without a mode: measure, keep, judge, tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.parity import Breach, Candidate, Certificate, Gates
    from tfswa.runtime.parity.report.excerpts import Showcase


@dataclass(frozen=True)
class Outputs:
    """Where results go, beside stdout.

    Attributes:
        junit: JUnit XML.
        markdown: the tables.
        report: the HTML page.
        no_audio: without players.
        force: replace files that are there.
        as_json: one JSON object on stdout in place of tables.
    """

    junit: Path | None = None
    markdown: Path | None = None
    report: Path | None = None
    no_audio: bool = False
    force: bool = False
    as_json: bool = False

    def check_free(self) -> None:
        """Refuse before the work what could not be written after it.

        Raises:
            OutputExists: a file is there.
            UsageError: a place that cannot be written to, or players are left out of no page.
        """
        from tfswa.runtime.errors import OutputExists, UsageError
        from tfswa.runtime.files.checks import check_file

        for path in (self.junit, self.markdown, self.report):
            if path is not None and path.exists() and not self.force:
                raise OutputExists(f"{path} is there already: choose another name, or --force")
            if path is not None:
                check_file(path)
        if self.no_audio and self.report is None:
            raise UsageError("--no-audio leaves the players out of a report: name one with --report FILE")


def run_measure(
    model: str,
    audio: Path | None,
    runs: list[Candidate],
    named: bool,
    *,
    reference: str,
    quick: bool,
    gates_file: Path | None,
    judge_file: Path | None,
    key: Path | None,
    outputs: Outputs,
) -> None:
    """Certify and judge, or judge alone; raises where a gate is not met."""
    from tfswa.runtime.errors import BackendUnavailable, UsageError
    from tfswa.runtime.gates import default_gates
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity import adversaries, certify, load_gates, read_evidence, songs, store
    from tfswa.runtime.parity.signature import Signer

    outputs.check_free()
    if judge_file and gates_file:
        raise UsageError("--judge and --gates both name gates: give one of them")
    signer = Signer(key) if key else None
    opened = open_model(model)
    showcase: Showcase | None = None
    missing: dict[str, str] = {}
    if judge_file is not None:
        gates = load_gates(judge_file)
        certificates = [found for found in read_evidence(opened) if _is_meant(found, opened, runs, named)]
        if not certificates:
            raise UsageError(f"{model} holds no certificate of that: measure first, `tfx parity {model}`")
        evidence = None
    else:
        gates = load_gates(gates_file) if gates_file else default_gates()
        for run in list(runs):
            try:
                gates.of(run.options.precision or "fp32")
            except UsageError as error:
                if named:
                    raise
                runs.remove(run)
                missing[run.name] = str(error)
        if outputs.report is not None:
            from tfswa.runtime.parity.report.excerpts import Showcase

            # Made before the work: it says what is missing.
            showcase = Showcase(opened.spec, audio=not outputs.no_audio)
        corpus = [*songs(audio, opened.spec), *([] if quick else adversaries(opened.spec))]
        certificates = certify(
            opened,
            corpus,
            runs,
            reference=reference,
            axes=not quick,
            missing=None if named else missing,
            report=lambda line: click.echo(line, err=True),
            listener=(lambda *_: None) if showcase is None else showcase.listen,
        )
        if not certificates:
            reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise BackendUnavailable(f"no backend can run {model}: {reasons}")
        evidence = store(opened, certificates)
    if signer is not None:
        for found in signer.sign(opened):
            click.echo(f"signed: {found.name} of {found.artifact}, {found.date[:10]}", err=True)
    _tell(opened, certificates, gates, missing, evidence, showcase, outputs)


def _is_meant(certificate: Certificate, model: Model, runs: Sequence[Candidate], named: bool) -> bool:
    """Whether it is of a file that the bundle holds now, and of a backend that was named, if any was."""
    assert model.bundle is not None  # or there is no evidence
    held = {entry.sha256 for entry in model.bundle.files.values()}
    names = {run.name for run in runs}
    return certificate.artifact_sha256 in held and (certificate.name in names or not named)


def _tell(
    model: Model,
    certificates: Sequence[Certificate],
    gates: Gates,
    missing: dict[str, str],
    evidence: Path | None,
    showcase: Showcase | None,
    outputs: Outputs,
) -> None:
    """Judge, print and write; raises where a gate is not met."""
    import json

    from tfswa.runtime.errors import GateError
    from tfswa.runtime.parity import judge
    from tfswa.runtime.parity.report import formats

    judged = [(certificate, judge(certificate, gates)) for certificate in certificates]
    if outputs.as_json:
        rows = [_as_json(found, breaches, _polygraphy(model, found, gates)) for found, breaches in judged]
        place = None if evidence is None else str(evidence)
        whole = {"model": model.name, "evidence": place, "certificates": rows, "missing": missing}
        click.echo(json.dumps(whole, allow_nan=False))
    else:
        click.echo("\n".join(formats.text(judged, gates)))
        for certificate in certificates:
            line = _polygraphy(model, certificate, gates)
            if line:
                click.echo(f"the graph alone, by polygraphy: {line}")
        for name, why in missing.items():
            click.echo(f"not measured, {name}: {why}")
        click.echo(f"evidence: {evidence}" if evidence else "judged by the evidence, not measured again")
    formats.write(outputs.junit, formats.junit(model.name, judged))
    formats.write(outputs.markdown, formats.markdown(model.name, judged, gates))
    if outputs.report is not None:
        from tfswa.runtime.parity.report.page import page

        formats.write(outputs.report, page(model.name, judged, gates, showcase, missing=missing))
        click.echo(f"{outputs.report}: {outputs.report.stat().st_size / 1e6:.1f} MB", err=True)
    failed = [(certificate, breaches) for certificate, breaches in judged if breaches]
    if failed:
        certificate, breaches = failed[0]
        more = sum(len(found) for _, found in failed) - 1
        also = f" (and {more} more)" if more else ""
        raise GateError(f"{certificate.name}: {breaches[0]}{also}")


def _as_json(certificate: Certificate, breaches: Sequence[Breach], line: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    verdict = {"passed": not breaches, "breaches": [asdict(breach) for breach in breaches]}
    return {**certificate.to_dict(), **verdict, "polygraphy": line}


def _polygraphy(model: Model, certificate: Certificate, gates: Gates) -> str | None:
    """The line that repeats the comparison of the graph alone, where polygraphy can run it."""
    from math import isfinite

    from tfswa.runtime.parity.polygraphy import command_line

    limit = gates.of(certificate.precision).snr_db
    if model.bundle is None or certificate.artifact not in model.bundle.files or not isfinite(limit):
        return None
    return command_line(model.bundle, certificate.artifact, limit)
