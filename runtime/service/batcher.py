"""One network for many callers: chunks of several signals share its batches.

Every caller has a session of its own, which a ``Separator`` takes like any other::

    batcher = Batcher(plain.session, batch=8)
    with plain.with_session(batcher.session("some key")) as separator: ...

caller 1 ── chunk ──┐
caller 2 ── chunk ──┼──> batch, always of one size ──> network ──> each its own
caller 3 ── chunk ──┘
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import Session, filled
from tfswa.runtime.backends.running import infer, infer_samples
from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.limits import MOST_BATCH, check_number

WAIT_SECONDS = 0.005

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Item:
    """A chunk that waits: what the network takes, ``[1, ...]`` each, and a promise of what it gives."""

    with_transform: bool
    given: Tensors
    since: float
    found: Future[Tensors] = field(default_factory=Future)


class Batcher:
    """Runs a session in a thread of its own, with as many chunks at once as wait for it.

    Batches have one size and are filled up with silence: a network may round otherwise for another number of
    items, and what a chunk gives must not depend on who else is being served. So ``batch`` pays on a GPU; on
    a CPU it is best 1, and the batcher gives turns.

    Urgent callers go first. Among others the key that was served longest ago does, and of one key its caller
    that was.

    Args:
        session: the network's; it stays the owner's, who closes it after the batcher.
        batch: the most chunks at once, and the size of all batches.
        wait_seconds: how long a chunk waits for others, if there are callers that have none waiting.

    Attributes:
        batches: how many the network got.
        items: how many chunks were in them.
        waited_seconds: how long those chunks waited, together.
        network_seconds: how long the network took for all batches.

    Raises:
        UsageError: a batch that the session does not take, or a wait below 0.
    """

    def __init__(self, session: Session, *, batch: int = 1, wait_seconds: float = WAIT_SECONDS):
        check_number("batch", batch, MOST_BATCH)
        limit = getattr(session, "batch_limit", None)
        if limit is not None and batch > limit:
            raise UsageError(
                f"{session.artifact[0]} takes batches of {limit}, not of {batch}: lower the batch"
            )
        if not wait_seconds >= 0:
            raise UsageError(f"a wait of {wait_seconds} seconds: give 0 or more")
        self.batches = self.items = 0
        self.waited_seconds = self.network_seconds = 0.0
        self._session, self._batch, self._wait = session, batch, wait_seconds
        self._callers: list[SharedSession] = []
        self._served: Counter[str] = Counter()  # by key, the number of its latest turn
        self._turns = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="tfx batcher", daemon=True)
        self._thread.start()

    def session(self, key: str = "", *, urgent: bool = False) -> SharedSession:
        """A caller's own session; closing it leaves the network to the others.

        Args:
            key: whose it is; keys take turns.
            urgent: before all that are not.
        """
        caller = SharedSession(self, self._session, key, urgent=urgent)
        with self._changed:
            self._callers.append(caller)
        return caller

    def close(self) -> None:
        """Let the network finish what waits, and end; calling it twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def leave(self, caller: SharedSession) -> None:
        """A caller is gone: nobody waits for its chunks any more."""
        with self._changed:
            if caller in self._callers:
                self._callers.remove(caller)
            while caller.waiting:
                caller.waiting.popleft().found.set_exception(_closed())
            if all(other.key != caller.key for other in self._callers):
                del self._served[caller.key]
            self._changed.notify_all()

    def ask(self, caller: SharedSession, given: Tensors, *, with_transform: bool) -> Tensors:
        """What the network gives to a caller's chunks ``[B, ...]``, which need not be in one batch.

        Raises:
            TfxError: the batcher is closed.
            Exception: what the session raises for a chunk by itself.
        """
        count, now = len(next(iter(given.values()))), time.monotonic()
        items = [
            _Item(with_transform, {name: value[i : i + 1] for name, value in given.items()}, now)
            for i in range(count)
        ]
        with self._changed:
            if self._closed or caller not in self._callers:
                raise _closed()
            caller.waiting.extend(items)
            self._changed.notify_all()
        found = [item.found.result() for item in items]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _work(self) -> None:
        while items := self._next():
            began = time.monotonic()
            self._run(items)
            self.network_seconds += time.monotonic() - began
            self.waited_seconds += sum(began - item.since for item in items)
            self.items += len(items)
            self.batches += 1

    def _next(self) -> list[_Item]:
        """Wait for the next batch; without items when all is done."""
        with self._changed:
            while True:
                queues = [caller.waiting for caller in self._callers]
                heads = [queue[0].since for queue in queues if queue]
                if not heads:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = min(heads) + self._wait - time.monotonic()
                more_may_come = len(heads) < len(queues) and sum(map(len, queues)) < self._batch
                if self._closed or left <= 0 or not more_may_come:
                    return self._take()
                self._changed.wait(left)

    def _take(self) -> list[_Item]:
        """Items of one kind, whose turn it is."""
        found: list[_Item] = []
        while len(found) < self._batch:
            waiting = [
                caller
                for caller in self._callers
                if caller.waiting
                and (not found or caller.waiting[0].with_transform == found[0].with_transform)
            ]
            if not waiting:
                break
            turn = min(waiting, key=lambda one: (not one.urgent, self._served[one.key], one.served))
            found.append(turn.waiting.popleft())
            self._turns += 1
            turn.served = self._served[turn.key] = self._turns
        return found

    def _run(self, items: list[_Item]) -> None:
        """Each item gets what it gives, or the error that it raises by itself."""
        try:
            results: list[Tensors | BaseException] = list(self._together(items))
        except Exception as error:
            results = [error] if len(items) == 1 else [self._alone(item) for item in items]
        for item, result in zip(items, results, strict=True):
            if isinstance(result, BaseException):
                item.found.set_exception(result)
            else:
                item.found.set_result(result)

    def _together(self, items: list[_Item]) -> list[Tensors]:
        given = {
            name: filled(np.concatenate([item.given[name] for item in items]), self._batch)
            for name in items[0].given
        }
        out = (infer_samples if items[0].with_transform else infer)(self._session, given)
        return [{name: value[i : i + 1] for name, value in out.items()} for i in range(len(items))]

    def _alone(self, item: _Item) -> Tensors | BaseException:
        try:
            return self._together([item])[0]
        except Exception as error:
            return error


def _closed() -> TfxError:
    return TfxError("the session was closed, and its chunks are not separated: open another one")


class SharedSession:
    """A caller's share of a session; see ``Session``, of which all but the network's own is the same.

    Args:
        batcher: who runs the network.
        session: the network's.
        key: whose it is.
        urgent: whether it goes first.
    """

    reentrant = True

    def __init__(self, batcher: Batcher, session: Session, key: str, *, urgent: bool):
        self.key, self.urgent, self.served = key, urgent, 0
        self.waiting: deque[_Item] = deque()
        self.name, self.artifact = session.name, session.artifact
        self.description, self.versions = session.description, session.versions
        self.options: Any = getattr(session, "options", None)
        self.transform: str = getattr(session, "transform", "")
        self._batcher = batcher

    def infer(self, given: Tensors) -> Tensors:
        """As the session's."""
        return self._batcher.ask(self, given, with_transform=False)

    def infer_samples(self, given: Tensors) -> Tensors:
        """As the session's."""
        return self._batcher.ask(self, given, with_transform=True)

    def close(self) -> None:
        """Leave; calling it twice is harmless."""
        self._batcher.leave(self)
