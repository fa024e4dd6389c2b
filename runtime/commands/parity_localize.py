"""``tfx parity localize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.parity.localize import Located, Step

FILE = options.GivenPath(dir_okay=False)
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
    from tfswa.runtime.model.opening import open_model, trust_code
    from tfswa.runtime.parity.localize import THRESHOLD_DB
    from tfswa.runtime.parity.localize import localize as locate
    from tfswa.runtime.parity.reference import load_reference
    from tfswa.runtime.plots import pictures

    if picture is not None and picture.exists() and not force:
        raise OutputExists(f"{picture} is there already: choose another name, or --force")
    if picture is not None:
        pictures.require_matplotlib("leave --picture out")
    backend, _, kind = entry.partition(":")
    threshold = THRESHOLD_DB if threshold_db is None else threshold_db
    opened = open_model(model)
    if opened.bundle is None:
        raise UsageError(f"{model} is an exported file: localize needs the bundle that it came from")
    if trusted:
        trust_code(opened)
    instrument = _instrument(opened, backend, kind or "fp32")
    name, planes = _loudest(opened, audio)
    click.echo(f"{instrument.artifact}: the loudest chunk of {name}", err=True)
    found = locate(instrument, load_reference("torch")(opened), planes, threshold_db=threshold)
    if picture is not None:
        with writable(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(_draw(found, Path(model).name), picture, named=True, force=force)
    if as_json:
        click.echo(json_text(_as_json(found, model, name)))
    else:
        _print(found)
    if found.operator is not None and found.culprit is not None:
        raise GateError(
            f"{found.artifact} first loses more than {threshold:g} dB in {found.culprit.module}: "
            f"{_words(found.operator)}"
        )


def _loudest(model: Model, audio: Path | None) -> tuple[str, Any]:
    """The first song's name, and the network's input for its loudest chunk."""
    from tfswa.runtime.parity.corpus import songs
    from tfswa.runtime.songs.loading import loudest_chunk
    from tfswa.runtime.stream.transform import Stft, pack

    song = songs(audio, model.spec)[0].load()
    _, chunk = loudest_chunk(song.mixture, model.spec)
    return song.name, pack(Stft(model.spec.stft).forward(chunk[None]))


def _instrument(model: Model, backend: str, precision: str) -> Any:
    # What looks into graphs needs onnx and torch; naming it by string keeps runtime free of both.
    from importlib import import_module

    from tfswa.runtime.errors import BackendUnavailable
    from tfswa.runtime.gates import gate_for
    from tfswa.runtime.parity.polygraphy import layers_line

    if backend == "trt":
        file, _ = model.artifact("onnx", precision)
        line = layers_line(model.file(file), model.spec, gate_for(precision).snr_db)
        raise BackendUnavailable(
            "the layers of an engine are compared by NVIDIA's polygraphy on a machine with a GPU (for "
            f"TensorRT-RTX with POLYGRAPHY_USE_TENSORRT_RTX=1): {line}"
        )
    try:
        instruments: Any = import_module("tfswa.export.instruments")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"localize needs {error.name}: pip install 'tfswa[export]'") from error
    return instruments.open_instrument(model, backend, precision)


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


def _draw(found: Located, name: str) -> Any:
    from tfswa.runtime.plots.pictures import Panel, panels

    places = [float(index) for index in range(len(found.steps))]
    marks = {}
    if found.culprit is not None:
        marks[found.culprit.module] = float(found.steps.index(found.culprit))
    top = found.ceiling_db + 40  # where equal values are drawn; 0 is for NaN and Inf
    snr_db = [min(max(step.snr_db, 0.0), top) for step in found.steps]
    loss_db = [min(step.loss_db, found.ceiling_db) for step in found.steps]
    snr = Panel(f"SNR / dB, {top:g} where equal", {"modules": snr_db}, level=found.ceiling_db)
    loss = Panel("loss / dB", {"modules": loss_db}, level=found.threshold_db)
    title = f"{name}: {found.artifact} against eager float32"
    return panels(places, [snr, loss], title=title, label="module, in the order of the graph", marks=marks)


def _as_json(found: Located, model: str, song: str) -> dict[str, Any]:
    return {
        "model": model,
        "song": song,
        "artifact": found.artifact,
        "precision": found.precision,
        "description": found.description,
        "threshold_db": found.threshold_db,
        "ceiling_db": found.ceiling_db,
        "compared": len(found.steps),
        "skipped": list(found.skipped),
        "culprit": found.culprit and _step(found.culprit),
        "operator": found.operator and _step(found.operator),
        "steps": [_step(step) for step in found.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    from math import inf, isfinite

    def known(value: float) -> float | None:
        return value if isfinite(value) else None

    return {
        "module": step.module,
        "op": step.op,
        "node": step.node,
        "fed_db": known(step.before_db),
        "snr_db": known(step.snr_db),
        "loss_db": known(step.loss_db),
        "finite": step.snr_db != -inf,
        "largest": known(step.largest),
        "eager_largest": known(step.reference),
    }
