"""The training loop: from a configuration to bundles, in one process or many, resumable after any kill.

run/
  config.json            the resolved configuration
  checkpoints/           the newest few: what --resume goes on from
  best.tfx, last.tfx     bundles of the average: best validation SDR, last validation
  log.csv, validation.csv, loss.png, events.*            what people watch (watch.py)
  nonfinite-<step>.json  the chunks of a batch whose loss or gradient was not finite
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import BundleError, ConfigError, TrainingError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.plots import pictures
from tfswa.train import checkpoint
from tfswa.train.adapting import adapt, merged
from tfswa.train.attention import attention_maps
from tfswa.train.config import TrainConfig, steps_of
from tfswa.train.config_files import RUN_CONFIG, run_config_text
from tfswa.train.curriculum import Curriculum
from tfswa.train.data.chunks import Chunks
from tfswa.train.data.loader import Batch, batches
from tfswa.train.data.songs import TrainingSong, load_training_songs
from tfswa.train.families import SeparationNetwork, build_network, get_family, new_spec
from tfswa.train.families.contract import check_trainable, features_of, statistics_of, takes_statistics
from tfswa.train.lock import RunLock
from tfswa.train.meter import Meter
from tfswa.train.ranks import process_rank
from tfswa.train.scale import new_fabric
from tfswa.train.schedule import Schedule
from tfswa.train.strict import config_from_dict
from tfswa.train.tasks import Separation, initialize, new_task
from tfswa.train.trainer import NotFinite, Trainer
from tfswa.train.watch import Watch

PICTURE_SECONDS = 10.0


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress callback is told after each step, in the first process.

    Attributes:
        step: steps done; of ``steps``.
        steps: steps in all.
        loss: of this step's whole batch.
        audio_seconds_per_second: audio trained on per second, since the last row of the log.
        scores: validation scores by name (SDR in dB per stem), where this step validated.
        left_out: of these, how many held-out songs have no score of that name: the stem is silent there.
    """

    step: int
    steps: int
    loss: float
    audio_seconds_per_second: float
    scores: dict[str, float] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    report: Callable[[TrainingProgress], None] = lambda progress: None,
    doing: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, float]:
    """Train as configured and write into ``out``; under torchrun, together with the other processes.

    Args:
        config: the whole configuration.
        out: folder of the run.
        device: where to train.
        resume: go on from the newest checkpoint, made by any number of processes; on a CPU and with the
            same number the losses equal an uninterrupted run's exactly.
        report: called after every step, in the first process alone.
        doing: called during other work, in every process: what, how much is done, of how much.

    Returns:
        Validation scores at the end, by name; empty where no song is held out.

    Raises:
        ConfigError: data or network do not fit the configuration, or there is a run already.
        UsageError: ``out`` cannot be written, or another process trains there.
        TrainingError: loss or gradient are not finite, a checkpoint cannot be read or written.
    """
    if not resume and checkpoint.checkpoints(out):
        raise ConfigError(f"{out} holds a run already: go on with --resume, or choose another -o")
    if resume and not checkpoint.checkpoints(out):
        raise TrainingError(f"{out / checkpoint.FOLDER} holds no checkpoint: nothing to resume")
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(out)) if process_rank() == 0 else None
        run = Run(config, out, device, doing, check=lock.check if lock is not None else lambda: None)
        if resume:
            run.restore()
        else:
            run.start()
        return run.run(report)


def training_spec(config: TrainConfig) -> ModelSpec:
    """Spec of the model that a configuration trains, chunked as its family is made for."""
    family, model = get_family(config.model.family), config.model
    try:
        stft = config_from_dict(StftSpec, {**asdict(family.stft), **model.stft}, "model.stft.")
        chunk = config_from_dict(ChunkSpec, {**asdict(family.chunk), **model.chunk}, "model.chunk.")
    except BundleError as error:  # numbers that contradict each other
        raise ConfigError(str(error)) from error
    return new_spec(
        family.name,
        stems=config.model.stems,
        channels=model.channels,
        hyper=config.model.hyper,
        stft=stft,
        chunk=chunk,
        residual_stem=config.model.residual_stem or None,
        network_stems=config.model.network_stems or None,
        unseen_stem=None if model.zero_unseen else "",
        weights_license=config.model.license,
    )


class Run:
    """One training run: what is trained on, when what is done, what is written.

    Args:
        config: the whole configuration.
        out: folder of the run; nothing is written before ``start`` or ``restore``.
        device: where to train.
        doing: see ``train``.
        check: called before anything is written; raises where the folder is not what it was.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: torch.device,
        doing: Callable[[str, int, int], None] = lambda what, done, total: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.config, self.out, self.doing, optim = config, out, doing, config.optim
        self.check = check
        if config.run.pictures:
            pictures.require_matplotlib()  # now rather than at the first validation
        self.spec = training_spec(config)
        self.curriculum = Curriculum(config, self.spec)
        rate = self.spec.stft.sample_rate
        self.fabric, autocast = new_fabric(device, optim)
        self.first, self.device = self.fabric.is_global_zero, self.fabric.device
        with self.fabric.rank_zero_first(local=True):  # one process decodes, the others find it decoded
            songs, self.held_out = load_training_songs(
                config.data, rate, self.spec.channels, partial(doing, "decoding")
            )
        self.task = new_task(config, self.spec, self.device)
        names = tuple(config.data.sources) if config.pretrain.share else self.spec.stems
        self.chunks = Chunks(
            songs, self.task.groups, config.data, config.augment, rate, optim.seed, stems=names
        )
        self.epoch_steps = _epoch_steps(songs, self.curriculum.samples, optim.batch)
        self.curriculum.fix(self.epoch_steps)
        self.chunks.check(self.curriculum.longest)
        self.schedule = Schedule(optim, self.epoch_steps)
        torch.manual_seed(optim.seed)
        network = build_network(self.spec)
        check_trainable(
            network,
            config.model.family,
            pretraining=config.pretrain.share > 0,
            checkpointing=optim.checkpointing,
        )
        self.given = initialize(network, config.model) if config.model.init else []
        adapt(network, config.model)
        self.trainer = Trainer(network, self.task, optim, rate, self.fabric, autocast)
        self.best = -math.inf
        self.scores: dict[str, float] = {}
        self.left_out: dict[str, int] = {}

    def start(self) -> None:
        """Begin a new run: fix the input statistics, write the configuration."""
        network = self.trainer.network
        if takes_statistics(network) and statistics_of(network) not in self.given:
            self._set_statistics()
        if self.first:
            sweep(self.out)
            self._write_config()

    def restore(self) -> None:
        """Go on from the newest checkpoint."""
        state = checkpoint.load_newest(self.out)
        try:
            self._check_same_model(parse_json(state["config"])["model"])
            self.trainer.restore(state["trainer"])
            self.schedule.restore(state["schedule"])
            self.best, self.scores = float(state["best"]), dict(state["scores"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = (
                f"has no {error}" if isinstance(error, KeyError) else f"does not fit ({reason(error)[:200]})"
            )
            raise TrainingError(
                f"the newest checkpoint of {self.out} {what}: another version of tfx wrote it, "
                "resume with that one, or start anew elsewhere"
            ) from error
        if self.first:
            sweep(self.out)
            sweep(self.out / checkpoint.FOLDER)
            self._write_config()  # --resume alone goes on with what was said last

    def _check_same_model(self, then: Mapping[str, Any]) -> None:
        """Compare the model that a checkpoint is of with the one that is asked for."""
        now = self._config_json()["model"]
        for key in sorted(now.keys() | then.keys()):
            if not key.startswith("init") and then.get(key) != now.get(key):
                raise ConfigError(
                    f"the run in {self.out} has model.{key} {then.get(key)!r}, the configuration says "
                    f"{now.get(key)!r}: resume with the same model, or start anew elsewhere"
                )

    def run(self, report: Callable[[TrainingProgress], None]) -> dict[str, float]:
        """Train to the last step."""
        log_every, validate_every, save_every = (
            steps_of(duration, self.epoch_steps)
            for duration in (
                self.config.run.log_every,
                self.config.run.validate_every,
                self.config.run.checkpoint_every,
            )
        )
        last, meter = self.schedule.steps, Meter(self.spec.stft.sample_rate)
        with ExitStack() as stack:
            watch = self._watch(stack) if self.first else None
            for batch in meter.timed(self._batches()):
                step = self.trainer.step + 1
                logs = step % log_every == 0 or step == last
                row = self._step(batch, logs)
                self.check()
                meter.add(row, batch, self.config.optim.batch)
                speed = meter.audio_seconds_per_second
                if logs:
                    if watch is not None:
                        watch.scalars(step, {**meter.row(), "skipped": self.trainer.skipped})
                    meter.reset()
                validates = step % validate_every == 0 or step == last
                if validates:
                    self._validate(watch)
                if validates or step % save_every == 0:
                    self._save()
                if self.first:
                    scores = dict(self.scores) if validates else None
                    report(TrainingProgress(step, last, row["loss"], speed, scores, self.left_out))
        return self.scores

    def _watch(self, stack: ExitStack) -> Watch:
        project, done = self.config.run.wandb, self.trainer.step
        return stack.enter_context(Watch(self.out, done, wandb=project, config=self._config_json()))

    def _batches(self) -> Iterator[Batch]:
        """Load this process's share of every batch, from where the run stands to its end."""
        whole = self.config.optim.batch
        share = whole // self.fabric.world_size
        begin = self.fabric.global_rank * share

        def keys() -> Iterator[list[tuple[int, int]]]:
            for step in range(self.trainer.step, self.schedule.steps):
                samples = self.curriculum.phase(step).samples
                yield [(step * whole + begin + item, samples) for item in range(share)]

        return batches(self.chunks, keys(), self.config.data.workers, self.device.type == "cuda")

    def _step(self, batch: Batch, logs: bool) -> dict[str, float]:
        """One step; a batch that is not finite is described in a file before the training stops."""
        step = self.trainer.step
        phase = self.curriculum.phase(step)
        self.task.leave_out(phase.loss_without)
        try:
            return self.trainer.train(batch, self.schedule.rate(step), phase.bandwidth_hz, logs)
        except NotFinite as error:
            path = self.out / f"nonfinite-{step}.json"
            if self.first:
                whole = self.config.optim.batch
                plans = [
                    self.chunks.plan(index, phase.samples).to_dict()
                    for index in range(step * whole, (step + 1) * whole)
                ]
                with writing(path) as stream:
                    stream.write(
                        json.dumps({"step": step, "why": str(error), "chunks": plans}, indent=1).encode()
                    )
            raise TrainingError(
                f"{error} at step {step}: lower optim.lr, or set optim.nonfinite=skip; "
                f"the batch is described in {path}"
            ) from error

    def _set_statistics(self) -> None:
        """Mean and standard deviation of the features per bin over a few batches of the mixture."""
        network = cast(SeparationNetwork, self.trainer.network)
        total = square = torch.zeros(self.spec.stft.bins, dtype=torch.float64)
        count = 0
        chunks = self.config.run.statistics_batches * self.config.optim.batch
        for index in range(chunks):
            self.doing("input statistics", index, chunks)
            mixture = self.chunks[index, self.curriculum.samples].stems.sum(dim=0)[None]
            planes, _ = self.task.stft.forward(mixture.to(self.device))
            features = features_of(self.trainer.network, planes).double().cpu()
            total = total + features.sum(dim=(0, 1, 2))
            square = square + features.square().sum(dim=(0, 1, 2))
            count += features[..., 0].numel()
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        network.set_statistics(mean.float().to(self.device), std.float().to(self.device))

    def _validate(self, watch: Watch | None) -> None:
        """Score the average on the held-out songs, shared among the processes; keep it as bundles."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        sharded = self.config.optim.strategy == "fsdp"  # every process takes part in every forward
        with self.trainer.averaged() as network:
            mine = self.held_out if sharded else self.held_out[rank::world]
            scores = []
            for index, song in enumerate(mine):
                self.doing("validating", index, len(mine))
                scores.append(self.task.validate(network, song))
            if self.config.run.pictures and isinstance(self.task, Separation):
                for song in self.held_out[:1]:
                    self._show(watch, self.task, network, song)
            weights = merged(self.trainer.weights())
        if world > 1 and not sharded:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, scores)
            scores = [score for share in shares for score in share]
        self.scores = _mean(scores)
        self.left_out = _left_out(self.task.names, scores)
        # With nothing to score the newest is the best.
        score = float(np.mean(list(self.scores.values()))) if self.scores else float(self.trainer.step)
        score = -math.inf if math.isnan(score) else score
        self.schedule.validated(score)
        best, self.best = score > self.best, max(score, self.best)
        if self.first:
            self.check()
            self.task.save(self.out, weights, self._provenance(), best)
        if watch is not None and self.scores:
            watch.scores(self.trainer.step, self.scores)

    def _show(self, watch: Watch | None, task: Separation, network: nn.Module, song: TrainingSong) -> None:
        """Audio, spectrograms and attention of a few seconds of a song; every process computes them."""
        stems = task.excerpt(song, PICTURE_SECONDS)
        mixture = stems.sum(axis=0)
        estimate = task.separate(network, stems)
        length = self.spec.chunk_samples
        chunk = np.pad(mixture[:, :length], ((0, 0), (0, max(0, length - mixture.shape[1]))))
        planes, _ = task.stft.forward(torch.from_numpy(chunk)[None].to(self.device))
        maps = attention_maps(network, planes)
        if watch is None:
            return
        audio = {"mixture": mixture}
        for index, stem in enumerate(self.spec.stems):
            audio[f"{stem} true"], audio[stem] = stems[index], estimate[index].astype(np.float32)
        watch.listen(self.trainer.step, self.spec.stft.sample_rate, audio)
        watch.look(self.trainer.step, maps)

    def _write_config(self) -> None:
        with writing(self.out / RUN_CONFIG) as stream:
            stream.write(run_config_text(self.config).encode())

    def _provenance(self) -> dict[str, Any]:
        return {
            "command": "tfx train",
            "step": self.trainer.step,
            "torch": torch.__version__,
            "validation": self.scores,
            "validation_left_out": self.left_out,
            "config": self._config_json(),
        }

    def _config_json(self) -> dict[str, Any]:
        """Return the configuration as it reads back from JSON (tuples become lists)."""
        return cast(dict[str, Any], json.loads(json.dumps(self.config.to_dict())))

    def _save(self) -> None:
        """Write a checkpoint; every process takes part, the first one writes."""
        state = {
            "config": json.dumps(self.config.to_dict()),
            "trainer": self.trainer.state(),
            "schedule": self.schedule.state(),
            "best": self.best,
            "scores": self.scores,
        }
        if self.first:
            self.check()
            checkpoint.save(self.out, self.trainer.step, state, self.config.run.keep)
        self.fabric.barrier()


def _epoch_steps(songs: Sequence[TrainingSong], samples: int, batch: int) -> int:
    """Steps in which as many chunks are trained on as the songs hold end to end.

    Raises:
        ConfigError: a batch is more than there is.
    """
    chunks = sum(song.samples for song in songs) // samples
    if chunks < batch:
        raise ConfigError(
            f"optim.batch {batch} is more than the {chunks} chunks that the training songs hold: "
            "lower optim.batch or optim.frames, or add songs"
        )
    return chunks // batch


def _left_out(names: Sequence[str], scores: Sequence[dict[str, float]]) -> dict[str, int]:
    """Count the songs without a score of a name, where there are any."""
    counts = {name: sum(name not in score for score in scores) for name in names}
    return {name: count for name, count in counts.items() if count}


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: float(np.mean([score[name] for score in scores if name in score])) for name in names}
