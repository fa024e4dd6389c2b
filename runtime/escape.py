r"""Text on its way out: names, tags and errors hold whatever their makers put there.

A name may hold an escape sequence that a terminal obeys, a byte that is no UTF-8, a line break, or a ``|``.
What cannot be shown as it is becomes ``\x1b``, ``\u202e`` and the like. File names on disk are never changed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

# C0 and C1 controls, line separators, what turns the direction of writing around, halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LAYOUT = frozenset("\n\t")  # what our own lines and tables are made with
_BYTES = range(0xDC80, 0xDD00)  # how Python holds a byte of a file name that is no UTF-8 (PEP 383)


def shown(text: object) -> str:
    """One line that any terminal, XML or log can take."""
    return _UNSAFE.sub(_code, str(text))


def markdown_text(text: object) -> str:
    """Text in Markdown, also in a cell of a table."""
    safe = shown(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("|", "\\|")


def plot_text(text: object) -> str:
    """Text for matplotlib, which takes what is between two ``$`` for a formula, and fails on a wrong one."""
    return shown(text).replace("$", r"\$")


def html_ready(value: object) -> object:
    """Text as ``shown``, but line breaks stay; what has ``__html__`` is HTML already and is left alone."""
    return value if hasattr(value, "__html__") else _UNSAFE.sub(_outside_layout, str(value))


def json_text(value: Any, **options: Any) -> str:
    r"""JSON whose strings are Unicode: a byte of a file name that is no UTF-8 becomes ``\x85`` in words.

    Args:
        value: of what ``json.dumps`` takes.
        options: of ``json.dumps``.
    """
    return json.dumps(_unicode(value), **options)


@contextmanager
def escaped_output() -> Iterator[None]:
    """What is printed meanwhile, on stdout and stderr, reaches the terminal escaped; line breaks stay.

    Bars of rich write past it (``bars.py``): what they show of a name goes through ``shown``.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else escaping(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def nothing_printed() -> bool:
    """Whether stdout is there and ``escaped_output`` has let nothing through to it yet."""
    return isinstance(sys.stdout, _Escaped) and sys.stdout.empty


def escaping(stream: IO[str]) -> IO[str]:
    """A stream that writes to this one, escaped."""
    return cast("IO[str]", _Escaped(stream))


class _Escaped:
    """A text stream that escapes; it has no ``buffer``, or click would write past it."""

    def __init__(self, stream: IO[str]):
        self.rich_proxied_file = stream  # as rich calls what lies behind a stream, and looks for it
        self.empty = True

    def write(self, text: str) -> int:
        """Write text, escaped, in what the stream's encoding has."""
        safe = _UNSAFE.sub(_outside_layout, text)
        encoding = getattr(self.rich_proxied_file, "encoding", None) or "utf-8"
        self.rich_proxied_file.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        self.empty = self.empty and not text
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.rich_proxied_file, name)


def _outside_layout(found: re.Match[str]) -> str:
    return found[0] if found[0] in _LAYOUT else _code(found)


def _code(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else re.sub("[\ud800-\udfff]", _code, value)
    if isinstance(value, Mapping):
        return {_unicode(key): _unicode(inside) for key, inside in value.items()}
    return [_unicode(inside) for inside in value] if isinstance(value, (list, tuple)) else value
