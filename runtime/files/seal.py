"""What this machine vouches for: files that tfx made here, known again by their hash.

A key of random bytes lies in the user's state folder, made once. What is kept in a cache and believed later
carries a tag (HMAC-SHA-256 by that key), and so does each line of the list of files that were made here::

    key       32 bytes, mode 600
    vouched   KIND SHA256 TAG, one line a file

Whoever cannot read the key cannot forge a tag; damage never fits one. Without the key everything that it
vouched for is made again.
"""

from __future__ import annotations

import functools
import hmac
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import IO

from tfswa.runtime.files import register
from tfswa.runtime.files.own_folders import make_own, usable
from tfswa.runtime.files.partial import new_file, open_folder
from tfswa.runtime.machine import user_state

logger = logging.getLogger(__name__)

KEY_BYTES = 32
_here: set[tuple[str, str]] = set()  # what this process vouched for; also where nothing can be written


def tag(name: str, content: bytes) -> str:
    """The tag of some bytes under a name, in hexadecimal."""
    return hmac.new(_key(user_state()), name.encode() + b"\0" + content, "sha256").hexdigest()


def is_tagged(name: str, content: bytes, found: str) -> bool:
    """Whether a tag is the one of these bytes under this name."""
    return found.isascii() and hmac.compare_digest(tag(name, content), found)


def vouch(kind: str, sha256: str) -> None:
    """Remember a file by its hash; where the state folder cannot be written, for this process alone."""
    _here.add((kind, sha256))
    if is_vouched(kind, sha256, remembered=False):
        return
    line = f"\n{kind} {sha256} {tag(kind, sha256.encode())}\n"  # a line that was cut off before ends here
    try:
        place = user_state()
        make_own(place)
        with _appending(place / "vouched") as stream:
            stream.write(line)
    except OSError as error:
        logger.info("%s cannot be written (%s): forgotten with this process", user_state(), error.strerror)


def is_vouched(kind: str, sha256: str, *, remembered: bool = True) -> bool:
    """Whether ``vouch`` was called for a file of that kind, here and by this user."""
    if remembered and (kind, sha256) in _here:
        return True
    if not usable(user_state()):
        return False
    try:
        lines = (user_state() / "vouched").read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    known = [line.split() for line in lines if sha256 in line]
    return any(
        words[:2] == [kind, sha256] and is_tagged(kind, sha256.encode(), words[2])
        for words in known
        if len(words) == 3
    )


@functools.lru_cache(maxsize=4)
def _key(folder: Path) -> bytes:
    """The user's key in a folder; one for this process alone where none can be kept."""
    path = folder / "key"
    if usable(folder):
        _remove_link(path)
    for _ in range(2 if usable(folder) else 0):
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            with path.open("rb") as stream:
                state, key = os.fstat(stream.fileno()), stream.read(KEY_BYTES + 1)
            if len(key) == KEY_BYTES and state.st_uid == os.geteuid() and not state.st_mode & 0o077:
                return key
            logger.warning("%s is damaged, or not the user's alone: a new one is made", path)
            with suppress(OSError):
                path.unlink()
        _make(path)
    logger.info("%s cannot be kept: what is made now is not known again", path)
    return secrets.token_bytes(KEY_BYTES)


def _remove_link(path: Path) -> None:
    """A link that came to lie in the place of a file is not followed."""
    with suppress(OSError):
        if path.is_symlink():
            path.unlink()


def _appending(path: Path) -> IO[str]:
    """A file that grows."""
    _remove_link(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="ascii")


def _make(path: Path) -> None:
    """Write a new key, unless another process was quicker; it appears whole or not at all."""
    with suppress(OSError):
        make_own(path.parent, mode=0o700)
        register.note(path.parent)
        folder = open_folder(path.parent)
        try:
            with new_file(folder, path.name, mode=0o600) as (work, handle):
                os.write(handle, secrets.token_bytes(KEY_BYTES))
                os.fsync(handle)
                with suppress(FileExistsError):
                    os.link(work, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
