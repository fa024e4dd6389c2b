"""Choose the recipe of the embedded model: runs that differ in one thing, scores, a page.

train    runs of demo-mixed with one thing changed each: `tfx train`, one after another; what is done is not
         done again, what was stopped goes on. Names: see below; without one, the comparison of losses
score    bundles on the development set, and with --judge on the song of stempeg
page     docs/measured/demo-model.* from the runs of a folder; what stands under "## Notes" stays
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from make_demo_data import HELD_OUT
from numpy.typing import NDArray
from scipy import signal

from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.table import markdown_table
from tfswa.train.config_files import load_config
from tfswa.train.data.songs import load_training_songs
from tfswa.train.loop import training_spec

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "train" / "configs" / "demo-mixed.toml"
PAGE = ROOT / "docs" / "measured" / "demo-model.md"
NOTES = "## Notes"
SECONDS = 60.0  # of a development song, from its middle
HIGH_HZ = 8000.0
BLEED_SECONDS = 0.5  # spans in which the true vocals are silent
LEAST_POWER = 1e-4  # -40 dBFS
FREE = ("1.Hydrogen", "2.Lithium", "3.Sodium", "7.Francium")
FIVE = ("data.sets=[]", f"data.songs={json.dumps([f'free-{name}' for name in FREE])}")
TERMS = ("spectrogram_l1", "multi_resolution_stft", "waveform_l1", "spectrogram_mse", "si_sdr")


def loss(**weights: float) -> tuple[str, ...]:
    """Overrides that leave these terms alone."""
    return tuple(f"loss.{name}={weights.get(name, 0.0)}" for name in TERMS)


DEMO = loss(spectrogram_l1=1.0, multi_resolution_stft=1.0)  # of demo.toml
LOSSES = {
    "all-waveform": (),  # demo-mixed as it is
    "all-mse": loss(spectrogram_mse=1.0),
    "all-demo": DEMO,
    "five-waveform": FIVE,
    "five-mse": (*FIVE, *loss(spectrogram_mse=1.0)),
    "five-demo": (*FIVE, *DEMO),
}
LATE = 'curriculum=[{until=STEPS/5,loss_without=["multi_resolution_stft"]}]'
LEVERS = {
    "late-resolutions": (*loss(waveform_l1=1.0, multi_resolution_stft=0.5), LATE),
    "si-sdr": loss(waveform_l1=1.0, si_sdr=0.001),
    "fold-4": ("model.hyper.fold=4",),
    "contiguous": ("model.hyper.fold_layout=contiguous",),
    "complex": ("model.hyper.mask=complex",),
    "deeper": ("model.hyper.depths=[1,1,5,2]",),
    "ema-0.999": ("optim.ema=0.999",),
    "lr-3e-3": ("optim.lr=3e-3",),
    "batch-8": ("optim.batch=8", "optim.accumulate=4"),
    "frames-256": ("optim.frames=256",),
    "plain-voices": tuple(
        f"augment.{name}=0.0"
        for name in (
            "equalizer",
            "compression",
            "clipping",
            "doubling",
            "delay",
            "reverb",
            "formant",
            "codec",
        )
    ),
}
ARMS = LOSSES | LEVERS

Audio = NDArray[np.float32]


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("train", help="runs that differ in one thing")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ARMS)}")
    run.add_argument("--data", type=Path, required=True, help="what scripts/make_demo_data made")
    run.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    run.add_argument("--steps", type=int, default=1000, help="of each run (1000)")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of each (0 1)")
    run.add_argument("--threads", type=int, default=1, help="of a run (1)")
    score = commands.add_parser("score", help="measure bundles")
    score.add_argument("bundles", nargs="+", help="bundles, or names of models")
    score.add_argument("--data", type=Path, required=True, help="what scripts/make_demo_data made")
    score.add_argument("--judge", action="store_true", help="the song of stempeg too: read it seldom")
    page = commands.add_parser("page", help="write the page")
    page.add_argument("runs", type=Path, help="folder of the runs")
    given = parser.parse_args()
    if given.command == "train":
        unknown = set(given.names) - ARMS.keys()
        if unknown:
            parser.error(f"unknown {', '.join(sorted(unknown))}: choose of {', '.join(ARMS)}")
        for seed in given.seeds:
            for name in given.names or LOSSES:
                overrides = arm(name, given.data.resolve(), given.steps, seed)
                train(given.output.resolve() / f"{name}-{seed}", overrides, given.threads)
    elif given.command == "score":
        print("\n".join(markdown_table(*scores(given.bundles, given.data.resolve(), given.judge))))
    else:
        write_page(given.runs)


def arm(name: str, data: Path, steps: int, seed: int) -> list[str]:
    """Overrides of demo-mixed for one run, with four validations."""
    length = [f"optim.length={steps}", f"optim.seed={seed}", f"run.validate_every={max(1, steps // 4)}"]
    changed = [override.replace("STEPS/5", str(max(1, steps // 5))) for override in ARMS[name]]
    return [f"data.root={data}", *length, *changed]


def train(run: Path, overrides: list[str], threads: int) -> None:
    """One run, or the rest of it."""
    resume = ["--resume"] if list(run.glob("checkpoints/*.ckpt")) else []
    command = [sys.executable, "-m", "tfswa.runtime", "train", str(CONFIG), *overrides, "-o", str(run)]
    command += ["--device", "cpu", "--threads", str(threads), *resume]
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def scores(bundles: list[str], data: Path, judge: bool) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows of a table: figures of every bundle on every item."""
    items = development(data)
    rows = []
    for name in bundles:
        with Separator(open_model(name), backend="torch") as separator:
            spec = separator.model.spec
            if judge:
                path = example_stem_file()
                if path is None:
                    sys.exit("the package stempeg is not installed: pip install --no-deps stempeg")
                song = load_stem_file(path, spec)
                items["stempeg"] = np.stack([song.stems[stem] for stem in ("vocals", "accompaniment")])
            for item, true in items.items():
                estimate = np.asarray(separator.separate(true.sum(axis=0)), np.float32)
                values = figures(true, estimate, spec.stft.sample_rate).values()
                rows.append((name, item, *(_two(value) for value in values)))
    return ("model", "song", *figures(np.ones((2, 2, 88_200)), np.ones((2, 2, 88_200)), 44_100)), rows


def development(data: Path) -> dict[str, Audio]:
    """True vocals and accompaniment ``[2, C, N]`` of the middle of every held-out song."""
    settings = load_config(CONFIG, [f"data.root={data}"])
    spec = training_spec(settings)
    songs = load_training_songs(settings.data, spec.stft.sample_rate, spec.channels)[1]
    found = {}
    for song in songs:
        length = min(song.samples, round(SECONDS * spec.stft.sample_rate))
        start = (song.samples - length) // 2
        cut = {name: np.array(audio[:, start : start + length]) for name, audio in song.sources.items()}
        vocals = cut.pop("vocals")
        found[song.name] = np.stack((vocals, np.sum(list(cut.values()), axis=0)))
    assert tuple(found) == HELD_OUT
    return found


def figures(true: Audio, estimate: Audio, rate: int) -> dict[str, float | None]:
    """What a separation ``[2, C, N]`` of vocals and accompaniment is worth; all in dB."""
    vocals, mixture = true[0], true.sum(axis=0)
    span = round(BLEED_SECONDS * rate)
    level, heard, all_of_it = (power(audio, span) for audio in (vocals, estimate[0], mixture))
    quiet = (level < 1e-6) & (all_of_it > 1e-5)  # -60 and -50 dBFS
    ten = 10 * rate
    starts = range(0, max(1, vocals.shape[1] - ten + 1), ten)
    pieces = [(vocals[:, at : at + ten], estimate[0][:, at : at + ten]) for at in starts]
    # Of ten seconds with hardly a voice an SDR says nothing; how much is heard there is the next figure.
    heard_in = [sdr_db(*piece) for piece in pieces if np.mean(np.square(piece[0])) > LEAST_POWER]
    worst = min((value for value in heard_in if value is not None), default=None)
    high = signal.butter(6, HIGH_HZ, "highpass", fs=rate, output="sos")
    above = [float(np.square(signal.sosfilt(high, audio)).sum()) for audio in (vocals, estimate[0])]
    return {
        "vocals SDR (u)": sdr_db(vocals, estimate[0]),
        "accompaniment SDR (u)": sdr_db(true[1], estimate[1]),
        "worst 10 s of vocals": worst,
        "vocals below mixture where none are": ratio_db(all_of_it[quiet].sum(), heard[quiet].sum()),
        "vocals above 8 kHz, against the truth": ratio_db(above[1], above[0]),
    }


def power(audio: Audio, span: int) -> NDArray[np.float64]:
    """Mean square of every span, whole ones alone."""
    whole = audio.shape[1] // span * span
    squares = np.square(audio[:, :whole], dtype=np.float64).mean(axis=0)
    return squares.reshape(-1, span).mean(axis=1)


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def ratio_db(one: float, other: float) -> float | None:
    return float(10 * np.log10(one / other)) if one > 0 and other > 0 else None


def write_page(runs: Path) -> None:
    """Write the page and its figures."""
    found = {path.parent.name: read(path.parent) for path in sorted(runs.glob("*/validation.csv"))}
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    old = PAGE.read_text() if PAGE.exists() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else f"{NOTES}\n"
    PAGE.write_text("\n".join((*table(found), "", notes)))
    print(PAGE)


def read(run: Path) -> dict[str, Any]:
    """What a run was, and its curve."""
    config = json.loads((run / "config.json").read_text())
    with (run / "validation.csv").open(newline="") as stream:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    with (run / "log.csv").open(newline="") as stream:
        speeds = [float(row["x_realtime"]) for row in csv.DictReader(stream)]
    seconds = (config["optim"]["frames"] - 1) * 1024 / 44_100
    return {
        "loss": {name: config["loss"][name] for name in TERMS if config["loss"].get(name)},
        "sets": len(config["data"].get("sets", ())) or 1,
        "seed": config["optim"]["seed"],
        "batch": config["optim"]["batch"],
        "planned_steps": config["optim"]["length"],
        "seconds_per_step": config["optim"]["batch"] * seconds / float(np.median(speeds)),
        "validation": rows,
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """One row a run."""
    steps = sorted({int(row["step"]) for run in found.values() for row in run["validation"]})
    columns = ("run", "loss", "sets", "seed", "s a step", *(f"step {step}" for step in steps))
    lines = []
    for name, run in found.items():
        known = {int(row["step"]): row.get("vocals") for row in run["validation"]}
        terms = " + ".join(f"{weight:g} {term}" for term, weight in run["loss"].items())
        speed = _two(run["seconds_per_step"])
        lines.append(
            (name, terms, run["sets"], run["seed"], speed, *(_two(known.get(step)) for step in steps))
        )
    return [
        "# Choosing the embedded model's recipe, measured",
        "",
        "`scripts/demo_model train` and `page`. Vocals SDR in dB, global (u), of the averaged weights on",
        "what a run holds out, 60 s of each song: 5.Rubidium, or with all sets the mean of it and house_e",
        "over *War of freedom*. Chunks of 2.9 s. Seeds and steps are few: see the notes.",
        "",
        *markdown_table(columns, lines),
    ]


if __name__ == "__main__":
    main()
