"""kill -9 at random moments: a run goes on from its last checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: training needs it")

from tfswa.runtime.model.bundle import Bundle  # noqa: E402
from tfswa.train.checkpoint import checkpoints, load_newest  # noqa: E402
from tfswa.train.config import (  # noqa: E402
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from tfswa.train.loop import train  # noqa: E402

KILLS = 24
STEPS = 80
EVERY = 2  # steps between checkpoints


@pytest.fixture
def config(song_root: Path, tiny_family: str, tiny_hyper: dict[str, Any], private_cache: Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(family=tiny_family, hyper=tiny_hyper, license="MIT"),
        data=DataConfig(root=str(song_root), validation=("C",), cache=str(private_cache), workers=1),
        augment=AugmentConfig(),
        loss=LossConfig(multi_resolution_stft=0.0),
        optim=OptimConfig(length=STEPS, batch=2, frames=16, warmup=2, ema=0.9),
        run=RunConfig(
            log_every=1,
            validate_every=6,
            checkpoint_every=EVERY,
            keep=2,
            validation_seconds=1,
            statistics_batches=1,
            pictures=False,
        ),
    )


def begin(config: TrainConfig, out: Path) -> int:
    """Train in a child process, from scratch or from where the last one was killed; return its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)  # with its loader's processes it can be killed as one
            train(config, out, device=torch.device("cpu"), resume=bool(checkpoints(out)))
            status = 0
        finally:
            os._exit(status)
    with suppress(OSError):  # whichever of the two comes first: it may be killed before it has done so
        os.setpgid(child, child)
    return child


def ended(child: int) -> int | None:
    """Exit status of a child that has ended by itself: it reached the last step."""
    number, status = os.waitpid(child, os.WNOHANG)
    if not number:
        return None
    assert os.waitstatus_to_exitcode(status) == 0
    return 0


def log_rows(out: Path) -> list[str]:
    """Steps and losses; timings differ."""
    lines = (out / "log.csv").read_text().splitlines()
    names = lines[0].split(",")
    kept = [names.index(name) for name in ("step", "loss", "lr", "gradient_norm")]
    return [",".join(line.split(",")[i] for i in kept) for line in lines]


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_one_that_was_not(config: TrainConfig, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # forked children cannot use the parent's pool of threads
    whole = tmp_path / "whole"
    began = time.monotonic()
    train(config, whole, device=torch.device("cpu"))
    pace = (time.monotonic() - began) / STEPS
    random = np.random.default_rng(0)
    kills = lost = runs = 0
    while kills < KILLS:  # however fast the machine is: a run that has ended is followed by another
        out = tmp_path / f"run-{runs}"
        before = kills
        while (again := _killed(config, out, random, pace)) is not None:
            kills, lost = kills + 1, max(lost, again)
        assert kills > before
        assert log_rows(out) == log_rows(whole)
        for name in ("best.tfx", "last.tfx"):
            assert Bundle.open(out / name).digest == Bundle.open(whole / name).digest
        assert not [path.name for path in out.rglob("*") if "partial" in path.name]
        runs += 1
    assert lost <= EVERY
    print(f"{kills} kills of {runs} runs, at most {lost} steps done again")


def _killed(config: TrainConfig, out: Path, random: np.random.Generator, pace: float) -> int | None:
    """Begin or resume a run and kill it: how many steps that cost, or None if it reached its end before."""
    stood = load_newest(out)["trainer"]["step"] if checkpoints(out) else 0
    goal = stood + random.integers(0, 2 * STEPS // KILLS)
    child = begin(config, out)
    while _last_step(out) < goal:  # the log is cut to where the checkpoint stands, then grows
        if ended(child) is not None:
            assert _last_step(out) == STEPS
            return None
        time.sleep(0.002)
    time.sleep(random.uniform(0, 3 * pace))  # somewhere in a step, a validation, or a file
    if ended(child) is not None:
        return None
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for name in ("best.tfx", "last.tfx"):
        if (out / name).exists():
            assert Bundle.open(out / name).weights()
    if not checkpoints(out):
        return _last_step(out)
    step: int = load_newest(out)["trainer"]["step"]  # never torn
    assert step >= stood
    return _last_step(out) - step


def _last_step(out: Path) -> int:
    """Last complete row of the log."""
    if not (out / "log.csv").exists():
        return 0
    whole = (out / "log.csv").read_bytes().rpartition(b"\n")[0].splitlines()
    return int(whole[-1].split(b",")[0]) if len(whole) > 1 else 0
