"""Numbers have the same limits in Python as on the command line."""

from __future__ import annotations

import re

import numpy as np
import pytest
from command_line import Tfx

from tfswa.runtime import BackendOptions, Separator
from tfswa.runtime.errors import UsageError
from tfswa.runtime.limits import MOST_BATCH, MOST_THREADS, MOST_WIENER


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1, 10**30, 1.5, "2", True, float("nan")])
def test_threads_beyond_the_limits_are_one_line(threads: object) -> None:
    line = re.escape(f"threads {threads!r} must be a whole number from 1 to {MOST_THREADS}")
    with pytest.raises(UsageError, match=f"^{line}$"):
        BackendOptions(threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [0, -1, MOST_BATCH + 1, 10**30, 1.5, "2", None, True])
def test_batches_beyond_the_limits_are_one_line_before_a_model_is_opened(batch: object) -> None:
    line = re.escape(f"batch {batch!r} must be a whole number from 1 to {MOST_BATCH}")
    with pytest.raises(UsageError, match=f"^{line}$"):
        Separator("no such model", batch=batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("wiener", [-1, MOST_WIENER + 1, 1.5, "2", None, True, float("nan")])
def test_iterations_beyond_the_limits_are_one_line_before_a_model_is_opened(wiener: object) -> None:
    line = re.escape(f"wiener {wiener!r} must be a whole number from 0 to {MOST_WIENER}")
    with pytest.raises(UsageError, match=f"^{line}$"):
        Separator("no such model", wiener=wiener)  # type: ignore[arg-type]


def test_the_limits_themselves_and_whole_numbers_of_numpy_are_taken() -> None:
    for threads in (None, 1, MOST_THREADS, np.int64(1)):
        assert BackendOptions(threads=threads).threads == threads  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "least", "most"),
    [("--threads", 1, MOST_THREADS), ("--batch", 1, MOST_BATCH), ("--wiener", 0, MOST_WIENER)],
)
def test_the_command_line_has_the_same(tfx: Tfx, option: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1):
        done = tfx("separate", "song.wav", option, value)
        assert (done.code, done.out) == (2, "")
        assert f"{value} is not in the range {least}<=x<={most}" in done.lines[-1]
