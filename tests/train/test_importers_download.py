"""One file from a server in this process: kept whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tfswa.runtime.errors import BundleError, TfxError, UsageError
from tfswa.runtime.files.atomic import writing
from tfswa.train.importers import download as module
from tfswa.train.importers.download import Download

CONTENT = bytes(range(256)) * 4000


class Handler(BaseHTTPRequestHandler):
    """``/good.whl`` and faults of several kinds; counts what it is asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        sent = {"/long.whl": CONTENT * 3, "/short.whl": CONTENT[:5000], "/other.whl": CONTENT[::-1]}
        body = sent.get(self.path, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) if self.path == "/short.whl" else len(body)))
        self.end_headers()
        with suppress(OSError):  # the client had enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def good(server: str, monkeypatch: pytest.MonkeyPatch) -> Download:
    Handler.asked.clear()
    monkeypatch.setenv("no_proxy", "*")
    return Download(f"{server}/good.whl", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "bring it")


def nothing_is_left(cache: Path) -> bool:
    return not any(cache.rglob("*"))


def test_it_is_fetched_once(good: Download, private_cache: Path) -> None:
    counts: list[int] = []
    place = good.fetch(counts.append)
    assert place == private_cache / "tfswa" / "downloads" / "good.whl"
    assert place.read_bytes() == CONTENT
    assert counts == sorted(counts)
    assert counts[-1] == len(CONTENT)
    assert good.fetch() == place
    assert Handler.asked == ["/good.whl"]
    assert [path.name for path in place.parent.iterdir()] == ["good.whl"]


def test_a_damaged_copy_is_fetched_again(good: Download) -> None:
    place = good.fetch()
    place.write_bytes(CONTENT[:-1])
    assert good.fetch().read_bytes() == CONTENT
    assert len(Handler.asked) == 2


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("/other.whl", BundleError, r"gave 1024000 bytes of SHA-256 \w{12}, wanted are 1024000.*bring it"),
        ("/long.whl", BundleError, "gave 1024001 bytes"),
        ("/short.whl", TfxError, "could not be fetched|gave 5000 bytes"),
        ("/missing.whl", TfxError, r"could not be fetched \(HTTP Error 404: Not Found\): see to the network"),
    ],
)
def test_faults_of_the_server_leave_nothing(
    good: Download, server: str, private_cache: Path, path: str, error: type[TfxError], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        replace(good, url=server + path).fetch()
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert nothing_is_left(private_cache)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.whl", "http://nowhere.invalid/x.whl"])
def test_no_network_is_one_line(good: Download, private_cache: Path, url: str) -> None:
    with pytest.raises(
        TfxError, match=r"x\.whl could not be fetched \(.+\): see to the network, or bring it"
    ):
        replace(good, url=url).fetch()
    assert nothing_is_left(private_cache)


def test_a_proxy_of_the_environment_is_asked(
    good: Download, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setenv("NO_PROXY", "")
    assert replace(good, url="http://nowhere.invalid/good.whl").fetch().read_bytes() == CONTENT
    assert Handler.asked == ["http://nowhere.invalid/good.whl"]


def test_ctrl_c_leaves_nothing(good: Download, private_cache: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        good.fetch(interrupt)
    assert nothing_is_left(private_cache)


def test_a_full_disk_is_the_users_to_mend(
    good: Download, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, path: Path):
            self.inner = writing(path)

        def __enter__(self) -> Full:
            self.inner.__enter__()
            return self

        def __exit__(self, *error: object) -> bool | None:
            return self.inner.__exit__(*error)  # type: ignore[arg-type]

        def write(self, block: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "writing", Full)
    with pytest.raises(UsageError, match=r"cannot write .*good\.whl: No space left on device"):
        good.fetch()
    assert nothing_is_left(private_cache)


def test_a_cache_that_is_no_folder(good: Download, private_cache: Path) -> None:
    (private_cache / "tfswa").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write .*good\.whl"):
        good.fetch()


def test_a_file_by_hand_is_checked(good: Download, tmp_path: Path) -> None:
    path = tmp_path / "any name"
    path.write_bytes(CONTENT)
    assert good.check(path) == path
    path.write_bytes(CONTENT[1:])
    with pytest.raises(BundleError, match=r"any name has SHA-256 .*, wanted is .*: not opened; bring it"):
        good.check(path)
