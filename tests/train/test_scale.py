"""Several processes: the same losses as one, whatever the strategy, and a resume by another number of them.

Real processes of gloo on this machine, started by torchrun as a user starts them.
"""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: training needs it")

from tfswa.runtime.model.bundle import Bundle
from tfswa.train.checkpoint import checkpoints, load_newest

TOLERANCE = 1e-5  # relative: the mean of two means is rounded elsewhere than the mean of all

CONFIG = """
[model]
family = "tfswa_lite"
license = "MIT"
hyper = {{dims = [8, 16], depths = [1, 1], decoder_depths = [1], heads = [1, 2], window = 4, fold = 16}}
[data]
root = "{root}"
validation = ["C"]
workers = 0
[augment]
speed = 0.5
[loss]
waveform_l1 = 0.1
[optim]
length = 6
batch = 4
frames = 64
lr = 3e-3
warmup = 2
ema = 0.9
[run]
log_every = 1
validate_every = 6
checkpoint_every = 3
validation_seconds = 3
statistics_batches = 1
pictures = false
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, song_root: Path) -> Path:
    path = tmp_path_factory.mktemp("scale") / "run.toml"
    path.write_text(CONFIG.format(root=song_root))
    return path


@dataclass
class Runs:
    """Whole runs, each made once; read only."""

    config: Path
    printed: dict[Path, str] = field(default_factory=dict)

    def of(self, processes: int = 1, strategy: str = "ddp") -> Path:
        out = self.config.parent / f"{processes}-{strategy}"
        if out not in self.printed:
            several = [f"optim.strategy={strategy}"] if processes > 1 else []
            self.printed[out] = train(self.config, out, *several, processes=processes)
        return out


@pytest.fixture(scope="module")
def runs(config: Path) -> Runs:
    return Runs(config)


def train(config: Path, out: Path, *arguments: str, processes: int = 1) -> str:
    """Run ``tfx train`` to its end; return what it printed."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [*start, "tfswa.runtime", "train", str(config), *arguments, "-o", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def column(out: Path, name: str, file: str = "log.csv") -> list[float]:
    with (out / file).open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


@pytest.mark.slow
def test_two_processes_train_as_one(runs: Runs) -> None:
    one, two, sharded = runs.of(), runs.of(2), runs.of(2, "fsdp")
    assert runs.printed[two].count("written:") == 1  # by the first process alone
    for out in (two, sharded):
        for name in ("loss", "spectrogram_l1", "waveform_l1", "gradient_norm"):
            expected = column(one, name)
            assert len(expected) == 6
            assert column(out, name) == pytest.approx(expected, rel=TOLERANCE), (out.name, name)
        for stem in ("vocals", "accompaniment"):
            scores = column(one, stem, "validation.csv")
            assert column(out, stem, "validation.csv") == pytest.approx(scores, abs=1e-3)
        assert [path.name for path in checkpoints(out)] == ["00000003.ckpt", "00000006.ckpt"]
        assert Bundle.open(out / "best.tfx").provenance["step"] == 6
        assert not [path.name for path in out.rglob("*") if "partial" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "strategy"), [(2, 1, "ddp"), (1, 2, "fsdp"), (2, 1, "fsdp")])
def test_another_number_of_processes_goes_on(
    runs: Runs, tmp_path: Path, before: int, after: int, strategy: str
) -> None:
    whole, halves = runs.of(), tmp_path / "halves"
    several = f"optim.strategy={strategy}"
    shutil.copytree(runs.of(before, strategy if before > 1 else "ddp"), halves)
    checkpoints(halves)[-1].unlink()  # as if it had been killed after its third step
    train(runs.config, halves, "--resume", *([several] if after > 1 else []), processes=after)
    assert column(halves, "loss") == pytest.approx(column(whole, "loss"), rel=TOLERANCE)
    one, two = load_newest(whole)["trainer"], load_newest(halves)["trainer"]
    assert one["step"] == two["step"] == 6
    for name, value in one["average"].items():
        assert two["average"][name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
def test_two_machines_train_as_one(runs: Runs, tmp_path: Path) -> None:
    """Two torchruns that meet at an address, as on two machines, though both are here."""
    two = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", *meeting)
    command = ("tfswa.runtime", "train", str(runs.config), "-o", str(two))
    machines = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={rank}", "-m", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for machine in machines:
        _, error = machine.communicate(timeout=600)
        assert machine.returncode == 0, error[-3000:]
    assert column(two, "loss") == pytest.approx(column(runs.of(), "loss"), rel=TOLERANCE)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_by_all(config: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"optim\.batch 3 is not a multiple of 2, 2 processes x 1"):
        train(config, tmp_path / "run", "optim.batch=3", processes=2)
    assert not (tmp_path / "run").exists()
