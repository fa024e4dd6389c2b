"""How far ``tfx parity`` is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import click

from tfswa.runtime.escape import shown

if TYPE_CHECKING:
    from tfswa.runtime.parity.pace import ParityStep

EVERY_SECONDS = 10.0  # between lines where there is no terminal, if no song begins


class ParityProgress:
    """Tells on stderr what is measured, by what, and how long the rest takes; a context manager."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

        from tfswa.runtime.bars import Bars

        self._bar = Bars(
            BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)
        )
        self._terminal = self._bar.on_terminal
        self._task = self._bar.add_task("", total=1, visible=False)
        self._last, self._songs = -EVERY_SECONDS, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: ParityStep) -> None:
        """What is under way."""
        if self._terminal:
            words = shown(str(step).partition(": ")[2])
            self._bar.update(
                self._task, completed=step.number - 1, total=step.items, description=words, visible=True
            )
            return
        song, now = step.number if step.real else 0, time.monotonic()
        if song > self._songs or now - self._last >= EVERY_SECONDS:
            click.echo(str(step), err=True)
            self._last, self._songs = now, max(song, self._songs)
