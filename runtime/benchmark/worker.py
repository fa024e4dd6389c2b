"""The process that runs one backend for ``tfx bench``, or measures the machine's ceiling.

What it is to do comes as JSON: its one argument, then lines. Answers are lines of JSON too, or
``{"error": why}``::

    start                     {"open_s", "first_s", "session", "versions", "memory_mb", "gpu_memory_mb"},
                              or {"gflop_per_s"}
    ["run", 3]                {"seconds": [3 of them], "memory_mb"}
    ["song", IN.npy, OUT.npy] [C, N] is separated to [S, C, N]; {"memory_mb"}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def work() -> None:
    """Answer until the input ends."""
    import numpy as np

    from tfswa.runtime.backends import BackendOptions
    from tfswa.runtime.backends.torchscript import matrix_gflop_per_s
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.machine import gpu_memory_mb, peak_memory_mb
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.model.spec import INPUT
    from tfswa.runtime.stream.codec import first_tensors
    from tfswa.runtime.stream.separator import Separator

    given = json.loads(sys.argv[1])
    if "ceiling" in given:
        try:
            ceiling = matrix_gflop_per_s(given["ceiling"], given["threads"], given["device"])
            _say({"gflop_per_s": ceiling})
        except TfxError as error:
            _say({"error": str(error)})
        return
    before = gpu_memory_mb(given["device"])
    options = BackendOptions(given["precision"], given["device"], given["threads"])
    start = time.perf_counter()
    try:
        separator = Separator(
            open_model(given["model"]), backend=given["backend"], options=options, batch=given["batch"]
        )
        opened = time.perf_counter()
        spec, session = separator.spec, separator.session
        random = np.random.default_rng(0)
        items = {INPUT: random.standard_normal(spec.input_shape(given["batch"]), dtype=np.float32)}
        tensors = first_tensors(spec, items)
        separator.infer(tensors)
    except (TfxError, MemoryError) as error:
        _say({"error": " ".join(str(error).split()) or type(error).__name__})
        return
    first = time.perf_counter()
    answer: dict[str, Any] = {"open_s": opened - start, "first_s": first - opened}
    answer |= {"session": separator.description, "versions": dict(session.versions)}
    after = gpu_memory_mb(given["device"])
    answer["gpu_memory_mb"] = None if before is None or after is None else after - before
    _say({**answer, "memory_mb": peak_memory_mb()})
    for line in sys.stdin:
        word, *rest = json.loads(line)
        try:
            if word == "run":
                answer = {"seconds": [_timed(separator.infer, tensors) for _ in range(rest[0])]}
            else:
                source, target = rest
                np.save(target, separator.separate(np.load(source)))
                answer = {}
        except (TfxError, MemoryError) as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        _say({**answer, "memory_mb": peak_memory_mb()})


def _timed(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _say(answer: dict[str, Any]) -> None:
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


if __name__ == "__main__":
    # Answers go where the output went; what libraries print goes beside the errors.
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work()
