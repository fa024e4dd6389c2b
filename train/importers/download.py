"""A file from the network, kept in the user's cache, and used only if its hash is the one that is known."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import build_opener

from tfswa.runtime.errors import BundleError, TfxError, reason
from tfswa.runtime.files import caches
from tfswa.runtime.files.atomic import folder, writing
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.files.own_folders import check_own
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model.bundle import writable

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
BLOCK_BYTES = 1 << 18

Report = Callable[[int], None]  # bytes that have come


@dataclass(frozen=True)
class Download:
    """A file that never changes.

    Attributes:
        url: where it lies; a proxy of the environment is honored.
        sha256: of its content.
        size_bytes: its size.
        by_hand: how else it can be had.
    """

    url: str
    sha256: str
    size_bytes: int
    by_hand: str

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return user_cache() / "downloads" / self.url.rpartition("/")[2]

    def check(self, path: Path) -> Path:
        """Return a path whose content is this file.

        Raises:
            BundleError: it is something else, or damaged.
            OSError: it cannot be read.
        """
        found = sha256_of(path)
        if found != self.sha256:
            raise BundleError(
                f"{path} has SHA-256 {found[:12]}, wanted is {self.sha256[:12]}: not opened; {self.by_hand}"
            )
        return path

    def fetch(self, report: Report = lambda count: None) -> Path:
        """Return the file, fetched if it is not in the cache; it appears there whole or not at all.

        Raises:
            TfxError: the network failed.
            BundleError: what came is something else.
            UsageError: the cache cannot be written.
        """
        place = self.place
        with writable(place):
            check_own(place.parent)
        if place.is_file():
            if sha256_of(place) == self.sha256:
                caches.touch(place)
                return place
            logger.warning("%s is damaged: fetched again", place)
        with (
            writable(place),
            folder(place.parent),
            writing(place) as stream,
            closing(self._blocks()) as blocks,
        ):
            digest, count = hashlib.sha256(), 0
            for block in blocks:
                stream.write(block)
                digest.update(block)
                report(count := count + len(block))
            if digest.hexdigest() != self.sha256:
                raise BundleError(
                    f"{self.url} gave {count} bytes of SHA-256 {digest.hexdigest()[:12]}, wanted are "
                    f"{self.size_bytes} of {self.sha256[:12]}: nothing is kept; try again, or {self.by_hand}"
                )
        caches.trim()
        return place

    def _blocks(self) -> Generator[bytes, None, None]:
        """What the network gives, one byte more than the file at most."""
        left = self.size_bytes + 1
        try:
            with build_opener().open(self.url, timeout=TIMEOUT_SECONDS) as response:
                while left and (block := response.read(min(left, BLOCK_BYTES))):
                    left -= len(block)
                    yield block
        except (OSError, HTTPException, ValueError) as error:  # a proxy that is no address is a ValueError
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            inner = getattr(error, "reason", None)  # what urllib has wrapped
            why = reason(inner if isinstance(inner, OSError) else error)
            raise TfxError(
                f"{self.url} could not be fetched ({why}): see to the network, or {self.by_hand}"
            ) from error
