"""``tfx combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text, shown


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    help="A bundle, or a name that `tfx models` lists; two or more.",
)
@options.combine_options
@options.output_option("The ensemble, a folder; default: ensemble.tfx.", "ensemble.tfx")
@options.trust
@options.force
@options.as_json
def combine(
    models: tuple[str, ...],
    combine: Any,
    weights: tuple[str, ...],
    output: Path,
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make an ensemble: a bundle that holds copies of others, and how their results become one.

    `tfx separate -m`, `tfx evaluate`, `tfx bench`, `tfx inspect` and `tfx parity` take it like a model.
    """
    from tfswa.runtime.model.ensemble import write_ensemble
    from tfswa.runtime.stream.arrangement import arrange_members

    arranged = arrange_members(models, how=combine, weights=weights, trusted=trusted)
    rule = arranged.rule
    made = write_ensemble(output, arranged.models, combine=rule.how, weights=rule.weights, force=force)
    if as_json:
        members = [{"name": one.name, "digest": one.bundle.digest} for one in made.members]
        click.echo(json_text({"path": str(output), "stems": list(arranged.stems), "members": members}))
    else:
        click.echo(f"{shown(output)}: {shown(arranged.name)}, stems {', '.join(map(shown, arranged.stems))}")
