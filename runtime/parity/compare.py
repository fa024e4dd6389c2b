"""Parity: what artifacts lost against the eager network, in dB, bound to what was measured.

An artifact goes through the real separator; the reference shares no host code with it (another STFT,
another overlap-add), so that a fault of the host cannot cancel out. Songs come one after the other, each
separated by the reference once and by every artifact, so that a corpus of any size fits into memory.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import AudioError, BackendUnavailable, UsageError
from tfswa.runtime.failures import Failure
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.corpus import Item, kind_of
from tfswa.runtime.parity.measuring import Measuring, Referee, Right, Turn
from tfswa.runtime.parity.pace import Pace, ParityStep
from tfswa.runtime.songs.loading import Song

Audio = NDArray[np.float32]
Listener = Callable[[Song, str, Audio, Audio], None]


def compare(
    model: Model,
    corpus: Sequence[Item],
    *,
    backend: str,
    options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
    batch: int = 1,
    reference: str | None = None,
    axes: bool = True,
) -> Certificate:
    """Measure one artifact; see ``certify``."""
    (found,) = certify(model, corpus, [Candidate(backend, options, batch)], reference=reference, axes=axes)
    return found


def certify(
    model: Model,
    corpus: Sequence[Item],
    candidates: Sequence[Candidate],
    *,
    reference: str | None = None,
    axes: bool = True,
    missing: dict[str, str] | None = None,
    failures: list[Failure] | None = None,
    report: Callable[[ParityStep], None] = lambda step: None,
    listener: Listener | None = None,
    resume: bool = False,
) -> list[Certificate]:
    """Run a corpus through artifacts and through the reference, and compare.

    Args:
        model: a bundle's model.
        corpus: what to separate; at least one real item with sound.
        candidates: what to measure.
        reference: its name; None: the eager network, or of a published graph that graph.
        axes: also run each artifact against itself: again, in batches, in other pushes, on one thread.
        missing: takes the reasons why some of the candidates cannot be; default: they are failures.
        failures: takes songs that cannot be loaded and candidates that cannot be measured; they cost the
            others nothing. Default: the first such is raised.
        report: told what is under way.
        listener: given each real song with both outputs ``[S, C, N]``, for pictures and players.
        resume: take up what a measuring that was stopped left, and leave the like; not with a listener, who
            wants to hear every song.

    Returns:
        A certificate for each candidate that could be, in that order.

    Raises:
        UsageError: an exported file (it holds no weights for the reference), or no such reference.
        BackendUnavailable: a backend or the reference is missing here.
        AudioError: no real item can be loaded and holds any sound (above -60 dBFS), so that nothing would be
            measured.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file: parity needs the bundle that it came from")
    corpus = _with_sound(corpus, model.spec, failures)
    referee = Referee(model, reference)
    with ExitStack() as stack:
        measured = list(_opened(model, candidates, missing, failures, stack))
        if not measured:
            return []
        for one in measured:
            one.open_kept(referee, resume=resume and listener is None)
        pace = Pace(
            [item.samples for item in corpus], [referee.name, *(one.candidate.name for one in measured)]
        )
        hashes = _run(model, corpus, referee, measured, pace, report, listener, axes, failures)
        digest = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
        return [one.certificate(referee, digest, hashes) for one in measured]


def _with_sound(corpus: Sequence[Item], spec: ModelSpec, failures: list[Failure] | None) -> list[Item]:
    """The corpus without the songs that failed before the first that holds sound."""
    kept = list(corpus)
    for item in corpus:
        if item.kind != "real":
            continue
        song = _loaded(item, failures)
        if song is None:
            kept.remove(item)
        elif kind_of(item, song, spec) == "real":
            return kept
    silent = ", ".join(item.name for item in kept if item.kind == "real")
    if failures and not silent:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise AudioError(f"{failures[0].told}{more}")
    names = silent or "the corpus"
    raise AudioError(f"{names} holds no sound, which every artifact separates alike: measure on music")


def _loaded(item: Item, failures: list[Failure] | None) -> Song | None:
    try:
        return item.load()
    except Exception as error:
        if failures is None:
            raise
        failures.append(Failure(item.name, error))
        return None


def _run(
    model: Model,
    corpus: Sequence[Item],
    referee: Referee,
    measured: list[Measuring],
    pace: Pace,
    report: Callable[[ParityStep], None],
    listener: Listener | None,
    axes: bool,
    failures: list[Failure] | None,
) -> dict[str, str]:
    """Measure item after item; return the hash of each by name. What fails on one is ``measured`` no more."""
    hashes: dict[str, str] = {}
    heard = False
    for index, item in enumerate(corpus):
        song = _loaded(item, failures)
        if song is None:
            pace.found(index, 0)
            continue
        samples = song.mixture.shape[-1]
        pace.found(index, samples)
        kind = kind_of(item, song, model.spec)
        first = kind == "real" and not heard
        turn = Turn(_unused(item.name, hashes), kind, song, graph=first, axes=first and axes)
        hashes[turn.name], heard = song.sha256, heard or first
        right: Right | None = None
        for one in list(measured):
            if one.take_up(turn):
                continue
            if right is None:
                report(_step(index, corpus, turn, referee.name, pace))
                with _timed(pace, referee.name, samples):
                    right = referee.separate(song, kind == "real")
            report(_step(index, corpus, turn, one.candidate.name, pace))
            try:
                with _timed(pace, one.candidate.name, samples):
                    found = one.measure(turn, referee, right)
            except Exception as error:
                if failures is None:
                    raise
                failures.append(Failure(one.candidate.name, error))
                measured.remove(one)
                continue
            if found is not None and listener is not None and kind == "real":
                listener(song, one.candidate.name, right.stems, found)
    return hashes


def _step(index: int, corpus: Sequence[Item], turn: Turn, program: str, pace: Pace) -> ParityStep:
    left = pace.left(index, program)
    return ParityStep(index + 1, len(corpus), turn.name, turn.kind == "real", program, left)


@contextmanager
def _timed(pace: Pace, program: str, samples: int) -> Iterator[None]:
    start = time.perf_counter()
    yield
    pace.took(program, samples, time.perf_counter() - start)


def _opened(
    model: Model,
    candidates: Sequence[Candidate],
    missing: dict[str, str] | None,
    failures: list[Failure] | None,
    stack: ExitStack,
) -> Iterator[Measuring]:
    for candidate in candidates:
        try:
            yield stack.enter_context(closing(Measuring(model, candidate)))
        except (BackendUnavailable, UsageError) as error:
            if missing is not None:
                missing[candidate.name] = str(error)
            elif failures is not None:
                failures.append(Failure(candidate.name, error))
            else:
                raise


def _unused(name: str, taken: dict[str, Any]) -> str:
    """A name that a corpus does not have yet."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)
