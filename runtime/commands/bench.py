"""``tfx bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options
from tfswa.runtime.commands.ending import raise_for
from tfswa.runtime.escape import json_text, shown
from tfswa.runtime.limits import MOST_BATCH

if TYPE_CHECKING:
    from tfswa.runtime.stream.arrangement import Arrangement


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--backend",
    "entries",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Measure this one, in fp32 if none is said; repeatable, the first is what the others are compared "
    "with; default: all that are installed.",
)
@click.option(
    "--compiled",
    is_flag=True,
    help="With all: also those that compile for minutes, torch-compile; default: only if named.",
)
@options.backend_device
@options.threads
@click.option(
    "--batch",
    type=click.IntRange(1, MOST_BATCH),
    default=1,
    show_default=True,
    help="Chunks per call.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Timed calls of each."
)
@click.option(
    "--audio",
    type=options.GivenPath(),
    help="A stem file, or a folder of stems, for the dB; default: a synthetic song of 12 s.",
)
@click.option(
    "-o",
    "--output",
    type=options.OutputPath("new"),
    metavar="NAME",
    help="Also write NAME.json, NAME.md and NAME.png; default: print only.",
)
@click.option("--auto", is_flag=True, help="Keep the table: --backend auto goes by it; default: print only.")
@options.trust
@options.force
@options.as_json
def bench(
    model: str,
    entries: tuple[str, ...],
    compiled: bool,
    device: str | None,
    threads: int | None,
    batch: int,
    rounds: int,
    audio: Path | None,
    output: Path | None,
    auto: bool,
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Time every backend and precision that can run MODEL here, in turns, beside what each costs in dB.

    Each runs in a process of its own, warm-up apart. SNR and drift are those of the worst stem, against the
    first row. The ceiling is a product of two large matrices in the same precision. The time of an ensemble
    is that of all its networks.
    """
    from tfswa.runtime.backends.auto import record
    from tfswa.runtime.benchmark.bench import Plan
    from tfswa.runtime.benchmark.bench import bench as run
    from tfswa.runtime.benchmark.page import benchmark_files, benchmark_text, write_benchmark
    from tfswa.runtime.errors import OutputExists
    from tfswa.runtime.files.checks import check_file
    from tfswa.runtime.plots import pictures
    from tfswa.runtime.songs.loading import load_song
    from tfswa.runtime.songs.synthetic import synthetic_song
    from tfswa.runtime.stream.arrangement import arrange_one, song_spec

    files = benchmark_files(output) if output else []
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise OutputExists(f"{taken[0]} is there already: choose another -o, or --force")
    if files:
        pictures.require_matplotlib()
        check_file(files[0])
    opened = arrange_one(model, trusted=trusted)
    if auto:
        _check_auto(opened, device)
    spec = song_spec(opened)
    song = load_song(audio, spec) if audio else synthetic_song(spec)
    plan = Plan([_entry(entry) for entry in entries], rounds, batch, device, threads, compiled)
    found = run(opened, song, plan, report=lambda line: click.echo(line, err=True))
    for failure in found.failures:
        click.echo(f"tfx: {shown(failure.told)}", err=True)
    if output:
        write_benchmark(output, found, force=force)
    click.echo(json_text(found.to_dict(), allow_nan=False) if as_json else benchmark_text(found))
    for path in files:
        click.echo(f"written: {path}", err=as_json)
    if auto:
        click.echo(f"--backend auto goes by {record(opened.models[0], plan, found)}", err=as_json)
    raise_for(found.failures, len(found.rows), "backends")


def _check_auto(opened: Arrangement, device: str | None) -> None:
    """Refuse what cannot have a table that ``--backend auto`` goes by, before the work."""
    from tfswa.runtime.backends.auto import table_of
    from tfswa.runtime.errors import UsageError

    if len(opened.models) > 1:
        raise UsageError(
            f"{opened.name} is an ensemble, --auto is of one model: name a member, {opened.models[0].name}"
        )
    if device is not None and "://" in device:
        raise UsageError(f"--auto is of this machine, {device} is another: leave one out")
    table_of(opened.models[0])


def _entry(text: str) -> tuple[str, str]:
    backend, _, precision = text.partition(":")
    return backend, precision or "fp32"
