"""``tfx parity``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.runtime.models import Model
    from tfswa.runtime.parity import Breach, Certificate, Gates, Run
    from tfswa.runtime.parity.exhibits import Exhibits

FILE = click.Path(path_type=Path, dir_okay=False)
MODES = {  # and what may be given beside them
    "seams": {"long_frames", "threshold_db", "store", "output", "picture"},
    "localize": {"entries", "precision", "threshold_db", "picture"},
}


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--backend",
    "entries",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Measure this one; repeatable; default: every backend and precision that can run MODEL here.",
)
@click.option("--precision", help="Of backends that are named without one: fp32, fp16, ...; default: fp32.")
@options.backend_device
@options.threads
@options.batch
@click.option(
    "--reference",
    default="torch",
    show_default=True,
    help="What artifacts are measured against: torch (eager float32), or float64, which also tells how "
    "much of the distance is the float32 reference's own rounding.",
)
@click.option(
    "--audio",
    type=click.Path(path_type=Path),
    help="An audio file, a stem file, or a folder of stems or songs; default: a synthetic song of 12 s.",
)
@click.option(
    "--quick", is_flag=True, help="The songs alone: no signals made to be difficult, no runs against itself."
)
@click.option("--gates", "gates_file", type=FILE, help="What must be reached, TOML; default: our gates.toml.")
@click.option(
    "--judge",
    "judge_file",
    type=FILE,
    help="Judge the certificates that MODEL holds by these gates, and measure nothing.",
)
@click.option(
    "--sign",
    "key",
    type=FILE,
    metavar="KEY",
    help="Sign the certificates with this Ed25519 key, PEM; `tfx inspect --verify` checks that.",
)
@click.option("--junit", type=FILE, help="Also write the verdicts as JUnit XML.")
@click.option("--markdown", type=FILE, help="Also write the tables as Markdown.")
@click.option(
    "--report",
    "report_file",
    type=FILE,
    help="Also write one HTML page: tables, error over time, spectrograms of each stem's worst second, and "
    "players of the 10 s around it.",
)
@click.option("--no-audio", is_flag=True, help="No players in --report: it holds no sound; default: players.")
@click.option(
    "--seams",
    is_flag=True,
    help="Measure instead what the network loses near a chunk's edge, and the context that makes up for it.",
)
@click.option(
    "--long-frames",
    type=click.IntRange(min=1),
    help="With --seams: frames of the long pass that chunks are compared with; default: four chunks.",
)
@click.option(
    "--store", is_flag=True, help="With --seams: write the context into the manifest, or into a copy, see -o."
)
@click.option(
    "--localize",
    is_flag=True,
    help="Find instead the first layer of one --backend that loses more than --threshold-db.",
)
@click.option(
    "--threshold-db",
    type=click.FloatRange(min=0.0, min_open=True),
    help="What may be lost, in dB: --localize by a layer, default: 10; --seams near an edge, default: 0.1.",
)
@click.option("--picture", type=FILE, help="With --seams and --localize: draw the curve into this PNG file.")
@options.output_option("With --seams --store: the new bundle; default: the manifest of MODEL itself.")
@options.force
@options.as_json
def parity(
    model: str,
    entries: tuple[str, ...],
    precision: str | None,
    device: str | None,
    threads: int | None,
    batch: int,
    reference: str,
    audio: Path | None,
    quick: bool,
    gates_file: Path | None,
    judge_file: Path | None,
    key: Path | None,
    junit: Path | None,
    markdown: Path | None,
    report_file: Path | None,
    no_audio: bool,
    seams: bool,
    long_frames: int | None,
    store: bool,
    localize: bool,
    threshold_db: float | None,
    picture: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure in dB what MODEL's artifacts lost against the eager network, stem by stem.

    The network alone, the signal end to end, and the quality against true stems. The figures are kept in the
    bundle's parity.json, without verdicts. Exit code 3 if a gate is not met.

    With --seams or --localize one question is answered instead, and nothing is kept.
    """
    _check_mode(click.get_current_context())
    if seams:
        from tfswa.runtime.commands.parity_seams import run_seams

        run_seams(
            model,
            audio,
            long_frames=long_frames,
            threshold_db=threshold_db,
            store=store,
            output=output,
            picture=picture,
            force=force,
            as_json=as_json,
        )
        return
    if localize:
        from tfswa.runtime.commands.parity_localise import run_localise

        run_localise(
            model,
            audio,
            entries,
            precision=precision,
            threshold_db=threshold_db,
            picture=picture,
            force=force,
            as_json=as_json,
        )
        return
    from tfswa.runtime.errors import BackendUnavailable, OutputExists, UsageError
    from tfswa.runtime.models import open_model
    from tfswa.runtime.parity import adversaries, certify, load_gates, read_evidence, songs
    from tfswa.runtime.parity import store as keep
    from tfswa.runtime.parity.gates import default_gates
    from tfswa.runtime.parity.signature import Signer

    for path in (junit, markdown, report_file):
        if path is not None and path.exists() and not force:
            raise OutputExists(f"{path} is there already: choose another name, or --force")
    if judge_file and gates_file:
        raise UsageError("--judge and --gates both name gates: give one of them")
    if no_audio and report_file is None:
        raise UsageError("--no-audio leaves the players out of a report: name one with --report FILE")
    signer = Signer(key) if key else None
    opened = open_model(model)
    exhibits: Exhibits | None = None
    missing: dict[str, str] = {}
    if judge_file is not None:
        gates = load_gates(judge_file)
        certificates = read_evidence(opened)
        if not certificates:
            raise UsageError(f"{model} holds no certificate: measure first, `tfx parity {model}`")
        evidence = None
    else:
        gates = load_gates(gates_file) if gates_file else default_gates()
        runs, named = runs_of(entries, precision, device, threads, batch)
        for run in list(runs):
            try:
                gates.of(run.options.precision or "fp32")
            except UsageError as error:
                if named:
                    raise
                runs.remove(run)
                missing[run.name] = str(error)
        if report_file is not None:
            from tfswa.runtime.parity.exhibits import Exhibits

            exhibits = Exhibits(opened.spec, audio=not no_audio)  # says what is missing before the work
        corpus = [*songs(audio, opened.spec), *([] if quick else adversaries(opened.spec))]
        certificates = certify(
            opened,
            corpus,
            runs,
            reference=reference,
            axes=not quick,
            missing=None if named else missing,
            report=lambda line: click.echo(line, err=True),
            listener=(lambda *_: None) if exhibits is None else exhibits.listen,
        )
        if not certificates:
            reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise BackendUnavailable(f"no backend can run {model}: {reasons}")
        evidence = keep(opened, certificates)
    if signer is not None:
        signer.sign(opened)
    if report_file is not None:
        _report(report_file, opened, certificates, gates, exhibits, missing)
    _tell(opened, certificates, gates, missing, evidence, as_json=as_json, junit=junit, markdown=markdown)


def _check_mode(context: click.Context) -> None:
    """Refuse options that mean nothing beside --seams, --localize, or neither of them."""
    from tfswa.runtime.errors import UsageError

    chosen = [mode for mode in MODES if context.params[mode]]
    if len(chosen) > 1:
        raise UsageError("--seams and --localize are two questions: ask one of them")
    of_modes = set().union(*MODES.values())
    for option in context.command.params:
        name = str(option.name)
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if chosen and name not in {"model", "audio", "force", "as_json", chosen[0], *MODES[chosen[0]]}:
            raise UsageError(f"{option.opts[-1]} means nothing with --{chosen[0]}: leave it out")
        if not chosen and name in of_modes - {"entries", "precision"}:
            raise UsageError(f"{option.opts[-1]} is for --seams or --localize: add one of them")


def runs_of(
    entries: Sequence[str],
    precision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 1,
) -> tuple[list[Run], bool]:
    """What to measure, and whether the user named it."""
    from tfswa.runtime.backends import BackendOptions, backend_names, compiles, default_device, precisions_of
    from tfswa.runtime.errors import UsageError
    from tfswa.runtime.parity import Run

    if entries:
        pairs = [(name, kind or precision) for name, _, kind in (entry.partition(":") for entry in entries)]
    else:
        names = [name for name in backend_names() if not compiles(name)]
        wanted = [precision] if precision else None
        pairs = [(name, kind) for name in names for kind in wanted or precisions_of(name)]
    if any(name == "auto" for name, _ in pairs):
        raise UsageError("parity measures backends one by one: name them with --backend ort, openvino, ...")
    runs = [
        Run(name, BackendOptions(kind, device or default_device(name), threads), batch)
        for name, kind in pairs
    ]
    return runs, bool(entries)


def _report(
    path: Path,
    model: Model,
    certificates: Sequence[Certificate],
    gates: Gates,
    exhibits: Exhibits | None,
    missing: dict[str, str],
) -> None:
    """Write the page."""
    from tfswa.runtime.parity import formats, judge
    from tfswa.runtime.parity.report import page

    judged = [(certificate, judge(certificate, gates)) for certificate in certificates]
    formats.write(path, page(model.name, judged, gates, exhibits, missing=missing))
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB", err=True)


def _tell(
    model: Model,
    certificates: Sequence[Certificate],
    gates: Gates,
    missing: dict[str, str],
    evidence: Path | None,
    *,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
) -> None:
    """Print, write and judge; raises where a gate is not met."""
    import json

    from tfswa.runtime.errors import GateError
    from tfswa.runtime.parity import formats, judge

    judged = [(certificate, judge(certificate, gates)) for certificate in certificates]
    if as_json:
        rows = [_as_json(found, breaches, _polygraphy(model, found, gates)) for found, breaches in judged]
        whole = {
            "model": model.name,
            "evidence": evidence and str(evidence),
            "certificates": rows,
            "missing": missing,
        }
        click.echo(json.dumps(whole, allow_nan=False))
    else:
        click.echo("\n".join(formats.text(judged, gates)))
        for certificate in certificates:
            line = _polygraphy(model, certificate, gates)
            if line:
                click.echo(f"the graph alone, by polygraphy: {line}")
        for name, why in missing.items():
            click.echo(f"not measured, {name}: {why}")
        click.echo(f"evidence: {evidence}" if evidence else "judged by the evidence, not measured again")
    formats.write(junit, formats.junit(model.name, judged))
    formats.write(markdown, formats.markdown(model.name, judged, gates))
    failed = [(certificate, breaches) for certificate, breaches in judged if breaches]
    if failed:
        certificate, breaches = failed[0]
        more = sum(len(found) for _, found in failed) - 1
        also = f" (and {more} more)" if more else ""
        raise GateError(f"{certificate.name}: {breaches[0]}{also}")


def _as_json(certificate: Certificate, breaches: Sequence[Breach], line: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    verdict = {"passed": not breaches, "breaches": [asdict(breach) for breach in breaches]}
    return {**certificate.to_dict(), **verdict, "polygraphy": line}


def _polygraphy(model: Model, certificate: Certificate, gates: Gates) -> str | None:
    """The line that repeats the comparison of the graph alone, where polygraphy can run it."""
    from math import isfinite

    from tfswa.runtime.polygraphy import command_line

    limit = gates.of(certificate.precision).snr_db
    if model.bundle is None or certificate.artifact not in model.bundle.files or not isfinite(limit):
        return None
    return command_line(model.bundle, certificate.artifact, limit)
