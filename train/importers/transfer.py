"""One file over HTTP into a part: taken up where it stopped, begun again where it has changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import IO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tfswa.runtime.errors import reason
from tfswa.train.importers.part import BLOCK_BYTES, PartialDownload, ServerNote

TIMEOUT_SECONDS = 30.0  # without a byte
PAUSE_SECONDS = 1.0  # before a connection that broke is made anew
TRIES = 20  # each of which has brought something new
MOST_BYTES = 64 << 30  # of a file whose size nobody knows

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransferError(Exception):
    """The network, or a server, did not give what was asked; says why."""


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirections, but none that leaves https."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise URLError(f"it leads on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def transfer(
    url: str, part: PartialDownload, *, most: int | None, is_known: bool, report: Callable[[int], None]
) -> None:
    """Bring a part to the whole of what lies at an address; a proxy of the environment is honored.

    A connection that breaks is made anew for as long as each brings something.

    Args:
        url: the address.
        part: it grows; it begins again where the server has something else than it holds.
        most: bytes to take, one more than the file has; None: as many as the server says.
        is_known: the content is checked by its hash later, so that a part is taken up though no server
            confirms that it is of the same file.
        report: called with the bytes that are here.

    Raises:
        TransferError: it failed; what has come stays in the part.
        OSError: the part cannot be written.
    """
    best, note = part.size, part.note
    for _ in range(TRIES):
        try:
            _once(url, part, most=most, is_known=is_known, report=report)
            return
        except TransferError as error:
            changed = note is not None and part.note is not None and note.contradicts(part.note)
            if part.size <= (0 if changed else best):
                raise
            best, note, last = part.size, part.note, error
            time.sleep(PAUSE_SECONDS)
    raise last


def _once(
    url: str, part: PartialDownload, *, most: int | None, is_known: bool, report: Callable[[int], None]
) -> None:
    """One connection; a second one where the server cannot go on from where the part ends."""
    headers = _resuming(url, part, is_known=is_known)
    with _connected(url, headers) as response:
        if not headers or response.status != 206 or _goes_on(url, response, part, is_known=is_known):
            _take(url, response, part, most=most, report=report)
            return
    with _connected(url, {}) as response:
        _take(url, response, part, most=most, report=report)


def _resuming(url: str, part: PartialDownload, *, is_known: bool) -> dict[str, str]:
    """Headers that ask for the rest; none where all is to be asked."""
    note = part.note
    if not part.size or (not is_known and (note is None or note.url != url)):
        return {}
    headers = {"Range": f"bytes={part.size}-"}
    if note is not None and note.url == url:
        strong = note.etag if note.etag and not note.etag.startswith("W/") else None
        if condition := strong or (None if note.etag else note.modified):
            headers["If-Range"] = condition
        elif not note.etag and not is_known:
            return {}
    return headers


def _goes_on(url: str, response: HTTPResponse, part: PartialDownload, *, is_known: bool) -> bool:
    """Whether a partial answer continues the part: from its end, of the same file."""
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != part.size:
        return False
    if part.note is None or part.note.url != url:
        return is_known
    now = _note(url, response)
    return not part.note.contradicts(now) and (is_known or part.note.confirms(now))


def _take(
    url: str,
    response: HTTPResponse,
    part: PartialDownload,
    *,
    most: int | None,
    report: Callable[[int], None],
) -> None:
    """Append what comes; begin again first where the answer is the whole file."""
    kind = response.headers.get_content_type()
    if "Content-Type" in response.headers and kind == "text/html":
        raise TransferError("it gave a web page, no file")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise TransferError(f"it gave {response.headers['Content-Encoding']}, which was not asked for")
    note = _note(url, response)
    if response.status != 206 or part.note is None:
        if response.status == 206:
            part.note = note
        else:
            part.begin(note)
    whole = note.size_bytes
    limit = most if most is not None else (MOST_BYTES if whole is None else whole + 1)
    report(part.size)
    for block in _blocks(response, limit - part.size):
        part.write(block)
        report(part.size)
    if whole is not None and part.size < min(whole, limit):
        raise TransferError(f"the connection ended after {part.size} of {whole} bytes")


def _note(url: str, response: HTTPResponse) -> ServerNote:
    headers = response.headers
    if response.status == 206:
        found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
        size = found[2] if found else "*"
    else:
        size = headers.get("Content-Length", "*").strip()
    return ServerNote(
        url, headers.get("ETag"), headers.get("Last-Modified"), int(size) if size.isdecimal() else None
    )


@contextmanager
def _connected(url: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
    """A connection whose answer is 200, or 206 where a range was asked for."""
    sent = {"User-Agent": "tfx", "Accept-Encoding": "identity", **headers}
    with _told():
        try:
            response = build_opener(_SafeRedirects).open(Request(url, headers=sent), timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            error.close()  # it holds the connection
            if error.code != 416 or not headers:
                raise
            response = None  # the part ends where the file does, or beyond
    if response is None:
        with _connected(url, {}) as again:
            yield again
        return
    with cast(HTTPResponse, response) as opened:
        yield opened


def _blocks(response: HTTPResponse, left: int) -> Iterator[bytes]:
    while left > 0:
        with _told():
            block = response.read1(min(left, BLOCK_BYTES))
        if not block:
            return
        left -= len(block)
        yield block


@contextmanager
def _told() -> Iterator[None]:
    """Turn what urllib raises into its reason."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # a proxy that is no address is a ValueError
        inner = getattr(error, "reason", None)  # what urllib has wrapped
        raise TransferError(reason(inner if isinstance(inner, OSError) else error)) from error
