"""Files and directories that change from old to new in one step, whenever the process is killed."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
RENAME_EXCHANGE = 2  # linux/fs.h

PARTIAL = ".partial-"
ASIDE = ".aside-"


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of ``path`` when the block ends well, and is on the disk then.

    Raises:
        OSError: as writing to it does; ``path`` is as it was.
    """
    work = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}")
    try:
        with work.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(work, path)
        with suppress(OSError):  # some file systems have nothing to do for a folder, and say so
            parent = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for a block to write to; one that was made here and is empty in the end goes again.

    Raises:
        OSError: it cannot be made.
    """
    made = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty, and what is above it, stay
            for place in made:
                place.rmdir()


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a folder for a block: whoever else asks for it waits. The lock ends with the process.

    Args:
        folder: it stays as it is.
        waiting: called where another process holds it.

    Raises:
        OSError: it is missing, or is no folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def exchange(one: Path, two: Path) -> None:
    """Let two paths change places: there is no moment at which one of them is missing.

    A file system that cannot do it (some network ones) gets three renames instead.

    Raises:
        OSError: a path is missing or cannot be renamed; both are as they were.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)  # glibc 2.28 and newer
    names = os.fsencode(one.absolute()), os.fsencode(two.absolute())
    if rename is not None and rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    aside = two.with_name(f".{two.name}{ASIDE}{os.getpid()}")
    with ExitStack() as undo:
        two.rename(aside)
        undo.callback(aside.rename, two)
        one.rename(two)
        undo.callback(two.rename, one)
        aside.rename(one)
        undo.pop_all()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written directly in a folder that nobody else writes to now.

    What was put aside by an exchange that was cut off, and has no successor, gets its name back.
    """
    for left in folder.glob(f".*{ASIDE}*"):
        place = left.with_name(left.name[1:].rpartition(ASIDE)[0])
        if place.exists():
            _remove(left)
        else:
            left.rename(place)
    for left in folder.glob(f".*{PARTIAL}*"):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
