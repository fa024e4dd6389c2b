"""``tfx data``: look at training data, hear it, fetch some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.train.data.check import Report


@click.group()
def data() -> None:
    """Check training data, hear what augmentation makes of it, make or fetch a small set."""


@data.command()
@click.argument("root", metavar="DIR", type=options.GivenPath())
@click.option("--split", help="train or test, where DIR has the two; default: all there is.")
@click.option(
    "--partial", is_flag=True, help="Songs may lack sources, as with data.partial = true; default: an error."
)
@options.as_json
def check(root: Path, split: str | None, partial: bool, as_json: bool) -> None:
    """Read every song below DIR, and say what is wrong.

    Exit code 1 if there is something that makes training impossible.
    """
    from tfswa.train.data.check import check_songs as run

    found = run(root, split, lambda song: click.echo(f"reading {song}", err=True), partial=partial)
    if as_json:
        click.echo(json_text({"root": str(root), **found.to_dict()}))
    else:
        _print(found)
    if not found.trainable:
        click.get_current_context().exit(1)


def _print(found: Report) -> None:
    from tfswa.runtime.table import text_table

    columns = ("song", "source", "Hz", "seconds", "level dBFS", "silent %", "sum of parts dB")
    rows: list[tuple[str | float | None, ...]] = []
    for song in found.songs:
        name = f"{song.split}/{song.song}" if song.split else song.song
        for index, one in enumerate(song.sources):
            silent = None if one.silent_share is None else 100 * one.silent_share
            figures = (one.sample_rate, one.seconds, one.level_dbfs, silent)
            rows.append(("" if index else name, one.source, *figures, None if index else song.sum_db))
    click.echo(text_table(columns, rows))
    click.echo()
    for finding in found.findings:
        click.echo(f"{'ERROR' if finding.fatal else 'note':5}  {finding.song}: {finding.what}")
    fatal = sum(finding.fatal for finding in found.findings)
    verdict = (
        "training on all of them is possible"
        if found.trainable
        else f"{fatal} of which make training impossible"
    )
    click.echo(f"songs: {len(found.songs)}, findings: {len(found.findings)}, {verdict}")


@data.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--output", type=options.OutputPath("folder"), required=True, help="Folder to write to.")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), default=10, show_default=True, help="Number of chunks."
)
@options.force
@options.as_json
def preview(
    config: str, overrides: tuple[str, ...], output: Path, count: int, force: bool, as_json: bool
) -> None:
    """Write the first chunks of a training as CONFIG says (a file or a name), with what was done to each.

    With --force the chunks of an earlier preview go, the ones beyond --count too.
    """
    from tfswa.train.config_files import find_config, load_config
    from tfswa.train.data.preview import preview as run

    path, base = find_config(config)
    entries = run(load_config(path, overrides, base=base), output, count, force=force)
    if as_json:
        click.echo(json_text({"output": str(output), "chunks": entries}))
    else:
        click.echo((output / "preview.txt").read_text(encoding="utf-8"), nl=False)


@data.command()
@click.option("-o", "--output", type=options.OutputPath("new"), required=True, help="Folder to make.")
@options.force
@options.as_json
def example(output: Path, force: bool, as_json: bool) -> None:
    """Write a few short songs with true stems, to try every command with.

    Three are generated; a fourth is the 6 s song of PyPI's package stempeg, where that is installed.
    """
    from tfswa.runtime.songs.example import write_example

    songs = write_example(output, force=force)
    if as_json:
        click.echo(json_text({"root": str(output), "songs": [song.name for song in songs]}))
    else:
        click.echo(f"{output}: {len(songs)} songs with vocals, drums, bass, other and their mixture")


@data.command()
@click.option("--download", is_flag=True, help="Fetch them from the network; default: refuse.")
@click.option(
    "-o",
    "--output",
    type=options.OutputPath("new"),
    help="Folder to make; default: the one in MUSDB_PATH, else ~/MUSDB18/MUSDB18-7, where "
    "`tfx evaluate --data musdb` looks.",
)
@options.as_json
def musdb(download: bool, output: Path | None, as_json: bool) -> None:
    """Fetch MUSDB18's free excerpts: 7 s of each song, with the license of MUSDB18."""
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.songs.finding import musdb_folder
    from tfswa.train.data.musdb import download as run

    root = output or musdb_folder()
    if not download:
        raise UsageError(f"tfx data musdb fetches its songs from the network, to {root}: say --download")
    songs = run(root)
    if as_json:
        click.echo(json_text({"root": str(root), "songs": songs}))
    else:
        click.echo(f"{root}: {songs} songs")
