"""The gate that every exported graph passes before it enters a bundle.

The file itself is opened by a backend that will run it, given two different chunks of music, alone and as
a batch, and compared with the eager network on the same planes. A graph of low precision is judged by what
it rounds (``precision.rounded``), and on signals that are made to overflow it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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
from tfswa.runtime.model.spec import INPUT, NEXT, SAMPLES, STATE, ModelSpec
from tfswa.runtime.parity.corpus import adversarial_chunks
from tfswa.runtime.parity.figures import output_parts
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.codec import Tensors, first_tensors
from tfswa.runtime.stream.transform import Stft

Infer = Callable[[Tensors], Tensors]

ITEMS = 2  # chunks compared: one alone, both as a batch
QUIET_RMS = 1e-3  # -60 dBFS: what lies below says nothing about a graph


def check_tensors(spec: ModelSpec, audio: Path | None = None) -> Tensors:
    """Two different chunks of music as a network takes them, each as if it were a signal's first.

    Args:
        spec: the model's contract.
        audio: a file whose first two chunks with energy are taken; default: generated music.

    Returns:
        Float32 tensors by name, of two items each. Where a file has one loud chunk only, the second is that
        one reversed in time.

    Raises:
        AudioError: the file cannot be read, or all of it is quieter than -60 dBFS.
    """
    if audio is None:
        samples = ITEMS * spec.chunk_samples
        song = synthetic_song(spec, (samples + 1) / spec.stft.sample_rate)
        chunks = np.split(song.mixture[:, :samples], ITEMS, axis=-1)
    else:
        chunks = _loud_chunks(spec, audio)
    return _given(spec, np.stack(chunks))


def _given(spec: ModelSpec, chunks: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What a network takes of chunks ``[B, C, N]``, each as if it were a signal's first."""
    return first_tensors(spec, {INPUT: Stft(spec.stft).planes(chunks), SAMPLES: chunks})


@dataclass(frozen=True)
class Peak:
    """The largest number that a graph of low precision meets.

    Attributes:
        value: magnitude, on music and on adversaries.
        node: which result it is.
        signal: on which signal: ``music``, or the name of an adversary.
        largest: what the precision can hold.
    """

    value: float
    node: str
    signal: str
    largest: float


def check_graph(
    network: nn.Module,
    model: FileModel,
    given: Tensors,
    gate_db: float | None = None,
    *,
    on: str = "",
) -> tuple[dict[str, float], Peak | None]:
    """Compare an exported file with the eager network.

    Args:
        network: the eager network, in eval mode, on the CPU; or the published graph in place of it.
        model: the exported file, opened.
        given: from ``check_tensors``.
        gate_db: what each stem's SNR must reach, in each of the comparisons; default: that of parity.
        on: what they are called where one does not.

    Returns:
        SNR in dB by part of what it gives (``output_parts``), the worst of all comparisons, ``math.inf``
        where all of them are exact; and the peak, of low precision.

    Raises:
        NonFiniteError: the eager network itself gives NaN or Inf.
        ExportError: the graph gives NaN or Inf, overflows, or a stem is below the gate.
    """
    cpu = torch.device("cpu")
    spec, given, eager = model.spec, dict(given), []
    for item in range(ITEMS):
        alone = {name: value[item : item + 1] for name, value in given.items()}
        eager.append(output_parts(spec, run_torch(network, spec, alone, cpu)))
        for name in spec.state if item == 0 else ():  # the second item's is what the first one handed on
            given[STATE + name] = np.concatenate((alone[STATE + name], eager[0][NEXT + name]))
    if not all(np.isfinite(part).all() for parts in eager for part in parts.values()):
        raise NonFiniteError(
            f"{_source(spec)} behind {model.path.name} gives NaN or Inf: train it again; not written"
        )
    comparison = _Comparison(
        model, given, eager, gate_for(model.precision).snr_db if gate_db is None else gate_db, on
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
    given: Tensors
    eager: Sequence[Tensors]  # parts of each item
    gate_db: float
    on: str

    def hold(self, infer: Infer) -> dict[str, float]:
        """Worst SNR in dB by part; see ``check_graph``."""
        kind, on, spec = self.model.kind, f" on {self.on}" if self.on else "", self.model.spec
        first = {name: value[:1] for name, value in self.given.items()}
        alone, batch = (output_parts(spec, infer(given)) for given in (first, self.given))
        worst: dict[str, float] = {}
        for part in alone:
            called = f"stem {part}" if part in spec.outputs else part
            for found in (alone, batch):
                if not np.isfinite(found[part]).all():
                    raise ExportError(f"{kind} graph gives NaN or Inf in {called}; not written")
            against_eager = [
                likeness_db(self.eager[item][part][0], one)
                for found in (alone, batch)
                for item, one in enumerate(found[part])
            ]
            of = "eager" if spec.family is not None else _source(spec)
            _hold(min(against_eager), self.gate_db, f"{kind} graph differs from {of}{on}", called)
            in_batch = likeness_db(alone[part][0], batch[part][0])
            _hold(in_batch, self.gate_db, f"{kind} graph gives an item another result in a batch", called)
            worst[part] = min(*against_eager, in_batch)
        return worst


class Rounding:
    """A graph of low precision, every result of it rounded and its magnitude kept.

    Args:
        model: an ONNX file in ``fp16``, ``bf16`` or ``mixed``.
    """

    def __init__(self, model: FileModel) -> None:
        import onnx

        from tfswa.export.precision import PEAKS, largest, or_bf16, rounded
        from tfswa.export.session import cpu_session

        low, self._peaks = TYPED[model.precision], PEAKS
        self.model, self.largest, self.other = model, largest(low), or_bf16(low)
        self.peak: Peak | None = None
        graph, self.nodes = rounded(onnx.load(model.path))
        self._session = cpu_session(graph, in_order=True, optimized=False)

    def infer(self, given: Tensors, signal: str = "music") -> Tensors:
        """What the graph takes to what it gives; ``peak`` grows.

        Raises:
            ExportError: a result is larger than the precision can hold, or NaN.
        """
        gives = list(self.model.spec.gives)
        *found, peaks = self._session.run([*gives, self._peaks], dict(given))
        for value, node in zip(peaks, self.nodes, strict=True):
            if not value <= self.largest:  # NaN too
                raise ExportError(
                    f"{self.model.precision} graph overflows on {signal}: {node} gives {value:g}, it holds "
                    f"{self.largest:g}: keep that in float32 with --plan{self.other}; not written"
                )
        index = int(peaks.argmax())
        if self.peak is None or peaks[index] > self.peak.value:
            self.peak = Peak(float(peaks[index]), self.nodes[index], signal, self.largest)
        return dict(zip(gives, found, strict=True))

    def measure_adversaries(self) -> None:
        """Run the adversaries.

        Raises:
            ExportError: one of them overflows.
        """
        for name, given in adversarial_tensors(self.model.spec).items():
            found = self.infer(given, name)
            if not all(np.isfinite(value).all() for value in found.values()):
                raise ExportError(f"{self.model.precision} graph gives NaN or Inf on {name}; not written")


def adversarial_tensors(spec: ModelSpec) -> dict[str, Tensors]:
    """What a network takes of signals that break low precision, one chunk each, by name."""
    return {name: _given(spec, chunk[np.newaxis]) for name, chunk in adversarial_chunks(spec)}


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


def _source(spec: ModelSpec) -> str:
    return "the published graph" if spec.family is None else "the eager network"


def _open(model: FileModel) -> Session:
    return open_session(AUTO, model, BackendOptions(precision=model.precision))


def _hold(value_db: float, gate_db: float, what: str, part: str) -> None:
    if value_db < gate_db:
        raise ExportError(f"{what}: {part} SNR {value_db:.1f} dB, gate {gate_db:g} dB; not written")
