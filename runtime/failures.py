"""One item of many that failed, and its line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tfswa.runtime.errors import TfxError, reason


def of_library(error: BaseException) -> bool:
    """Whether a library raised it, not a fault of our own code.

    Libraries written in C++ raise RuntimeError and MemoryError, or types of their own.
    """
    own = type(error).__module__.partition(".")[0] in ("builtins", "tfswa")
    return isinstance(error, (RuntimeError, MemoryError)) or not own


def is_fault(error: BaseException) -> bool:
    """Whether it is a fault of our own, whose traceback is worth a report."""
    return not isinstance(error, (TfxError, OSError)) and not of_library(error)


@dataclass(frozen=True)
class Failure:
    """An item that failed.

    Attributes:
        item: what a user calls it: the path of a file, the name of a song.
        error: why; any exception.
    """

    item: str
    error: Exception

    @property
    def told(self) -> str:
        """The error in one line that names the item."""
        error = self.error
        if isinstance(error, MemoryError):
            line = "out of memory: use a smaller --batch, or close other programs"
        elif isinstance(error, OSError):
            line = reason(error) if error.filename is None else f"{error.filename}: {reason(error)}"
        elif is_fault(error):
            line = f"{type(error).__name__}: {reason(error)}: a fault in tfx"
        else:
            line = str(error)
        named = re.search(rf"(?<!\w){re.escape(self.item)}(?!\w)", line)
        return line if named else f"{self.item}: {line}"

    def to_dict(self) -> dict[str, str]:
        """Its entry in ``errors`` of ``--json``."""
        return {"input": self.item, "error": self.told}
