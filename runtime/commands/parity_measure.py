"""``tfx parity measure``, which is what ``tfx parity`` does: measure, keep, judge, tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.gates import Gates
    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.parity.candidates import Candidate
    from tfswa.runtime.parity.certificate import Certificate
    from tfswa.runtime.parity.judge import Breach
    from tfswa.runtime.parity.report.excerpts import Showcase

FILE = options.GivenPath(dir_okay=False)


@dataclass(frozen=True)
class Outputs:
    """Where results go, beside stdout.

    Attributes:
        junit: JUnit XML.
        markdown: the tables.
        report: the HTML page.
        no_audio: without players.
        force: replace files that are there.
        as_json: one JSON object a model on stdout in place of tables.
    """

    junit: Path | None = None
    markdown: Path | None = None
    report: Path | None = None
    no_audio: bool = False
    force: bool = False
    as_json: bool = False

    def check(self, models: int) -> None:
        """Refuse before the work what could not be written after it.

        Raises:
            OutputExists: a file is there.
            UsageError: a place that cannot be written to, a file for one model where there are several, or
                players are left out of no page.
            BackendUnavailable: what makes the page is not installed.
        """
        from tfswa.runtime.errors import OutputExists, UsageError
        from tfswa.runtime.files.checks import check_file

        for path in (self.junit, self.markdown, self.report):
            if path is not None and path.exists() and not self.force:
                raise OutputExists(f"{path} is there already: choose another name, or --force")
            if path is not None:
                check_file(path)
        if models > 1 and (self.junit or self.report):
            raise UsageError(f"--junit and --report are of one model, {models} are named: give one")
        if self.no_audio and self.report is None:
            raise UsageError("--no-audio leaves the players out of a report: name one with --report FILE")
        if self.report is not None:
            from tfswa.runtime.parity.report.page import templates

            templates()


@dataclass(frozen=True)
class Measurement:
    """What is to be measured of each model, and how it is judged.

    Attributes:
        candidates: backends and precisions.
        named: whether the user named them.
        gates: what must be reached.
        audio: songs; None for a generated one.
        reference: its name.
        quick: the songs alone.
        trusted: run machine code in the model that this machine did not make.
    """

    candidates: Sequence[Candidate]
    named: bool
    gates: Gates
    audio: Path | None
    reference: str
    quick: bool
    trusted: bool


@dataclass(frozen=True)
class Verdict:
    """What was found of one model.

    Attributes:
        model: the model.
        judged: certificates, each with what does not reach its gate.
        gates: by which.
        missing: reasons why others were not measured, by name.
        evidence: where the certificates are kept; None where nothing was measured.
        showcase: sounds and pictures for a page.
    """

    model: Model
    judged: Sequence[tuple[Certificate, Sequence[Breach]]]
    gates: Gates
    missing: dict[str, str] = field(default_factory=dict)
    evidence: Path | None = None
    showcase: Showcase | None = None


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--backend",
    "entries",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Measure this one; repeatable; default: every backend and precision that can run MODEL here.",
)
@options.backend_device
@options.threads
@click.option(
    "--reference",
    default="torch",
    show_default=True,
    help="What artifacts are measured against: torch (eager float32), or float64, which also tells how "
    "much of the distance is the float32 reference's own rounding.",
)
@click.option(
    "--audio",
    type=options.GivenPath(),
    help="An audio file, a stem file, or a folder of stems or songs; default: a synthetic song of 12 s.",
)
@click.option(
    "--quick", is_flag=True, help="The songs alone: no signals made to be difficult, no runs against itself."
)
@click.option("--gates", "gates_file", type=FILE, help="What must be reached, TOML; default: our gates.toml.")
@click.option(
    "--judge",
    "judge_file",
    type=FILE,
    help="Judge by these gates the certificates that MODEL holds of its present files, of each --backend if "
    "one is named; measure nothing.",
)
@click.option("--junit", type=FILE, help="Also write the verdicts as JUnit XML.")
@click.option("--markdown", type=FILE, help="Also write the tables as Markdown.")
@click.option(
    "--report",
    type=FILE,
    help="Also write one HTML page (extra plots): tables, error over time, spectrograms of each stem's worst "
    "second, and players of the 10 s around it.",
)
@click.option("--no-audio", is_flag=True, help="No players in --report: it holds no sound; default: players.")
@options.trust
@options.force
@options.as_json
def measure(
    models: tuple[str, ...],
    entries: tuple[str, ...],
    device: str | None,
    threads: int | None,
    reference: str,
    audio: Path | None,
    quick: bool,
    gates_file: Path | None,
    judge_file: Path | None,
    trusted: bool,
    **places: Any,
) -> None:
    """Measure artifacts of one MODEL or several, keep the figures in each bundle, and judge them."""
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.gates import default_gates, load_gates
    from tfswa.runtime.parity.candidates import candidates_of

    outputs = Outputs(**places)
    models = models or ("demo",)
    outputs.check(len(models))
    if judge_file and gates_file:
        raise UsageError("--judge and --gates both name gates: give one of them")
    chosen = judge_file or gates_file
    gates = load_gates(chosen) if chosen else default_gates()
    task = Measurement(
        *candidates_of(entries, None, device, threads), gates, audio, reference, quick, trusted
    )
    _each(models, task, outputs, measured=judge_file is None)


def _each(models: Sequence[str], task: Measurement, outputs: Outputs, *, measured: bool) -> None:
    """One model after the other: what one lacks costs the others nothing. Raises the worst error last."""
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.parity.report import formats

    pages: list[str] = []
    ours = False
    errors: list[TfxError] = []
    for model in models:
        try:
            found = _certified(model, task, outputs) if measured else _judged(model, task)
            pages.append(formats.markdown(found.model.name, found.judged, found.gates))
            formats.write(outputs.markdown, "\n".join(pages), force=outputs.force or ours)
            ours = True  # the page of the models before is replaced
            _tell(found, outputs)
            _check(found)
        except TfxError as error:
            errors.append(error)
            if len(models) > 1:
                click.echo(f"tfx: {model}: {error}", err=True)
    if errors:
        raise next((error for error in errors if error.exit_code != 3), errors[0])


def _judged(model: str, task: Measurement) -> Verdict:
    """Judge what a bundle holds."""
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.evidence import read_evidence
    from tfswa.runtime.parity.judge import judge

    opened = open_model(model)
    certificates = [found for found in read_evidence(opened) if _is_meant(found, opened, task)]
    if not certificates:
        raise UsageError(f"{model} holds no certificate of that: measure first, `tfx parity {model}`")
    return Verdict(opened, [(found, judge(found, task.gates)) for found in certificates], task.gates)


def _certified(model: str, task: Measurement, outputs: Outputs) -> Verdict:
    """Measure, keep, judge."""
    from tfswa.runtime.commands.parity_progress import ParityProgress
    from tfswa.runtime.errors import BackendUnavailable
    from tfswa.runtime.model.opening import open_model, trust_code
    from tfswa.runtime.parity.compare import certify
    from tfswa.runtime.parity.corpus import adversaries, songs
    from tfswa.runtime.parity.evidence import store
    from tfswa.runtime.parity.judge import judge

    opened = open_model(model)
    if task.trusted:
        trust_code(opened)
    candidates, missing = _with_gates(task)
    showcase: Showcase | None = None
    if outputs.report is not None:
        from tfswa.runtime.parity.report.excerpts import Showcase

        showcase = Showcase(
            opened.spec, audio=not outputs.no_audio
        )  # before the work: it says what is missing
    corpus = [*songs(task.audio, opened.spec), *([] if task.quick else adversaries(opened.spec))]
    with ParityProgress() as progress:
        certificates = certify(
            opened,
            corpus,
            candidates,
            reference=task.reference,
            axes=not task.quick,
            missing=None if task.named else missing,
            report=progress.show,
            listener=None if showcase is None else showcase.listen,
            resume=True,
        )
    if not certificates:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise BackendUnavailable(f"no backend can run {model}: {reasons}")
    judged = [(found, judge(found, task.gates)) for found in certificates]
    return Verdict(opened, judged, task.gates, missing, store(opened, certificates), showcase)


def _with_gates(task: Measurement) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates that can be judged, and why the others cannot; raises where the user named one of those."""
    from tfswa.runtime.errors import UsageError

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


def _tell(found: Verdict, outputs: Outputs) -> None:
    """Print and write."""
    from tfswa.runtime.parity.report import formats

    model, judged, gates = found.model, found.judged, found.gates
    lines = [_polygraphy(model, certificate, gates) for certificate, _ in judged]
    if outputs.as_json:
        rows = [_as_json(*pair, line) for pair, line in zip(judged, lines, strict=True)]
        place = None if found.evidence is None else str(found.evidence)
        whole = {"model": model.name, "evidence": place, "certificates": rows, "missing": found.missing}
        click.echo(json_text(whole, allow_nan=False))
    else:
        click.echo("\n".join(formats.text(judged, gates)))
        for line in filter(None, lines):
            click.echo(f"the graph alone, by polygraphy: {line}")
        for name, why in found.missing.items():
            click.echo(f"not measured, {name}: {why}")
        kept = f"evidence: {found.evidence}"
        click.echo(kept if found.evidence else "judged by the evidence, not measured again")
    formats.write(outputs.junit, formats.junit(model.name, judged), force=outputs.force)
    if outputs.report is not None:
        from tfswa.runtime.parity.report.page import page

        written = page(model.name, judged, gates, found.showcase, missing=found.missing)
        formats.write(outputs.report, written, force=outputs.force)
        click.echo(f"{outputs.report}: {outputs.report.stat().st_size / 1e6:.1f} MB", err=True)


def _check(found: Verdict) -> None:
    """Raise where a gate is not met."""
    from tfswa.runtime.errors import GateError

    failed = [(certificate, breaches) for certificate, breaches in found.judged if breaches]
    if failed:
        certificate, breaches = failed[0]
        more = sum(len(others) for _, others in failed) - 1
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
