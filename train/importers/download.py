"""A file from the network, kept in the user's cache, checked by its hash, taken up where it stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tfswa.runtime.errors import BundleError, TfxError, UsageError
from tfswa.runtime.files import atomic, caches
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.files.own_folders import check_own
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.known import KnownFile, KnownModel
from tfswa.train.importers.part import TAIL_BYTES, PartialDownload, opened
from tfswa.train.importers.transfer import TransferError, transfer

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "TFX_MIRROR"

Report = Callable[[int], None]  # bytes that are here


@dataclass(frozen=True)
class Download:
    """A file that never changes.

    Attributes:
        url: where it lies; a proxy of the environment is honored. Empty where no address is known.
        sha256: of its content; None where it is not known.
        size_bytes: its size; None where it is not known.
        by_hand: how else it can be had.
        others: addresses of the same file, asked in turn where the first fails.
        sha256_start: the first digits of its SHA-256, where no more are known.
        md5_tail: MD5 of its last 10,240,000 bytes, looked at where no SHA-256 is known.
        name: in the cache; empty: as the address says.
    """

    url: str
    sha256: str | None
    size_bytes: int | None
    by_hand: str
    others: tuple[str, ...] = ()
    sha256_start: str | None = None
    md5_tail: str | None = None
    name: str = ""

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return user_cache() / "downloads" / (self.name or self.url.rpartition("/")[2])

    def check(self, path: Path) -> Path:
        """Return a path whose content is this file; where its hash is not known whole, say it.

        Raises:
            BundleError: it is something else, or damaged.
            OSError: it cannot be read.
        """
        sha256 = sha256_of(path)
        if wrong := self._wrong(sha256, path.stat().st_size, lambda: _md5_tail(path)):
            raise BundleError(f"{path} has {wrong[0]}, wanted is {wrong[1]}: not opened; {self.by_hand}")
        self._say(path, sha256)
        return path

    def fetch(self, report: Report = lambda count: None, *, mirror: str | None = None) -> Path:
        """Return the file, fetched if it is not in the cache; it appears there whole or not at all.

        What has come of it stays in the cache when this is stopped, and the next call goes on from there.

        Args:
            report: called with the number of bytes that are here.
            mirror: address that stands in for scheme and host of the file's own; default: what the
                environment variable ``TFX_MIRROR`` holds, if anything.

        Raises:
            TfxError: the network failed.
            BundleError: what came is something else.
            UsageError: no address is known, the mirror is none, or the cache cannot be written.
        """
        addresses, place = self._addresses(mirror), self.place
        with writable(place):
            check_own(place.parent)
            if self._is_kept():
                caches.touch(place)
                return place
        if not addresses:
            raise UsageError(f"no address of {place.name} is known: {self.by_hand}")
        with writable(place), atomic.folder(place.parent), opened(place, self._wait) as part:
            if self._is_kept():  # another process has fetched it meanwhile
                return place
            self._fill(part, addresses, report)
            part.finish()
            self._keep_record(part.sha256)
        caches.trim()
        return place

    def _addresses(self, mirror: str | None) -> list[str]:
        """Where to ask, in turn: the mirror alone, where there is one."""
        own = [url for url in (self.url, *self.others) if url]
        mirror = os.environ.get(MIRROR_VARIABLE, "") if mirror is None else mirror
        if not mirror:
            return own
        parts = urlsplit(mirror)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"mirror {mirror!r} is no address: give one such as https://mirror.example/models"
            )
        base, paths = mirror.rstrip("/"), [urlsplit(url).path for url in own]
        return [
            base + path
            for path in dict.fromkeys([*paths, *(f"/{path.rpartition('/')[2]}" for path in paths)])
        ]

    def _fill(self, part: PartialDownload, addresses: list[str], report: Report) -> None:
        """Fill a part from the first address that gives this file."""
        for url, following in zip(addresses, [*addresses[1:], None], strict=True):
            try:
                self._fill_from(url, part, report)
                return
            except TfxError as error:
                if following is None:
                    raise
                logger.warning("%s; asking %s", error, following)

    def _fill_from(self, url: str, part: PartialDownload, report: Report) -> None:
        """Fill a part from one address; one that was begun before and fits nothing is begun again."""
        known = bool(self.sha256 or self.sha256_start)
        most = None if self.size_bytes is None else self.size_bytes + 1
        for had in (part.size, 0) if part.size else (0,):
            try:
                if not (known and part.size and part.size == self.size_bytes):
                    transfer(url, part, most=most, is_known=known, report=report)
            except TransferError as error:
                kept = f"; {part.size} bytes are kept: the next try goes on from there" if part.size else ""
                raise TfxError(
                    f"{url} could not be fetched ({error}): see to the network, or {self.by_hand}{kept}"
                ) from error
            wrong, count = self._wrong(part.sha256, part.size, lambda: part.md5_tail), part.size
            if wrong is None:
                return
            part.discard()
            if not had:
                found, wanted = wrong
                if found != f"{count} bytes":
                    found, wanted = f"{count} bytes of {found}", f"{self.size_bytes or 'all'} of {wanted}"
                raise BundleError(
                    f"{url} gave {found}, wanted are {wanted}: nothing is kept; try again, or {self.by_hand}"
                )

    def _is_kept(self) -> bool:
        """Whether the cache holds it; what was put there by hand is checked as what was fetched."""
        place = self.place
        if not place.is_file():
            return False
        sha256, recorded = sha256_of(place), self._record()
        wrong = self._wrong(sha256, place.stat().st_size, lambda: _md5_tail(place))
        if wrong or (not self.sha256 and recorded not in (None, sha256)):
            logger.warning("%s is damaged: %s", place, "fetched again" if self.url else "remove it")
            return False
        if not recorded:
            self._keep_record(sha256)
        return True

    def _wrong(self, sha256: str, size: int, md5_tail: Callable[[], str]) -> tuple[str, str] | None:
        """What a content has, and what it should have; None where it is this file."""
        if self.sha256:
            return None if sha256 == self.sha256 else (f"SHA-256 {sha256[:12]}", self.sha256[:12])
        if self.sha256_start:
            fits = sha256.startswith(self.sha256_start)
            return None if fits else (f"SHA-256 {sha256[: len(self.sha256_start)]}", self.sha256_start)
        if self.size_bytes not in (None, size):
            return f"{size} bytes", f"{self.size_bytes} bytes"
        if self.md5_tail and (found := md5_tail()) != self.md5_tail:
            return f"MD5 {found[:12]} at its end", self.md5_tail[:12]
        return None

    def _say(self, path: Path, sha256: str) -> None:
        """Tell how far a content was checked, where that is not by a whole hash."""
        if self.sha256:
            return
        if self.sha256_start:
            told = f"only the first {len(self.sha256_start)} digits of its SHA-256 were known, and they fit"
        elif self.md5_tail:
            told = "only the MD5 of its end was known, and it fits"
        else:
            told = "nothing was known to check it by"
        logger.warning("%s: %s; its SHA-256 is %s", path, told, sha256)

    def _record(self) -> str | None:
        """The SHA-256 that was noted when it came, of a file whose own was not known."""
        try:
            text = self._record_path.read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return text if re.fullmatch("[0-9a-f]{64}", text) else None

    def _keep_record(self, sha256: str) -> None:
        if self.sha256:
            return
        self._say(self.place, sha256)
        if (before := self._record()) not in (None, sha256):
            logger.warning("%s is not what it was: its SHA-256 was %s", self.place, before)
        with atomic.writing(self._record_path) as stream:
            stream.write(f"{sha256}\n".encode())

    @property
    def _record_path(self) -> Path:
        return self.place.with_name(self.place.name + caches.RECORD)

    def _wait(self) -> None:
        logger.warning("another process fetches %s: waiting for it", self.place.name)


@dataclass(frozen=True)
class Pinned(Download):
    """A file whose hash and size are known."""

    sha256: str
    size_bytes: int


def fetch_known(
    entry: KnownModel,
    *,
    files: Sequence[Path] = (),
    mirror: str | None = None,
    report: Report = lambda count: None,
) -> list[Path]:
    """The files of a known model, in the order of ``entry.files``: fetched, from the cache, or given.

    Args:
        entry: of ``known_model``.
        files: its files where they are here already, those of a model in several under their own names; or
            the folder that holds them. Empty: they are fetched.
        mirror: see ``Download.fetch``.
        report: called with the bytes that are here, of all files together.

    Raises:
        TfxError: the network failed.
        BundleError: a file is something else than it should be.
        UsageError: no address is known, ``files`` are not there, or the cache cannot be written.
    """
    downloads = [_download(entry, known) for known in entry.files]
    if files:
        paths = _given(entry, files)
        return [one.check(path) for one, path in zip(downloads, paths, strict=True)]
    fetched: list[Path] = []

    def report_all(count: int) -> None:
        report(count + sum(path.stat().st_size for path in fetched))

    for one in downloads:
        fetched.append(one.fetch(report_all, mirror=mirror))
    return fetched


def _download(entry: KnownModel, file: KnownFile) -> Download:
    name = f"{entry.name}-{file.name}"
    place = user_cache() / "downloads" / name
    listed = "" if file.sources else f" ({entry.listed})"
    return Download(
        url=file.sources[0] if file.sources else "",
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        by_hand=f"fetch {file.name} yourself{listed} and put it at {place}, or name it with --file PATH",
        others=tuple(file.sources[1:]),
        sha256_start=file.sha256_start,
        md5_tail=file.md5_tail,
        name=name,
    )


def _given(entry: KnownModel, files: Sequence[Path]) -> list[Path]:
    """Where a user has the files of a model, in its order."""
    names = [known.name for known in entry.files]
    if len(files) == 1 and files[0].is_dir():
        paths = [files[0] / name for name in names]
    elif len(files) != len(names):
        raise UsageError(
            f"{entry.name} is {len(names)} file{'s' if len(names) > 1 else ''} ({', '.join(names)}), given "
            f"{'is' if len(files) == 1 else 'are'} {len(files)}: name each of them, or the folder they are in"
        )
    elif len(names) == 1:
        paths = list(files)
    else:
        by_name = {path.name: path for path in files}
        for name in names:
            if name not in by_name:
                raise UsageError(
                    f"{entry.name} needs {name}, given are {', '.join(sorted(by_name))}: keep the names that "
                    "its files have"
                )
        paths = [by_name[name] for name in names]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} is not there: {entry.name} needs {', '.join(names)}")
    return paths


def _md5_tail(path: Path) -> str:
    """MD5 of the last 10,240,000 bytes of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
