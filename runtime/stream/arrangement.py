"""Which models are to work together, and how, before any of them is loaded.

One         a model
Several     a ``Combination`` of arrangements
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

from tfswa.runtime.errors import BackendUnavailable, BundleError, GateError, UsageError
from tfswa.runtime.model.ensemble import is_ensemble, open_ensemble
from tfswa.runtime.model.narrowed import all_narrowed, narrowed
from tfswa.runtime.model.opening import BundleModel, Model, open_model, trust_code
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.stream.chain import Chain, chained_name, chained_stems
from tfswa.runtime.stream.combination import Combination, combined_name
from tfswa.runtime.stream.rules import CombinationRule, How
from tfswa.runtime.stream.separating import Offer, Separating
from tfswa.runtime.stream.separator import Separator

Load = Callable[[Model], Separator]
May = Callable[[BundleModel], bool]

logger = logging.getLogger(__name__)


class Arrangement(Offer, Protocol):
    """What can be loaded; what it offers is known before."""

    @property
    def models(self) -> tuple[Model, ...]:
        """All that take part, in order."""

    def only(self, stems: Sequence[str], may: May = lambda _: True) -> Arrangement:
        """What makes these stems, each one of ``stems``: no more than those are made of.

        Args:
            stems: these.
            may: whether a bundle inside a model, of some of its stems alone, may take that one's place.
        """

    def load(self, load: Load) -> Separating:
        """Load them, or none of them."""


@dataclass(frozen=True)
class One:
    """One model.

    Attributes:
        model: it.
        instead: what is loaded in its place where it can be: a bundle inside of it, of the stems that are
            wanted alone.
    """

    model: Model
    instead: BundleModel | None = None

    @property
    def name(self) -> str:
        """As it was typed."""
        return self.model.name

    @property
    def stems(self) -> tuple[str, ...]:
        """Its."""
        return self.model.spec.stems

    @property
    def channels(self) -> int:
        """Its."""
        return self.model.spec.channels

    @property
    def sample_rate(self) -> int:
        """Its, in Hz."""
        return self.model.spec.stft.sample_rate

    @property
    def models(self) -> tuple[Model, ...]:
        """It."""
        return (self.model,)

    def only(self, stems: Sequence[str], may: May = lambda _: True) -> Arrangement:
        """It, or what it holds of these stems alone."""
        return One(self.model, narrowed(self.model, stems, may))

    def load(self, load: Load) -> Separating:
        """Load it."""
        if self.instead is not None:
            try:
                return load(self.instead)
            except (
                BackendUnavailable,
                BundleError,
                GateError,
            ) as error:  # which the whole model may be free of
                logger.warning("%s is not used: %s", self.instead.name, error)
        return load(self.model)


@dataclass(frozen=True)
class Several:
    """Several, their stems made into one by name.

    Attributes:
        members: these.
        rule: how.
        called: the ensemble that they are, if they are one.

    Raises:
        UsageError: see ``CombinationRule``.
    """

    members: tuple[Arrangement, ...]
    rule: CombinationRule
    called: str = ""

    def __post_init__(self) -> None:
        self.stems  # noqa: B018  refuses what cannot be

    @property
    def name(self) -> str:
        """Of all."""
        return self.called or combined_name(self.members, self.rule)

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The stems that any of them has."""
        return tuple(self.rule.shares(self.members))

    @property
    def channels(self) -> int:
        """Of all."""
        return self.members[0].channels

    @property
    def sample_rate(self) -> int:
        """Of all, in Hz."""
        return self.members[0].sample_rate

    @property
    def models(self) -> tuple[Model, ...]:
        """All that take part."""
        return tuple(model for member in self.members for model in member.models)

    def only(self, stems: Sequence[str], may: May = lambda _: True) -> Arrangement:
        """Those that count in one of these stems."""
        rule, needed = self.rule.only(self.members, stems)
        members = tuple(self.members[place].only(wanted, may) for place, wanted in needed.items())
        return Several(members, rule, self.name)

    def load(self, load: Load) -> Separating:
        """Load them all."""
        with ExitStack() as stack:
            loaded = []
            for member in self.members:
                loaded.append(member.load(load))
                stack.callback(loaded[-1].close)
            made = Combination(loaded, self.rule.how, self.rule.weights, self.rule.stems)
            made.name = self.name
            stack.pop_all()
        return made


@dataclass(frozen=True)
class InARow:
    """A stem of the first is the signal of the next.

    Raises:
        UsageError: see ``Chain``.
    """

    first: Arrangement
    stem: str
    then: Arrangement

    def __post_init__(self) -> None:
        self.stems  # noqa: B018  refuses what cannot be

    @property
    def name(self) -> str:
        """Of both."""
        return chained_name(self.first, self.stem, self.then)

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """Those of the first, one of them replaced by what the next makes of it."""
        return chained_stems(self.first, self.stem, self.then)

    @property
    def channels(self) -> int:
        """Of both."""
        return self.first.channels

    @property
    def sample_rate(self) -> int:
        """Of both, in Hz."""
        return self.first.sample_rate

    @property
    def models(self) -> tuple[Model, ...]:
        """All that take part."""
        return (*self.first.models, *self.then.models)

    def only(self, stems: Sequence[str], may: May = lambda _: True) -> Arrangement:
        """Both."""
        return self

    def load(self, load: Load) -> Separating:
        """Load both."""
        with ExitStack() as stack:
            first = self.first.load(load)
            stack.callback(first.close)
            then = self.then.load(load)
            stack.callback(then.close)
            made = Chain(first, self.stem, then)
            stack.pop_all()
        return made


def song_spec(arranged: Arrangement) -> ModelSpec:
    """The contract by which songs are read and measured: of several models the stems of all.

    Channels and rate are those of all of them; transform and chunk, the first one's.
    """
    first = arranged.models[0].spec
    if len(arranged.models) == 1:
        return first
    return ModelSpec(None, arranged.stems, channels=first.channels, stft=first.stft, chunk=first.chunk)


def arrange(
    models: Sequence[str],
    *,
    how: How | None = None,
    weights: Sequence[str] = (),
    then: Sequence[str] = (),
    trusted: bool = False,
) -> Arrangement:
    """From what a user typed to an arrangement.

    Args:
        models: bundles, files or names, or ensembles; at least one.
        how: the rule for several; None for the mean.
        weights: ``2,1`` for all stems, ``vocals=2,1`` for one.
        then: ``vocals=dereverb.tfx``: what separates a stem, one after the other.
        trusted: see ``open_model``.

    Raises:
        UsageError: a model that is not there, models that cannot work together, or weights that do not fit.
        BundleError: see ``open_model`` and ``open_ensemble``.
    """
    members = tuple(arrange_one(name, trusted=trusted) for name in models)
    arranged = members[0]
    if len(members) > 1:
        arranged = Several(members, CombinationRule(how or "mean", parse_weights(weights)))
    elif how is not None or weights:
        what = "--weights" if weights else f"--combine {how}"
        raise UsageError(f"{what} is for several models, named is {arranged.name}: add another -m")
    for text in then:
        stem, found, name = text.partition("=")
        if not found or not name:
            raise UsageError(f"--then {text!r}: name a stem and a model, as vocals=dereverb.tfx")
        arranged = InARow(arranged, stem.strip(), arrange_one(name, trusted=trusted))
    return arranged


def arrange_one(name: str, *, trusted: bool = False) -> Arrangement:
    """A model, or the models of an ensemble.

    Raises:
        UsageError, BundleError: see ``open_model`` and ``open_ensemble``.
    """
    if not is_ensemble(name):
        return One(_opened(name, trusted=trusted))
    ensemble = open_ensemble(name, trusted=trusted)
    rule = CombinationRule(cast(How, ensemble.combine), ensemble.weights)
    return Several(tuple(map(One, ensemble.members)), rule, ensemble.name)


def _opened(name: str, *, trusted: bool) -> Model:
    model = open_model(name, trusted=trusted)
    if trusted and model.bundle is not None:
        for inside in all_narrowed(model.bundle):
            trust_code(inside)
    return model


def arrange_members(
    models: Sequence[str], *, how: How | None = None, weights: Sequence[str] = (), trusted: bool = False
) -> Several:
    """What is to become an ensemble.

    Raises:
        UsageError: as ``arrange``; or there is but one model, or one of them is an ensemble.
        BundleError: see ``open_model``.
    """
    for name in models:
        if is_ensemble(name):
            raise UsageError(f"{name} is an ensemble, an ensemble holds bundles: name those inside")
    if len(models) < 2:
        raise UsageError(f"an ensemble is of several models, named is {', '.join(models)}: add another -m")
    rule = CombinationRule(how or "mean", parse_weights(weights))
    return Several(tuple(One(open_model(name, trusted=trusted)) for name in models), rule)


def parse_weights(texts: Sequence[str]) -> Mapping[str, tuple[float, ...]]:
    """``2,1`` for all stems, ``vocals=2,1`` for one: weights by stem.

    Raises:
        UsageError: no numbers, or a stem that is named twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        stem, _, numbers = text.rpartition("=")
        stem = stem.strip()
        if stem in found:
            raise UsageError(
                f"weights {text!r}: those for {stem or 'all stems'} are given twice: give them once"
            )
        try:
            found[stem] = tuple(map(float, numbers.split(",")))
        except ValueError:
            raise UsageError(
                f"weights {text!r} are not numbers: give one for each model, as 2,1 or vocals=2,1"
            ) from None
    return found
