"""Jobs that are separated: limits, bad uploads, canceling, and what lies about afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from streams import PlainModel

from tfswa.runtime.service.runner import INPUT, PEAKS, STEMS, Company, JobLimits, JobRunner, job_folder
from tfswa.runtime.service.shelf import Shelf
from tfswa.runtime.service.store import Job, JobStore, new_id
from tfswa.runtime.stream.separating import Separating

RATE = 8000


def halves(chunks: Any) -> Any:
    return np.stack((0.5 * chunks, 0.5 * chunks), axis=1)


class PlainShelf(Shelf):
    """One model without a network, named ``plain``."""

    def __init__(self, model: PlainModel):
        self.models = {"plain": model}  # type: ignore[dict-item]

    def lend(self, name: str, key: str, *, urgent: bool = False) -> Separating:
        found: Any = self.check(name)
        return found


class Place:
    """A service's folder, with one model that gives half of the mixture as each stem."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.store = JobStore(folder / "jobs.db")
        self.stop = threading.Event()
        self.process: Any = halves

    def runner(self, limits: JobLimits | None = None) -> JobRunner:
        shelf: Any = PlainShelf(PlainModel(process=lambda chunks: self.process(chunks)))
        return JobRunner(self.store, self.folder, "cpu", shelf, limits or JobLimits(), self.stop)

    def add(self, content: bytes | float, **request: Any) -> Job:
        """An upload: bytes, or so many seconds of noise."""
        name = new_id()
        job_folder(self.folder, name).mkdir(parents=True)
        path = job_folder(self.folder, name) / INPUT
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            noise = 0.1 * np.random.default_rng(0).standard_normal((round(content * RATE), 2))
            soundfile.write(path, noise, RATE, format="WAV", subtype="FLOAT")
        request = {"model": "plain", "name": "my song é.wav", **request}
        return self.store.add("key", request, job=name)[0]

    def found(self, job: Job) -> Job:
        found = self.store.find(job.id, "key")
        assert found is not None
        return found

    def files(self, job: Job) -> list[str]:
        folder = job_folder(self.folder, job.id)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_job_becomes_stems(place: Place) -> None:
    job = place.add(3.0)
    source = soundfile.read(job_folder(place.folder, job.id) / INPUT, dtype="float32")[0]
    runner = place.runner()
    assert runner.run_next()
    assert not runner.run_next()
    found = place.found(job)
    assert (found.state, found.error) == ("done", None)
    assert found.seconds_done == found.seconds_total == 3.0
    assert found.result is not None
    assert (found.result["seconds"], found.result["sample_rate"]) == (3.0, RATE)
    assert place.files(job) == [
        f"{PEAKS}/other",
        f"{PEAKS}/vocals",
        f"{STEMS}/other.wav",
        f"{STEMS}/vocals.wav",
    ]
    assert (runner.audio_seconds, runner.wall_seconds) == (3.0, found.result["wall_seconds"])
    for stem, told in found.result["stems"].items():
        path = job_folder(place.folder, job.id) / STEMS / told["file"]
        assert path.stat().st_size == told["bytes"]
        np.testing.assert_allclose(soundfile.read(path, dtype="float32")[0], source / 2, atol=1e-6)
        assert told["peak"] == pytest.approx(np.abs(source).max() / 2), stem
        outline = json.loads((job_folder(place.folder, job.id) / PEAKS / stem).read_text())
        assert outline["samples"] == len(source)
        assert max(max(outline["highs"]), -min(outline["lows"])) == pytest.approx(told["peak"], abs=1e-4)


def test_stems_and_format_are_those_asked_for(place: Place) -> None:
    job = place.add(1.0, stems=["other"], format="flac")
    place.runner().run_next()
    assert place.files(job) == [f"{PEAKS}/other", f"{STEMS}/other.flac"]


@pytest.mark.parametrize(
    ("content", "request_", "says"),
    [
        (b"no audio at all", {}, "my song é.wav"),
        (b"", {}, "my song é.wav"),
        (1.0, {"stems": ["drums"]}, "my song é.wav: plain has no stem 'drums': it has vocals, other"),
        (1.0, {"format": "wave"}, "my song é.wav: unknown format 'wave', did you mean 'wav'?"),
        (1.0, {"model": "plane"}, "unknown model 'plane', did you mean 'plain'? served are plain"),
    ],
)
def test_a_bad_job_fails_alone_with_a_line(
    place: Place, content: bytes | float, request_: dict[str, Any], says: str
) -> None:
    bad, good = place.add(content, **request_), place.add(0.5)
    runner = place.runner()
    assert runner.run_next()
    assert runner.run_next()
    failed = place.found(bad)
    assert failed.state == "failed"
    assert failed.error is not None
    assert says in failed.error
    assert "\n" not in failed.error
    assert str(place.folder) not in failed.error
    assert not job_folder(place.folder, bad.id).exists()
    assert place.found(good).state == "done"


def endless() -> bytes:
    """A WAV that claims 4 hours and holds a second."""
    header = np.array([RATE, 4 * RATE, 2 | 16 << 16], "<u4").tobytes()
    length = 4 * 3600 * RATE * 4
    start = b"RIFF" + (length + 36).to_bytes(4, "little") + b"WAVEfmt " + bytes([16, 0, 0, 0, 1, 0, 2, 0])
    return (
        start + header[:8] + bytes([4, 0, 16, 0]) + b"data" + length.to_bytes(4, "little") + bytes(4 * RATE)
    )


@pytest.mark.parametrize("content", [5.0, endless()])
def test_too_long_is_refused_by_what_is_declared_or_decoded(place: Place, content: bytes | float) -> None:
    job = place.add(content)
    place.runner(JobLimits(audio_seconds=2.0)).run_next()
    assert place.found(job).error == "my song é.wav is longer than 2 s, which is the most here: cut it"
    assert not job_folder(place.folder, job.id).exists()


def test_too_slow_is_ended(place: Place) -> None:
    job = place.add(1.0)
    place.runner(JobLimits(wall_seconds=0.0)).run_next()
    assert place.found(job).error == "my song é.wav took longer than 0 s: cut it"


def after(count: int, act: Callable[[], object]) -> Any:
    """Halves, and at a chunk something happens."""
    seen = []

    def process(chunks: Any) -> Any:
        seen.append(len(chunks))
        if len(seen) == count:
            act()
        return halves(chunks)

    return process


def test_a_job_that_is_canceled_stops_and_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfswa.runtime.service.runner.REPORT_SECONDS", 0.0)
    job = place.add(60.0)
    place.process = after(5, lambda: place.store.cancel(job.id, "key"))
    assert place.runner().run_next()
    assert place.found(job).state == "canceled"
    assert not job_folder(place.folder, job.id).exists()


def test_one_that_is_canceled_at_its_very_end_is_not_served(place: Place) -> None:
    job = place.add(0.5)
    place.process = after(75, lambda: place.store.cancel(job.id, "key"))
    place.runner().run_next()
    assert place.found(job).state == "canceled"
    assert not job_folder(place.folder, job.id).exists()


def test_a_worker_that_ends_gives_its_job_back(place: Place) -> None:
    job = place.add(60.0)
    place.process = after(5, place.stop.set)
    place.runner().run(threading.Event())
    found = place.found(job)
    assert (found.state, found.tries) == ("queued", 0)
    assert place.files(job) == [INPUT]
    place.process = halves
    place.stop.clear()
    place.runner().run_next()
    assert place.found(job).state == "done"


def test_what_a_killed_worker_left_is_made_anew(place: Place) -> None:
    job = place.add(1.0)
    place.store.claim("cpu")
    stems = job_folder(place.folder, job.id) / STEMS
    stems.mkdir()
    (stems / "vocals.wav").write_bytes(b"half a stem")
    place.store.recover("cpu")
    place.runner().run_next()
    found = place.found(job)
    assert (found.state, found.tries) == ("done", 2)
    assert soundfile.info(stems / "vocals.wav").frames == RATE


def test_a_job_that_another_has_now_is_left_to_that_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfswa.runtime.service.runner.REPORT_SECONDS", 0.0)
    job = place.add(60.0)

    def taken() -> None:
        place.store.recover("cpu")
        place.store.claim("other")

    place.process = after(5, taken)
    place.runner().run_next()
    found = place.found(job)
    assert (found.state, found.tries) == ("running", 2)
    assert INPUT in place.files(job)


def test_a_job_is_taken_as_soon_as_somebody_says_so(place: Place) -> None:
    woken = threading.Event()
    thread = threading.Thread(target=place.runner().run, args=(woken,))
    thread.start()
    job = place.add(0.5)
    woken.set()
    for _ in range(60_000):
        if place.found(job).state == "done":
            break
        threading.Event().wait(0.001)
    assert place.found(job).state == "done"
    place.stop.set()
    woken.set()
    thread.join(600)
    assert not thread.is_alive()


def test_one_whose_worker_was_killed_is_alone() -> None:
    company, inside, most = Company(), [], []
    lock = threading.Lock()

    def work(*, alone: bool) -> None:
        with company.joined(alone=alone):
            with lock:
                inside.append(alone)
                most.append(list(inside))
            threading.Event().wait(0.01)
            with lock:
                inside.remove(alone)

    threads = [threading.Thread(target=work, kwargs={"alone": place % 3 == 0}) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    assert len(most) == 12
    assert all(together == [True] for together in most if True in together)
    assert any(len(together) > 1 for together in most)


@pytest.mark.parametrize("format_", ["wav", "wav16", "flac", "ogg", "mp3", "m4a"])
@pytest.mark.parametrize("seconds", [0.0, 1 / RATE])
def test_hardly_any_sound_has_stems_and_outlines_too(place: Place, format_: str, seconds: float) -> None:
    job = place.add(seconds, format=format_)
    place.runner().run_next()
    found = place.found(job)
    assert (found.state, found.error) == ("done", None)
    outline = json.loads((job_folder(place.folder, job.id) / PEAKS / "vocals").read_text())
    assert len(outline["lows"]) == len(outline["highs"]) <= 64
