"""A model in a backend, ready to separate: arrays, streams, files.

samples -> OverlapAdd -> STFT -> backend -> iSTFT -> OverlapAdd -> stems

A backend on a GPU may do both transforms there: then samples go to it, and stems come back.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, Session, open_session, resolved
from tfswa.runtime.backends.running import infer, infer_samples
from tfswa.runtime.errors import NonFiniteError, TfxError, UsageError
from tfswa.runtime.limits import MOST_BATCH, check_number
from tfswa.runtime.model.opening import Model, open_model
from tfswa.runtime.model.spec import AUDIO, DECODE, NEXT, OUTPUT, SAMPLES, STATE, Shapes
from tfswa.runtime.stream.codec import Codec, Tensors
from tfswa.runtime.stream.fallback import Fallback
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.overlaps import plan_of
from tfswa.runtime.stream.samples import all_finite
from tfswa.runtime.stream.separating import Separating
from tfswa.runtime.stream.wiener import check_wiener

Audio = NDArray[np.float32]
OnNonFinite = Literal["error", "recompute"]


class Separator(Separating):
    """A model loaded in a backend; a context manager. The output does not depend on ``batch``.

    Several threads may use one at once: what belongs to a signal is its stream's, and threads take turns in a
    network that is not reentrant. Only ``close`` is for one thread, when the others are done.

    Args:
        model: from ``open_model``, or what it takes: a path, or a name such as ``demo``.
        backend: a registered name, or ``auto``.
        options: precision, device, threads; an exported file's precision is its own.
        batch: chunks that the backend gets at once, 1 to 65536.
        on_nonfinite: what becomes of a chunk whose stems hold NaN or Inf because the network's output
            does. ``error`` raises; ``recompute`` has the bundle's float32 network compute it again on the
            CPU (see ``Fallback``), which is loaded for the first such chunk. No bit of another chunk
            changes.
        wiener: iterations of the multichannel Wiener filter after the network, 0 (none) to 10, see
            ``stream/wiener.py``. Parity and its certificates are of stems without it.
        overlap: 2 or 4 for that many times as many chunks, of which every sample is the weighted mean;
            ``msst:N``, ``mean:N``, ``demucs:SHARE`` for rules of others. Parity is without any of them.

    Attributes:
        spec: the model's contract.
        plan: where chunks lie, and how much each counts.
        overlap: as asked for, as text.
        options: as the backend got them.
        session: the loaded network.
        codec: the host's transforms.
        fallback: what computes chunks again; None where that was not asked for.

    Raises:
        UsageError, BackendUnavailable, BundleError: see ``open_session``. With ``recompute`` also
            UsageError for an exported file, and where ``backend`` is the float32 network itself;
            BackendUnavailable where that network cannot run. With ``wiener`` also UsageError for a model
            of one stem, with ``overlap`` for one with state.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        backend: str = "auto",
        options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
        batch: int = 1,
        on_nonfinite: OnNonFinite = "error",
        wiener: int = 0,
        overlap: int | str = 1,
    ):
        check_number("batch", batch, MOST_BATCH)
        check_wiener(wiener)
        if on_nonfinite not in get_args(OnNonFinite):
            raise UsageError(f"on_nonfinite {on_nonfinite!r}: choose {' or '.join(get_args(OnNonFinite))}")
        if isinstance(model, (str, Path)):
            model = open_model(model)
        self.model, self.spec, self.batch = model, model.spec, batch
        self.name, self.stems = model.name, model.spec.stems
        self.channels, self.sample_rate = model.spec.channels, model.spec.stft.sample_rate
        check_wiener(wiener, self.spec)
        self.plan = plan_of(self.spec, overlap)
        self.overlap = str(overlap)
        options = resolved(model, options)
        self.fallback = Fallback(model, options.threads) if on_nonfinite == "recompute" else None
        self.session: Session = open_session(backend, model, options)
        self.options = options = getattr(self.session, "options", options)
        try:
            self._check_session()
        except UsageError:
            self.session.close()
            raise
        self._turn = _turn(self.session)
        self._fallback_turn = threading.Lock()
        self.codec = Codec(self.spec, wiener)

    @property
    def parts(self) -> tuple[Separator, ...]:
        """Itself."""
        return (self,)

    @property
    def transforms_there(self) -> bool:
        """Whether the session transforms too, in place of the codec; with ``wiener`` the host does."""
        return not self.codec.wiener and bool(getattr(self.session, "transform", ""))

    def _check_session(self) -> None:
        """Refuse what would fail after the first chunks, or help nothing."""
        limit = getattr(self.session, "batch_limit", None)
        if limit is not None and self.batch > limit:
            raise UsageError(
                f"{self.session.artifact[0]} takes batches of {limit}, asked for is --batch {self.batch}: "
                f"use --batch {limit}, or export it with a free batch (`tfx export`)"
            )
        if self.fallback is not None:
            self.fallback.check_differs(self.session.name, self.options.precision)

    def close(self) -> None:
        """Release the network."""
        if self.fallback is not None:  # first, as it was opened last: threads are given back in turn
            self.fallback.close()
        self.session.close()

    @property
    def description(self) -> str:
        """What runs the network and where; of a GPU, what transforms."""
        if self.transforms_there:
            return f"{self.session.description}, STFT by {cast(Any, self.session).transform}"
        on_gpu = self.options.device != "cpu"
        return self.session.description + (", STFT on the CPU" if on_gpu else "")

    @property
    def recomputed_by(self) -> str | None:
        """What computed chunks again, of which file; None where it was not needed."""
        return None if self.fallback is None else self.fallback.description

    def infer(self, given: Tensors) -> Tensors:
        """The network alone: what it takes to what it gives, by the names and shapes of the spec.

        Raises:
            BackendUnavailable, TfxError: see ``running.infer``; or a shape that is not the spec's.
        """
        with self._turn:
            out = infer(self.session, given)
        return _checked(out, self.spec.gives, given, self.session.description)

    def infer_samples(self, given: Tensors) -> Tensors:
        """The network and both transforms, where the session has them.

        Args:
            given: ``samples [B, C, N]``, and the state.

        Returns:
            ``audio [B, S, C, N]``, and the next state.

        Raises:
            BackendUnavailable, TfxError: as of ``infer``.
        """
        with self._turn:
            out = infer_samples(self.session, given)
        after = {name: shape for name, shape in self.spec.gives.items() if name.startswith(NEXT)}
        return _checked(out, {**self.spec.transforms[DECODE][1], **after}, given, self.description)

    def infer_again(self, given: Tensors) -> Tensors:
        """The same by the float32 network."""
        assert self.fallback is not None
        with self._fallback_turn:
            out = self.fallback.infer(given)
        return _checked(out, self.spec.gives, given, str(self.fallback.description))

    def stream(self) -> Stream:
        """Return a fresh stream engine around this model, for one signal."""
        return Stream(self)

    def with_batch(self, batch: int) -> Separator:
        """The same with that many chunks at once; they share the network, and one of them closes it."""
        other = copy.copy(self)
        other.batch = batch
        other._check_session()
        return other

    def with_session(self, session: Session) -> Separator:
        """The same around another session, closed with it: one that watches the first, or a share of it."""
        other = copy.copy(self)
        other.session, other._turn = session, _turn(session)
        return other


class Stream(OverlapAdd):
    """One signal on its way through a model: a stream engine whose state is that signal's alone.

    The chunks of a network with state go through it one after the other, whatever the batch is.

    Attributes:
        network_seconds: CPU time that the calling thread spent in the network.
    """

    def __init__(self, separator: Separator):
        spec, self._separator = separator.spec, separator
        self._finite: list[bool] = []  # of each item that the network gave last; empty without a fallback
        self._state = {STATE + name: np.zeros((1, *size), np.float32) for name, size in spec.state.items()}
        self._state_before = self._state  # what the network took last
        self.network_seconds = 0.0
        super().__init__(
            self._separate_chunks,
            channels=spec.channels,
            stems=spec.stems,
            plan=separator.plan,
            batch=1 if spec.state else separator.batch,
            redo=None if separator.fallback is None else self._recompute,
        )

    def _separate_chunks(self, chunks: Audio) -> Audio:
        """``[B, C, N] -> [B, S, C, N]``."""
        separator, codec, self._state_before = self._separator, self._separator.codec, self._state
        if separator.transforms_there:
            items = self._run_network(separator.infer_samples, {SAMPLES: chunks, **self._state}, AUDIO)
            stems = [item[AUDIO] for item in items]
        else:
            spectra = codec.spectra(chunks)
            given = {**codec.tensors(chunks, spectra), **self._state}
            items = self._run_network(separator.infer, given, OUTPUT)
            stems = [codec.stems(*chunk) for chunk in zip(chunks, spectra, items, strict=True)]
        self._finite = []
        if separator.fallback is not None:
            self._finite = [all(map(all_finite, item.values())) for item in items]
        return np.stack(stems)

    def _recompute(self, chunk: Audio, place: int) -> Audio:
        """A chunk ``[1, C, N]`` of the latest batch to stems ``[1, S, C, N]``, by the float32 network."""
        codec = self._separator.codec
        if self._finite[place]:
            raise NonFiniteError(
                "the network's output is finite, its inverse transform is not: check the model"
            )
        spectra = codec.spectra(chunk)
        given = {**codec.tensors(chunk, spectra), **self._state_before}
        (item,) = self._run_network(self._separator.infer_again, given, OUTPUT)
        return codec.stems(chunk[0], spectra[0], item)[np.newaxis]

    def _run_network(self, network: Callable[[Tensors], Tensors], given: Tensors, main: str) -> list[Tensors]:
        """What the network gives, item by item, the stems in ``main``; its state is for the next chunk."""
        before = time.thread_time()
        try:
            out = network(given)
        finally:
            self.network_seconds += time.thread_time() - before
        self._state = {name: out[NEXT + name.removeprefix(STATE)] for name in self._state}
        if not all(map(all_finite, self._state.values())):  # or it would break every chunk to come
            out = {**out, main: np.full_like(out[main], np.nan)}
        return [{name: value[item] for name, value in out.items()} for item in range(len(out[main]))]


def _turn(session: Session) -> AbstractContextManager[Any]:
    """What threads hold while they are in a network."""
    return nullcontext() if getattr(session, "reentrant", False) else threading.Lock()


def _checked(out: Tensors, gives: Shapes, given: Tensors, by: str) -> Tensors:
    """What a session gave, if it has the shapes of the spec."""
    items = len(next(iter(given.values())))
    found = {name: value.shape for name, value in out.items()}
    expected = {name: (items, *shape) for name, shape in gives.items()}
    if found != expected:
        raise TfxError(f"{by} returned shapes {found}, the spec says {expected}")
    return out
