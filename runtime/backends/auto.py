"""What ``--backend auto`` takes: the fastest that was measured on this machine, else the first that works.

``tfx bench --auto`` measures and keeps a table for each model in the user's cache. A row holds for one CPU
and number of threads, or for one GPU, and for the library versions that were measured; only what met the gate
of its precision has one. Precision is never chosen: it is the one asked for, float32 by default. Where no
device is asked for, GPUs are tried before the CPU.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa.runtime.backends import BackendOptions, Session, compiles, open_session
from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import BackendUnavailable, TfxError, UsageError
from tfswa.runtime.files import caches
from tfswa.runtime.machine import cores, cpu_name, gpu_name, user_cache
from tfswa.runtime.model.bundle import writable

if TYPE_CHECKING:
    from tfswa.runtime.benchmark.bench import Benchmark, Plan
    from tfswa.runtime.model.opening import Model

PREFERENCE = ("ort", "torchscript", "aotinductor", "torch")
ON_GPU = ("trt", "ort", "torch")
_CONDITIONS = ("device", "place", "threads")  # what a measurement holds for

logger = logging.getLogger(__name__)


def choose(model: Model, options: BackendOptions) -> Session:
    """Open the fastest backend that was measured here, or the first that has an artifact.

    Raises:
        BackendUnavailable: none can run the model; every reason is given.
    """
    for row in _measured(model, options):
        try:
            session = open_session(row["backend"], model, replace(options, device=row["device"]))
        except (BackendUnavailable, UsageError):  # UsageError: what registered it is gone
            continue
        if dict(session.versions) == row["versions"]:
            return session
        session.close()
    if options.device == "auto":
        if (found := _on_gpu(model, options)) is not None:
            return found
        options = replace(options, device="cpu")
    reasons = []
    for name in PREFERENCE:
        try:
            return open_session(name, model, options)
        except BackendUnavailable as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailable(f"no backend can run {model.name}: {'; '.join(reasons)}")


def _on_gpu(model: Model, options: BackendOptions) -> Session | None:
    """The first backend that runs the model on a GPU; None where there is no GPU, or none of them can."""
    name = gpu_name()
    if name is None:
        return None
    for backend in ON_GPU:
        try:
            return open_session(backend, model, replace(options, device="cuda"))
        except TfxError as error:
            logger.info("%s does not run on %s: %s", backend, name, error)
    return None


def why(model: Model, options: BackendOptions, session: Session) -> str:
    """Say in a few words why ``choose`` took this one."""
    rows = _measured(model, options)
    for place, row in enumerate(rows, 1):
        if row["backend"] == session.name and dict(session.versions) == row["versions"]:
            rank = "the fastest" if place == 1 else f"number {place}"
            return f"{rank} of {len(rows)} measured here, {row['x_realtime']:g} x real time"
    return "speeds not measured here, see `tfx bench --auto`"


def record(model: Model, plan: Plan, found: Benchmark) -> Path:
    """Keep what was measured, in place of what was measured before on the same CPU or GPU.

    Backends that compile for minutes are left out: nobody who says ``auto`` expects to wait for that. So are
    servers: nobody who says ``auto`` expects audio to leave the machine.

    Returns:
        The table's file.

    Raises:
        UsageError: the model is an exported file, or the user's cache cannot be written.
    """
    path = table_of(model)
    here = [row for row in found.rows if "://" not in row.device]
    replaced = [_conditions(row.device, plan.threads) for row in here]
    fresh = [{**row.to_dict(), **place} for row, place in zip(here, replaced, strict=True)]
    rows = [row for row in _rows(path) if {key: row.get(key) for key in _CONDITIONS} not in replaced]
    rows += [row for row in fresh if row["x_realtime"] and row["passed"] and not compiles(row["backend"])]
    rows.sort(key=lambda row: -row["x_realtime"])
    table = {"date": found.machine["date"], "rows": rows}
    with writable(path):
        caches.put(path, json.dumps(table, indent=1).encode())
    return path


def _measured(model: Model, options: BackendOptions) -> Sequence[dict[str, Any]]:
    """Rows of the table that hold here, in the precision and on the device asked for, fastest first."""
    if model.bundle is None:
        return []
    return list(_holding(_rows(table_of(model)), options))


def _holding(rows: Sequence[dict[str, Any]], options: BackendOptions) -> Iterator[dict[str, Any]]:
    for row in rows:
        here = _conditions(row["device"], options.threads)
        if options.device not in ("auto", row["device"]) or row["precision"] != (options.precision or "fp32"):
            continue
        if here["place"] is not None and {key: row.get(key) for key in here} == here:
            yield row


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table; none where it is missing or damaged."""
    try:
        return [row for row in parse_json(caches.recall(path) or b"{}")["rows"] if _is_row(row)]
    except (ValueError, KeyError, TypeError):  # by another tfx
        return []


def _is_row(row: Any) -> bool:
    """Whether it has what a choice is made by."""
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) and row[key] for key in ("backend", "precision", "device"))
        and re.fullmatch(r"[a-z]+(:\d{1,9})?", row["device"]) is not None
        and isinstance(row.get("versions"), dict)
        and isinstance(row.get("x_realtime"), int | float)
        and 0 < row["x_realtime"] < math.inf
    )


def _conditions(device: str, threads: int | None) -> dict[str, str | int | None]:
    """What a measurement on a device holds for: a GPU by its name, a CPU by its name and the threads."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"device": device, "place": cpu_name(), "threads": threads or cores()}
    return {"device": device, "place": gpu_name(int(index or 0)), "threads": None}


def table_of(model: Model) -> Path:
    """Where a model's table is, or would be.

    Raises:
        UsageError: the model is an exported file.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file, backends are compared for bundles: name that")
    return user_cache() / "auto" / f"{model.bundle.digest[:16]}.json"
