"""Jobs in their database: turns, kills, canceling, and two who want the same job."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.service.store import TRIES, Job, JobConflict, JobStore

SONG = {"file": "a song é.wav", "stems": ["vocals"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    store = JobStore(path)
    yield store
    store.close()


def claimed(store: JobStore, worker: str = "cpu") -> Job:
    job = store.claim(worker)
    assert job is not None
    return job


def test_a_job_goes_its_way(store: JobStore, path: Path) -> None:
    job, new = store.add("key", SONG, priority=1)
    assert (new, job.state, job.request, job.key, job.tries) == (True, "queued", SONG, "key", 0)
    assert len(job.id) == 32
    assert int(job.id, 16) > 0
    running = claimed(store)
    assert (running.id, running.state, running.tries) == (job.id, "running", 1)
    assert store.claim("cpu") is None
    assert store.report(job.id, "cpu", 1.5, 6.0)
    found = store.find(job.id, "key")
    assert found is not None
    assert (found.seconds_done, found.seconds_total, found.state) == (1.5, 6.0, "running")
    assert store.finish(job.id, "cpu", {"stems": {"vocals": 7}}, 6.0)
    again = JobStore(path)  # another process
    found = again.find(job.id, "key")
    assert found is not None
    assert (found.state, found.result, found.error) == ("done", {"stems": {"vocals": 7}}, None)
    assert found.made == job.made <= found.changed <= time.time()
    again.close()
    again.close()


def test_nobody_sees_the_job_of_another_key(store: JobStore) -> None:
    job, _ = store.add("one", SONG)
    assert store.find(job.id, "two") is None
    assert store.cancel(job.id, "two") is None
    assert store.listed("two", most=10) == []
    assert store.counts("two")["queued"] == 0
    assert claimed(store).id == job.id


def test_the_same_request_twice_is_one_job(store: JobStore) -> None:
    first, new = store.add("key", SONG, once="x")
    assert new
    assert store.add("key", dict(reversed(SONG.items())), once="x") == (first, False)
    with pytest.raises(JobConflict, match="idempotency key 'x' came before with another request"):
        store.add("key", {**SONG, "stems": ["drums"]}, once="x")
    other, new = store.add("another key", SONG, once="x")
    assert new
    assert other.id != first.id
    assert store.counts()["queued"] == 2


def test_priorities_go_first_and_keys_take_turns(store: JobStore) -> None:
    names = {}
    for key, name, priority in (
        ("busy", "b1", 0), ("busy", "b2", 0), ("busy", "b3", 0), ("other", "o1", 0), ("other", "o2", 0),
        ("third", "t1", 0), ("busy", "urgent", 5),
    ):  # fmt: skip
        names[store.add(key, {"name": name}, priority=priority)[0].id] = name
    order = []
    while (job := store.claim("cpu")) is not None:
        order.append(names[job.id])
    assert order == ["urgent", "o1", "t1", "b1", "o2", "b2", "b3"]


def test_a_worker_that_was_killed_is_followed_by_others_at_most_three_times(store: JobStore) -> None:
    job, _ = store.add("key", SONG)
    other, _ = store.add("key", SONG)
    claimed(store)
    assert claimed(store, "cuda:0").id == other.id
    for count in range(1, TRIES):
        queued, failed = store.recover("cpu")
        assert ([one.id for one in queued], failed) == ([job.id], [])
        assert claimed(store).tries == count + 1
    queued, failed = store.recover("cpu")
    assert (queued, [one.id for one in failed]) == ([], [job.id])
    assert failed[0].error == "its worker was killed 3 times while it separated this"
    assert store.recover("cpu") == ([], [])
    kept = store.find(other.id, "key")  # another worker's is its own
    assert kept is not None
    assert kept.state == "running"


def test_who_lost_a_job_changes_nothing(store: JobStore) -> None:
    job, _ = store.add("key", SONG)
    claimed(store, "old")
    store.recover("old")
    claimed(store, "new")
    assert not store.report(job.id, "old", 1.0, 2.0)
    assert not store.finish(job.id, "old", {}, 6.0)
    assert not store.fail(job.id, "old", "late")
    assert not store.give_back(job.id, "old")
    assert store.finish(job.id, "new", {"of": "new"}, 6.0)
    assert not store.finish(job.id, "new", {"of": "new, again"}, 6.0)
    found = store.find(job.id, "key")
    assert found is not None
    assert found.result == {"of": "new"}


def test_what_is_given_back_counts_as_no_try(store: JobStore) -> None:
    store.add("key", SONG)
    for _ in range(5):
        job = claimed(store)
        assert job.tries == 1
        assert store.give_back(job.id, "cpu")


@pytest.mark.parametrize("running", [False, True])
def test_canceling(store: JobStore, running: bool) -> None:
    job, _ = store.add("key", SONG)
    if running:
        claimed(store)
    canceled = store.cancel(job.id, "key")
    assert canceled is not None
    assert canceled.state == "canceled"
    assert store.claim("cpu") is None
    assert not store.report(job.id, "cpu", 1.0, 2.0)  # so that the worker stops
    assert not store.finish(job.id, "cpu", {}, 6.0)
    again = store.cancel(job.id, "key")
    assert again == canceled


def test_what_is_done_is_not_canceled(store: JobStore) -> None:
    job, _ = store.add("key", SONG)
    claimed(store)
    store.finish(job.id, "cpu", {}, 6.0)
    found = store.cancel(job.id, "key")
    assert found is not None
    assert found.state == "done"


def test_listing_goes_on_where_a_page_ended(store: JobStore) -> None:
    ids = [store.add("key", {"n": n})[0].id for n in range(5)]
    store.add("other", SONG)
    first = store.listed("key", most=2)
    assert [job.id for job in first] == [ids[4], ids[3]]
    assert [job.id for job in store.listed("key", most=9, before=ids[3])] == [ids[2], ids[1], ids[0]]
    assert store.listed("key", most=9, before="unknown") == []


def test_what_ended_long_ago_is_forgotten(store: JobStore) -> None:
    ids = [store.add("key", {"n": n})[0].id for n in range(4)]
    claimed(store)
    store.finish(ids[0], "cpu", {}, 6.0)
    store.cancel(ids[1], "key")
    claimed(store)
    now = time.time()
    assert store.expire(now - 60) == []
    assert sorted(store.expire(now + 1)) == sorted(ids[:2])
    assert store.ids() == set(ids[2:])
    assert store.counts() == {"queued": 1, "running": 1, "done": 0, "failed": 0, "canceled": 0}


def test_a_job_is_claimed_once_whoever_asks(path: Path) -> None:
    stores = [JobStore(path) for _ in range(4)]
    ids = {stores[0].add(f"key {n % 3}", {"n": n})[0].id for n in range(60)}
    start = threading.Barrier(8)

    def work(worker: int) -> list[str]:
        store, found = stores[worker % 4], []
        start.wait()
        while (job := store.claim(str(worker))) is not None:
            assert store.finish(job.id, str(worker), {}, 6.0)
            found.append(job.id)
        return found

    with ThreadPoolExecutor(8) as pool:
        every = [job for found in pool.map(work, range(8)) for job in found]
    assert len(every) == len(ids)
    assert set(every) == ids
    for store in stores:
        store.close()


KILLED = """
import os, sys
from pathlib import Path
from tfswa.runtime.service.store import JobStore
store = JobStore(Path(sys.argv[1]))
for n in range(20):
    store.add("key", {"n": n})
    print(n, flush=True)
    if n >= 10:
        store.claim("cpu")
os.kill(os.getpid(), 9)
"""


def test_what_was_said_to_be_queued_is_there_after_a_kill(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert len(done.stdout.split()) == 20
    store = JobStore(path)
    assert store.counts() == {"queued": 10, "running": 10, "done": 0, "failed": 0, "canceled": 0}
    assert len(store.recover("cpu")[0]) == 10
    assert sorted(claimed(store).request["n"] for _ in range(20)) == list(range(20))
    store.close()


def newer(path: Path) -> None:
    JobStore(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda path: path.write_bytes(b"RIFF" + bytes(5000)), TfxError, "is no database of jobs"),
        (lambda path: path.mkdir(), UsageError, "cannot be opened"),
        (newer, TfxError, "is of version 7, this tfx knows 1"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    path: Path, spoil: Callable[[Path], object], error: type[TfxError], says: str
) -> None:
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error, match=says) as raised:
        JobStore(path)
    assert "\n" not in str(raised.value)
    assert before == (path.read_bytes() if path.is_file() else None)
