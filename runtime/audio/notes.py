"""What was found, repaired or left out while a file was read: one sentence each, nothing is only logged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

NoteKind = Literal[
    "cut", "hole", "corrupt", "rest", "length", "joined", "channels", "track", "offset", "tags"
]

NOTE_KINDS: tuple[str, ...] = get_args(NoteKind)

# C0 and C1 controls, line and paragraph separators, and marks that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Note:
    """One thing that a user should know about a file that was read.

    Attributes:
        kind: what it is about; docs/audio.md explains each.
        text: one sentence without the file's name, printable.
        damaged: whether sound is missing or may be wrong; ``--strict`` refuses the file then.
    """

    kind: NoteKind
    text: str
    damaged: bool = False

    def __str__(self) -> str:
        return self.text


def without_controls(text: str) -> str:
    """Text with its control characters taken out; tab and line breaks become spaces."""
    return _CONTROLS.sub("", re.sub(r"[\t\r\n]+", " ", text)).encode("utf-8", "replace").decode().strip()
