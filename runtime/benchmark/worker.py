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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfswa.runtime.stream.separator import Separator


def work() -> None:
    """Answer until the input ends."""
    import numpy as np

    from tfswa.runtime.backends import BackendOptions
    from tfswa.runtime.backends.torchscript import matrix_gflop_per_s
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.machine import gpu_memory_mb, peak_memory_mb
    from tfswa.runtime.stream.arrangement import arrange_one
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
        separator = arrange_one(given["model"]).load(
            lambda model: Separator(model, backend=given["backend"], options=options, batch=given["batch"])
        )
        opened = time.perf_counter()
        calls = [_call(part, given["batch"]) for part in separator.parts]
        for call in calls:
            call()
    except (TfxError, MemoryError) as error:
        _say({"error": " ".join(str(error).split()) or type(error).__name__})
        return
    first = time.perf_counter()
    versions = dict(item for part in separator.parts for item in part.session.versions.items())
    answer: dict[str, Any] = {"open_s": opened - start, "first_s": first - opened}
    answer |= {"session": separator.description, "versions": versions}
    after = gpu_memory_mb(given["device"])
    answer["gpu_memory_mb"] = None if before is None or after is None else after - before
    _say({**answer, "memory_mb": peak_memory_mb()})
    for line in sys.stdin:
        word, *rest = json.loads(line)
        try:
            if word == "run":
                answer = {"seconds": [_timed(separator.parts, calls) for _ in range(rest[0])]}
            else:
                source, target = rest
                np.save(target, separator.separate(np.load(source)))
                answer = {}
        except (TfxError, MemoryError) as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        _say({**answer, "memory_mb": peak_memory_mb()})


def _call(part: Separator, batch: int) -> Callable[[], object]:
    """A call of a model's network, on noise."""
    import numpy as np

    from tfswa.runtime.model.spec import INPUT
    from tfswa.runtime.stream.codec import first_tensors

    shape = part.spec.input_shape(batch)
    tensors = first_tensors(
        part.spec, {INPUT: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    )
    return lambda: part.infer(tensors)


def _timed(parts: Sequence[Separator], calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of all networks for the audio that a call of the first one takes."""
    total = 0.0
    for part, call in zip(parts, calls, strict=True):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        total += took * parts[0].spec.chunk_samples / part.spec.chunk_samples
    return total


def _say(answer: dict[str, Any]) -> None:
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


if __name__ == "__main__":
    # Answers go where the output went; what libraries print goes beside the errors.
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work()
