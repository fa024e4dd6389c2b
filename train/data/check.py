"""What is wrong with a folder of songs, before a training finds out: read in blocks, in bounded memory."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import AudioSource, open_audio
from tfswa.runtime.errors import TfxError
from tfswa.runtime.songs.finding import MIXTURE, MIXTURES, SongFiles, find_songs
from tfswa.train.data.decode import LEVEL_SAMPLES
from tfswa.train.data.songs import MOST_DIFFERENCE_SECONDS, parts_of

Audio = NDArray[np.float32]

SILENCE_DB = -60.0  # of a span of LEVEL_SAMPLES
SILENT_DB = -80.0  # of a whole source: what 16 bits hold of it is mostly dither
FLAT = 0.99  # from here on two equal samples in a row are taken for clipping
MOST_FLAT = 1e-4
LEAST_SUM_DB = 10.0  # mixtures that were mastered apart come to 15


@dataclass(frozen=True)
class DataFault:
    """Something wrong.

    Attributes:
        song: its name.
        what: in words.
        fatal: whether training on this song is impossible.
    """

    song: str
    what: str
    fatal: bool


@dataclass(frozen=True)
class SourceFacts:
    """One source of a song; figures are None where it could not be read.

    Attributes:
        source: name.
        sample_rate: native, in Hz.
        channels: native.
        seconds: length.
        level_dbfs: RMS over all of it; None for digital silence.
        silent_share: share of spans below ``SILENCE_DB``.
        clipped_share: share of samples at a flat top.
    """

    source: str
    sample_rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    level_dbfs: float | None = None
    silent_share: float | None = None
    clipped_share: float | None = None


@dataclass(frozen=True)
class SongFacts:
    """One song.

    Attributes:
        song: name.
        split: ``train``, ``test`` or empty.
        sources: as found.
        sum_db: mixture file against its difference to the sum of the parts; None where there is no mixture
            file, no parts, or where the two cannot be compared or are equal.
    """

    song: str
    split: str
    sources: tuple[SourceFacts, ...]
    sum_db: float | None


@dataclass(frozen=True)
class Report:
    """All songs, and what is wrong with them."""

    songs: tuple[SongFacts, ...]
    findings: tuple[DataFault, ...]

    @property
    def trainable(self) -> bool:
        """Whether no finding makes training impossible."""
        return not any(finding.fatal for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "trainable": self.trainable}


def check_songs(
    root: Path,
    split: str | None = None,
    report: Callable[[str], None] = lambda song: None,
    *,
    partial: bool = False,
) -> Report:
    """Read every song of a folder.

    Args:
        root: as ``data.root``.
        split: ``train`` or ``test``; None for all there are.
        report: called with each song's name before it is read.
        partial: songs may lack sources, as with ``data.partial``.

    Raises:
        AudioError: nothing there, or no such split.
    """
    songs, findings = [], []
    found = find_songs(root, split)
    count = Counter(source for song in found for source in song.sources if source not in MIXTURES)
    for files in found:
        report(files.name)
        if files.fault:
            songs.append(SongFacts(files.name, files.split, (), None))
            findings.append(DataFault(files.name, files.fault, fatal=True))
            continue
        facts, wrong = _read(files)
        songs.append(facts)
        lacks = [source for source in count if source not in files.sources]
        if lacks:
            named = ", ".join(f"{source} (in {count[source]} of {len(found)} songs)" for source in lacks)
            remedy = "" if partial else ": add it, or train with data.partial = true"
            wrong.append(DataFault(files.name, f"lacks {named}{remedy}", fatal=not partial))
        findings += wrong
    return Report(tuple(songs), tuple(findings))


def _read(files: SongFiles) -> tuple[SongFacts, list[DataFault]]:
    """Read all sources of a song side by side."""
    meters: dict[str, _Meter] = {}
    findings = []

    def failed(source: str, error: TfxError) -> None:
        meters.pop(source, None)
        findings.append(DataFault(files.name, f"{source}: {error}", fatal=True))

    with ExitStack() as stack:
        for source, (path, stream) in files.sources.items():
            try:
                meters[source] = _Meter(stack.enter_context(open_audio(path, stream=stream)))
            except TfxError as error:
                failed(source, error)
        parts = [source for source in parts_of(files) if source in meters]
        comparison = _Comparison(parts) if MIXTURE in meters and parts else None
        streams = {
            source: meter.blocks(functools.partial(failed, source)) for source, meter in meters.items()
        }
        for blocks in _side_by_side(streams):
            if comparison is not None:
                comparison.push(blocks)
    for source, meter in meters.items():
        findings += [DataFault(files.name, f"{source}: {note}", fatal=False) for note in meter.audio.notes]
    comparable = len({(meter.audio.sample_rate, meter.audio.channels) for meter in meters.values()}) == 1
    sum_db = comparison.sum_db() if comparison is not None and comparable else None
    facts = [meters[name].facts(name) if name in meters else SourceFacts(name) for name in files.sources]
    if any(finding.fatal for finding in findings):  # of a part of a file nothing more is said
        sum_db = None
    else:
        findings += _of_song(files.name, facts, sum_db)
    findings += [finding for one in facts for finding in _of_source(files.name, one)]
    return SongFacts(files.name, files.split, tuple(facts), sum_db), findings


def _of_source(song: str, facts: SourceFacts) -> list[DataFault]:
    found = []
    if facts.seconds == 0:
        found.append(DataFault(song, f"{facts.source} is empty", fatal=True))
    elif facts.seconds is not None and (facts.level_dbfs is None or facts.level_dbfs < SILENT_DB):
        found.append(DataFault(song, f"{facts.source} is silent throughout", fatal=False))
    if facts.clipped_share is not None and facts.clipped_share > MOST_FLAT:
        share = 100 * facts.clipped_share
        found.append(DataFault(song, f"{facts.source} is clipped: {share:.3g} % of its samples", fatal=False))
    return found


def _of_song(song: str, facts: Sequence[SourceFacts], sum_db: float | None) -> list[DataFault]:
    found = []
    seconds = {one.source: one.seconds for one in facts if one.seconds is not None}
    parts = [length for source, length in seconds.items() if source not in MIXTURES] or [0.0]
    apart = max(parts) - min(parts)
    whole = max(seconds.values()) - min(seconds.values())
    sample = 1 / min(one.sample_rate for one in facts if one.sample_rate)
    if whole > MOST_DIFFERENCE_SECONDS or apart > sample / 2:
        digits = 3 if whole >= 0.001 else 6
        each = ", ".join(f"{source} {length:.{digits}f} s" for source, length in seconds.items())
        fatal = apart > MOST_DIFFERENCE_SECONDS  # a mixture file is not trained on
        found.append(DataFault(song, f"sources differ in length: {each}", fatal))
    for word, unit in (("sample_rate", " Hz"), ("channels", "")):
        values = {one.source: getattr(one, word) for one in facts}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{source} {value}{unit}" for source, value in values.items())
            found.append(DataFault(song, f"sources differ in {word.replace('_', ' ')}: {each}", fatal=False))
    if sum_db is not None and sum_db < LEAST_SUM_DB:
        what = f"its mixture file is not the sum of its parts: {sum_db:z.1f} dB, the sum is trained on"
        found.append(DataFault(song, what, fatal=False))
    return found


class _Meter:
    """Measures a source while it is read."""

    def __init__(self, audio: AudioSource) -> None:
        self.audio = audio
        self.energy = 0.0
        self.spans = self.silent = self.flat = 0
        self._rest = np.zeros((audio.channels, 0), np.float32)

    def blocks(self, failed: Callable[[TfxError], None]) -> Iterator[Audio]:
        """Its blocks, at its own rate; ends early where the file is damaged."""
        try:
            for block in self.audio.blocks():
                self._measure(block)
                yield block
        except TfxError as error:
            failed(error)
        self._levels(self._rest, self._rest.shape[1])

    def facts(self, source: str) -> SourceFacts:
        samples, channels = self.audio.samples_read, self.audio.channels
        mean = self.energy / max(1, samples * channels)
        return SourceFacts(
            source,
            self.audio.sample_rate,
            channels,
            samples / self.audio.sample_rate,
            10 * math.log10(mean) if mean > 0 else None,
            self.silent / self.spans if self.spans else None,
            self.flat / max(1, samples * channels),
        )

    def _measure(self, block: Audio) -> None:
        self.energy += float(np.square(block, dtype=np.float64).sum())
        self.flat += int(np.count_nonzero((np.abs(block[:, 1:]) >= FLAT) & (block[:, 1:] == block[:, :-1])))
        audio = np.concatenate((self._rest, block), axis=1)
        whole = audio.shape[1] // LEVEL_SAMPLES * LEVEL_SAMPLES
        self._levels(audio[:, :whole], LEVEL_SAMPLES)
        self._rest = audio[:, whole:]

    def _levels(self, audio: Audio, span: int) -> None:
        if not audio.shape[1]:
            return
        power = np.square(audio).mean(axis=0).reshape(-1, span).mean(axis=1)
        self.spans += len(power)
        self.silent += int(np.count_nonzero(power < 10 ** (SILENCE_DB / 10)))


class _Comparison:
    """The mixture file against the sum of the parts."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts
        self.signal = self.difference = 0.0

    def push(self, blocks: dict[str, Audio]) -> None:
        """Compare what there is of both; a source that has ended counts as silence."""
        mixture = blocks.get(MIXTURE)
        parts = [blocks[part] for part in self.parts if part in blocks]
        if mixture is None or any(part.shape != mixture.shape for part in parts):
            return
        self.signal += float(np.square(mixture, dtype=np.float64).sum())
        rest = mixture - sum(parts, np.zeros_like(mixture))
        self.difference += float(np.square(rest, dtype=np.float64).sum())

    def sum_db(self) -> float | None:
        if not self.signal or not self.difference:
            return None
        return 10 * math.log10(self.signal / self.difference)


def _side_by_side(streams: dict[str, Iterator[Audio]]) -> Iterator[dict[str, Audio]]:
    """Blocks of equal length from streams whose blocks differ; a stream that has ended is left out."""
    rests: dict[str, Audio] = {}
    live = dict(streams)
    while True:
        for source in list(live):
            if source not in rests or not rests[source].shape[1]:
                block = next(live[source], None)
                if block is None:
                    del live[source]
                    rests.pop(source, None)
                else:
                    rests[source] = block
        if not rests:
            return
        count = min(rest.shape[1] for rest in rests.values())
        yield {source: rest[:, :count] for source, rest in rests.items()}
        rests = {source: rest[:, count:] for source, rest in rests.items()}
