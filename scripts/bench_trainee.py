"""One training process, driven step by step by bench_training.py.

    python bench_trainee.py RECIPE DEVICE [KEY=VALUE ...]

It answers with one line of JSON when it is ready, and one for each line that it reads:

    step N  N optimizer steps on a batch that stays the same
    load N  N batches from a loader with one worker, nothing else running
    feed N  N steps on batches from such a loader
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tfswa.runtime.backends.torchscript import torch_device
from tfswa.runtime.errors import TfxError
from tfswa.runtime.machine import peak_memory_mb
from tfswa.train.config_files import load_config
from tfswa.train.data.loader import Batch, batches
from tfswa.train.loop import Run

RATE = 1e-4  # learning rate
FEED_WARM_UP = 3  # steps in which the batches loaded ahead are used up


class Trainee:
    """A run of which nothing but steps is wanted.

    Args:
        recipe: the configuration.
        device: where to train.
        overrides: of the configuration.
        work: for what a run writes.
    """

    def __init__(self, recipe: Path, device: torch.device, overrides: list[str], work: Path) -> None:
        self.config = load_config(recipe, overrides)
        self.run = Run(self.config, work, device)
        self.run.start()
        self.cuda = device.type == "cuda"
        self.batch = next(self._batches(1, workers=0))

    def ready(self) -> dict[str, Any]:
        """What the figures hold for."""
        optim = self.config.optim
        return {
            "device": torch.cuda.get_device_name() if self.cuda else "cpu",
            "precision": optim.precision,
            "batch": optim.batch,
            "frames": optim.frames,
            "chunk_seconds": self.run.curriculum.samples / self.run.spec.stft.sample_rate,
            "threads": torch.get_num_threads(),
            "parameters": self.run.spec.parameters,
            "memory_mb": self._peak_mb(),
        }

    def step(self, count: int) -> dict[str, Any]:
        """Take steps, then give memory back: other modes' processes are to fit beside this one."""
        steps = []
        for _ in range(count):
            seconds, row = self._train(self.batch)
            steps.append({"seconds": seconds, "loss": row["loss"], "gradient_norm": row["gradient_norm"]})
        answer = {"steps": steps, "memory_mb": self._peak_mb()}
        if self.cuda:
            torch.cuda.empty_cache()
        with suppress(OSError, AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)
        return answer

    def load(self, count: int) -> dict[str, Any]:
        """Seconds a batch, when nobody waits for anything but the loader."""
        source = self._batches(count + 1, workers=1)
        next(source)
        begun = time.perf_counter()
        for _ in source:
            pass
        return {"seconds": (time.perf_counter() - begun) / count}

    def feed(self, count: int) -> dict[str, Any]:
        """Seconds of each step, and before it of waiting for its batch."""
        waits, steps = [], []
        source = self._batches(FEED_WARM_UP + count, workers=1)
        for _ in range(FEED_WARM_UP + count):
            begun = time.perf_counter()
            batch = next(source)
            waits.append(time.perf_counter() - begun)
            steps.append(self._train(batch)[0])
        return {"wait_seconds": waits[FEED_WARM_UP:], "step_seconds": steps[FEED_WARM_UP:]}

    def _train(self, batch: Batch) -> tuple[float, dict[str, float]]:
        begun = time.perf_counter()
        row = self.run.trainer.train(batch, RATE)
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun, row

    def _batches(self, count: int, workers: int) -> Iterator[Batch]:
        size, samples = self.config.optim.batch, self.run.curriculum.samples
        keys = ([(step * size + item, samples) for item in range(size)] for step in range(count))
        return batches(self.run.chunks, keys, workers, pin=self.cuda)

    def _peak_mb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e6 if self.cuda else peak_memory_mb()


def main() -> None:
    recipe, device, *overrides = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    # Where memory runs out, the kernel is to end this process and no other.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers)

    try:
        with tempfile.TemporaryDirectory() as work:
            trainee = Trainee(Path(recipe), torch_device(device), overrides, Path(work))
            tell(trainee.ready())
            for line in sys.stdin:
                what, count = line.split()
                tell(getattr(trainee, what)(int(count)))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        tell({"error": f"{type(error).__name__}: {first}"})
        if not isinstance(error, TfxError):
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
