"""A service as a whole, without its routes: begun, ended, refused; and its numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.service.keys import Keys
from tfswa.runtime.service.runner import job_folder
from tfswa.runtime.service.service import Service, worker_name
from tfswa.runtime.service.settings import ServiceSettings, read_settings
from tfswa.runtime.service.store import JobStore

Told = Callable[..., ServiceSettings]


@pytest.fixture
def told(tmp_path: Path, exported_bundle: Path) -> Told:
    def made(**given: Any) -> ServiceSettings:
        engine = {"backend": "ort", "threads": 1, **given.pop("engine", {})}
        data = given.pop("data", tmp_path / "data")
        return read_settings(
            None, data=str(data), models={"small": str(exported_bundle)}, engine=engine, **given
        )

    return made


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 600))


def test_what_a_kill_left_is_put_right(told: Told, tmp_path: Path) -> None:
    settings = told(limits={"keep_hours": 1.0})
    settings.data.mkdir()
    store = JobStore(settings.data / "jobs.db")
    of_another, _ = store.add("key", {"model": "small"})
    store.claim("cuda-1")  # a worker of a device that is no longer there
    (settings.data / "worker-cuda-1.lock").touch()
    ended, _ = store.add("key", {"model": "small"}, priority=1)
    store.cancel(ended.id, "key")
    for name in (ended.id, "an upload that was cut"):
        job_folder(settings.data, name).mkdir(parents=True)

    async def serve() -> None:
        async with Service(settings) as service:
            assert service.ready
            assert service.worker() is service.workers[0]
            assert list(service.offer) == ["small"]
            assert not job_folder(settings.data, "an upload that was cut").exists()
            assert job_folder(settings.data, ended.id).exists()
            while (found := store.find(of_another.id, "key")) is None or found.state != "failed":
                await asyncio.sleep(0.01)  # taken anew, and it has no upload
            store._database.execute(
                "UPDATE jobs SET changed = ? WHERE id = ?", (time.time() - 3601, ended.id)
            )
            service.expire()
            assert store.find(ended.id, "key") is None
            assert not job_folder(settings.data, ended.id).exists()
            with pytest.raises(UsageError, match="another service uses"):
                async with Service(settings):
                    pass
        assert not service.ready

    run(serve())
    store.close()


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"host": "0.0.0.0"}, UsageError, "host 0.0.0.0 is open to others, and there are no keys"),
        ({"host": "0.0.0.0", "keys": "none.json"}, UsageError, "none.json has no keys: make one"),
        ({"data": "/proc/tfx"}, UsageError, "/proc/tfx cannot be the service's folder"),
        ({"engine": {"devices": ["cuda:3"]}}, BackendUnavailable, "cuda"),
        ({"engine": {"devices": ["cpu", "cpu"]}}, UsageError, "device cpu is named twice"),
    ],
)
def test_what_cannot_be_served_is_one_line(told: Told, given: dict[str, Any], kind: Any, says: str) -> None:
    async def serve() -> None:
        async with Service(told(**given)):
            pass

    with pytest.raises(kind) as found:
        run(serve())
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_with_keys_it_may_be_open_to_others(told: Told, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("one")
    service = Service(told(host="0.0.0.0", keys=str(keys.path)))
    assert service.access.name_of(f"Bearer {key}") == "one"


def test_numbers_are_prometheus(told: Told) -> None:
    settings = told()

    async def serve() -> None:
        async with Service(settings) as service:
            service.meters.seen("GET", "/readyz", 200, 0.1)
            worker = service.workers[0]
            workers = {worker.name: (worker.ended, await worker.status()), "gone": (2, None)}
            text = service.meters.text(service.store.counts(), 3, (5, 9), workers).decode()
        values = {
            (sample.name, *map(sample.labels.get, sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert values["tfx_requests_total", "GET", "/readyz", "200"] == 1
        assert values["tfx_jobs", "queued"] == 0
        assert (values[("tfx_streams",)], values[("tfx_data_bytes",)]) == (3, 5)
        assert (values["tfx_worker_up", "default"], values["tfx_worker_up", "gone"]) == (1, 0)
        assert values["tfx_worker_ended_total", "gone"] == 2
        assert values["tfx_chunks_total", "0", "default"] == 1
        assert values["tfx_batches_total", "0", "default"] == 1
        assert values["tfx_network_seconds_total", "0", "default"] > 0
        assert values["tfx_worker_peak_memory_bytes", "default"] > 1e7

    run(serve())


def test_a_worker_has_the_name_of_its_device() -> None:
    assert [worker_name(device) for device in (None, "cpu", "cuda:1")] == ["default", "cpu", "cuda-1"]
