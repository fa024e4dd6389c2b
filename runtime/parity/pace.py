"""How far a measuring is, and how long the rest of it takes at the pace so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ParityStep:
    """What is under way.

    Attributes:
        number: of the item, from 1.
        items: of the corpus.
        item: its name.
        real: whether it is a song.
        by: what runs it: the reference, or an artifact.
        seconds_left: of everything; None where nothing can be said yet.
    """

    number: int
    items: int
    item: str
    real: bool
    by: str
    seconds_left: float | None

    def __str__(self) -> str:
        """One line."""
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        return f"{self.number} of {self.items}: {self.item}, {self.by}{left}"


class Pace:
    """Seconds that each of several programs takes for a sample, and so for what is left.

    Args:
        lengths: samples of each item; None where it is not known before its turn. Such items are taken to be
            as long as those before them were.
        programs: names of what runs every item, in order.
    """

    def __init__(self, lengths: Sequence[int | None], programs: Sequence[str]):
        self._lengths, self._programs = list(lengths), list(programs)
        self._seconds = dict.fromkeys(programs, 0.0)
        self._samples = dict.fromkeys(programs, 0)
        self._guessed = [length is None for length in lengths]

    def found(self, index: int, samples: int) -> None:
        """An item turned out to have that many samples."""
        self._lengths[index] = samples

    def took(self, program: str, samples: int, seconds: float) -> None:
        """A program ran that many samples."""
        self._seconds[program] += seconds
        self._samples[program] += samples

    def left(self, index: int, program: str) -> float | None:
        """Seconds until all is done, where ``program`` is about to run an item; None before the first ran."""
        speeds = {
            name: self._seconds[name] / self._samples[name] for name in self._programs if self._samples[name]
        }
        if not speeds:
            return None
        usual = sum(speeds.values()) / len(speeds)
        each = [speeds.get(name, usual) for name in self._programs]
        known = [
            length for length, guess in zip(self._lengths, self._guessed, strict=True) if guess and length
        ]
        guess = sum(known) / len(known) if known else 0.0
        rest = sum(guess if length is None else length for length in self._lengths[index + 1 :])
        now = self._lengths[index] or 0
        return rest * sum(each) + now * sum(each[self._programs.index(program) :])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
