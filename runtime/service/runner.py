"""A job from its upload to its stems.

DATA/jobs/ID/input          as it was uploaded; removed once the job has ended
DATA/jobs/ID/stems/FILE     all of them or none, before the job is done
DATA/jobs/ID/peaks/STEM     the outline of each, as JSON
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import AudioError, TfxError
from tfswa.runtime.failures import Failure
from tfswa.runtime.service.peaks import outline_of
from tfswa.runtime.service.shelf import Shelf
from tfswa.runtime.service.store import Job, JobStore
from tfswa.runtime.stream.files import FileJob, FileResult, paths_in, separate_file
from tfswa.runtime.stream.separating import Separating

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5  # between two notes of how far a job is
IDLE_SECONDS = 0.2  # between two looks for a job, where nobody says that there is one
INPUT, STEMS, PEAKS = "input", "stems", "peaks"


@dataclass(frozen=True)
class JobLimits:
    """What a job may take.

    Attributes:
        audio_seconds: of its input, as declared and as decoded.
        wall_seconds: from its beginning to its end.
        stuck_seconds: between two chunks; see ``JobRunner.stuck``.
    """

    audio_seconds: float = 4 * 3600.0
    wall_seconds: float = 4 * 3600.0
    stuck_seconds: float = 1800.0


class _Lost(TfxError):
    """The job is not this worker's any more: it was canceled, or given to another."""


class _GivenBack(TfxError):
    """The worker ends."""


class Company:
    """Who separates at the same time, in one process.

    A job whose worker was killed may be what kills it: it is separated alone, so that it costs no other job
    its tries.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0
        self._alone = False

    @contextmanager
    def joined(self, *, alone: bool) -> Iterator[None]:
        """Wait until there is room, and take it for a block."""
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(lambda: self._room(alone=alone))
            self._waiting -= alone
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _room(self, *, alone: bool) -> bool:
        return not self._inside if alone else not (self._alone or self._waiting)


class JobRunner:
    """Separates the jobs of a store, one after the other; several may share a network, see ``Batcher``.

    Args:
        store: where jobs come from.
        data: the service's folder.
        worker: whose name the jobs carry meanwhile.
        shelf: the models.
        limits: of each job.
        stop: set, when a running job is to be given back.
        company: of the runners of this process.

    Attributes:
        audio_seconds: of all jobs that were done here.
        wall_seconds: that they took.
    """

    def __init__(
        self,
        store: JobStore,
        data: Path,
        worker: str,
        shelf: Shelf,
        limits: JobLimits = JobLimits(),
        stop: threading.Event | None = None,
        company: Company | None = None,
    ):
        self._store, self._data, self._worker = store, data, worker
        self._shelf, self._limits = shelf, limits
        self._stop = threading.Event() if stop is None else stop
        self._company = Company() if company is None else company
        self.audio_seconds = self.wall_seconds = 0.0
        self._alive: float | None = None  # when the job that runs had its latest chunk

    @property
    def stuck(self) -> bool:
        """Whether a decoder hangs, which nothing but the end of the process ends."""
        alive = self._alive
        return alive is not None and time.monotonic() - alive > self._limits.stuck_seconds

    def run(self, woken: threading.Event) -> None:
        """Separate until ``stop`` is set; ``woken`` tells that there may be a job."""
        while not self._stop.is_set():
            if not self.run_next():
                woken.wait(IDLE_SECONDS)
                woken.clear()

    def run_next(self) -> bool:
        """Take the job whose turn it is, and bring it to its end; False: there is none.

        Whatever is wrong with a job ends that job alone, with a line that its owner reads.
        """
        job = self._store.claim(self._worker)
        if job is None:
            return False
        folder = job_folder(self._data, job.id)
        try:
            with self._company.joined(alone=job.tries > 1), self._watched():
                result = self._separated(job, folder)
        except _GivenBack:
            self._store.give_back(job.id, self._worker)
            return True
        except _Lost:
            pass
        except Exception as error:
            log.info("job %s failed", job.id, exc_info=error)
            line = Failure(_name(job), error).told.replace(str(folder / INPUT), _name(job))
            self._store.fail(job.id, self._worker, line)
        else:
            if self._store.finish(job.id, self._worker, result, result["seconds"]):
                (folder / INPUT).unlink(missing_ok=True)
                self.audio_seconds += result["seconds"]
                self.wall_seconds += result["wall_seconds"]
                return True
        # Canceled or failed: nobody will ask for what there is. Given to another: that one makes it anew.
        found = self._store.find(job.id, job.key)
        if found is None or found.state in ("failed", "canceled"):
            shutil.rmtree(folder, ignore_errors=True)
        return True

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._alive = time.monotonic()
        try:
            yield
        finally:
            self._alive = None

    def _separated(self, job: Job, folder: Path) -> dict[str, Any]:
        request = job.request
        with self._shelf.lend(str(request["model"]), job.key) as separator:
            return self._with(separator, job, folder)

    def _with(self, separator: Separating, job: Job, folder: Path) -> dict[str, Any]:
        request = job.request
        stems = request.get("stems") or separator.stems
        separator.indices(stems)  # before their paths are made
        paths = paths_in(folder / STEMS, stems, request.get("format", "wav"))
        (folder / STEMS).mkdir(exist_ok=True)
        asked = FileJob(
            folder / INPUT,
            paths,
            request.get("format", "wav"),
            request.get("clip", "none"),
            force=True,  # what a worker left that was killed
            below=folder,
        )
        watch = _Watch(self, job)
        found = separate_file(separator, asked, watch)
        (folder / PEAKS).mkdir(exist_ok=True)
        for stem, path in found.written.paths.items():
            (folder / PEAKS / stem).write_text(json.dumps(outline_of(path)))
        return _told(found)

    def check(self, job: Job, began: float, done: float, total: float | None) -> None:
        """Between two chunks: whether the job is within its limits, and still this worker's.

        Raises:
            AudioError, TfxError: why it ends.
        """
        self._alive = time.monotonic()
        most = self._limits.audio_seconds
        if max(done, total or 0.0) > most:
            raise AudioError(f"{_name(job)} is longer than {most:g} s, which is the most here: cut it")
        if time.monotonic() - began > self._limits.wall_seconds:
            raise TfxError(f"{_name(job)} took longer than {self._limits.wall_seconds:g} s: cut it")
        if self._stop.is_set():
            raise _GivenBack

    def report(self, job: Job, done: float, total: float | None) -> None:
        """Say how far a job is.

        Raises:
            TfxError: it is not this worker's any more.
        """
        if not self._store.report(job.id, self._worker, done, total):
            raise _Lost


class _Watch:
    """The progress of a job, which is where it may be ended."""

    def __init__(self, runner: JobRunner, job: Job):
        self._runner, self._job = runner, job
        self._began = time.monotonic()
        self._reported = float("-inf")

    def __call__(self, done: float, total: float | None) -> None:
        self._runner.check(self._job, self._began, done, total)
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._runner.report(self._job, done, total)
            self._reported = time.monotonic()


def job_folder(data: Path, job: str) -> Path:
    """Where a job's files are."""
    return data / "jobs" / job


def _name(job: Job) -> str:
    """What its owner calls the input."""
    return str(job.request.get("name") or "the upload")


def _told(result: FileResult) -> dict[str, Any]:
    """What its owner is told of a job that is done."""
    written = result.written
    stems = {
        stem: {
            "file": path.name,
            "bytes": path.stat().st_size,
            "peak": written.peaks[stem],
            "clipped": written.clipped[stem],
        }
        for stem, path in written.paths.items()
    }
    return {
        "stems": stems,
        "seconds": result.audio_seconds,
        "wall_seconds": result.wall_seconds,
        "sample_rate": written.sample_rate,
        "gain": written.gain,
        "recomputed": [list(part) for part in result.recomputed],
        "damaged": result.damaged,
        "notes": [*map(str, result.notes), *written.lines()],
    }
