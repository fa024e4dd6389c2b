"""Songs whose true stems are known, decoded; ``finding.py`` finds them on disk.

The mixture is always the sum of the stems. What a stem file holds as its mixture is mastered apart, and
differs from that sum.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import log_notes, model_blocks, open_audio
from tfswa.runtime.errors import AudioError, UsageError
from tfswa.runtime.escape import shown
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import MIXTURE, MIXTURES, REST, SongFiles, find_songs
from tfswa.runtime.songs.finding import STEM_FILE_STREAMS as STEM_FILE_STREAMS

Audio = NDArray[np.float32]

_SUMMED = 1 << 18  # samples that are added at once: in float64 a song would take twice its room

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Song:
    """A mixture, and its true stems where they are known.

    Attributes:
        name: for tables.
        mixture: ``[C, N]`` float32 at the model's rate.
        stems: truth by stem name, each ``[C, N]``; empty where nothing is known.
        notes: what the reader found in its files, damage among it.
    """

    name: str
    mixture: Audio
    stems: dict[str, Audio]
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the samples, which binds evidence to them."""
        digest = hashlib.sha256(np.ascontiguousarray(self.mixture).tobytes())
        for name in sorted(self.stems):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.stems[name]).tobytes())
        return digest.hexdigest()


def load_songs(path: Path, spec: ModelSpec) -> list[Song]:
    """Load all that a user points at; ``finding.find_songs`` draws the layouts.

    Raises:
        AudioError: nothing there that can be decoded, or a song that lacks a stem of the model.
    """
    return [load(song, spec) for song in find_songs(path, names=spec.stems)]


def load_song(path: Path, spec: ModelSpec) -> Song:
    """Load the one song that a user points at.

    Raises:
        UsageError: it is several.
        AudioError: as for ``load_songs``.
    """
    found = find_songs(path, names=spec.stems)
    if len(found) != 1:
        raise UsageError(f"{path} holds {len(found)} songs, one is wanted: name it")
    return load(found[0], spec)


def load(song: SongFiles, spec: ModelSpec, *, log: bool = True) -> Song:
    """Decode one song to the model's stems, rate and channels; the mixture is the sum of all sources.

    The accompaniment is all that is no stem of the model, unless the song brings a file of that name. A
    song without known sources is its mixture alone; so is an ``.mp4`` that has not a stem file's streams.

    Args:
        song: its files.
        spec: the model's contract.
        log: also log the notes; False where the caller tells ``Song.notes``.

    Raises:
        AudioError: a file that cannot be decoded, a stem of the model that the song lacks, or a fault of it.
    """
    song.check()
    names = true_sources(song, spec) if _has_streams(song) else []
    if not names:
        audio, notes = _decode(*song.sources[MIXTURE], spec, log=log)
        return Song(song.name, audio, {}, notes)
    decoded = {name: _decode(*song.sources[name], spec, log=log) for name in names}
    notes = tuple(note for _, found in decoded.values() for note in found)
    return _song(song.name, {name: audio for name, (audio, _) in decoded.items()}, spec, notes, log=log)


def load_source(song: SongFiles, name: str, spec: ModelSpec) -> Audio:
    """Decode one source of a song, ``[C, N]`` at the model's rate.

    Raises:
        AudioError: a file that cannot be decoded.
    """
    song.check()
    path, stream = song.sources[name]
    return _decode(path, stream, spec)[0]


def true_sources(song: SongFiles, spec: ModelSpec) -> list[str]:
    """Sources that sum to the mixture; empty where nothing but the mixture is known.

    Raises:
        AudioError: a stem of the model is not among them, or the song has a fault.
    """
    song.check()
    names = [name for name in song.sources if name not in MIXTURES]
    if REST in names:  # beside its parts it would count twice
        twice = set(names) - set(spec.stems) if REST in spec.stems else {REST}
        names = [name for name in names if name not in twice]
    missing = [stem for stem in spec.stems if stem not in names and stem != REST]
    if REST in spec.stems and set(names) <= set(spec.stems) - {REST}:  # nothing is left for it
        missing.append(REST)
    if MIXTURE in song.sources and not names:
        return []
    if missing:
        raise AudioError(
            f"{song.name} lacks {', '.join(missing)}, though it holds {', '.join(sorted(song.sources))}: "
            "add the files, or take the song away"
        )
    return names


def load_stem_file(path: Path, spec: ModelSpec) -> Song:
    """Load a stem file's four stems; the mixture is their sum.

    Raises:
        AudioError: not a stem file.
    """
    stems = {name: _decode(path, index, spec)[0] for index, name in enumerate(STEM_FILE_STREAMS) if index > 0}
    return _song(path.name.removesuffix(".stem.mp4"), stems, spec)


def loudest_chunk(mixture: Audio, spec: ModelSpec) -> tuple[int, Audio]:
    """Find the chunk with the most energy; a song shorter than a chunk is followed by silence.

    Args:
        mixture: ``[C, N]``.
        spec: whose chunk.

    Returns:
        First sample, a multiple of the hop, and the chunk ``[C, chunk_samples]``.

    Raises:
        AudioError: the song holds no sound.
    """
    if not mixture.any():
        raise AudioError("the song holds no sound: name another")
    length, hop = spec.chunk_samples, spec.stft.hop
    power = np.square(mixture, dtype=np.float64).sum(axis=0)
    before = np.concatenate(([0.0], np.cumsum(power)))  # energy before each sample
    starts = np.arange(0, max(1, len(power) - length + 1), hop)
    energy = before[np.minimum(starts + length, len(power))] - before[starts]
    start = int(starts[np.argmax(energy)])
    chunk = np.zeros((mixture.shape[0], length), np.float32)
    piece = mixture[:, start : start + length]
    chunk[:, : piece.shape[1]] = piece
    return start, chunk


def example_stem_file() -> Path | None:
    """Find the stem file inside the installed package ``stempeg``, without importing it.

    Importing stempeg needs ffmpeg and ffprobe on PATH; finding a file of it needs nothing.
    """
    try:
        listed = files("stempeg") or []
    except PackageNotFoundError:
        return None
    found = [Path(str(entry.locate())) for entry in listed if entry.name.endswith(".stem.mp4")]
    return next((path for path in sorted(found) if path.is_file()), None)


def _has_streams(song: SongFiles) -> bool:
    """Whether a file that is taken for a stem file has the streams of one."""
    shared = [path for path, stream in song.sources.values() if stream > 0]
    if not shared:
        return True
    with open_audio(shared[0]) as audio:
        return audio.streams == len(STEM_FILE_STREAMS)


def length_difference(lengths: Mapping[str, int], sample_rate: int) -> str | None:
    """Say by how much the sources of a song differ in length; None where they do not.

    Args:
        lengths: samples by source.
        sample_rate: in Hz.
    """
    ordered = sorted(lengths, key=lambda source: lengths[source])
    least, most = lengths[ordered[0]], lengths[ordered[-1]]
    if least == most:
        return None
    return (
        f"its sources differ in length: {ordered[0]} has {least / sample_rate:.3f} s, {ordered[-1]} "
        f"{most / sample_rate:.3f} s, which is {most - least} samples more"
    )


def _song(
    name: str,
    sources: dict[str, Audio],
    spec: ModelSpec,
    notes: tuple[str, ...] = (),
    *,
    log: bool = True,
) -> Song:
    """Sum sources to the model's stems: a stem by its name, the accompaniment as all that is not vocals."""
    lengths = {key: source.shape[1] for key, source in sources.items()}
    difference = length_difference(lengths, spec.stft.sample_rate)
    if difference is not None:
        notes = (*notes, f"{difference}: silence follows the shorter ones")
        if log:
            logger.warning("%s: %s", shown(name), notes[-1])
    length = max(lengths.values())
    mixture = _sum(list(sources.values()), length)
    stems = {}
    for stem in spec.stems:
        if stem in sources:
            audio = sources[stem]
            stems[stem] = np.pad(audio, ((0, 0), (0, length - lengths[stem]))) if difference else audio
        elif stem == REST:
            rest = [source for key, source in sources.items() if key not in spec.stems]
            stems[stem] = _sum(rest, length)
    return Song(name, mixture, stems, notes)


def _sum(parts: Sequence[Audio], length: int) -> Audio:
    """Of signals that may be shorter, ``[C, length]``; added in float64, a block at a time."""
    total = np.zeros((len(parts[0]), length), np.float32)
    for start in range(0, length, _SUMMED):
        first, *others = (part[:, start : start + _SUMMED] for part in parts)
        block = np.zeros(total[:, start : start + _SUMMED].shape)
        block[:, : first.shape[1]] = first
        for other in others:
            block[:, : other.shape[1]] += other
        total[:, start : start + _SUMMED] = block
    return total


def _decode(path: Path, stream: int, spec: ModelSpec, *, log: bool = True) -> tuple[Audio, tuple[str, ...]]:
    """A track at the model's rate, and what the reader found in it."""
    with open_audio(path, stream=stream) as audio:
        blocks = list(model_blocks(audio, spec.stft.sample_rate, spec.channels))
        if log:
            log_notes(audio)
        notes = tuple(f"{path.name}: {note}" for note in audio.notes)
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((spec.channels, 0), np.float32), notes
