"""Train every family for the same time, or for the same number of steps, and score it on songs held out.

    OUT/NAME-15min/pilot/      a few steps, from which the steps that fit into the time are reckoned
    OUT/NAME-15min/plan.json   how many they are
    OUT/NAME-15min/run/        the training, one `tfx train`; stopped, it goes on where it was
    OUT/NAME-15min/score.json  what came of it; what has one is not trained again

All have one recipe: data and augmentation of train/configs/demo.toml, a cosine as long as the training, and
the lead and accompaniment study's loss, the squared error of spectra. Absolute errors, which demo.toml has,
are least for silence where most of a song has no vocals, and a network of few steps may get stuck there.
A NAME is a family, or a configuration, of which the family and its hyper-parameters alone are taken. With
``--steps``, a training of OUT that was as long, though its time was given, is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench import machine
from family_page import STEM, write_page
from gpu_check import Check
from numpy.typing import NDArray

from tfswa.runtime.errors import TfxError, reason
from tfswa.runtime.machine import cores
from tfswa.runtime.metrics import finite_db, sdr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ModelSpec, StftSpec
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.stream.transform import Stft
from tfswa.train.checkpoint import checkpoints
from tfswa.train.config_files import find_config, load_config, load_run_config
from tfswa.train.data.songs import load_training_songs
from tfswa.train.families import family_names, new_spec
from tfswa.train.tasks import Separation

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "train" / "configs" / "demo.toml"
PAGE = ROOT / "docs" / "measured" / "family-training"
HELD_OUT = "5.Rubidium"
STUDY = StftSpec(n_fft=2048, hop=1024, scale=1.0)  # all bins but Nyquist's, not scaled
CHUNK_SECONDS = 3.0
PILOT_STEPS, PILOT_WARM_UP = 8, 3
TRAINED_BY = {
    "loss.spectrogram_l1": 0.0,
    "loss.multi_resolution_stft": 0.0,
    "loss.spectrogram_mse": 1.0,
    "optim.lr": 1e-3,
    "optim.ema": 0.98,  # the shortest training has a hundred steps
}
LIMIT_S = 24 * 3600.0  # of one command


Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        name: of its folder and its row.
        family: a family's name.
        hyper: what differs from the family's defaults.
    """

    name: str
    family: str
    hyper: Mapping[str, Any]

    @classmethod
    def named(cls, name: str) -> Network:
        """A family, or the one that a configuration has.

        Raises:
            TfxError: it is neither.
        """
        if name in family_names():
            return cls(name, name, {})
        path, base = find_config(name)
        model = load_config(path, base=base).model
        return cls(path.stem, model.family, model.hyper)

    def frames(self) -> int:
        """T of a chunk of about ``CHUNK_SECONDS``."""
        spec = new_spec(self.family, hyper=self.hyper)
        frames = CHUNK_SECONDS * spec.stft.sample_rate / spec.stft.hop + 1
        return max(1, round(frames / spec.chunk.multiple)) * spec.chunk.multiple


@dataclass(frozen=True)
class Plan:
    """How everything is trained.

    Attributes:
        data: folder of the songs.
        held_out: the song that is not trained on.
        minutes: of every training; None for ``steps``.
        steps: of every training; None for ``minutes``.
        seed: of weights and data.
        batch: chunks a step.
        threads: of torch.
    """

    data: Path
    held_out: str
    minutes: float | None
    steps: int | None
    seed: int
    batch: int
    threads: int

    @property
    def budget(self) -> str:
        """As folders have it."""
        return f"{self.steps}steps" if self.minutes is None else f"{self.minutes:g}min"

    def overrides(self, network: Network, steps: int) -> list[str]:
        """Of the recipe, for so many steps."""
        values: dict[str, Any] = {
            **TRAINED_BY,
            "model.family": network.family,
            **{f"model.hyper.{key}": value for key, value in network.hyper.items()},
            "model.residual_stem": "accompaniment",
            "data.root": str(self.data),
            "data.validation": [self.held_out],
            "optim.length": steps,
            "optim.batch": self.batch,
            "optim.frames": network.frames(),
            "optim.warmup": max(1, min(30, steps // 10)),
            "optim.seed": self.seed,
            "run.validate_every": steps,
            "run.checkpoint_every": max(1, steps // 10),
            "run.log_every": 10,
            "run.pictures": False,
        }
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/family_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every family that is installed")
    parser.add_argument("--data", type=Path, required=True, help="the song folders, 1.Hydrogen ...")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=15.0, help="of every training (15)")
    length.add_argument("--steps", type=int, help="of every training, instead of minutes")
    parser.add_argument("--held-out", default=HELD_OUT, metavar="SONG", help=f"({HELD_OUT})")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--batch", type=int, default=2, help="chunks a step (2)")
    parser.add_argument("--threads", type=int, default=cores(), help="of torch (all)")
    parser.add_argument(
        "--page", type=Path, default=PAGE, metavar="NAME", help=f"NAME.json, NAME.md ({PAGE})"
    )
    given = parser.parse_args()
    minutes = None if given.steps else given.minutes
    data = given.data.resolve()
    plan = Plan(data, given.held_out, minutes, given.steps, given.seed, given.batch, given.threads)
    try:
        networks = [Network.named(name) for name in given.names or family_names()]
    except TfxError as error:
        parser.error(str(error))
    os.environ["OMP_NUM_THREADS"] = str(plan.threads)
    try:
        train_all(networks, plan, given.output.resolve(), given.page)
    except KeyboardInterrupt:
        sys.exit(130)
    print(given.page.with_suffix(".md").read_text())


def train_all(networks: Sequence[Network], plan: Plan, runs: Path, page: Path) -> None:
    """One after another; the page is written after each.

    The steps of all are reckoned first: from then on, load on the machine costs time and no steps.
    """
    for network in networks:
        folder = runs / f"{network.name}-{plan.budget}"
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Exception):  # it says so when it is trained
            planned(folder, network, plan, check_of(network))
    for network in networks:
        folder = runs / f"{network.name}-{plan.budget}"
        own = folder / "score.json"
        same = own if own.exists() else same_training(runs, network, plan)
        if same is not None:
            print(f"{same.parent}: trained and scored already", file=sys.stderr)
            done(folder, {**json.loads(same.read_text()), "budget": plan.budget})
        else:
            keep(folder, network, plan)
        write_page(runs, page)


def keep(folder: Path, network: Network, plan: Plan) -> None:
    """Train and score; what refuses is kept as ``refused.json`` until it is tried again."""
    folder.mkdir(parents=True, exist_ok=True)
    refused = folder / "refused.json"
    refused.unlink(missing_ok=True)
    about = {"name": network.name, "family": network.family, "hyper": dict(network.hyper)}
    about |= {"budget": plan.budget, "seed": plan.seed, "machine": machine(), "threads": plan.threads}
    check = check_of(network)
    try:
        steps = planned(folder, network, plan, check)
        train(folder / "run", plan.overrides(network, steps), plan, check)
        found = {**about, **trained(folder / "run", steps), **score(folder / "run")}
    except Exception as error:  # a third party's family may raise anything: the others go on
        refused.write_text(json.dumps({**about, "refused": reason(error)}, indent=1) + "\n")
        print(f"{network.name}: refused: {reason(error)}", file=sys.stderr)
        return
    done(folder, found)


def done(folder: Path, found: Mapping[str, Any]) -> None:
    """Last and at once: a folder with a score is done."""
    (folder / "score.json.part").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "score.json.part").rename(folder / "score.json")


def same_training(runs: Path, network: Network, plan: Plan) -> Path | None:
    """The score of one whose steps were not asked for but reckoned, all else alike."""
    if plan.steps is None:
        return None
    for path in sorted(runs.glob("*/score.json")):
        found = json.loads(path.read_text())
        alike = (found["name"], found["steps"], found["threads"]) == (network.name, plan.steps, plan.threads)
        if not alike:
            continue
        wanted = load_config(RECIPE, plan.overrides(network, plan.steps))
        if load_run_config(path.parent / "run") == wanted:
            return path
    return None


def check_of(network: Network) -> Check:
    """What runs its commands."""
    return Check(network.name, "cpu", None, time.monotonic() + LIMIT_S)


def planned(folder: Path, network: Network, plan: Plan, check: Check) -> int:
    """Steps of the training: as asked for, or as many as fit into the time by a few that are timed."""
    if plan.minutes is None:
        assert plan.steps is not None
        return plan.steps
    path = folder / "plan.json"
    if not path.exists():
        pilot = [*plan.overrides(network, PILOT_STEPS), "run.log_every=1", "run.validation_seconds=1.0"]
        train(folder / "pilot", pilot, plan, check)
        _, seconds = step_seconds(folder / "pilot")
        each = median(seconds[PILOT_WARM_UP:])
        found = {"seconds_per_step": each, "steps": max(1, round(60 * plan.minutes / each))}
        path.write_text(json.dumps(found) + "\n")
    steps: int = json.loads(path.read_text())["steps"]
    return steps


def train(run: Path, overrides: list[str], plan: Plan, check: Check) -> None:
    """A `tfx train`, or the rest of it.

    Raises:
        TfxError: it fails.
    """
    resume = ["--resume"] if checkpoints(run) else []
    words = [str(RECIPE), *overrides, "-o", str(run), "--device", "cpu", "--threads", str(plan.threads)]
    if check.tfx(f"{run.parent.name}: {run.name}", "train", *words, *resume) is None:
        raise TfxError(check.failures[-1]["reason"])


def step_seconds(run: Path) -> tuple[list[int], list[float]]:
    """Of every row of a run's log: the steps that it is about, and the seconds of one of them."""
    config = load_run_config(run)
    spec = open_model(str(run / "last.tfx")).spec
    audio = config.optim.batch * (config.optim.frames - 1) * spec.stft.hop / spec.stft.sample_rate
    with (run / "log.csv").open(newline="") as stream:
        rows = [(int(row["step"]), float(row["x_realtime"])) for row in csv.DictReader(stream)]
    counts = np.diff([0, *(step for step, _ in rows)]).tolist()
    return counts, [audio / speed for _, speed in rows]


def trained(run: Path, steps: int) -> dict[str, Any]:
    """How a training went."""
    counts, seconds = step_seconds(run)
    spec, config = open_model(str(run / "last.tfx")).spec, load_run_config(run)
    # Other programs make some steps longer: the median is that of a step, not of a row of the log.
    each = float(np.median(np.repeat(seconds, counts)))
    sizes = {"batch": config.optim.batch, "frames": config.optim.frames}
    return {"parameters": spec.parameters, "steps": steps, "seconds": steps * each, **sizes}


def score(run: Path) -> dict[str, Any]:
    """Figures of a trained network, and of what is no network, by song."""
    with Separator(open_model(str(run / "last.tfx")), backend="torch") as separator:
        spec = separator.spec
        index, found, plain = spec.stems.index(STEM), {}, {}
        for name, (mixture, true) in songs(run, spec).items():
            found[name] = figures(true, separator.separate(mixture)[index])
            plain[name] = {
                "mixture as the estimate": figures(true, mixture),
                "silence as the estimate": figures(true, np.zeros_like(true)),
            }
    return {"scores": found, "baselines": plain}


def songs(run: Path, spec: ModelSpec) -> dict[str, tuple[Audio, Audio]]:
    """Mixture and true vocals ``[C, N]`` by song: the middle of the one held out, and stempeg's."""
    import torch

    config = load_run_config(run)
    task = Separation(config, spec, torch.device("cpu"))
    found = {}
    for song in load_training_songs(config.data, spec.stft.sample_rate, spec.channels)[1]:
        stems = task.excerpt(song)
        found[song.name] = (stems.sum(axis=0), stems[spec.stems.index(STEM)])
    path = example_stem_file()
    if path is not None:
        example = load_stem_file(path, spec)
        found["stempeg"] = (example.mixture, example.stems[STEM])
    return found


def figures(true: Audio, estimate: Audio) -> dict[str, float | None]:
    """SDR in dB, and the study's mean squared error, of an estimate ``[C, N]``."""
    error = Stft(STUDY).planes(np.asarray(estimate, np.float32) - true)
    return {
        "sdr_db": finite_db(sdr_db(true, estimate)),
        "mse": float(np.square(error, dtype=np.float64).mean()),
    }


if __name__ == "__main__":
    main()
