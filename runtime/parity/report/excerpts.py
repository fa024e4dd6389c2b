"""Showcase: what of the separated songs is looked at and listened to on the page of ``page.py``.

Songs come one after the other and do not stay: of each stem and run only the worst second is kept, as
pictures, and an excerpt around it, coded. Of many songs, those with the lowest second are kept.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.figures import by_second_db, worst_second
from tfswa.runtime.plots import pictures
from tfswa.runtime.plots.spectrograms import loudest_db, spectrogram
from tfswa.runtime.songs.loading import Song

Audio = NDArray[np.float32]

SONGS = 8  # that are kept
BYTES = 24_000_000  # of pictures and audio, 32 MB on the page; one song is kept whatever it needs
EXCERPT_SECONDS = 10
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
DIFFERENCE_PEAK_DB = -12.0  # differences are turned up to this, full scale 0
REFERENCE, ARTIFACT, DIFFERENCE, MIXTURE = "reference", "artifact", "difference", "mixture"


@dataclass(frozen=True)
class Second:
    """The worst second of one stem of one run, as pictures.

    Attributes:
        run: its name.
        stem: its name.
        start: in seconds.
        snr_db: of that second; None where it is not defined.
        why: how it was chosen: ``lowest SNR``, ``largest difference`` or ``loudest, identical``.
        pictures: PNG by what it shows; none of a signal that is all zeros.
    """

    run: str
    stem: str
    start: int
    snr_db: float | None
    why: str
    pictures: dict[str, bytes]


@dataclass(frozen=True)
class Clip:
    """One player's sound.

    Attributes:
        name: of what is heard.
        kind: ``mixture``, ``reference``, ``artifact`` or ``difference``.
        ogg: Opus in Ogg.
    """

    name: str
    kind: str
    ogg: bytes


@dataclass
class Excerpt:
    """One stem in one window of a song: the mixture, the reference, and every run whose worst second it is.

    Attributes:
        stem: its name.
        start: in seconds.
        seconds: how long it is.
        clips: in that order.
        identical: runs that equal the reference here, to the bit: the reference's clip is theirs.
    """

    stem: str
    start: int
    seconds: float
    clips: list[Clip] = field(default_factory=list)
    identical: list[str] = field(default_factory=list)


@dataclass
class SongExcerpts:
    """What is kept of one song.

    Attributes:
        gain_db: of all its clips, below 0 where one would be beyond full scale.
        lowest_db: SNR of its worst second.
        seconds: by run and stem.
        excerpts: empty without audio.
    """

    gain_db: float
    lowest_db: float = math.inf
    seconds: dict[tuple[str, str], Second] = field(default_factory=dict)
    excerpts: list[Excerpt] = field(default_factory=list)

    @property
    def by_stem(self) -> list[Second]:
        """The seconds, those of one stem together."""
        stems = [stem for _, stem in self.seconds]
        return sorted(self.seconds.values(), key=lambda one: stems.index(one.stem))

    @property
    def size(self) -> int:
        """Bytes of pictures and audio."""
        shown = sum(len(png) for second in self.seconds.values() for png in second.pictures.values())
        return shown + sum(len(clip.ogg) for excerpt in self.excerpts for clip in excerpt.clips)


class Showcase:
    """Collects them; ``listen`` is the listener of ``certify``.

    Args:
        spec: the model's.
        audio: whether to keep audio.

    Raises:
        BackendUnavailable: matplotlib is not installed, or libsndfile cannot code Opus.
    """

    def __init__(self, spec: ModelSpec, *, audio: bool = True):
        pictures.require_matplotlib("leave out --report")
        if audio and not soundfile.check_format("OGG", "OPUS"):
            raise BackendUnavailable(
                f"libsndfile {soundfile.__libsndfile_version__} cannot code Opus: install 1.0.29 or newer, "
                "or add --no-audio"
            )
        self.audio = audio
        self.heard = 0  # songs
        self._spec = spec
        self._kept: dict[str, SongExcerpts] = {}
        self._song: Song | None = None
        self._current = SongExcerpts(0.0)

    def listen(self, song: Song, run: str, right: Audio, found: Audio) -> None:
        """Keep what the page needs of one song: stems ``[S, C, N]`` of the reference and of a run."""
        if song is not self._song:
            self._trim()
            self._song = song
            self._current = SongExcerpts(_gain_db(song.mixture, right))
            self.heard += 1
            self._kept[song.sha256] = self._current
        for index, stem in enumerate(self._spec.stems):
            second = self._second(run, stem, right[index], found[index])
            self._current.seconds[run, stem] = second
            if second.snr_db is not None:
                self._current.lowest_db = min(self._current.lowest_db, second.snr_db)
            if self.audio:
                self._excerpt(song, second, right[index], found[index])

    def of(self, certificate: Certificate, item: str) -> SongExcerpts | None:
        """What is kept of a song, by its name in a certificate."""
        self._trim()
        return self._kept.get(certificate.corpus.get(item, ""))

    @property
    def kept(self) -> int:
        """How many songs are kept."""
        self._trim()
        return len(self._kept)

    def _trim(self) -> None:
        """Let go of the songs that lost least; called when none is under way."""
        while len(self._kept) > 1 and (
            len(self._kept) > SONGS or sum(exhibit.size for exhibit in self._kept.values()) > BYTES
        ):
            del self._kept[max(self._kept, key=lambda key: self._kept[key].lowest_db)]

    def _second(self, run: str, stem: str, right: Audio, found: Audio) -> Second:
        """Draw the worst second of ``[C, N]``."""
        rate = self._spec.stft.sample_rate
        by_second = by_second_db(right, found, rate)
        start, why = worst_second(by_second), "lowest SNR"
        if start is None:  # identical, or no second of the reference holds sound
            identical = np.array_equal(right, found)
            start = _loudest_second(right if identical else right - found, rate)
            why = "loudest, identical" if identical else "largest difference"
        first = min(start * rate, max(0, right.shape[-1] - rate))  # as in by_second_db
        part = slice(first, first + rate)
        one, two = right[:, part], found[:, part]
        shown = {name: signal for name, signal in ((REFERENCE, one), (ARTIFACT, two)) if signal.any()}
        if np.array_equal(one, two):
            shown.pop(ARTIFACT, None)
        drawn: dict[str, bytes] = {}
        top = loudest_db(shown.values())
        for name, signal in shown.items():
            drawn[name] = _draw(rate, signal, start=first / rate, loudest_db=top)
        difference = one.astype(np.float64) - two
        if difference.any():
            drawn[DIFFERENCE] = _draw(rate, difference, start=first / rate, colors="viridis")
        return Second(run, stem, start, by_second[start], why, drawn)

    def _excerpt(self, song: Song, second: Second, right: Audio, found: Audio) -> None:
        """Code what is around a second, in a window that is there already if it holds that second."""
        rate = self._spec.stft.sample_rate
        excerpt = next(
            (
                known
                for known in self._current.excerpts
                if known.stem == second.stem
                and known.start <= second.start
                and (second.start + 1 <= known.start + EXCERPT_SECONDS)
            ),
            None,
        )
        if excerpt is None:
            last = max(0, math.ceil(right.shape[-1] / rate) - EXCERPT_SECONDS)
            start = min(max(0, second.start - EXCERPT_SECONDS // 2), last)
            part = _window(start, rate)
            excerpt = Excerpt(second.stem, start, right[:, part].shape[-1] / rate)
            self._current.excerpts.append(excerpt)
            for kind, signal in ((MIXTURE, song.mixture), (REFERENCE, right)):
                excerpt.clips.append(Clip(kind, kind, self._code(signal[:, part])))
        part = _window(excerpt.start, rate)
        one, two = right[:, part], found[:, part]
        if np.array_equal(one, two):
            excerpt.identical.append(second.run)
            return
        difference = (one.astype(np.float64) - two).astype(np.float32)
        up = max(0.0, math.floor(DIFFERENCE_PEAK_DB - 20 * math.log10(float(np.abs(difference).max()))))
        excerpt.clips.append(Clip(second.run, ARTIFACT, self._code(two)))
        excerpt.clips.append(
            Clip(f"{second.run}: difference, {up:+.0f} dB", DIFFERENCE, self._code(difference, up))
        )

    def _code(self, signal: Audio, gain_db: float | None = None) -> bytes:
        """Opus of ``[C, N]``, at libsndfile's own bit rate, some 120 kbit/s of stereo."""
        rate = self._spec.stft.sample_rate
        gain = 10 ** ((self._current.gain_db if gain_db is None else gain_db) / 20)
        coded_rate = next((one for one in OPUS_RATES if one >= rate), OPUS_RATES[-1])
        samples = np.zeros((max(signal.shape[-1], rate // 10), signal.shape[0]), np.float32)  # never empty
        samples[: signal.shape[-1]] = signal.T * gain
        resampled = np.clip(soxr.resample(samples, rate, coded_rate), -1.0, 1.0)
        coded = io.BytesIO()
        soundfile.write(coded, resampled, coded_rate, format="OGG", subtype="OPUS")
        return coded.getvalue()


def _draw(rate: int, signal: NDArray[Any], **options: Any) -> bytes:
    return pictures.small_png(spectrogram(rate, signal, **options))


def _window(start: int, rate: int) -> slice:
    return slice(start * rate, (start + EXCERPT_SECONDS) * rate)


def _gain_db(mixture: Audio, stems: Audio) -> float:
    """What keeps a song below full scale; 0 where it is."""
    peak = max(float(np.abs(mixture).max(initial=0.0)), float(np.abs(stems).max(initial=0.0)))
    return min(0.0, -20 * math.log10(peak)) if peak else 0.0


def _loudest_second(signal: Audio, rate: int) -> int:
    energies = [
        float(np.square(signal[:, at : at + rate], dtype=np.float64).sum())
        for at in range(0, signal.shape[-1], rate)
    ]
    return int(np.argmax(energies))
