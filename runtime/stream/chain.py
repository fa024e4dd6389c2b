"""A stem of one model is the signal of the next.

samples --> first --+-- drums, bass ---------------> waiting --> drums, bass, vocals.dry, vocals.reverb
                    +-- vocals --> then --+-- dry -----^
                                          +-- reverb --^
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import UsageError
from tfswa.runtime.stream.joined import JoinedStream, Waiting
from tfswa.runtime.stream.rules import check_together
from tfswa.runtime.stream.separating import Offer, Separating, stem_indices
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]


class Chain(Separating):
    """Two as one: what the second makes of a stem takes that stem's place.

    The stems of the second have both names: ``vocals.dry``. Samples of the other stems wait for it.

    Args:
        first: what separates the signal.
        stem: one of its stems.
        then: what separates that stem. Both are closed with this.

    Raises:
        UsageError: there is no such stem, the two differ in channels or sample rate, or two stems would have
            one name.
    """

    def __init__(self, first: Separating, stem: str, then: Separating):
        self.first, self.stem, self.then = first, stem, then
        self.stems = chained_stems(first, stem, then)
        self.name = chained_name(first, stem, then)
        self.channels, self.sample_rate = first.channels, first.sample_rate

    @property
    def parts(self) -> tuple[Separator, ...]:
        """The models, each once."""
        return tuple(dict.fromkeys((*self.first.parts, *self.then.parts)))

    @property
    def description(self) -> str:
        """What runs each network, and where."""
        return "; ".join(dict.fromkeys((self.first.description, self.then.description)))

    @property
    def recomputed_by(self) -> str | None:
        """What computed chunks again; None where it was not needed."""
        both = self.first.recomputed_by, self.then.recomputed_by
        return "; ".join(dict.fromkeys(filter(None, both))) or None

    def stream(self) -> ChainStream:
        """A fresh stream engine, for one signal."""
        return ChainStream(self)

    def close(self) -> None:
        """Release both, the one that was opened last first."""
        with ExitStack() as stack:
            stack.callback(self.first.close)
            stack.callback(self.then.close)


class ChainStream(JoinedStream):
    """One signal on its way through a chain."""

    def __init__(self, chain: Chain):
        both = chain.first, chain.then
        super().__init__(
            [one.stream() for one in both],
            [one.name for one in both],
            channels=chain.channels,
            stems=len(chain.stems),
        )
        (self._place,) = chain.first.indices([chain.stem])
        self._others = [place for place in range(len(chain.first.stems)) if place != self._place]
        self.waiting = Waiting([len(self._others) * self._channels, len(chain.then.stems) * self._channels])

    @property
    def latency_samples(self) -> int:
        """Of the one and then of the other."""
        return sum(stream.latency_samples for stream in self._streams)

    def _through(self, samples: Audio) -> Audio:
        first, then = self._streams
        with self._named(0):
            stems = first.push(samples)
        self._put(0, stems[self._others])
        with self._named(1):
            self._put(1, then.push(stems[self._place]))
        return self._taken()

    def _rest(self) -> Audio:
        first, then = self._streams
        with self._named(0):
            stems = first.flush()
        self._put(0, stems[self._others])
        with self._named(1):
            made = then.push(stems[self._place]), then.flush()
        self._put(1, np.concatenate(made, axis=-1))
        return self._taken()

    def _put(self, part: int, stems: Audio) -> None:
        self.waiting.put(part, stems.reshape(len(stems) * self._channels, stems.shape[-1]))

    def _taken(self) -> Audio:
        """What both have finished, ``[S, C, n]``: the new stems in the place of the one that they are of."""
        others, made = self.waiting.take()
        first = self._place * self._channels
        rows = np.concatenate((others[:first], made, others[first:]))
        return rows.reshape(self._stems, self._channels, rows.shape[-1])


def chained_stems(first: Offer, stem: str, then: Offer) -> tuple[str, ...]:
    """The stems of a chain.

    Raises:
        UsageError: there is no such stem, the two differ in channels or sample rate, or two stems would have
            one name.
    """
    check_together((first, then))
    (place,) = stem_indices(first, [stem])
    made = tuple(f"{stem}.{name}" for name in then.stems)
    stems = (*first.stems[:place], *made, *first.stems[place + 1 :])
    if len(set(stems)) < len(stems):
        twice = next(name for name in made if name in first.stems)
        raise UsageError(f"{first.name} has a stem {twice!r}, and {then.name} after {stem} makes another")
    return stems


def chained_name(first: Offer, stem: str, then: Offer) -> str:
    """``demo, then vocals by dereverb.tfx``."""
    return f"{first.name}, then {stem} by {then.name}"
