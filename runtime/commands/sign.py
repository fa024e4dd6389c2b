"""``tfx sign``."""

from __future__ import annotations

from pathlib import Path

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--key",
    required=True,
    metavar="KEY",
    type=options.GivenPath(dir_okay=False),
    help="Private Ed25519 key, PEM, not encrypted: openssl genpkey -algorithm ed25519.",
)
@click.option(
    "--trust",
    "trusted",
    is_flag=True,
    help="Also sign certificates that were not measured on this machine; default: refuse them.",
)
@options.as_json
def sign(model: str, key: Path, trusted: bool, as_json: bool) -> None:
    """Sign the certificates that MODEL holds, as they are; nothing is measured.

    Each is named. `tfx inspect --verify PUB` and `tfx separate --require-signed PUB` check the signature.
    """
    from tfswa.runtime.model.keys import SIGNATURE
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.evidence import is_held, is_measured_here
    from tfswa.runtime.parity.judge import passes
    from tfswa.runtime.parity.signature import Signer

    signer, opened = Signer(key), open_model(model)
    signed = signer.sign(opened, foreign=trusted)
    assert opened.bundle is not None  # or it was refused
    rows = [
        {
            **{name: getattr(found, name) for name in ("artifact", "backend", "precision", "device", "date")},
            "passed": passes(found),
            "held": is_held(found, opened.bundle),
            "measured_here": is_measured_here(found),
        }
        for found in signed
    ]
    path = opened.bundle.home / SIGNATURE
    if as_json:
        click.echo(json_text({"model": model, "signature": str(path), "certificates": rows}))
        return
    for row in rows:
        where = "measured here" if row["measured_here"] else "NOT measured here"
        gone = "" if row["held"] else ", of a file that the bundle no longer holds"
        verdict = "passed" if row["passed"] else "FAILED"
        click.echo(
            f"{row['backend']} {row['precision']} of {row['artifact']} on {row['device']}, "
            f"{row['date'][:10]}: {verdict}, {where}{gone}"
        )
    click.echo(f"signed: {path}")
