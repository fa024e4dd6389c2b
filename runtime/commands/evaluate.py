"""``tfx evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.commands.ending import raise_for
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.evaluation.bsseval import Method
    from tfswa.runtime.evaluation.choices import EvaluationProgress
    from tfswa.runtime.evaluation.evaluate import Evaluation
    from tfswa.runtime.evaluation.scores import Summary

COLUMNS = {
    "SDR c": "sdr_c_db",
    "ISR c": "isr_c_db",
    "SIR c": "sir_c_db",
    "SAR c": "sar_c_db",
    "SDR 10s c": "sdr_10s_c_db",
    "SDR u": "sdr_u_db",
    "SI-SDR u": "si_sdr_u_db",
}
LEGEND = "dB; c: median over songs of the median over windows (1 s, 10 s); u: mean over songs of whole songs"


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--data",
    required=True,
    type=options.GivenPath(),
    help="Songs with true stems: MUSDB18 or MUSDB18-HQ, a folder of song folders or stem files, one of "
    "either; or musdb, for the folder in MUSDB_PATH, else ~/MUSDB18/MUSDB18-7.",
)
@click.option("--split", help="train or test; default: test where the folder has splits.")
@click.option("--songs", multiple=True, metavar="NAME", help="A song to take, repeatable; default: all.")
@options.output_option("Folder for the results; default: evaluation/<model>.", kind="folder")
@options.backend_options
@options.wiener
@options.overlap
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes that measure; default: one a core.",
)
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Measure the mixture, silence and the ideal ratio mask too.",
)
@click.option(
    "--bsseval",
    "method",
    type=click.Choice(["v4", "continuous", "museval"]),
    default="v4",
    show_default=True,
    help="How ISR, SIR and SAR are found. v4: museval's definition, not defined where parts do not add up; "
    "continuous: stems are filtered before they are cut into windows, so that they do; museval: the library.",
)
@click.option(
    "--estimates",
    type=options.OutputPath("folder"),
    help="Folder for the model's stems, DIR/<split>/<song>/<stem>.wav in 32-bit float; default: none.",
)
@click.option("--plot/--no-plot", default=True, show_default=True, help="Draw boxplot.png.")
@click.option(
    "--force", is_flag=True, help="Compute anew what another model or setting left; default: refuse."
)
@options.trust
@options.as_json
def evaluate(
    model: str,
    data: Path,
    split: str | None,
    songs: tuple[str, ...],
    output: Path | None,
    backend: str,
    precision: str | None,
    device: str | None,
    threads: int | None,
    batch: int,
    wiener: int,
    overlap: str,
    jobs: int | None,
    baselines: bool,
    method: Method,
    estimates: Path | None,
    plot: bool,
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Measure MODEL on songs with true stems: SDR, ISR, SIR, SAR (BSSEval v4), global SDR and SI-SDR.

    MODEL may be an ensemble. Finished songs stay in the output folder; a second run goes on where the first
    was stopped. A song that fails costs the others nothing: it is named, and the exit code is 1.
    """
    from tfswa.runtime.backends import BackendOptions, default_device
    from tfswa.runtime.evaluation.choices import Choices
    from tfswa.runtime.evaluation.evaluate import evaluate as measure
    from tfswa.runtime.files.checks import check_folder
    from tfswa.runtime.songs.finding import pick_songs
    from tfswa.runtime.stream.arrangement import arrange_one

    place = output or Path("evaluation") / (Path(model).resolve().stem or "model")
    check_folder(place)
    opened = arrange_one(model, trusted=trusted)
    found = pick_songs(data, split, songs, opened.stems)
    with _Watch(len(found)) as watch:
        result = measure(
            opened,
            found,
            place,
            backend=backend,
            options=BackendOptions(precision, device or default_device(backend), threads),
            batch=batch,
            wiener=wiener,
            overlap=overlap,
            choices=Choices(baselines, method, estimates, jobs, force, plot),
            report=watch.report,
        )
    if as_json:
        click.echo(json_text(evaluation_as_dict(model, data, result), allow_nan=False))
    else:
        _print(model, result)
    raise_for(result.failures, len(found), "songs")


def evaluation_as_dict(model: str, data: Path, result: Evaluation) -> dict[str, Any]:
    """The object of ``--json``; keys are documented in docs/json.md."""
    reused = sum(song.reused for song in result.songs)
    return {
        "model": model,
        "data": str(data),
        "files": {kind: str(path) for kind, path in result.files.items()},
        "identity": dict(result.identity),
        "songs": len(result.songs),
        "reused": reused,
        "notes": {song.song: list(song.notes) for song in result.songs if song.notes},
        "scores": [summary.to_dict() for summary in result.summaries],
        "errors": [failure.to_dict() for failure in result.failures],
    }


def _print(model: str, result: Evaluation) -> None:
    from tfswa.runtime.escape import shown
    from tfswa.runtime.table import text_table

    if not result.songs:
        return
    rows = [
        (summary.stem, summary.estimator, *(_cell(summary, name) for name in COLUMNS.values()))
        for summary in result.summaries
    ]
    total = len(result.songs) + len(result.failures)
    songs = f"{len(result.songs)} song{'s' if len(result.songs) > 1 else ''}"
    songs += f" of {total}" if result.failures else ""
    click.echo(f"{model}, {result.identity['backend']} {result.identity['precision']}, {songs}")
    click.echo(text_table(("stem", "estimator", *COLUMNS), rows))
    click.echo(LEGEND)
    if result.failures:
        names = ", ".join(shown(failure.item) for failure in result.failures)
        click.echo(f"missing from all figures, as they failed: {names}")
    undefined = list(_undefined(result))
    for line in undefined:
        click.echo(line)
    if undefined:
        click.echo("--bsseval continuous does not cut stems; --bsseval museval prints figures as they come")
    click.echo(f"results: {', '.join(str(path) for path in result.files.values())}")


def _cell(summary: Summary, name: str) -> float | str | None:
    value = summary.figures[name]
    return "not defined" if value is None and name in summary.undefined_songs else value


def _undefined(result: Evaluation) -> Iterator[str]:
    """Figures of the model that songs lack, and why; each figure once, with the first song that lacks it."""
    names = {name: label for label, name in COLUMNS.items()}
    for summary in result.summaries:
        for name, count in summary.undefined_songs.items() if summary.estimator == "model" else ():
            first = next(
                song.song + ": " + score.undefined[name]
                for song in result.songs
                for score in song.scores
                if (score.stem, score.estimator) == (summary.stem, "model") and name in score.undefined
            )
            if name in names:
                songs = f"{count} song{'s' if count > 1 else ''}"
                yield f"{names[name]} of {summary.stem} is not defined for {songs} ({first})"


class _Watch:
    """Progress on stderr: a bar on a terminal, elsewhere a line for each song."""

    def __init__(self, songs: int) -> None:
        import time

        from rich.progress import BarColumn, TextColumn

        from tfswa.runtime.bars import Bars

        self.several = songs > 1
        self.clock, self.began, self.computed = time.monotonic, time.monotonic(), 0
        self.bar = Bars(
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[songs]} songs  {task.fields[left]}"),
        )
        self.on_terminal = self.bar.on_terminal
        self.task = self.bar.add_task("", total=None, state="", songs="-", left="")

    def __enter__(self) -> _Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, now: EvaluationProgress) -> None:
        from tfswa.runtime.escape import shown
        from tfswa.runtime.failures import is_fault

        if now.failed is not None and (self.several or is_fault(now.failed.error)):
            click.echo(f"tfx: {shown(now.failed.told)}", err=True)
        if now.finished is not None:
            self.computed += 1
            for note in now.finished.notes:
                click.echo(f"tfx: {shown(now.finished.song)}: {shown(note)}", err=True)
            if not self.on_terminal:
                name = shown(now.finished.song)
                click.echo(f"{now.done}/{now.total} {name}: {_figures(now)}{self._left(now)}", err=True)
        state = f"{shown(now.song)}: separating, {now.separated:.0%}" if now.song else "measuring"
        self.bar.update(
            self.task,
            completed=now.done,
            total=now.total,
            state=state,
            songs=f"{now.done}/{now.total}",
            left=self._left(now).lstrip(", "),
        )

    def _left(self, now: EvaluationProgress) -> str:
        """Time left, from the songs of this run."""
        remaining = now.total - now.done
        if not self.computed or not remaining:
            return ""
        minutes = (self.clock() - self.began) / self.computed * remaining / 60
        if minutes < 1:
            return ", less than a minute left"
        return f", {minutes:.0f} min left" if minutes < 90 else f", {minutes / 60:.1f} h left"


def _figures(now: EvaluationProgress) -> str:
    from tfswa.runtime.table import decimals

    assert now.finished is not None
    found = [(s.stem, s.figures["sdr_u_db"]) for s in now.finished.scores if s.estimator == "model"]
    texts = [f"{stem} {'-' if value is None else decimals(value, 2)}" for stem, value in found]
    return f"SDR u {', '.join(texts)} dB"
