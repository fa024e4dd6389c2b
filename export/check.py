"""The gate that every exported graph passes before it enters a bundle.

The file itself is opened by the backend that will run it, given two different chunks of music, alone and
as a batch, and compared with the eager network on the same planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tfswa.runtime.backends import BackendOptions, Session
from tfswa.runtime.backends.ort import OrtSession
from tfswa.runtime.backends.torchscript import TorchScriptSession, run_torch
from tfswa.runtime.errors import AudioError, ExportError, NonFiniteError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.models import FileModel
from tfswa.runtime.spec import ModelSpec
from tfswa.runtime.stft import Stft, pack

# A float32 graph of the same weights is 115 to 130 dB from eager, rounding alone. TF32 products, weights
# rounded to float16 (74 dB) or a wrong constant all fall below 80 dB, so it tells the two cases apart.
GRAPH_GATE_DB = 80.0

ITEMS = 2  # chunks compared: one alone, both as a batch
QUIET_RMS = 1e-3  # -60 dBFS: what lies below says nothing about a graph
LEVEL_DBFS = -14.0
SEED = 20_251


def check_planes(spec: ModelSpec, audio: Path | None = None) -> NDArray[np.float32]:
    """Two different chunks of music as a network sees them.

    Args:
        spec: the model's contract.
        audio: a file whose first two chunks with energy are taken; default: generated music.

    Returns:
        float32 ``[2, 2*C, T, F]``. Where a file has one loud chunk only, the second is that one reversed
        in time.

    Raises:
        AudioError: the file cannot be read, or all of it is quieter than -60 dBFS.
    """
    if audio is None:
        signal = music(spec.channels, ITEMS * spec.chunk_samples, spec.stft.sample_rate, SEED)
        chunks = np.split(signal, ITEMS, axis=-1)
    else:
        chunks = _loud_chunks(spec, audio)
    return pack(Stft(spec.stft).forward(np.stack(chunks)))


def check_graph(
    network: nn.Module, model: FileModel, planes: NDArray[np.float32], gate_db: float = GRAPH_GATE_DB
) -> dict[str, float]:
    """Compare an exported file with the eager network.

    Args:
        network: the eager network, in eval mode, on the CPU.
        model: the exported file, opened.
        planes: ``[2, 2*C, T, F]``, from ``check_planes``.
        gate_db: what each stem's SNR must reach, in each of the comparisons.

    Returns:
        SNR in dB by stem, the worst of all comparisons; ``math.inf`` where all of them are exact.

    Raises:
        NonFiniteError: the eager network itself gives NaN or Inf.
        ExportError: the graph gives NaN or Inf, or a stem is below the gate.
    """
    cpu = torch.device("cpu")
    eager = np.concatenate([run_torch(network, planes[item : item + 1], cpu) for item in range(len(planes))])
    if not np.isfinite(eager).all():
        raise NonFiniteError(
            f"the eager network behind {model.path.name} gives NaN or Inf: train it again; not written"
        )
    session = _open(model)
    try:
        alone, batch = session.infer(planes[:1]), session.infer(planes)
    finally:
        session.close()
    worst: dict[str, float] = {}
    for index, stem in enumerate(model.spec.stems):
        for found in (alone, batch):
            if not np.isfinite(found[:, index]).all():
                raise ExportError(f"{model.kind} graph gives NaN or Inf in stem {stem}; not written")
        against_eager = [
            _snr_db(eager[item, index], found[item, index])
            for found in (alone, batch)
            for item in range(len(found))
        ]
        _hold(min(against_eager), gate_db, f"{model.kind} graph differs from eager", stem)
        in_batch = _snr_db(alone[0, index], batch[0, index])
        _hold(in_batch, gate_db, f"{model.kind} graph gives an item another result in a batch", stem)
        worst[stem] = min(*against_eager, in_batch)
    return worst


def music(channels: int, samples: int, sample_rate: int, seed: int) -> NDArray[np.float32]:
    """Seeded stand-in for music: voices with vibrato, drum-like bursts of noise, a noise floor.

    Returns:
        float32 ``[C, N]`` at -14 dBFS (RMS over all channels).
    """
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / sample_rate
    signal = 1e-3 * rng.standard_normal((channels, samples))
    for pitch_hz in (110.0, 277.2, 415.3):
        vibrato = 0.006 * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * seconds)
        phase = 2 * np.pi * pitch_hz * (seconds + vibrato / 6.0)
        pan = rng.uniform(0.3, 1.0, (channels, 1))
        for harmonic in range(1, int(min(12.0, sample_rate / 2 / pitch_hz))):
            signal += pan / harmonic * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    for start in range(0, samples, sample_rate // 4):
        burst = min(sample_rate // 8, samples - start)
        decay = np.exp(-np.arange(burst) / (0.02 * sample_rate))
        signal[:, start : start + burst] += 3.0 * decay * rng.standard_normal((channels, burst))
    signal *= 10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(signal**2))
    return signal.astype(np.float32)


def _loud_chunks(spec: ModelSpec, audio: Path) -> list[NDArray[np.float32]]:
    """Read no further than the second chunk with energy."""
    found: list[NDArray[np.float32]] = []
    for chunk in _chunks(spec, audio):
        if np.sqrt(np.mean(np.square(chunk, dtype=np.float64))) > QUIET_RMS:
            found.append(chunk)
        if len(found) == ITEMS:
            return found
    if not found:
        raise AudioError(f"{audio} is quieter than -60 dBFS throughout: compare on a file that holds music")
    return [found[0], found[0][:, ::-1]]


def _chunks(spec: ModelSpec, audio: Path) -> Iterator[NDArray[np.float32]]:
    """Chunks ``[C, chunk_samples]`` one after another, the last padded with zeros."""
    from tfswa.runtime.audio import model_blocks, open_audio

    size = spec.chunk_samples
    held = np.zeros((spec.channels, 0), np.float32)
    with open_audio(audio) as source:
        for block in model_blocks(source, spec.stft.sample_rate, spec.channels):
            held = np.concatenate((held, block), axis=1)
            while held.shape[1] >= size:
                yield held[:, :size]
                held = held[:, size:]
    if held.shape[1]:
        yield np.pad(held, ((0, 0), (0, size - held.shape[1])))


def _open(model: FileModel) -> Session:
    if model.kind == "onnx":
        return OrtSession(model, BackendOptions())
    return TorchScriptSession(model, BackendOptions())


def _snr_db(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """SNR in dB, defined for a silent reference too: only silence is equal to it."""
    value = snr_db(reference, found)
    if value is None:
        return math.inf if not found.any() else -math.inf
    return value


def _hold(value_db: float, gate_db: float, what: str, stem: str) -> None:
    if value_db < gate_db:
        raise ExportError(f"{what}: stem {stem} SNR {value_db:.1f} dB, gate {gate_db:g} dB; not written")
