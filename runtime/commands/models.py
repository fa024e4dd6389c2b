"""``tfx models``."""

from __future__ import annotations

from typing import Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text


@click.command()
@options.as_json
def models(as_json: bool) -> None:
    """List the models that have a name, and the families that `tfx new` and `tfx train` know."""
    from tfswa.runtime.errors import BundleError
    from tfswa.runtime.model.bundle import Bundle
    from tfswa.runtime.model.opening import model_names
    from tfswa.runtime.plugins import entry_points

    found: list[dict[str, Any]] = []
    damaged = []
    for name, path in model_names().items():
        if path.exists():
            try:
                spec = Bundle.open(path).spec  # not by name: a folder here may have the same one
            except BundleError as error:  # one of them must not cost the others
                damaged.append({"model": name, "error": str(error)})
                click.echo(f"tfx: {name} is left out: {error}", err=True)
                continue
            found.append(
                {
                    "model": name,
                    "family": spec.family,
                    "stems": list(spec.stems),
                    "parameters": spec.parameters,
                    "weights_license": spec.weights_license,
                    "path": str(path),
                }
            )
    families = sorted(point.name for point in entry_points(group="tfswa.families"))
    if as_json:
        click.echo(json_text({"models": found, "damaged": damaged, "families": families}))
        return
    for entry in found:
        stems = ", ".join(entry["stems"])
        kind = entry["family"] or "published graph"
        click.echo(
            f"{entry['model']:12} {kind}, {entry['parameters']:,} parameters: {stems} "
            f"(weights {entry['weights_license']})"
        )
    click.echo(f"families     {', '.join(families)}")
