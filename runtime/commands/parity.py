"""``tfx parity``."""

from __future__ import annotations

from pathlib import Path

import click

from tfswa.runtime.commands import options

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
    help="Judge by these gates the certificates that MODEL holds of its present files, of each --backend if "
    "one is named; measure nothing.",
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
@options.trust
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
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Measure in dB what MODEL's artifacts lost against the eager network, stem by stem.

    The network alone, the signal end to end, and the quality against true stems. The figures are kept in the
    bundle's parity.json, without verdicts. Exit code 3 if a gate is not met.

    With --seams or --localize one question is answered instead, and nothing is kept.
    """
    _check_mode(click.get_current_context())
    if trusted:
        from tfswa.runtime.model.opening import open_model, trust_code

        trust_code(open_model(model))
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
        from tfswa.runtime.commands.parity_localize import run_localize

        run_localize(
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
    from tfswa.runtime.commands.parity_measure import Outputs, run_measure
    from tfswa.runtime.parity.candidates import candidates_of

    run_measure(
        model,
        audio,
        *candidates_of(entries, precision, device, threads, batch),
        reference=reference,
        quick=quick,
        gates_file=gates_file,
        judge_file=judge_file,
        key=key,
        outputs=Outputs(junit, markdown, report_file, no_audio=no_audio, force=force, as_json=as_json),
    )


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
        if name == "trusted":
            continue
        if chosen and name not in {"model", "audio", "force", "as_json", chosen[0], *MODES[chosen[0]]}:
            raise UsageError(f"{option.opts[-1]} means nothing with --{chosen[0]}: leave it out")
        if not chosen and name in of_modes - {"entries", "precision"}:
            raise UsageError(f"{option.opts[-1]} is for --seams or --localize: add one of them")
