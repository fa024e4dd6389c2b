"""Several models on the same signal, their stems made into one by name.

               +-> model a --+
    samples ---+             +--> waiting --> mean, median, max or min of each stem
               +-> model b --+

Models cut the signal each in its own way, so that one has samples finished which another has not: these wait,
and nothing else does. A model that counts in none of the stems that are asked for is not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.stream.joined import JoinedStream, Waiting
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.rules import BY_BIN, EVERY, BinChoice, CombinationRule, How, Share, by_waveform
from tfswa.runtime.stream.separating import Offer, Separating
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]

PIECE_SAMPLES = 4096  # combined at once: what that takes in float64 is small beside a model's chunk


class Combination(Separating):
    """Several models as one; the result depends neither on blocks nor on batches.

    Stems are combined by name; one that only some models have is made by those.

    Args:
        members: what works together: models, or what is made of several. They are closed with this.
        how: ``mean`` or ``median`` of the waveforms; ``max`` or ``min`` takes each bin of a spectrum from the
            model that is loudest or quietest there.
        weights: one number a member, 0 or more; or, by stem, a mapping to such numbers, where the name ``""``
            is for the other stems. Without any, all count alike. ``max`` and ``min`` know 0 and 1 only.
        stems: only these are made, in this order; empty: all that any member has.

    Raises:
        UsageError: see ``CombinationRule``; or members that differ in channels or sample rate.
    """

    def __init__(
        self,
        members: Sequence[Separating],
        how: How = "mean",
        weights: Mapping[str, Sequence[float]] | Sequence[float] | None = None,
        stems: Sequence[str] = (),
    ):
        self.rule = CombinationRule(how, table_of_weights(weights), tuple(stems))
        self.members = tuple(members)
        self.shares = self.rule.shares(self.members)
        first = self.members[0]
        self.name, self.stems = combined_name(self.members, self.rule), tuple(self.shares)
        self.channels, self.sample_rate = first.channels, first.sample_rate

    @property
    def parts(self) -> tuple[Separator, ...]:
        """The models, each once."""
        return tuple(dict.fromkeys(part for member in self.members for part in member.parts))

    @property
    def description(self) -> str:
        """What runs each network, and where."""
        return "; ".join(dict.fromkeys(member.description for member in self.members))

    @property
    def recomputed_by(self) -> str | None:
        """What computed chunks again; None where it was not needed."""
        by = dict.fromkeys(found for member in self.members if (found := member.recomputed_by))
        return "; ".join(by) or None

    def stream(self) -> CombinedStream:
        """A fresh stream engine, for one signal; members that count in no stem are not run."""
        return CombinedStream(self.only(self.stems))

    def only(self, stems: Sequence[str]) -> Combination:
        """See ``Separating``: of the members those that count in one of these stems."""
        rule, needed = self.rule.only(self.members, stems)
        members = [self.members[place].only(wanted) for place, wanted in needed.items()]
        made = Combination(members, rule.how, rule.weights, rule.stems)
        made.name = self.name
        return made

    def close(self) -> None:
        """Release all networks, in the order opposite to that in which they were opened."""
        with ExitStack() as stack:
            for member in self.members:
                stack.callback(member.close)


class CombinedStream(JoinedStream):
    """One signal on its way through all models of a combination."""

    def __init__(self, combination: Combination):
        members, shares = combination.members, combination.shares
        super().__init__(
            [member.stream() for member in members],
            [member.name for member in members],
            channels=combination.channels,
            stems=len(combination.stems),
        )
        self._mix = by_waveform(combination.rule.how)
        # Of each model the stems that count; then, of each stem, where it finds its own among all these.
        self._wanted = [
            sorted({share.stem for share in _all(shares) if share.member == place})
            for place in range(len(members))
        ]
        self.waiting = Waiting([len(wanted) * self._channels for wanted in self._wanted])
        firsts = np.cumsum([0, *map(len, self._wanted)])
        self._shares = [
            [
                (int(firsts[share.member]) + self._wanted[share.member].index(share.stem), share.weight)
                for share in of
            ]
            for of in shares.values()
        ]
        self._choice: OverlapAdd | None = None
        if combination.rule.how in BY_BIN:
            counts = [len(of) for of in self._shares]
            choice = BinChoice(combination.rule.how, counts, self._channels, combination.sample_rate)
            self._choice = choice.engine(combination.stems)

    @property
    def latency_samples(self) -> int:
        """That of the slowest model, and of the comparison of bins where there is one."""
        models = max(stream.latency_samples for stream in self._streams)
        return models + (self._choice.latency_samples if self._choice is not None else 0)

    def _through(self, samples: Audio) -> Audio:
        for place, stream in enumerate(self._streams):
            with self._named(place):
                self._put(place, stream.push(samples))
        return self._combined()

    def _rest(self) -> Audio:
        for place, stream in enumerate(self._streams):
            with self._named(place):
                self._put(place, stream.flush())
        rest = self._combined()
        return rest if self._choice is None else np.concatenate((rest, self._choice.flush()), axis=-1)

    def _put(self, place: int, stems: Audio) -> None:
        wanted, count = self._wanted[place], len(stems)
        if len(wanted) < count:
            stems = stems[wanted]
        self.waiting.put(place, stems.reshape(len(wanted) * self._channels, stems.shape[-1]))

    def _combined(self) -> Audio:
        """The stems ``[S, C, n]`` of what all models have finished."""
        taken = self.waiting.take()
        length = taken[0].shape[-1]
        out = [np.zeros((self._stems, self._channels, 0), np.float32)]
        for start in range(0, length, PIECE_SAMPLES):
            rows = np.concatenate([part[:, start : start + PIECE_SAMPLES] for part in taken])
            count = len(rows) // self._channels
            out.append(self._mixed(rows.reshape(count, self._channels, rows.shape[-1])))
        return np.concatenate(out, axis=-1)

    def _mixed(self, given: Audio) -> Audio:
        """All models' stems that count ``[..., C, n]`` to the stems ``[S, C, m]``."""
        length = given.shape[-1]
        if self._choice is not None:
            order = [place for of in self._shares for place, _ in of]
            return self._choice.push(given[order].reshape(len(order) * self._channels, length))
        out = np.empty((self._stems, self._channels, length), np.float32)
        for stem, of in enumerate(self._shares):
            places, weights = zip(*of, strict=True)
            out[stem] = given[places[0]] if len(of) == 1 else self._mix(given[list(places)], weights)
        return out


def combined_name(members: Sequence[Offer], rule: CombinationRule) -> str:
    """``mean of a.tfx and b.tfx``."""
    *most, last = (member.name for member in members)
    return f"{rule.how} of {', '.join(most)} and {last}" if most else last


def table_of_weights(
    weights: Mapping[str, Sequence[float]] | Sequence[float] | None,
) -> dict[str, tuple[float, ...]]:
    """Weights by stem, those of all others under ``EVERY``."""
    if weights is None:
        return {}
    if not isinstance(weights, Mapping):
        weights = {EVERY: weights}
    return {stem: tuple(map(float, numbers)) for stem, numbers in weights.items()}


def _all(shares: Mapping[str, tuple[Share, ...]]) -> list[Share]:
    return [share for of in shares.values() for share in of]
