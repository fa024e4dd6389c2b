"""Uploads: what comes is on disk, bit by bit, however it is cut; and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tfswa.runtime.errors import UsageError
from tfswa.runtime.service.uploads import (
    SilentUpload,
    TooLargeUpload,
    Upload,
    harmless_name,
    receive_upload,
)

LONG = b"\r\nX-Long: " + 3000 * b"x"
KIND = "multipart/form-data; boundary=edge"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    more = "" if filename is None else f'; filename="{filename}"'
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


async def pieces(body: bytes, seed: int) -> AsyncIterator[bytes]:
    order, at = random.Random(seed), 0
    while at < len(body):
        size = order.choice((1, 7, 1000, 300_000))
        yield body[at : at + size]
        at += size


def received(body: bytes, path: Path, kind: str = KIND, most: int = 1 << 22, seed: int = 0) -> Upload:
    given = receive_upload(pieces(body, seed), kind, path, most_bytes=most, silent_seconds=600)
    return asyncio.run(given)


@pytest.mark.parametrize("seed", range(5))
def test_a_file_is_on_disk_and_fields_are_kept(tmp_path: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(1_500_000) + b"\r\n--edg"
    body = form(part("model", b"plain"), part("file", content, "söng.wav"), part("stems", b"vocals,other"))
    found = received(body, tmp_path / "input", seed=seed)
    assert (tmp_path / "input").read_bytes() == content
    assert found == Upload(
        {"model": "plain", "stems": "vocals,other"},
        "söng.wav",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


def test_an_empty_file_is_one(tmp_path: Path) -> None:
    assert received(form(part("file", b"", "a.wav")), tmp_path / "input").size == 0


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"{}", "application/json", "the content type is 'application/json': send multipart/form-data"),
        (form(part("file", b"")), "multipart/form-data", "send multipart/form-data"),
        (form(part("model", b"a")), KIND, "the form has no file"),
        (form(part("file", b"a", "a"), part("file", b"b", "b")), KIND, "the form has two files"),
        (form(part("model", b"a"), part("model", b"b")), KIND, "the form says 'model' twice"),
        (form(*(part(f"f{n}", b"") for n in range(17))), KIND, "more than 16 fields"),
        (form(part("model", b"x" * 4097)), KIND, "'model' of the form has more than 4096 bytes"),
        (
            form(part("a", b"").replace(b"\r\n\r\n", LONG + LONG + b"\r\n\r\n", 1)),
            KIND,
            "the head of a part has more than 4096 bytes",
        ),
        (part("file", b"cut", "a.wav"), KIND, "the form ends before its last boundary"),
        (b"no form at all", KIND, "the form cannot be read"),
        (b"", KIND, "the form ends before its last boundary"),
    ],
)
def test_what_is_no_form_is_one_line(tmp_path: Path, body: bytes, kind: str, says: str) -> None:
    with pytest.raises(UsageError, match=r".") as found:
        received(body, tmp_path / "input", kind)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_too_large_is_cut_at_the_bound(tmp_path: Path) -> None:
    body = form(part("file", bytes(3_000_000), "a.wav"))
    with pytest.raises(TooLargeUpload, match="more than 2 MB, which is the most here"):
        received(body, tmp_path / "input", most=2_000_000)
    assert (tmp_path / "input").stat().st_size <= 2_000_000
    assert received(body, tmp_path / "other", most=3_000_000).size == 3_000_000


def test_who_sends_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield part("file", b"some", "a.wav")
        await asyncio.sleep(600)

    given = receive_upload(silent(), KIND, tmp_path / "input", most_bytes=100, silent_seconds=0.05)
    with pytest.raises(SilentUpload, match=r"nothing came for 0\.05 s"):
        asyncio.run(given)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\music\\song.wav", "song.wav"),
        ("a\r\nSet-Cookie: b.wav", "aSet-Cookie: b.wav"),
        ("\x00\x1b[31m.wav", "[31m.wav"),
        ("..", "upload"),
        (".", "upload"),
        ("", "upload"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_name_is_no_path_and_can_be_printed(given: str, kept: str) -> None:
    assert harmless_name(given) == kept
