"""What an owner is shown of a job."""

from __future__ import annotations

import dataclasses
import time

import pytest

from tfswa.runtime.service.store import Job
from tfswa.runtime.service.views import JobView

JOB = Job(
    id="0" * 32,
    key="one",
    state="queued",
    priority=0,
    request={"model": "plain", "name": "song.wav", "format": "wav", "stems": ["vocals"], "sha256": "ab"},
    made=0.0,
    changed=0.0,
    started=None,
    tries=0,
    seconds_done=0.0,
    seconds_total=None,
    result=None,
    error=None,
)


def test_a_job_that_waits_shows_what_was_asked_for_and_no_key() -> None:
    shown = JobView.of(JOB).model_dump()
    assert (shown["state"], shown["model"], shown["name"]) == ("queued", "plain", "song.wav")
    assert (shown["stems"], shown["seconds_left"], shown["result"]) == (["vocals"], None, None)
    assert shown["made"] == "1970-01-01T00:00:00.000+00:00"
    assert shown["url"] == f"/v1/separations/{JOB.id}"
    assert not {"key", "sha256", "priority", "tries"} & set(shown)


def test_the_time_left_is_that_of_the_rest_at_the_same_pace() -> None:
    running = dataclasses.replace(
        JOB, state="running", started=time.time() - 10, seconds_done=25.0, seconds_total=100.0
    )
    assert JobView.of(running).seconds_left == pytest.approx(30, abs=5)
    for unknown in ({"seconds_total": None}, {"seconds_done": 0.0}, {"started": None}):
        assert JobView.of(dataclasses.replace(running, **unknown)).seconds_left is None


def test_a_job_that_is_done_shows_where_its_stems_are() -> None:
    result = {
        "stems": {"vocals": {"file": "vocals.wav", "bytes": 9, "peak": 0.5, "clipped": 0}},
        "seconds": 3.0,
        "wall_seconds": 1.0,
        "sample_rate": 8000,
        "gain": 1.0,
        "recomputed": [[0.0, 1.0]],
        "damaged": False,
        "notes": [],
    }
    shown = JobView.of(dataclasses.replace(JOB, state="done", result=result)).result
    assert shown is not None
    assert (shown.seconds, shown.recomputed) == (3.0, [[0.0, 1.0]])
    assert shown.zip_url == f"/v1/separations/{JOB.id}/stems.zip"
    assert shown.stems["vocals"].model_dump() == {
        "bytes": 9,
        "peak": 0.5,
        "clipped": 0,
        "url": f"/v1/separations/{JOB.id}/stems/vocals",
        "peaks_url": f"/v1/separations/{JOB.id}/stems/vocals/peaks",
    }
