"""Locks that tell who lives: the kernel drops them when their holder ends, however it ends.

A process id tells nothing in a container, where numbers repeat; a lock holds across containers that share
a folder. A forked child keeps none of its parent's locks.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()  # handles of this process
_mine = threading.local()  # folders that this thread holds: asking twice is asking once


def _forget() -> None:
    """In a forked child: its copies of the handles would hold the locks when the parent has died."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()
    _mine.__dict__.clear()


os.register_at_fork(after_in_child=_forget)


def hold(handle: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder until ``release``, or until this process ends.

    Returns:
        False where another holder lives and ``wait`` is false.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    _held.add(handle)
    return True


def release(handle: int) -> None:
    """Close a handle and drop its lock; one that a parent process opened is nothing to do with us."""
    if handle in _held:
        _held.remove(handle)
        os.close(handle)


def keep(handle: int) -> None:
    """Have ``release`` close a handle that could not be locked."""
    _held.add(handle)


def holds(handle: int) -> bool:
    """Whether ``release`` has something to close: false in a forked child."""
    return handle in _held


def is_at(handle: int, name: str | os.PathLike[str], *, folder: int | None = None) -> bool:
    """Whether an open file or folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except OSError:
        return False


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a folder for a block: whoever else asks for it waits. The lock ends with the process.

    A thread that holds a folder may ask for it again. Where the file system has no locks, nobody waits.

    Args:
        folder: it stays as it is.
        waiting: called where another process holds it.

    Raises:
        OSError: it is missing, or is no folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    state = os.fstat(handle)
    place, mine = (state.st_dev, state.st_ino), _mine.__dict__.setdefault("folders", set())
    if place in mine:
        os.close(handle)
        yield
        return
    keep(handle)
    try:
        with suppress(OSError):
            if not hold(handle, wait=False):
                waiting()
                hold(handle)
        mine.add(place)
        try:
            yield
        finally:
            mine.discard(place)
    finally:
        release(handle)
