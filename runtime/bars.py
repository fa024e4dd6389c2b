"""Bars of rich on stderr, for every command that draws one: on a terminal only.

``escaped_output`` stands between a command and the terminal. rich's own escape sequences must go past it, and
what is printed while a bar is drawn must not.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from tfswa.runtime.escape import escaping


class Bars(Progress):
    """rich's bars; lines that are printed meanwhile stand above them, escaped.

    Args:
        columns: as rich takes them; names in them go through ``shown``.
        transient: remove the bars at the end.
    """

    def __init__(self, *columns: ProgressColumn, transient: bool = True):
        console = Console(file=getattr(sys.stderr, "rich_proxied_file", sys.stderr), stderr=True)
        self.on_terminal = console.is_terminal
        super().__init__(
            *columns,
            console=console,
            transient=transient,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else it is a user's file
            disable=not console.is_terminal,
        )

    def start(self) -> None:
        """Draw. rich puts streams of its own in the place of stdout and stderr until ``stop``."""
        before = sys.stdout, sys.stderr
        super().start()
        if sys.stdout is not before[0]:
            sys.stdout = escaping(sys.stdout)
        if sys.stderr is not before[1]:
            sys.stderr = escaping(sys.stderr)
