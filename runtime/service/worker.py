"""The process that holds the networks of one device: jobs of the database, streams through a socket.

stdin    a line of JSON, ``WorkerOrder``; then nothing, until who started it ends: then it does too
stdout   a line of JSON: {"ready": {...}}, or {"error": "...", "code": N}, with which it ends
socket   inherited and listening: who calls while no worker lives waits there for the next one

A caller's first message says what it wants:
{"ask": "stream", "key": "..."}   the rest is a ``Conversation``
{"ask": "wake"}                   there is a job
{"ask": "status"}                 answered by what ``/metrics`` shows
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from select import select
from typing import Any, TextIO

from pydantic import BaseModel

from tfswa.runtime.backends import BackendOptions, default_device
from tfswa.runtime.errors import TfxError
from tfswa.runtime.failures import Failure, is_fault
from tfswa.runtime.files.locks import hold
from tfswa.runtime.machine import peak_memory_mb
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.evidence import describe_evidence, require_passing
from tfswa.runtime.service.conversation import Conversation, message_object
from tfswa.runtime.service.runner import Company, JobLimits, JobRunner
from tfswa.runtime.service.settings import EngineSettings, ServiceSettings
from tfswa.runtime.service.shelf import Shelf
from tfswa.runtime.service.store import JobStore
from tfswa.runtime.service.wire import Wire
from tfswa.runtime.stream.separator import Separator

log = logging.getLogger(__name__)

DATABASE = "jobs.db"
WATCH_SECONDS = 0.5
STREAMS_SECONDS = 10.0  # how long streams may take to be told that the worker ends
STUCK = 70  # exit code of a worker that a decoder holds


class WorkerOrder(BaseModel):
    """What a worker is told.

    Attributes:
        settings: the service's.
        name: the worker's; its jobs carry it.
        device: of its networks; None for the one that the backend takes if nobody says.
        listener: file descriptor of the socket.
    """

    settings: ServiceSettings
    name: str
    device: str | None
    listener: int


class ServiceWorker:
    """Serves until it is stopped.

    Args:
        order: see there.
        stop: set, when it is to end.
    """

    def __init__(self, order: WorkerOrder, stop: threading.Event):
        self.order, self.stop = order, stop
        self._settings = order.settings
        self._woken = threading.Event()
        self._streams: set[Wire] = set()
        self._stream_seconds = 0.0
        self._turn = threading.Condition()
        self._runners: list[JobRunner] = []

    def serve(self, ready: Any) -> None:
        """Load the networks, say so, and serve.

        Args:
            ready: gets what is served, once it is.

        Raises:
            TfxError: the networks cannot be loaded, or the database cannot be opened.
        """
        data, name = self._settings.data, self.order.name
        with ExitStack() as stack:
            _hold_alone(data / f"worker-{name}.lock")
            store = JobStore(data / DATABASE)
            stack.callback(store.close)
            queued, failed = store.recover(name)
            for job in (*queued, *failed):
                log.warning("job %s was running when its worker was killed: %s", job.id, job.state)
            shelf = stack.enter_context(self._shelf())
            self._limit_memory()
            ready(self._offer(shelf))
            self._run(store, shelf, data, name)

    def _shelf(self) -> Shelf:
        settings, engine = self._settings, self._settings.engine
        models = {name: one.arranged(trusted=engine.trust) for name, one in settings.models.items()}
        load = partial(_load, engine, self.order.device)
        return Shelf(models, load, batch=engine.batch, wait_seconds=engine.wait_ms / 1000)

    def _offer(self, shelf: Shelf) -> dict[str, Any]:
        """What is served, and by what."""
        found = {}
        for name in shelf.models:
            with shelf.lend(name, "looking") as separator:
                found[name] = {
                    "stems": list(separator.stems),
                    "channels": separator.channels,
                    "sample_rate": separator.sample_rate,
                    "backend": separator.description,
                    "evidence": [
                        describe_evidence(part.model, part.session, part.options) for part in separator.parts
                    ],
                }
        return found

    def _limit_memory(self) -> None:
        """Let the process grow by so much and no more: what a decoder asks for beyond fails its own job."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        most = now + round(self._settings.engine.memory_mb * 1e6)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))

    def _run(self, store: JobStore, shelf: Shelf, data: Path, name: str) -> None:
        limits = self._settings.limits
        may = JobLimits(limits.audio_seconds, limits.wall_seconds, limits.stuck_seconds)
        company = Company()
        self._runners = [
            JobRunner(store, data, name, shelf, may, self.stop, company)
            for _ in range(self._settings.engine.jobs)
        ]
        jobs = [threading.Thread(target=runner.run, args=(self._woken,)) for runner in self._runners]
        listener = socket.socket(fileno=self.order.listener)
        listening = threading.Thread(target=self._listen, args=(listener, shelf))
        for thread in (*jobs, listening):
            thread.start()
        while not self.stop.wait(WATCH_SECONDS):
            if any(runner.stuck for runner in self._runners):
                log.error("a job gives nothing: the worker ends, and with it what holds it")
                os._exit(STUCK)
        self._woken.set()
        with self._turn:
            for wire in self._streams:
                wire.end()
            self._turn.wait_for(lambda: not self._streams, STREAMS_SECONDS)
        for thread in (*jobs, listening):
            thread.join()

    def _listen(self, listener: socket.socket, shelf: Shelf) -> None:
        """Take callers; those that come once this worker ends wait for the next one."""
        while not self.stop.is_set():
            if not select([listener], [], [], WATCH_SECONDS)[0]:
                continue
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(Wire(connection), shelf), daemon=True).start()

    def _answer(self, wire: Wire, shelf: Shelf) -> None:
        """One caller, from its first message to its last."""
        try:
            first = wire.receive()
            asked = message_object(first[1]) if first else {}
            if asked.get("ask") == "wake":
                self._woken.set()
            elif asked.get("ask") == "status":
                wire.send_json(self._status(shelf))
            elif asked.get("ask") == "stream":
                self._stream(wire, shelf, str(asked.get("key", "")))
        except (OSError, TfxError) as error:
            log.info("a caller is gone: %s", error)
        finally:
            wire.close()

    def _stream(self, wire: Wire, shelf: Shelf, key: str) -> None:
        settings = self._settings
        lend = partial(shelf.lend, key=key, urgent=True)
        conversation = Conversation(wire, lend, settings.default_model, settings.limits.stream_seconds)
        with self._turn:
            self._streams.add(wire)
        try:
            conversation.hold()
            if self.stop.is_set():
                wire.send_json({"type": "error", "error": "the service ends: try again in a minute"})
        finally:
            with self._turn:
                self._streams.discard(wire)
                self._stream_seconds += conversation.seconds
                self._turn.notify_all()

    def _status(self, shelf: Shelf) -> dict[str, Any]:
        """Numbers since the process began."""
        networks = [
            {
                "batches": batcher.batches,
                "chunks": batcher.items,
                "waited_seconds": batcher.waited_seconds,
                "network_seconds": batcher.network_seconds,
            }
            for batcher in shelf.batchers
        ]
        with self._turn:
            streams, stream_seconds = len(self._streams), self._stream_seconds
        return {
            "networks": networks,
            "streams": streams,
            "stream_audio_seconds": stream_seconds,
            "job_audio_seconds": sum(runner.audio_seconds for runner in self._runners),
            "job_wall_seconds": sum(runner.wall_seconds for runner in self._runners),
            "peak_memory_mb": peak_memory_mb(),
        }


def _load(engine: EngineSettings, device: str | None, model: Model) -> Separator:
    """A network, as the settings want it."""
    device = device or default_device(engine.backend)
    options = BackendOptions(engine.precision, device, engine.threads)
    separator = Separator(
        model, backend=engine.backend, options=options, batch=engine.batch, on_nonfinite=engine.on_nonfinite
    )
    try:
        if engine.require_parity:
            require_passing(separator.model, separator.session, separator.options)
    except TfxError:
        separator.close()
        raise
    return separator


def _hold_alone(path: Path) -> None:
    """Wait until no other worker of this name lives; nothing but the end of this process gives it back."""
    hold(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def serve_orders() -> None:
    """The process: told by its stdin, it tells by its stdout whether it is ready."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who started it ends it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a handler could not take the event's lock
    threading.Thread(target=_obey, args=(stop,), daemon=True).start()
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    order = WorkerOrder.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_follow, args=(stop,), daemon=True).start()
    try:
        ServiceWorker(order, stop).serve(lambda offer: _tell(told, {"ready": offer}))
    except Exception as error:
        if is_fault(error):
            log.exception("the worker ends")
        line = str(error) if isinstance(error, TfxError) else Failure(order.name, error).told
        code = error.exit_code if isinstance(error, TfxError) else 1
        with suppress(OSError):
            _tell(told, {"error": line, "code": code})
        sys.exit(code)


def _tell(where: TextIO, value: Any) -> None:
    where.write(json.dumps(value) + "\n")
    where.flush()


def _obey(stop: threading.Event) -> None:
    """Whoever started this process, or ended the machine's services, may end it."""
    signal.sigwait({signal.SIGTERM})
    stop.set()


def _follow(stop: threading.Event) -> None:
    """Whoever started this process is gone when its stdin ends."""
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    serve_orders()
