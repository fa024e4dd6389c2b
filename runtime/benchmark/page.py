"""A benchmark for people: a table for a terminal, a page in Markdown, a picture of the speeds."""

from __future__ import annotations

import json
from pathlib import Path

from tfswa.runtime.benchmark.bench import Benchmark
from tfswa.runtime.errors import UsageError
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.plots import pictures
from tfswa.runtime.table import decimals, markdown_table, text_table

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


def benchmark_text(found: Benchmark) -> str:
    """For a terminal."""
    first = found.rows[0]
    beside = f"x first: speed beside {first.backend} {first.precision}"
    columns, cells = _columns_and_cells(found)
    rows = text_table(columns, cells, [DIGITS.get(title, 2) for title in columns])
    head = f"{found.model}; dB measured on: {found.song}; {beside}"
    return "\n".join([head, *_ceilings(found), rows, *_on_gpus(found), *_missing(found)])


def benchmark_page(found: Benchmark) -> str:
    """A page: the machine, the table, and what could not run."""
    machine = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    lines = [f"# Measured by `tfx bench {found.model}`", "", machine, "", f"dB measured on: {found.song}"]
    table = markdown_table(*_columns_and_cells(found))
    lines += [*_ceilings(found), "", *table, "", *_on_gpus(found), *_missing(found)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _on_gpus(found: Benchmark) -> list[str]:
    """What ran on GPUs, and what transforms there: a line for each."""
    rows = [row for row in found.rows if row.session and row.device != "cpu"]
    return [f"{row.backend} {row.precision}: {row.session}" for row in rows]


def benchmark_files(output: Path) -> list[Path]:
    """Where ``write_benchmark`` writes: numbers, page, picture."""
    return [output.with_name(output.name + ending) for ending in (".json", ".md", ".png")]


def write_benchmark(output: Path, found: Benchmark, *, force: bool) -> None:
    """Write the three files, all of them or none.

    Raises:
        OutputExists: one is there, and ``force`` is false.
        UsageError: the folder cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    files = benchmark_files(output)
    speeds = {f"{row.backend} {row.precision}": row.x_realtime for row in found.rows if row.x_realtime}
    figure = pictures.bars(speeds, f"{found.model}: seconds of audio per second")
    staging = Staging({path.name: path for path in files}, force=force, source=None)
    try:
        staging.prepare(0)
        numbers, page, picture = staging.partials
        numbers.write_text(json.dumps(found.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
        page.write_text(benchmark_page(found), encoding="utf-8")
        pictures.save_png(figure, picture)
        staging.publish()
    except OSError as error:
        raise UsageError(
            f"{files[0].parent} cannot be written ({error.strerror}): choose another -o"
        ) from error
    finally:
        staging.discard()


def _missing(found: Benchmark) -> list[str]:
    """One line that names what cannot run here."""
    names = [f"{row.backend} {row.precision}" for row in found.rows if not row.session]
    return [f"cannot run here: {', '.join(names)}; --json says why"] if names else []


def _ceilings(found: Benchmark) -> list[str]:
    cost = found.gflop_per_s_of_audio
    lines = [] if cost is None else [f"network: {cost:g} GFLOP per second of audio"]
    return [*lines, *(f"ceiling in {name}: {value:.0f} GFLOP/s" for name, value in found.ceilings.items())]


def _columns_and_cells(found: Benchmark) -> tuple[list[str], list[list[str | float | None]]]:
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
