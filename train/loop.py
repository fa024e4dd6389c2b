"""The training loop: from a configuration to bundles, resumable at any validation.

run/
  config.json   the resolved configuration
  last.ckpt     weights, average, optimiser, step: what --resume needs
  best.tfx      bundle of the average with the best validation SDR
  last.tfx      bundle of the average at the last validation
  log.csv       one row per log interval;  events.*  the same for TensorBoard
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tfswa.runtime.bundle import Bundle
from tfswa.runtime.errors import BundleError, ConfigError, TrainingError, UsageError
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.spec import ChunkSpec, ModelSpec
from tfswa.train.config import OptimConfig, TrainConfig
from tfswa.train.data.chunks import Chunks
from tfswa.train.data.songs import Song, load_songs
from tfswa.train.families import SeparationNetwork, build_network, get_family, new_spec
from tfswa.train.losses import SeparationLoss
from tfswa.train.reference import separate_whole
from tfswa.train.spectral import TorchStft

log = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
LOG = "log.csv"


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told after each step.

    Attributes:
        step: steps done; of ``steps``.
        steps: steps in all.
        loss: of this step.
        audio_seconds_per_second: audio trained on per second of wall clock, since the last report.
        sdr_db: validation SDR per stem, where this step validated.
    """

    step: int
    steps: int
    loss: float
    audio_seconds_per_second: float
    sdr_db: dict[str, float] | None = None


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, float]:
    """Train as configured and write bundles into ``out``.

    Args:
        config: the whole configuration.
        out: folder of the run.
        device: where to train.
        resume: go on from ``out/last.ckpt``; on a CPU the losses equal an uninterrupted run's exactly.
        report: called after every step.

    Returns:
        Validation SDR in dB per stem at the end; empty where no song is held out.

    Raises:
        ConfigError: data or network do not fit the configuration, or there is a run already.
        UsageError: ``out`` cannot be written.
        TrainingError: loss or gradient are not finite, or the checkpoint is missing or damaged.
    """
    spec = training_spec(config)
    songs, held_out = load_songs(config.data, spec.stft.sample_rate, spec.channels)
    run = Run(config, spec, songs, held_out, out, device)
    if resume:
        run.restore()
    else:
        run.start()
    return run.run(report)


def training_spec(config: TrainConfig) -> ModelSpec:
    """Spec of the model that a configuration trains, chunked as its family is made for."""
    family = get_family(config.model.family)
    return new_spec(
        family.name,
        stems=config.model.stems,
        hyper=config.model.hyper,
        residual_stem=config.model.residual_stem or None,
        weights_licence=config.model.licence,
    )


class Run:
    """One training run: network, its average, optimiser, data, and where they stand."""

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        songs: list[Song],
        held_out: list[Song],
        out: Path,
        device: torch.device,
    ):
        self.config, self.spec, self.held_out, self.out, self.device = config, spec, held_out, out, device
        try:
            ChunkSpec(frames=config.optim.frames, context=0, fade=0, multiple=spec.chunk.multiple)
        except BundleError as error:
            raise ConfigError(f"optim.frames: {error}") from error
        self.samples = (config.optim.frames - 1) * spec.stft.hop
        seed = config.optim.seed
        self.chunks = Chunks(songs, spec.stems, config.data, config.augment, self.samples, seed)
        torch.manual_seed(seed)
        self.network = build_network(spec).to(device)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay
        )
        self.loss = SeparationLoss(config.loss, device)
        self.stft = TorchStft(spec.stft, device)
        self.step, self.best = 0, -math.inf
        self.sdr: dict[str, float] = {}

    def start(self) -> None:
        """Begin a new run: fix the input statistics, write the configuration."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.out} cannot be made ({error.strerror}): choose another -o") from error
        if (self.out / CHECKPOINT).exists():
            raise ConfigError(f"{self.out} holds a run already: go on with --resume, or choose another -o")
        (self.out / LOG).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        self._set_statistics()
        self.average.load_state_dict(self.network.state_dict())
        (self.out / "config.json").write_text(json.dumps(self.config.to_dict(), indent=1) + "\n")

    def restore(self) -> None:
        """Go on from the last checkpoint."""
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise TrainingError(f"{path} is missing: nothing to resume")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            then = json.loads(state["config"])["model"]
        except Exception as error:  # torch.load has no error of its own for damage
            reason = str(error).strip().splitlines()[:1]
            raise TrainingError(f"{path} cannot be read ({''.join(reason)}): start anew") from error
        now = self._config_json()["model"]
        if then != now:
            raise ConfigError(f"{path} was made with model {then}, the configuration says {now}")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.sdr = state["step"], state["best"], state["sdr"]
        self._forget_later_rows()

    def run(self, report: Callable[[Progress], None]) -> dict[str, float]:
        """Train to the last step."""
        from torch.utils.tensorboard import SummaryWriter

        optim, every = self.config.optim, self.config.run
        clock, since = time.perf_counter(), self.step
        with SummaryWriter(str(self.out), purge_step=self.step + 1) as board:
            for stems in self._batches():
                rate = learning_rate(self.step, optim)
                loss, parts, norm = self._optimise(stems, rate)
                self.step += 1
                audio = (self.step - since) * optim.batch * self.samples / self.spec.stft.sample_rate
                speed = audio / (time.perf_counter() - clock)
                if self.step % every.log_every == 0:
                    row = {"loss": loss, **parts, "lr": rate, "gradient_norm": norm, "x_realtime": speed}
                    self._write_log(board, row)
                    clock, since = time.perf_counter(), self.step
                checked = self.step % every.validate_every == 0 or self.step == optim.steps
                if checked:
                    self._validate_and_save(board)
                    clock, since = time.perf_counter(), self.step
                report(Progress(self.step, optim.steps, loss, speed, dict(self.sdr) if checked else None))
        return self.sdr

    def _batches(self) -> Iterator[Tensor]:
        """Batches from where the run stands to its end."""
        optim = self.config.optim
        indices = range(self.step * optim.batch, optim.steps * optim.batch)
        loader = DataLoader(
            self.chunks,
            batch_size=optim.batch,
            sampler=indices,
            num_workers=self.config.data.workers,
            multiprocessing_context="fork" if self.config.data.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _optimise(self, stems: Tensor, rate: float) -> tuple[float, dict[str, float], float]:
        """One step on true stems ``[B, S, C, N]``."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        stems = stems.to(self.device, non_blocking=True)
        loss, parts = self._loss(stems)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"loss is {float(loss.detach())} at step {self.step}: lower optim.lr; batch of chunks "
                f"{self.step * self.config.optim.batch} and following, seed {self.config.optim.seed}"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip)
        if not bool(torch.isfinite(norm)):
            raise TrainingError(f"gradient norm is {float(norm)} at step {self.step}: lower optim.lr")
        self.optimiser.step()
        # Early on the average forgets faster, or it would hold the untrained weights for long.
        decay = min(self.config.optim.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for kept, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
                kept.copy_(current)  # running statistics, where a family has them
        return float(loss.detach()), parts, float(norm)

    def _loss(self, stems: Tensor) -> tuple[Tensor, dict[str, float]]:
        true_planes, nyquist = self.stft.forward(stems)
        mixture = true_planes.sum(dim=1)
        bf16 = self.config.optim.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            planes = self.network(mixture).float()
        wave = None
        if self.loss.needs_waveform:
            wave = self.stft.inverse(planes, torch.zeros_like(nyquist), self.samples)
        return self.loss(planes, true_planes, wave, stems)

    def _set_statistics(self) -> None:
        """Mean and standard deviation of the features per bin over a few batches of the mixture."""
        network = cast(SeparationNetwork, self.network)
        total = square = torch.zeros(self.spec.stft.bins, dtype=torch.float64)
        count = 0
        for index in range(self.config.run.statistics_batches * self.config.optim.batch):
            planes, _ = self.stft.forward(self.chunks[index].sum(dim=0)[None].to(self.device))
            features = network.features(planes).double().cpu()
            total = total + features.sum(dim=(0, 1, 2))
            square = square + features.square().sum(dim=(0, 1, 2))
            count += features[..., 0].numel()
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        network.set_statistics(mean.float().to(self.device), std.float().to(self.device))

    def _validate_and_save(self, board: Any) -> None:
        self.sdr = self.validate()
        for stem, value in self.sdr.items():
            board.add_scalar(f"sdr_db/{stem}", value, self.step)
        score = float(np.mean(list(self.sdr.values()))) if self.sdr else float(self.step)
        best = score > self.best
        self.best = max(self.best, score)
        log.info("step %d: validation SDR %s", self.step, {k: round(v, 2) for k, v in self.sdr.items()})
        for name in ("last.tfx", "best.tfx") if best else ("last.tfx",):
            self._save_bundle(self.out / name)
        self._save_checkpoint()

    def validate(self) -> dict[str, float]:
        """SDR in dB per stem of the average, mean over held-out songs (u)."""
        scores: dict[str, list[float]] = {stem: [] for stem in self.spec.stems}
        for song in self.held_out:
            stems = self._excerpt(song)
            estimate = separate_whole(
                self.average, self.spec, torch.from_numpy(stems.sum(axis=0)), self.device
            ).numpy()
            for index, stem in enumerate(self.spec.stems):
                value = sdr_db(stems[index], estimate[index])
                if value is not None:
                    scores[stem].append(value)
        return {stem: float(np.mean(values)) for stem, values in scores.items() if values}

    def _excerpt(self, song: Song) -> np.ndarray[Any, np.dtype[np.float32]]:
        """True stems ``[S, C, N]`` from the middle of a song."""
        wanted = self.config.run.validation_seconds or math.inf
        length = int(min(song.samples, wanted * self.spec.stft.sample_rate))
        start = (song.samples - length) // 2
        groups = [self.config.data.sources[stem] for stem in self.spec.stems]
        cut = slice(start, start + length)
        stems = [np.sum([song.sources[source][:, cut] for source in group], axis=0) for group in groups]
        return np.stack(stems).astype(np.float32)

    def _save_bundle(self, path: Path) -> None:
        weights = {name: value.cpu().numpy() for name, value in self.average.state_dict().items()}
        provenance = {
            "command": "tfx train",
            "step": self.step,
            "torch": torch.__version__,
            "validation_sdr_db": self.sdr,
            "config": self._config_json(),
        }
        Bundle.create(path, self.spec, weights, provenance=provenance, force=True)

    def _config_json(self) -> dict[str, Any]:
        """Return the configuration as it reads back from JSON (tuples become lists)."""
        return cast(dict[str, Any], json.loads(json.dumps(self.config.to_dict())))

    def _save_checkpoint(self) -> None:
        state = {
            "config": json.dumps(self.config.to_dict()),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "sdr": self.sdr,
        }
        work = self.out / f".{CHECKPOINT}.partial-{os.getpid()}"
        try:
            torch.save(state, work)
            os.replace(work, self.out / CHECKPOINT)
        finally:
            work.unlink(missing_ok=True)

    def _write_log(self, board: Any, row: dict[str, float]) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, self.step)
        path = self.out / LOG
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, ["step", *row])
            if fresh:
                writer.writeheader()
            writer.writerow({"step": self.step, **row})

    def _forget_later_rows(self) -> None:
        """Drop what was logged after the checkpoint: those steps are done again."""
        path = self.out / LOG
        if path.exists():
            header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
            kept = (row for row in rows if row.endswith(b"\n") and int(row.split(b",")[0]) <= self.step)
            path.write_bytes(b"".join((header, *kept)))


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Linear warm-up to ``lr``, then a cosine down to ``lr_end`` at the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return optim.lr_end + 0.5 * (optim.lr - optim.lr_end) * (1 + math.cos(math.pi * done))
