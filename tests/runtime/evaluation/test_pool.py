"""Processes that measure end with the one that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import alive, until

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
    until(lambda: not alive(parent.pid), said=lambda: alive(parent.pid))
