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
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

DEPTH = 4  # blocks that may wait in a queue


class _End:
    """Follows the last item through a queue."""


class Prefetch(Generic[T]):
    """Runs an iterator in a thread; iterate over this, inside a ``with``.

    Attributes:
        cpu_seconds: CPU time that the thread took, known after the end.
    """

    def __init__(self, items: Iterable[T], depth: int = DEPTH):
        self._items = items
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._ended = False
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
        # The thread puts at most one thing more: make room for it, and it cannot block.
        with suppress(queue.Empty):
            self._queue.get_nowait()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while not self._ended:
            item = self._queue.get()
            if isinstance(item, _End):
                self._ended = True
            else:
                yield item
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
                if self._stop.is_set():
                    break
        except BaseException as error:
            self._error = error
        self.cpu_seconds = time.thread_time()
        if not self._stop.is_set():
            self._queue.put(_End())


class BackgroundWorker(Generic[T]):
    """Calls ``work`` on items in a thread, in order; a context manager.

    Leaving the ``with`` normally waits for all items; leaving it by an exception drops those that wait.

    Attributes:
        cpu_seconds: CPU time that the thread took, known after the end.
    """

    def __init__(self, work: Callable[[T], None], depth: int = DEPTH):
        self._work = work
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._drop, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self.cpu_seconds = 0.0

    def put(self, item: T) -> None:
        """Hand over an item, waiting for room; raises what ``work`` raised on an earlier one."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._drop.set()
        try:
            self._finish()
        except BaseException:  # Ctrl-C while the rest is written: the thread must not outlive this call
            self._drop.set()
            self._finish()
            raise
        if error is None and self._error is not None:
            raise self._error

    def _finish(self) -> None:
        self._queue.put(_End())
        self._done.wait()  # a join that is interrupted takes the thread for ended (bpo-45274)
        self._thread.join()

    def _run(self) -> None:
        # After an error items are still taken, so that the caller never waits for room in vain.
        while not isinstance(item := self._queue.get(), _End):
            if self._error is not None or self._drop.is_set():
                continue
            try:
                self._work(item)
            except BaseException as error:
                self._error = error
        self.cpu_seconds = time.thread_time()
        self._done.set()
