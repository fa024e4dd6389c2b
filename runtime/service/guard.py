"""Around every request: its id, one line of log, headers for browsers, and who may not ask at all.

Logs hold neither names of files nor keys: the route that a path matched, not the path.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("tfswa.runtime.service.access")

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    b"content-security-policy": "; ".join(f"{what} {whence}" for what, whence in POLICY.items()).encode(),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}
HERE = ("127.0.0.1", "localhost", "::1")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

Seen = Callable[[str, str, int, float], None]
"""Method, route, status and seconds of a request that is answered."""


class Guard:
    """The outermost layer of the application.

    A browser lets any page send requests to this machine. Without keys nothing else would tell such a page
    from the user: so a request must then name this machine as its host, and one that a page of another
    origin sends is refused in any case.

    Args:
        app: what it is around.
        open_here: whether everybody on this machine may ask.
        seen: told of each request.
    """

    def __init__(self, app: ASGIApp, *, open_here: bool, seen: Seen):
        self._app, self._open_here, self._seen = app, open_here, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request = given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                held = {name.lower() for name, _ in message["headers"]}
                more = {**HEADERS, b"x-request-id": request.encode()}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in more.items() if name not in held),
                ]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            refused = self._refused(headers)
            if refused is None:
                await self._app(scope, receive, sending)
            else:
                await _refuse(scope, sending, refused)
        finally:
            seconds = time.monotonic() - began
            method = scope.get("method", "WS")
            route = getattr(scope.get("route"), "path", "none")
            self._seen(method, route, status, seconds)
            log.info(
                "%s",
                json.dumps(
                    {
                        "request": request,
                        "method": method,
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "key": scope["state"].get("key"),
                    }
                ),
            )

    def _refused(self, headers: dict[bytes, bytes]) -> str | None:
        """Why such a request is not even looked at; None: it is."""
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if self._open_here and _name(host) not in HERE:
            return f"the host is {host[:100]!r}: without keys only requests to localhost are answered"
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            return f"a page of {origin.decode('latin-1')[:100]!r} may not ask: only pages from here may"
        return None


def _name(host: str) -> str:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(scope: Scope, send: Send, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    start: dict[str, Any] = {"type": f"{kind}.start", "status": 403, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.body", "body": body})
