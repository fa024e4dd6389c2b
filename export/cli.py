"""Commands of the export stage: ``tfx export`` and ``tfx build-engine``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tfswa.runtime.commands import options
from tfswa.runtime.limits import MOST_BATCH

if TYPE_CHECKING:
    from tfswa.export.artifact import Exported
    from tfswa.export.engine import Flavor
    from tfswa.export.plan import Precision
    from tfswa.export.triton import Served
    from tfswa.runtime.model.opening import Model

MEGABYTE = 1e6
FORMATS = ("onnx", "torchscript", "aotinductor", "triton")
_ONLY = {  # formats that an option is for; the others are for all
    **dict.fromkeys(("--opset", "--plan", "--io"), ("onnx",)),
    "--precision": ("onnx", "triton"),
    "--audio": ("onnx", "torchscript", "aotinductor"),
    **dict.fromkeys(("--engine", "--name", "--device", "--max-batch", "--queue-delay"), ("triton",)),
}
F = TypeVar("F", bound=Callable[..., Any])


def _precision_option(help: str) -> Callable[[F], F]:
    return click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16", "int8", "mixed"]),
        default="fp32",
        show_default=True,
        help=help,
    )


def _serving_options(command: F) -> F:
    """What is said of a model on a server."""
    for option in (
        click.option(
            "--queue-delay",
            type=click.FloatRange(0, 10_000),
            metavar="MS",
            help="Of triton: how long a chunk waits for others to share a call with, ms; default: 2.",
        ),
        click.option(
            "--max-batch",
            type=click.IntRange(1, MOST_BATCH),
            help="Of triton: most chunks of one call; default: 8, of an engine its own.",
        ),
        click.option(
            "--device",
            help="Of triton: where the server runs it, cpu, cuda or cuda:N; default: cpu, of an engine cuda.",
        ),
        click.option("--name", help="Of triton: the model's name on the server; default: the bundle's."),
        click.option(
            "--engine",
            is_flag=True,
            help="Of triton: serve the engine of `tfx build-engine --flavor tensorrt`; default: the graph.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="onnx",
    show_default=True,
    help="What to make: model.onnx, model.ts, model.pt2 (code for this CPU, for one chunk a call), or a "
    "folder in a model repository of NVIDIA's Triton server.",
)
@_precision_option("Of the layers, of ONNX and triton only; the mask is multiplied in float32 always.")
@click.option(
    "--plan",
    type=options.GivenPath(dir_okay=False),
    help='Modules that stay float32: a JSON file {"fp32": ["encoder.1", ...]}; default: none.',
)
@click.option(
    "--io",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Type of the graph's input and output; fp16 with --precision fp16.",
)
@click.option("--opset", type=int, help="Version of the ONNX operators, 18 to 25; default: 20, bf16: 22.")
@click.option(
    "--audio",
    type=options.GivenPath(dir_okay=False),
    help="Compare on this file's first chunks with energy; default: generated music.",
)
@click.option(
    "--stems",
    metavar="NAMES",
    help="Stems, separated by commas: export a network of these alone, into MODEL/only; default: of all.",
)
@click.option(
    "--transform",
    is_flag=True,
    help="Make encode.onnx and decode.onnx instead: the STFT and its inverse, for hosts without one.",
)
@_serving_options
@options.output_option(
    "A file (.onnx, .ts, .pt2) to write alone, or a copy of the bundle to add to; default: the bundle "
    "itself; of triton the repository, which has to be named."
)
@options.force
@options.as_json
def export(
    model: str,
    kind: str,
    precision: Precision,
    plan: Path | None,
    io: str,
    opset: int | None,
    audio: Path | None,
    stems: str | None,
    transform: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
    **serving: Any,
) -> None:
    """Export MODEL (a bundle, or the name demo) to ONNX, TorchScript, code compiled by torch, or for Triton.

    The graph is compared with the network it came from before it is written: 80 dB SNR on every stem in
    fp32, 45 dB in fp16, 36 dB in bf16, or there is no file. A graph in fp16 or bf16 says in its types what
    is computed in which precision; nothing in it overflows on full-scale noise and square waves.
    """
    from tfswa.runtime.model.opening import open_model

    given: dict[str, Any] = {"--opset": opset, "--plan": plan}
    given |= {"--precision": None if precision == "fp32" else precision}
    given |= {"--io": None if io == "fp32" else io, "--audio": audio}
    given |= {f"--{name.replace('_', '-')}": value or None for name, value in serving.items()}
    _check_options(kind, given, output, transform=transform)
    opened: Model = open_model(model)
    with ExitStack() as stack:
        if stems is not None:
            from tfswa.export.narrow import narrow

            names = [stem.strip() for stem in stems.split(",")]
            opened = stack.enter_context(narrow(opened, names, inside=output is None or kind == "triton"))
        if transform:
            _export_transform(opened, force=force, as_json=as_json)
            return
        click.echo(f"exporting {opened.name} to {kind} in {precision} ...", err=True)
        if output is not None and kind == "triton":
            _serve(opened, output, precision, serving, force=force, as_json=as_json)
            return
        how: dict[str, Any] = {"audio": audio, "force": force}
        if kind == "onnx":
            how |= {"precision": precision, "plan": plan, "low_io": io == "fp16", "opset": opset}
        _report(_exported(opened, kind, output, **how), as_json=as_json)


def _check_options(kind: str, given: dict[str, Any], output: Path | None, *, transform: bool) -> None:
    """Refuse options that do not go together; what was left out is None."""
    from tfswa.runtime.errors import UsageError

    for option, value in given.items():
        said = option if value is True else f"{option} {value}"
        if value is not None and kind not in _ONLY[option]:
            formats = " or ".join(_ONLY[option])
            raise UsageError(f"{said} is for --format {formats}, asked for is {kind}: leave it out")
    others = {"--format": None if kind == "onnx" else kind, "-o": output}
    for option, value in {**given, **others}.items() if transform else ():
        if value is not None:
            raise UsageError(f"--transform and {option} {value} do not go together: leave one out")
    if kind == "triton" and output is None:
        raise UsageError("--format triton writes into a model repository: name its folder with -o REPOSITORY")


def _serve(
    model: Model, repository: Path, precision: str, how: dict[str, Any], *, force: bool, as_json: bool
) -> None:
    """Write a model into a repository of Triton, and report."""
    from tfswa.export.triton import QUEUE_DELAY_MS, Serving, export_triton

    delay_ms = how.pop("queue_delay")
    chosen = Serving(precision, **how, queue_delay_ms=QUEUE_DELAY_MS if delay_ms is None else delay_ms)
    _report_served(export_triton(model, repository, chosen, force=force), precision, as_json=as_json)


def _report_served(made: Served, precision: str, *, as_json: bool) -> None:
    import json

    if as_json:
        report = {
            "path": str(made.path),
            "file": str(made.file),
            "bytes": made.file.stat().st_size,
            "name": made.name,
            "artifact": made.artifact,
            "precision": precision,
            "backend": made.backend,
            "max_batch": made.max_batch,
            "made": made.made,
            "seconds": round(made.seconds, 2),
        }
        click.echo(json.dumps(report))
        return
    size = made.file.stat().st_size / MEGABYTE
    exported = ", exported into the bundle first" if made.made else ""
    click.echo(
        f"{made.path}  {size:.1f} MB, {made.artifact} by {made.backend}{exported}, {made.seconds:.1f} s"
    )
    click.echo(f"  --device grpc://HOST:8001/{made.name} runs it, up to {made.max_batch} chunks a call")


def _exported(model: Model, kind: str, output: Path | None, **how: Any) -> Exported:
    """What one of the exporters makes; ``how`` is of it."""
    if kind == "torchscript":
        from tfswa.export.torchscript import export_torchscript

        return export_torchscript(model, output, **how)
    if kind == "aotinductor":
        from tfswa.export.aotinductor import export_aotinductor

        return export_aotinductor(model, output, **how)
    from tfswa.export.onnx import export_onnx
    from tfswa.export.plan import PrecisionPlan

    plan = how.pop("plan")
    return export_onnx(model, output, plan=PrecisionPlan.load(plan) if plan else None, **how)


def _export_transform(model: Model, *, force: bool, as_json: bool) -> None:
    import json

    from tfswa.export.artifact import finite_or_none
    from tfswa.export.transform import export_transform

    click.echo(f"exporting the transform of {model.name} ...", err=True)
    made = export_transform(model, force=force)
    if as_json:
        report = {
            "bundle": str(made.bundle),
            "files": [str(file) for file in made.files],
            "snr_db": finite_or_none(made.snr_db),
            "seconds": round(made.seconds, 2),
        }
        click.echo(json.dumps(report))
        return
    for file, (what, value) in zip(made.files, made.snr_db.items(), strict=True):
        size = file.stat().st_size / MEGABYTE
        click.echo(f"{file}  {size:.1f} MB, {what} {value:.1f} dB SNR against the host's transform")


@click.command("build-engine")
@click.argument("model", default="demo")
@click.option(
    "--flavor",
    type=click.Choice(["auto", "rtx", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Library; auto takes TensorRT where it and a GPU are there, otherwise TensorRT-RTX.",
)
@_precision_option("Of the graph: what `tfx export --precision` made.")
@click.option(
    "--compute-capability",
    "capability",
    metavar="X.Y",
    help="GPUs to build for, rtx only; default: the GPU here, or every GPU where there is none.",
)
@click.option(
    "--timing-cache",
    type=options.OutputPath("file"),
    help="File that keeps measured kernels from build to build, tensorrt only; default: none.",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Most GPU memory a layer may take for itself, MB; default: the library's.",
)
@click.option(
    "--batch",
    default="1,1,1",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Chunks per call: smallest, best, largest.",
)
@options.force
@options.as_json
def build_engine(
    model: str,
    flavor: Flavor,
    precision: Precision,
    capability: str | None,
    timing_cache: Path | None,
    workspace: int | None,
    batch: str,
    force: bool,
    as_json: bool,
) -> None:
    """Build a TensorRT engine from an ONNX graph of MODEL (a bundle, or the name demo).

    The precision of an engine is that of the graph; every layer's type is checked before it is built.
    """
    import json

    import torch

    from tfswa.export.engine import BuildOptions
    from tfswa.export.engine import build_engine as run
    from tfswa.runtime.commands.phases import Phases
    from tfswa.runtime.model.opening import open_model

    chosen = BuildOptions(precision, flavor, _batch(batch), capability, timing_cache, workspace)
    with Phases() as phases:
        made = run(open_model(model), chosen, force=force, report=phases.say, progress=phases.step)
    gpu = torch.cuda.is_available()
    if as_json:
        report = {
            "bundle": str(made.bundle),
            "file": str(made.file),
            "bytes": made.bytes,
            "key": made.key,
            "cached": made.cached,
            "transforms": [str(file) for file in made.transforms],
            "gpu_here": gpu,
            "seconds": round(made.seconds, 2),
            **made.details,
        }
        click.echo(json.dumps(report))
        return
    version = "{flavor} {version}, {precision}, {target}".format(**made.details)
    what = "in the bundle already, not built again (--force builds it)" if made.cached else "built"
    click.echo(f"{made.file}  {made.bytes / MEGABYTE:.1f} MB, {version}: {what}, {made.seconds:.1f} s")
    for file in made.transforms:
        click.echo(f"{file}  {file.stat().st_size / MEGABYTE:.1f} MB, of the transform, fp32")
    if not gpu:
        how = "`tfx parity --backend trt`"
        click.echo(f"not run: no CUDA device here; measure it with {how} where there is one")


def _batch(text: str) -> tuple[int, int, int]:
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not three numbers, e.g. 1,1,4", param_hint="--batch") from None
    return smallest, best, largest


def _report(made: Exported, *, as_json: bool) -> None:
    import json
    import math

    from tfswa.export.artifact import finite_or_none
    from tfswa.runtime.model.spec import NEXT

    if as_json:
        report = {
            "bundle": str(made.bundle),
            "file": str(made.file),
            "bytes": made.bytes,
            "format": made.format,
            "precision": made.precision,
            "opset": made.details.get("opset"),
            "casts": made.details.get("casts"),
            "peak": made.details.get("peak"),
            "snr_db": finite_or_none(made.snr_db),
            "seconds": round(made.seconds, 2),
        }
        click.echo(json.dumps(report))
        return
    click.echo(f"{made.file}  {made.bytes / MEGABYTE:.1f} MB in {made.seconds:.1f} s")
    handed = {name: value for name, value in made.snr_db.items() if name.startswith(NEXT)}
    worst = {f"the worst of {len(handed)} states": min(handed.values())} if handed else {}
    for stem, value in ({n: v for n, v in made.snr_db.items() if n not in handed} | worst).items():
        figure = f"{value:.1f} dB" if math.isfinite(value) else "equal bits"
        click.echo(f"  {stem}: {figure} against {made.against}")
    if peak := made.details.get("peak"):
        click.echo(
            f"  {made.details['casts']} casts; the largest result is {peak['value']:.3g}, {peak['node']} on "
            f"{peak['signal']}, of at most {peak['largest']:.3g}"
        )
