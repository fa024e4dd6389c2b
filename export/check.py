"""The gate that every exported graph passes before it enters a bundle.

The file itself is opened by a backend that will run it, given two different chunks of music, alone and as
a batch, and compared with the eager network on the same planes. A graph of low precision is judged by what
it rounds (``precision.rounded``), and on signals that are made to overflow it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tfswa.export.plan import TYPED
from tfswa.runtime.backends import AUTO, BackendOptions, Session, open_session
from tfswa.runtime.backends.torchscript import run_torch
from tfswa.runtime.errors import AudioError, ExportError, NonFiniteError
from tfswa.runtime.gates import gate_for
from tfswa.runtime.metrics import likeness_db
from tfswa.runtime.model.opening import FileModel
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.corpus import adversarial_chunks
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.transform import Stft

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]

ITEMS = 2  # chunks compared: one alone, both as a batch
QUIET_RMS = 1e-3  # -60 dBFS: what lies below says nothing about a graph


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
        samples = ITEMS * spec.chunk_samples
        song = synthetic_song(spec, (samples + 1) / spec.stft.sample_rate)
        chunks = np.split(song.mixture[:, :samples], ITEMS, axis=-1)
    else:
        chunks = _loud_chunks(spec, audio)
    return Stft(spec.stft).planes(np.stack(chunks))


@dataclass(frozen=True)
class Peak:
    """The largest number that a graph of low precision meets.

    Attributes:
        value: magnitude, on music and on the adversarial_planes.
        node: which result it is.
        signal: on which signal: ``music``, or a name of ``adversarial_planes``.
        largest: what the precision can hold.
    """

    value: float
    node: str
    signal: str
    largest: float


def check_graph(
    network: nn.Module,
    model: FileModel,
    planes: NDArray[np.float32],
    gate_db: float | None = None,
    *,
    on: str = "",
) -> tuple[dict[str, float], Peak | None]:
    """Compare an exported file with the eager network.

    Args:
        network: the eager network, in eval mode, on the CPU.
        model: the exported file, opened.
        planes: ``[2, 2*C, T, F]``, from ``check_planes``.
        gate_db: what each stem's SNR must reach, in each of the comparisons; default: that of parity.
        on: what the planes are called where one does not.

    Returns:
        SNR in dB by stem, the worst of all comparisons, ``math.inf`` where all of them are exact; and the
        peak, of low precision.

    Raises:
        NonFiniteError: the eager network itself gives NaN or Inf.
        ExportError: the graph gives NaN or Inf, overflows, or a stem is below the gate.
    """
    cpu = torch.device("cpu")
    eager = np.concatenate([run_torch(network, planes[item : item + 1], cpu) for item in range(len(planes))])
    if not np.isfinite(eager).all():
        raise NonFiniteError(
            f"the eager network behind {model.path.name} gives NaN or Inf: train it again; not written"
        )
    comparison = _Comparison(
        model, planes, eager, gate_for(model.precision).snr_db if gate_db is None else gate_db, on
    )
    if model.precision not in TYPED:
        with closing(_open(model)) as session:
            return comparison.hold(session.infer), None
    rounding = Rounding(model)
    rounding.measure_adversaries()
    snr_db = comparison.hold(rounding.infer)
    if TYPED[model.precision] == "fp16":  # ONNX Runtime's CPU provider has no bfloat16
        with closing(_open(model)) as session:
            comparison.hold(session.infer)
    return snr_db, rounding.peak


@dataclass(frozen=True)
class _Comparison:
    """What graphs of one file are held against."""

    model: FileModel
    planes: NDArray[np.float32]
    eager: NDArray[np.float32]
    gate_db: float
    on: str

    def hold(self, infer: Infer) -> dict[str, float]:
        """Worst SNR in dB by stem; see ``check_graph``."""
        kind, on = self.model.kind, f" on {self.on}" if self.on else ""
        alone, batch = infer(self.planes[:1]), infer(self.planes)
        worst: dict[str, float] = {}
        for index, stem in enumerate(self.model.spec.outputs):
            for found in (alone, batch):
                if not np.isfinite(found[:, index]).all():
                    raise ExportError(f"{kind} graph gives NaN or Inf in stem {stem}; not written")
            against_eager = [
                likeness_db(self.eager[item, index], found[item, index])
                for found in (alone, batch)
                for item in range(len(found))
            ]
            _hold(min(against_eager), self.gate_db, f"{kind} graph differs from eager{on}", stem)
            in_batch = likeness_db(alone[0, index], batch[0, index])
            _hold(in_batch, self.gate_db, f"{kind} graph gives an item another result in a batch", stem)
            worst[stem] = min(*against_eager, in_batch)
        return worst


class Rounding:
    """A graph of low precision, every result of it rounded and its magnitude kept.

    Args:
        model: an ONNX file in ``fp16``, ``bf16`` or ``mixed``.
    """

    def __init__(self, model: FileModel) -> None:
        import onnx

        from tfswa.export.precision import largest, or_bf16, rounded
        from tfswa.export.session import cpu_session

        low = TYPED[model.precision]
        self.model, self.largest, self.other = model, largest(low), or_bf16(low)
        self.peak: Peak | None = None
        graph, self.nodes = rounded(onnx.load(model.path))
        self._session = cpu_session(graph, in_order=True, optimized=False)

    def infer(self, planes: NDArray[np.float32], signal: str = "music") -> NDArray[np.float32]:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``; ``peak`` grows.

        Raises:
            ExportError: a result is larger than the precision can hold, or NaN.
        """
        stems: NDArray[np.float32]
        stems, peaks = self._session.run(None, {self._session.get_inputs()[0].name: planes})
        for value, node in zip(peaks, self.nodes, strict=True):
            if not value <= self.largest:  # NaN too
                raise ExportError(
                    f"{self.model.precision} graph overflows on {signal}: {node} gives {value:g}, it holds "
                    f"{self.largest:g}: keep that in float32 with --plan{self.other}; not written"
                )
        index = int(peaks.argmax())
        if self.peak is None or peaks[index] > self.peak.value:
            self.peak = Peak(float(peaks[index]), self.nodes[index], signal, self.largest)
        return stems

    def measure_adversaries(self) -> None:
        """Run the adversarial_planes.

        Raises:
            ExportError: one of them overflows.
        """
        for name, planes in adversarial_planes(self.model.spec).items():
            if not np.isfinite(self.infer(planes, name)).all():
                raise ExportError(f"{self.model.precision} graph gives NaN or Inf on {name}; not written")


def adversarial_planes(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Signals that break low precision, one chunk each ``[1, 2*C, T, F]``, by name."""
    transform = Stft(spec.stft)
    return {name: transform.planes(chunk[np.newaxis]) for name, chunk in adversarial_chunks(spec)}


def _loud_chunks(spec: ModelSpec, audio: Path) -> list[NDArray[np.float32]]:
    """Read no further than the second chunk with energy."""
    found: list[NDArray[np.float32]] = []
    with closing(_chunks(spec, audio)) as chunks:
        for chunk in chunks:
            if np.sqrt(np.mean(np.square(chunk, dtype=np.float64))) > QUIET_RMS:
                found.append(chunk)
            if len(found) == ITEMS:
                return found
    if not found:
        raise AudioError(f"{audio} is quieter than -60 dBFS throughout: compare on a file that holds music")
    return [found[0], found[0][:, ::-1]]


def _chunks(spec: ModelSpec, audio: Path) -> Generator[NDArray[np.float32]]:
    """Chunks ``[C, chunk_samples]`` one after another, the last padded with zeros.

    What the reader found in the part that was read is logged, damage as a warning.
    """
    from tfswa.runtime.audio.reading import log_notes, model_blocks, open_audio

    size = spec.chunk_samples
    held = np.zeros((spec.channels, 0), np.float32)
    with open_audio(audio) as source:
        try:
            for block in model_blocks(source, spec.stft.sample_rate, spec.channels):
                held = np.concatenate((held, block), axis=1)
                while held.shape[1] >= size:
                    yield held[:, :size]
                    held = held[:, size:]
        finally:
            log_notes(source)
    if held.shape[1]:
        yield np.pad(held, ((0, 0), (0, size - held.shape[1])))


def _open(model: FileModel) -> Session:
    return open_session(AUTO, model, BackendOptions(precision=model.precision))


def _hold(value_db: float, gate_db: float, what: str, stem: str) -> None:
    if value_db < gate_db:
        raise ExportError(f"{what}: stem {stem} SNR {value_db:.1f} dB, gate {gate_db:g} dB; not written")
