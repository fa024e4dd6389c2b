"""Where a process has left incomplete files, so that the next command finds what a killed one cannot remove.

    <cache>/running/5f0c96a1d3e2b784       locked as long as its process lives; entries end with NUL:
        p/songs/out                        something incomplete is in that folder
        m/songs/out/a                      that folder was made; where it is empty, nothing came of it

Without a cache that can be written there is no record, and what a kill leaves is found by whoever writes to
that folder next.
"""

from __future__ import annotations

import atexit
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tfswa.runtime.files import locks
from tfswa.runtime.files.own_folders import make_own, usable
from tfswa.runtime.machine import user_cache

_FOLDER = "running"
_lock = threading.Lock()
_noted: set[bytes] = set()
_record: tuple[int, Path] | None = None  # handle and place


def note(folder: Path) -> None:
    """Remember that this process has something incomplete in a folder."""
    _add(b"p", folder)


def note_made(folder: Path) -> None:
    """Remember that this process made a folder, for what is not complete yet."""
    _add(b"m", folder)


def _add(kind: bytes, folder: Path) -> None:
    global _record
    entry = kind + os.fsencode(os.path.abspath(folder)) + b"\0"
    with _lock, suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        if entry not in _noted:
            _record = _record or _opened()
            os.write(_record[0], entry)
            _noted.add(entry)


def left_behind() -> Iterator[list[tuple[bool, Path]]]:
    """Of each process that died, folders that it made (True) or had something in (False), in order.

    The record goes when the next one is asked for.
    """
    with suppress(OSError, RuntimeError):
        folder = user_cache() / _FOLDER
        for record in sorted(folder.iterdir()) if usable(folder) else ():
            with suppress(OSError):
                handle = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                locks.keep(handle)
                try:
                    if locks.hold(handle, wait=False):
                        entries = record.read_bytes().split(b"\0")[:-1]
                        yield [(entry[:1] == b"m", Path(os.fsdecode(entry[1:]))) for entry in entries]
                        record.unlink()
                finally:
                    locks.release(handle)


def _opened() -> tuple[int, Path]:
    folder = user_cache() / _FOLDER
    make_own(folder)
    while True:
        place = folder / secrets.token_hex(8)
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        locks.keep(handle)
        locks.hold(handle)
        if locks.is_at(handle, place):
            return handle, place
        locks.release(handle)


@atexit.register
def close() -> None:
    """Take the record away: nothing of this process is incomplete any more."""
    global _record
    with _lock:
        if _record is not None:
            with suppress(OSError):
                _record[1].unlink()
                _record[1].parent.rmdir()
            locks.release(_record[0])
        _record = None
        _noted.clear()


def _forget() -> None:
    """In a forked child: the record is its parent's."""
    global _record, _lock
    _record, _lock = None, threading.Lock()
    _noted.clear()


os.register_at_fork(after_in_child=_forget)
