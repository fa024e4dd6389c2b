"""Places that cannot be written to are found before the work, not after it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tfswa.runtime.errors import UsageError


def check_folder(folder: Path) -> None:
    """See that files can be put into a folder, which need not exist yet. Nothing is made.

    Raises:
        UsageError: something else is in its place or above it, or it may not be written to.
    """
    place = folder.absolute()
    try:
        place, code = _nearest(place), None
        if not place.is_dir():
            code = errno.ENOTDIR
        elif not os.access(place, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    except OSError as error:  # a name too long, a folder above it that may not be entered
        code = error.errno
    if code is not None:
        raise UsageError(f"{folder} cannot be written ({place}: {os.strerror(code)}): choose another place")


def check_file(path: Path) -> None:
    """The same of a file that is to be written, and of its folder; a link means what it points to.

    Raises:
        UsageError: as above, or it is a folder.
    """
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        raise UsageError(f"{path} is a folder, not a place for a file: choose another name")
    check_new(path)


def check_new(path: Path) -> None:
    """The same of a file or folder that is made beside its name; a pipe or a device is written to as it is.

    Raises:
        UsageError: as above.
    """
    try:
        path.lstat()
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special and os.access(path, os.W_OK):
            return
        place = path.resolve()
    except OSError:  # not there, or not to be looked at: its folder says why
        place = path
    check_folder(place.parent)


def _nearest(place: Path) -> Path:
    """What is there of a path: itself, or the nearest folder above it."""
    while True:
        try:
            place.lstat()
            return place
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
