"""What ``--backend auto`` takes: the fastest that was measured on this machine, else the first that works.

``tfx bench --auto`` measures and keeps a table for each model in the user's cache. It holds for one CPU, one
number of threads and the library versions that were measured, and names only what met the gate of its
precision. Precision is never chosen: it is the one asked for, float32 by default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa.runtime.backends import BackendOptions, Session, compiles, open_session
from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.files import caches
from tfswa.runtime.machine import cores, cpu_name, user_cache
from tfswa.runtime.model.bundle import writable

if TYPE_CHECKING:
    from tfswa.runtime.benchmark.bench import Benchmark, Plan
    from tfswa.runtime.model.opening import Model

PREFERENCE = ("ort", "torchscript", "torch")


def choose(model: Model, options: BackendOptions) -> Session:
    """Open the fastest backend that was measured here, or the first that has an artifact.

    Raises:
        BackendUnavailable: none can run the model; every reason is given.
    """
    for row in _measured(model, options):
        try:
            session = open_session(row["backend"], model, options)
        except (BackendUnavailable, UsageError):  # UsageError: what registered it is gone
            continue
        if dict(session.versions) == row["versions"]:
            return session
        session.close()
    reasons = []
    for name in PREFERENCE:
        try:
            return open_session(name, model, options)
        except BackendUnavailable as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailable(f"no backend can run {model.name}: {'; '.join(reasons)}")


def why(model: Model, options: BackendOptions, session: Session) -> str:
    """Say in a few words why ``choose`` took this one."""
    rows = _measured(model, options)
    for place, row in enumerate(rows, 1):
        if row["backend"] == session.name and dict(session.versions) == row["versions"]:
            rank = "the fastest" if place == 1 else f"number {place}"
            return f"{rank} of {len(rows)} measured here, {row['x_realtime']:g} x real time"
    return "not measured here, see `tfx bench --auto`"


def record(model: Model, plan: Plan, found: Benchmark) -> Path:
    """Keep what was measured, in place of what was measured before.

    Backends that compile for minutes are left out: nobody who says ``auto`` expects to wait for that.

    Returns:
        The table's file.

    Raises:
        UsageError: the model is an exported file, or the user's cache cannot be written.
    """
    path = table_of(model)
    fit = [row for row in found.rows if row.x_realtime and row.passed and not compiles(row.backend)]
    rows = [row.to_dict() for row in fit]
    rows.sort(key=lambda row: -row["x_realtime"])
    table = {**_conditions(plan.device or "cpu", plan.threads), "date": found.machine["date"], "rows": rows}
    with writable(path):
        caches.put(path, json.dumps(table, indent=1).encode())
    return path


def _measured(model: Model, options: BackendOptions) -> Sequence[dict[str, Any]]:
    """Rows of the table in the precision asked for, fastest first; none where it does not hold."""
    if model.bundle is None:
        return []
    kept = caches.recall(table_of(model))
    try:
        table = json.loads(kept or b"{}")
        wanted = _conditions(options.device, options.threads)
        if {key: table[key] for key in wanted} != wanted:
            return []
        rows = [row for row in table["rows"] if row["precision"] == (options.precision or "fp32")]
        return [row for row in rows if row["backend"] and row["versions"] and row["x_realtime"]]
    except (ValueError, KeyError, TypeError):  # by another tfx
        return []


def _conditions(device: str, threads: int | None) -> dict[str, str | int]:
    return {"cpu": cpu_name(), "device": device, "threads": threads or cores()}


def table_of(model: Model) -> Path:
    """Where a model's table is, or would be.

    Raises:
        UsageError: the model is an exported file.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file, backends are compared for bundles: name that")
    return user_cache() / "auto" / f"{model.bundle.digest[:16]}.json"
