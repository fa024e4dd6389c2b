"""``tfx parity seams``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.parity.seams import Seams

FILE = options.OutputPath("file")


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--audio",
    type=options.GivenPath(),
    help="An audio file, a stem file, or a folder of stems or songs; default: a synthetic song of 12 s.",
)
@click.option(
    "--threshold-db",
    type=click.FloatRange(min=0.0, min_open=True),
    help="What may be lost near an edge, in dB; default: 0.1.",
)
@click.option("--store", is_flag=True, help="Write the context into the manifest, or into a copy, see -o.")
@options.output_option("With --store: the new bundle; default: the manifest of MODEL itself.")
@click.option("--picture", type=FILE, help="Draw the curves into this PNG file.")
@options.force
@options.as_json
def seams(
    model: str,
    audio: Path | None,
    threshold_db: float | None,
    store: bool,
    output: Path | None,
    picture: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure what MODEL's network loses near a chunk's edge, and the context that makes up for it.

    Chunks are compared with one long pass over the same music, by distance from the edge.
    """
    from tfswa.runtime.errors import OutputExists, UsageError
    from tfswa.runtime.model.bundle import writable
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.context import store_context
    from tfswa.runtime.parity.corpus import songs
    from tfswa.runtime.parity.report.curves import draw_seams
    from tfswa.runtime.parity.seams import LIMIT_DB, measure_seams
    from tfswa.runtime.plots import pictures

    if output is not None and not store:
        raise UsageError("-o names the bundle that --store writes, which was not asked for: add --store")
    for path in (picture, output):
        if path is not None and path.exists() and not force:
            raise OutputExists(f"{path} is there already: choose another name, or --force")
    if picture is not None:
        pictures.require_matplotlib("leave --picture out")
    opened = open_model(model)
    if opened.spec.state:
        raise UsageError(
            f"seams are lost context, and {model} hands what it heard from chunk to chunk as "
            f"{len(opened.spec.state)} state tensors: there are none to measure"
        )
    if store and output is None and opened.bundle is not None:
        opened.bundle.check_rechunk()  # refused before the work
    found = measure_seams(
        opened,
        songs(audio, opened.spec),
        limit_db=LIMIT_DB if threshold_db is None else threshold_db,
        report=lambda line: click.echo(line, err=True),
    )
    if picture is not None:
        with writable(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(draw_seams(found, Path(model).name), picture, named=True, force=force)
    if not as_json:
        _print(found, model, store)
    stored = store_context(opened, found, output, force=force) if store else None
    if as_json:
        click.echo(json_text({"model": model, **found.to_dict(), "stored": stored and str(stored)}))
    elif stored is not None:
        click.echo(f"stored: context {found.context} in {stored}")


def _print(found: Seams, model: str, store: bool) -> None:
    from tfswa.runtime.metrics import finite_db
    from tfswa.runtime.parity.seams import ASSUMED_DB, distances_to_show
    from tfswa.runtime.table import text_table

    chunk, curves = found.spec.chunk, found.curves
    click.echo(
        f"{found.chunks} chunks of {chunk.frames} frames against passes of {found.long_frames}, "
        f"{', '.join(found.songs)}"
    )
    click.echo(
        "loss: SDR against the true stems, less than the long pass has, dB"
        if found.truth
        else f"loss: what the difference costs a network of {ASSUMED_DB:g} dB SDR (no true stems), dB"
    )
    columns = [
        "frames from the edge",
        *(f"{curve.stem} {what}" for curve in curves for what in ("SNR dB", "loss dB")),
    ]
    rows: list[list[Any]] = []
    for d in distances_to_show(len(curves[0].snr_db)):
        pairs = ((curve.snr_db[d], curve.loss_db[d]) for curve in curves)
        rows.append([str(d), *(finite_db(value) for pair in pairs for value in pair)])
    rows.append(
        ["middle", *(finite_db(v) for curve in curves for v in (curve.middle_snr_db, curve.middle_loss_db))]
    )
    click.echo(text_table(columns, rows))
    click.echo("")
    columns = ["context", "seam dB", "SNR dB", "kept share", "x speed", ""]
    rows = []
    words = {"present": chunk.context, "asked for": found.context, "equal": found.exact}
    for choice in found.choices():
        said = ", ".join(word for word, value in words.items() if value == choice.context)
        figures = (choice.seam_db, finite_db(choice.snr_db), choice.kept_share, choice.speed)
        rows.append([str(choice.context), *figures, said])
    click.echo(text_table(columns, rows))
    click.echo(_answer(found))
    if found.context is not None and found.context != chunk.context and not store:
        click.echo(f"store it: tfx parity seams {model} --store -o NEW.tfx")


def _answer(found: Seams) -> str:
    """In words."""
    snr = min(curve.middle_snr_db for curve in found.curves)
    if found.context is None:
        first = (
            f"context asked for: none within the chunk has seams within {found.limit_db:g} dB of the middle"
        )
    else:
        first = f"context asked for: {found.context} frames, seams within {found.limit_db:g} dB of the middle"
    if found.exact is not None:
        return f"{first}; from {found.exact} frames on a chunk equals the long pass"
    return (
        f"{first}; nowhere does a chunk equal the long pass ({snr:.1f} dB SNR in the middle): "
        "its reach is as long as the chunk"
    )
