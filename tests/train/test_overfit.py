"""The network and its training can learn at all: two seconds of real music by heart."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: training needs it")

import numpy as np  # noqa: E402

from tfswa.runtime.metrics import sdr_db  # noqa: E402
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file  # noqa: E402
from tfswa.train.config import LossConfig, OptimConfig, TrainConfig  # noqa: E402
from tfswa.train.data.loader import Batch  # noqa: E402
from tfswa.train.families import build_network, new_spec  # noqa: E402
from tfswa.train.scale import new_fabric  # noqa: E402
from tfswa.train.schedule import Schedule  # noqa: E402
from tfswa.train.tasks import Separation  # noqa: E402
from tfswa.train.trainer import Trainer  # noqa: E402

STEPS = 300
FRAMES = 128
WANTED_DB = 12.0  # the best that a magnitude mask can do here is about 9: the mask is complex


@pytest.mark.slow
def test_two_seconds_are_learned_by_heart() -> None:
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed")
    spec = new_spec("tfswa_lite", hyper={"mask": "complex"})
    song = load_stem_file(path, spec)
    second = spec.stft.sample_rate
    stems = np.zeros((2, 2, (FRAMES - 1) * spec.stft.hop), np.float32)
    for index, stem in enumerate(spec.stems):
        stems[index, :, : 2 * second] = song.stems[stem][:, second : 3 * second]
    optim = OptimConfig(length=STEPS, batch=1, frames=FRAMES, lr=4e-3, warmup=20, weight_decay=0.0, ema=0.0)
    loss = LossConfig(spectrogram_l1=0.0, multi_resolution_stft=0.0, waveform_l1=1.0)
    device = torch.device("cpu")
    config = dataclasses.replace(TrainConfig(), optim=optim, loss=loss)
    task, schedule = Separation(config, spec, device), Schedule(optim, 1)
    torch.manual_seed(0)
    network = build_network(spec)
    planes, _ = task.stft.forward(torch.from_numpy(stems.sum(axis=0))[None])
    network.set_statistics(planes.mean(dim=(0, 1, 2)), planes.std(dim=(0, 1, 2)))
    fabric, autocast = new_fabric(device, optim)
    trainer = Trainer(network, task, optim, second, fabric, autocast)
    batch = Batch(torch.from_numpy(stems)[None], (0,), 0.0)
    before = reached = vocals_db(trainer, task, batch)
    while reached <= WANTED_DB and trainer.step < STEPS:
        trainer.train(batch, schedule.rate(trainer.step))
        if trainer.step % 25 == 0:
            reached = vocals_db(trainer, task, batch)
    print(f"vocals {before:.2f} dB before, {reached:.2f} dB after {trainer.step} steps")
    assert reached > WANTED_DB > before + 6


def vocals_db(trainer: Trainer, task: Separation, batch: Batch) -> float:
    """SDR of the two seconds."""
    true_planes, nyquist = task.stft.forward(batch.stems)
    with trainer.averaged() as network, torch.no_grad():
        planes = network(true_planes.sum(dim=1))
    wave = task.stft.inverse(planes, torch.zeros_like(nyquist), batch.stems.shape[-1])
    heard = slice(0, 2 * task.spec.stft.sample_rate)
    value = sdr_db(batch.stems[0, 0, :, heard].numpy(), wave[0, 0, :, heard].numpy())
    assert value is not None
    return value
