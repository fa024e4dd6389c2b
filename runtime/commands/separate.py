"""``tfx separate``."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.errors import TfxError

if TYPE_CHECKING:
    from tfswa.runtime.stream.files import FileResult

NAMED = 3  # chunks of a report on stderr; --json has them all


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@options.model_option
@options.output_option("Folder for the stems: DIR/<input>/<stem>.<format>.", "separated")
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
    "--on-nonfinite",
    type=click.Choice(["error", "recompute"]),
    default="error",
    show_default=True,
    help="A chunk with NaN or Inf: stop, or compute it again by the bundle's float32 network on the CPU, "
    "and say which they were.",
)
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
@options.force
@options.as_json
def separate(
    inputs: tuple[Path, ...],
    model: str,
    output: Path,
    backend: str,
    precision: str | None,
    device: str | None,
    threads: int | None,
    batch: int,
    stems: str | None,
    format_: str,
    clip: Any,
    require_parity: bool,
    on_nonfinite: Any,
    track: str | None,
    strict: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Separate songs into stems.

    INPUT is an audio or video file, - for standard input, or a folder whose audio files are all taken.
    """
    from tfswa.runtime.audio.encoders import FORMATS
    from tfswa.runtime.audio.tracks import parse_track
    from tfswa.runtime.backends import BackendOptions, default_device
    from tfswa.runtime.backends.auto import why
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity import describe_evidence, require_passing
    from tfswa.runtime.stream.jobs import plan_jobs
    from tfswa.runtime.stream.separator import Separator, stem_indices

    if format_ not in FORMATS:
        raise UsageError(f"unknown format {format_!r}: choose one of {', '.join(FORMATS)}")
    picked_track = None if track is None else parse_track(track)
    jobs = plan_jobs(inputs, output)
    opened = open_model(model)
    wanted = [stem.strip() for stem in stems.split(",")] if stems else list(opened.spec.stems)
    stem_indices(opened, wanted)
    failures: list[tuple[Path, TfxError]] = []
    reports: list[dict[str, Any]] = []
    settings = BackendOptions(precision, device or default_device(backend), threads)
    with Separator(
        opened, backend=backend, options=settings, batch=batch, on_nonfinite=on_nonfinite
    ) as separator:
        if require_parity:
            require_passing(opened, separator.session, settings)
        evidence = describe_evidence(opened, separator.session, settings)
        if not as_json:
            reason = f" ({why(opened, settings, separator.session)})" if backend == "auto" else ""
            click.echo(f"{opened.name} in {separator.description}{reason}; {evidence}", err=True)
        for source, folder in jobs:
            paths = {stem: folder / f"{stem}{FORMATS[format_].extension}" for stem in wanted}
            try:
                with _Bar(source.name) as bar:
                    result = separator.separate_file(
                        source,
                        paths,
                        format=format_,
                        clip=clip,
                        force=force,
                        track=picked_track,
                        strict=strict,
                        progress=bar.report,
                    )
            except TfxError as error:
                # One bad file among many must not cost the others.
                failures.append((source, error))
                if len(jobs) > 1:
                    click.echo(f"tfx: {_naming(source, error)}", err=True)
                continue
            for note in result.notes:
                click.echo(f"tfx: {source}: {note}", err=True)
            reports.append(describe(source, result))
            if not as_json:
                _print(source, result)
        if as_json:
            whole = {
                "model": opened.name,
                "backend": separator.description,
                "evidence": evidence,
                "recomputed_by": separator.recomputed_by,
            }
            _print_json(whole, reports, failures)
        else:
            _print_recomputed(reports, separator.recomputed_by)
    if failures:
        first = failures[0][1]
        raise first if len(jobs) == 1 else type(first)(f"{len(failures)} of {len(jobs)} files failed")


def _naming(source: Path, error: Exception) -> str:
    """An error that says which of several inputs it is about."""
    return str(error) if str(source) in str(error) else f"{source}: {error}"


def describe(source: Path, result: FileResult) -> dict[str, Any]:
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


def _print(source: Path, result: FileResult) -> None:
    folder = next(iter(result.written.paths.values())).parent
    names = ", ".join(path.name for path in result.written.paths.values())
    click.echo(
        f"{source} -> {folder}/{{{names}}}  {result.audio_seconds:.1f} s, {result.x_realtime:.1f} x real time"
    )
    for line in result.written.lines():
        click.echo(f"  {line}")


def _print_recomputed(reports: list[dict[str, Any]], by: str | None) -> None:
    """One line that says which chunks were computed again; nothing where none were."""
    chunks = [(report["input"], *chunk) for report in reports for chunk in report["recomputed"]]
    if not chunks:
        return
    songs = [
        f"{name} " + ", ".join(f"{start:.1f} to {stop:.1f} s" for _, start, stop in some)
        for name, some in groupby(chunks[:NAMED], key=itemgetter(0))
    ]
    more = f" and {len(chunks) - NAMED} more" if len(chunks) > NAMED else ""
    what = (
        "1 chunk that held NaN or Inf was"
        if len(chunks) == 1
        else f"{len(chunks)} chunks that held NaN or Inf were"
    )
    click.echo(f"{what} computed again by {by}: {'; '.join(songs)}{more}", err=True)


def _print_json(
    whole: dict[str, Any], reports: list[dict[str, Any]], failures: list[tuple[Path, TfxError]]
) -> None:
    import json

    errors = [{"input": str(source), "error": str(error)} for source, error in failures]
    click.echo(json.dumps({**whole, "files": reports, "errors": errors}))


class _Bar:
    """A bar in audio seconds with speed and time left, on a terminal only."""

    def __init__(self, name: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.fields[seconds]} s  {task.fields[speed]} x real time"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=None, seconds="?", speed="-")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, done: float, total: float | None) -> None:
        elapsed = self.bar.tasks[0].elapsed or 0.0
        speed = f"{done / elapsed:.1f}" if elapsed > 0 else "-"
        seconds = "?" if total is None else f"{total:.0f}"
        self.bar.update(self.task, completed=done, total=total, seconds=seconds, speed=speed)
