"""Messages between the processes of a service, over a socket of the same machine.

kind (1 byte) | length (4 bytes, little endian) | content

J  JSON, UTF-8        P  samples, as the stream's format says
"""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from typing import Any, Literal

from tfswa.runtime.errors import TfxError

Kind = Literal[b"J", b"P"]
Message = tuple[bytes, bytes]

HEAD = struct.Struct("<cI")
MOST_BYTES = 4 << 20  # of a message
JSON: Kind = b"J"
SAMPLES: Kind = b"P"


class Wire:
    """A connected socket that carries messages; one thread reads and one writes, maybe the same.

    Args:
        connection: the socket; closed with it.
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._reader = connection.makefile("rb")

    def send(self, kind: Kind, content: bytes | memoryview) -> None:
        """Send a message, waiting for room.

        Raises:
            OSError: the other side is gone.
        """
        self._socket.sendall(HEAD.pack(kind, len(content)))
        self._socket.sendall(content)

    def send_json(self, value: Any) -> None:
        """Send a value as JSON; raises as ``send``."""
        self.send(JSON, json.dumps(value).encode())

    def receive(self) -> Message | None:
        """The next message; None: the other side ended, between two messages.

        Raises:
            OSError: the other side is gone.
            TfxError: it sends something else, or ended within a message.
        """
        head = self._reader.read(HEAD.size)
        if not head:
            return None
        kind, length = checked_head(head)
        content = self._reader.read(length)
        if len(content) < length:
            raise TfxError("the other side ended within a message")
        return kind, content

    def end(self) -> None:
        """Receive nothing more; who waits for a message gets none. Another thread may call it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close the socket; calling it twice is harmless."""
        self._reader.close()
        self._socket.close()


def checked_head(head: bytes) -> tuple[bytes, int]:
    """Kind and length of a message.

    Raises:
        TfxError: no head, or of a kind or a length that is none.
    """
    if len(head) < HEAD.size:
        raise TfxError("the other side ended within a message")
    kind, length = HEAD.unpack(head)
    if kind not in (JSON, SAMPLES) or length > MOST_BYTES:
        raise TfxError(f"a message of kind {kind!r} and {length} bytes is none: the other side is no tfx")
    return kind, length
