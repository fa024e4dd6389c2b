"""What tfx keeps in the user's cache: bounded, least recently used first out, believed only if it is whole.

    openvino/ onnxruntime/   folders of what a library compiled; a file ``seal`` lists what is in each
    auto/ calibration/ parity/  files that carry a tag in front, see ``put``
    downloads/               files that are checked by their SHA-256; what has come of one in part (``.part``)
    bundles/                 what was added to sealed bundles; their manifests hold hashes
    decoded/                 decoded audio, bounded by data.cache_gb (``train/data/cache.py``)

What is damaged is reported once, removed and made again. ``TFX_CACHE_GB`` bounds all but decoded audio.
What a process holds locked, because it writes or loads it, is not removed. Where a link is in the place of a
folder nothing is kept, read or removed, see ``own_folders.py``.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from tfswa.runtime.errors import ConfigError
from tfswa.runtime.files import atomic, locks, seal
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.files.own_folders import check_own, make_own, usable
from tfswa.runtime.files.partial import abandoned, partials
from tfswa.runtime.machine import user_cache

logger = logging.getLogger(__name__)

KINDS = (
    "auto",
    "bundles",
    "calibration",
    "downloads",
    "onnxruntime",
    "openvino",
    "parity",
)  # that share the limit
DECODED = "decoded"
ALL = (*KINDS, DECODED)
LIMIT_GB = 10.0  # of all kinds that share it
LIMIT_VARIABLE = "TFX_CACHE_GB"

PART = ".part"  # ends the name of a download that is not complete
NOTE = f"{PART}.json"  # of what is noted of it
RECORD = ".sha256"  # of what is noted of a complete one

_SEAL = "seal"
_MAGIC = b"tfx cache 1 "


@dataclass(frozen=True)
class Entry:
    """A file or a folder that is kept or removed as a whole.

    Attributes:
        path: where it is.
        bytes: of all its files.
        used: when it was last used, in nanoseconds since 1970.
    """

    path: Path
    bytes: int
    used: int


def limit_bytes() -> int:
    """What the caches may hold together.

    Raises:
        ConfigError: the environment variable is no number of gigabytes.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text) if text else LIMIT_GB
        if not 0 <= limit < 1e9:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{LIMIT_VARIABLE} is {text!r}: give gigabytes, such as {LIMIT_GB:g}") from None
    return int(limit * 1e9)


def entries(kind: str) -> list[Entry]:
    """What the cache of a kind holds; nothing where it is not there or cannot be read."""
    folder, found = user_cache() / kind, []
    depth = folder.glob("*/*") if kind == "calibration" else folder.glob("*")
    with suppress(OSError):
        for path in depth if usable(folder) else ():
            with suppress(FileNotFoundError):  # someone else has removed it
                if not usable(path.parent):
                    continue
                whole = path.is_symlink() or not path.is_dir()
                if whole and _is_beside(path):
                    continue
                files = [path] if whole else [file for file in path.rglob("*") if file.is_file()]
                files += [file for file in _beside(path) if file.is_file()]
                size = sum(file.lstat().st_size for file in files)
                found.append(Entry(path, size, path.lstat().st_mtime_ns))
    return found


def trim() -> None:
    """Remove what was used least recently until all fits the limit; what is in use stays.

    Downloads that are not complete go first: nothing can be done with one without the network.
    """
    limit = limit_bytes()
    there = [entry for kind in KINDS for entry in entries(kind)]
    total = sum(entry.bytes for entry in there)
    for entry in sorted(there, key=lambda entry: (entry.path.suffix != PART, entry.used)):
        if total <= limit:
            return
        if drop(entry.path):
            total -= entry.bytes
            logger.info("removed %s: the caches held more than %s", entry.path, LIMIT_VARIABLE)


def clear(kind: str) -> tuple[int, int]:
    """Remove all that a cache holds and nobody uses.

    Args:
        kind: one of ``ALL``; decoded audio stays as long as any training uses some of it.

    Returns:
        The bytes that went, and those that stayed because they are in use.

    Raises:
        OSError: a link is in the place of the cache.
    """
    gone = stayed = 0
    folder = user_cache() / kind
    check_own(folder)
    # Nobody takes a lease on decoded audio while its folder is held.
    with locks.locked(folder) if kind == DECODED and folder.is_dir() else nullcontext():
        leased = kind == DECODED and _is_leased(folder)
        for entry in entries(kind):
            if kind == DECODED and entry.path.suffix != ".npy":
                continue
            if not leased and drop(entry.path):
                gone += entry.bytes
            else:
                stayed += entry.bytes
    return gone, stayed


def _is_leased(folder: Path) -> bool:
    """Whether a living process uses decoded audio: its lease is locked."""
    for path in partials(folder / "leases"):
        with suppress(FileNotFoundError), path.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def drop(path: Path) -> bool:
    """Remove an entry that nobody holds locked, nor writes something into; whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # a link, or what cannot be read: the name alone goes
        with suppress(OSError):
            path.unlink()
        return not os.path.lexists(path)
    locks.keep(handle)
    try:
        if not locks.hold(handle, wait=False) or _is_written_into(path):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            for file in _beside(path):
                file.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        locks.release(handle)
    return True


def _beside(path: Path) -> list[Path]:
    """Where the note of a download is: it comes and goes with it."""
    if path.parent.name != "downloads" or path.suffix == RECORD:
        return []
    return [path.with_name(path.name + (RECORD if path.suffix != PART else NOTE.removeprefix(PART)))]


def _is_beside(path: Path) -> bool:
    """Whether it is the note of something that is there."""
    ends = (RECORD, NOTE.removeprefix(PART)) if path.parent.name == "downloads" else ()
    bases = (path.with_name(path.name.removesuffix(end)) for end in ends if path.name.endswith(end))
    return any(base.exists() and path in _beside(base) for base in bases)


def _is_written_into(path: Path) -> bool:
    for folder in (path, *path.glob("*/"), *path.glob("*/*/")):  # what was added may be a bundle
        for work in partials(folder):
            with abandoned(work) as free:
                if not free:
                    return True
    return False


def touch(path: Path) -> None:
    """Note that an entry is used now."""
    with suppress(OSError):
        os.utime(path)


def put(path: Path, content: bytes) -> None:
    """Keep bytes, whole or not at all, under a tag that ``recall`` checks.

    Raises:
        OSError: the place cannot be written.
    """
    _make(path.parent)
    with atomic.writing(path) as stream:
        stream.write(_MAGIC + seal.tag(path.name, content).encode() + b"\n" + content)
    trim()


def recall(path: Path) -> bytes | None:
    """What ``put`` kept; None where there is nothing, or, after a warning, where it is damaged."""
    if not usable(path.parent):
        return None
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    head, _, content = whole.partition(b"\n")
    if head.startswith(_MAGIC) and seal.is_tagged(
        path.name, content, head.removeprefix(_MAGIC).decode("latin-1")
    ):
        touch(path)
        return content
    _damaged(path)
    return None


@contextmanager
def compiled(place: Path, *, wait: bool = True) -> Iterator[None]:
    """Have a library keep files in a folder for a block, alone; only files of an earlier block are there.

    Args:
        place: the folder.
        wait: for another process that holds it.

    Raises:
        OSError: the folder cannot be made or written; BlockingIOError where another process holds it.
    """
    handle = _locked(place, wait)
    try:
        before = _listing(place)
        if before and not _is_sealed(place):
            if _SEAL in before:  # or a process was ended before it could write it
                logger.warning("%s is damaged: compiled again", place)
            for path in place.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            before = {}
        yield
        touch(place)
        try:
            if _listing(place) == before:
                return
            found = seal.tag(place.name, _content(place))  # while there is no partial file among them
            with atomic.writing(place / _SEAL) as stream:
                stream.write(found.encode())
        except OSError as error:  # a full disk, or somebody removed it: compiled again the next time
            logger.info("%s cannot be sealed (%s)", place, error.strerror)
        trim()
    finally:
        locks.release(handle)


def _is_sealed(place: Path) -> bool:
    try:
        found = (place / _SEAL).read_text("latin-1")
        return seal.is_tagged(place.name, _content(place), found)
    except OSError:
        return False


def _content(place: Path) -> bytes:
    """Names and hashes of a folder's files, the seal left out."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and path != place / _SEAL)
    lines = [f"{sha256_of(path)} {path.relative_to(place)}" for path in files]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _listing(place: Path) -> dict[str, tuple[int, int]]:
    """Every file's size and time of change."""
    states = {str(path.relative_to(place)): path.stat() for path in place.rglob("*") if path.is_file()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def _locked(place: Path, wait: bool) -> int:
    """A handle that locks a folder, which is made where it is missing."""
    while True:
        _make(place)
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        locks.keep(handle)
        try:
            if not locks.hold(handle, wait=wait):
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it")
        except BaseException:
            locks.release(handle)
            raise
        if locks.is_at(handle, place):
            return handle
        locks.release(handle)  # removed meanwhile


def _make(folder: Path) -> None:
    """Callers do without a cache that cannot be written: that it is for a link is said here."""
    usable(folder)
    make_own(folder)


def _damaged(path: Path) -> None:
    logger.warning("%s is damaged, or was made by another tfx: made again", path)
    with suppress(OSError):
        path.unlink()
