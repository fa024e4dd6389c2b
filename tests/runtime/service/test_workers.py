"""Worker processes: jobs and streams through them, kills, stops, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tfswa.runtime.errors import BackendUnavailable, GateError, TfxError, UsageError
from tfswa.runtime.service.runner import INPUT, STEMS, job_folder
from tfswa.runtime.service.settings import ServiceSettings, read_settings
from tfswa.runtime.service.store import Job, JobStore, new_id
from tfswa.runtime.service.wire import JSON, SAMPLES
from tfswa.runtime.service.worker import DATABASE
from tfswa.runtime.service.workers import Call, WorkerProcess
from tfswa.runtime.stream.separator import Separator

SONG = 0.3 * np.random.default_rng(0).standard_normal((2, 30_000), np.float32)
Wait = Callable[[], Any]


def settings(data: Path, bundle: Path, **engine: Any) -> ServiceSettings:
    data.mkdir(exist_ok=True)
    told = {"backend": "ort", "threads": 1, **engine}
    return read_settings(None, data=str(data), models={"small": str(bundle)}, engine=told)


@asynccontextmanager
async def working(told: ServiceSettings) -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(told, "cpu", None, told.data)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 600))


async def until(found: Wait) -> None:
    while not found():
        await asyncio.sleep(0.01)


def add(store: JobStore, data: Path, song: np.ndarray, rate: int) -> Job:
    name = new_id()
    job_folder(data, name).mkdir(parents=True)
    soundfile.write(job_folder(data, name) / INPUT, song.T, rate, format="WAV", subtype="FLOAT")
    return store.add("key", {"model": "small", "name": "song.wav"}, job=name)[0]


def state(store: JobStore, job: Job) -> str:
    found = store.find(job.id, "key")
    assert found is not None
    return found.state


async def exchange(call: Call, song: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    async def say() -> None:
        for start in range(0, song.shape[1], 4096):
            await call.send(SAMPLES, np.ascontiguousarray(song[:, start : start + 4096].T).tobytes())
        await call.send_json({"type": "end"})

    saying = asyncio.create_task(say())
    parts = []
    while (message := await call.receive()) is not None and message[0] == SAMPLES:
        parts.append(message[1])
    await saying
    assert message is not None
    assert json.loads(message[1]) == {"type": "done", "samples": song.shape[1]}
    frames = np.frombuffer(b"".join(parts), np.float32)
    return frames.reshape(-1, len(told["stems"]), told["channels"]).transpose(1, 2, 0)


async def hello(worker: WorkerProcess) -> Call:
    return await worker.call({"ask": "stream", "key": "somebody"})


def test_jobs_and_streams_have_the_bits_of_a_file(tmp_path: Path, exported_bundle: Path) -> None:
    told = settings(tmp_path, exported_bundle)
    with Separator(str(exported_bundle), backend="ort") as separator:
        alone, rate = separator.separate(SONG), separator.sample_rate
        stems = list(separator.stems)

    async def serve() -> None:
        async with working(told) as worker:
            assert worker.ready
            assert worker.offer["small"]["stems"] == stems
            assert worker.offer["small"]["sample_rate"] == rate
            store = JobStore(told.data / DATABASE)
            jobs = [add(store, told.data, SONG, rate) for _ in range(3)]
            await worker.wake()
            heard = await asyncio.gather(*(listened(worker) for _ in range(3)))
            for found in heard:
                np.testing.assert_array_equal(found, alone)
            await until(lambda: {state(store, job) for job in jobs} == {"done"})
            for job in jobs:
                for place, stem in enumerate(stems):
                    path = job_folder(told.data, job.id) / STEMS / f"{stem}.wav"
                    np.testing.assert_array_equal(soundfile.read(path, dtype="float32")[0].T, alone[place])
            status = await worker.status()
            assert status is not None
            assert status["stream_audio_seconds"] == pytest.approx(3 * SONG.shape[1] / rate)
            assert status["job_audio_seconds"] == pytest.approx(3 * SONG.shape[1] / rate)
            assert status["networks"][0]["chunks"] >= status["networks"][0]["batches"] > 0
            assert status["streams"] == 0
            store.close()

    async def listened(worker: WorkerProcess) -> np.ndarray:
        call = await hello(worker)
        try:
            await call.send_json({"sample_rate": rate, "channels": 2})
            ready = await call.receive()
            assert ready is not None
            return await exchange(call, SONG, json.loads(ready[1]))
        finally:
            call.close()

    run(serve())


def test_one_that_is_killed_begins_again_and_its_job_with_it(tmp_path: Path, exported_bundle: Path) -> None:
    told = settings(tmp_path, exported_bundle)
    song = np.tile(SONG, 40)

    async def serve() -> None:
        async with working(told) as worker:
            store = JobStore(told.data / DATABASE)
            job = add(store, told.data, song, worker.offer["small"]["sample_rate"])
            await worker.wake()
            await until(lambda: state(store, job) == "running")
            os.kill(process_of(told.data), signal.SIGKILL)
            call = await hello(worker)  # nobody is there yet
            await call.send_json({"sample_rate": 44_100, "channels": 2})
            answer = await call.receive()
            assert answer is not None
            assert json.loads(answer[1])["type"] == "ready"
            call.close()
            assert worker.ended == 1
            await until(lambda: state(store, job) == "done")
            found = store.find(job.id, "key")
            assert found is not None
            assert found.tries == 2
            store.close()

    run(serve())


def process_of(data: Path) -> int:
    """Who holds the worker's lock."""
    inode = (data / "worker-cpu.lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        parts = line.split()
        if parts[1] == "FLOCK" and parts[5].rpartition(":")[2] == str(inode):
            return int(parts[4])
    raise AssertionError("nobody holds the lock")


def test_one_that_is_stopped_gives_its_job_back_and_tells_its_streams(
    tmp_path: Path, exported_bundle: Path
) -> None:
    told = settings(tmp_path, exported_bundle)

    async def serve() -> None:
        store = JobStore(told.data / DATABASE)
        async with working(told) as worker:
            rate = worker.offer["small"]["sample_rate"]
            job = add(store, told.data, np.tile(SONG, 400), rate)
            await worker.wake()
            call = await hello(worker)
            await call.send_json({"sample_rate": rate, "channels": 2})
            assert (await call.receive() or b"")[0] == JSON
            await until(lambda: state(store, job) == "running")
            began = time.monotonic()
        assert time.monotonic() - began < 60
        last = await call.receive()
        assert last is not None
        assert json.loads(last[1]) == {
            "type": "error",
            "error": "the service ends: try again in a minute",
        }
        call.close()
        found = store.find(job.id, "key")
        assert found is not None
        assert (found.state, found.tries) == ("queued", 0)
        store.close()

    run(serve())


def test_one_follows_who_started_it(tmp_path: Path, exported_bundle: Path) -> None:
    told = settings(tmp_path, exported_bundle)

    async def serve() -> None:
        async with working(told) as worker:
            process = worker._process
            assert process is not None
            assert process.stdin is not None
            process.stdin.close()
            assert await process.wait() == 0

    run(serve())


@pytest.mark.parametrize(
    ("engine", "kind", "says"),
    [
        ({"backend": "orb"}, UsageError, "unknown backend 'orb', did you mean 'ort'?"),
        ({"devices": ["cuda:7"]}, BackendUnavailable, "cuda"),
        ({"require_parity": True}, GateError, "holds no passing certificate"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, exported_bundle: Path, engine: dict[str, Any], kind: type[TfxError], says: str
) -> None:
    told = settings(tmp_path, exported_bundle, **engine)
    devices = told.engine.devices or [None]

    async def serve() -> None:
        worker = WorkerProcess(told, "cpu", devices[0], told.data)
        try:
            with pytest.raises(kind, match=says) as found:
                await worker.start()
            assert type(found.value) is kind
            assert not worker.ready
        finally:
            await worker.stop()

    run(serve())
