"""What is read, opened once: a regular file, a pipe, standard input or a file object.

Every part of the reader (headers, decoders, tags) looks at it through a ``Window`` of its own, so that
none depends on where another has read to.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from tfswa.runtime.errors import AudioError

STDIN = Path("-")
_COPY_BYTES = 1 << 20


class Source:
    """An open file that can be read at any place.

    Attributes:
        path: as it was named; ``stdin`` for standard input.
        size: in bytes.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._lock = threading.Lock()
        self.size = file.seek(0, os.SEEK_END)

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset`` on; fewer at the end."""
        if not 0 <= offset < self.size:
            return b""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(min(count, self.size - offset))

    def window(self, start: int = 0, stop: int | None = None) -> Window:
        """A file object of its own over bytes ``start`` to ``stop``."""
        return Window(self, start, self.size if stop is None else min(stop, self.size))

    def descriptor(self) -> int | None:
        """Another descriptor of the very same file, with a position of its own; None where there is none.

        The caller closes it. C libraries read through it without a detour through Python.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError):
            return None
        with suppress(OSError, ValueError):
            if os.path.sameopenfile(descriptor, self._file.fileno()):
                return descriptor
        os.close(descriptor)
        return None

    def close(self) -> None:
        """Release the file."""
        self._file.close()


class Window(io.RawIOBase):
    """A part of a ``Source`` as a file of its own, with its own position."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        super().__init__()
        self.source, self.start, self.size = source, start, max(0, stop - start)
        self._position = 0

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def tell(self) -> int:
        """See ``io.RawIOBase``."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See ``io.RawIOBase``."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """See ``io.RawIOBase``."""
        view = memoryview(buffer)
        count = max(0, min(len(view), self.size - self._position))
        data = self.source.read_at(self.start + self._position, count)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_source(given: Path | BinaryIO) -> Source:
    """Open a file, a pipe, standard input (``-``) or a binary file object for reading, once.

    What cannot be read at any place is copied to a temporary file first (in ``TMPDIR``, without a name).

    Raises:
        AudioError: no such file, a directory, a device, a terminal, or empty.
    """
    if not isinstance(given, Path):
        path = Path(str(getattr(given, "name", "stream")))
        return _filled(Source(path, given if _is_regular(given) else _copied(given, path)))
    try:
        if given == STDIN:
            return _open_stdin()
        if given.is_dir():
            raise AudioError(f"{given} is a directory, not an audio file: name a file in it")
        mode = given.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)) and not given.samefile(os.devnull):
            raise AudioError(f"{given} is a device or a socket, not a file or a pipe: name a file with sound")
        file = given.open("rb")
    except OSError as error:
        raise AudioError(f"{given} cannot be opened: {error.strerror}: check the path") from error
    except ValueError as error:  # a null byte in the name
        raise AudioError(f"{given!s:.80} cannot be opened: {error}: check the path") from error
    if stat.S_ISREG(mode):
        return _filled(Source(given, file))
    with file:
        return _filled(Source(given, _copied(file, given)))


def _open_stdin() -> Source:
    if sys.stdin is None:  # as a daemon starts, or with <&- in a shell
        raise AudioError("standard input is closed: pipe a file into it, or name a file")
    path, file = Path("stdin"), sys.stdin.buffer
    if file.isatty():
        raise AudioError("standard input is a terminal, not sound: pipe a file into it, or name a file")
    return _filled(Source(path, _copied(file, path)))


def _filled(source: Source) -> Source:
    if source.size == 0:
        source.close()
        raise AudioError(f"{source.path} is empty (0 bytes): use a file that holds audio")
    return source


def _is_regular(file: BinaryIO) -> bool:
    try:
        return file.seekable() and file.tell() == 0
    except (OSError, ValueError):
        return False


def _copied(file: BinaryIO, path: Path) -> BinaryIO:
    copy: IO[bytes] = tempfile.TemporaryFile(prefix="tfx-")  # noqa: SIM115  the caller closes it
    try:
        shutil.copyfileobj(file, copy, _COPY_BYTES)
    except OSError as error:
        copy.close()
        raise AudioError(
            f"{path} cannot be read on, or kept in {tempfile.gettempdir()} ({error.strerror}): "
            "free some space there, or set TMPDIR to another place"
        ) from error
    except BaseException:
        copy.close()
        raise
    return cast(BinaryIO, copy)
