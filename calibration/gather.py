"""Gathers the calibration corpus from songs, block by block.

    files ──pass 1: level every chunk──> strata ──draw──> ──pass 2: decode again──> calibration.npz

Songs are cut into consecutive chunks of the network's length; the rest at the end is left out. A chunk has
the first stratum below that applies. Levels are the RMS over all channels, 0 dBFS for a full-scale square:

    silent     below -60 dBFS
    clipped    1 sample in 10 000, or more, is amid three successive ones at full scale
    quiet      below -40 dBFS
    sparse     half of its frames of 20 ms, or more, lie below -60 dBFS or 40 dB below its loudest frame
    loud       -14 dBFS, or more
    vocal      the true vocals have more than 5 % of the energy of all true sources
    no vocal   they have not
    music      none of these, and the true sources are unknown
    difficult  not from a song: silence, full scale, noise ... (parity/corpus.py)

Songs are told apart by their samples, so neither the order of paths nor folders change what is drawn.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tfswa.calibration.corpus import DIFFICULT, SILENT, STRATA, Audio, Corpus, Writer, open_corpus
from tfswa.runtime.audio.reading import log_notes, model_blocks, open_audio
from tfswa.runtime.errors import AudioError, OutputExists, UsageError
from tfswa.runtime.escape import shown
from tfswa.runtime.files.atomic import folder, writing
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.corpus import adversarial_chunks
from tfswa.runtime.songs.finding import MIXTURE, REST, STEM_FILE_STREAMS, SongFiles, find_songs
from tfswa.runtime.songs.loading import length_difference, true_sources

logger = logging.getLogger(__name__)

Report = Callable[[str], None]

SILENT_DBFS, QUIET_DBFS, LOUD_DBFS = -60.0, -40.0, -14.0
FULL_SCALE = 0.999
CLIPPED_SHARE = 1e-4
FRAME_SECONDS, FRAME_RANGE_DB, SPARSE_SHARE = 0.02, 40.0, 0.5
VOCALS, VOCAL_SHARE = "vocals", 0.05
LARGEST = 16.0  # 24 dB over full scale: more is a file of another scale, and would set every range

HELD_OUT_SONGS = 5  # one in so many
_REGIONS = 20  # of a single song, in time


def gather(
    paths: Sequence[Path],
    spec: ModelSpec,
    output: Path,
    *,
    chunks: int = 64,
    held_out: int = 12,
    difficult: float = 0.125,
    seed: int = 0,
    report: Report = lambda line: None,
    force: bool = False,
) -> Corpus:
    """Draw a corpus from songs, balanced over their strata, and write it, whole or not at all.

    Songs are decoded twice, block by block: memory does not grow with their length. One that cannot be
    decoded is reported and left out. Songs that are the same samples count once.

    Args:
        paths: songs, song folders, or folders of songs (``runtime/songs/finding.py``).
        spec: whose contract the chunks have.
        output: a name that ends in ``.npz``.
        chunks: to calibrate on, at most; short audio gives fewer.
        held_out: chunks to measure on, at most, none of them silent, those with vocals as many as those
            without. Of several songs about one in five is held out, only such of known stems if there are
            any; of a single song, about a fifth of it.
        difficult: share of the calibration chunks that is generated, 0 to 1; there are some twenty.
        seed: of the draw and of the generated chunks.
        report: takes a line on each song, and on counts that cannot be reached.
        force: replace what is at ``output``.

    Raises:
        UsageError: counts, seed or paths that make no sense, or an output that cannot be written.
        OutputExists: ``output`` is there and ``force`` is False.
        AudioError: no audio, none that decodes, none as long as needed, none that sounds; or a file that
            changed while it was read.
    """
    _check_request(paths, output, chunks, held_out, difficult, seed, force)
    found = _find(paths, spec)
    with writable(output), folder(output.parent), writing(output, named=True, force=force) as stream:
        songs = _level_all(found, spec, report)
        rest, apart = _split(songs, seed)
        total = chunks if difficult == 1 else min(chunks, math.ceil(len(rest) / (1 - difficult)))
        made = list(adversarial_chunks(spec, round(total * difficult), seed))
        drawn = _draw(rest, chunks - len(made), lambda piece: piece.stratum, seed)
        measured = _draw(apart, held_out, lambda piece: piece.voice, seed)
        counts = {"calibration": (chunks, len(drawn) + len(made)), "held out": (held_out, len(measured))}
        for what, (wanted, number) in counts.items():
            if number < wanted:
                report(f"{what}: {wanted} chunks were asked for, the audio gives {number}")
        with zipfile.ZipFile(stream, "w") as archive:
            _write(archive, spec, seed, songs, made, drawn, measured)
    return open_corpus(output, spec)


def classify(mixture: Audio, sources: Mapping[str, Audio], sample_rate: int) -> tuple[str, str]:
    """Level a chunk.

    Args:
        mixture: ``[C, N]``.
        sources: all true sources by name, each ``[C, N]``; empty where they are unknown.
        sample_rate: in Hz.

    Returns:
        Its stratum, see the head of this file; and ``vocal``, ``no vocal`` or ``music``, whatever that is.
    """
    energy = {name: float(np.square(audio, dtype=np.float64).sum()) for name, audio in sources.items()}
    voice = "music"
    if VOCALS in energy or (energy and REST not in energy):  # the accompaniment of drums may hold vocals
        voice = "vocal" if energy.get(VOCALS, 0.0) > VOCAL_SHARE * sum(energy.values()) else "no vocal"
    power = np.square(mixture, dtype=np.float64).mean(axis=0)  # [N]
    level = power.mean()
    full = np.abs(mixture) >= FULL_SCALE  # [C, N]
    amid = full[:, :-2] & full[:, 1:-1] & full[:, 2:]
    size = min(len(power), max(1, round(FRAME_SECONDS * sample_rate)))
    frames = power[: len(power) // size * size].reshape(-1, size).mean(axis=1)
    floor = max(_power(SILENT_DBFS), frames.max() * _power(-FRAME_RANGE_DB))
    rules = (
        (SILENT, level < _power(SILENT_DBFS)),
        ("clipped", amid.sum() >= CLIPPED_SHARE * full.size),
        ("quiet", level < _power(QUIET_DBFS)),
        ("sparse", (frames < floor).mean() >= SPARSE_SHARE),
        ("loud", level >= _power(LOUD_DBFS)),
    )
    return next((stratum for stratum, applies in rules if applies), voice), voice


def shares(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """Share out a number evenly; who has less than an even share gives all, the others fill up.

    What cannot be divided goes to the first. The sum is ``total``, or all that there is.
    """
    given = dict.fromkeys(available, 0)
    while total > 0 and (able := [name for name in available if given[name] < available[name]]):
        for name in able[:total]:
            given[name] += 1
        total -= len(able[:total])
    return given


@dataclass(frozen=True)
class _Piece:
    """A chunk of a song, all but its audio."""

    song: str  # its sha256
    number: int
    stratum: str
    voice: str
    sha256: bytes


@dataclass(frozen=True)
class _Song:
    """A song that was leveled; ``names`` are its true sources, none where they are unknown."""

    files: SongFiles
    names: tuple[str, ...]
    seconds: float
    pieces: tuple[_Piece, ...]


def _check_request(
    paths: Sequence[Path], output: Path, chunks: int, held_out: int, difficult: float, seed: int, force: bool
) -> None:
    for wrong, message in (
        (not paths, "no audio is named: name files, or folders of songs"),
        (chunks < 1, f"{chunks} chunks are too few to calibrate on: ask for 1 or more"),
        (held_out < 1, f"{held_out} held-out chunks are too few to measure on: ask for 1 or more"),
        (not 0 <= difficult <= 1, f"a difficult share of {difficult:g} is not within 0 and 1: ask for 0.125"),
        (seed < 0, f"seed {seed} is below 0: choose one that is not"),
        (output.suffix != ".npz", f"{output} cannot be a corpus: choose a name that ends in .npz"),
        (output.is_dir(), f"{output} is a folder: choose another name"),
    ):
        if wrong:
            raise UsageError(message)
    if output.exists() and not force:
        raise OutputExists(f"{output} is there already: replace it with --force, or choose another name")


def _find(paths: Iterable[Path], spec: ModelSpec) -> list[SongFiles]:
    """Every song once, however many of the paths lead to it, sorted by name."""
    songs = chain.from_iterable(find_songs(path, names=spec.stems) for path in paths)
    once = {(song.fault, *((path.resolve(), i) for path, i in song.sources.values())): song for song in songs}
    return sorted(once.values(), key=lambda song: (song.name, _names(song)))


def _level_all(found: Sequence[SongFiles], spec: ModelSpec, report: Report) -> dict[str, _Song]:
    """Pass 1: songs that hold a chunk, by the hash of their samples and in the order of these."""
    songs: dict[str, _Song] = {}
    failed: list[AudioError] = []
    longest, needed = 0.0, spec.chunk_samples / spec.stft.sample_rate
    for files in found:
        try:
            song = _level(files, spec)
        except AudioError as error:
            failed.append(error)
            report(f"left out: {error}")
            continue
        longest = max(longest, song.seconds)
        report(f"{files.name}: {song.seconds:.1f} s, chunks: {len(song.pieces)}")
        if song.pieces:
            songs.setdefault(song.pieces[0].song, song)
    if len(failed) == len(found):
        more = f" (the same goes for {len(failed) - 1} more songs)" if len(failed) > 1 else ""
        raise AudioError(f"{failed[0]}{more}")
    if not songs:
        raise AudioError(
            f"the audio is too short: the longest song has {longest:.2f} s, a chunk of this model has "
            f"{needed:.2f} s: name longer songs"
        )
    strata = [piece.stratum for song in songs.values() for piece in song.pieces]
    sounding = len(strata) - strata.count(SILENT)
    if not sounding:
        raise AudioError(
            f"all {len(strata) * needed:.1f} s of audio are silent, sound begins at {SILENT_DBFS:g} dBFS: "
            "name audio that holds sound"
        )
    if sounding == 1:
        raise AudioError(
            f"the audio is too short: it holds {needed:.2f} s of sound, needed are {2 * needed:.2f} s, "
            "a chunk to calibrate on and one to measure on: name more audio"
        )
    return dict(sorted(songs.items()))


def _level(files: SongFiles, spec: ModelSpec) -> _Song:
    names = _sources(files, spec)
    found: list[tuple[str, str, bytes]] = []
    samples = 0
    with closing(_parts(files, names, spec, say=True)) as stream:
        for parts in stream:
            mixture = _sum(parts.values())
            samples += mixture.shape[1]
            if (largest := float(np.abs(mixture).max())) > LARGEST:
                raise AudioError(
                    f"{files.name} holds samples up to {largest:.4g}, full scale is 1: export the audio again"
                )
            if mixture.shape[1] == spec.chunk_samples:
                words = classify(mixture, parts if names else {}, spec.stft.sample_rate)
                found.append((*words, _hash(mixture)))
    song = hashlib.sha256(b"".join(sha256 for *_, sha256 in found)).hexdigest()
    pieces = tuple(_Piece(song, number, *facts) for number, facts in enumerate(found))
    return _Song(files, names, samples / spec.stft.sample_rate, pieces)


def _sources(files: SongFiles, spec: ModelSpec) -> tuple[str, ...]:
    """Sources that sum to the mixture; empty where the mixture is all that is known.

    Raises:
        AudioError: there is neither a mixture nor all of its sources, or the song has a fault.
    """
    files.check()
    shared = [path for path, stream in files.sources.values() if stream > 0]
    if shared:
        with open_audio(shared[0]) as audio:
            if audio.streams != len(STEM_FILE_STREAMS):  # an .mp4, but no stem file
                return ()
    try:
        return tuple(true_sources(files, spec))
    except AudioError:
        if MIXTURE in files.sources:
            return ()
        raise


def _parts(
    files: SongFiles, names: Sequence[str], spec: ModelSpec, *, say: bool = False
) -> Generator[dict[str, Audio]]:
    """A song's sources, or its mixture, chunk by chunk, of equal length; the last may be a shorter one.

    At the end, what the reader found in the files is logged, damage as a warning, if ``say``.
    """
    rate, channels = spec.stft.sample_rate, spec.channels
    with ExitStack() as stack:
        cuts, opened = {}, []
        for name in names or (MIXTURE,):
            path, stream = files.sources[name]
            audio = stack.enter_context(open_audio(path, stream=stream))
            opened.append(audio)
            cuts[name] = _cut(model_blocks(audio, rate, channels), channels, spec.chunk_samples)
        nothing = np.zeros((channels, 0), np.float32)
        lengths = dict.fromkeys(cuts, 0)
        for row in zip_longest(*cuts.values(), fillvalue=nothing):
            length = max(part.shape[1] for part in row)
            for name, part in zip(cuts, row, strict=True):
                lengths[name] += part.shape[1]
            padded = (np.pad(part, ((0, 0), (0, length - part.shape[1]))) for part in row)
            yield dict(zip(cuts, padded, strict=True))
        for audio in opened if say else ():
            log_notes(audio)
        difference = length_difference(lengths, rate)
        if difference is not None and say:
            logger.warning("%s: %s: silence follows the shorter ones", shown(files.name), difference)


def _cut(blocks: Iterable[Audio], channels: int, length: int) -> Iterator[Audio]:
    chunk, filled = np.empty((channels, length), np.float32), 0
    for block in blocks:
        while block.shape[1]:
            piece = block[:, : length - filled]
            chunk[:, filled : filled + piece.shape[1]] = piece
            filled, block = filled + piece.shape[1], block[:, piece.shape[1] :]
            if filled == length:
                yield chunk
                chunk, filled = np.empty((channels, length), np.float32), 0
    if filled:
        yield chunk[:, :filled]


def _split(songs: Mapping[str, _Song], seed: int) -> tuple[list[_Piece], list[_Piece]]:
    """What may be drawn to calibrate on, and what to measure on.

    Of several songs, those that are held out all have known stems if one has. A single song is cut into
    regions in time, of which one in five is held out::

        |cccc|HHHH|cccc|cccc|cccc|cccc|HHHH|cccc ...
    """
    every = [piece for song in songs.values() for piece in song.pieces]
    sounding = [piece for piece in every if piece.stratum != SILENT]
    regions: dict[object, list[_Piece]] = {}
    heard = {piece.song for piece in sounding}
    if len(heard) > 1:
        known = {name for name in heard if songs[name].names} or heard
        for piece in sounding:
            if piece.song in known:
                regions.setdefault(piece.song, []).append(piece)
    else:
        size = max(1, len(sounding) // _REGIONS)
        for place, piece in enumerate(sounding):
            regions.setdefault(place // size % HELD_OUT_SONGS, []).append(piece)

    def rank(key: object) -> tuple[bool, bytes]:
        return all(piece.voice != "vocal" for piece in regions[key]), _draw_key(seed, key)

    count = max(1, round(len(heard) / HELD_OUT_SONGS))
    apart = [piece for key in sorted(regions, key=rank)[:count] for piece in regions[key]]
    # A song that is held out gives nothing to calibrate on, its silence neither.
    away = {piece.song for piece in apart} if len(heard) > 1 else set()
    held = set(apart)
    rest = [piece for piece in every if piece not in held and piece.song not in away]
    # Digital silence is the same chunk every time: once is enough.
    once = {piece.sha256: piece for piece in rest if piece.stratum == SILENT}
    return [piece for piece in rest if piece.stratum != SILENT] + list(once.values()), apart


def _draw(pool: Iterable[_Piece], total: int, group: Callable[[_Piece], str], seed: int) -> list[_Piece]:
    """Draw evenly from the groups that there are, within a group evenly from songs; strata in order."""
    groups: dict[str, list[tuple[int, bytes, _Piece]]] = {name: [] for name in STRATA}
    turns: Counter[tuple[str, str]] = Counter()
    # Every song's first comes before any song's second, and so on.
    for piece in sorted(pool, key=lambda piece: _draw_key(seed, piece.song, piece.number)):
        name = group(piece)
        groups[name].append((turns[name, piece.song], _draw_key(seed, name, piece.song), piece))
        turns[name, piece.song] += 1
    taken: list[_Piece] = []
    for name, share in shares(total, {name: len(group) for name, group in groups.items()}).items():
        taken += [piece for *_, piece in sorted(groups[name], key=lambda one: one[:2])[:share]]
    return sorted(taken, key=lambda piece: (STRATA.index(piece.stratum), piece.song, piece.number))


def _draw_key(*what: object) -> bytes:
    return hashlib.sha256("/".join(map(str, what)).encode()).digest()


def _write(
    archive: zipfile.ZipFile,
    spec: ModelSpec,
    seed: int,
    songs: Mapping[str, _Song],
    made: Sequence[tuple[str, Audio]],
    drawn: Sequence[_Piece],
    measured: Sequence[_Piece],
) -> None:
    """Pass 2: the index, then each chunk as its song is decoded once more."""
    both = {"calibration": drawn, "held_out": measured}
    places = {piece: (part, i) for part, pieces in both.items() for i, piece in enumerate(pieces)}
    used = {name: song for name, song in songs.items() if not places.keys().isdisjoint(song.pieces)}
    parts = {part: [_entry(piece, songs, spec) for piece in pieces] for part, pieces in both.items()}
    parts["calibration"] += [{"name": name, "stratum": DIFFICULT, "stems": False} for name, _ in made]
    writer = Writer(
        archive,
        spec,
        seed=seed,
        found=(piece.stratum for song in songs.values() for piece in song.pieces),
        songs=[
            {"name": song.files.name, "files": _names(song.files), "seconds": song.seconds, "sha256": name}
            for name, song in used.items()
        ],
        parts=parts,
    )
    for number, (_, chunk) in enumerate(made, len(drawn)):
        writer.calibration(number, chunk)
    for song in used.values():
        for piece, mixture, sources in _reread(song, places.keys() & set(song.pieces), spec):
            part, number = places[piece]
            if part == "calibration":
                writer.calibration(number, mixture)
            else:
                writer.held_out(number, mixture, _stems(sources, spec) if song.names else {})


def _reread(
    song: _Song, wanted: set[_Piece], spec: ModelSpec
) -> Iterator[tuple[_Piece, Audio, dict[str, Audio]]]:
    """The wanted chunks of a song with mixture and sources; not read beyond the last of them."""
    end = 1 + max(piece.number for piece in wanted)
    with closing(_parts(song.files, song.names, spec)) as stream:
        for piece, sources in zip_longest(song.pieces[:end], islice(stream, end)):
            if piece not in wanted:
                continue
            mixture = _sum(sources.values() if sources else ())
            if _hash(mixture) != piece.sha256:
                raise AudioError(f"{song.files.name} changed since it was read first: gather once more")
            yield piece, mixture, sources


def _stems(sources: Mapping[str, Audio], spec: ModelSpec) -> dict[str, Audio]:
    """The model's stems: the accompaniment, if no file has it, is all that is no other stem."""
    rest = [audio for name, audio in sources.items() if name not in spec.stems]
    return {stem: sources[stem] if stem in sources else _sum(rest) for stem in spec.stems}


def _sum(parts: Iterable[Audio]) -> Audio:
    return sum((part.astype(np.float64) for part in parts), np.zeros(())).astype(np.float32)


def _hash(audio: Audio) -> bytes:
    return hashlib.sha256(audio.tobytes()).digest()


def _entry(piece: _Piece, songs: Mapping[str, _Song], spec: ModelSpec) -> dict[str, Any]:
    start_s = piece.number * spec.chunk_samples / spec.stft.sample_rate
    song = songs[piece.song]
    return {
        "name": f"{song.files.name} @ {start_s:.1f} s",
        **{"song": piece.song, "start_s": start_s, "stratum": piece.stratum, "stems": bool(song.names)},
    }


def _names(files: SongFiles) -> list[str]:
    return sorted({path.name for path, _ in files.sources.values()})


def _power(level_db: float) -> float:
    return float(10 ** (level_db / 10))
