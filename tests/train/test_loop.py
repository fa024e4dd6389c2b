"""The loop: it learns, goes on exactly where it stood, and never loses a good checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.bundle import Bundle
from tfswa.runtime.errors import BundleError, ConfigError, TrainingError, UsageError
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.models import open_model

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("tensorboard", reason="tensorboard is not installed: training writes its events")

from tfswa.train import loop  # noqa: E402
from tfswa.train.backend import load_network  # noqa: E402
from tfswa.train.config import (  # noqa: E402
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from tfswa.train.data.songs import load_songs  # noqa: E402
from tfswa.train.loop import Progress, learning_rate, train  # noqa: E402
from tfswa.train.reference import separate_whole  # noqa: E402

CPU = torch.device("cpu")
Make = Callable[..., TrainConfig]


@pytest.fixture
def config(song_root: Path, tiny_family: str, tiny_hyper: dict[str, Any], private_cache: Path) -> TrainConfig:
    """Six steps, validated after the third and the sixth."""
    return TrainConfig(
        model=ModelConfig(family=tiny_family, hyper=tiny_hyper, licence="MIT"),
        data=DataConfig(root=str(song_root), validation=("C",), cache=str(private_cache)),
        augment=AugmentConfig(remix=0.5, gain_db=3, speed=1.1, silence=0.05),
        loss=LossConfig(windows=(128, 512), waveform_l1=0.1),
        optim=OptimConfig(steps=6, batch=2, frames=16, lr=3e-3, warmup=2, ema=0.9),
        run=RunConfig(log_every=1, validate_every=3, validation_seconds=1, statistics_batches=2),
    )


def changed(config: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    """``changed(config, optim={"steps": 3})``."""
    parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **parts)


class Recorder:
    """Takes reports; raises after a step, as Ctrl-C or a full disk would."""

    def __init__(self, stop_after: int = -1):
        self.reports: list[Progress] = []
        self.stop_after = stop_after

    def __call__(self, progress: Progress) -> None:
        self.reports.append(progress)
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    @property
    def losses(self) -> dict[int, float]:
        return {report.step: report.loss for report in self.reports}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "x_realtime"} for row in csv.DictReader(stream)]


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equal bit for bit, at every depth."""
    assert type(one) is type(two), where
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


def checkpoint(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "last.ckpt", weights_only=True)
    return state


def assert_same_run(one: Path, two: Path) -> None:
    first, second = checkpoint(one), checkpoint(two)
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
        optim={"steps": 60, "batch": 6, "lr": 1e-2, "warmup": 3, "ema": 0.8},
        augment={"silence": 0.0, "remix": 1.0, "gain_db": 0.0, "speed": 1.0},
        run={"validate_every": 60, "validation_seconds": 0},
    )
    scores = train(longer, tmp_path / "run", device=CPU, report=told)
    losses = np.array(list(told.losses.values()))
    assert losses[-10:].mean() < 0.75 * losses[:5].mean()
    assert scores.keys() == {"vocals", "accompaniment"}
    song = load_songs(config.data, 8000, 2)[1][0]
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
    assert [report.sdr_db is not None for report in told.reports] == [False, False, True, False, False, True]
    assert all(report.steps == 6 and report.audio_seconds_per_second > 0 for report in told.reports)
    assert told.reports[-1].sdr_db == scores
    assert scores.keys() == {"vocals", "accompaniment"}
    assert json.loads((out / "config.json").read_text())["optim"]["steps"] == 6
    logged = rows(out)
    assert [int(row["step"]) for row in logged] == [1, 2, 3, 4, 5, 6]
    assert [float(row["loss"]) for row in logged] == list(told.losses.values())
    terms = ("spectrogram_l1", "multi_resolution_stft", "waveform_l1")
    for row in logged:
        assert sum(float(row[term]) for term in terms) == pytest.approx(float(row["loss"]), rel=1e-5)
        assert float(row["lr"]) == learning_rate(int(row["step"]) - 1, config.optim)
        assert float(row["gradient_norm"]) > 0
    assert sum(path.stat().st_size for path in out.glob("events.out.tfevents.*")) > 500
    assert not [path.name for path in out.iterdir() if "partial" in path.name]


def test_bundles_open_and_score_what_was_logged(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = Recorder()
    train(config, out, device=CPU, report=told)
    validated = [report.sdr_db for report in told.reports if report.sdr_db]
    best = max(validated, key=lambda scores: np.mean(list(scores.values())))
    song = load_songs(config.data, 8000, 2)[1][0]
    middle = slice((song.samples - 8000) // 2, (song.samples - 8000) // 2 + 8000)
    sources = {name: audio[:, middle] for name, audio in song.sources.items()}
    true = {
        "vocals": sources["vocals"],
        "accompaniment": sources["drums"] + sources["bass"] + sources["other"],
    }
    for name, scores in (("last.tfx", validated[-1]), ("best.tfx", best)):
        model = open_model(out / name)
        assert model.spec.weights_licence == "MIT"
        assert model.bundle is not None
        assert model.bundle.provenance["validation_sdr_db"] == scores
        assert model.bundle.provenance["config"]["optim"]["lr"] == config.optim.lr
        mixture = np.asarray(true["vocals"] + true["accompaniment"])
        stems = separate_whole(load_network(model), model.spec, torch.from_numpy(mixture)).numpy()
        for stem, estimate in zip(model.spec.stems, stems, strict=True):
            assert sdr_db(true[stem], estimate) == pytest.approx(scores[stem], abs=1e-4)


def test_the_average_is_what_is_shipped(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run", device=CPU)
    state = checkpoint(tmp_path / "run")
    shipped = Bundle.open(tmp_path / "run" / "last.tfx").weights()
    name = "head.weight"
    assert torch.equal(state["average"][name], torch.from_numpy(shipped[name]))
    assert not torch.equal(state["average"][name], state["network"][name])
    raw = changed(config, optim={"ema": 0.0})
    train(raw, tmp_path / "raw", device=CPU)
    state = checkpoint(tmp_path / "raw")
    assert_same(state["average"], state["network"])


def test_the_average_is_the_recurrence(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    each = changed(config, run={"validate_every": 1})
    seen: list[tuple[Any, Any]] = []

    def look(progress: Progress) -> None:
        state = checkpoint(out)
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
    run = loop.Run(config, loop.training_spec(config), *load_songs(config.data, 8000, 2), tmp_path / "x", CPU)
    mixtures = torch.stack([run.chunks[index].sum(dim=0) for index in range(4)])
    features = run.network.features(run.stft.forward(mixtures)[0])
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
    assert scores == whole.reports[-1].sdr_db
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_better_score_of_before_is_not_forgotten(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    scores = iter([{"vocals": 5.0}, {"vocals": 2.0}])
    monkeypatch.setattr(loop.Run, "validate", lambda self: next(scores))
    with pytest.raises(KeyboardInterrupt):
        train(config, out, device=CPU, report=Recorder(3))
    best = Bundle.open(out / "best.tfx").digest
    train(config, out, device=CPU, resume=True)
    assert Bundle.open(out / "best.tfx").digest == best
    assert Bundle.open(out / "last.tfx").digest != best
    assert Bundle.open(out / "best.tfx").provenance["step"] == 3


def test_resuming_a_finished_run_gives_its_scores_again(config: TrainConfig, tmp_path: Path) -> None:
    scores = train(config, tmp_path / "run", device=CPU)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    told = Recorder()
    assert train(config, tmp_path / "run", device=CPU, resume=True, report=told) == scores
    assert told.reports == []
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


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
    with pytest.raises(TrainingError, match=r"last\.ckpt is missing: nothing to resume"):
        train(config, tmp_path / "run", device=CPU, resume=True)
    assert not (tmp_path / "run").exists()


def test_another_model_is_not_resumed(
    config: TrainConfig, tmp_path: Path, tiny_hyper: dict[str, Any]
) -> None:
    train(changed(config, optim={"steps": 1}), tmp_path / "run", device=CPU)
    other = changed(config, model={"hyper": {**tiny_hyper, "mask": "complex"}})
    with pytest.raises(ConfigError, match=r"magnitude.*complex"):
        train(other, tmp_path / "run", device=CPU, resume=True)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_said_so(config: TrainConfig, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"last\.ckpt cannot be read") as error:
        train(config, tmp_path, device=CPU, resume=True)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_code_in_it_is_not_run(config: TrainConfig, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"config": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(config, tmp_path, device=CPU, resume=True)
    assert not (tmp_path / "pwned").exists()


def test_dying_while_saving_leaves_the_checkpoint_of_before(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real, calls = torch.save, []

    def save(state: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half a checkpoint")
            raise RuntimeError("killed")
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, out, device=CPU)
    monkeypatch.undo()
    assert checkpoint(out)["step"] == 3
    assert not [path.name for path in out.iterdir() if "partial" in path.name]


def test_a_run_whose_save_failed_can_be_resumed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole", device=CPU)
    with monkeypatch.context() as patch:
        real = loop.Run._save_checkpoint

        def save(self: Any) -> None:
            if self.step == 6:
                raise RuntimeError("killed")
            real(self)

        patch.setattr(loop.Run, "_save_checkpoint", save)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, tmp_path / "run", device=CPU)
    train(config, tmp_path / "run", device=CPU, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_step(config: TrainConfig, tmp_path: Path) -> None:
    wild = changed(config, optim={"lr": 1e30, "warmup": 0})
    told = Recorder()
    with pytest.raises(
        TrainingError, match=r"(loss|gradient norm) is (nan|inf) at step \d+: lower optim\.lr"
    ):
        train(wild, tmp_path / "run", device=CPU, report=told)
    assert len(told.reports) < 4
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("step", [0, 4])
def test_nan_from_the_loss_names_its_step_and_keeps_the_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real = loop.Run._loss

    def loss(self: Any, stems: Any) -> Any:
        value, parts = real(self, stems)
        return (value * torch.nan if self.step == step else value), parts

    monkeypatch.setattr(loop.Run, "_loss", loss)
    with pytest.raises(TrainingError, match=f"loss is nan at step {step}"):
        train(config, tmp_path, device=CPU)
    assert (tmp_path / "last.ckpt").exists() == (step > 3)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(TrainingError, match="gradient norm is inf at step 0"):
        train(config, tmp_path, device=CPU)


def test_without_held_out_songs_the_last_is_the_best(config: TrainConfig, tmp_path: Path) -> None:
    told = Recorder()
    assert train(changed(config, data={"validation": ()}), tmp_path, device=CPU, report=told) == {}
    assert Bundle.open(tmp_path / "best.tfx").digest == Bundle.open(tmp_path / "last.tfx").digest
    assert Bundle.open(tmp_path / "best.tfx").provenance["step"] == 6
    assert told.reports[-1].sdr_db == {}


def test_bf16_trains(config: TrainConfig, tmp_path: Path) -> None:
    short = changed(config, optim={"steps": 2, "precision": "bf16"})
    train(short, tmp_path / "half", device=CPU)
    train(changed(short, optim={"precision": "fp32"}), tmp_path / "full", device=CPU)
    half, full = (float(rows(tmp_path / name)[0]["loss"]) for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optim": {"frames": 20}}, r"optim\.frames: chunk of 20 frames is not a multiple of 8: use 24"),
        ({"optim": {"frames": 8000}}, r"a chunk needs"),
        ({"model": {"family": "tinny"}}, "unknown family 'tinny': did you mean 'tiny'"),
        ({"model": {"hyper": {"zzz": 1}}}, "no hyper-parameter 'zzz'"),
        ({"model": {"stems": ("a/b",)}}, r"stems .*file names"),
        ({"data": {"validation": ("Z",)}}, "song 'Z'"),
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


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    optim = OptimConfig(steps=1000, lr=1.0, lr_end=0.01, warmup=10)
    rates = [learning_rate(step, optim) for step in range(1000)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.01, abs=1e-4)
    assert learning_rate(505, optim) == pytest.approx(0.505, abs=1e-6)
    assert learning_rate(0, OptimConfig(steps=5, lr=1.0, warmup=0)) == 1.0
