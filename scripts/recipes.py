"""Every recipe of train/configs, run for real and small: see --help.

Each run is one ``tfx train`` command, printed as it is started; what is done already is not done again.
docs/measured/training.* is made from what the runs left, however far they have got.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfswa.runtime.metrics import sdr_db
from tfswa.train.config_files import load_config
from tfswa.train.data.songs import load_training_songs
from tfswa.train.loop import training_spec
from tfswa.train.tasks import Separation

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = "5.Rubidium"
COMMON = (
    f'data.validation=["{HELD_OUT}"]',
    "data.workers=1",
    "optim.frames=128",
    "run.log_every=10",
    "run.validate_every=50",
    "run.checkpoint_every=50",
    "run.pictures=false",
)
COMMITS = "commits.txt"  # in a run's folder: a line for each time that it was started
LITE = "model.family=tfswa_lite"
BOTH_STEMS = ("model.network_stems=[]", 'model.residual_stem=""')
SMALL = (LITE, "optim.batch=2", "optim.warmup=50", "optim.length=300")
PHASES = "curriculum=[{until=100,frames=64,bandwidth_hz=6000.0},{until=180,frames=64,bandwidth_hz=12000.0}]"
PARTS = 'data.sources.mixture=["vocals","drums","bass","other"]'


@dataclass(frozen=True)
class Recipe:
    """One run.

    Attributes:
        name: of its folder.
        group: the table it stands in.
        config: file in train/configs.
        overrides: what is smaller than there.
    """

    name: str
    group: str
    config: str
    overrides: tuple[str, ...]


RECIPES = (
    Recipe("seed", "recipes", "seed", (LITE, "optim.batch=2", "optim.warmup=100", "optim.length=500")),
    Recipe("paper", "recipes", "paper", (LITE, "optim.batch=4", "optim.length=500")),
    Recipe("study", "recipes", "study", (LITE, *BOTH_STEMS, "optim.batch=4", "optim.length=500")),
    Recipe(
        "default-15m",
        "default",
        "seed",
        ("optim.batch=1", "optim.warmup=50", "optim.length=300", "run.validate_every=100"),
    ),
    Recipe("plain", "variants", "progressive", (*SMALL, "curriculum=[]")),
    Recipe("progressive", "variants", "progressive", (*SMALL, PHASES)),
    Recipe("pretrain", "variants", "pretrain", (*SMALL, PARTS)),
    Recipe("finetune", "variants", "finetune", (*SMALL, "model.init={runs}/pretrain/pretrained.safetensors")),
    Recipe("multitask", "variants", "multitask", SMALL),
)
HEAD = f"""# Training, measured

`scripts/recipes --data DIR` on the five CC0 songs of *Everything is Free*: four to train on, 60 s from the
middle of {HELD_OUT} held out; two CPU cores, one thread a run. The runs are small: they show that every
recipe learns, not how well it ends. SDR is global over the 60 s (u), of the average of the weights where
the recipe has one. Waiting is the share of the time that steps waited for the loader. Figures hold for the
commit of the run: chunks are drawn alike only by the same code."""
TABLE = (
    "| run | steps | loss, first and last tenth | validation, last (best) | skipped | waiting | commit |",
    "| --- | ---: | --- | --- | ---: | ---: | --- |",
)
GROUPS = {
    "recipes": "The three recipes on `tfswa_lite`, 500 steps of 2 (seed) or 4 chunks of 3 s",
    "default": "The project's default recipe on the default network, 300 steps of 1 chunk of 3 s",
    "variants": "Variants of training on `tfswa_lite`, 300 steps of 2 chunks of 3 s, beside plain training",
}


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(prog="scripts/recipes", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(r.name for r in RECIPES)}")
    parser.add_argument(
        "--data", type=Path, required=True, help="the song folders, 1.Hydrogen ... 7.Francium"
    )
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="run nothing, write docs/measured/training.*")
    given = parser.parse_args()
    unknown = set(given.names) - {recipe.name for recipe in RECIPES}
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}: see --help")
    chosen = [recipe for recipe in RECIPES if not given.names or recipe.name in given.names]
    for recipe in [] if given.page else chosen:
        run(recipe, given.data.resolve(), given.output.resolve(), given.device, given.threads)
    page(given.data.resolve(), given.output.resolve())


def arguments(recipe: Recipe, data: str, runs: str) -> list[str]:
    """Everything behind ``tfx``."""
    overrides = [override.replace("{runs}", runs) for override in recipe.overrides]
    config = f"train/configs/{recipe.config}.toml"
    return ["train", config, f"data.root={data}", *COMMON, *overrides, "-o", f"{runs}/{recipe.name}"]


def run(recipe: Recipe, data: Path, runs: Path, device: str, threads: int) -> None:
    """Train, or go on with what is there."""
    resume = ["--resume"] if list((runs / recipe.name / "checkpoints").glob("*.ckpt")) else []
    more = [*resume, "--device", device, "--threads", str(threads)]
    command = [sys.executable, "-m", "tfswa.runtime", *arguments(recipe, str(data), str(runs)), *more]
    print(shlex.join(command), flush=True)
    (runs / recipe.name).mkdir(parents=True, exist_ok=True)
    with (runs / recipe.name / COMMITS).open("a") as stream:
        print(commit(), file=stream)
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def commit() -> str:
    """What is trained with: a commit, and whether the code is another one; pages and figures are not code."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "train", "runtime"]).returncode
    return f"{name}-dirty" if changed else name or "unknown"


def page(data: Path, runs: Path) -> None:
    """Write docs/measured/training.json, .md and .png from what the runs left."""
    results = {r.name: read(r, runs / r.name) for r in RECIPES if (runs / r.name / "validation.csv").exists()}
    baselines = held_out_baselines(data)
    place = ROOT / "docs" / "measured"
    report = {"held_out": HELD_OUT, "baselines_sdr_db": baselines, "runs": results}
    (place / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    (place / "training.md").write_text(text(results, baselines))
    draw(results, place / "training.png")
    print(f"written: {place / 'training.md'}")


def read(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Curves of a run."""
    log, validation = (rows(folder / name) for name in ("log.csv", "validation.csv"))
    config = json.loads((folder / "config.json").read_text())
    commits = (folder / COMMITS).read_text().split() if (folder / COMMITS).exists() else []
    return {
        "commits": list(dict.fromkeys(commits)),
        "command": shlex.join(["tfx", *arguments(recipe, "DATA", "runs")]),
        "steps": int(log["step"][-1]),
        "loss": {"step": log["step"], "value": log["loss"]},
        "validation": validation,
        "seconds_per_step": config["optim"]["batch"] * seconds(config) / float(np.median(log["x_realtime"])),
        "loader_wait_share": float(np.median(log["loader_wait_share"])),
        "skipped": log["skipped"][-1],
    }


def seconds(config: dict[str, Any]) -> float:
    """Length of a chunk, at the default transform."""
    return float((config["optim"]["frames"] - 1) * 1024 / 44_100)


def rows(path: Path) -> dict[str, list[float]]:
    """Columns of a log."""
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    return {name: [float(line[name]) for line in lines if line[name]] for name in lines[0]}


def held_out_baselines(data: Path) -> dict[str, dict[str, float]]:
    """SDR of the mixture as the estimate of every stem; that of silence is 0 by definition."""
    found: dict[str, dict[str, float]] = {}
    for config in ("seed", "multitask"):
        overrides = (f"data.root={data}", f'data.validation=["{HELD_OUT}"]')
        settings = load_config(ROOT / "train" / "configs" / f"{config}.toml", overrides)
        spec = training_spec(settings)
        song = load_training_songs(settings.data, spec.stft.sample_rate, spec.channels)[1][0]
        excerpt = Separation(settings, spec, torch.device("cpu")).excerpt(song)
        stems, mixture = dict(zip(spec.stems, excerpt, strict=True)), excerpt.sum(axis=0)
        for stem, true in stems.items():
            value = sdr_db(true, mixture)
            if value is not None:  # a stem that is silent there has no SDR
                found[stem] = {"mixture": value, "silence": 0.0}
    return found


def text(results: dict[str, Any], baselines: dict[str, dict[str, float]]) -> str:
    """Render the page."""
    lines = [
        *HEAD.splitlines(),
        "",
        "| baseline | " + " | ".join(baselines) + " |",
        "| --- |" + " ---: |" * len(baselines),
        "| mixture as estimate | " + " | ".join(f"{b['mixture']:.2f} dB" for b in baselines.values()) + " |",
        "| silence | " + " | ".join("0.00 dB" for _ in baselines) + " |",
        "",
        "![curves](training.png)",
    ]
    missing = [recipe.name for recipe in RECIPES if recipe.name not in results]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    for group, title in GROUPS.items():
        chosen = {r.name: results[r.name] for r in RECIPES if r.group == group and r.name in results}
        if not chosen:
            continue
        lines += ["", f"## {title}", ""]
        lines += TABLE
        for name, result in chosen.items():
            lines.append(row(name, result))
        lines += ["", "```"] + [result["command"] for result in chosen.values()] + ["```", ""]
        lines += ["Validation SDR of vocals in dB, by step:", ""]
        lines += curve(chosen)
    return "\n".join(lines) + "\n"


def row(name: str, result: dict[str, Any]) -> str:
    """One line of a table of runs."""
    loss = result["loss"]["value"]
    tenth = max(1, len(loss) // 10)
    scores = {key: values for key, values in result["validation"].items() if key != "step"}
    unit = {key: "" if key == "reconstruction" else " dB" for key in scores}
    cells = ", ".join(
        f"{key} {values[-1]:.2f}{unit[key]} ({max(values):.2f})" for key, values in scores.items()
    )
    first, last = np.mean(loss[:tenth]), np.mean(loss[-tenth:])
    return (
        f"| {name} | {result['steps']} | {first:.4f}, {last:.4f} | {cells} | {result['skipped']:.0f} | "
        f"{100 * result['loader_wait_share']:.1f} % | {', '.join(result['commits']) or 'not recorded'} |"
    )


def curve(results: dict[str, Any]) -> list[str]:
    """Vocals SDR by step, one row a run."""
    told = {name: r["validation"] for name, r in results.items() if "vocals" in r["validation"]}
    steps = sorted({int(step) for v in told.values() for step in v["step"]})
    lines = ["| run | " + " | ".join(map(str, steps)) + " |", "| --- |" + " ---: |" * len(steps)]
    for name, v in told.items():
        known = {int(step): value for step, value in zip(v["step"], v["vocals"], strict=True)}
        cells = " | ".join(f"{known[step]:.2f}" if step in known else "" for step in steps)
        lines.append(f"| {name} | {cells} |")
    return lines


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw losses above, vocals SDR below, a column a group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    groups = [group for group in GROUPS if any(r.group == group and r.name in results for r in RECIPES)]
    axes = figure.subplots(2, len(groups), squeeze=False)
    for column, group in enumerate(groups):
        upper, lower = axes[0, column], axes[1, column]
        for recipe in RECIPES:
            if recipe.group != group or recipe.name not in results:
                continue
            result = results[recipe.name]
            loss = np.array(result["loss"]["value"])
            upper.plot(result["loss"]["step"], loss / loss[0], label=recipe.name)
            if "vocals" in result["validation"]:
                steps, scores = result["validation"]["step"], result["validation"]["vocals"]
                lower.plot(steps, scores, marker="o", markersize=3, label=recipe.name)
        upper.set(title=group, ylabel="loss / first loss", yscale="log")
        lower.set(xlabel="steps", ylabel="vocals SDR, dB (u)")
        lower.axhline(0.0, color="gray", linewidth=0.8, linestyle=":", label="silence")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
