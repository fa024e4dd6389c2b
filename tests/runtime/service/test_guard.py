"""Around every request: headers, ids, logs, and whose pages may not ask."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from tfswa.runtime.service.guard import Guard


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = type("Route", (), {"path": "/v1/things/{thing}"})()
    scope["state"]["key"] = "one"
    headers = [(b"content-type", b"text/plain"), (b"x-frame-options", b"SAMEORIGIN")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


class Asked:
    """One request, answered."""

    def __init__(self, headers: dict[str, str], *, open_here: bool = True, kind: str = "http"):
        self.seen: list[tuple[str, str, int]] = []
        self.sent: list[Message] = []
        guard = Guard(app, open_here=open_here, seen=lambda *told: self.seen.append(told[:3]))
        scope: dict[str, Any] = {
            "type": kind,
            "path": "/v1/things/secret",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        if kind == "http":
            scope["method"] = "GET"
        asyncio.run(guard(scope, self._receive, self._send))
        self.status = self.sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in self.sent)

    async def _receive(self) -> Message:
        raise AssertionError("nobody reads the body")

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


def test_an_answer_tells_browsers_what_they_may() -> None:
    asked = Asked({"host": "localhost:8000"})
    assert (asked.status, asked.body) == (200, b"hello")
    policy = asked.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert asked.headers["x-content-type-options"] == "nosniff"
    assert asked.headers["x-frame-options"] == "SAMEORIGIN"  # what a route says stays
    assert not any(name.startswith("access-control") for name in asked.headers)


def test_a_request_has_an_id_its_own_if_it_is_harmless() -> None:
    given = Asked({"host": "localhost", "x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    for wrong in ("a b", "x" * 65, "", "é"):
        made = Asked({"host": "localhost", "x-request-id": wrong}).headers["x-request-id"]
        assert len(made) == 16
        assert made != wrong


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_without_keys_this_machine_may_ask(host: str) -> None:
    assert Asked({"host": host}).status == 200
    assert Asked({"host": host, "origin": f"http://{host}"}).status == 200


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"host": "evil.example:8000"}, "the host is 'evil.example:8000'"),  # a name that leads here
        ({"host": "localhost.evil.example"}, "without keys only requests to localhost"),
        ({"host": "[::1"}, "the host is"),
        ({}, "the host is ''"),
        ({"host": "localhost", "origin": "https://evil.example"}, "a page of 'https://evil.example'"),
        ({"host": "localhost", "origin": "null"}, "a page of 'null' may not ask"),
    ],
)
def test_pages_from_elsewhere_may_not_ask(kind: str, headers: dict[str, str], says: str) -> None:
    asked = Asked(headers, kind=kind)
    assert asked.status == 403
    assert says in json.loads(asked.body)["error"]
    assert asked.sent[0]["type"] == ("http" if kind == "http" else "websocket.http") + ".response.start"
    assert asked.seen == [("GET" if kind == "http" else "WS", "none", 403)]


def test_with_keys_any_host_may_be_named_but_no_page_from_elsewhere() -> None:
    assert Asked({"host": "api.example"}, open_here=False).status == 200
    wrong = {"host": "api.example", "origin": "https://evil.example"}
    assert Asked(wrong, open_here=False).status == 403


def test_a_log_is_json_and_tells_no_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tfswa.runtime.service.access"):
        asked = Asked({"host": "localhost", "x-request-id": "r1", "authorization": "Bearer secret"})
    told = json.loads(caplog.messages[0])
    assert told.pop("seconds") >= 0
    assert told == {
        "request": "r1",
        "method": "GET",
        "route": "/v1/things/{thing}",
        "status": 200,
        "key": "one",
    }
    assert "secret" not in caplog.text
    assert asked.seen == [("GET", "/v1/things/{thing}", 200)]
