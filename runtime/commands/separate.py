"""``tfx separate``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.commands.ending import raise_for

if TYPE_CHECKING:
    from tfswa.runtime.audio.tracks import Track
    from tfswa.runtime.failures import Failure
    from tfswa.runtime.model.opening import BundleModel, Model
    from tfswa.runtime.stream.arrangement import Arrangement, May
    from tfswa.runtime.stream.files import FileJob, FileResult, Outcome, Progress
    from tfswa.runtime.stream.jobs import JobPlan
    from tfswa.runtime.stream.separating import Separating

NAMED = 3  # chunks of a report on stderr; --json has them all


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=options.GivenPath(), metavar="INPUT...")
@options.models_option
@options.combine_options
@click.option(
    "--then",
    multiple=True,
    metavar="STEM=MODEL",
    help="Separate a stem further, by another model: vocals=dereverb.tfx gives vocals.dry and so on in the "
    "place of vocals; default: nothing.",
)
@options.output_option("Folder for the stems: DIR/<input>/<stem>.<format>.", "separated", kind="folder")
@options.backend_options
@click.option("--stems", help="Stems to write, separated by commas; default: all.")
@click.option(
    "--format",
    "format_",
    default="wav",
    show_default=True,
    help="wav (32-bit float), wav16, wav24, flac, flac16, ogg, mp3 or m4a, at the input's rate.",
)
@click.option(
    "--clip",
    type=click.Choice(["none", "rescale", "clip"]),
    default="none",
    show_default=True,
    help="Beyond full scale: leave, turn all stems down together, or limit to [-1, 1].",
)
@click.option(
    "--require-parity",
    is_flag=True,
    help="Exit code 3 unless the bundle holds a passing certificate of just this artifact, backend, "
    "precision, device and libraries; default: say so and go on.",
)
@click.option(
    "--require-signed",
    "signed_by",
    metavar="PUB",
    type=options.GivenPath(dir_okay=False),
    help="As --require-parity, and the certificate must be signed by the owner of this public Ed25519 key, "
    "PEM; default: an unsigned one is believed.",
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["error", "recompute"]),
    default="error",
    show_default=True,
    help="A chunk with NaN or Inf: stop, or compute it again by the bundle's float32 network on the CPU, "
    "and say which they were.",
)
@options.wiener
@options.overlap
@click.option(
    "--track",
    metavar="N|LANGUAGE",
    help="Audio track of a file that has several, a number from 1 or a language such as eng; default: the "
    "file's default track.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit code 1 for an input that is damaged, cut or has holes, and no file written of it; "
    "default: say so and go on.",
)
@options.trust
@options.force
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Leave out inputs all of whose stems are there already; default: refuse them.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone; default: a line for each input.")
@options.as_json
def separate(
    inputs: tuple[Path, ...],
    output: Path,
    stems: str | None,
    format_: str,
    skip_existing: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Separate songs into stems.

    INPUT is an audio or video file, - for standard input, or a folder of which everything that holds audio
    is taken.
    """
    from tfswa.runtime.stream.files import separate_files
    from tfswa.runtime.stream.jobs import plan_jobs
    from tfswa.runtime.stream.separating import stem_indices

    force = given["force"]
    _check_request(output, format_, skip_existing=skip_existing, force=force)
    how = {"format": format_, "clip": given["clip"], "force": force, "strict": given["strict"]}
    how["track"] = _track(given["track"])
    arranged = _arranged(**given)
    wanted = [stem.strip() for stem in stems.split(",")] if stems is not None else list(arranged.stems)
    stem_indices(arranged, wanted)
    plan = plan_jobs(inputs, output, arranged.stems)
    jobs = _jobs(plan, output, wanted, **how)
    skipped = [job for job in jobs if skip_existing and all(map(Path.exists, job.outputs.values()))]
    jobs = [job for job in jobs if job not in skipped]
    run = _Run(plan, jobs, skipped, quiet=quiet, as_json=as_json)
    run.begin()
    with _loaded(arranged.only(wanted, _may(**given)), **given) as separator:
        run.started(separator, chosen=given["backend"] == "auto")
        for outcome in separate_files(separator, jobs, run.bar):
            run.take(outcome)
        run.end(separator)


def _arranged(
    models: tuple[str, ...],
    combine: Any,
    weights: tuple[str, ...],
    then: tuple[str, ...],
    trusted: bool,
    **_: Any,
) -> Arrangement:
    """The models that are asked for, not yet loaded."""
    from tfswa.runtime.stream.arrangement import arrange

    return arrange(models, how=combine, weights=weights, then=then, trusted=trusted)


def _may(backend: str, precision: str | None, wiener: int, **_: Any) -> May:
    """Which bundles inside a model, of some of its stems alone, may take its place.

    The Wiener filter shares the mixture out between all stems; ``auto`` would compute without an export what
    the whole model has one for.
    """
    from tfswa.runtime.model.narrowed import ARTIFACTS

    def may(inside: BundleModel) -> bool:
        of = {inside.bundle.find(kind, precision or "fp32") for kind in ARTIFACTS}
        return not wiener and (backend != "auto" or of != {None})

    return may


def _loaded(
    arranged: Arrangement,
    backend: str,
    precision: str | None,
    device: str | None,
    threads: int | None,
    batch: int,
    require_parity: bool,
    signed_by: Path | None,
    on_nonfinite: Any,
    wiener: int,
    overlap: str,
    **_: Any,
) -> Separating:
    """The models, loaded; where parity is required, none of them is without it."""
    from tfswa.runtime.backends import BackendOptions, default_device
    from tfswa.runtime.parity.evidence import require_passing
    from tfswa.runtime.stream.separator import Separator

    settings = BackendOptions(precision, device or default_device(backend), threads)
    how: dict[str, Any] = {"batch": batch, "on_nonfinite": on_nonfinite, "wiener": wiener, "overlap": overlap}

    def load(model: Model) -> Separator:
        with ExitStack() as stack:
            separator = stack.enter_context(Separator(model, backend=backend, options=settings, **how))
            if require_parity or signed_by is not None:
                require_passing(separator.model, separator.session, separator.options, signed_by)
            stack.pop_all()
        return separator

    return arranged.load(load)


def _check_request(output: Path, format_: str, *, skip_existing: bool, force: bool) -> None:
    """Refuse what could not be written, before a model is opened."""
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.files.checks import check_folder
    from tfswa.runtime.stream.files import paths_in

    paths_in(output, (), format_)  # refuses an unknown format
    if skip_existing and force:
        raise UsageError("--skip-existing keeps what --force replaces: give one of them")
    check_folder(output)


def _track(text: str | None) -> Track:
    from tfswa.runtime.audio.tracks import parse_track

    return None if text is None else parse_track(text)


def _jobs(plan: JobPlan, output: Path, wanted: Sequence[str], **how: Any) -> list[FileJob]:
    """A job of each input of a plan; ``how`` is of ``FileJob``."""
    from tfswa.runtime.stream.files import FileJob, paths_in

    return [
        FileJob(source, paths_in(folder, wanted, how["format"]), below=output, **how)
        for source, folder in plan.jobs
    ]


class _Run:
    """What a run says, and where: results on stdout, the rest on stderr."""

    def __init__(
        self, plan: JobPlan, jobs: list[FileJob], skipped: list[FileJob], *, quiet: bool, as_json: bool
    ):
        self.plan, self.jobs, self.skipped = plan, jobs, skipped
        self.quiet, self.as_json = quiet, as_json
        self.reports: list[dict[str, Any]] = []
        self.failures: list[Failure] = []
        self.evidence = ""

    def say(self, text: str, *, err: bool = True) -> None:
        if not self.quiet and not self.as_json:
            click.echo(text, err=err)

    def begin(self) -> None:
        """What is not done, and why."""
        from tfswa.runtime.escape import shown
        from tfswa.runtime.stream.jobs import reasons

        if self.plan.left_out:
            self.say(f"left out: {shown(reasons(self.plan.left_out))}")
        for source, folder in self.plan.renamed:
            self.say(f"{shown(source)} goes to {shown(folder)}: another input has its name")
        if self.skipped:
            count = len(self.skipped)
            self.say(f"skipped: {count} input{'s' * (count > 1)} whose stems are there already")

    def started(self, separator: Separating, *, chosen: bool) -> None:
        from tfswa.runtime.backends.auto import why
        from tfswa.runtime.parity.evidence import describe_evidence

        parts = separator.parts
        found = [describe_evidence(part.model, part.session, part.options) for part in parts]
        for part, evidence in zip(parts, found, strict=True):
            reason = f" ({why(part.model, part.options, part.session)})" if chosen else ""
            self.say(f"{part.name} in {part.description}{reason}; {evidence}")
        self.evidence = found[0]
        if len(parts) > 1:
            self.say(f"{separator.name}: parity is of each model alone")
            self.evidence = "; ".join(f"{part.name}: {said}" for part, said in zip(parts, found, strict=True))
        if iterations := parts[0].codec.wiener:
            times = f"{iterations} iteration{'s' * (iterations > 1)}"
            self.say(f"multichannel Wiener filter: {times} after the network, which parity does not cover")
        if (overlap := parts[0].overlap) != "1":
            self.say(f"overlap {overlap}: more chunks than the model's own, which parity does not cover")

    def bar(self, job: FileJob) -> AbstractContextManager[Progress]:
        """A bar where one can be seen; elsewhere rich, which draws it, is not worth loading."""
        seen = sys.stderr is not None and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ)
        return _Bar(job.source.name) if seen and not self.quiet else nullcontext(lambda done, total: None)

    def take(self, outcome: Outcome) -> None:
        """One file is done, or has failed: that is said at once, where there are others."""
        from tfswa.runtime.escape import shown
        from tfswa.runtime.failures import is_fault

        if outcome.failure is not None:
            self.failures.append(outcome.failure)
            if len(self.jobs) > 1 or is_fault(outcome.failure.error):
                click.echo(f"tfx: {shown(outcome.failure.told)}", err=True)
        if outcome.result is None:
            return
        for note in outcome.result.notes:
            if note.damaged or not self.quiet:
                click.echo(f"tfx: {shown(outcome.job.source)}: {shown(note)}", err=True)
        self.reports.append(result_as_dict(outcome.job.source, outcome.result))
        for line in _lines(outcome.job.source, outcome.result):
            self.say(line, err=False)

    def end(self, separator: Separating) -> None:
        """Print the object; raise what stands for all failures."""
        from tfswa.runtime.escape import json_text

        if self.as_json:
            whole = {
                "model": separator.name,
                "backend": separator.description,
                "evidence": self.evidence,
                "recomputed_by": separator.recomputed_by,
                "wiener": separator.parts[0].codec.wiener,
                "overlap": separator.parts[0].overlap,
                "files": self.reports,
                "errors": [failure.to_dict() for failure in self.failures],
                "left_out": [{"input": str(one.path), "reason": one.reason} for one in self.plan.left_out],
                "skipped": [str(job.source) for job in self.skipped],
            }
            click.echo(json_text(whole))
        elif text := _recomputed(self.reports, separator.recomputed_by):
            self.say(text)
        raise_for(self.failures, len(self.jobs), "files")


def result_as_dict(source: Path, result: FileResult) -> dict[str, Any]:
    """One file's entry in ``--json``; keys are documented in docs/json.md."""
    from tfswa.runtime.machine import peak_memory_mb

    return {
        "input": str(source),
        "outputs": {stem: str(path) for stem, path in result.written.paths.items()},
        "seconds": round(result.audio_seconds, 6),
        "wall_seconds": round(result.wall_seconds, 3),
        "cpu_seconds": round(result.cpu_seconds, 3),
        "host_cpu_seconds": round(result.host_cpu_seconds, 3),
        "x_realtime": round(result.x_realtime, 3),
        "peak_memory_mb": peak_memory_mb(),
        "clipped": dict(result.written.clipped),
        "gain": result.written.gain,
        "recomputed": [[round(edge, 6) for edge in chunk] for chunk in result.recomputed],
        "damaged": result.damaged,
        "notes": [*map(str, result.notes), *result.written.lines()],
    }


def _lines(source: Path, result: FileResult) -> list[str]:
    from tfswa.runtime.escape import shown

    folder = next(iter(result.written.paths.values())).parent
    names = ", ".join(path.name for path in result.written.paths.values())
    speed = f"{result.audio_seconds:.1f} s, {result.x_realtime:.1f} x real time"
    first = f"{shown(source)} -> {shown(folder)}/{{{shown(names)}}}  {speed}"
    return [first, *(f"  {shown(line)}" for line in result.written.lines())]


def _recomputed(reports: list[dict[str, Any]], by: str | None) -> str:
    """One line that says which chunks were computed again; empty where none were."""
    from tfswa.runtime.escape import shown

    chunks = [(report["input"], *chunk) for report in reports for chunk in report["recomputed"]]
    if not chunks:
        return ""
    songs = [
        f"{shown(name)} " + ", ".join(f"{start:.1f} to {stop:.1f} s" for _, start, stop in some)
        for name, some in groupby(chunks[:NAMED], key=itemgetter(0))
    ]
    more = f" and {len(chunks) - NAMED} more" if len(chunks) > NAMED else ""
    what = (
        "1 chunk that held NaN or Inf was"
        if len(chunks) == 1
        else f"{len(chunks)} chunks that held NaN or Inf were"
    )
    return f"{what} computed again by {by}: {'; '.join(songs)}{more}"


class _Bar:
    """A bar in audio seconds with speed and time left, on a terminal only."""

    def __init__(self, name: str):
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        from tfswa.runtime.bars import Bars
        from tfswa.runtime.escape import shown

        self.bar = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.fields[seconds]} s  {task.fields[speed]} x real time"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(shown(name), total=None, seconds="?", speed="-")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self.report

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, done: float, total: float | None) -> None:
        elapsed = self.bar.tasks[0].elapsed or 0.0
        speed = f"{done / elapsed:.1f}" if elapsed > 0 else "-"
        seconds = "?" if total is None else f"{total:.0f}"
        self.bar.update(self.task, completed=done, total=total, seconds=seconds, speed=speed)
