"""``tfx inspect``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfswa.runtime.commands import options
from tfswa.runtime.escape import json_text

if TYPE_CHECKING:
    from tfswa.runtime.model.spec import ModelSpec

LONGEST = 110  # characters of a line of provenance; --json has all


@click.command()
@click.argument("model", default="demo")
@click.option(
    "--attention",
    "song",
    metavar="SONG",
    type=options.GivenPath(),
    help="Draw instead where MODEL's attention looks, in the loudest chunk of SONG; default: no pictures.",
)
@click.option(
    "--verify",
    "key",
    metavar="PUB",
    type=options.GivenPath(dir_okay=False),
    help="Check that MODEL's certificates are signed by the owner of this public Ed25519 key, PEM.",
)
@options.output_option("Folder of the pictures of --attention; default: attention.", kind="folder")
@options.trust
@options.force
@options.as_json
def inspect(
    model: str,
    song: Path | None,
    key: Path | None,
    output: Path | None,
    trusted: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Describe MODEL: a bundle, a model file, a name, or a family (default: demo).

    Every file of a bundle is checked against its hash. With --attention the attention weights of its network
    are drawn: a picture per module, and an overview per kind (time, frequency, window).
    """
    if song is not None:
        from tfswa.runtime.files.checks import check_folder
        from tfswa.runtime.parity.attention import draw_attention

        pictures = output or Path("attention")
        check_folder(pictures)
        drawn = draw_attention(model, song, pictures, force=force)
        if as_json:
            click.echo(json_text(drawn))
        else:
            _print_drawn(drawn)
        return
    if output is not None or force:
        from tfswa.runtime.errors import UsageError

        raise UsageError("-o and --force are for pictures, and none are asked for: add --attention SONG")
    signed = _verified(model, key) if key else None
    description = bundle_as_dict(model, trusted=trusted)
    if as_json:
        click.echo(json_text({**description, "signed": signed} if signed else description))
    else:
        _print(description)
        if signed:
            of = f"{signed['held']} of {signed['certificates']} certificates are of files that it holds"
            click.echo(f"signed by the owner of {key}: {of}")


def _verified(model: str, key: Path) -> dict[str, int]:
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.parity.signature import verify

    certificates, held = verify(open_model(model), key)
    return {"certificates": certificates, "held": held}


def bundle_as_dict(model: str, *, trusted: bool = False) -> dict[str, Any]:
    """Return what is known of a model, JSON-ready; keys are documented in docs/json.md."""
    from tfswa.runtime.errors import BackendUnavailable
    from tfswa.runtime.files.signals import load_point
    from tfswa.runtime.model.ensemble import is_ensemble
    from tfswa.runtime.model.narrowed import all_narrowed
    from tfswa.runtime.model.opening import model_names, open_model
    from tfswa.runtime.model.trust import who_vouches
    from tfswa.runtime.parity.evidence import read_evidence
    from tfswa.runtime.parity.judge import passes
    from tfswa.runtime.plugins import entry_points

    if is_ensemble(model):
        return ensemble_as_dict(model, trusted=trusted)
    families = {point.name: point for point in entry_points(group="tfswa.families")}
    if model in families and model not in model_names() and not Path(model).exists():
        try:
            spec: ModelSpec = load_point(families[model]).new_spec()
        except ModuleNotFoundError as error:
            library = error.name
            raise BackendUnavailable(f"family {model} needs {library}: pip install 'tfswa[torch]'") from error
        return {"model": model, "kind": "family", **_describe_spec(spec)}
    opened = open_model(model, trusted=trusted)
    if opened.bundle is None:
        vouched = who_vouches(opened.kind, opened.sha256)
        carried = {"kind": opened.kind, "precision": opened.precision, "trusted": vouched}
        return {"model": model, **carried, **_describe_spec(opened.spec)}
    opened.bundle.drop_damaged()
    for name in opened.bundle.files:
        opened.bundle.file(name)
    return {
        "model": model,
        "kind": "bundle",
        "path": str(opened.bundle.path),
        "digest": opened.bundle.digest,
        "sealed": opened.bundle.sealed,
        **_describe_spec(opened.spec),
        "provenance": dict(opened.bundle.provenance),
        "files": {
            name: {
                **{key: getattr(entry, key) for key in ("kind", "precision", "bytes", "sha256")},
                "trusted": who_vouches(entry.kind, entry.sha256, opened.bundle),
            }
            for name, entry in sorted(opened.bundle.files.items())
        },
        "only": [one.name for one in all_narrowed(opened.bundle)],
        "parity": [
            {
                **{key: getattr(run, key) for key in ("artifact", "backend", "precision", "device", "date")},
                "passed": passes(run),
            }
            for run in read_evidence(opened)
        ],
    }


def ensemble_as_dict(model: str, *, trusted: bool = False) -> dict[str, Any]:
    """Return what is known of an ensemble and of each member; keys are documented in docs/json.md."""
    from tfswa.runtime.model.ensemble import open_ensemble
    from tfswa.runtime.stream.arrangement import arrange_one

    ensemble, offered = open_ensemble(model, trusted=trusted), arrange_one(model)
    return {
        "model": model,
        "kind": "ensemble",
        "path": str(ensemble.path),
        "combine": ensemble.combine,
        "weights": {stem or "*": list(row) for stem, row in ensemble.weights.items()},
        "stems": list(offered.stems),
        "channels": offered.channels,
        "sample_rate": offered.sample_rate,
        "members": [bundle_as_dict(member.name, trusted=trusted) for member in ensemble.members],
    }


def _describe_spec(spec: ModelSpec) -> dict[str, Any]:
    from tfswa.runtime.stream.plan import ChunkPlan

    stft, chunk = spec.stft, spec.chunk
    return {
        "family": spec.family,
        "stems": list(spec.stems),
        "channels": spec.channels,
        "sample_rate": stft.sample_rate,
        "n_fft": stft.n_fft,
        "hop": stft.hop,
        "window": stft.window,
        "padding": stft.padding,
        "scale": stft.scale,
        "offset": stft.offset,
        "fill": stft.fill,
        "endless": stft.endless,
        "first_bin": stft.first_bin,
        "bins": stft.bins,
        "zero_below": stft.zero_below,
        "chunk_frames": chunk.frames,
        "chunk_seconds": round(spec.chunk_samples / stft.sample_rate, 3),
        "context_frames": chunk.context,
        "context_after_frames": chunk.after,
        "fade_frames": chunk.fade,
        "early_frames": chunk.early,
        "short": chunk.short,
        "least_latency_seconds": round(spec.least_latency_samples / stft.sample_rate, 3),
        "latency_seconds": round(ChunkPlan.of(spec).latency_samples() / stft.sample_rate, 3),
        "network_stems": list(spec.outputs),
        "unseen_stem": spec.unseen_stem,
        "residual_stem": spec.residual_stem,
        "residual_gain": spec.residual_gain,
        "samples": spec.samples,
        "state": {name: list(shape) for name, shape in spec.state.items()},
        "state_mb": round(4 * sum(map(math.prod, spec.state.values())) / 1e6, 2),
        "parameters": spec.parameters,
        "weights_mb": round(spec.parameters * 4 / 1e6, 2),
        "gflop_per_second": spec.gflop_per_second,
        "weights_license": spec.weights_license,
        "hyper": dict(spec.hyper),
    }


def _print(description: Mapping[str, Any]) -> None:
    for key, value in description.items():
        name = key.replace("_", " ")
        if key == "members":
            for member in value:
                click.echo()
                _print(member)
        elif key == "files":
            click.echo("files (hashes checked)")
            for file, entry in value.items():
                size = f"{entry['bytes'] / 1e6:.2f} MB"
                vouched = "" if entry["trusted"] == "data" else f"  {_vouched(entry['trusted'])}"
                click.echo(f"  {file:28} {entry['kind']:12} {entry['precision']:5} {size:>10}{vouched}")
        elif key == "state":
            size = f"{len(value)} tensors, {description['state_mb']} MB for each stream"
            click.echo(f"state: {size if value else 'none'}")
        elif key == "trusted":
            click.echo(f"{name}: {_vouched(value)}")
        elif key == "parity":
            for run in value:
                verdict = "passed" if run["passed"] else "FAILED"
                click.echo(f"parity  {run['artifact']} in {run['backend']} on {run['device']}: {verdict}")
        elif isinstance(value, Mapping):
            click.echo(name)
            for inner, entry in value.items():
                for line in _tree(inner, entry, "  "):
                    click.echo(line)
        elif key == "parameters":
            click.echo(f"{name}: {value:,} ({description['weights_mb']} MB in float32)")
        elif key == "gflop_per_second":
            click.echo(f"GFLOP per second of audio: {value}")
        elif key == "family" and value is None:
            click.echo("family: none, a published graph")
        elif key not in ("weights_mb", "state_mb") and (key != "only" or value):
            click.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def _tree(name: str, value: Any, indent: str) -> Iterator[str]:
    """A value below its name, a line for each of the values it holds, none longer than ``LONGEST``."""
    if isinstance(value, Mapping) and value:
        yield f"{indent}{name}"
        for inner, entry in value.items():
            yield from _tree(inner, entry, indent + "  ")
        return
    line = f"{indent}{name}: {value}"
    yield line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def _vouched(why: str | None) -> str:
    return why or "NOT trusted: machine code that nobody vouches for, run with --trust only"


def _print_drawn(drawn: Mapping[str, Any]) -> None:
    end = drawn["start_seconds"] + drawn["seconds"]
    click.echo(f"attention of {drawn['model']} in {drawn['song']}, {drawn['start_seconds']:g} to {end:g} s")
    for file in drawn["files"]:
        click.echo(f"  {file['path']}" + (f"  ({len(file['modules'])} modules)" if file["overview"] else ""))
