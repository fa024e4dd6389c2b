"""Worker processes, as the process sees them that started them: begun, watched, begun again, called."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import BackendUnavailable, GateError, TfxError, UsageError
from tfswa.runtime.service.settings import ServiceSettings
from tfswa.runtime.service.wire import HEAD, JSON, Kind, Message, checked_head
from tfswa.runtime.service.worker import WorkerOrder

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5  # before a worker that ended is begun again; twice as long each time
LONGEST_SECONDS = 30.0
STEADY_SECONDS = 60.0  # who lived that long may begin at once
GRACE_SECONDS = 30.0  # to finish a chunk
KINDS: dict[int, type[TfxError]] = {
    kind.exit_code: kind for kind in (UsageError, GateError, BackendUnavailable)
}
WAITING = 128  # callers that may wait while no worker lives


class Call:
    """A connection to a worker that carries messages; see ``Wire``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    async def send(self, kind: Kind, content: bytes) -> None:
        """Send a message, waiting for room.

        Raises:
            OSError: the worker is gone.
        """
        self._writer.write(HEAD.pack(kind, len(content)))
        self._writer.write(content)
        await self._writer.drain()

    async def send_json(self, value: Any) -> None:
        """Send a value as JSON; raises as ``send``."""
        await self.send(JSON, json.dumps(value).encode())

    async def receive(self) -> Message | None:
        """The next message; None: the worker ended, be it within one.

        Raises:
            TfxError: it sends something else.
        """
        try:
            kind, length = checked_head(await self._reader.readexactly(HEAD.size))
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close the connection; calling it twice is harmless."""
        self._writer.close()


class WorkerProcess:
    """A worker, whichever process it is just now.

    Args:
        settings: the service's.
        name: of the worker.
        device: see ``WorkerOrder``.
        folder: where its socket is; its path must be short.

    Attributes:
        name: as given.
        offer: what it serves, by model, once it was ready for the first time.
        ready: whether it serves now.
        ended: how often it ended by itself.
        streams: that go through it, as who calls it counts them.
    """

    def __init__(self, settings: ServiceSettings, name: str, device: str | None, folder: Path):
        self.name = name
        self.offer: dict[str, Any] = {}
        self.ready = False
        self.ended = self.streams = 0
        self._settings, self._device = settings, device
        self._path = folder / f"{name}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(WAITING)
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin it, and wait until it serves; from then on it is begun again whenever it ends.

        Raises:
            TfxError: it does not serve; the kind tells the exit code.
        """
        await self._begin()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End it: chunks are finished, jobs given back. Calling it twice is harmless."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self.ready = False
        await self._end()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    async def call(self, first: Any) -> Call:
        """Connect, and say the first message; see ``tfswa.runtime.service.worker``.

        Raises:
            OSError: it cannot be called.
        """
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        call = Call(reader, writer)
        await call.send_json(first)
        return call

    async def wake(self) -> None:
        """Tell it that there is a job; it would look by itself, a little later."""
        with suppress(OSError):
            (await self.call({"ask": "wake"})).close()

    async def status(self) -> dict[str, Any] | None:
        """Its numbers; None where it does not serve.

        Raises:
            TfxError: it answers something else.
        """
        if not self.ready:
            return None
        try:
            call = await self.call({"ask": "status"})
        except OSError:
            return None
        try:
            answer = await call.receive()
        finally:
            call.close()
        found: dict[str, Any] | None = json.loads(answer[1]) if answer else None
        return found

    async def _begin(self) -> None:
        order = WorkerOrder(
            settings=self._settings, name=self.name, device=self._device, listener=self._listener.fileno()
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the working folder is not imported
            "-m",
            "tfswa.runtime.service.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
            limit=1 << 20,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(ConnectionError):
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")
            await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        said = json.loads(line) if line else {}
        if "ready" not in said:
            code = await self._process.wait()
            raise KINDS.get(code, TfxError)(said.get("error", f"the worker ended with exit code {code}"))
        self.offer, self.ready = said["ready"], True

    async def _watch(self) -> None:
        """Begin it again whenever it ends."""
        pause = AGAIN_SECONDS
        while True:
            began = time.monotonic()
            assert self._process is not None
            code = await self._process.wait()
            self.ready = False
            self.ended += 1
            if time.monotonic() - began > STEADY_SECONDS:
                pause = AGAIN_SECONDS
            log.error("worker %s ended with exit code %s, it begins again in %g s", self.name, code, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_SECONDS)
            try:
                await self._begin()
            except TfxError as error:
                log.error("worker %s: %s", self.name, error)

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
