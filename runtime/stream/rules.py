"""How the stems of several models become one: by name, with weights.

mean     of the waveforms, weighted
median   of the waveforms, weighted: of two models it is their mean
max      of each bin of a spectrum, the value of the model that is loudest there (known as Max Spec)
min      the same of the model that is quietest there (Min Spec)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import UsageError, did_you_mean
from tfswa.runtime.model.spec import StftSpec
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.separating import Offer
from tfswa.runtime.stream.transform import Stft

Audio = NDArray[np.float32]
How = Literal["mean", "median", "max", "min"]
HOWS: tuple[How, ...] = get_args(How)
BY_BIN = ("max", "min")
EVERY = ""  # in a table of weights: those of the stems that it does not name
BIN_FRAMES = 64  # of a chunk whose bins are compared: 1.5 s at 44.1 kHz


@dataclass(frozen=True)
class Share:
    """What a model gives to a stem.

    Attributes:
        member: place of the model among all.
        stem: place of the stem among the model's.
        weight: above 0.
    """

    member: int
    stem: int
    weight: float


@dataclass(frozen=True)
class CombinationRule:
    """A rule, and weights.

    Attributes:
        how: the rule.
        weights: for each stem one number a model, 0 or more; under ``EVERY`` for stems that are not named.
            Without any, all count alike. A model that lacks the stem is passed over, whatever its weight.
        stems: only these are made, in this order; empty: all that any model has, in the order of models.

    Raises:
        UsageError: no such rule, a weight that is no number or below 0, or weights that a rule which takes
            values from one model each cannot use.
    """

    how: How = "mean"
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            close = did_you_mean(str(self.how), HOWS) or ":"
            raise UsageError(f"combine {self.how!r}{close} choose one of {', '.join(HOWS)}")
        for stem, weights in self.weights.items():
            said = ",".join(f"{weight:g}" for weight in weights)
            if not all(0 <= weight < math.inf for weight in weights):
                raise UsageError(f"weights {_for(stem)}{said}: each must be a number, 0 or more")
            if self.how in BY_BIN and not set(weights) <= {0, 1}:
                raise UsageError(
                    f"weights {_for(stem)}{said}: {self.how} takes each bin from one model, so that weights "
                    "can only be 0, left out, and 1"
                )

    def shares(self, members: Sequence[Offer]) -> dict[str, tuple[Share, ...]]:
        """What each stem is made of.

        Raises:
            UsageError: models that cannot work together, a stem that none has, weights of no stem or not one
                for each model, or a stem of which every weight is 0.
        """
        check_together(members)
        stems = list(dict.fromkeys(stem for member in members for stem in member.stems))
        for stem, weights in self.weights.items():
            if len(weights) != len(members):
                raise UsageError(
                    f"weights {_for(stem)}are {len(weights)}, models are {len(members)}: give one for each"
                )
            if stem not in (EVERY, *stems):
                close = did_you_mean(stem, stems) or ":"
                raise UsageError(f"weights for {stem!r}{close} the stems are {', '.join(stems)}")
        for stem in self.stems:
            if stem not in stems:
                close = did_you_mean(stem, stems) or ":"
                raise UsageError(f"stem {stem!r}{close} the stems are {', '.join(stems)}")
        return {stem: self._shares_of(stem, members) for stem in self.stems or stems}

    def only(
        self, members: Sequence[Offer], stems: Sequence[str]
    ) -> tuple[CombinationRule, dict[int, list[str]]]:
        """What makes some stems as this rule does.

        Args:
            members: the models of this rule.
            stems: those that are asked for; each is one that a model has.

        Returns:
            The rule for the models that are left, and of each of these its place and its stems that count.
        """
        shares = {stem: of for stem, of in self.shares(members).items() if stem in stems}
        needed: dict[int, list[str]] = {}
        for stem, of in shares.items():
            for share in of:
                needed.setdefault(share.member, []).append(stem)
        needed = dict(sorted(needed.items()))
        weights = {stem: tuple(self._row(stem, members)[place] for place in needed) for stem in shares}
        return CombinationRule(self.how, weights, tuple(shares)), needed

    def _row(self, stem: str, members: Sequence[Offer]) -> tuple[float, ...]:
        """Of each model the weight that it has in a stem."""
        return self.weights.get(stem, self.weights.get(EVERY, (1.0,) * len(members)))

    def _shares_of(self, stem: str, members: Sequence[Offer]) -> tuple[Share, ...]:
        weights = self._row(stem, members)
        shares = tuple(
            Share(place, member.stems.index(stem), weight)
            for place, (member, weight) in enumerate(zip(members, weights, strict=True))
            if stem in member.stems and weight > 0
        )
        if not shares:
            having = ", ".join(member.name for member in members if stem in member.stems)
            raise UsageError(f"weights leave nothing of {stem}, which {having} has: give one of them above 0")
        return shares


def check_together(members: Sequence[Offer]) -> None:
    """Refuse models that do not take one signal.

    Raises:
        UsageError: there is none, or two differ in channels or sample rate.
    """
    if not members:
        raise UsageError("no model is named: give at least one")
    first = members[0]
    for other in members[1:]:
        for what, one, two in (
            ("channels", first.channels, other.channels),
            ("Hz", first.sample_rate, other.sample_rate),
        ):
            if one != two:
                raise UsageError(
                    f"{first.name} works at {one} {what}, {other.name} at {two}: models that work together "
                    "need the same"
                )


def weighted_mean(values: Audio, weights: Sequence[float]) -> Audio:
    """``[M, ...]`` to the weighted mean ``[...]``, added in float64."""
    total = np.zeros(values.shape[1:])
    for value, weight in zip(
        values, weights, strict=True
    ):  # no matrix product: its bits depend on the length
        total += weight * value.astype(np.float64)
    mean: Audio = (total / sum(weights)).astype(np.float32)
    return mean


def weighted_median(values: Audio, weights: Sequence[float]) -> Audio:
    """``[M, ...]`` to the weighted median ``[...]``: half of the weight lies on either side.

    Where that is so of a whole interval, its middle: with equal weights it is the usual median.
    """
    order = np.argsort(values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0).astype(np.float64)
    below = np.cumsum(np.asarray(weights, np.float64)[order], axis=0)  # weight up to each, itself included
    half = below[-1] / 2
    # Sums of the same weights in another order differ by rounding: what is that near to half is half.
    near = 1e-9 * half
    low = np.argmax(below >= half - near, axis=0)[np.newaxis]
    high = np.argmax(below > half + near, axis=0)[np.newaxis]
    middle = (np.take_along_axis(ranked, low, axis=0) + np.take_along_axis(ranked, high, axis=0)) / 2
    median: Audio = middle[0].astype(np.float32)
    return median


def by_waveform(how: How) -> Callable[[Audio, Sequence[float]], Audio]:
    """What makes one waveform of several, sample by sample."""
    return weighted_median if how == "median" else weighted_mean


class BinChoice:
    """Takes each bin from the model that is loudest, or quietest, there.

    It runs in a stream engine whose signal is all that the models gave, row by row. Frames lie on one grid
    over the whole signal, and each chunk has as much context as frames reach, so that chunks leave no trace.

    Args:
        how: ``max`` or ``min``.
        counts: of each stem, how many models have it; of one, its samples are passed on as they are.
        channels: C.
        sample_rate: in Hz.
    """

    def __init__(self, how: How, counts: Sequence[int], channels: int, sample_rate: int):
        self._pick = np.argmax if how == "max" else np.argmin
        self._counts, self._channels = tuple(counts), channels
        self._stft = Stft(StftSpec(sample_rate=sample_rate))

    def engine(self, stems: Sequence[str]) -> OverlapAdd:
        """A fresh stream: rows ``[sum of counts * C, n]`` to stems ``[S, C, m]``."""
        spec = self._stft.spec
        plan = ChunkPlan((BIN_FRAMES - 1) * spec.hop, spec.n_fft, 0, spec.n_fft)
        rows = sum(self._counts) * self._channels
        return OverlapAdd(self._chosen, channels=self._channels, stems=stems, plan=plan, rows=rows)

    def _chosen(self, chunks: Audio) -> Audio:
        """``[B, rows, N] -> [B, S, C, N]``."""
        length = chunks.shape[-1]
        out = np.empty((len(chunks), len(self._counts), self._channels, length), np.float32)
        for item, chunk in enumerate(chunks):
            given = chunk.reshape(sum(self._counts), self._channels, length)  # [models of all stems, C, N]
            first = 0
            for stem, count in enumerate(self._counts):
                out[item, stem] = self._one(given[first : first + count])
                first += count
        return out

    def _one(self, given: Audio) -> Audio:
        """``[M, C, N] -> [C, N]``; where models agree on who is chosen, the first."""
        if len(given) == 1:
            alone: Audio = given[0]
            return alone
        spectra = self._stft.forward(given)  # [M, C, T, K]
        chosen = self._pick(np.abs(spectra), axis=0)[np.newaxis]
        return self._stft.inverse(np.take_along_axis(spectra, chosen, axis=0)[0], given.shape[-1])


def _for(stem: str) -> str:
    return f"for {stem} " if stem else ""
