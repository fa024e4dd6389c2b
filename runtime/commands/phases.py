"""Progress of work that has phases: a bar with the time left for each on a terminal, a line elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tfswa.runtime.escape import shown

if TYPE_CHECKING:
    from rich.progress import TaskID


class Phases:
    """Bars on stderr; ``step`` is what work is given to tell how far it is."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

        from tfswa.runtime.bars import Bars

        name = TextColumn("{task.description}", markup=False)
        self._bars = Bars(name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._terminal = self._bars.on_terminal
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Phases:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """A line above the bars."""
        click.echo(line, err=True)

    def step(self, phase: str, done: int, steps: int) -> None:
        """How many steps of a phase are done."""
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(shown(phase), total=steps)
        self._bars.update(self._tasks[phase], completed=done, total=steps)

    def announce(self, phase: str, done: int, steps: int) -> None:
        """The same for phases of minutes: where there is no terminal, their beginning is a line."""
        if phase not in self._tasks and not self._terminal:
            self.say(f"{phase}: {steps} steps")
        self.step(phase, done, steps)
