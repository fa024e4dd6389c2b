"""Tests wait for events. How long they may take on a busy machine is no part of what is tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HANG_SECONDS = 600.0  # an end for a test that would wait for ever, and no bound on speed


def until(happened: Callable[[], object], said: Callable[[], object] = str) -> None:
    """Wait for an event; fail with ``said()`` where it does not come."""
    limit = time.monotonic() + HANG_SECONDS
    while not happened():
        assert time.monotonic() < limit, said()
        time.sleep(0.001)


def alive(group: int) -> list[str]:
    """Processes of a group, by name; one that has ended and waits to be collected is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text(errors="replace").rpartition(")")
        except OSError:  # ended meanwhile
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state not in "ZX":
            found.append(name)
    return found


@contextmanager
def full_disk(file_bytes: int) -> Iterator[None]:
    """No file grows beyond ``file_bytes``: what a full disk looks like to a process that runs as root."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
