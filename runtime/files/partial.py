"""Where files are while they are incomplete: beside their destination, under names nobody can foresee.

    out/vocals.wav                               a destination
    out/.vocals.wav.partial-5f0c96a1d3e2b784     a file or a folder that is being written, locked
    $TMPDIR/tfx-calibrate-5f0c96a1d3e2b784/0     a temporary folder, in one that is locked

Names come from the system's random source and are made exclusively, so that a link planted beforehand is
never followed. Folders can be entered by their owner alone. The lock ends with its process: what is not
locked belongs to nobody, and ``sweep`` removes it. Signals wait while one is made and while it is removed, so
that it always has an owner.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tfswa.runtime.files import locks, register
from tfswa.runtime.files.signals import held_back

MARK = ".partial-"
_SHOWN = 40  # characters of the destination's name: with all of it, a long one would be too long
_PARTIAL = re.compile(r"\..*\.partial-[0-9a-f]{16}", re.DOTALL)
_TEMPORARY = re.compile(r"tfx-[a-z-]+-[0-9a-f]{16}")


def partial_name(name: str) -> str:
    """A name for what will be called ``name``, never given before."""
    return f".{name[:_SHOWN]}{MARK}{secrets.token_hex(8)}"


def open_folder(path: Path, *, follow: bool = True) -> int:
    """A handle for a folder; it stays the same folder whatever becomes of its name.

    Raises:
        OSError: it is missing, no folder, or a link while ``follow`` is false.
    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))


def check_same(path: Path, handle: int) -> None:
    """See that a name still means the folder that it meant when it was opened.

    Raises:
        OSError: it is gone, or something else has taken its place.
    """
    if not os.path.samestat(path.stat(), os.fstat(handle)):
        raise OSError(errno.ESTALE, "the folder was replaced by another one meanwhile", str(path))


@contextmanager
def new_file(folder: int, name: str, mode: int = 0o666) -> Iterator[tuple[str, int]]:
    """An empty, locked file beside ``name`` in an open folder, for a block; its permissions are the umask's.

    Args:
        folder: a handle.
        name: what the file will be called.
        mode: its permissions, less what the umask takes.

    Yields:
        Its name, which is gone after the block, unless another was given; and a handle to write to.

    Raises:
        OSError: it cannot be made.
    """
    made = None
    try:
        with held_back():
            made = _new_file(folder, name, mode)
        yield made
    finally:
        if made is not None:
            with held_back():
                with suppress(OSError):
                    os.unlink(made[0], dir_fd=folder)
                locks.release(made[1])


def _new_file(folder: int, name: str, mode: int) -> tuple[str, int]:
    while True:
        partial = partial_name(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(partial, flags, mode, dir_fd=folder)
        if _claimed(handle, partial, folder):
            return partial, handle


class WorkFolder:
    """A folder for what is not complete, beside its destination; gone when this object is.

    Args:
        parent: the destination's folder.
        new_name: gives a name that was never given before.

    Attributes:
        parent: as given.
        path: the folder; whoever may not enter it cannot plant anything there.
        handle: of the folder.
        parent_handle: of its parent.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, new_name: Callable[[], str]) -> None:
        self.parent = parent
        made = ExitStack()
        self._end = undone_with(self, made)
        try:
            with held_back():
                self.parent_handle = open_folder(parent)
                locks.keep(self.parent_handle)
                made.callback(locks.release, self.parent_handle)
                self.handle = -1
                while self.handle < 0:
                    self.path = parent / new_name()
                    self.handle = _new_folder(self.path.name, self.parent_handle)
                made.callback(_remove, self.path.name, self.handle, self.parent_handle)
        except BaseException:
            self.remove()
            raise

    def check(self) -> None:
        """See that the destination's folder is still where it was.

        Raises:
            OSError: it was moved, or something else, such as a link, is in its place.
        """
        check_same(self.parent, self.parent_handle)

    def remove(self) -> None:
        """Remove the folder and what is left in it; harmless when called twice."""
        self._end()

    def leave(self) -> None:
        """Let go of the folder as it is, for a sweep to deal with."""
        self._end.detach()
        locks.release(self.handle)
        locks.release(self.parent_handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def beside(path: Path) -> WorkFolder:
    """Make a work folder beside a destination.

    Raises:
        OSError: it cannot be made.
    """
    register.note(path.parent)
    return WorkFolder(path.parent, lambda: partial_name(path.name))


def new_temporary(word: str) -> WorkFolder:
    """Make a temporary folder, ``$TMPDIR/tfx-<word>-<random>``.

    Raises:
        OSError: it cannot be made.
    """
    return WorkFolder(Path(tempfile.gettempdir()), lambda: f"tfx-{word}-{secrets.token_hex(8)}")


@contextmanager
def temporary(word: str) -> Iterator[Path]:
    """A temporary folder for a block: ``$TMPDIR/tfx-<word>-<random>/0``.

    The outer folder is locked for as long as its owner lives; the inner one is nobody's, so that whoever
    publishes in it, this process or a child, may lock it.

    Raises:
        OSError: it cannot be made.
    """
    with new_temporary(word) as work:
        inner = work.path / "0"
        inner.mkdir(0o700)
        yield inner


def sweep_temporary() -> list[Path]:
    """Remove what killed processes of this user left in the system's temporary folder."""
    return [path for path in _ownerless(Path(tempfile.gettempdir()), _TEMPORARY) if _taken_away(path)]


def partials(folder: Path) -> list[Path]:
    """What is incomplete in a folder, of this user, whether somebody is at it or not."""
    return _ownerless(folder, _PARTIAL)


def _ownerless(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                with suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    if state.st_uid == os.geteuid() and (
                        stat.S_ISDIR(state.st_mode) or stat.S_ISREG(state.st_mode)
                    ):
                        found.append(folder / entry.name)
    return found


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Take over what nobody holds, for a block; False where its owner lives, or nobody can tell."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    locks.keep(handle)
    try:
        try:
            taken = locks.hold(handle, wait=False) and locks.is_at(handle, path)
        except OSError:  # no locks on this file system
            taken = False
        yield taken
    finally:
        locks.release(handle)


def remove(path: Path) -> bool:
    """Remove a file or a folder with what is in it; whether it is gone. No link is followed."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    return not os.path.lexists(path)


def _taken_away(path: Path) -> bool:
    with abandoned(path) as free:
        return free and remove(path)


def _new_folder(name: str, parent: int) -> int:
    """A handle for a new, locked folder; -1 where a sweep came first."""
    os.mkdir(name, 0o700, dir_fd=parent)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return -1
    return handle if _claimed(handle, name, parent) else -1


def undone_with(owner: object, made: ExitStack) -> weakref.finalize[..., Any]:
    """Have what was made undone when it is called, or its owner is gone; signals wait meanwhile."""
    return weakref.finalize(owner, _close, made)


def _close(made: ExitStack) -> None:
    with held_back():
        made.close()


def _remove(name: str, handle: int, parent: int) -> None:
    """Remove a work folder; not in a forked child, where the handles may be of other folders."""
    if locks.holds(handle):
        shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
        locks.release(handle)


def _claimed(handle: int, name: str, folder: int) -> bool:
    """Lock what was just made; False where a sweep came first, which removed it."""
    locks.keep(handle)
    with suppress(OSError):  # no locks on this file system: nothing is ever swept there
        locks.hold(handle)
    if locks.is_at(handle, name, folder=folder):
        return True
    locks.release(handle)
    return False
