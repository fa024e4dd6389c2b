"""The command ``tfx calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.calibration.calibrate import Calibrated, Planned
    from tfswa.calibration.corpus import Corpus
    from tfswa.calibration.loss import Loss
    from tfswa.export.plan import Low
    from tfswa.runtime.commands.phases import Phases
    from tfswa.runtime.model.opening import Model

MEGABYTE = 1e6


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--audio",
    type=options.GivenPath(),
    multiple=True,
    help="Songs, stem files or folders of them; true stems are what drift is measured against. Repeatable.",
)
@click.option(
    "--corpus",
    "corpus_file",
    type=options.GivenPath(dir_okay=False),
    help="Chunks that an earlier run kept, in place of --audio.",
)
@click.option(
    "--keep",
    type=options.OutputPath("file"),
    help="Keep the chunks here, e.g. calibration.npz; default: they are not kept.",
)
@click.option("--chunks", type=int, default=64, show_default=True, help="To take ranges from.")
@click.option("--held-out", type=int, default=12, show_default=True, help="Chunks to measure the loss on.")
@click.option(
    "--difficult",
    type=float,
    default=0.125,
    show_default=True,
    help="Share of generated chunks: silence, full scale, noise ...",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "entropy", "mse", "relative"]),
    help="How ranges are derived; default: all are tried, the one that loses least is kept.",
)
@click.option(
    "--sensitivity", is_flag=True, help="Also find which layers are worth 8 bits: precision-plan.json."
)
@click.option(
    "--budget-db",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="What the worst stem may drift, with --sensitivity.",
)
@click.option(
    "--half",
    type=click.Choice(["bf16", "fp16"]),
    default="bf16",
    show_default=True,
    help="What is computed in where not in 8 bits: bf16 in OpenVINO, fp16 in TensorRT.",
)
@click.option(
    "--cost",
    "costs_by",
    type=click.Choice(["openvino", "counted"]),
    default="openvino",
    show_default=True,
    help="Seconds of each group of layers here, or products counted.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Parts of a module's name that tell groups of layers apart: encoder.1.blocks.0.time has 5.",
)
@click.option(
    "--chart",
    type=options.OutputPath("file"),
    help="Draw loss by group and time against drift as a PNG, with --sensitivity.",
)
@options.force
@options.as_json
def calibrate(
    model: str,
    audio: Sequence[Path],
    corpus_file: Path | None,
    method: str | None,
    sensitivity: bool,
    budget_db: float,
    half: Low,
    costs_by: str,
    depth: int,
    chart: Path | None,
    force: bool,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Calibrate MODEL (a bundle, or the name demo) for INT8: model.int8.onnx, and which layers deserve it.

    Ranges of activations are taken from real audio, by five methods that are compared on audio held out.
    With --sensitivity each group of layers is measured in 8 bits alone, and the cheapest plan is found that
    keeps every stem within the budget. A run that was stopped goes on where it was.
    """
    from tfswa.calibration import calibrate as work
    from tfswa.runtime.commands.phases import Phases
    from tfswa.runtime.files.partial import temporary
    from tfswa.runtime.model.opening import open_model

    _check_request(bool(audio), corpus_file, sensitivity, half, costs_by, chart, force)
    opened = open_model(model)
    work.check_planes_alone(opened)  # refused before the work
    again = not sensitivity or not work.is_done(opened) or force
    if again:
        work.check_writable(opened, force=force)
    calibrated = planned = None
    with temporary("calibrate") as folder, Phases() as phases:
        corpus = _corpus(opened, audio, corpus_file, folder, phases, force=force, **drawing)
        phases.say(_drawn(corpus))
        calibration = work.Calibration(opened, corpus, half=half, step=phases.announce)
        if again:
            calibrated = calibration.find_ranges(method=method, force=force)
        if sensitivity:
            planned = calibration.find_plan(budget_db=budget_db, depth=depth, costs_by=costs_by)
    if planned is not None and chart is not None:
        from tfswa.calibration.chart import draw
        from tfswa.runtime.plots import pictures

        pictures.save_png(draw(planned, budget_db, opened.name), chart, named=True, force=force)
    if as_json:
        _print_json(opened, corpus, calibrated, planned)
    else:
        _tell(opened, calibrated, planned, half)


def _check_request(
    audio: bool,
    corpus_file: Path | None,
    sensitivity: bool,
    half: Low,
    costs_by: str,
    chart: Path | None,
    force: bool,
) -> None:
    """Refuse options that do not go together, and what could not be written after the work."""
    from tfswa.runtime.errors import OutputExists, UsageError
    from tfswa.runtime.plots import pictures

    if audio == bool(corpus_file):
        raise UsageError("give either --audio (songs) or --corpus (a file that --keep wrote)")
    if chart is not None:
        if not sensitivity:
            raise UsageError("--chart draws what --sensitivity finds: give both")
        if chart.exists() and not force:
            raise OutputExists(f"{chart} is there already: choose another name, or --force")
        pictures.require_matplotlib("leave --chart out")
    if sensitivity and half != "bf16" and costs_by == "openvino":
        raise UsageError(f"openvino has no {half} on a CPU: count the cost with --cost counted")


def _corpus(
    model: Model,
    audio: Sequence[Path],
    corpus_file: Path | None,
    folder: Path,
    phases: Phases,
    *,
    keep: Path | None,
    **drawing: Any,
) -> Corpus:
    """Chunks of a file, or drawn from songs into one."""
    from tfswa.calibration.corpus import open_corpus
    from tfswa.calibration.gather import gather

    if corpus_file is not None:
        return open_corpus(corpus_file, model.spec)
    place = keep or folder / "calibration.npz"
    return gather(audio, model.spec, place, report=phases.say, **drawing)


def _drawn(corpus: Corpus) -> str:
    strata = ", ".join(f"{count} {name}" for name, count in corpus.strata.items())
    return f"{len(corpus)} chunks to calibrate on ({strata}), {corpus.held_out_count} held out"


def _tell(model: Model, calibrated: Calibrated | None, planned: Planned | None, half: str) -> None:
    from tfswa.runtime.machine import int8_instructions
    from tfswa.runtime.table import decimals, text_table

    if calibrated is not None:
        rows: list[list[str | float | None]] = [
            [name + (" *" if name == calibrated.method else ""), *_figures(loss)]
            for name, loss in calibrated.losses.items()
        ]
        click.echo(f"ranges, every layer in int8, on held-out audio (* kept), the rest in {half}")
        click.echo(text_table(_columns(model), rows, _digits(model)))
        size = calibrated.artifact.bytes / MEGABYTE
        click.echo(f"{calibrated.artifact.file}  {size:.1f} MB")
        click.echo(_bound_to(int8_instructions()))
    if planned is None:
        return
    best = planned.found.best
    plans: list[list[str | float | None]] = [
        [
            f"{len(point.int8)} of {len(planned.groups)} groups in int8"
            + (f", {len(point.fp32)} in fp32" if point.fp32 else "")
            + (" *" if point == best else ""),
            *_figures(point.loss),
            f"{point.cost:.4g} {planned.unit}",
            point.time,
        ]
        for point in planned.found.points
    ]
    click.echo(f"plans, the rest in {half} (* taken; time of the network, the fastest without int8 being 1)")
    click.echo(text_table((*_columns(model, "plan"), "cost", "time"), plans, (*_digits(model), 0, 2)))
    worst = sorted(planned.groups, key=lambda name: planned.found.alone[name]["int8"].worst_snr_db)[:5]
    for name in worst:
        loss = planned.found.alone[name]["int8"]
        click.echo(
            f"  {name} in int8 alone: {loss.worst_snr_db:.1f} dB, drift {decimals(loss.worst_drift_db, 4)} dB"
        )
    if calibrated is None:
        click.echo(_bound_to(int8_instructions()))
    if planned.artifact is None:
        click.echo(
            "no layer is worth 8 bits here: each saves no time, or costs more than the budget: use "
            f"{'fp32' if best.fp32 else half}; model.int8.onnx stays as it was, with every layer in int8"
        )
    else:
        size = planned.artifact.bytes / MEGABYTE
        click.echo(f"{planned.artifact.file}  {size:.1f} MB, by precision-plan.json")
        if half == "bf16":
            use = "int8" if best.fp32 else "mixed"  # the rest in float32, or in bfloat16
            click.echo(f"run it with --backend openvino --precision {use}")


def _bound_to(instructions: str) -> str:
    """One line: which numbers are this processor's; see docs/processors.md."""
    if instructions == "saturating":
        return "losses are those of exact sums; this CPU has no VNNI, and OpenVINO's int8 is refused on it"
    return (
        f"losses are those of exact sums; OpenVINO's int8 is bound to the instructions it adds with, here "
        f"{instructions}: tfx parity measures it on each kind of processor"
    )


def _columns(model: Model, first: str = "method") -> list[str]:
    stems = model.spec.outputs
    return [first, *(f"{stem} SNR dB" for stem in stems), *(f"{stem} drift dB" for stem in stems)]


def _figures(loss: Loss) -> list[float]:
    return [*loss.snr_db.values(), *loss.drift_db.values()]


def _digits(model: Model) -> list[int]:
    """Decimals of what ``_columns`` names: SNR has one, drift four."""
    count = len(model.spec.outputs)
    return [0, *[1] * count, *[4] * count]


def _print_json(model: Model, corpus: Corpus, calibrated: Calibrated | None, planned: Planned | None) -> None:
    import json
    from dataclasses import asdict

    from tfswa.calibration.calibrate import described, finite
    from tfswa.runtime.machine import peak_memory_mb

    report: dict[str, Any] = {
        "model": model.name,
        "corpus": described(corpus),
        "method": None,
        "methods": {},
        "plan": None,
        "plans": [],
        "cost_unit": None,
        "groups": {},
        "file": None,
        "peak_memory_mb": round(peak_memory_mb()),
    }
    if calibrated is not None:
        report |= {
            "method": calibrated.method,
            "methods": {name: asdict(loss) for name, loss in calibrated.losses.items()},
            "file": str(calibrated.artifact.file),
        }
    if planned is not None:
        report |= {
            "plan": asdict(planned.found.best),
            "plans": [asdict(point) for point in planned.found.points],
            "cost_unit": planned.unit,
            "groups": {
                name: {
                    "cost": planned.costs[name],
                    "alone": {kind: asdict(loss) for kind, loss in planned.found.alone[name].items()},
                }
                for name in planned.groups
            },
            "file": str(planned.artifact.file) if planned.artifact else None,
        }
    click.echo(json.dumps(finite(report), allow_nan=False))
