"""Every system call that changes what names mean, counted: at one of them a process is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from tfswa.runtime.errors import TfxError
from tfswa.runtime.files import publish
from tfswa.runtime.files.signals import ENDING, end_cleanly

Calls = tuple[tuple[Any, str], ...]
CALLS: Calls = (
    *((os, name) for name in ("rename", "replace", "link", "fsync", "unlink", "rmdir", "mkdir")),
    (publish, "rename_flagged"),
)
Stop = signal.Signals | Literal["an error"]
# What may stop work at a call. Signals are answered alike: a short run sends one.
STOPS: tuple[Stop, ...] = (
    signal.SIGKILL,
    "an error",
    *(ENDING if os.environ.get("TFX_LONG") else (signal.SIGTERM,)),
)
_FAULT, _REFUSED = 1, 2  # exit statuses of a child


@contextmanager
def counted(
    at: int, act: Callable[[], None], *, calls: Calls = CALLS, after: bool = False
) -> Iterator[list[int]]:
    """Count the calls of a block; ``act`` before or ``after`` the one of that number, the first being 1."""
    count = [0]

    def counting(real: Callable[..., Any]) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            count[0] += 1
            number = count[0]
            if number == at and not after:
                act()
            try:
                return real(*given, **named)
            finally:
                if number == at and after:
                    act()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in calls:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        yield count


def refuse() -> None:
    """Fail as a disk does."""
    raise OSError(5, "Input/output error")


def die() -> None:
    """End this process as kill -9 does."""
    signal.raise_signal(signal.SIGKILL)


def stopped_at(at: int, stop: Stop, work: Callable[[], object]) -> bool:
    """Do some work in a process of its own that is stopped before its call of that number.

    Returns:
        False where the work has fewer calls: it was done.
    """

    def run() -> None:
        with counted(at, refuse if stop == "an error" else lambda: signal.raise_signal(stop)) as count:
            try:
                work()
            except (OSError, TfxError):
                if stop != "an error":
                    raise
            if count[0] >= at:
                sys.exit(_REFUSED if stop == "an error" else _FAULT)  # or nobody heard the signal

    status = status_of(run)
    expected = _REFUSED if stop == "an error" else -9 if stop == signal.SIGKILL else 128 + stop
    assert status in (0, expected), (at, stop, status)
    return status != 0


def status_of(work: Callable[[], object]) -> int:
    """Do some work in a forked process that answers signals as a command does.

    Returns:
        Its exit status, 0 where the work was done; -9 where it was killed.
    """
    with warnings.catch_warnings():
        # The child touches files alone, so other tests' threads do not matter to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = _FAULT
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in ENDING[1:]:
                signal.signal(number, signal.SIG_DFL)
            end_cleanly()
            work()
            status = 0
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        except SystemExit as left:
            status = int(left.code or 0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def alone(script: str, *arguments: object) -> str:
    """Run a script that raises signals in an interpreter of its own, where they end no other test.

    Returns:
        What it wrote to stdout.
    """
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
