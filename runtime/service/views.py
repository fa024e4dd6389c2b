"""What the service answers, as JSON; the OpenAPI page is made of these."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from tfswa.runtime.service.store import Job, State


class StemView(BaseModel):
    """A finished stem."""

    bytes: int
    peak: float = Field(description="Largest absolute sample; full scale is 1.")
    clipped: int = Field(description="Samples beyond full scale.")
    url: str
    peaks_url: str


class ResultView(BaseModel):
    """What came of a job."""

    stems: dict[str, StemView]
    seconds: float = Field(description="Of audio.")
    wall_seconds: float = Field(description="That it took.")
    sample_rate: int
    gain: float = Field(description="By which all stems were turned down, so that none clips.")
    recomputed: list[list[float]] = Field(description="Start and end of chunks that were computed again.")
    damaged: bool = Field(description="Whether sound of the input is missing or may be wrong.")
    notes: list[str]
    zip_url: str


class JobView(BaseModel):
    """A job as it stands."""

    id: str
    state: State
    model: str
    name: str = Field(description="Of the file, as it was sent.")
    format: str
    stems: list[str] | None = Field(description="Those that were asked for; null for all.")
    made: str = Field(description="When, ISO 8601 in UTC.")
    seconds_done: float = Field(description="Of audio.")
    seconds_total: float | None = Field(description="Of audio, where it is known.")
    seconds_left: float | None = Field(description="Until it is done, about, where that can be told.")
    error: str | None
    result: ResultView | None
    url: str

    @classmethod
    def of(cls, job: Job) -> JobView:
        """How a job is shown to its owner."""
        url = f"/v1/separations/{job.id}"
        return cls(
            id=job.id,
            state=job.state,
            model=str(job.request["model"]),
            name=str(job.request["name"]),
            format=str(job.request["format"]),
            stems=job.request.get("stems"),
            made=datetime.fromtimestamp(job.made, UTC).isoformat(timespec="milliseconds"),
            seconds_done=job.seconds_done,
            seconds_total=job.seconds_total,
            seconds_left=_left(job),
            error=job.error,
            result=None if job.result is None else _result(job.result, url),
            url=url,
        )


class JobsView(BaseModel):
    """Jobs, the newest first."""

    separations: list[JobView]
    next: str | None = Field(description="For `before`, where there are more.")


class ModelView(BaseModel):
    """A model that is served."""

    name: str
    stems: list[str]
    channels: int
    sample_rate: int
    backend: str
    evidence: list[str] = Field(description="Of parity, of each network.")


class ModelsView(BaseModel):
    """All of them; the first is the default."""

    models: list[ModelView]


class ErrorView(BaseModel):
    """Anything that went wrong."""

    error: str = Field(description="What is wrong, the values that disagree, what to do.")


def _left(job: Job) -> float | None:
    """Seconds until a job is done, if it goes on as it did."""
    if job.state != "running" or not job.seconds_total or not job.seconds_done or job.started is None:
        return None
    share = job.seconds_done / job.seconds_total
    return round(max(0.0, (time.time() - job.started) * (1 - share) / share), 1)


def _result(result: Any, url: str) -> ResultView:
    stems = {
        stem: StemView(
            bytes=told["bytes"],
            peak=told["peak"],
            clipped=told["clipped"],
            url=f"{url}/stems/{stem}",
            peaks_url=f"{url}/stems/{stem}/peaks",
        )
        for stem, told in result["stems"].items()
    }
    held = {name: value for name, value in result.items() if name != "stems"}
    return ResultView(stems=stems, zip_url=f"{url}/stems.zip", **held)
