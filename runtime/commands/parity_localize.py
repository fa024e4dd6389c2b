"""``tfx parity localize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.parity.localize import Located, Step

FILE = options.OutputPath("file")
SHOWN = 12  # steps in the table; --json has all


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--backend",
    "entry",
    required=True,
    metavar="NAME[:PRECISION]",
    help="The artifact to look into: ort, ort:fp16, torchscript, ...",
)
@click.option(
    "--audio",
    type=options.GivenPath(),
    help="An audio file, a stem file, or a folder of stems or songs; default: a synthetic song of 12 s.",
)
@click.option(
    "--threshold-db",
    type=click.FloatRange(min=0.0, min_open=True),
    help="What a layer may lose, in dB; default: 10.",
)
@click.option("--picture", type=FILE, help="Draw the curve into this PNG file.")
@options.trust
@options.force
@options.as_json
def localize(
    model: str,
    entry: str,
    audio: Path | None,
    threshold_db: float | None,
    picture: Path | None,
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Find the first layer of one artifact of MODEL that loses more than --threshold-db.

    The graph is compared with the eager network layer by layer, on the loudest chunk. Exit code 3 if a layer
    loses more.
    """
    from tfswa.runtime.errors import GateError, OutputExists, UsageError
    from tfswa.runtime.model.bundle import writable
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.corpus import loudest_planes, songs
    from tfswa.runtime.parity.instrument import open_instrument
    from tfswa.runtime.parity.localize import THRESHOLD_DB
    from tfswa.runtime.parity.localize import localize as locate
    from tfswa.runtime.parity.reference import eager_network
    from tfswa.runtime.parity.report.curves import draw_located
    from tfswa.runtime.plots import pictures

    if picture is not None and picture.exists() and not force:
        raise OutputExists(f"{picture} is there already: choose another name, or --force")
    if picture is not None:
        pictures.require_matplotlib("leave --picture out")
    backend, _, kind = entry.partition(":")
    threshold = THRESHOLD_DB if threshold_db is None else threshold_db
    opened = open_model(model, trusted=trusted)
    if opened.bundle is None:
        raise UsageError(f"{model} is an exported file: localize needs the bundle that it came from")
    instrument = open_instrument(opened, backend, kind or "fp32")
    song = songs(audio, opened.spec)[0].load()
    _, planes = loudest_planes(song.mixture, opened.spec)
    click.echo(f"{instrument.artifact}: the loudest chunk of {song.name}", err=True)
    found = locate(instrument, eager_network(opened), planes, threshold_db=threshold)
    if picture is not None:
        with writable(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(draw_located(found, Path(model).name), picture, named=True, force=force)
    if as_json:
        click.echo(json_text({"model": model, "song": song.name, **found.to_dict()}))
    else:
        _print(found)
    if found.operator is not None and found.culprit is not None:
        raise GateError(
            f"{found.artifact} first loses more than {threshold:g} dB in {found.culprit.module}: "
            f"{_words(found.operator)}"
        )


def _print(found: Located) -> None:
    from tfswa.runtime.parity.localize import worst_first

    skipped = f", {len(found.skipped)} were not, such as {found.skipped[0]}" if found.skipped else ""
    click.echo(f"{found.artifact} in {found.description}, against the eager network in float32")
    click.echo(
        f"{len(found.steps)} modules compared{skipped}; more than {found.ceiling_db:g} dB counts as exact"
    )
    click.echo(_table(worst_first(found.steps, SHOWN)))
    if found.culprit is None:
        click.echo(f"no layer loses more than {found.threshold_db:g} dB")
        return
    assert found.operator is not None
    click.echo(f"\nculprit: {found.culprit.module}: {_words(found.operator)}")
    if found.within:
        click.echo(f"the {len(found.within)} operators that lead to its output, against a fresh export:")
        click.echo(_table(worst_first(found.within, SHOWN)))


def _table(steps: Sequence[Step]) -> str:
    from tfswa.runtime.table import text_table

    columns = ("module", "op", "node", "fed dB", "SNR dB", "loses dB", "largest", "eager's largest")
    rows = [
        (
            step.module,
            step.op,
            step.node,
            _db(step.before_db),
            _db(step.snr_db),
            _db(step.loss_db),
            f"{step.largest:.4g}",
            f"{step.reference:.4g}",
        )
        for step in steps
    ]
    return text_table(columns, rows)


def _words(step: Step) -> str:
    return (
        f"{step.op}, node {step.node}: fed {_db(step.before_db)} dB, gives {_db(step.snr_db)} dB SNR, "
        f"largest value {step.largest:.4g}, eager's {step.reference:.4g}"
    )


def _db(value: float) -> str:
    from math import inf

    return {inf: "all", -inf: "none"}.get(value, f"{value:.1f}")
