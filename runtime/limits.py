"""What numbers a user may choose, on the command line and in Python alike."""

from __future__ import annotations

import os
from numbers import Integral

from tfswa.runtime.errors import UsageError

# Backends' threads spin while they wait: with many times more than cores a run does not end.
MOST_THREADS = max(8, os.cpu_count() or 1)
MOST_BATCH = 65536
MOST_WIENER = 10  # iterations; usual are one or two


def check_number(name: str, value: object, most: int, *, least: int = 1) -> None:
    """Refuse what is no whole number from ``least`` to ``most``.

    Raises:
        UsageError: names the value and the limits.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        raise UsageError(f"{name} {value!r} must be a whole number from {least} to {most}")
