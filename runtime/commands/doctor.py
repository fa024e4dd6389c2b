"""``tfx doctor``."""

from __future__ import annotations

import click

from tfswa.runtime.commands import options

MARKS = {"ok": "ok", "missing": "--", "wrong": "!!"}


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Say what is installed, what each backend can do here, what is in the way, and how to mend it.

    Exit code 1 if something is wrong; what is merely not installed is not.
    """
    import json
    from dataclasses import asdict

    from tfswa.runtime.backends.doctor import examine
    from tfswa.runtime.errors import TfxError

    found = examine()
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found]}))
    else:
        width = max(len(finding.topic) for finding in found)
        for finding in found:
            click.echo(f"{MARKS[finding.level]}  {finding.topic:{width}}  {finding.text}")
            if finding.remedy:
                click.echo(f"    {'':{width}}  -> {finding.remedy}")
    wrong = [finding.topic for finding in found if finding.level == "wrong"]
    if wrong:
        raise TfxError(f"{len(wrong)} of {len(found)} findings are wrong ({', '.join(wrong)}): see above")
