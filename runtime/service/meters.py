"""Numbers of the service in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

WorkerNumbers = Mapping[str, Any]

# of a worker's status: name, what it is
WORKER_COUNTERS = {
    "stream_audio_seconds": ("tfx_stream_audio_seconds", "Audio that streams brought"),
    "job_audio_seconds": ("tfx_job_audio_seconds", "Audio of jobs that are done"),
    "job_wall_seconds": ("tfx_job_wall_seconds", "Time that jobs took; beside the audio: x real time"),
}
NETWORK_COUNTERS = {
    "batches": ("tfx_batches", "Batches that networks got"),
    "chunks": ("tfx_chunks", "Chunks in them; beside the batches: how full they are"),
    "waited_seconds": ("tfx_chunk_wait_seconds", "Time that chunks waited for their turn"),
    "network_seconds": ("tfx_network_seconds", "Time that networks took for batches"),
}


class Meters:
    """Counts what this process sees; the rest is asked for when somebody looks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tfx_requests",
            "Requests by route and status",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "tfx_request_seconds", "Time of requests", ("method", "route"), registry=self._registry
        )
        self.errors = Counter(
            "tfx_errors", "Errors that were answered, by kind", ("kind",), registry=self._registry
        )
        self.upload_bytes = Counter("tfx_upload_bytes", "Bytes of uploads", registry=self._registry)
        self.stream_bytes = Counter(
            "tfx_stream_bytes", "Bytes of samples", ("direction",), registry=self._registry
        )

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that is answered."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def text(
        self,
        jobs: Mapping[Any, int],
        streams: int,
        disk: tuple[int, int],
        workers: Mapping[str, tuple[int, WorkerNumbers | None]],
    ) -> bytes:
        """All numbers.

        Args:
            jobs: how many are in each state.
            streams: that are open.
            disk: bytes that jobs hold, and may hold.
            workers: by name, how often each has ended by itself, and its status, None where it has none.
        """
        registry = CollectorRegistry()
        registry.register(self._registry)
        registry.register(_Asked([*_of_service(jobs, streams, disk), *_of_workers(workers)]))
        return generate_latest(registry)


class _Asked:
    """Metrics of one moment."""

    def __init__(self, metrics: Iterable[Metric]):
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_service(jobs: Mapping[Any, int], streams: int, disk: tuple[int, int]) -> Iterator[Metric]:
    states = GaugeMetricFamily("tfx_jobs", "Jobs in each state; queued: the queue's length", labels=["state"])
    for state, count in jobs.items():
        states.add_metric([state], count)
    yield states
    yield GaugeMetricFamily("tfx_streams", "Streams that are open", value=streams)
    yield GaugeMetricFamily("tfx_data_bytes", "Bytes that jobs hold", value=disk[0])
    yield GaugeMetricFamily("tfx_data_limit_bytes", "Bytes that jobs may hold", value=disk[1])


def _of_workers(workers: Mapping[str, tuple[int, WorkerNumbers | None]]) -> Iterator[Metric]:
    up = GaugeMetricFamily("tfx_worker_up", "Whether a worker serves", labels=["worker"])
    ended = CounterMetricFamily("tfx_worker_ended", "How often it ended by itself", labels=["worker"])
    memory = GaugeMetricFamily("tfx_worker_peak_memory_bytes", "Its peak of memory", labels=["worker"])
    for name, (times, status) in workers.items():
        up.add_metric([name], status is not None)
        ended.add_metric([name], times)
        if status is not None:
            memory.add_metric([name], status["peak_memory_mb"] * 1e6)
    yield from (up, ended, memory)
    for key, (metric, what) in WORKER_COUNTERS.items():
        family = CounterMetricFamily(metric, what, labels=["worker"])
        for name, (_, status) in workers.items():
            if status is not None:
                family.add_metric([name], status[key])
        yield family
    for key, (metric, what) in NETWORK_COUNTERS.items():
        family = CounterMetricFamily(metric, what, labels=["worker", "network"])
        for name, (_, status) in workers.items():
            for place, network in enumerate(status["networks"] if status is not None else ()):
                family.add_metric([name, str(place)], network[key])
        yield family
