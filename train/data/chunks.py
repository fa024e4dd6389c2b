"""Training chunks: drawn, augmented and mixed, each a pure function of (seed, index, samples).

    plan     every random draw, made from seed and index: which songs, where, what is done
    render   the audio of a plan

Because a chunk depends on nothing else, a resumed run, another number of loader processes, or another
machine sees the same data in the same order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import AugmentConfig, DataConfig
from tfswa.train.data.augment import (
    Change,
    Motion,
    balance,
    changed,
    draw_change,
    draw_mixing,
    draw_motion,
    longest_span,
    moved,
    needed,
    stretcher,
)
from tfswa.train.data.candidates import Candidates, by_share, complete, members_of
from tfswa.train.data.effects import Effects, affected, draw_effects
from tfswa.train.data.places import Places
from tfswa.train.data.songs import TrainingSong

Audio = NDArray[np.float32]


class LoadedChunk(NamedTuple):
    """A chunk that was loaded.

    Attributes:
        stems: ``[S, C, N]`` float32; their sum over S is the mixture.
        index: of the chunk.
        seconds: spent on it.
    """

    stems: Tensor
    index: int  # type: ignore[assignment]  # a tuple has a method of that name
    seconds: float


@dataclass(frozen=True)
class SourcePlan:
    """One source of a chunk.

    Attributes:
        stem: index of the stem that it goes into.
        source: name.
        song: index of the song.
        song_name: its name.
        start: first sample in the song.
        start_seconds: the same in seconds.
        motion: how time runs.
        effects: what a studio does then.
        change: what is done last.
    """

    stem: int
    source: str
    song: int
    song_name: str
    start: int
    start_seconds: float
    motion: Motion
    effects: Effects
    change: Change

    def __str__(self) -> str:
        what = ", ".join(_words(self.motion, self.effects, self.change)) or "as it is"
        return f"{self.source}: '{self.song_name}' at {self.start_seconds:.3f} s, {what}"


@dataclass(frozen=True)
class ChunkRecipe:
    """Everything random about a chunk.

    Attributes:
        index: of the chunk.
        samples: N.
        remix: whether its stems come from different songs and places.
        balance_db: level that ``augment.balance_stem`` gets, against the others; None for no change.
        sources: of all stems; one that its song lacks is not there.
    """

    index: int
    samples: int
    remix: bool
    balance_db: float | None
    sources: tuple[SourcePlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


class Chunks(Dataset[LoadedChunk]):
    """An endless set of true stems.

    Args:
        songs: to draw from.
        groups: per stem the sources summed to it.
        data: what counts as active, and the sets of songs.
        augment: what is done to the sources.
        sample_rate: of the songs, in Hz.
        seed: of every draw.
        stems: names of the stems; empty where no key of the configuration names one.

    Raises:
        BackendUnavailable: what changes tempo and pitch is missing, though it is asked for.
        ConfigError: the songs do not give what ``augment`` and ``data.sets`` ask for.
    """

    def __init__(
        self,
        songs: Sequence[TrainingSong],
        groups: Sequence[tuple[str, ...]],
        data: DataConfig,
        augment: AugmentConfig,
        sample_rate: int,
        seed: int,
        stems: Sequence[str] = (),
    ):
        self.songs, self.groups, self.augment = list(songs), [tuple(group) for group in groups], augment
        self.sample_rate, self.seed = sample_rate, seed
        self.stems = tuple(stems) or ("",) * len(self.groups)
        if augment.tempo or augment.pitch:
            stretcher()
        self._check_names()
        sources = sorted({source for group in self.groups for source in group})
        self.places = Places(self.songs, sources, data.activity_db, data.draws)
        self._candidates = self._find_candidates(data)
        self._whole = complete(self.songs, self.groups)
        if self._whole is None and augment.remix < 1:
            names = ", ".join(map(" + ".join, self.groups))
            raise ConfigError(
                f"augment.remix is {augment.remix:g} and no song to train on has every stem ({names}): "
                "set augment.remix = 1, or add a song that has"
            )
        self.channels = int(next(iter(self.songs[0].sources.values())).shape[0])

    def check(self, samples: int) -> None:
        """See that every song is long enough for a chunk.

        Raises:
            ConfigError: naming the song.
        """
        longest = longest_span(self.augment, samples)
        for song in self.songs:
            if song.samples < longest:
                raise ConfigError(
                    f"song {song.name!r} has {song.samples} samples, a chunk needs {longest}: "
                    "lower optim.frames, or leave the song out of data.songs"
                )

    def __getitem__(self, key: tuple[int, int]) -> LoadedChunk:
        """Draw and render chunk ``(index, samples)``."""
        begun = time.perf_counter()
        stems = torch.from_numpy(self.render(self.plan(*key)))
        return LoadedChunk(stems, key[0], time.perf_counter() - begun)

    def plan(self, index: int, samples: int) -> ChunkRecipe:
        """Make every draw of a chunk.

        Raises:
            ConfigError: a song is too short for the chunk.
        """
        self.check(samples)
        random = np.random.default_rng((self.seed, index))
        remix = bool(random.random() < self.augment.remix)
        mixing = draw_mixing(np.random.default_rng((self.seed, index, 2)), self.augment, self.stems)
        if self._whole is not None:
            motion, place = self._draw_place(random, self.groups, samples, self._whole)
        studio = np.random.default_rng((self.seed, index, 3))
        sources = []
        for stem, group in enumerate(self.groups):
            if remix and not mixing.by_source:
                motion, place = self._draw_place(random, [group], samples, self._candidates[stem, group])
            for source in group:
                if remix and mixing.by_source:
                    alone = (source,)
                    motion, place = self._draw_place(random, [alone], samples, self._candidates[stem, alone])
                change = draw_change(random, self.augment, samples, self.sample_rate)
                effects = draw_effects(studio, self.augment)
                if stem in mixing.without:
                    change = dataclasses.replace(change, silence=True)
                song, start = place
                if source in self.songs[song].sources:
                    name, seconds = self.songs[song].name, start / self.sample_rate
                    sources.append(
                        SourcePlan(stem, source, song, name, start, seconds, motion, effects, change)
                    )
        return ChunkRecipe(index, samples, remix, mixing.balance_db, tuple(sources))

    def render(self, plan: ChunkRecipe) -> Audio:
        """Make the stems of a plan, ``[S, C, N]``."""
        stems = np.zeros((len(self.groups), self.channels, plan.samples), np.float32)
        together: dict[tuple[int, int, Motion], list[SourcePlan]] = {}
        for source in plan.sources:
            if not source.change.silence:
                together.setdefault((source.song, source.start, source.motion), []).append(source)
        for (song, start, motion), sources in together.items():
            before, length = needed(motion, plan.samples)
            names = [source.source for source in sources]
            audio = np.concatenate([_cut(self.songs[song].sources[n], start - before, length) for n in names])
            audio = moved(audio, motion, plan.samples, self.sample_rate)  # [sources * C, N]
            for source, each in zip(sources, audio.reshape(len(names), self.channels, -1), strict=True):
                heard = affected(each, source.effects, self.sample_rate)
                stems[source.stem] += changed(heard, source.change, self.sample_rate)
        if plan.balance_db is not None:
            balance(stems, self.stems.index(self.augment.balance_stem), plan.balance_db)
        return stems

    def _draw_place(
        self,
        random: np.random.Generator,
        groups: Sequence[tuple[str, ...]],
        samples: int,
        candidates: Candidates,
    ) -> tuple[Motion, tuple[int, int]]:
        motion = draw_motion(random, self.augment)
        return motion, self.places.draw(random, groups, motion.span(samples), candidates)

    def _check_names(self) -> None:
        """See that the stems that the configuration names are there."""
        named = [(f"augment.without.{name}", name) for name in self.augment.without]
        if self.augment.balance:
            named.append(("augment.balance_stem", self.augment.balance_stem))
        for key, name in named:
            if name not in self.stems:
                raise ConfigError(f"{key} names no stem: choose one of {', '.join(self.stems)}")

    def _find_candidates(self, data: DataConfig) -> dict[tuple[int, tuple[str, ...]], Candidates]:
        """Songs that remixing draws from, by stem and by what is drawn: all its sources, or one of them."""
        if not self.augment.remix:
            return {}
        members = members_of(data.sets, self.songs)
        return {
            (index, drawn): by_share(data.sets, members, self.songs, drawn, stem)
            for index, (stem, group) in enumerate(zip(self.stems, self.groups, strict=True))
            for drawn in (group, *((source,) for source in group if self.augment.remix_sources))
        }


def _cut(audio: Audio, start: int, length: int) -> Audio:
    """Samples of ``[C, N]`` from ``start``, zeros where the song has none; contiguous."""
    out = np.zeros((audio.shape[0], length), np.float32)
    first, after = max(start, 0), min(start + length, audio.shape[1])
    out[:, first - start : after - start] = audio[:, first:after]
    return out


def _words(motion: Motion, effects: Effects, change: Change) -> list[str]:
    """What is done, for people."""
    if change.silence:
        return ["left out"]
    words = []
    if motion.speed != 1:
        words.append(f"speed {motion.speed:.3f}")
    if motion.tempo != 1:
        words.append(f"tempo {motion.tempo:.3f}")
    if motion.semitones:
        words.append(f"pitch {motion.semitones:+.2f} semitones")
    words += effects.words()
    if change.gain != 1:
        words.append(f"gain {change.gain:.3f}")
    if change.channel_swap:
        words.append("channels swapped")
    if change.frequency_mask is not None:
        words.append("without {:.0f} to {:.0f} Hz".format(*change.frequency_mask))
    if change.time_mask is not None:
        words.append("silent from sample {} to {}".format(*change.time_mask))
    return words
