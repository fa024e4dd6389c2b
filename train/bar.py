"""What ``tfx train`` says while it works: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from tfswa.runtime.escape import shown
from tfswa.runtime.table import decimals

if TYPE_CHECKING:
    from tfswa.train.loop import TrainingProgress

QUIET_SECONDS = 20.0  # after so long without a line the next step is told: at least one line in 30 s


class TrainingBar:
    """Progress on stderr: a bar on a terminal; elsewhere a line every 20 s and each validation.

    Args:
        clock: seconds, for the time left and for when to say something.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        from tfswa.runtime.bars import Bars

        self.bar = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
            transient=False,
        )
        self.live, self.clock = self.bar.on_terminal, clock
        self.task = self.bar.add_task("starting", total=None, figures="")
        self._told = clock()
        self._began: tuple[float, int] | None = None  # when the first step of this run was done, and which

    def __enter__(self) -> TrainingBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def doing(self, what: str, done: int, total: int) -> None:
        """Work between steps: decoding, validating; ``done`` of ``total`` are ready."""
        text = f"{shown(what)} {done}/{total}"
        if self.live:
            self.bar.update(self.task, description=text)
        elif self._due():
            self._say(text)

    def report(self, progress: TrainingProgress) -> None:
        """Take in one step; see ``loop.TrainingProgress``."""
        now, first = self.clock(), self._began is None
        if first:
            self._began = (now, progress.step)
        place = f"step {progress.step}/{progress.steps}"
        figures = f"loss {progress.loss:.4f}  {progress.audio_seconds_per_second:.1f} x real time"
        if self.live:
            self.bar.update(
                self.task,
                description=place,
                completed=progress.step,
                total=progress.steps,
                figures=figures,
            )
        if progress.scores is not None:
            text = "  ".join(scored(name, value) for name, value in progress.scores.items())
            quiet = silent_songs(progress.left_out)
            self._say(f"{place}  loss {progress.loss:.4f}  validation  {text or 'nothing to score'}{quiet}")
        elif not self.live and (first or self._due()):
            self._say(f"{place}  {figures}{self._left(progress, now)}")

    def _due(self) -> bool:
        return self.clock() - self._told >= QUIET_SECONDS

    def _say(self, line: str) -> None:
        self._told = self.clock()
        if self.live:
            self.bar.console.print(shown(line), highlight=False, markup=False)
        else:
            click.echo(line, err=True)

    def _left(self, progress: TrainingProgress, now: float) -> str:
        """Time left, from the steps of this run: ``  12 min left``."""
        assert self._began is not None
        began, first = self._began
        done = progress.step - first
        return f"  {spoken((now - began) / done * (progress.steps - progress.step))} left" if done else ""


def spoken(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def scored(name: str, value: float) -> str:
    """``SDR vocals 6.32 dB``; what is not a stem's SDR is a plain number."""
    return f"{name} {value:.4f}" if name == "reconstruction" else f"SDR {name} {decimals(value, 2)} dB"


def silent_songs(left_out: Mapping[str, int]) -> str:
    """``  (left out: vocals of 2 songs)``; empty where nothing is."""
    parts = [f"{name} of {count} song{'s'[: count > 1]}" for name, count in left_out.items()]
    return f"  (left out: {', '.join(parts)})" if parts else ""
