"""Signals that end a command: what is being published is finished first, and everything is tidied up.

SIGINT  130    SIGTERM  143    SIGHUP  129    SIGQUIT  131       exit codes: 128 and the signal's number
"""

from __future__ import annotations

import builtins
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def end_cleanly() -> None:
    """Have each signal that ends a process unwind like Ctrl-C; one that is ignored (``nohup``) stays so."""
    for number in ENDING[1:]:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def imports_held_back() -> Iterator[None]:
    """Let signals wait in a block while anything is imported by a statement.

    Compiled code that sets itself up takes an interruption for a failure of its own, or ends the process:
    pybind11 terminates where one comes out of a function that must not throw.
    """
    plain = builtins.__import__
    under_way = False

    def held(*arguments: Any, **named: Any) -> Any:
        nonlocal under_way
        elsewhere = threading.current_thread() is not threading.main_thread()
        if under_way or elsewhere or _there(*arguments, **named):
            return plain(*arguments, **named)
        under_way = True
        try:
            with held_back():
                return plain(*arguments, **named)
        finally:
            under_way = False

    builtins.__import__ = held
    try:
        yield
    finally:
        builtins.__import__ = plain


def _there(
    name: str,
    globals: object = None,
    locals: object = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> bool:
    """Whether ``__import__`` will find all that it is asked for: then nothing sets itself up.

    Setting all handlers and putting them back takes 40 microseconds, and most imports are of this kind.
    """
    module = sys.modules.get(name) if level == 0 else None
    return module is not None and all(part in getattr(module, "__dict__", ()) for part in fromlist or ())


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Let signals wait until the block is done; then they do what they would have done.

    Only the main thread is ever interrupted by one, so that in another there is nothing to do.

    Yields:
        The signals that have arrived, for a block that ends early when one has.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before: dict[signal.Signals, Any] = {}
    try:
        for number in ENDING:
            found = signal.getsignal(number)
            if found not in (None, signal.SIG_IGN):  # None: set by no Python code, it could not be put back
                before[number] = found
                signal.signal(number, lambda number, frame: arrived.append(number))
        yield arrived
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        for came in dict.fromkeys(arrived):
            signal.raise_signal(came)


def load_point(point: EntryPoint) -> Any:
    """Import what an entry point names; signals wait meanwhile.

    Raises:
        ImportError: it, or something that it needs, is missing or fails.
    """
    with held_back():
        return point.load()
