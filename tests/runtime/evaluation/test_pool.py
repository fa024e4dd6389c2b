"""Processes that measure end with the one that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, time
from tfswa.runtime.evaluation.pool import Workers

with Workers(2) as workers:
    workers.submit(time.sleep, 0.1)
    print(workers.submit(os.getpid).result(), flush=True)
    for _ in range(4):
        workers.submit(time.sleep, 600)
    time.sleep(600)
"""


def running(group: int) -> list[str]:
    """Processes of a group; one that has ended and waits to be collected is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # ended meanwhile
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(kind: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    assert os.getpgid(worker) == parent.pid
    os.kill(parent.pid, kind)  # it alone
    parent.wait()
    deadline = time.monotonic() + 120  # for a machine under load
    while running(parent.pid):
        assert time.monotonic() < deadline, running(parent.pid)
        time.sleep(0.02)
