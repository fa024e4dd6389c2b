"""``tfx models``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

MANY = 6  # stems of a known model that are named in the table


@click.command()
@click.option(
    "--known",
    is_flag=True,
    help="List instead the public checkpoints that tfx knows, with license and size; none is fetched.",
)
@options.as_json
def models(known: bool, as_json: bool) -> None:
    """List the models that have a name, and the families that `tfx new` and `tfx train` know."""
    if known:
        _known(as_json=as_json)
        return
    from tfswa.runtime.errors import BundleError
    from tfswa.runtime.model.opening import model_names
    from tfswa.runtime.plugins import entry_points

    found: list[dict[str, Any]] = []
    damaged = []
    for name, path in model_names().items():
        if path.exists():
            try:
                about = _described(path)  # not by name: a folder here may have the same one
            except BundleError as error:  # one of them must not cost the others
                damaged.append({"model": name, "error": str(error)})
                click.echo(f"tfx: {name} is left out: {error}", err=True)
                continue
            found.append({"model": name, **about, "path": str(path)})
    families = sorted(point.name for point in entry_points(group="tfswa.families"))
    if as_json:
        click.echo(json_text({"models": found, "damaged": damaged, "families": families}))
        return
    for entry in found:
        stems = ", ".join(entry["stems"])
        kind = entry["family"] or "published graph"
        if entry["members"] > 1:
            kind = f"ensemble of {entry['members']} ({kind})"
        click.echo(
            f"{entry['model']:12} {kind}, {entry['parameters']:,} parameters: {stems} "
            f"(weights {entry['weights_license']})"
        )
    click.echo(f"families     {', '.join(families)}")


def _described(path: Path) -> dict[str, Any]:
    """What is said of a bundle, or of an ensemble: of its members together.

    Raises:
        BundleError: it is damaged.
    """
    from tfswa.runtime.stream.arrangement import arrange_one

    arranged = arrange_one(str(path))
    specs = [model.spec for model in arranged.models]
    families = dict.fromkeys(spec.family for spec in specs)
    return {
        "family": specs[0].family if len(families) == 1 else ", ".join(str(name) for name in families),
        "members": len(specs),
        "stems": list(arranged.stems),
        "parameters": sum(spec.parameters for spec in specs),
        "weights_license": "; ".join(dict.fromkeys(spec.weights_license for spec in specs)),
    }


def _known(*, as_json: bool) -> None:
    """Print the list of public checkpoints."""
    from tfswa.runtime.model.known import known_models
    from tfswa.runtime.table import text_table

    listed = known_models()
    if as_json:
        click.echo(json_text({"known": [model.to_dict() for model in listed]}))
        return
    rows = []
    for model in listed:
        stems = ", ".join(model.stems[:MANY])
        stems += f" and {len(model.stems) - MANY} more" if len(model.stems) > MANY else ""
        stems += f" / {model.complement}" if model.complement else ""
        license_ = re.split(r" \(|:", model.license)[0]
        rows.append([model.name, model.architecture, model.size_mb, stems, license_])
    click.echo(text_table(["name", "architecture", "MB", "stems / rest", "license"], rows, digits=0))
    without = [model.name for model in listed if model.source is None]
    unchecked = sum(not all(file.sha256 for file in model.files) for model in listed)
    click.echo(
        f"\n{len(listed)} models; {len(without)} without an address: {', '.join(without) or 'none'}; "
        f"{unchecked} with a file whose SHA-256 is not known.\nLicenses are of the weights, as their authors "
        "state them; --json has all that is known."
    )
