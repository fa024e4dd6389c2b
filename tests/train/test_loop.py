"""The loop: it learns, goes on exactly where it stood, and never loses a good checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import BundleError, ConfigError, TrainingError, UsageError
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("tensorboard", reason="tensorboard is not installed: training writes its events")

from tfswa.train import checkpoint, loop  # noqa: E402
from tfswa.train import trainer as trainer_module  # noqa: E402
from tfswa.train.backend import load_network  # noqa: E402
from tfswa.train.config import (  # noqa: E402
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
    RunConfig,
    SetConfig,
    TrainConfig,
)
from tfswa.train.data.songs import load_training_songs  # noqa: E402
from tfswa.train.loop import TrainingProgress, train  # noqa: E402
from tfswa.train.reference import separate_whole  # noqa: E402
from tfswa.train.schedule import Schedule  # noqa: E402
from tfswa.train.tasks import Separation  # noqa: E402
from tfswa.train.trainer import Trainer  # noqa: E402

CPU = torch.device("cpu")
TIMINGS = ("x_realtime", "loader_wait_share", "loader_x_realtime_each")
Make = Callable[..., TrainConfig]


@pytest.fixture
def config(song_root: Path, tiny_family: str, tiny_hyper: dict[str, Any], private_cache: Path) -> TrainConfig:
    """Six steps, validated after the third and the sixth."""
    return TrainConfig(
        model=ModelConfig(family=tiny_family, hyper=tiny_hyper, license="MIT"),
        data=DataConfig(root=str(song_root), validation=("C",), cache=str(private_cache)),
        augment=AugmentConfig(remix=0.5, speed=1.0, speed_range=(0.9, 1.1), silence=0.05),
        loss=LossConfig(windows=(128, 512), waveform_l1=0.1),
        optim=OptimConfig(length=6, batch=2, frames=16, lr=3e-3, warmup=2, ema=0.9),
        run=RunConfig(
            log_every=1,
            validate_every=3,
            checkpoint_every=3,
            validation_seconds=1,
            statistics_batches=2,
            pictures=False,
        ),
    )


def changed(config: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    """``changed(config, optim={"length": 3})``."""
    parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **parts)


class Recorder:
    """Takes reports; raises after a step, as Ctrl-C or a full disk would."""

    def __init__(self, stop_after: int = -1):
        self.reports: list[TrainingProgress] = []
        self.stop_after = stop_after

    def __call__(self, progress: TrainingProgress) -> None:
        self.reports.append(progress)
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    @property
    def losses(self) -> dict[int, float]:
        return {report.step: report.loss for report in self.reports}


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``spoil(1, 4)``: the losses of these steps are NaN."""

    def spoil(*steps: int) -> None:
        real = Separation.loss
        indices = {2 * step for step in steps}

        def loss(self: Any, network: Any, signals: Any, given: Any) -> Any:
            value, parts = real(self, network, signals, given)
            return (value * torch.nan if given[0] in indices else value), parts

        monkeypatch.setattr(Separation, "loss", loss)

    return spoil


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(stream)]


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equal bit for bit, at every depth; a tuple may have come back as a list."""
    assert type(one) is type(two) or {type(one), type(two)} == {list, tuple}, where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == two, where


def newest(out: Path) -> Path:
    return checkpoint.checkpoints(out)[-1]


def trainer_state(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint.load_newest(out)["trainer"]
    return state


def assert_same_run(one: Path, two: Path) -> None:
    first, second = checkpoint.load_newest(one), checkpoint.load_newest(two)
    for state in (first, second):
        del state["config"]  # holds the number of loader processes
    assert_same(first, second)
    for name in ("best.tfx", "last.tfx"):
        assert Bundle.open(one / name).digest == Bundle.open(two / name).digest
    assert rows(one) == rows(two)


@pytest.mark.slow
def test_a_tiny_network_learns(config: TrainConfig, tmp_path: Path) -> None:
    told = Recorder()
    longer = changed(
        config,
        optim={"length": 60, "batch": 6, "lr": 1e-2, "warmup": 3, "ema": 0.8},
        augment={"silence": 0.0, "remix": 1.0, "gain": 0.0, "speed": 0.0},
        run={"validate_every": 60, "validation_seconds": 0},
    )
    scores = train(longer, tmp_path / "run", device=CPU, report=told)
    losses = np.array(list(told.losses.values()))
    assert losses[-10:].mean() < 0.75 * losses[:5].mean()
    assert scores.keys() == {"vocals", "accompaniment"}
    song = load_training_songs(config.data, 8000, 2)[1][0]
    vocals = song.sources["vocals"]
    rest = song.sources["drums"] + song.sources["bass"] + song.sources["other"]
    for stem, true in (("vocals", vocals), ("accompaniment", rest)):
        untrained = sdr_db(true, 0.5 * (vocals + rest))  # a mask of one half
        assert untrained is not None
        assert scores[stem] > untrained + 2.0


def test_what_a_run_leaves(config: TrainConfig, tmp_path: Path) -> None:
    told, out = Recorder(), tmp_path / "deep" / "run"
    scores = train(config, out, device=CPU, report=told)
    assert [report.step for report in told.reports] == [1, 2, 3, 4, 5, 6]
    assert [report.scores is not None for report in told.reports] == [False, False, True, False, False, True]
    assert all(report.steps == 6 and report.audio_seconds_per_second > 0 for report in told.reports)
    assert told.reports[-1].scores == scores
    assert scores.keys() == {"vocals", "accompaniment"}
    assert json.loads((out / "config.json").read_text())["optim"]["length"] == 6
    logged = rows(out)
    assert [int(row["step"]) for row in logged] == [1, 2, 3, 4, 5, 6]
    assert [float(row["loss"]) for row in logged] == list(told.losses.values())
    terms = ("spectrogram_l1", "multi_resolution_stft", "waveform_l1")
    for row in logged:
        assert sum(float(row[term]) for term in terms) == pytest.approx(float(row["loss"]), rel=1e-5)
        assert float(row["lr"]) == Schedule(config.optim, 1).rate(int(row["step"]) - 1)
        assert float(row["gradient_norm"]) > 0
    assert sum(path.stat().st_size for path in out.glob("events.out.tfevents.*")) > 500
    assert not [path.name for path in out.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("step", [1, 3])  # of a log alone, and of a checkpoint
def test_a_folder_that_becomes_a_link_meanwhile_is_noticed(
    config: TrainConfig, tmp_path: Path, step: int
) -> None:
    out, moved, outside = tmp_path / "run", tmp_path / "moved", tmp_path / "outside"
    outside.mkdir()

    def report(progress: TrainingProgress) -> None:
        if progress.step == step:
            out.rename(moved)
            out.symlink_to(outside)

    with pytest.raises(TrainingError, match="run was moved or replaced by another folder meanwhile"):
        train(config, out, device=torch.device("cpu"), report=report)
    assert not list(outside.iterdir())
    if step == 3:
        train(config, moved, device=torch.device("cpu"), resume=True)


def test_bundles_open_and_score_what_was_logged(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = Recorder()
    train(config, out, device=CPU, report=told)
    validated = [report.scores for report in told.reports if report.scores]
    best = max(validated, key=lambda scores: np.mean(list(scores.values())))
    song = load_training_songs(config.data, 8000, 2)[1][0]
    middle = slice((song.samples - 8000) // 2, (song.samples - 8000) // 2 + 8000)
    sources = {name: audio[:, middle] for name, audio in song.sources.items()}
    true = {
        "vocals": sources["vocals"],
        "accompaniment": sources["drums"] + sources["bass"] + sources["other"],
    }
    for name, scores in (("last.tfx", validated[-1]), ("best.tfx", best)):
        model = open_model(out / name)
        assert model.spec.weights_license == "MIT"
        assert model.bundle is not None
        assert model.bundle.provenance["validation"] == scores
        assert model.bundle.provenance["config"]["optim"]["lr"] == config.optim.lr
        mixture = np.asarray(true["vocals"] + true["accompaniment"])
        stems = separate_whole(load_network(model), model.spec, torch.from_numpy(mixture)).numpy()
        for stem, estimate in zip(model.spec.stems, stems, strict=True):
            assert sdr_db(true[stem], estimate) == pytest.approx(scores[stem], abs=1e-4)


def test_the_average_is_what_is_shipped(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run", device=CPU)
    state = trainer_state(tmp_path / "run")
    shipped = Bundle.open(tmp_path / "run" / "last.tfx").weights()
    name = "head.weight"
    assert torch.equal(state["average"][name], torch.from_numpy(shipped[name]))
    assert not torch.equal(state["average"][name], state["network"][name])
    raw = changed(config, optim={"ema": 0.0})
    train(raw, tmp_path / "raw", device=CPU)
    state = trainer_state(tmp_path / "raw")
    assert_same(state["average"], state["network"])


def test_the_average_is_the_recurrence(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    each = changed(config, run={"validate_every": 1})
    seen: list[tuple[Any, Any]] = []

    def look(progress: TrainingProgress) -> None:
        state = trainer_state(out)
        seen.append((state["network"]["head.bias"], state["average"]["head.bias"]))

    train(each, out, device=CPU, report=look)
    average = seen[0][1]
    for step, (network, found) in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * network
        torch.testing.assert_close(found, average)


def test_statistics_are_those_of_the_mixture(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run", device=CPU)
    weights = Bundle.open(tmp_path / "run" / "best.tfx").weights()
    run = loop.Run(config, tmp_path / "x", CPU)
    samples = run.curriculum.samples
    mixtures = torch.stack([run.chunks[index, samples].stems.sum(dim=0) for index in range(4)])
    features = run.trainer.network.features(run.task.stft.forward(mixtures)[0])
    np.testing.assert_allclose(weights["mean"], features.mean(dim=(0, 1, 2)).numpy(), atol=1e-4)
    expected = features.std(dim=(0, 1, 2), correction=0).numpy()
    np.testing.assert_allclose(weights["std"], expected, atol=1e-4)


@pytest.mark.parametrize("stop_after", [3, 4, 5])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    config: TrainConfig, tmp_path: Path, stop_after: int
) -> None:
    whole, halves = Recorder(), Recorder(stop_after)
    train(config, tmp_path / "whole", device=CPU, report=whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "halves", device=CPU, report=halves)
    rest = Recorder()
    torch.manual_seed(99)
    # Loader processes may differ: data is a function of the index alone.
    resumed = changed(config, data={"workers": 1})
    scores = train(resumed, tmp_path / "halves", device=CPU, resume=True, report=rest)
    assert [report.step for report in rest.reports] == [4, 5, 6]
    assert {**halves.losses, **rest.losses} == whole.losses
    assert scores == whole.reports[-1].scores
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_songs_that_lack_sources_train_and_resume_exactly(config: TrainConfig, tmp_path: Path) -> None:
    held_out = Path(config.data.root) / "C"
    for name, sources in (("voice", ("vocals",)), ("band", ("drums", "bass")), ("C", ())):
        (tmp_path / "songs" / name).mkdir(parents=True)
        for source in sources or ("vocals", "other"):
            shutil.copy(held_out / f"{source}.wav", tmp_path / "songs" / name)
    sets = tuple(SetConfig((name,), {"vocals": 1.0, "accompaniment": 1.0}) for name in ("voice", "band"))
    given = {"accompaniment": ("drums", "bass"), "vocals": ("vocals",)}
    data = {"root": str(tmp_path / "songs"), "partial": True, "sets": sets, "sources": given}
    config = changed(config, data=data, augment={"remix": 1.0, "balance": 0.5, "without": {"vocals": 0.2}})
    scores = train(config, tmp_path / "whole", device=CPU)
    assert scores.keys() == {"vocals"}  # of C's accompaniment there is nothing to compare with
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", device=CPU, report=Recorder(stop_after=3))
    train(config, tmp_path / "cut", device=CPU, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_term_of_the_loss_counts_from_the_end_of_its_phase(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, curriculum=(PhaseConfig(3, loss_without=("waveform_l1",)),))
    train(config, tmp_path / "run", device=CPU)
    found = [float(row["waveform_l1"]) for row in rows(tmp_path / "run")]
    assert found[:3] == [0.0] * 3
    assert all(value > 0 for value in found[3:])


def test_a_better_score_of_before_is_not_forgotten(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    scores = iter([{"vocals": 5.0}, {"vocals": 2.0}])
    monkeypatch.setattr(Separation, "validate", lambda self, network, song: next(scores))
    with pytest.raises(KeyboardInterrupt):
        train(config, out, device=CPU, report=Recorder(3))
    best = Bundle.open(out / "best.tfx").digest
    train(config, out, device=CPU, resume=True)
    assert Bundle.open(out / "best.tfx").digest == best
    assert Bundle.open(out / "last.tfx").digest != best
    assert Bundle.open(out / "best.tfx").provenance["step"] == 3


def test_resuming_a_finished_run_gives_its_scores_again(config: TrainConfig, tmp_path: Path) -> None:
    scores = train(config, tmp_path / "run", device=CPU)
    before = newest(tmp_path / "run").read_bytes()
    told = Recorder()
    assert train(config, tmp_path / "run", device=CPU, resume=True, report=told) == scores
    assert told.reports == []
    assert newest(tmp_path / "run").read_bytes() == before


def test_a_run_is_never_overwritten(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run", device=CPU)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds a run already: go on with --resume"):
        train(config, tmp_path / "run", device=CPU)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device=CPU, report=Recorder(2))
    train(config, tmp_path / "run", device=CPU)
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_there_must_be_something_to_resume(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoints holds no checkpoint: nothing to resume"):
        train(config, tmp_path / "run", device=CPU, resume=True)
    assert not (tmp_path / "run").exists()


def test_another_model_is_not_resumed(
    config: TrainConfig, tmp_path: Path, tiny_hyper: dict[str, Any]
) -> None:
    train(changed(config, optim={"length": 1, "warmup": 0}), tmp_path / "run", device=CPU)
    other = changed(config, model={"hyper": {**tiny_hyper, "mask": "complex"}})
    with pytest.raises(ConfigError, match=r"magnitude.*complex"):
        train(other, tmp_path / "run", device=CPU, resume=True)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(
    config: TrainConfig, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    train(config, out, device=CPU)
    newest(out).write_bytes(content)
    told = Recorder()
    train(config, out, device=CPU, resume=True, report=told)
    (line,) = [line for line in caplog.messages if "cannot be read" in line]
    assert "00000006.ckpt cannot be read" in line
    assert "going on from 00000003.ckpt" in line
    assert [report.step for report in told.reports] == [4, 5, 6]


def test_a_checkpoint_that_lacks_a_key_or_holds_another_type_is_one_line(
    config: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(changed(config, optim={"length": 1, "warmup": 0}), out, device=CPU)
    whole = checkpoint.load_newest(out)
    trainer = whole["trainer"]
    made = [{k: v for k, v in whole.items() if k != key} for key in whole]
    made += [{**whole, key: "x"} for key in whole]
    made += [
        {**whole, "trainer": {k: v for k, v in trainer.items() if k != key}} for key in ("network", "step")
    ]
    made += [{**whole, "trainer": {**trainer, key: []}} for key in ("network", "optimizer", "step")]
    made += [{**whole, "trainer": {**trainer, key: {}}} for key in ("network", "average", "optimizer")]
    made += [{**whole, "config": "[" * 100_000}, {**whole, "config": '{"model": []}'}]
    for state in made:
        checkpoint.save(out, 1, state, keep=1)
        with pytest.raises(TrainingError, match=r"newest checkpoint .* another version of tfx") as error:
            train(config, out, device=CPU, resume=True)
        assert "\n" not in str(error.value)


def test_a_checkpoint_with_code_in_it_is_not_run(config: TrainConfig, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    (tmp_path / "checkpoints").mkdir()
    torch.save({"config": Evil()}, tmp_path / "checkpoints" / "00000001.ckpt")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(config, tmp_path, device=CPU, resume=True)
    assert not (tmp_path / "pwned").exists()


def test_only_the_newest_checkpoints_are_kept(config: TrainConfig, tmp_path: Path) -> None:
    train(changed(config, run={"checkpoint_every": 1, "keep": 2}), tmp_path, device=CPU)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["00000005.ckpt", "00000006.ckpt"]


def test_a_full_disk_is_one_line_and_loses_nothing(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system takes 100 kB a file from the second checkpoint on."""
    out = tmp_path / "run"
    train(config, tmp_path / "whole", device=CPU)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = checkpoint.save

    def save(run: Path, step: int, state: Any, keep: int) -> Path:
        if step > 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            return real(run, step, state, keep)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(TrainingError, match=r"00000006\.ckpt cannot be written .*--resume") as error:
            train(config, out, device=CPU)
    assert "\n" not in str(error.value)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["00000003.ckpt"]
    train(config, out, device=CPU, resume=True)
    assert_same_run(tmp_path / "whole", out)


def test_a_run_whose_save_failed_can_be_resumed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole", device=CPU)
    with monkeypatch.context() as patch:
        real = loop.Run._save

        def save(self: Any) -> None:
            if self.trainer.step == 6:
                raise RuntimeError("killed")
            real(self)

        patch.setattr(loop.Run, "_save", save)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, tmp_path / "run", device=CPU)
    train(config, tmp_path / "run", device=CPU, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_trainings_do_not_share_a_folder(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as stream:
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import fcntl, time; fcntl.lockf(0, 2); print(flush=True); time.sleep(600)",
            ],
            stdin=stream,
            stdout=subprocess.PIPE,
        )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(UsageError, match="in use by another training"):
            train(config, out, device=CPU)
    finally:
        holder.kill()
        holder.communicate()
    train(changed(config, optim={"length": 1, "warmup": 0}), out, device=CPU)


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_step(config: TrainConfig, tmp_path: Path) -> None:
    wild = changed(config, optim={"lr": 1e30, "lr_end": 1e30, "warmup": 0, "schedule": "constant"})
    told = Recorder()
    with pytest.raises(TrainingError, match=r"loss is .* at step \d+: lower optim\.lr"):
        train(wild, tmp_path / "run", device=CPU, report=told)
    assert len(told.reports) < 4
    assert not checkpoint.checkpoints(tmp_path / "run")


@pytest.mark.parametrize("step", [0, 4])
def test_nan_from_the_loss_names_its_step_and_keeps_its_batch(
    config: TrainConfig, tmp_path: Path, spoil: Callable[..., None], step: int
) -> None:
    spoil(step)
    with pytest.raises(
        TrainingError, match=rf"loss is nan.* at step {step}: .*nonfinite-{step}\.json"
    ) as error:
        train(config, tmp_path, device=CPU)
    assert "\n" not in str(error.value)
    assert bool(checkpoint.checkpoints(tmp_path)) == (step > 3)
    batch = json.loads((tmp_path / f"nonfinite-{step}.json").read_text())
    assert [chunk["index"] for chunk in batch["chunks"]] == [2 * step, 2 * step + 1]
    assert all(chunk["sources"] for chunk in batch["chunks"])


def test_steps_that_are_not_finite_are_skipped_and_counted_where_asked_for(
    config: TrainConfig, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(1, 4)
    train(changed(config, optim={"nonfinite": "skip"}), tmp_path, device=CPU)
    logged = rows(tmp_path)
    assert [int(float(row["skipped"])) for row in logged] == [0, 1, 1, 1, 2, 2]
    assert [row["loss"] for row in logged].count("nan") == 2
    weights = Bundle.open(tmp_path / "last.tfx").weights()
    assert all(np.isfinite(value).all() for value in weights.values())
    assert trainer_state(tmp_path)["skipped"] == 2
    assert not list(tmp_path.glob("nonfinite-*"))


def test_skipping_forever_stops(
    config: TrainConfig, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SKIPS_IN_A_ROW", 3)
    spoil(1, 2, 3, 4)
    with pytest.raises(TrainingError, match="for 3 steps in a row at step 3"):
        train(changed(config, optim={"nonfinite": "skip"}), tmp_path, device=CPU)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(self: Any, batch: Any, bandwidth_hz: float) -> dict[str, float]:
        for parameter in self.network.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf)
        return {"loss": 1.0}

    monkeypatch.setattr(Trainer, "_backward", backward)
    run = loop.Run(config, tmp_path, CPU)
    before = run.trainer.weights()
    with pytest.raises(TrainingError, match="gradient norm inf at step 0"):
        run._step(next(iter(run._batches())), logs=False)
    assert_same(before, run.trainer.weights())


def test_without_held_out_songs_the_last_is_the_best(config: TrainConfig, tmp_path: Path) -> None:
    told = Recorder()
    assert train(changed(config, data={"validation": ()}), tmp_path, device=CPU, report=told) == {}
    assert Bundle.open(tmp_path / "best.tfx").digest == Bundle.open(tmp_path / "last.tfx").digest
    assert Bundle.open(tmp_path / "best.tfx").provenance["step"] == 6
    assert told.reports[-1].scores == {}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(config: TrainConfig, tmp_path: Path, precision: str) -> None:
    short = changed(config, optim={"length": 2, "precision": precision})
    train(short, tmp_path / "half", device=CPU)
    train(changed(short, optim={"precision": "fp32"}), tmp_path / "full", device=CPU)
    half, full = (float(rows(tmp_path / name)[0]["loss"]) for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optim": {"frames": 20}}, r"optim\.frames: chunk of 20 frames is not a multiple of 8: use 24"),
        ({"optim": {"frames": 360, "batch": 1}}, r"song 'A' has 48000 samples, a chunk needs"),
        ({"model": {"family": "tinny"}}, "unknown family 'tinny': did you mean 'tiny'"),
        ({"model": {"hyper": {"zzz": 1}}}, "no hyper-parameter 'zzz'"),
        ({"model": {"stems": ("a/b",)}}, r"stems .*file names"),
        ({"data": {"validation": ("Z",)}}, "song 'Z'"),
        (
            {"optim": {"batch": 500}},
            r"optim\.batch 500 is more than the \d+ chunks that the training songs hold",
        ),
        ({"optim": {"batch": 3, "accumulate": 2}}, r"optim\.batch 3 is not a multiple of 2"),
        ({"optim": {"warmup": 7}}, r"optim\.warmup 7 .* more than optim\.length"),
    ],
)
def test_what_does_not_fit_is_a_configuration_error_and_writes_nothing(
    config: TrainConfig, tmp_path: Path, changes: dict[str, dict[str, Any]], match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        train(changed(config, **changes), tmp_path / "run", device=CPU)
    assert not isinstance(error.value, BundleError)
    assert not (tmp_path / "run").exists()


def test_a_place_below_a_file_is_a_usage_error(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"file.*choose another -o"):
            train(config, out, device=CPU)


def test_silence_does_not_choose_the_best(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two songs are held out, vocals of one are at -80 dBFS: left out, counted, and said in the bundle."""
    real = Separation.excerpt

    def excerpt(self: Separation, song: Any, seconds: float = math.inf) -> Any:
        stems = real(self, song, seconds)
        if song.name == "C":
            stems[0] *= 1e-4
        return stems

    monkeypatch.setattr(Separation, "excerpt", excerpt)
    both = changed(config, data={"validation": ("B", "C")})
    told = Recorder()
    scores = train(both, tmp_path / "run", device=CPU, report=told)
    assert scores["vocals"] > -30  # that of B alone
    assert told.reports[-1].left_out == {"vocals": 1}
    assert Bundle.open(tmp_path / "run" / "best.tfx").provenance["validation_left_out"] == {"vocals": 1}


def test_a_score_that_is_no_number_is_never_the_best(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter(({"vocals": 1.0}, {"vocals": math.nan}, {"vocals": 0.5}))
    monkeypatch.setattr(Separation, "validate", lambda *_: next(scores))
    each = changed(config, optim={"length": 3}, run={"validate_every": 1})
    train(each, tmp_path / "run", device=CPU)
    assert Bundle.open(tmp_path / "run" / "best.tfx").provenance["step"] == 1
