"""A model in a backend, ready to separate: arrays, streams, files.

file -> decode -> channels, rate -> OverlapAdd -> STFT -> backend -> iSTFT -> OverlapAdd -> encode -> files
        '----- thread -----'       '--------------- caller --------------'               '- thread -'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import model_blocks, open_audio, output_channels
from tfswa.runtime.audio.writing import Clip, StemFiles, WriteReport
from tfswa.runtime.backends import BackendOptions, Session, open_session
from tfswa.runtime.errors import NonFiniteError, TfxError, UsageError
from tfswa.runtime.model.opening import Model
from tfswa.runtime.stream.fallback import Fallback
from tfswa.runtime.stream.overlap import OverlapAdd, Redone, finite
from tfswa.runtime.stream.pipeline import Behind, Prefetch
from tfswa.runtime.stream.transform import pack, unpack
from tfswa.runtime.stream.transform_torch import transform_for

Audio = NDArray[np.float32]
OnNonFinite = Literal["error", "recompute"]


@dataclass(frozen=True)
class FileResult:
    """What came of one file.

    Attributes:
        written: paths, peaks, clipping.
        audio_seconds: length of the input.
        wall_seconds: from opening the input to the last rename.
        cpu_seconds: CPU time of the whole process meanwhile.
        host_cpu_seconds: CPU time of everything but the network: decode, STFT, overlap-add, encode.
        recomputed: start and end, in seconds, of each chunk that was computed again in float32.
    """

    written: WriteReport
    audio_seconds: float
    wall_seconds: float
    cpu_seconds: float
    host_cpu_seconds: float
    recomputed: tuple[tuple[float, float], ...]

    @property
    def x_realtime(self) -> float:
        """Seconds of audio separated per second."""
        return self.audio_seconds / self.wall_seconds


class Separator:
    """A model loaded in a backend; a context manager. The output does not depend on ``batch``.

    Args:
        model: from ``open_model``.
        backend: a registered name, or ``auto``.
        options: precision, device, threads.
        batch: chunks that the backend gets at once.
        on_nonfinite: what becomes of a chunk whose stems hold NaN or Inf because the network's output
            does. ``error`` raises; ``recompute`` has the bundle's float32 network compute it again on the
            CPU (see ``Fallback``), which is loaded for the first such chunk. No bit of another chunk
            changes.

    Attributes:
        spec: the model's contract.
        session: the loaded network.
        redone: chunks of the latest ``separate`` that were computed again; streams and files have theirs.

    Raises:
        UsageError, BackendUnavailable, BundleError: see ``open_session``. With ``recompute`` also
            UsageError for an exported file, and where ``backend`` is the float32 network itself;
            BackendUnavailable where that network cannot run.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str = "auto",
        options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
        batch: int = 1,
        on_nonfinite: OnNonFinite = "error",
    ):
        if batch < 1:
            raise UsageError(f"batch {batch} must be at least 1")
        if on_nonfinite not in get_args(OnNonFinite):
            raise UsageError(f"on_nonfinite {on_nonfinite!r}: choose {' or '.join(get_args(OnNonFinite))}")
        self.model, self.spec, self.batch = model, model.spec, batch
        self.redone: list[Redone] = []
        self._fallback = Fallback(model, options.threads) if on_nonfinite == "recompute" else None
        self.session: Session = open_session(backend, model, options)
        if self._fallback is not None:
            try:
                self._fallback.check_differs(self.session.name, options.precision)
            except UsageError:
                self.session.close()
                raise
        self._stft = transform_for(self.spec.stft, options.device)
        self._network_thread_seconds = 0.0
        self._finite: list[bool] = []  # of each item that the network gave last; empty without a fallback

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the network."""
        if self._fallback is not None:  # first, as it was opened last: threads are given back in turn
            self._fallback.close()
        self.session.close()

    @property
    def description(self) -> str:
        """What runs the network and where; where the transforms are computed, if not on the CPU."""
        elsewhere = "" if self._stft.place == "cpu" else f", STFT on {self._stft.place}"
        return self.session.description + elsewhere

    @property
    def recomputed_by(self) -> str | None:
        """What computed chunks again, of which file; None where it was not needed."""
        return None if self._fallback is None else self._fallback.description

    def stream(self) -> OverlapAdd:
        """Return a fresh stream engine around this model, for one signal."""
        return OverlapAdd(
            self._separate_chunks,
            channels=self.spec.channels,
            stems=self.spec.stems,
            chunk_samples=self.spec.chunk_samples,
            context_samples=self.spec.context_samples,
            fade_samples=self.spec.fade_samples,
            batch=self.batch,
            redo=None if self._fallback is None else self._recompute,
        )

    def separate(self, mixture: Audio) -> Audio:
        """Separate a whole signal in memory: ``[C, N] -> [S, C, N]`` at the model's rate."""
        engine = self.stream()
        self.redone = engine.redone
        return np.concatenate((engine.push(mixture), engine.flush()), axis=-1)

    def separate_file(
        self,
        source: Path,
        outputs: Mapping[str, Path],
        *,
        format: str = "wav",
        clip: Clip = "none",
        force: bool = False,
        progress: Callable[[float, float | None], None] = lambda done, total: None,
    ) -> FileResult:
        """Separate a file into files, in bounded memory, whole or not at all.

        Args:
            source: any audio file.
            outputs: final path per wanted stem; stems left out are not written.
            format: a name in ``encoders.FORMATS``.
            clip: what happens to samples beyond full scale, see ``StemFiles``.
            force: replace existing files.
            progress: called with seconds done and, where it is known, seconds in all.

        Raises:
            UsageError: an unknown stem or an output that cannot be.
            AudioError: an input that cannot be decoded.
            NonFiniteError: the network produced NaN or Inf, or so did the float32 one that was asked.
        """
        picked = stem_indices(self.model, list(outputs))
        wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
        self._network_thread_seconds = 0.0
        rate = self.spec.stft.sample_rate
        with open_audio(source) as audio:
            total = None if audio.samples is None else audio.samples / audio.sample_rate
            with StemFiles(
                outputs,
                format=format,
                sample_rate=audio.sample_rate,
                channels=output_channels(audio.channels, self.spec.channels),
                model_rate=rate,
                expected_samples=audio.samples,
                clip=clip,
                tags_from=source,
                force=force,
            ) as files:
                engine, done = self.stream(), 0
                blocks = model_blocks(audio, rate, self.spec.channels)
                with Prefetch(blocks) as decoded, Behind(files.write) as encoder:
                    for block in decoded:
                        stems = engine.push(block)
                        if stems.shape[-1]:
                            encoder.put(stems[picked])
                            done += stems.shape[-1]
                            progress(done / rate, total)
                    encoder.put(engine.flush()[picked])
                report = files.finish(audio.samples_read)
            seconds = audio.samples_read / audio.sample_rate
        progress(seconds, seconds)
        own = time.thread_time() - own - self._network_thread_seconds
        return FileResult(
            report,
            seconds,
            time.perf_counter() - wall,
            time.process_time() - cpu,
            own + decoded.cpu_seconds + encoder.cpu_seconds,
            tuple((chunk.start / rate, chunk.stop / rate) for chunk in engine.redone),
        )

    def _separate_chunks(self, chunks: Audio) -> Audio:
        """``[B, C, N] -> [B, S, C, N]``, one transform per chunk so that a batch changes no bit of it."""
        spectra = [self._stft.forward(chunk) for chunk in chunks]
        out = self._infer(self.session, spectra)
        self._finite = [] if self._fallback is None else [finite(item) for item in out]
        return np.stack([self._stems(chunk, s, o) for chunk, s, o in zip(chunks, spectra, out, strict=True)])

    def _recompute(self, chunk: Audio, place: int) -> Audio:
        """A chunk ``[1, C, N]`` of the latest batch to stems ``[1, S, C, N]``, by the float32 network."""
        assert self._fallback is not None
        if self._finite[place]:
            raise NonFiniteError(
                "the network's output is finite, its inverse transform is not: check the model"
            )
        spectrum = self._stft.forward(chunk[0])
        out = self._infer(self._fallback, [spectrum])
        return self._stems(chunk[0], spectrum, out[0])[np.newaxis]

    def _infer(self, network: Session | Fallback, spectra: Sequence[NDArray[np.complex64]]) -> Audio:
        """Spectra of B chunks, each ``[C, T, F + 1]``, to the network's output ``[B, S, 2*C, T, F]``."""
        planes = np.stack([pack(spectrum) for spectrum in spectra])
        before = time.thread_time()
        out = network.infer(planes)
        self._network_thread_seconds += time.thread_time() - before
        expected = self.spec.output_shape(len(planes))
        if out.shape != expected:
            raise TfxError(f"{network.description} returned shape {out.shape}, the spec says {expected}")
        return out

    def _stems(self, chunk: Audio, spectrum: NDArray[np.complex64], out: Audio) -> Audio:
        """One chunk's network output ``[S, 2*C, T, F]`` to stems ``[S, C, N]``."""
        spec = self.spec
        nyquist = np.zeros((len(spec.stems), *spectrum.shape[:2]), np.complex64)  # [S, C, T]
        nyquist[spec.stems.index(spec.nyquist_stem)] = spectrum[..., -1]
        with np.errstate(invalid="ignore", over="ignore"):  # the stream engine says it, with chunk and stem
            stems = self._stft.inverse(unpack(out, nyquist), chunk.shape[-1])
            if spec.residual_stem is not None:
                stems[spec.stems.index(spec.residual_stem)] += chunk - stems.sum(axis=0)
        return stems


def stem_indices(model: Model, stems: Sequence[str]) -> list[int]:
    """Places of some stems in a model's output.

    Raises:
        UsageError: the model has no such stem.
    """
    known = model.spec.stems
    for stem in stems:
        if stem not in known:
            raise UsageError(f"{model.name} has no stem {stem!r}: it has {', '.join(known)}")
    return [known.index(stem) for stem in stems]
