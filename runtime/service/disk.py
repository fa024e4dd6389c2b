"""The folder of jobs: how much it holds, what has expired, what a kill has left."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from tfswa.runtime.errors import TfxError
from tfswa.runtime.service.runner import job_folder

FRESH_SECONDS = 5.0  # how long a measurement is believed


class DiskFull(TfxError):
    """The service may use no more."""


class JobFolders:
    """Keeps the folders of jobs within their bound.

    Args:
        data: the service's folder.
        most_bytes: that jobs may hold, all together.
    """

    def __init__(self, data: Path, most_bytes: int):
        self._data, self.most_bytes = data, most_bytes
        self._turn = threading.Lock()
        self._known, self._when = 0, float("-inf")

    def used(self) -> int:
        """Bytes of all jobs, as of a few seconds ago at most."""
        with self._turn:
            if time.monotonic() - self._when > FRESH_SECONDS:
                self._known, self._when = bytes_below(self._data / "jobs"), time.monotonic()
            return self._known

    def check(self, more: int = 0) -> None:
        """See whether there is room.

        Raises:
            DiskFull: there is not.
        """
        free = shutil.disk_usage(self._data).free
        used = self.used()
        if used + more > self.most_bytes or more > free:
            raise DiskFull(
                f"jobs hold {used / 1e9:.1f} of {self.most_bytes / 1e9:g} GB and {free / 1e9:.1f} GB of the "
                "disk are free, which is too little: delete jobs, or wait until some expire"
            )

    def remove(self, jobs: Iterable[str]) -> None:
        """Remove the folders of these jobs."""
        for job in jobs:
            shutil.rmtree(job_folder(self._data, job), ignore_errors=True)

    def sweep(self, known: set[str]) -> list[str]:
        """Remove what belongs to none of these jobs; only while no upload is under way.

        Returns:
            The names that were removed.
        """
        folder = self._data / "jobs"
        left = [path.name for path in folder.iterdir() if path.name not in known]
        self.remove(left)
        return left


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        else:
                            total += entry.stat(follow_symlinks=False).st_size
                    except OSError:
                        continue
        except OSError:
            continue
    return total
