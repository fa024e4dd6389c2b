"""Uploads: ``multipart/form-data`` to a file on disk as it comes, a part of it in memory at a time."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from tfswa.runtime.errors import TfxError, UsageError, reason

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"  # name of the part that holds the audio
MOST_FIELDS = 16
FIELD_BYTES = 4096  # of a field, and of the head of a part
NAME_LENGTH = 200
WRITTEN_BYTES = 1 << 20  # at once


class TooLargeUpload(UsageError):
    """More bytes than a file may have."""


class SilentUpload(TfxError):
    """Nothing came for too long."""


@dataclass(frozen=True)
class Upload:
    """What came.

    Attributes:
        fields: all but the file, by name.
        name: of the file, as its owner calls it; made harmless to print, and never a path here.
        size: of the file, in bytes.
        sha256: of its content, in hexadecimal.
    """

    fields: dict[str, str]
    name: str
    size: int
    sha256: str


async def receive_upload(
    body: AsyncIterator[bytes], content_type: str, path: Path, *, most_bytes: int, silent_seconds: float
) -> Upload:
    """Write the file of a form to disk, and keep its fields.

    Args:
        body: of the request.
        content_type: its header.
        path: where to; it must not exist, and is there afterwards, whatever is raised.
        most_bytes: of the file.
        silent_seconds: how long nothing may come.

    Raises:
        UsageError: it is no such form, or lacks the file.
        TooLargeUpload, SilentUpload: see there.
        OSError: it cannot be written.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise UsageError(f"the content type is {content_type[:100]!r}: send multipart/form-data")
    form = _Form(most_bytes)
    parser = MultipartParser(boundary, form.callbacks())
    digest = hashlib.sha256()
    with path.open("xb") as stream:

        def write(content: bytes) -> None:
            digest.update(content)
            stream.write(content)

        try:
            while (chunk := await _next(body, silent_seconds)) is not None:
                parser.write(chunk)
                if len(form.held) >= WRITTEN_BYTES:
                    await asyncio.to_thread(write, form.taken())
            parser.finalize()
        except MultipartParseError as error:
            raise UsageError(f"the form cannot be read: {reason(error)}") from error
        await asyncio.to_thread(write, form.taken())
        stream.flush()
        await asyncio.to_thread(os.fsync, stream.fileno())
    if not form.ended:
        raise UsageError("the form ends before its last boundary: send all of it")
    if form.name is None:
        raise UsageError(f"the form has no file: send the audio as the part {FILE!r}, with a file name")
    return Upload(form.fields, form.name, form.size, digest.hexdigest())


async def _next(body: AsyncIterator[bytes], silent_seconds: float) -> bytes | None:
    try:
        async with asyncio.timeout(silent_seconds):
            return await anext(body, None)
    except TimeoutError:
        raise SilentUpload(f"nothing came for {silent_seconds:g} s: send it again") from None


@dataclass
class _Form:
    """What the parser has found so far."""

    most_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    name: str | None = None
    size: int = 0
    held: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._value,
            "on_header_end": self._header,
            "on_headers_finished": self._head,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def taken(self) -> bytes:
        """What of the file is to be written."""
        content = bytes(self.held)
        self.held.clear()
        return content

    def _begin(self) -> None:
        self._key, self._said, self._head_bytes = bytearray(), bytearray(), 0
        self._disposition = b""
        self._content = bytearray()
        self._into = ""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._key += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._said += data[start:end]

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > FIELD_BYTES:
            raise UsageError(
                f"the head of a part has more than {FIELD_BYTES} bytes: leave out what is not needed"
            )

    def _header(self) -> None:
        if bytes(self._key).lower() == b"content-disposition":
            self._disposition = bytes(self._said)
        self._key, self._said = bytearray(), bytearray()

    def _head(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._into = options.get(b"name", b"").decode("utf-8", "replace")
        if self._into == FILE:
            if self.name is not None:
                raise UsageError("the form has two files: send one in a request")
            self.name = harmless_name(options.get(b"filename", b"").decode("utf-8", "replace"))
        elif self._into in self.fields:
            raise UsageError(f"the form says {self._into[:50]!r} twice: say it once")
        elif len(self.fields) >= MOST_FIELDS:
            raise UsageError(f"the form has more than {MOST_FIELDS} fields: leave out what is not needed")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._into == FILE:
            self.size += end - start
            if self.size > self.most_bytes:
                raise TooLargeUpload(
                    f"the file has more than {self.most_bytes / 1e6:g} MB, which is the most here: cut it"
                )
            self.held += data[start:end]
            return
        self._content += data[start:end]
        if len(self._content) > FIELD_BYTES:
            raise UsageError(f"{self._into[:50]!r} of the form has more than {FIELD_BYTES} bytes")

    def _end(self) -> None:
        if self._into != FILE:
            self.fields[self._into] = bytes(self._content).decode("utf-8", "replace")

    def _all(self) -> None:
        self.ended = True


def harmless_name(given: str) -> str:
    """The name of an upload without folders, and without what cannot be printed."""
    name = PureWindowsPath(PurePosixPath(given).name).name
    printed = "".join(letter for letter in name if letter.isprintable()).strip()
    return printed[:NAME_LENGTH] if printed.strip(".") else "upload"
