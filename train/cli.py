"""Commands of the training stage: ``tfx train`` and ``tfx new``."""

from __future__ import annotations

from pathlib import Path

import click

from tfswa.runtime.commands import options


@click.command()
@click.argument("words", nargs=-1, metavar="CONFIG [KEY=VALUE]...")
@click.option("-o", "--output", type=options.OutputPath("folder"), help="Folder of the run.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the last checkpoint; without CONFIG as the run was configured.",
)
@click.option("--list", "listed", is_flag=True, help="List the configurations that have a name.")
@click.option(
    "--trust",
    "trusted",
    is_flag=True,
    help="Run the TorchScript file that loss.perceptual_network names, though this machine did not make it: "
    "it can do what you can. Remembered by hash; default: refuse it.",
)
@options.device
@options.threads
@options.as_json
def train(
    words: tuple[str, ...],
    output: Path | None,
    resume: bool,
    listed: bool,
    trusted: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a network as CONFIG says: a TOML file, or a name that --list prints.

    Values can be overridden by dotted name: optim.length=200 data.root=/music. Several processes, on one
    machine or more: torchrun --nproc-per-node 4 -m tfswa.runtime train CONFIG -o RUN
    """
    import json

    from tfswa.train.config_files import summaries

    if listed:
        from tfswa.runtime.table import text_table

        found = summaries()
        click.echo(json.dumps(found) if as_json else text_table(("name", "what"), list(found.items())))
        return
    if output is None:
        raise click.UsageError("-o is missing: name the folder of the run")
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise click.UsageError(f"one CONFIG, not {len(names)} ({', '.join(names)}); overrides are KEY=VALUE")
    _train(names[0] if names else None, overrides, output, resume, trusted, device, threads, as_json)


def _train(
    name: str | None,
    overrides: list[str],
    output: Path,
    resume: bool,
    trusted: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    import json

    from tfswa.train.config_files import find_config, load_run_config
    from tfswa.train.ranks import process_rank

    rank = process_rank()
    if name is None and not resume:
        find_config("")  # says what there is
    import torch

    from tfswa.runtime.backends.torchscript import torch_device
    from tfswa.train.bar import TrainingBar, scored
    from tfswa.train.config_files import load_config
    from tfswa.train.loop import train as run
    from tfswa.train.perceptual import check_network

    if name is None:
        settings = load_run_config(output, overrides)
    else:
        path, base = find_config(name)
        settings = load_config(path, overrides, base=base)
    if settings.loss.perceptual > 0:
        check_network(settings.loss.perceptual_network, trusted=trusted)
    target = torch_device(device)
    if threads:
        torch.set_num_threads(threads)
    with TrainingBar() as bar:
        scores = run(settings, output, device=target, resume=resume, report=bar.report, doing=bar.doing)
    if rank != 0:
        return
    if as_json:
        click.echo(json.dumps({"run": str(output), "scores": scores}))
        return
    for score, value in scores.items():
        click.echo(f"validation {scored(score, value)}")
    made = [output / file for file in ("best.tfx", "last.tfx", "pretrained.safetensors")]
    click.echo(f"written: {', '.join(str(path) for path in made if path.exists())}")
    if made[0].exists():
        click.echo(f"next: tfx export {made[0]}", err=True)


@click.command()
@click.argument("family")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights.")
@click.option("-o", "--output", type=options.OutputPath("new"), required=True, help="Bundle to write.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="How weights are stored.",
)
@click.option("--stems", default="vocals,accompaniment", show_default=True, help="Stem names, in order.")
@click.option(
    "--hyper", multiple=True, metavar="KEY=VALUE", help="A hyper-parameter, TOML syntax; repeatable."
)
@options.force
@options.as_json
def new(
    family: str,
    seed: int,
    output: Path,
    precision: str,
    stems: str,
    hyper: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Make a bundle of FAMILY with untrained weights, for benchmarks and tests."""
    import json

    from tfswa.train.backend import new_bundle
    from tfswa.train.strict import parse_overrides

    bundle = new_bundle(
        family,
        output,
        seed=seed,
        stems=tuple(stem.strip() for stem in stems.split(",")),
        hyper=parse_overrides(hyper),
        precision=precision,
        force=force,
    )
    if as_json:
        click.echo(json.dumps({"bundle": str(output), "parameters": bundle.spec.parameters, "seed": seed}))
    else:
        click.echo(f"{output}: {family}, {bundle.spec.parameters:,} parameters, untrained (seed {seed})")
