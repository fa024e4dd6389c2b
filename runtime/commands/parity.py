"""``tfx parity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.runtime.parity import ParityReport


@click.command()
@click.argument("model", default="demo")
@options.backend_options
@click.option(
    "--reference", default="torch", show_default=True, help="What the artifact is measured against."
)
@click.option(
    "--audio",
    type=click.Path(path_type=Path),
    help="An audio file, a stem file, or a folder of stems; default: a synthetic song of 12 s.",
)
@click.option("--min-snr-db", type=float, help="Gate; default: 80 dB for fp32, 45 for fp16, 36 for bf16.")
@click.option("--max-drift-db", type=float, help="Gate; default: 0.01 dB for fp32, otherwise 0.05.")
@options.as_json
def parity(
    model: str,
    backend: str,
    precision: str | None,
    device: str | None,
    threads: int | None,
    batch: int,
    reference: str,
    audio: Path | None,
    min_snr_db: float | None,
    max_drift_db: float | None,
    as_json: bool,
) -> None:
    """Measure in dB what MODEL's artifact lost against the eager network, stem by stem.

    The result is kept in the bundle's parity.json. Exit code 3 if a gate is not met.
    """
    import json

    from tfswa.runtime.backends import BackendOptions, default_device
    from tfswa.runtime.errors import GateError, UsageError
    from tfswa.runtime.models import open_model
    from tfswa.runtime.parity import compare, gate_for, store
    from tfswa.runtime.polygraphy import command_line
    from tfswa.runtime.truth import load_songs, synthetic_song

    if backend == "auto":
        raise UsageError(
            "parity measures one backend: name it with --backend ort, openvino, torchscript, torch or trt"
        )
    gate = gate_for(precision, min_snr_db, max_drift_db)
    opened = open_model(model)
    songs = load_songs(audio, opened.spec) if audio else [synthetic_song(opened.spec)]
    report = compare(
        opened,
        songs,
        backend=backend,
        options=BackendOptions(precision, device or default_device(backend), threads),
        batch=batch,
        reference=reference,
        gate=gate,
    )
    path = store(opened, report)
    line = command_line(opened.bundle, report.artifact, gate.snr_db) if opened.bundle else None
    if as_json:
        whole = {"model": model, "evidence": str(path), "polygraphy": line, **report.to_dict()}
        click.echo(json.dumps(whole, allow_nan=False))
    else:
        _print(report, path)
        if line:
            click.echo(f"the graph alone, by polygraphy: {line}")
    if not report.passed:
        failed = [f"{stem.stem} of {stem.song}" for stem in report.stems if not stem.passes(report.gate)]
        raise GateError(
            f"parity gate not met by {', '.join(failed)}: "
            f"needs SNR >= {gate.snr_db:g} dB, |drift| <= {gate.drift_db:g} dB, nothing non-finite"
        )


def _print(report: ParityReport, path: Path) -> None:
    from tfswa.runtime.table import text_table

    columns = ("song", "stem", "SNR dB", "reference SDR dB", "SDR dB", "drift dB", "non-finite", "gate")
    rows = [
        (
            stem.song,
            stem.stem,
            "identical" if stem.identical else stem.snr_db,
            stem.reference_sdr_db,
            stem.sdr_db,
            stem.drift_db,
            stem.non_finite,
            "passed" if stem.passes(report.gate) else "FAILED",
        )
        for stem in report.stems
    ]
    click.echo(f"{report.backend} {report.precision} against {report.reference}")
    click.echo(text_table(columns, rows, digits=4))
    click.echo(f"evidence: {path}")
