"""What the routes share: jobs, keys, workers, numbers; begun before the first request and ended later."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

from tfswa.runtime.errors import TfxError, UsageError, reason
from tfswa.runtime.files.locks import hold, release
from tfswa.runtime.service.access import Access
from tfswa.runtime.service.disk import JobFolders
from tfswa.runtime.service.keys import Keys
from tfswa.runtime.service.meters import Meters
from tfswa.runtime.service.settings import ServiceSettings
from tfswa.runtime.service.store import JobStore
from tfswa.runtime.service.worker import DATABASE
from tfswa.runtime.service.workers import WorkerProcess

log = logging.getLogger(__name__)

EXPIRE_SECONDS = 30.0  # between two looks for what has expired


class Service:
    """A service at work; an asynchronous context manager.

    Args:
        settings: what it was told.

    Attributes:
        settings: as given.
        store: the jobs.
        access: who may ask.
        folders: of the jobs.
        workers: one for each device.
        meters: what ``/metrics`` shows.
        offer: what is served, by model.

    Raises:
        UsageError: it would be open to the network without keys, another service uses the folder, or the
            folder cannot be used.
        TfxError: a worker does not serve; see ``WorkerProcess.start``.
    """

    store: JobStore
    workers: list[WorkerProcess]

    def __init__(self, settings: ServiceSettings):
        if not settings.loopback and settings.keys is None:
            raise UsageError(
                f"host {settings.host} is open to others, and there are no keys: make some with "
                "`tfx serve keys add NAME --keys FILE` and give --keys FILE, or listen on 127.0.0.1"
            )
        keys = None if settings.keys is None else Keys(settings.keys)
        if keys is not None and not keys.hashes:
            raise UsageError(f"{settings.keys} has no keys: make one with `tfx serve keys add NAME`")
        devices = settings.engine.devices
        if twice := [device for device in devices if devices.count(device) > 1]:
            raise UsageError(f"device {twice[0]} is named twice: a device has one worker")
        limits = settings.limits
        self.settings = settings
        self.access = Access(keys, limits.requests, limits.streams)
        self.folders = JobFolders(settings.data, round(limits.data_gb * 1e9))
        self.meters = Meters()
        self.ending = asyncio.Event()
        self._stack = AsyncExitStack()

    @property
    def offer(self) -> dict[str, Any]:
        """What is served, by model."""
        return self.workers[0].offer

    @property
    def ready(self) -> bool:
        """Whether any worker serves, and the service does not end."""
        return not self.ending.is_set() and any(worker.ready for worker in self.workers)

    async def wake(self) -> None:
        """Tell the workers that there is a job."""
        await asyncio.gather(*(worker.wake() for worker in self.workers if worker.ready))

    def worker(self) -> WorkerProcess | None:
        """The worker for the next stream: that with the fewest; None: none serves."""
        ready = [worker for worker in self.workers if worker.ready]
        return min(ready, key=lambda worker: worker.streams, default=None)

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ending.set()
        await self._stack.aclose()

    async def _begin(self) -> None:
        data = self.settings.data
        try:
            (data / "jobs").mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(data / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"{data} cannot be the service's folder: {reason(error)}") from error
        if not hold(handle, wait=False):
            os.close(handle)
            raise UsageError(f"another service uses {data}: end it, or give another --data")
        self._stack.callback(release, handle)
        self.store = JobStore(data / DATABASE)
        self._stack.callback(self.store.close)
        sockets = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-serve-"))
        devices: list[str | None] = [*self.settings.engine.devices] or [None]
        self.workers = [
            WorkerProcess(self.settings, worker_name(device), device, Path(sockets)) for device in devices
        ]
        for worker in self.workers:
            self._stack.push_async_callback(worker.stop)
        await asyncio.to_thread(self._recover)
        for worker in self.workers:  # one after the other: loading takes the memory of two
            await worker.start()
        expiring = asyncio.create_task(self._expire())
        self._stack.push_async_callback(_canceled, expiring)

    def _recover(self) -> None:
        """What a kill has left: jobs of workers that are no more, and folders of no job."""
        names = {worker.name for worker in self.workers}
        for path in self.settings.data.glob("worker-*.lock"):
            name = path.stem.removeprefix("worker-")
            if name in names:
                continue  # it recovers its own
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            hold(handle)
            self.store.recover(name)
            release(handle)
        for left in self.folders.sweep(self.store.ids()):
            log.warning("%s belonged to no job and is removed", left)

    def expire(self) -> None:
        """Forget jobs whose results have been kept long enough, and remove those."""
        before = time.time() - self.settings.limits.keep_hours * 3600
        self.folders.remove(self.store.expire(before))

    async def _expire(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.expire)
            except (TfxError, OSError) as error:
                log.error("results could not be expired: %s", error)
            await asyncio.sleep(EXPIRE_SECONDS)


def worker_name(device: str | None) -> str:
    """Of the worker of a device; it names files."""
    return "".join(letter if letter.isalnum() else "-" for letter in device or "default")


async def _canceled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
