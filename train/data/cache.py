"""The cache of decoded audio: shared by all runs that name its folder, bounded, safe against kills.

folder/
  KEY.npy                     one recording, decoded (see decode.py); the least recently used go first
  .KEY.npy.partial-...        being decoded, by who holds its lock; unlocked, its owner died. One more, empty
                              and of a name that all know, is the turn to decode
  leases/.lease.partial-...   entries in use, one file a process: locked as long as that process lives

The folder itself is locked for moments, while leases are read or changed. An entry is read once from end to
end when a training begins: one whose checksum is another is decoded again.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import logging
import os
import resource
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from tfswa.runtime.documents import DOCUMENT_BYTES, parse_json
from tfswa.runtime.errors import ConfigError
from tfswa.runtime.files import register
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.files.locks import is_at, locked
from tfswa.runtime.files.own_folders import check_own, make_own
from tfswa.runtime.files.partial import MARK, abandoned, partial_name, partials
from tfswa.runtime.machine import user_cache
from tfswa.train.data.decode import Decoded, Recording, is_intact, read_decoded

log = logging.getLogger(__name__)

_THREADS = 4
_OTHER_FILES = 512  # that a training has open beside its songs
_leases: dict[tuple[int, Path], _Lease] = {}  # by process: a forked one has leases of its own


def decoded(
    recordings: Sequence[Recording],
    folder: Path,
    limit_bytes: float,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Decoded]:
    """Map recordings, decoding those that nobody has decoded yet.

    What is mapped stays in the cache as long as it is referred to; other processes that want the same
    share the work of decoding.

    Args:
        recordings: in any number.
        folder: of the cache; made where it is missing.
        limit_bytes: of all entries.
        report: called with the number of recordings ready, and of all.

    Returns:
        One for each recording, in order.

    Raises:
        AudioError: a file cannot be decoded.
        ConfigError: the entries in use do not fit the limit, or the folder cannot be written.
    """
    keys = [recording.key for recording in recordings]
    _allow_files(len(recordings))
    try:
        store = _Store(folder, int(limit_bytes))
        store.open(dict(zip(keys, recordings, strict=True)), report)
        return [store.map(key) for key in keys]
    except OSError as error:
        raise ConfigError(
            f"data.cache {folder} cannot be written ({error.strerror}): choose another"
        ) from error


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files: each map holds one, and 1024 are 256 songs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def default_folder() -> Path:
    """The user's cache of decoded audio."""
    return user_cache() / "decoded"


class _Lease:
    """Which entries this process uses: a file that stays locked until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        # Named as a sweep expects it. The processes that load chunks inherit the lock, and hold it as well.
        self.path = folder / partial_name("lease")
        self.file = self.path.open("x+")
        fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        atexit.register(self._close)
        self.maps: Counter[str] = Counter()  # of each entry
        self.bytes: dict[str, int] = {}

    def write(self, more: Mapping[str, int]) -> None:
        """Hold on to what is mapped, and to ``more``; forget the rest."""
        self.bytes = {key: size for key, size in self.bytes.items() if self.maps[key] > 0} | dict(more)
        self.file.seek(0)
        self.file.truncate()
        json.dump(self.bytes, self.file)
        self.file.flush()

    def release(self, key: str) -> None:
        self.maps[key] -= 1

    def _close(self) -> None:
        self.file.close()
        with abandoned(self.path) as free, suppress(OSError):
            if free:  # no process that loads chunks lives on
                self.path.unlink()


class _Store:
    """One cache folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        check_own(folder.absolute())
        self.folder, self.limit = folder.resolve(), limit
        leases = self.folder / "leases"
        make_own(leases, below=self.folder)
        for place in (self.folder, leases):
            register.note(place)

    def open(self, wanted: Mapping[str, Recording], report: Callable[[int, int], None]) -> None:
        """Take a lease on entries, and decode what is not there."""
        sizes = {key: self._size(key) or recording.expected_bytes() for key, recording in wanted.items()}
        self._reserve(sizes)
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            missing = [
                key for key, intact in zip(wanted, pool.map(self._intact, wanted), strict=True) if not intact
            ]
        if missing:
            log.info("decoding %d of %d recordings into %s", len(missing), len(wanted), self.folder)
        ready = len(wanted) - len(missing)
        report(ready, len(wanted))
        # What other processes are at is left to them, and waited for in the end.
        for wait in (False, True) if missing else ():
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                tasks = {key: pool.submit(self._decode, key, wanted[key], sizes, wait) for key in missing}
                try:
                    for key, task in tasks.items():
                        if task.result():
                            missing.remove(key)
                            report(len(wanted) - len(missing), len(wanted))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def map(self, key: str) -> Decoded:
        """Map an entry that is leased; the lease on it ends with the last reference."""
        found = read_decoded(self._entry(key))
        if found is None:
            raise ConfigError(f"data.cache {self.folder} has lost {key}.npy: who else deletes there?")
        with suppress(FileNotFoundError):
            os.utime(self._entry(key))
        lease = _leases[os.getpid(), self.folder]
        lease.maps[key] += 1
        # Every view of the array keeps the map alive, so the map's end is that of the last one.
        weakref.finalize(found.audio._mmap, lease.release, key).atexit = False  # type: ignore[attr-defined]
        return found

    def _intact(self, key: str) -> bool:
        """Whether an entry can be used; one that is damaged is removed."""
        path = self._entry(key)
        try:
            before = path.stat()
        except FileNotFoundError:
            return False
        if is_intact(path):
            return True
        with suppress(FileNotFoundError):
            if os.path.samestat(before, path.stat()):  # nobody has decoded it again
                path.unlink()
                log.warning("%s is damaged: decoding it again", path)
        return False

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _size(self, key: str) -> int:
        try:
            return self._entry(key).stat().st_size
        except FileNotFoundError:
            return 0

    def _reserve(self, sizes: Mapping[str, int]) -> None:
        """Lease entries of these sizes in bytes, and make room for those still to come."""
        with locked(self.folder):
            others = self._leased_by_others()
            lease = _leases.get((os.getpid(), self.folder))
            mine = {k: v for k, v in lease.bytes.items() if lease.maps[k] > 0} if lease else {}
            in_use = others | mine | dict(sizes)
            need = sum(in_use.values())
            if need > self.limit:
                shared = sum(size for key, size in in_use.items() if key not in sizes)
                beside = f" ({shared / 1e9:.4g} GB of it by other runs)" if shared else ""
                raise ConfigError(
                    f"data.cache {self.folder}: the audio in use needs {need / 1e9:.4g} GB{beside}, "
                    f"data.cache_gb allows {self.limit / 1e9:.4g} GB: raise it, or train on fewer songs"
                )
            if lease is None:
                lease = _leases[os.getpid(), self.folder] = _Lease(self.folder / "leases")
            lease.write(sizes)
            self._remove_orphans()
            self._evict(in_use)

    def _leased_by_others(self) -> dict[str, int]:
        """Entries that living processes use, with their bytes; leases of dead ones are removed."""
        mine = _leases.get((os.getpid(), self.folder))
        found: dict[str, int] = {}
        for path in partials(self.folder / "leases"):
            if mine is not None and path == mine.path:
                continue
            with suppress(FileNotFoundError), path.open("r+") as file:  # its owner ends this moment
                if _try_lock(file):
                    path.unlink()
                else:
                    found |= _sizes_of(file)
        return found

    def _remove_orphans(self) -> None:
        """Remove what processes that died had begun to decode."""
        for path in partials(self.folder):
            with suppress(FileNotFoundError), path.open("r+b") as file:
                if _try_lock(file) and is_at(file.fileno(), path):
                    path.unlink()

    def _evict(self, in_use: Mapping[str, int]) -> None:
        """Remove least recently used entries until all that is and will be there fits the limit."""
        there = {}
        for path in self.folder.glob("*.npy"):
            state = path.stat()
            there[path.stem] = (state.st_mtime_ns, state.st_size)
        total = sum(size for _, size in there.values())
        total += sum(size for key, size in in_use.items() if key not in there)
        for key in sorted(there.keys() - in_use.keys(), key=lambda key: there[key]):
            if total <= self.limit:
                return
            self._entry(key).unlink()
            total -= there[key][1]
            log.info("evicted %s from %s", key, self.folder)

    def _decode(self, key: str, recording: Recording, sizes: dict[str, int], wait: bool) -> bool:
        """Decode one entry; False where another process is at it and ``wait`` is False."""
        # Everybody's name for it, so that only one decodes it. It can be foreseen: nothing is written to it.
        turn, target = self.folder / f".{key}.npy{MARK}{key[:16]}", self._entry(key)
        while read_decoded(target) is None:
            with _opened(turn) as opened:
                if not wait and not _try_lock(opened):
                    return False
                fcntl.flock(opened, fcntl.LOCK_EX)
                if not is_at(opened.fileno(), turn):
                    continue  # removed by whom we waited for
                try:
                    if read_decoded(target) is None:
                        with writing(target) as file:
                            recording.write(file)
                            size = os.fstat(file.fileno()).st_size
                            if size > sizes[key]:
                                sizes[key] = size
                                self._reserve(sizes)
                finally:
                    turn.unlink(missing_ok=True)
        return True


def _sizes_of(lease: IO[str]) -> dict[str, int]:
    """What a lease of another process says; nothing where it is damaged."""
    with suppress(ValueError):
        found = parse_json(lease.read(DOCUMENT_BYTES))
        if isinstance(found, dict):
            return {key: size for key, size in found.items() if isinstance(size, int) and size >= 0}
    return {}


def _opened(path: Path) -> IO[bytes]:
    """Open a file that may be another process's; a link in its place is removed, not followed."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.fdopen(os.open(path, flags, 0o666), "ab")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            path.unlink(missing_ok=True)


def _try_lock(file: IO[bytes] | IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
