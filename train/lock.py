"""One process at a time trains into a folder."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tfswa.runtime.errors import TrainingError, UsageError


class RunLock:
    """Holds a run's folder, and makes it; the lock ends with the process, however it ends.

    Args:
        out: folder of the run.

    Raises:
        UsageError: the folder cannot be made, or another process holds it.
    """

    def __init__(self, out: Path):
        self._path = out / ".lock"
        self._made = [place for place in (out, *out.parents) if not place.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            # Nothing is cut short, and a link is not followed: what lies there may be somebody else's.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._stream = os.fdopen(os.open(self._path, flags, 0o666), "r+")
            self._folder = out.stat()
        except OSError as error:
            raise UsageError(f"{out} cannot be made ({error.strerror}): choose another -o") from error
        try:
            # A record lock: the loader's processes do not inherit it, so it ends with this process alone.
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise UsageError(f"{out} is in use by another training: wait, or choose another -o") from error

    def check(self) -> None:
        """See that the run's folder is still where it was.

        Raises:
            TrainingError: it was moved, or something else, such as a link, is in its place.
        """
        try:
            same = os.path.samestat(self._path.parent.stat(), self._folder)
        except OSError:
            same = False
        if not same:
            raise TrainingError(
                f"{self._path.parent} was moved or replaced by another folder meanwhile: nothing is written "
                "there; go on with --resume where it is now"
            )

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file goes before the lock does, or another process could hold a file that is about to go.
        with self._stream, suppress(OSError):  # somebody came to live in what was made here, or removed it
            if self._made and [path.name for path in self._path.parent.iterdir()] == [self._path.name]:
                self._path.unlink()  # nothing came of it
                for place in self._made:
                    place.rmdir()
