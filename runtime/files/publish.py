"""A set of files, or a folder, gets its names: all of them or none, whenever the process is killed.

    out/.vocals.wav.partial-5f0c96a1d3e2b784/     locked by who writes it
      0.wav  1.wav                                complete, and on the disk
      old-0                                       what has the first name now, to go back to
      journal.json                                from now on there is no way back but by an error

1. files reach the disk        a kill leaves the old set; a sweep removes the folder
2. journal.json appears        a kill leaves some of both; a sweep finishes what was begun
3. each file is renamed
4. the folder is removed

An error of a rename turns journal.json into undo.json, and the old set is put back. Who publishes or sweeps
holds the destination's folder, so that two sets never mix. Signals wait.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tfswa.runtime.documents import from_json, parse_json, read_document
from tfswa.runtime.files import locks
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.files.partial import WorkFolder, abandoned, open_folder, partials, remove
from tfswa.runtime.files.signals import held_back

JOURNAL, UNDO = "journal.json", "undo.json"
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
Final = tuple[int, str]  # an open folder, and a name in it
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # this kernel, this file system


@dataclass(frozen=True)
class Move:
    """One name that is given.

    Attributes:
        new: a file or folder in the work folder.
        final: its name, relative to the folder that the work folder is in.
    """

    new: str
    final: str


@dataclass(frozen=True)
class _Step(Move):
    """A move as the journal has it: ``inode`` of what is new; ``old``, where what is there is kept."""

    inode: int
    old: str | None


def publish(work: WorkFolder, moves: Sequence[Move], *, force: bool) -> None:
    """Give everything its name and remove the work folder; on an error all is as it was.

    A name that is a link is replaced, the link's target stays as it is.

    Args:
        work: holds what is new.
        moves: what goes where; the last one is seen last.
        force: replace what is there.

    Raises:
        FileExistsError: a name is taken, and ``force`` is false.
        OSError: the file system refuses, or a folder was replaced by another one or by a link.
    """
    for move in moves:
        _sync(work.path / move.new)
    with locks.locked(work.parent), held_back(), _finals(work.parent_handle, moves) as finals:
        work.check()
        steps = [
            _kept(work.handle, move, finals[move.final], number, force) for number, move in enumerate(moves)
        ]
        _write_journal(work.handle, steps, force)
        try:
            for step in steps:
                _forward(work.handle, step, finals[step.final], force)
        except BaseException:
            try:
                _turn_back(work.handle)
                for step in reversed(steps):
                    _back(work.handle, step, finals[step.final])
            except OSError:
                work.leave()  # what is in it is still needed: the next sweep tries again
            raise
        for folder in {folder for folder, _ in finals.values()}:
            _sync_folder(folder)
        work.remove()


def sweep(folder: Path) -> list[Path]:
    """Finish or remove what nobody is at any more, directly in a folder; what was removed.

    Only what belongs to this user is touched, and nothing that a living process holds.
    """
    swept = []
    for path in partials(folder):
        committed = _is_committed(path)
        with suppress(OSError), locks.locked(folder) if committed else _nothing(), abandoned(path) as free:
            # One that has a journal only now lost its owner this moment: it waits for the next time.
            if free and committed == _is_committed(path):
                if committed:
                    _settle(path)
                if remove(path):
                    swept.append(path)
    return swept


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _is_committed(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in (JOURNAL, UNDO))


def _settle(path: Path) -> None:
    """Carry out what the journal of a dead process says."""
    undo = os.path.lexists(path / UNDO)
    try:
        written = _read_journal(path / (UNDO if undo else JOURNAL))
        steps, force = [_read_step(step) for step in written["steps"]], bool(written["force"])
    except (ValueError, KeyError, TypeError):
        return  # not ours, or never complete: nothing has been moved
    work = open_folder(path, follow=False)
    parent = open_folder(path.parent)
    try:
        with held_back(), _finals(parent, steps) as finals:
            if not undo:
                try:
                    for step in steps:
                        _forward(work, step, finals[step.final], force)
                except OSError:
                    _turn_back(work)
                    undo = True
            if undo:
                for step in reversed(steps):
                    _back(work, step, finals[step.final])
            for folder in {folder for folder, _ in finals.values()}:
                _sync_folder(folder)
    finally:
        os.close(work)
        os.close(parent)


def _journal_text(written: Any) -> str:
    """A journal: what it says, twice, each time with its SHA-256, so that one damaged place costs nothing."""
    return f"{sha256_of_json(written)} {json.dumps(written)}\n" * 2


def _read_journal(path: Path) -> Any:
    """What a journal says.

    Raises:
        ValueError: neither of its lines is whole.
    """
    for line in read_document(path).splitlines():
        digest, _, text = line.partition(b" ")
        with suppress(ValueError):
            written = parse_json(text)
            if digest.decode("latin-1") == sha256_of_json(written):
                return written
    raise ValueError(f"{path} is no journal, or damaged")


def _read_step(written: Any) -> _Step:
    """A step of a journal that anybody may have put there: only names in the work folder are believed.

    Raises:
        ValueError: it is none of ours.
    """
    step = from_json(_Step, written)
    for name in (step.new, *([] if step.old is None else [step.old])):
        if name in ("", ".", "..") or "/" in name:
            raise ValueError(f"{name!r} leaves the work folder")
    if "\0" in f"{step.new}{step.old}{step.final}":
        raise ValueError("no name holds a zero")
    return step


@contextmanager
def _finals(parent: int, moves: Sequence[Move]) -> Iterator[dict[str, Final]]:
    """Open the folder of each name, below an open folder; no link on the way is followed.

    Raises:
        OSError: a folder is missing, or a link.
    """
    handles: dict[tuple[str, ...], int] = {(): os.dup(parent)}
    try:
        finals = {}
        for move in moves:
            inner = PurePosixPath(move.final)
            if inner.is_absolute() or ".." in inner.parts or not inner.parts:
                raise OSError(errno.EINVAL, "a name leaves its folder", move.final)
            for depth in range(1, len(inner.parts)):
                place = inner.parts[:depth]
                if place not in handles:
                    handles[place] = _open_inner(handles[place[:-1]], place[-1])
            finals[move.final] = (handles[inner.parts[:-1]], inner.name)
        yield finals
    finally:
        for handle in handles.values():
            os.close(handle)


def _open_inner(folder: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(errno.ENOTDIR, "a link or a file is where a folder should be", name) from error
        raise


def _kept(work: int, move: Move, final: Final, number: int, force: bool) -> _Step:
    """See to what has a name now; with a second name in the work folder it can be put back."""
    folder, name = final
    inode = _state(work, move.new)
    assert inode is not None, f"{move.new} was never written"
    there = _state(folder, name)
    if there is None:
        return _Step(move.new, move.final, inode.st_ino, None)
    if not force:
        raise FileExistsError(errno.EEXIST, "is there already", move.final)
    if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(inode.st_mode):
        raise IsADirectoryError(
            errno.EISDIR, "a folder is in the place of a file, or a file of one", move.final
        )
    old = f"old-{number}"
    with suppress(OSError):  # no second names on this file system, or none of a folder: it is moved instead
        os.link(name, old, src_dir_fd=folder, dst_dir_fd=work, follow_symlinks=False)
    return _Step(move.new, move.final, inode.st_ino, old)


def _forward(work: int, step: _Step, final: Final, force: bool) -> None:
    """Give one name; nothing where that was done already."""
    folder, name = final
    new = _state(work, step.new)
    if new is None or new.st_ino != step.inode:  # exchanged: what is here is the old folder
        return
    if stat.S_ISDIR(new.st_mode) and _state(folder, name) is not None:
        if not rename_flagged(_RENAME_EXCHANGE, work, step.new, folder, name):
            os.rename(name, step.old or "old", src_dir_fd=folder, dst_dir_fd=work)
            os.rename(step.new, name, src_dir_fd=work, dst_dir_fd=folder)
    elif force:
        if step.old is not None and _state(work, step.old) is None and _state(folder, name) is not None:
            os.rename(name, step.old, src_dir_fd=folder, dst_dir_fd=work)
        os.rename(step.new, name, src_dir_fd=work, dst_dir_fd=folder)
    else:
        take_name(work, step.new, folder, name)


def _turn_back(work: int) -> None:
    """From here on a kill is rolled back: what was put back has lost what is new."""
    os.rename(JOURNAL, UNDO, src_dir_fd=work, dst_dir_fd=work)
    _sync_folder(work)


def _back(work: int, step: _Step, final: Final) -> None:
    """Put back what had one name; nothing where that was done already."""
    folder, name = final
    new, old = _state(work, step.new), step.old and _state(work, step.old)
    if new is not None and new.st_ino != step.inode:  # exchanged
        rename_flagged(_RENAME_EXCHANGE, work, step.new, folder, name)
        return
    there = _state(folder, name)
    if there is not None and there.st_ino == step.inode and not (old and stat.S_ISREG(old.st_mode)):
        os.rename(name, step.new, src_dir_fd=folder, dst_dir_fd=work)
    if step.old is not None and old:
        os.rename(step.old, name, src_dir_fd=work, dst_dir_fd=folder)


def _state(folder: int, name: str) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def take_name(from_folder: int, old: str, to_folder: int, new: str) -> None:
    """Rename to a name that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    if not rename_flagged(_RENAME_NOREPLACE, from_folder, old, to_folder, new):
        if _state(to_folder, new) is not None:
            raise FileExistsError(errno.EEXIST, "came to be there meanwhile", new)
        os.rename(old, new, src_dir_fd=from_folder, dst_dir_fd=to_folder)


def rename_flagged(flags: int, from_folder: int, old: str, to_folder: int, new: str) -> bool:
    """Rename as ``renameat2`` can; False where the kernel or the file system cannot.

    Raises:
        OSError: it can and does not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)  # glibc 2.28 and newer
    if call is None:
        return False
    if call(from_folder, os.fsencode(old), to_folder, os.fsencode(new), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), new)


def _write_journal(work: int, steps: Sequence[_Step], force: bool) -> None:
    """Commit: from here on a kill is rolled forward."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open("journal", flags, 0o600, dir_fd=work), "w") as stream:
        stream.write(_journal_text({"force": force, "steps": [asdict(step) for step in steps]}))
        stream.flush()
        os.fsync(stream.fileno())
    os.rename("journal", JOURNAL, src_dir_fd=work, dst_dir_fd=work)
    _sync_folder(work)


def _sync(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _sync(inner)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            _sync_folder(handle)
        else:
            os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(handle: int) -> None:
    with suppress(OSError):  # some file systems have nothing to do for a folder, and say so
        os.fsync(handle)
