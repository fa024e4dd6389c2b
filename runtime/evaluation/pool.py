"""Processes that compute beside this one, one core each; they end with the block, however it ends.

This file imports no numpy: what a process sets before its first import decides how many threads BLAS starts.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Self

_GROUP = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}  # what a terminal sends to all of a command
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Workers:
    """A pool of fresh processes; a context manager.

    A block that ends well waits for all that was submitted. One that ends in an error, Ctrl-C included,
    kills the processes instead: what they compute would take minutes and be of use to nobody.

    Args:
        count: processes, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._before = set(multiprocessing.active_children())
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy the backend's threads and locks
        return ProcessPoolExecutor(self._count, context, initializer=_prepare)

    def renew(self) -> None:
        """Start anew: where a process was killed, its pool takes no more work."""
        self._pool.shutdown(wait=True)
        self._pool = self._new()

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        """Run a module's function in one of the processes."""
        # This may start a process, which inherits the mask: Ctrl-C, which reaches the whole group, would
        # meet it before _prepare does. The tracker unblocks signals when it starts, so it starts before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP)
        try:
            return self._pool.submit(function, *arguments, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._before:
                child.kill()
        # Once, and waited for: its thread would race with the interpreter's end, which prints what it meets.
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


def _prepare() -> None:
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    for number in _GROUP:
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has, also by kill -9: work would wait for ever in a queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
