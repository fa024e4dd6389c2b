"""A file that has come in part: kept beside its destination, so that the next try goes on from there.

downloads/model.ckpt              the destination, whole
downloads/model.ckpt.part         what has come, locked by who writes it
downloads/model.ckpt.part.json    what the server said of it: address, ETag, size
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tfswa.runtime.documents import from_json, parse_json, read_document
from tfswa.runtime.files import atomic, locks
from tfswa.runtime.files.caches import NOTE, PART
from tfswa.runtime.files.partial import check_same, open_folder
from tfswa.runtime.files.signals import held_back

BLOCK_BYTES = 1 << 18
TAIL_BYTES = 10_240_000


@dataclass(frozen=True)
class ServerNote:
    """What a server said of a file.

    Attributes:
        url: the address that was asked.
        etag: its ETag, where it gave one.
        modified: its Last-Modified, where it gave one.
        size_bytes: of the whole file, where it said so.
    """

    url: str
    etag: str | None = None
    modified: str | None = None
    size_bytes: int | None = None

    def contradicts(self, other: ServerNote) -> bool:
        """Whether they cannot be of one content."""
        if None not in (self.size_bytes, other.size_bytes) and self.size_bytes != other.size_bytes:
            return True
        if self.etag or other.etag:
            return None not in (self.etag, other.etag) and self.etag != other.etag
        return None not in (self.modified, other.modified) and self.modified != other.modified

    def confirms(self, other: ServerNote) -> bool:
        """Whether a server says that they are of one content."""
        named = self.etag if self.etag or other.etag else self.modified
        return named is not None and not self.contradicts(other) and named in (other.etag, other.modified)


class PartialDownload:
    """The part of a file that is here; made by ``opened``.

    Attributes:
        place: the destination.
        path: of the part.
        note: what is known of it; None where it is empty, or nothing was noted.
        size: bytes that are here.
    """

    def __init__(self, place: Path, path: Path, handle: int) -> None:
        self.place, self.path, self._handle = place, path, handle
        self._digest, self.size = hashlib.sha256(), 0
        while block := os.pread(handle, BLOCK_BYTES * 4, self.size):
            self._digest.update(block)
            self.size += len(block)
        self.note = self._noted() if self.size else None

    @property
    def sha256(self) -> str:
        """Of what is here."""
        return self._digest.hexdigest()

    @property
    def md5_tail(self) -> str:
        """MD5 of the last 10,240,000 bytes of what is here."""
        digest, at = hashlib.md5(usedforsecurity=False), max(0, self.size - TAIL_BYTES)
        while block := os.pread(self._handle, BLOCK_BYTES, at):
            digest.update(block)
            at += len(block)
        return digest.hexdigest()

    def begin(self, note: ServerNote) -> None:
        """Forget what is here, and note what comes instead.

        Raises:
            OSError: it cannot be written.
        """
        os.ftruncate(self._handle, 0)
        self._digest, self.size, self.note = hashlib.sha256(), 0, note
        with atomic.writing(self._note_path) as stream:
            stream.write(json.dumps(asdict(note)).encode())

    def write(self, block: bytes) -> None:
        """Append.

        Raises:
            OSError: it cannot be written; on a full disk, what is here is removed.
        """
        at, view = self.size, memoryview(block)
        try:
            while view:
                count = os.pwrite(self._handle, view, at)
                at, view = at + count, view[count:]
        except OSError:
            self.discard()
            raise
        self._digest.update(block)
        self.size = at

    def discard(self) -> None:
        """Remove what is here."""
        os.ftruncate(self._handle, 0)
        self._digest, self.size, self.note = hashlib.sha256(), 0, None

    def finish(self) -> None:
        """Give it its name, once it is on the disk.

        Raises:
            OSError: it cannot be written, or the folder was replaced meanwhile.
        """
        os.fsync(self._handle)
        folder = open_folder(self.place.parent)
        try:
            check_same(self.place.parent, folder)
            with held_back():
                os.replace(self.path.name, self.place.name, src_dir_fd=folder, dst_dir_fd=folder)
                self._note_path.unlink(missing_ok=True)
                with suppress(OSError):  # some file systems have nothing to do for a folder, and say so
                    os.fsync(folder)
        finally:
            os.close(folder)

    def tidy(self) -> None:
        """Remove a part that holds nothing."""
        if not self.size and locks.is_at(self._handle, self.path):
            with suppress(OSError):
                self._note_path.unlink(missing_ok=True)
                self.path.unlink()

    @property
    def _note_path(self) -> Path:
        return self.place.with_name(self.place.name + NOTE)

    def _noted(self) -> ServerNote | None:
        try:
            return from_json(ServerNote, parse_json(read_document(self._note_path)))
        except (OSError, ValueError):
            return None


@contextmanager
def opened(place: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[PartialDownload]:
    """Hold the part of a file for a block, alone: whoever else asks for it waits.

    What was written stays when the block fails; a part that holds nothing does not.

    Args:
        place: the destination; its folder exists.
        waiting: called where another process holds the part.

    Raises:
        OSError: it cannot be opened.
    """
    path = place.with_name(place.name + PART)
    handle = _held(path, waiting)
    try:
        part = PartialDownload(place, path, handle)
        try:
            yield part
        finally:
            part.tidy()
    finally:
        locks.release(handle)


def _held(path: Path, waiting: Callable[[], None]) -> int:
    """A handle that locks the file of that name."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        locks.keep(handle)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, f"{path.name} is in the way, and is no file")
            with suppress(OSError):  # no locks on this file system: nobody waits
                if not locks.hold(handle, wait=False):
                    waiting()
                    locks.hold(handle)
        except BaseException:
            locks.release(handle)
            raise
        if locks.is_at(handle, path):
            return handle
        locks.release(handle)  # whoever held it has finished, and it has another name now
