"""A file or a folder that changes from old to new in one step, whenever the process is killed.

Which name a link means: a path that a user typed (``-o model.tfx``, ``--junit report.xml``) is followed, so
that the file behind the link changes; ``named=True``. A path that tfx made up (a stem, a manifest, a file of
a cache) is not: a link that lies there is replaced, and what it points to stays as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tfswa.runtime.errors import OutputExists
from tfswa.runtime.files import register
from tfswa.runtime.files.partial import beside, check_same, new_file, open_folder
from tfswa.runtime.files.publish import Move, publish, sweep, take_name
from tfswa.runtime.files.signals import held_back


@contextmanager
def writing(path: Path, *, named: bool = False, force: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of ``path`` when the block ends well, and is on the disk then.

    A pipe or a device that a user named (``/dev/stdout``) is written to as it is.

    Args:
        path: the destination.
        named: a user typed this path: a link is followed.
        force: replace what is there in the end.

    Raises:
        OSError: as writing to it does; ``path`` is as it was.
        OutputExists: something is there in the end, and ``force`` is false.
    """
    if named and (special := _special(path)):
        with special.open("wb") as stream:
            yield stream
        return
    path = path.resolve() if named else path
    register.note(path.parent)
    folder = open_folder(path.parent)
    try:
        with new_file(folder, path.name) as (partial, handle):
            with os.fdopen(handle, "wb", closefd=False) as stream:
                yield stream
                stream.flush()
                os.fsync(handle)
            check_same(path.parent, folder)
            with held_back():
                if force:
                    os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    _take_name(partial, path, folder)
                with suppress(OSError):  # some file systems have nothing to do for a folder, and say so
                    os.fsync(folder)
    finally:
        os.close(folder)


def _take_name(partial: str, path: Path, folder: int) -> None:
    try:
        take_name(folder, partial, folder, path.name)
    except FileExistsError as error:
        raise OutputExists(
            f"{path} came to be there meanwhile: add --force to replace it, or choose another place"
        ) from error


@contextmanager
def new_folder(path: Path, *, force: bool, named: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` when the block ends well.

    Missing folders above it are made.

    Args:
        path: the destination.
        force: replace a folder that is there.
        named: a user typed this path: a link is followed.

    Raises:
        FileExistsError: something is there, and ``force`` is false.
        OSError: it cannot be made; what was there is as it was.
    """
    path = path.resolve() if named else path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with beside(path) as work:
        inner = work.path / "0"
        inner.mkdir()
        yield inner
        publish(work, [Move(inner.name, path.name)], force=force)


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for a block to write to; one that was made here and is empty in the end goes again.

    Raises:
        OSError: it cannot be made.
    """
    made = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that is not empty, and what is above it, stay
            for place in made:
                place.rmdir()


def _special(path: Path) -> Path | None:
    """A pipe or a device; files and what is not there are none."""
    with suppress(OSError):
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return path
    return None
