"""Audio out: stems to files that appear all together, complete, or not at all.

Samples pass, in this order: resampler -> channels -> held tail -> clip -> encoder. With ``rescale`` they
wait on disk as floats until the gain is known. Tags and final names come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
import soundfile

from tfswa.runtime.audio.decoders import one_line
from tfswa.runtime.audio.encoders import Encoder, Format, check_format, open_encoder
from tfswa.runtime.audio.layouts import Block, to_channels
from tfswa.runtime.audio.reading import BLOCK_SAMPLES, Resampler
from tfswa.runtime.audio.tags import Tags, insert_flac_blocks, prepend_id3, uncarried
from tfswa.runtime.errors import AudioError, NonFiniteError
from tfswa.runtime.files.staging import Staging, scratch_path

Clip = Literal["none", "rescale", "clip"]

# The resamplers there and back may leave a few samples too many; the exact length is known only at the
# end, so this many samples wait until then.
HELD_SAMPLES = 1 << 12

_FAILURES = (OSError, soundfile.SoundFileError)


@dataclass(frozen=True)
class WriteReport:
    """What was written.

    Attributes:
        paths: final file per stem, in the model's order.
        samples: length per channel of each, before any padding that a lossy format adds.
        sample_rate: in Hz.
        peaks: largest magnitude per stem before clip and gain, 1.0 being full scale.
        clipped: samples per stem beyond full scale that the file does not hold as they were (or that
            players will clip, in lossy formats).
        gain: the factor applied to all stems; 1.0 but for ``rescale``.
        notes: what could not be carried over, as sentences.
        format: name of the format.
        clip: the mode.
    """

    paths: Mapping[str, Path]
    samples: int
    sample_rate: int
    peaks: Mapping[str, float]
    clipped: Mapping[str, int]
    gain: float
    notes: tuple[str, ...]
    format: Format
    clip: Clip

    def lines(self) -> list[str]:
        """What was done to the sound and what was lost, a sentence each; empty if nothing."""
        lines = []
        if self.gain != 1.0:
            peak = max(self.peaks.values())
            lines.append(f"rescaled all stems by {self.gain:.3g} (peak {peak:.3g})")
        for stem, count in self.clipped.items():
            if not count:
                continue
            what = f"{count} sample{'s' if count > 1 else ''} of {stem} beyond full scale"
            if self.clip == "clip":
                lines.append(f"{what} limited to [-1, 1], as --clip clip asks")
            else:
                fate = "clipped" if self.format.lossless else "left to the player, which clips as a rule"
                lines.append(f"{what} {fate}; --clip rescale keeps the shape, wav holds them as they are")
        return [*lines, *self.notes]


class StemFiles:
    """The files of one separation; a context manager that removes every trace if it is left early.

    Args:
        paths: final file per stem, in the model's order; missing parent directories are made.
        format: a name in ``encoders.FORMATS``.
        sample_rate: of the files, in Hz.
        channels: of the files; 1 or as the model's.
        model_rate: of what ``write`` is given, in Hz.
        expected_samples: length per channel of the files, where it is known; only used to refuse a job
            for which there is no room.
        clip: ``none`` leaves samples as they are (integer formats limit them, which is reported), ``clip``
            limits them to [-1, 1], ``rescale`` turns all stems down by the same factor if any exceeds 1.
        tags: of the input, copied into each file as far as its format holds them.
        source: the input, which must not be replaced.
        force: replace files that are there already.
        below: the folder that the user named, see ``Staging``.

    Raises:
        UsageError: a format that cannot hold the rate, a place that cannot be written to, or two stems
            in one file.
        OutputExists: a file is there and ``force`` is not given.
        AudioError: the disk is full, or will be.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        *,
        format: str,
        sample_rate: int,
        channels: int,
        model_rate: int,
        expected_samples: int | None = None,
        clip: Clip = "none",
        tags: Tags = Tags(),  # noqa: B008  frozen
        source: Path | None = None,
        force: bool = False,
        below: Path | None = None,
    ) -> None:
        self.format = check_format(format, sample_rate)
        self.paths = dict(paths)
        self.sample_rate, self.channels, self.clip = sample_rate, channels, clip
        self._model_rate = model_rate
        self._resampler: Resampler | None = None
        self._held = np.zeros((len(self.paths), channels, 0), np.float32)  # [S, C, n]
        self._samples = 0
        self._peaks = np.zeros(len(self.paths))
        self._clipped = np.zeros(len(self.paths), np.int64)
        self._scratch: list[BinaryIO] = []
        self._encoders: list[Encoder] = []
        self._staging = Staging(self.paths, force=force, source=source, below=below)
        self._tags = tags
        with self._reported():
            self._staging.prepare((expected_samples or 0) * self._bytes_per_sample())
            self._open()

    def write(self, stems: Block) -> None:
        """Append ``[S, C_model, N]`` at the model's rate; C_model is the files' C, or 2 for mono files.

        Raises:
            AudioError: the disk is full, or another failure to write; nothing is left behind.
            NonFiniteError: a sample is NaN or Inf.
        """
        with self._reported():
            count, model_channels, _ = stems.shape
            assert count == len(self.paths), f"{count} stems for {len(self.paths)} files"
            if model_channels != self.channels:
                stems = np.stack([to_channels(stem, self.channels) for stem in stems])
            if self._resampler is None:
                self._resampler = Resampler(self._model_rate, self.sample_rate, count * self.channels)
            rows = stems.reshape(count * self.channels, -1)  # [S*C, N]
            self._keep(self._resampler.push(rows))

    def finish(self, samples: int) -> WriteReport:
        """Complete all files and give them their names.

        Args:
            samples: exact length per channel, at the files' rate. What the resamplers lack is filled up
                with zeros, what they have too much is cut.

        Raises:
            AudioError: the disk is full, or another failure to write; nothing is left behind.
        """
        with self._reported():
            if self._resampler is not None:
                self._keep(self._resampler.flush())
            excess = self._samples + self._held.shape[2] - samples
            assert abs(excess) <= HELD_SAMPLES, f"{excess} samples too many, more than resampling explains"
            tail = self._held[:, :, : samples - self._samples]
            lacking = samples - self._samples - tail.shape[2]
            self._emit(np.pad(tail, ((0, 0), (0, 0), (0, lacking))))
            self._encode_scratch()
            notes = self._fill_empty(samples)
            for encoder in self._encoders:
                encoder.close()
            notes += self._tag()
            self._staging.publish()
        return WriteReport(
            paths=self.paths,
            samples=samples,
            sample_rate=self.sample_rate,
            peaks=dict(zip(self.paths, self._peaks.tolist(), strict=True)),
            clipped=dict(zip(self.paths, self._clipped.tolist(), strict=True)),
            gain=self._gain,
            notes=tuple(notes),
            format=self.format,
            clip=self.clip,
        )

    def abort(self) -> None:
        """Remove everything that was begun; harmless after ``finish`` and when called twice."""
        for encoder in self._encoders:
            with suppress(*_FAILURES):
                encoder.close()
        for file in self._scratch:
            with suppress(*_FAILURES):
                file.close()
        self._staging.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Abort on any exception, and say in one line what a library said in its own words."""
        try:
            yield
        except _FAILURES as error:
            self.abort()
            place = next(iter(self.paths.values())).parent
            raise AudioError(
                f"writing to {place} failed after {self._samples / self.sample_rate:.1f} s "
                f"({one_line(getattr(error, 'strerror', None) or error)}): free some space there or choose "
                "another place; nothing was left behind"
            ) from error
        except BaseException:
            self.abort()
            raise

    def _bytes_per_sample(self) -> int:
        """On disk, of all channels, per stem; compressed formats are not foreseen."""
        return self.channels * (self.format.bytes_per_sample + (4 if self.clip == "rescale" else 0))

    def _open(self) -> None:
        for partial in self._staging.partials:
            self._encoders.append(
                open_encoder(self.format, partial, self.sample_rate, self.channels, self._tags)
            )
            if self.clip == "rescale":
                self._scratch.append(scratch_path(partial).open("w+b"))

    def _keep(self, rows: Block) -> None:
        """Take ``[S*C, n]``, pass on all but the last ``HELD_SAMPLES``."""
        block = rows.reshape(len(self.paths), self.channels, -1)  # [S, C, n]
        self._held = np.concatenate([self._held, block], axis=2)
        ready = self._held.shape[2] - HELD_SAMPLES
        if ready > 0:
            self._emit(self._held[:, :, :ready])
            self._held = self._held[:, :, ready:].copy()

    def _emit(self, block: Block) -> None:
        """Final samples ``[S, C, n]``, to the encoders or, where the gain is not known yet, to disk."""
        if not block.shape[2]:
            return
        peaks = np.abs(block).max(axis=(1, 2))
        if not np.isfinite(peaks).all():
            stem = list(self.paths)[int(np.argmin(np.isfinite(peaks)))]
            raise NonFiniteError(
                f"stem {stem} holds NaN or Inf after {self._samples / self.sample_rate:.3f} s, not a number "
                "between -1 and 1: turn the input down if it is far beyond full scale, else check the model"
            )
        self._peaks = np.maximum(self._peaks, peaks)
        self._samples += block.shape[2]
        if self.clip == "rescale":
            for file, stem_block in zip(self._scratch, block, strict=True):
                file.write(stem_block.T.tobytes())  # [n, C]
            return
        if self.clip == "clip" or not self.format.is_float:
            self._clipped += np.count_nonzero(np.abs(block) > 1.0, axis=(1, 2))
        if self.clip == "clip":
            block = np.clip(block, -1.0, 1.0)
        for encoder, stem_block in zip(self._encoders, block, strict=True):
            encoder.write(stem_block)

    @property
    def _gain(self) -> float:
        peak = float(self._peaks.max(initial=0.0))
        return 1.0 / peak if self.clip == "rescale" and peak > 1.0 else 1.0

    def _encode_scratch(self) -> None:
        """The second pass of ``rescale``, now that the peak over all stems is known."""
        gain = np.float32(self._gain)
        for file, encoder in zip(self._scratch, self._encoders, strict=False):
            file.seek(0)
            while raw := file.read(BLOCK_SAMPLES * self.channels * 4):
                block = np.frombuffer(raw, np.float32).reshape(-1, self.channels).T  # [C, n]
                # The product may round to one step above 1.
                encoder.write(block if gain == 1.0 else np.clip(block * gain, -1.0, 1.0))
            file.close()

    def _fill_empty(self, samples: int) -> list[str]:
        if samples or self.format.holds_nothing:
            return []
        for encoder in self._encoders:
            encoder.write(np.zeros((self.channels, 1), np.float32))
        return [f"{self.format.name} cannot hold 0 samples: one silent sample was written"]

    def _tag(self) -> list[str]:
        """Tags that can only be put into complete files; what cannot be carried, as sentences."""
        if not self._tags:
            return []
        notes = []
        if (loss := uncarried(self.format.container, self._tags)) is not None:
            notes.append(loss)
        attach = {"FLAC": insert_flac_blocks, "MP3": prepend_id3}.get(self.format.container)
        for stem, partial in zip(self.paths, self._staging.partials, strict=True):
            try:
                if attach is not None:
                    attach(partial, self._tags)
            except (OSError, ValueError) as error:
                notes.append(f"the tags of {stem} could not be written ({one_line(error)})")
        return notes
