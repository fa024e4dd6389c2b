"""Keys of a service: who may ask. The file holds their hashes alone, so that who reads it cannot ask.

A key is 32 random bytes; a plain SHA-256 of so much chance cannot be undone, and needs no salt.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import UsageError, did_you_mean, reason
from tfswa.runtime.files.atomic import writing

START = "tfx_"  # so that scanners of repositories know a key that was committed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KeyHash:
    """What is known of a key.

    Attributes:
        sha256: of the key, in hexadecimal.
        made: when, ISO 8601 in UTC.
    """

    sha256: str
    made: str


class Keys:
    """The keys of a file; a missing file has none.

    Args:
        path: the file.

    Attributes:
        hashes: by name.

    Raises:
        UsageError: it cannot be read, or is no file of keys.
    """

    def __init__(self, path: Path):
        self.path = path
        self.hashes: dict[str, KeyHash] = _read(path)

    def add(self, name: str) -> str:
        """Make a key and keep its hash; the key itself, which is nowhere else.

        Raises:
            UsageError: the name is taken or no name, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name of a key: use up to 64 letters, digits, dots, dashes and underscores"
            )
        if name in self.hashes:
            raise UsageError(f"{self.path} has a key {name!r} already: remove it first, or use another name")
        key = START + secrets.token_urlsafe(32)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        self._write({**self.hashes, name: KeyHash(_hash(key), made)})
        return key

    def remove(self, name: str) -> None:
        """Take a key back.

        Raises:
            UsageError: there is none of this name, or the file cannot be written.
        """
        if name not in self.hashes:
            raise UsageError(f"{self.path} has no key {name!r}{did_you_mean(name, self.hashes)}")
        self._write({other: known for other, known in self.hashes.items() if other != name})

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None: nobody's. The time that it takes tells nothing about any key."""
        given, found = _hash(key), None
        for name, known in self.hashes.items():
            if hmac.compare_digest(given, known.sha256):
                found = name
        return found

    def _write(self, hashes: Mapping[str, KeyHash]) -> None:
        kept = {name: {"sha256": known.sha256, "made": known.made} for name, known in hashes.items()}
        try:
            with writing(self.path, named=True) as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write((json.dumps({"version": 1, "keys": kept}, indent=1) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {reason(error)}") from error
        self.hashes = dict(hashes)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, KeyHash]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    try:
        held: Any = parse_json(content)
        if held["version"] != 1:
            raise UsageError(f"{path} is of version {held['version']!r}, this tfx knows 1: update tfx")
        found = {name: KeyHash(known["sha256"], known["made"]) for name, known in held["keys"].items()}
        fits = all(_HASH.fullmatch(known.sha256) and isinstance(known.made, str) for known in found.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is no file of keys: make one with `tfx serve keys add NAME`") from error
    if not fits:
        raise UsageError(f"{path} is no file of keys: make one with `tfx serve keys add NAME`")
    return found
