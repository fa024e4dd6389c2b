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
    from tfswa.runtime.benchmark.bench import Benchmark

COLUMNS = {
    "backend": "backend",
    "precision": "precision",
    "median_ms": "median ms",
    "p95_ms": "p95 ms",
    "x_realtime": "x real time",
    "x_first": "x first",
    "snr_db": "SNR dB",
    "drift_db": "drift dB",
    "open_s": "open s",
    "cold_s": "cold s",
    "memory_mb": "memory MB",
    "gpu_memory_mb": "GPU MB",
    "ceiling": "of ceiling",
    "note": "note",
}

DIGITS = {"SNR dB": 1, "memory MB": 0, "GPU MB": 0}  # decimals on a terminal; 2 of all others


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
    type=options.GivenPath(),
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
    first row. The ceiling is a product of two large matrices in the same precision.
    """
    from tfswa.runtime.backends.auto import record, table_of
    from tfswa.runtime.benchmark.bench import Plan
    from tfswa.runtime.benchmark.bench import bench as run
    from tfswa.runtime.errors import OutputExists
    from tfswa.runtime.files.checks import check_file
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.plots import pictures
    from tfswa.runtime.songs.loading import load_song
    from tfswa.runtime.songs.synthetic import synthetic_song

    endings = (".json", ".md", ".png")
    files = [output.with_name(output.name + ending) for ending in endings] if output else []
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise OutputExists(f"{taken[0]} is there already: choose another -o, or --force")
    if files:
        pictures.require_matplotlib()
        check_file(files[0])
    opened = open_model(model, trusted=trusted)
    if auto:
        table_of(opened)  # refuses what cannot have one, before the work
    song = load_song(audio, opened.spec) if audio else synthetic_song(opened.spec)
    plan = Plan([_entry(entry) for entry in entries], rounds, batch, device, threads, compiled)
    found = run(opened, song, plan, report=lambda line: click.echo(line, err=True))
    for failure in found.failures:
        click.echo(f"tfx: {shown(failure.told)}", err=True)
    text = json_text(found.to_dict(), allow_nan=False)
    if files:
        _write(files, found, text, force=force)
    click.echo(text if as_json else _table(found))
    for path in files:
        click.echo(f"written: {path}", err=as_json)
    if auto:
        click.echo(f"--backend auto goes by {record(opened, plan, found)}", err=as_json)
    raise_for(found.failures, len(found.rows), "backends")


def _entry(text: str) -> tuple[str, str]:
    backend, _, precision = text.partition(":")
    return backend, precision or "fp32"


def _table(found: Benchmark) -> str:
    from tfswa.runtime.table import text_table

    first = found.rows[0]
    beside = f"x first: speed beside {first.backend} {first.precision}"
    columns, cells = _columns_and_cells(found)
    rows = text_table(columns, cells, [DIGITS.get(title, 2) for title in columns])
    head = f"{found.model}; dB measured on: {found.song}; {beside}"
    return "\n".join([head, *_ceilings(found), rows, *_missing(found)])


def _missing(found: Benchmark) -> list[str]:
    """One line that names what cannot run here."""
    names = [f"{row.backend} {row.precision}" for row in found.rows if not row.session]
    return [f"cannot run here: {', '.join(names)}; --json says why"] if names else []


def _ceilings(found: Benchmark) -> list[str]:
    cost = found.gflop_per_s_of_audio
    lines = [] if cost is None else [f"network: {cost:g} GFLOP per second of audio"]
    return [*lines, *(f"ceiling in {name}: {value:.0f} GFLOP/s" for name, value in found.ceilings.items())]


def _columns_and_cells(found: Benchmark) -> tuple[list[str], list[list[str | float | None]]]:
    from tfswa.runtime.table import decimals

    on_gpu = any(row.gpu_memory_mb is not None for row in found.rows)
    columns = {name: title for name, title in COLUMNS.items() if name != "gpu_memory_mb" or on_gpu}
    cells: list[list[str | float | None]] = []
    for row in found.rows:
        if not row.session:  # it never ran
            continue
        values = row.to_dict()
        values["ceiling"] = None if row.ceiling is None else f"{100 * row.ceiling:.0f} %"
        values["note"] = row.note or None
        if row.drift_db is not None:
            values["drift_db"] = decimals(row.drift_db, 4)
        if row.identical:
            values["snr_db"] = "identical"
        cells.append([values[name] for name in columns])
    return list(columns.values()), cells


def benchmark_page(found: Benchmark) -> str:
    """A page: the machine, the table, and what could not run."""
    from tfswa.runtime.table import markdown_table

    machine = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    lines = [f"# Measured by `tfx bench {found.model}`", "", machine, "", f"dB measured on: {found.song}"]
    lines += [*_ceilings(found), "", *markdown_table(*_columns_and_cells(found)), "", *_missing(found)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _write(files: list[Path], found: Benchmark, text: str, *, force: bool) -> None:
    """The three files, all of them or none."""
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.files.staging import Staging
    from tfswa.runtime.plots import pictures

    speeds = {f"{row.backend} {row.precision}": row.x_realtime for row in found.rows if row.x_realtime}
    figure = pictures.bars(speeds, f"{found.model}: seconds of audio per second")
    staging = Staging({path.name: path for path in files}, force=force, source=None)
    try:
        staging.prepare(0)
        numbers, page, picture = staging.partials
        numbers.write_text(text + "\n", encoding="utf-8")
        page.write_text(benchmark_page(found), encoding="utf-8")
        pictures.save_png(figure, picture)
        staging.publish()
    except OSError as error:
        raise UsageError(
            f"{files[0].parent} cannot be written ({error.strerror}): choose another -o"
        ) from error
    finally:
        staging.discard()
