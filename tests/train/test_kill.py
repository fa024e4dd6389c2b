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
    train(config, tmp_path / "whole", device=torch.device("cpu"))
    out = tmp_path / "run"
    random = np.random.default_rng(0)
    kills = lost = 0
    for goal in random.integers(0, 2 * STEPS // KILLS, KILLS):
        stood = len(checkpoints(out)) and load_newest(out)["trainer"]["step"]
        child = begin(config, out)
        while _last_step(out) < stood + goal:  # the log is cut to where the checkpoint stands, then grows
            assert ended(child) is None
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.3))  # somewhere in a step, a validation, or a file
        if ended(child) is not None:
            break
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        if checkpoints(out):
            state = load_newest(out)  # never torn
            lost = max(lost, _last_step(out) - state["trainer"]["step"])
            assert state["trainer"]["step"] >= stood
        for name in ("best.tfx", "last.tfx"):
            if (out / name).exists():
                assert Bundle.open(out / name).weights()
    train(config, out, device=torch.device("cpu"), resume=bool(checkpoints(out)))
    assert kills >= 20
    assert lost <= EVERY
    assert log_rows(out) == log_rows(tmp_path / "whole")
    for name in ("best.tfx", "last.tfx"):
        assert Bundle.open(out / name).digest == Bundle.open(tmp_path / "whole" / name).digest
    assert not [path.name for path in out.rglob("*") if "partial" in path.name]
    print(f"{kills} kills, at most {lost} steps done again")


def _last_step(out: Path) -> int:
    """Last complete row of the log."""
    if not (out / "log.csv").exists():
        return 0
    whole = (out / "log.csv").read_bytes().rpartition(b"\n")[0].splitlines()
    return int(whole[-1].split(b",")[0]) if len(whole) > 1 else 0
