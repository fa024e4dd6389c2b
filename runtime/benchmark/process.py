"""A process that is asked, waited for, and ended: lines to it, lines of JSON from it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any


class Lost(Exception):
    """A process that will not answer, and why."""


class Worker:
    """A process that answers a line with a line of JSON; its owner closes it.

    Args:
        command: to start.
        extra: environment variables beside our own.
    """

    def __init__(self, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(extra or {})},
            start_new_session=True,  # what it starts dies with it, and Ctrl-C reaches its owner alone
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
