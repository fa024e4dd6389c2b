"""``tfx doctor``."""

from __future__ import annotations

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

EVERY = "all"
MARKS = {"ok": "ok", "missing": "--", "wrong": "!!"}


@click.command()
@click.option(
    "--clear-cache",
    "kind",
    is_flag=False,
    flag_value=EVERY,
    metavar="[KIND]",
    help="Remove what the user's cache holds: auto, bundles, calibration, decoded, downloads, onnxruntime, "
    "openvino, parity, or without KIND all of them; default: only say how much there is.",
)
@options.as_json
def doctor(kind: str | None, as_json: bool) -> None:
    """Say what is installed, what each backend can do here, what is in the way, and how to mend it.

    Exit code 1 if something is wrong; what is merely not installed is not.
    """
    from dataclasses import asdict

    from tfswa.runtime.backends.doctor import examine
    from tfswa.runtime.errors import TfxError

    if kind is not None:
        _clear(kind, as_json)
        return
    found = examine()
    if as_json:
        click.echo(json_text({"findings": [asdict(finding) for finding in found]}))
    else:
        width = max(len(finding.topic) for finding in found)
        for finding in found:
            click.echo(f"{MARKS[finding.level]}  {finding.topic:{width}}  {finding.text}")
            if finding.remedy:
                click.echo(f"    {'':{width}}  -> {finding.remedy}")
    wrong = [finding.topic for finding in found if finding.level == "wrong"]
    if wrong:
        raise TfxError(f"{len(wrong)} of {len(found)} findings are wrong ({', '.join(wrong)}): see above")


def _clear(kind: str, as_json: bool) -> None:
    import json

    from tfswa.runtime.errors import TfxError, UsageError, reason
    from tfswa.runtime.files.caches import ALL, clear

    if kind not in (EVERY, *ALL):
        raise UsageError(f"no cache {kind!r}: choose one of {', '.join(ALL)}, or none for all of them")
    cleared, refused = {}, {}
    for name in ALL if kind == EVERY else (kind,):
        try:
            cleared[name] = clear(name)
        except OSError as error:  # one of them must not cost the others
            refused[name] = reason(error)
    if as_json:
        rows = [{"kind": name, "bytes": gone, "in_use": stayed} for name, (gone, stayed) in cleared.items()]
        click.echo(json.dumps({"cleared": rows}))
    else:
        for name, (gone, stayed) in cleared.items():
            kept = f", {stayed / 1e6:.1f} MB are in use" if stayed else ""
            click.echo(f"{name}: {gone / 1e6:.1f} MB removed{kept}")
    if refused:
        raise TfxError(f"not cleared: {'; '.join(f'{name} ({why})' for name, why in refused.items())}")
