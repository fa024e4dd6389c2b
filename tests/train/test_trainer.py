"""One step: what it does to the weights, and that every way of doing it does the same."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")

from torch import Tensor, nn  # noqa: E402

from tfswa.train import trainer as trainer_module  # noqa: E402
from tfswa.train.config import LossConfig, OptimConfig, TrainConfig  # noqa: E402
from tfswa.train.data.loader import Batch  # noqa: E402
from tfswa.train.families import build_network  # noqa: E402
from tfswa.train.scale import new_fabric  # noqa: E402
from tfswa.train.spectral import DifferentiableStft  # noqa: E402
from tfswa.train.tasks import Separation  # noqa: E402
from tfswa.train.trainer import NotFinite, Trainer  # noqa: E402

CPU = torch.device("cpu")
RATE = 8000
SAMPLES = 15 * 128
New = Callable[..., Trainer]
Loss = tuple[Tensor, dict[str, Tensor]]


class Weighing:
    """A task whose loss is a factor times the sum of all weights: its gradient is the factor everywhere.

    Keeps the signals that it was given. In half precision gradients above 65504 overflow on their way.
    """

    groups: Sequence[tuple[str, ...]] = ()
    stft: DifferentiableStft

    def __init__(self, factor: float = 1.0, half: bool = False):
        self.factor, self.half = factor, half
        self.heard: list[Tensor] = []

    def loss(self, network: Any, signals: Tensor, indices: Sequence[int]) -> Loss:
        self.heard.append(signals)
        weights = torch.cat([parameter.flatten() for parameter in network.parameters()])
        if self.half:
            weights = weights.half().float()
        return self.factor * weights.sum(), {}

    def validate(self, network: Any, song: Any) -> dict[str, float]:
        raise NotImplementedError

    def save(self, out: Any, weights: Any, provenance: Any, best: bool) -> None:
        raise NotImplementedError


@pytest.fixture
def new_trainer(tiny_spec: ModelSpec) -> New:
    """``new_trainer(task, lr=...)``: of the tiny network, the same weights each time."""

    def make(task: Any = None, **optim: Any) -> Trainer:
        config = TrainConfig(
            loss=LossConfig(windows=(128, 512), waveform_l1=0.1),
            optim=OptimConfig(**{"batch": 4, "frames": 16, "ema": 0.9, **optim}),
        )
        torch.manual_seed(0)
        network = build_network(tiny_spec)
        fabric, autocast = new_fabric(CPU, config.optim)
        task = task or Separation(config, tiny_spec, CPU)
        return Trainer(network, task, config.optim, RATE, fabric, autocast)

    return make


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(step: int, items: int = 4) -> Batch:
    stems = noise(items, 2, 2, SAMPLES, seed=step)
    return Batch(stems, tuple(range(step * items, (step + 1) * items)), 0.0)


def copies(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.network.parameters()]


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def gradients_of(trainer: Trainer, step: int = 0) -> tuple[dict[str, float], list[Tensor]]:
    """Row and gradients of a batch, as they come before they are clipped."""
    row = trainer._backward(batch_of(step), 0.0)
    gradients = [p.grad.clone() for p in trainer.network.parameters() if p.grad is not None]
    trainer._stepper.zero_grad(set_to_none=True)
    return row, gradients


def at_the_step(trainer: Trainer) -> list[list[Tensor]]:
    """Gradients as each optimizer step finds them."""
    seen: list[list[Tensor]] = []

    def look(optimizer: Any, given: Any, named: Any) -> None:
        seen.append([parameter.grad.clone() for parameter in trainer.network.parameters()])

    trainer._optimizer.register_step_pre_hook(look)
    return seen


def length_of(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_a_step_says_what_it_did(new_trainer: New) -> None:
    trainer = new_trainer(clip=0.0)
    seen, before = at_the_step(trainer), copies(trainer)
    row = trainer.train(batch_of(0), 1e-3)
    terms = ("spectrogram_l1", "multi_resolution_stft", "waveform_l1")
    assert row.keys() == {"loss", *terms, "lr", "gradient_norm"}
    assert row["loss"] == pytest.approx(sum(row[term] for term in terms), rel=1e-6)
    assert row["lr"] == 1e-3
    assert row["gradient_norm"] == pytest.approx(length_of(seen[0]), rel=1e-5)
    assert (trainer.step, trainer.skipped) == (1, 0)
    assert not same(copies(trainer), before)
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_the_rate_is_that_of_the_call(new_trainer: New) -> None:
    """A first step of Adam moves every weight by the rate."""
    trainer = new_trainer(Weighing(), lr=99.0, weight_decay=0.0)
    for rate in (1e-3, 1e-2):
        before = copies(trainer)
        trainer.train(batch_of(0), rate)
        for old, new in zip(before, copies(trainer), strict=True):
            torch.testing.assert_close(new, old - rate, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_batch(new_trainer: New, parts: int) -> None:
    whole, halves = new_trainer(), new_trainer(accumulate=parts)
    (row, gradients), (other, parted) = gradients_of(whole), gradients_of(halves)
    assert other == pytest.approx(row, rel=1e-6)
    for one, two in zip(gradients, parted, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    for step in range(3):
        one_row, two_row = whole.train(batch_of(step), 1e-4), halves.train(batch_of(step), 1e-4)
        assert two_row["loss"] == pytest.approx(one_row["loss"], rel=1e-6)


def test_each_part_has_its_own_items(new_trainer: New) -> None:
    task = Weighing()
    trainer = new_trainer(task, accumulate=2)
    batch, indices = batch_of(3), []
    real = task.loss

    def loss(network: Any, signals: Tensor, given: Sequence[int]) -> Loss:
        indices.append(tuple(given))
        return real(network, signals, given)

    task.loss = loss  # type: ignore[method-assign]
    trainer.train(batch, 1e-3)
    assert indices == [(12, 13), (14, 15)]
    assert torch.equal(torch.cat(task.heard), batch.stems)


def test_checkpointing_computes_again_and_gives_the_same(new_trainer: New) -> None:
    calls = {}
    results = {}
    for on in (False, True):
        trainer = new_trainer(checkpointing=on)
        count = [0]

        def counted(module: Any, given: Any, count: list[int] = count) -> None:
            count[0] += 1

        for stage in trainer.network.encoder:
            for block in stage.blocks:
                block.register_forward_pre_hook(counted)
        results[on] = gradients_of(trainer)
        calls[on] = count[0]
        with trainer.averaged() as network, torch.no_grad():
            count[0] = 0
            network(torch.zeros(1, 4, 16, 256))
        assert count[0] == 2  # nothing is kept in evaluation, nothing computed again
    assert calls == {False: 2, True: 4}
    assert results[False][0] == results[True][0]
    assert same(results[False][1], results[True][1])


def test_no_limit_leaves_gradients_alone(new_trainer: New) -> None:
    raw = gradients_of(new_trainer(clip=0.0))[1]
    for limit in (0.0, 1e9):
        trainer = new_trainer(clip=limit)
        seen = at_the_step(trainer)
        row = trainer.train(batch_of(0), 1e-3)
        assert same(seen[0], raw)
        assert row["gradient_norm"] == pytest.approx(length_of(raw), rel=1e-5)


def test_gradients_are_cut_to_the_limit_and_reported_as_they_were(new_trainer: New) -> None:
    raw = gradients_of(new_trainer(Weighing(3.0)))[1]
    limit = length_of(raw) / 10
    trainer = new_trainer(Weighing(3.0), clip=limit)
    seen = at_the_step(trainer)
    row = trainer.train(batch_of(0), 1e-3)
    assert length_of(seen[0]) == pytest.approx(limit, rel=1e-5)
    for cut, whole in zip(seen[0], raw, strict=True):
        torch.testing.assert_close(cut, whole / 10, rtol=1e-5, atol=0)
    assert row["gradient_norm"] == pytest.approx(10 * limit, rel=1e-5)


def test_the_update_is_compared_with_the_weights(new_trainer: New) -> None:
    trainer = new_trainer()
    for step in range(2):
        before = copies(trainer)
        row = trainer.train(batch_of(step), 3e-3, logs=True)
        changes = [new - old for new, old in zip(copies(trainer), before, strict=True)]
        assert row["update_ratio"] == pytest.approx(length_of(changes) / length_of(before), rel=1e-4)
    assert "update_ratio" not in trainer.train(batch_of(2), 3e-3)


def test_the_task_hears_the_band_alone(new_trainer: New) -> None:
    task = Weighing()
    trainer = new_trainer(task)
    time = torch.arange(SAMPLES, dtype=torch.float64) / RATE  # whole periods of both
    low, high = (torch.sin(2 * math.pi * hz * time).float().expand(4, 2, 2, -1) for hz in (750.0, 3000.0))
    batch = Batch(low + high, (0, 1, 2, 3), 0.0)
    trainer.train(batch, 1e-3, bandwidth_hz=1000.0)
    torch.testing.assert_close(task.heard[0], low, rtol=0, atol=1e-5)
    trainer.train(batch, 1e-3)
    assert torch.equal(task.heard[1], low + high)
    assert torch.equal(batch.stems, low + high)


def test_adamw_decays_apart_from_the_gradient_and_adam_as_part_of_it(new_trainer: New) -> None:
    """Without a gradient: AdamW shrinks by rate x decay; Adam's first step is the rate, however small."""
    rate, decay = 1e-2, 0.5
    trainer = new_trainer(Weighing(0.0), optimizer="adamw", weight_decay=decay)
    before = copies(trainer)
    trainer.train(batch_of(0), rate)
    for old, new in zip(before, copies(trainer), strict=True):
        torch.testing.assert_close(new, old * (1 - rate * decay), rtol=1e-6, atol=0)
    trainer = new_trainer(Weighing(0.0), optimizer="adam", weight_decay=decay)
    before = copies(trainer)
    trainer.train(batch_of(0), rate)
    for old, new in zip(before, copies(trainer), strict=True):
        large = old.abs() > 1e-3  # Adam adds 1e-8 to what it divides by
        torch.testing.assert_close((old - new)[large], (rate * old.sign())[large], rtol=1e-3, atol=0)


def test_fp16_overflow_is_skipped_and_the_scale_comes_down(new_trainer: New) -> None:
    """Gradients of 8 fit half precision once the scale, 65536 at first, is 4096."""
    trainer = new_trainer(Weighing(8.0, half=True), precision="fp16", nonfinite="stop")
    assert trainer.autocast is not None
    assert trainer.autocast.scaler is not None
    before = copies(trainer)
    for skipped in (1, 2, 3, 4):
        row = trainer.train(batch_of(0), 1e-3)
        assert math.isfinite(row["loss"])
        assert not math.isfinite(row["gradient_norm"])
        assert trainer.autocast.scaler.get_scale() == 65536 / 2**skipped
        assert (trainer.step, trainer.skipped) == (skipped, skipped)
        assert same(copies(trainer), before)
        with trainer.averaged():
            assert same(copies(trainer), before)  # the average waits as well
    row = trainer.train(batch_of(0), 1e-3)
    assert row["gradient_norm"] == pytest.approx(8.0 * math.sqrt(sum(p.numel() for p in before)), rel=1e-4)
    assert (trainer.step, trainer.skipped) == (5, 4)
    assert not same(copies(trainer), before)


def test_fp16_gradients_are_those_of_the_loss_not_of_the_scaled_one(new_trainer: New) -> None:
    trainer = new_trainer(Weighing(2.0), precision="fp16", clip=0.0)
    seen = at_the_step(trainer)
    count = sum(parameter.numel() for parameter in trainer.network.parameters())
    row = trainer.train(batch_of(0), 1e-3)
    assert row["gradient_norm"] == pytest.approx(2.0 * math.sqrt(count), rel=1e-4)
    assert all(bool((gradient == 2.0).all()) for gradient in seen[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_nan_stops_before_the_weights_change(new_trainer: New, precision: str) -> None:
    trainer = new_trainer(Weighing(math.nan), precision=precision)
    before = copies(trainer)
    with pytest.raises(NotFinite, match="loss is nan, gradient norm nan"):
        trainer.train(batch_of(0), 1e-3)
    assert same(copies(trainer), before)
    assert trainer.step == 0


def test_skips_in_a_row_are_counted_anew_after_a_step(
    new_trainer: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SKIPS_IN_A_ROW", 3)
    task = Weighing()
    trainer = new_trainer(task, nonfinite="skip")
    for factor in (math.nan, math.nan, 1.0, math.inf, math.nan):
        task.factor = factor
        trainer.train(batch_of(0), 1e-3, logs=True)
    assert (trainer.step, trainer.skipped) == (5, 4)
    with pytest.raises(NotFinite, match="for 3 steps in a row"):
        trainer.train(batch_of(0), 1e-3)


@pytest.mark.parametrize(
    ("precision", "task", "more"), [("fp32", None, 2), ("fp16", Weighing(8.0, half=True), 5)]
)
def test_a_restored_trainer_goes_on_exactly(new_trainer: New, precision: str, task: Any, more: int) -> None:
    """With fp16, from the middle of its search for a scale."""
    one = new_trainer(task, precision=precision)
    for step in range(2):
        one.train(batch_of(step), 1e-3)
    file = io.BytesIO()
    torch.save(one.state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    two = new_trainer(task, precision=precision)
    two.train(batch_of(9), 1e-2)  # it has been elsewhere
    two.restore(state)
    assert (two.step, two.skipped) == (one.step, one.skipped)
    for step in range(2, 2 + more):
        assert two.train(batch_of(step), 1e-3) == one.train(batch_of(step), 1e-3)
    assert same(copies(two), copies(one))
    assert two.skipped == one.skipped == (4 if task else 0)
    with one.averaged(), two.averaged():
        assert same(copies(two), copies(one))


def test_the_average_is_lent_in_eval_mode_and_training_goes_on_with_the_weights(new_trainer: New) -> None:
    trainer = new_trainer()
    trainer.train(batch_of(0), 1e-2)
    before = copies(trainer)
    with trainer.averaged() as network:
        assert not any(module.training for module in network.modules())
        assert not same(copies(trainer), before)
        lent = trainer.weights()
    assert same(copies(trainer), before)
    assert torch.equal(trainer.state()["average"]["head.weight"], lent["head.weight"])
    trainer.train(batch_of(1), 1e-2)
    assert all(module.training for module in trainer.network.modules())


def test_the_weights_are_copies(new_trainer: New) -> None:
    trainer = new_trainer()
    weights = trainer.weights()
    assert {"mean", "std", "head.weight"} < weights.keys()
    kept = weights["head.weight"].clone()
    trainer.train(batch_of(0), 1e-2)
    assert torch.equal(weights["head.weight"], kept)
    assert not torch.equal(trainer.weights()["head.weight"], kept)


def compiled_trains_alike(eager: Trainer, compiled: Trainer) -> None:
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    for step in range(3):
        one, two = eager.train(batch_of(step), 1e-4), compiled.train(batch_of(step), 1e-4)
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
    made = graphs["unique_graphs"]
    assert made > 0
    planes = noise(1, 4, 24, 256)
    with torch.no_grad(), eager.averaged() as one_network, compiled.averaged() as two_network:
        torch.testing.assert_close(two_network(planes), one_network(planes), rtol=1e-3, atol=1e-4)
    assert graphs["unique_graphs"] == made  # a song's chunks are no reason to compile again
    assert compiled.weights().keys() == eager.weights().keys()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that leaves nothing behind: no cache, no pool of processes."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


class Mask(nn.Module):
    """As little of a network as can be trained; compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False
        self.gain = nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, mixture: Tensor) -> Tensor:
        return mixture[:, None] * torch.sigmoid(self.gain)[:, None, None, None]

    def reconstruct(self, mixture: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: torch.compile needs it")
def test_compiled_it_is_the_same_training(
    new_trainer: New, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "build_network", lambda spec: Mask())
    compiled_trains_alike(new_trainer(), new_trainer(compile=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_network_can_be_compiled_whole(
    new_trainer: New, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward become one graph each; its operations are torch's, so that no C++ is compiled."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="aot_eager", fullgraph=True))
    compiled_trains_alike(new_trainer(), new_trainer(compile=True))
