"""Tasks: what they score, what is hidden, what they leave, and what a training can begin with."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("tensorboard", reason="tensorboard is not installed: training writes its events")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from tfswa.train.config import (  # noqa: E402
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TrainConfig,
)
from tfswa.train.data.loader import Batch  # noqa: E402
from tfswa.train.data.songs import TrainingSong  # noqa: E402
from tfswa.train.families import build_network  # noqa: E402
from tfswa.train.loop import Run, TrainingProgress, train  # noqa: E402
from tfswa.train.scale import new_fabric  # noqa: E402
from tfswa.train.tasks import (  # noqa: E402
    PRETRAINED,
    Reconstruction,
    Separation,
    initialize,
    level_dbfs,
    new_task,
)
from tfswa.train.trainer import Trainer  # noqa: E402

CPU = torch.device("cpu")
RATE, HOP, T, F = 8000, 128, 16, 256
N = (T - 1) * HOP
SOURCES = ("vocals", "drums", "bass", "other")
Changed = Callable[..., TrainConfig]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def song_of(samples: int, silent: str = "") -> TrainingSong:
    sources = {
        name: np.zeros((2, samples), np.float32) if name == silent else noise(2, samples, seed=seed).numpy()
        for seed, name in enumerate(SOURCES)
    }
    return TrainingSong("song", sources)


def copies(network: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


# Separation


@pytest.fixture
def separation(tiny_spec: ModelSpec) -> Callable[..., Separation]:
    """``separation(seconds, loss=...)``."""

    def make(seconds: float = 0.0, **loss: Any) -> Separation:
        silent = {"waveform_l1": 0.0, "multi_resolution_stft": 0.0}
        terms = {"spectrogram_l1": 1.0, **silent, "windows": (128,), **loss}
        config = TrainConfig(loss=LossConfig(**terms), run=RunConfig(validation_seconds=seconds))
        return Separation(config, tiny_spec, CPU)

    return make


@pytest.mark.parametrize("terms", [{}, {"waveform_l1": 1.0, "multi_resolution_stft": 1.0}])
def test_true_stems_have_no_loss(separation: Callable[..., Separation], terms: dict[str, float]) -> None:
    task = separation(**terms)
    # The network is not asked for the Nyquist bin, so there is nothing in it.
    signals = torch.stack((noise(3, 2, N), torch.zeros(3, 2, N)), dim=1)
    planes, _ = task.stft.forward(signals)
    signals = task.stft.inverse(planes, None, N)
    true_planes = task.stft.forward(signals)[0]
    heard = []

    def network(mixture: Tensor) -> Tensor:
        heard.append(mixture)
        return true_planes

    loss, parts = task.loss(network, signals, range(3))
    assert float(loss) < 1e-3
    assert parts.keys() == {"spectrogram_l1", *terms}
    torch.testing.assert_close(heard[0], task.stft.forward(signals.sum(dim=1))[0], rtol=0, atol=1e-4)
    assert float(task.loss(lambda mixture: -true_planes, signals, range(3))[0]) > 0.01


def test_the_loss_is_that_of_the_terms(separation: Callable[..., Separation]) -> None:
    task = separation(spectrogram_mse=2.0)
    signals = noise(3, 2, 2, N)
    planes = task.stft.forward(signals)[0]
    loss, parts = task.loss(lambda mixture: torch.zeros_like(planes), signals, range(3))
    assert float(parts["spectrogram_l1"]) == pytest.approx(float(planes.abs().mean()), rel=1e-6)
    assert float(parts["spectrogram_mse"]) == pytest.approx(2 * float(planes.square().mean()), rel=1e-6)
    assert float(loss) == pytest.approx(sum(float(part) for part in parts.values()), rel=1e-6)


def test_waveforms_are_made_only_where_a_term_hears_them(
    separation: Callable[..., Separation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def inverse(*given: Any) -> Tensor:
        raise AssertionError("not needed")

    task = separation()
    monkeypatch.setattr(task.stft, "inverse", inverse)
    signals = noise(1, 2, 2, N)
    planes = task.stft.forward(signals)[0]
    task.loss(lambda mixture: planes, signals, [0])
    loud = separation(waveform_l1=1.0)
    monkeypatch.setattr(loud.stft, "inverse", inverse)
    with pytest.raises(AssertionError, match="not needed"):
        loud.loss(lambda mixture: planes, signals, [0])


@pytest.mark.parametrize(
    ("configured", "asked", "expected"),
    [
        (0.0, math.inf, slice(0, 16001)),
        (1.0, math.inf, slice(4000, 12000)),
        (1.0, 0.5, slice(6000, 10000)),
        (0.5, 1.0, slice(6000, 10000)),
        (99.0, math.inf, slice(0, 16001)),
    ],
)
def test_an_excerpt_is_the_middle_of_the_summed_sources(
    separation: Callable[..., Separation], configured: float, asked: float, expected: slice
) -> None:
    song = song_of(16001)
    stems = separation(configured).excerpt(song, asked)
    assert stems.dtype == np.float32
    rest = song.sources["drums"] + song.sources["bass"] + song.sources["other"]
    np.testing.assert_allclose(stems, np.stack((song.sources["vocals"], rest))[:, :, expected], atol=1e-6)


def test_validation_is_the_sdr_of_the_excerpt(separation: Callable[..., Separation]) -> None:
    task, song = separation(1.0), song_of(16001)

    def half(planes: Tensor) -> Tensor:
        return torch.stack((0.5 * planes, 0.25 * planes), dim=1)

    stems = task.excerpt(song)
    mixture = stems.sum(axis=0)
    scores = task.validate(half, song)  # type: ignore[arg-type]
    assert scores.keys() == {"vocals", "accompaniment"}
    for index, (stem, gain) in enumerate((("vocals", 0.5), ("accompaniment", 0.25))):
        expected = sdr_db(stems[index], gain * mixture)
        assert expected is not None
        # The Nyquist bin goes to one stem whole.
        assert scores[stem] == pytest.approx(expected, abs=0.05)


def test_the_score_of_a_silent_stem_is_left_out(separation: Callable[..., Separation]) -> None:
    def half(planes: Tensor) -> Tensor:
        return torch.stack((0.5 * planes, 0.5 * planes), dim=1)

    scores = separation().validate(half, song_of(8000, silent="vocals"))  # type: ignore[arg-type]
    assert scores.keys() == {"accompaniment"}


@pytest.mark.parametrize(("level", "counts"), [(-58.0, True), (-62.0, False), (-89.0, False)])
def test_a_stem_as_good_as_silent_does_not_count(
    separation: Callable[..., Separation], level: float, counts: bool
) -> None:
    task, song = separation(), song_of(8000)
    vocals = song.sources["vocals"]
    gain = 10 ** ((level - level_dbfs(vocals)) / 20)
    song = TrainingSong("song", {**song.sources, "vocals": (vocals * gain).astype(np.float32)})

    def half(planes: Tensor) -> Tensor:
        return torch.stack((0.5 * planes, 0.5 * planes), dim=1)

    scores = task.validate(half, song)  # type: ignore[arg-type]
    assert ("vocals" in scores) is counts
    assert "accompaniment" in scores


def test_a_song_as_good_as_silent_is_not_even_separated(separation: Callable[..., Separation]) -> None:
    def never(planes: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    quiet = {name: (1e-4 * audio).astype(np.float32) for name, audio in song_of(8000).sources.items()}
    assert separation().validate(never, TrainingSong("song", quiet)) == {}  # type: ignore[arg-type]


# Reconstruction


class Guess:
    """A network that guesses a given tensor, and keeps what was hidden."""

    def __init__(self, truth: Tensor, guess: Tensor):
        self.truth, self.guess = truth, guess
        self.hidden: list[Tensor] = []

    def reconstruct(self, planes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        self.hidden.append(hidden)
        return self.guess, self.truth


@pytest.fixture
def reconstruction(tiny_spec: ModelSpec) -> Callable[..., Reconstruction]:
    """``reconstruction(share=...)``: patches of 4 frames and 32 bins, 32 of them in a chunk."""

    def make(seed: int = 0, seconds: float = 0.0, **pretrain: Any) -> Reconstruction:
        config = TrainConfig(
            data=DataConfig(sources={"mixture": SOURCES}),
            optim=OptimConfig(seed=seed),
            pretrain=PretrainConfig(**{"share": 0.5, "patch_frames": 4, "patch_bins": 32, **pretrain}),
            run=RunConfig(validation_seconds=seconds),
        )
        task = new_task(config, tiny_spec, CPU)
        assert isinstance(task, Reconstruction)
        return task

    return make


def hidden_of(task: Reconstruction, *indices: int) -> Tensor:
    return task._hidden(torch.zeros(len(indices), 4, T, F), indices)


@pytest.mark.parametrize(("share", "patches"), [(0.25, 8), (0.5, 16), (0.75, 24), (0.001, 1)])
def test_the_same_share_of_every_chunk_is_hidden_in_whole_patches(
    reconstruction: Callable[..., Reconstruction], share: float, patches: int
) -> None:
    hidden = hidden_of(reconstruction(share=share), *range(20))
    assert hidden.shape == (20, 1, T, F)
    assert hidden.dtype == torch.bool
    assert hidden.sum(dim=(1, 2, 3)).tolist() == [patches * 4 * 32] * 20
    each = hidden.unfold(2, 4, 4).unfold(3, 32, 32).flatten(-2).sum(dim=-1)
    assert set(each.unique().tolist()) == {0, 4 * 32}
    if share == 0.5:
        assert hidden.any(dim=0).all()  # anywhere


def test_what_is_hidden_belongs_to_the_chunk_alone(reconstruction: Callable[..., Reconstruction]) -> None:
    task = reconstruction()
    together = hidden_of(task, 3, 7, 5)
    for place, index in enumerate((3, 7, 5)):
        assert torch.equal(together[place], hidden_of(task, index)[0])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(hidden_of(reconstruction(), 3), together[:1])
    assert not torch.equal(hidden_of(reconstruction(seed=1), 3), together[:1])


def test_patches_may_hang_over_the_edge(reconstruction: Callable[..., Reconstruction]) -> None:
    task = reconstruction(patch_frames=5, patch_bins=100)
    hidden = hidden_of(task, *range(50))
    assert hidden.shape == (50, 1, T, F)
    assert hidden.any(dim=0).all()
    assert not hidden.all(dim=0).any()


@pytest.mark.parametrize("patch_bins", [32, 100])
def test_the_loss_is_that_of_the_hidden_part(
    reconstruction: Callable[..., Reconstruction], patch_bins: int
) -> None:
    task = reconstruction(patch_bins=patch_bins, share=0.2)
    signals, indices = noise(2, 1, 2, N), (0, 1)
    truth, guess = noise(2, 1, 2, T, F, seed=1), noise(2, 3, 2, T, F, seed=2)
    hidden = hidden_of(task, *indices)
    network = Guess(truth, guess)
    loss, parts = task.loss(network, signals, indices)
    assert torch.equal(network.hidden[0], hidden)
    assert parts == {}
    distances = (guess - truth).abs()
    each = [distances[k][hidden[k].expand(3, 2, T, F)].mean() for k in range(2)]
    assert float(loss) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
    elsewhere = guess + 10 * ~hidden[:, None]
    assert float(task.loss(Guess(truth, elsewhere), signals, indices)[0]) == float(loss)
    there = guess + 10 * hidden[:, None]
    assert float(task.loss(Guess(truth, there), signals, indices)[0]) > 9
    assert float(task.loss(Guess(truth, truth.expand(2, 3, 2, T, F)), signals, indices)[0]) == 0


@pytest.mark.parametrize("patch_bins", [32, 100])
def test_halves_of_a_batch_have_its_mean(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec, patch_bins: int
) -> None:
    task = reconstruction(patch_bins=patch_bins, share=0.2)
    torch.manual_seed(0)
    network = build_network(tiny_spec)
    signals = noise(4, 1, 2, N) * torch.tensor([0.01, 0.1, 1.0, 10.0])[:, None, None, None]
    with torch.no_grad():
        whole = task.loss(network, signals, (0, 1, 2, 3))[0]
        halves = [task.loss(network, signals[k : k + 2], (k, k + 1))[0] for k in (0, 2)]
    assert float(sum(halves)) / 2 == pytest.approx(float(whole), rel=1e-6)
    assert float(halves[0]) != pytest.approx(float(halves[1]), rel=0.01)


def test_the_network_does_not_see_what_is_hidden(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec
) -> None:
    task = reconstruction()
    torch.manual_seed(0)
    network = build_network(tiny_spec)
    planes = task.stft.forward(noise(1, 2, N))[0]
    hidden = hidden_of(task, 0)
    with torch.no_grad():
        guess, truth = network.reconstruct(planes, hidden)
        other = torch.where(hidden, 5.0, planes)
        same, changed = network.reconstruct(other, hidden)
        assert torch.equal(same, guess)
        assert not torch.equal(changed, truth)
        different = network.reconstruct(torch.where(hidden, planes, 5.0), hidden)[0]
    assert not torch.equal(different, guess)


def test_validation_is_minus_the_mean_loss_of_the_first_chunks(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec
) -> None:
    torch.manual_seed(0)
    network = build_network(tiny_spec).eval()
    song = song_of(10 * N + 7)
    mixture = torch.from_numpy(np.sum([song.sources[name] for name in SOURCES], axis=0))
    for seconds, count in ((0.0, 8), (3.5 * N / RATE, 3)):
        task = reconstruction(seconds=seconds)
        with torch.no_grad():
            losses = [
                float(task.loss(network, mixture[None, None, :, k * N : (k + 1) * N], [k])[0])
                for k in range(count)
            ]
        assert task.validate(network, song) == {"reconstruction": pytest.approx(-np.mean(losses), rel=1e-6)}


def test_a_song_shorter_than_a_chunk_has_no_score(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec
) -> None:
    assert reconstruction().validate(build_network(tiny_spec), song_of(N - 1)) == {}


def test_the_best_weights_are_left_and_no_bundle(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    task = reconstruction()
    weights = {"a": noise(3, 4).T, "b": torch.zeros(())}
    task.save(tmp_path, weights, {"step": 3}, best=False)
    assert list(tmp_path.iterdir()) == []
    task.save(tmp_path, weights, {"step": 3}, best=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pretrained.safetensors"]
    found = load_file(tmp_path / PRETRAINED)
    assert torch.equal(found["a"], weights["a"])
    assert found["b"].shape == ()
    with safe_open(tmp_path / PRETRAINED, "pt") as file:
        assert file.metadata()["family"] == tiny_spec.family
        assert json.loads(file.metadata()["provenance"]) == {"step": 3}


@pytest.mark.slow
def test_a_tiny_network_learns_to_guess_tones(
    reconstruction: Callable[..., Reconstruction], tiny_spec: ModelSpec
) -> None:
    """Steady tones: what is hidden is seen at other times."""
    task = reconstruction(share=0.4)
    random = np.random.default_rng(0)
    time = torch.arange(N, dtype=torch.float64) / RATE

    def batch(step: int) -> Batch:
        items = []
        for _ in range(4):
            pitch, phase = random.uniform(100, 400), random.uniform(0, 6)
            tone = sum(torch.sin(2 * math.pi * pitch * k * time + phase * k) / k for k in range(1, 8))
            items.append(0.1 * tone.float().expand(1, 2, N))
        return Batch(torch.stack(items), tuple(range(4 * step, 4 * step + 4)), 0.0)

    torch.manual_seed(0)
    network = build_network(tiny_spec)
    features = network.features(task.stft.forward(torch.cat([batch(0).stems[:, 0] for _ in range(8)]))[0])
    network.set_statistics(features.mean(dim=(0, 1, 2)), features.std(dim=(0, 1, 2)))
    optim = OptimConfig(batch=4, ema=0.0, weight_decay=0.0)
    fabric, autocast = new_fabric(CPU, optim)
    trainer = Trainer(network, task, optim, RATE, fabric, autocast)
    losses = [trainer.train(batch(step), 1e-2)["loss"] for step in range(60)]
    fresh = batch(1000)
    with torch.no_grad(), trainer.averaged() as trained:
        loss = float(task.loss(trained, fresh.stems, fresh.indices)[0])
        planes = task.stft.forward(fresh.stems[:, 0])[0]
        truth = trained.reconstruct(planes, task._hidden(planes, fresh.indices))[1]
        mean = float(task.loss(Guess(truth, torch.zeros_like(truth)), fresh.stems, fresh.indices)[0])
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert loss < 0.7 * mean  # the mean is what a network knows that sees nothing


# Weights to begin with


@pytest.fixture
def network(tiny_spec: ModelSpec) -> Any:
    torch.manual_seed(5)
    return build_network(tiny_spec)


@pytest.fixture
def weights(tiny_spec: ModelSpec) -> dict[str, Tensor]:
    """Of another network of the same shape."""
    torch.manual_seed(6)
    other = build_network(tiny_spec)
    other.set_statistics(noise(F, seed=1), 1 + noise(F, seed=2).abs())
    return copies(other)


def init(path: Path, *skip: str) -> ModelConfig:
    return ModelConfig(family="tiny", init=str(path), init_skip=skip)


def test_all_weights_are_given(network: Any, weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / PRETRAINED)
    assert initialize(network, init(tmp_path / PRETRAINED)) == sorted(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_what_is_skipped_stays_as_it_was(network: Any, weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / PRETRAINED)
    before = copies(network)
    given = initialize(network, init(tmp_path / PRETRAINED, "head.", "mean"))
    skipped = {"head.weight", "head.bias", "mean"}
    assert set(given) == weights.keys() - skipped
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in skipped else weights[name]), name
    assert not torch.equal(before["head.weight"], weights["head.weight"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_gives_its_weights(
    network: Any, weights: dict[str, Tensor], tiny_spec: ModelSpec, tmp_path: Path, precision: str
) -> None:
    arrays = {name: value.numpy() for name, value in weights.items()}
    Bundle.create(tmp_path / "a.tfx", tiny_spec, arrays, precision=precision)
    assert initialize(network, init(tmp_path / "a.tfx")) == sorted(weights)
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        rounded = weights[name].half().float() if precision == "fp16" else weights[name]
        assert torch.equal(value, rounded)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"head.bias": torch.zeros(7)},
            r"head\.bias is \[7\], tiny expects \[16\]: choose the same family .*model\.init_skip",
        ),
        (
            {"tail.bias": torch.zeros(7)},
            r"tail\.bias is \[7\], tiny has none of that name: .*model\.init_skip",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line_and_change_nothing(
    network: Any, weights: dict[str, Tensor], tmp_path: Path, change: Mapping[str, Tensor], match: str
) -> None:
    save_file({**weights, **change}, tmp_path / PRETRAINED)
    before = copies(network)
    with pytest.raises(ConfigError, match=match) as error:
        initialize(network, init(tmp_path / PRETRAINED))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    initialize(network, init(tmp_path / PRETRAINED, *change))


def test_weights_that_would_stay_random_are_named(
    network: Any, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    fewer = {name: value for name, value in weights.items() if not name.startswith("head.")}
    save_file(fewer, tmp_path / PRETRAINED)
    with pytest.raises(ConfigError, match=r"lacks 2 of the \d+ weights of tiny, head\.\w+ first") as error:
        initialize(network, init(tmp_path / PRETRAINED))
    assert "\n" not in str(error.value)
    assert initialize(network, init(tmp_path / PRETRAINED, "head.")) == sorted(fewer)


@pytest.mark.parametrize(
    "content", [None, b"", b"not safetensors\nat all" * 9, b"\xff" * 64, "cut", "folder"]
)
def test_what_is_no_weights_file_is_one_line(
    network: Any, weights: dict[str, Tensor], tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "x.safetensors"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"model\.init .*x\.safetensors cannot be read \(.+\): name a bundle or pretrained"
    ) as error:
        initialize(network, init(path))
    assert "\n" not in str(error.value)


def test_a_bundle_whose_weights_were_changed_is_refused(network: Any, network_bundle: Bundle) -> None:
    path = network_bundle.file("model.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a weight, the file itself stays readable
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.init .* cannot be read \(.*is damaged"):
        initialize(network, init(network_bundle.path))


def test_a_new_best_keeps_what_was_exported_from_the_old_one(
    separation: Callable[..., Separation], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = separation()
    for step in (10, 20, 30):
        task.save(tmp_path, {"w": torch.full((2,), float(step))}, {"step": step}, best=step != 30)
        if step == 10:
            Bundle.open(tmp_path / "best.tfx").add("model.onnx", b"graph", kind="onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best-step-00000010.tfx", "best.tfx", "last.tfx"]
    old = Bundle.open(tmp_path / "best-step-00000010.tfx")
    assert old.file("model.onnx").read_bytes() == b"graph"
    assert old.weights()["w"].tolist() == [10.0, 10.0]
    assert Bundle.open(tmp_path / "best.tfx").weights()["w"].tolist() == [20.0, 20.0]
    assert list(Bundle.open(tmp_path / "best.tfx").files) == ["model.safetensors"]
    (line,) = caplog.messages
    assert "model.onnx" in line
    assert "best-step-00000010.tfx" in line


# Through the loop


@pytest.fixture
def config(song_root: Path, tiny_family: str, tiny_hyper: dict[str, Any], private_cache: Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(family=tiny_family, hyper=tiny_hyper, license="MIT"),
        data=DataConfig(
            root=str(song_root),
            validation=("C",),
            cache=str(private_cache),
            sources={"mixture": SOURCES},
            workers=0,
        ),
        augment=AugmentConfig(remix=0.0),
        loss=LossConfig(windows=(128,)),
        optim=OptimConfig(length=4, batch=2, frames=16, lr=1e-3, warmup=1, ema=0.5),
        pretrain=PretrainConfig(share=0.4, patch_frames=4, patch_bins=32),
        run=RunConfig(log_every=1, validate_every=2, checkpoint_every=2, statistics_batches=1),
    )


def fine_tuning(config: TrainConfig, init: Path, *skip: str) -> TrainConfig:
    """Separation, one step, from these weights."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, init=str(init), init_skip=skip),
        data=dataclasses.replace(config.data, sources=DataConfig().sources),
        optim=dataclasses.replace(config.optim, length=1, lr=1e-6, lr_end=0.0, warmup=0, ema=0.0),
        pretrain=PretrainConfig(),
        run=dataclasses.replace(config.run, pictures=False, validation_seconds=1.0),
    )


@pytest.mark.slow
def test_a_pretraining_is_fine_tuned(config: TrainConfig, tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    scores = train(config, tmp_path / "pre", device=CPU, report=told.append)
    assert scores.keys() == {"reconstruction"}
    assert scores["reconstruction"] < 0
    left = {path.name for path in (tmp_path / "pre").iterdir()}
    assert PRETRAINED in left
    assert not {name for name in left if name.endswith(".tfx") or "partial" in name}
    pretrained = load_file(tmp_path / "pre" / PRETRAINED)
    with safe_open(tmp_path / "pre" / PRETRAINED, "pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    best = max((p.scores["reconstruction"], p.step) for p in told if p.scores)
    assert provenance["step"] == best[1]
    assert provenance["config"]["pretrain"]["share"] == 0.4

    tuning = fine_tuning(config, tmp_path / "pre" / PRETRAINED)
    begun = Run(tuning, tmp_path / "x", CPU).trainer.weights()
    assert begun.keys() == pretrained.keys()
    assert all(torch.equal(value, pretrained[name]) for name, value in begun.items())
    scores = train(tuning, tmp_path / "fine", device=CPU)
    assert scores.keys() == {"vocals", "accompaniment"}
    tuned = Bundle.open(tmp_path / "fine" / "best.tfx").weights()
    for name, value in pretrained.items():
        np.testing.assert_allclose(tuned[name], value.numpy(), atol=1e-5, err_msg=name)
    assert np.array_equal(tuned["mean"], pretrained["mean"].numpy())  # the statistics are not taken anew


def test_statistics_that_are_skipped_are_taken_from_the_data(
    config: TrainConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / PRETRAINED)
    for name, skip in (("kept", ()), ("anew", ("mean", "std"))):
        train(fine_tuning(config, tmp_path / PRETRAINED, *skip), tmp_path / name, device=CPU)
        found = Bundle.open(tmp_path / name / "last.tfx").weights()
        assert np.array_equal(found["mean"], weights["mean"].numpy()) == (name == "kept")
        np.testing.assert_allclose(found["stem.weight"], weights["stem.weight"].numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_resumed_pretraining_equals_one_that_was_not_interrupted(
    config: TrainConfig, tmp_path: Path
) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    losses: dict[str, list[float]] = {"whole": [], "rest": []}
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda p: losses["whole"].append(p.loss))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device=CPU, report=stop)
    rest = train(
        config, tmp_path / "run", device=CPU, resume=True, report=lambda p: losses["rest"].append(p.loss)
    )
    assert rest == whole
    assert losses["rest"] == losses["whole"][2:]
    one, two = (load_file(tmp_path / name / PRETRAINED) for name in ("whole", "run"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_weights_to_begin_with_need_not_be_there_to_resume(
    config: TrainConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / PRETRAINED)
    tuning = fine_tuning(config, tmp_path / PRETRAINED)
    train(tuning, tmp_path / "run", device=CPU)
    without = dataclasses.replace(tuning, model=dataclasses.replace(tuning.model, init=""))
    assert train(without, tmp_path / "run", device=CPU, resume=True).keys() == {"vocals", "accompaniment"}
