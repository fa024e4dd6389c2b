"""Commands of the training stage: ``tfx train`` and ``tfx new``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfswa.runtime.commands import options

if TYPE_CHECKING:
    from tfswa.train.loop import TrainingProgress


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint; default: start anew.")
@options.device
@options.threads
@options.as_json
def train(
    config: Path,
    overrides: tuple[str, ...],
    output: Path,
    resume: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a network as CONFIG (a TOML file) says.

    Values can be overridden by dotted name: optim.length=200 data.root=/music. Several processes, on one
    machine or more: torchrun --nproc-per-node 4 -m tfswa.runtime train CONFIG -o RUN
    """
    import json
    import os

    import torch

    from tfswa.runtime.backends.torchscript import torch_device
    from tfswa.train.config import load_config
    from tfswa.train.loop import train as run

    settings = load_config(config, overrides)
    target = torch_device(device)
    if threads:
        torch.set_num_threads(threads)
    with _Bar() as bar:
        scores = run(settings, output, device=target, resume=resume, report=bar.report)
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        click.echo(json.dumps({"run": str(output), "scores": scores}))
    else:
        for name, value in scores.items():
            click.echo(f"validation {_scored(name, value)}")
        made = [output / name for name in ("best.tfx", "last.tfx", "pretrained.safetensors")]
        click.echo(f"written: {', '.join(str(path) for path in made if path.exists())}")


def _scored(name: str, value: float) -> str:
    """``SDR vocals 6.32 dB``; what is not a stem's SDR is a plain number."""
    return f"{name} {value:.4f}" if name == "reconstruction" else f"SDR {name} {value:.2f} dB"


class _Bar:
    """Progress on stderr: a bar on a terminal, otherwise a line per validation."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.live = console.is_terminal
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.1f} x real time"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("train", total=None, loss=float("nan"), speed=0.0)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, progress: TrainingProgress) -> None:
        speed = progress.audio_seconds_per_second
        self.bar.update(
            self.task, completed=progress.step, total=progress.steps, loss=progress.loss, speed=speed
        )
        if progress.scores is not None:
            scores = "  ".join(_scored(name, value) for name, value in progress.scores.items())
            line = f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  validation  {scores}"
            self.bar.console.print(line, highlight=False) if self.live else click.echo(line, err=True)


@click.command()
@click.argument("family")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle to write.")
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
