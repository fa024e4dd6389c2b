"""Every system call that changes what names mean, counted: at one of them a process dies, or it fails."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tfswa.runtime.files import publish

KILLED = 9
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("rename", "replace", "link", "fsync", "unlink", "rmdir", "mkdir")),
    (publish, "rename_flagged"),
)


@contextmanager
def counted(at: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Count the calls of a block, and ``act`` before the one of that number; the first is 1."""
    count = [0]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, _counting(getattr(owner, name), count, at, act))
        yield count


def _counting(real: Callable[..., Any], count: list[int], at: int, act: Callable[[], None]) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == at:
            act()
        return real(*given, **named)

    return call


def killed_at(at: int, work: Callable[[], None]) -> bool:
    """Do some work in a forked process that dies before its call of that number; False if it got through."""
    with warnings.catch_warnings():
        # The child touches files alone, so other tests' threads do not matter to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            with counted(at, lambda: os._exit(KILLED)):
                work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED
