"""Two short bounded queues, so that decoding and encoding go on while the network computes.

    decode thread --[queue]--> caller (stream engine, network) --[queue]--> encode thread

Both ends hand their errors to the caller, and both stop promptly when the caller leaves early, by error
or Ctrl-C. Memory is bounded by the queues' length.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

DEPTH = 4  # blocks that may wait in a queue
_POLL_SECONDS = 0.1


class Prefetch(Generic[T]):
    """Runs an iterator in a thread; iterate over this, inside a ``with``.

    Attributes:
        cpu_seconds: CPU time that the thread took, known after the end.
    """

    def __init__(self, items: Iterable[T], depth: int = DEPTH):
        self._items = items
        self._queue: queue.Queue[T] = queue.Queue(depth)
        self._stop, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            finished = self._done.is_set()  # before the look at the queue, so that nothing is missed
            try:
                yield self._queue.get(timeout=0 if finished else _POLL_SECONDS)
            except queue.Empty:
                if finished:
                    break
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._items:
                while not self._stop.is_set():
                    try:
                        self._queue.put(item, timeout=_POLL_SECONDS)
                        break
                    except queue.Full:
                        continue
                if self._stop.is_set():
                    break
        except BaseException as error:
            self._error = error
        self.cpu_seconds = time.thread_time()
        self._done.set()


class Behind(Generic[T]):
    """Calls ``work`` on items in a thread, in order; a context manager.

    Leaving the ``with`` normally waits for all items; leaving it by an exception drops those that wait.

    Attributes:
        cpu_seconds: CPU time that the thread took, known after the end.
    """

    def __init__(self, work: Callable[[T], None], depth: int = DEPTH):
        self._work = work
        self._queue: queue.Queue[T] = queue.Queue(depth)
        self._finish, self._drop = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self.cpu_seconds = 0.0

    def put(self, item: T) -> None:
        """Hand over an item, waiting for room; raises what ``work`` raised on an earlier one."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._drop.set()
        self._finish.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._drop.is_set():
                finished = self._finish.is_set()
                try:
                    item = self._queue.get(timeout=0 if finished else _POLL_SECONDS)
                except queue.Empty:
                    if finished:
                        break
                    continue
                self._work(item)
        except BaseException as error:
            self._error = error
        self.cpu_seconds = time.thread_time()
