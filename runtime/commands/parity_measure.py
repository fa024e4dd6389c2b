"""``tfx parity measure``, which is what ``tfx parity`` does: measure, keep, judge, tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.commands.ending import raise_for
from tfswa.runtime.escape import json_text, shown

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.parity.report.excerpts import Showcase
    from tfswa.runtime.parity.verdict import Measurement, Verdict

FILE, OUT = options.GivenPath(dir_okay=False), options.OutputPath("file")


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
    help="What artifacts are measured against: torch (eager float32), float64, which also tells how much of "
    "the distance is the float32 reference's own rounding, or graph (the graph that was published, as it "
    "is); default: torch, and graph where MODEL is one.",
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
@click.option("--junit", type=OUT, help="Also write the verdicts as JUnit XML.")
@click.option("--markdown", type=OUT, help="Also write the tables as Markdown.")
@click.option(
    "--report",
    type=OUT,
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
    reference: str | None,
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
    from tfswa.runtime.model.ensemble import member_names
    from tfswa.runtime.parity.candidates import candidates_of
    from tfswa.runtime.parity.verdict import Measurement

    outputs = Outputs(**places)
    models = tuple(name for given in models or ("demo",) for name in member_names(given))
    outputs.check(len(models))
    if judge_file and gates_file:
        raise UsageError("--judge and --gates both name gates: give one of them")
    chosen = judge_file or gates_file
    gates = load_gates(chosen) if chosen else default_gates()
    task = Measurement(*candidates_of(entries, device, threads), gates, audio, reference, quick)
    _each(models, task, outputs, trusted=trusted, held=judge_file is not None)


def _each(models: Sequence[str], task: Measurement, outputs: Outputs, *, trusted: bool, held: bool) -> None:
    """One model after the other: what one lacks costs the others nothing. Raises the worst error last."""
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.verdict import judge_held

    teller = _Teller(outputs)
    errors: list[Exception] = []
    for name in models:
        told = False
        try:
            model = open_model(name, trusted=trusted)
            found, showcase = (judge_held(model, task), None) if held else _measured(model, task, outputs)
            teller.tell(found, showcase)
            told = True
            raise_for(found.failures, found.items, "songs and backends")
            found.check()
        except BrokenPipeError:
            raise
        except Exception as error:
            errors.append(error)
            if len(models) > 1:  # that of a single one is told at the end of the command
                _tell_of(name, error, as_json=outputs.as_json and not told)
    if errors:
        raise _worst(errors)


def _tell_of(model: str, error: Exception, *, as_json: bool) -> None:
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.failures import Failure

    line = str(error) if isinstance(error, TfxError) else Failure(model, error).told
    click.echo(f"tfx: {model}: {line}", err=True)
    if as_json:
        click.echo(json_text({"errors": [{"input": model, "error": line}]}))


def _worst(errors: Sequence[Exception]) -> Exception:
    """A fault of our own, else the first that is more than a gate, else the first."""
    from tfswa.runtime.errors import GateError
    from tfswa.runtime.failures import is_fault

    faults = [error for error in errors if is_fault(error)]
    others = [error for error in errors if not isinstance(error, GateError)]
    return (faults or others or list(errors))[0]


def _measured(model: Model, task: Measurement, outputs: Outputs) -> tuple[Verdict, Showcase | None]:
    from tfswa.runtime.commands.parity_progress import ParityProgress
    from tfswa.runtime.parity.verdict import measure_and_judge

    showcase: Showcase | None = None
    if outputs.report is not None:
        from tfswa.runtime.parity.report.excerpts import Showcase

        # before the work: it says what is missing
        showcase = Showcase(model.spec, audio=not outputs.no_audio)
    with ParityProgress() as progress:
        return measure_and_judge(model, task, report=progress.show, showcase=showcase), showcase


class _Teller:
    """Prints and writes the verdicts, model after model."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._pages: list[str] = []

    def tell(self, found: Verdict, showcase: Showcase | None) -> None:
        from tfswa.runtime.parity.report import formats

        outputs, model, judged, gates = self.outputs, found.model.name, found.judged, found.gates
        ours = bool(self._pages)  # the page of the models before is replaced
        self._pages.append(formats.markdown(model, judged, gates))
        formats.write(outputs.markdown, "\n".join(self._pages), force=outputs.force or ours)
        if outputs.as_json:
            click.echo(json_text(found.to_dict(), allow_nan=False))
        else:
            _print(found)
        for failure in found.failures:
            click.echo(f"tfx: {shown(failure.told)}", err=True)
        formats.write(outputs.junit, formats.junit(model, judged, found.failures), force=outputs.force)
        if outputs.report is not None:
            from tfswa.runtime.parity.report.page import page

            missing = {**found.missing, **{failure.item: failure.told for failure in found.failures}}
            written = page(model, judged, gates, showcase, missing=missing)
            formats.write(outputs.report, written, force=outputs.force)
            click.echo(f"{outputs.report}: {outputs.report.stat().st_size / 1e6:.1f} MB", err=True)


def _print(found: Verdict) -> None:
    from tfswa.runtime.parity.report import formats

    click.echo("\n".join(formats.text(found.judged, found.gates)))
    for line in filter(None, (found.polygraphy(certificate) for certificate, _ in found.judged)):
        click.echo(f"the graph alone, by polygraphy: {line}")
    if found.missing:
        click.echo(f"cannot run here: {', '.join(found.missing)}; --json says why")
    kept = f"evidence: {found.evidence}"
    click.echo(kept if found.evidence else "judged by the evidence, not measured again")
