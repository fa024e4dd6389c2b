"""Jobs in a database that outlives every process: SQLite, with a write-ahead log.

queued ──claim──> running ──finish──> done
   ^                 │ ├────fail────> failed
   │<──give_back─────┤ └──────────┐
   │<──recover───────┘            │      its worker was killed: at most 3 times, then it has failed
   └─────────────── cancel ───────┴──> canceled

A worker says its name with all it does to a job: one that was thought dead, and whose job another has
taken, changes nothing.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tfswa.runtime.errors import TfxError, UsageError, reason

VERSION = 1  # of the tables
TRIES = 3
BUSY_SECONDS = 30.0  # how long one process waits while another writes

State = Literal["queued", "running", "done", "failed", "canceled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "canceled")

_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    priority INTEGER NOT NULL,
    request TEXT NOT NULL,
    once TEXT,
    made REAL NOT NULL,
    changed REAL NOT NULL,
    started REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    seconds_done REAL NOT NULL DEFAULT 0,
    seconds_total REAL,
    result TEXT,
    error TEXT,
    UNIQUE (key, once)
);
CREATE INDEX jobs_by_state ON jobs (state, changed);
CREATE INDEX jobs_by_key ON jobs (key, number);
CREATE TABLE turns (key TEXT PRIMARY KEY, turn INTEGER NOT NULL);
"""


def new_id() -> str:
    """An id that nobody can guess: 32 hexadecimal digits."""
    return secrets.token_hex(16)


class JobConflict(UsageError):
    """An idempotency key that was given before, with another request."""


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    Attributes:
        id: 32 hexadecimal digits that nobody can guess.
        key: whose it is.
        state: see the module.
        priority: the higher goes first.
        request: what was asked for.
        made: when, in seconds since 1970.
        changed: when it last changed.
        started: when a worker took it; None before.
        tries: how often a worker took it.
        seconds_done: of the audio.
        seconds_total: of the audio; None as long as nobody knows.
        result: what came of it, once it is done.
        error: why it failed, in one line.
    """

    id: str
    key: str
    state: State
    priority: int
    request: Mapping[str, Any]
    made: float
    changed: float
    started: float | None
    tries: int
    seconds_done: float
    seconds_total: float | None
    result: Mapping[str, Any] | None
    error: str | None


class JobStore:
    """The jobs of a service; several processes may have the file open, and several threads one store.

    Args:
        path: the file; it is made where it is missing.

    Raises:
        UsageError: the file cannot be opened.
        TfxError: it is no database of jobs, damaged, or of another version of tfx.
    """

    def __init__(self, path: Path):
        self.path = path
        self._turn = threading.Lock()
        try:
            self._database = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            with self._writing() as database:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.OperationalError as error:
            raise UsageError(f"{path} cannot be opened: {reason(error)}") from error
        except sqlite3.DatabaseError as error:
            raise TfxError(f"{path} is no database of jobs ({reason(error)}): move it away") from error
        if version not in (0, VERSION):
            self.close()
            raise TfxError(
                f"{path} is of version {version}, this tfx knows {VERSION}: use the tfx that made it, "
                "or move it away"
            )

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        self._database.close()

    def add(
        self,
        key: str,
        request: Mapping[str, Any],
        *,
        priority: int = 0,
        once: str | None = None,
        job: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job; a worker may take it at once, so that its files must be there before.

        Args:
            key: whose it is.
            request: what is asked for, kept as JSON.
            priority: the higher goes first.
            once: the request's own idempotency key: a second one with it is the first one.
            job: its id, of ``new_id``; None for another one.

        Returns:
            The job, and whether it is new.

        Raises:
            JobConflict: ``once`` came before with another request.
        """
        text, now = json.dumps(request, sort_keys=True), time.time()
        with self._writing() as database:
            if once is not None:
                row = database.execute(
                    "SELECT * FROM jobs WHERE key = ? AND once = ?", (key, once)
                ).fetchone()
                if row is not None and (row["request"], row["priority"]) != (text, priority):
                    raise JobConflict(
                        f"idempotency key {once!r} came before with another request: use a new one"
                    )
                if row is not None:
                    return _job(row), False
            row = database.execute(
                "INSERT INTO jobs (id, key, priority, request, once, made, changed)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (job or new_id(), key, priority, text, once, now, now),
            ).fetchone()
        return _job(row), True

    def claim(self, worker: str) -> Job | None:
        """Take the job whose turn it is: of the highest priority, of the key whose turn was longest ago."""
        with self._writing() as database:
            row = database.execute(
                "SELECT id, jobs.key FROM jobs LEFT JOIN turns ON turns.key = jobs.key WHERE state = 'queued'"
                " ORDER BY priority DESC, COALESCE(turn, 0), number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "INSERT INTO turns SELECT ?, COALESCE(MAX(turn), 0) + 1 FROM turns WHERE true"
                " ON CONFLICT (key) DO UPDATE SET turn = excluded.turn",
                (row["key"],),
            )
            now = time.time()
            row = database.execute(
                "UPDATE jobs SET state = 'running', worker = ?, tries = tries + 1, seconds_done = 0,"
                " changed = ?, started = ? WHERE id = ? RETURNING *",
                (worker, now, now, row["id"]),
            ).fetchone()
        return _job(row)

    def report(self, job: str, worker: str, seconds_done: float, seconds_total: float | None) -> bool:
        """Say how far a running job is; False: it is not the worker's any more, who stops."""
        return self._mine(job, worker, "seconds_done = ?, seconds_total = ?", (seconds_done, seconds_total))

    def finish(self, job: str, worker: str, result: Mapping[str, Any], seconds: float) -> bool:
        """A running job is done; False: it is not the worker's any more, and what it made is for nobody.

        Args:
            job: its id.
            worker: whose it is.
            result: what came of it, kept as JSON.
            seconds: of its audio.
        """
        change = "state = 'done', result = ?, seconds_done = ?, seconds_total = ?"
        return self._mine(job, worker, change, (json.dumps(result), seconds, seconds))

    def fail(self, job: str, worker: str, error: str) -> bool:
        """A running job has failed; False as of ``finish``."""
        return self._mine(job, worker, "state = 'failed', error = ?", (error,))

    def give_back(self, job: str, worker: str) -> bool:
        """A worker that ends as it should leaves its job to another; that counts as no try."""
        return self._mine(job, worker, "state = 'queued', tries = tries - 1, worker = NULL", ())

    def recover(self, worker: str) -> tuple[list[Job], list[Job]]:
        """What a worker of this name left running when it was killed: queued again, or failed.

        Only for who knows that no such worker lives.

        Returns:
            Jobs that are queued again, and those that have failed.
        """
        now = time.time()
        with self._writing() as database:
            failed = database.execute(
                "UPDATE jobs SET state = 'failed', error = ?, changed = ?"
                " WHERE state = 'running' AND worker = ? AND tries >= ? RETURNING *",
                (f"its worker was killed {TRIES} times while it separated this", now, worker, TRIES),
            ).fetchall()
            queued = database.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, changed = ?"
                " WHERE state = 'running' AND worker = ? RETURNING *",
                (now, worker),
            ).fetchall()
        return [_job(row) for row in queued], [_job(row) for row in failed]

    def cancel(self, job: str, key: str) -> Job | None:
        """Cancel a job that has not ended; one that has stays as it is. None: this key has no such job."""
        with self._writing() as database:
            database.execute(
                "UPDATE jobs SET state = 'canceled', changed = ? WHERE id = ? AND key = ?"
                " AND state IN ('queued', 'running')",
                (time.time(), job, key),
            )
            return _found(database, job, key)

    def remove(self, job: str, key: str) -> bool:
        """Forget a job that has ended; False: this key has no such one."""
        with self._writing() as database:
            done = database.execute(
                "DELETE FROM jobs WHERE id = ? AND key = ? AND state IN ('done', 'failed', 'canceled')",
                (job, key),
            )
            return done.rowcount == 1

    def find(self, job: str, key: str) -> Job | None:
        """A job of this key; None: it has no such one."""
        with self._turn:
            return _found(self._database, job, key)

    def listed(self, key: str, *, most: int, before: str | None = None) -> list[Job]:
        """Jobs of a key, the newest first.

        Args:
            key: whose.
            most: how many at most.
            before: only those that are older than this job of the key's.
        """
        older = "AND number < (SELECT number FROM jobs WHERE id = ? AND key = ?)" if before else ""
        with self._turn:
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE key = ? {older} ORDER BY number DESC LIMIT ?",
                (key, *((before, key) if before else ()), most),
            ).fetchall()
        return [_job(row) for row in rows]

    def counts(self, key: str | None = None) -> dict[State, int]:
        """How many jobs are in each state, of a key or of all."""
        with self._turn:
            rows = self._database.execute(
                "SELECT state, COUNT(*) FROM jobs WHERE ? IS NULL OR key = ? GROUP BY state", (key, key)
            ).fetchall()
        found: dict[State, int] = dict.fromkeys(STATES, 0)
        return found | {cast(State, state): count for state, count in rows}

    def expire(self, before: float) -> list[str]:
        """Forget jobs that ended before then; their ids, so that what they left can be removed."""
        with self._writing() as database:
            rows = database.execute(
                "DELETE FROM jobs WHERE state IN ('done', 'failed', 'canceled') AND changed < ? RETURNING id",
                (before,),
            ).fetchall()
            database.execute("DELETE FROM turns WHERE key NOT IN (SELECT key FROM jobs)")
        return [row["id"] for row in rows]

    def ids(self) -> set[str]:
        """Of all jobs: what lies about and belongs to no other one was left by a kill."""
        with self._turn:
            return {row["id"] for row in self._database.execute("SELECT id FROM jobs")}

    def _mine(self, job: str, worker: str, change: str, values: Sequence[Any]) -> bool:
        """Change a running job, if it is this worker's."""
        with self._writing() as database:
            done = database.execute(
                f"UPDATE jobs SET {change}, changed = ? WHERE id = ? AND worker = ? AND state = 'running'",
                (*values, time.time(), job, worker),
            )
            return done.rowcount == 1

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All in the block is written, or nothing."""
        with self._turn:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _found(database: sqlite3.Connection, job: str, key: str) -> Job | None:
    row = database.execute("SELECT * FROM jobs WHERE id = ? AND key = ?", (job, key)).fetchone()
    return None if row is None else _job(row)


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        key=row["key"],
        state=row["state"],
        priority=row["priority"],
        request=json.loads(row["request"]),
        made=row["made"],
        changed=row["changed"],
        started=row["started"],
        tries=row["tries"],
        seconds_done=row["seconds_done"],
        seconds_total=row["seconds_total"],
        result=None if row["result"] is None else json.loads(row["result"]),
        error=row["error"],
    )
