"""A terminal for a command that runs in the tests' own process, or in one of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Screen:
    """What was written to a terminal so far, escapes and all."""

    def __init__(self) -> None:
        self.bytes = b""

    @property
    def text(self) -> str:
        return self.bytes.decode(errors="replace")


@contextmanager
def terminal(columns: int = 80, rows: int = 24) -> Iterator[tuple[int, Screen]]:
    """Open a pseudo-terminal: the descriptor to write to, and what it then shows.

    On leaving the descriptor is closed and everything written to it has been read, whoever still has it open:
    what watches over a pool's resources inherits the errors' stream, and lives as long as the tests do.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    screen, end = Screen(), os.urandom(16).hex().encode()

    def read() -> None:
        while not screen.bytes.endswith(end):
            screen.bytes += os.read(main, 65536)
        screen.bytes = screen.bytes.removesuffix(end)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield side, screen
    finally:
        os.write(side, end)
        reader.join()
        os.close(side)
        os.close(main)


@contextmanager
def text_file(descriptor: int) -> Iterator[TextIO]:
    """A text stream on a copy of a descriptor; closing it never fails for a pipe that nobody reads."""
    stream = os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
    try:
        yield stream
    finally:
        with suppress(BrokenPipeError):
            stream.close()
