"""The other end of bench_trainee.py: a process that is asked, waited for, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Lost(Exception):
    """A process that will not answer, and why."""


class Trainee:
    """A process that answers a line with a line of JSON; its owner closes it.

    Args:
        command: to start.
        extra: environment variables beside our own.
    """

    def __init__(self, command: Sequence[str], extra: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(extra or {})},
            start_new_session=True,  # a compiler's workers die with it
        )

    def ask(self, what: str = "", seconds: float | None = None) -> dict[str, Any]:
        """Send a line, or none, and wait for the answer.

        Raises:
            Lost: no answer within ``seconds``, the process died, or it says that it failed.
        """
        sent, heard = self._process.stdin, self._process.stdout
        assert sent is not None
        assert heard is not None
        if what:
            with suppress(BrokenPipeError):
                sent.write(f"{what}\n")
                sent.flush()
        if not select.select([heard], [], [], seconds)[0]:
            raise Lost(f"not within {seconds:g} s")
        line = heard.readline()
        if not line:
            raise Lost(f"died, exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Lost(answer["error"])
        return answer

    def close(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
