"""Which files of a folder hold audio: all are looked at, and what is left out is said, with the reason."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfswa.runtime.audio.listing import AUDIO_ENDINGS
from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.errors import TfxError

_HEAD = 4096  # bytes that tell text from the rest


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not separated.

    Attributes:
        path: what.
        reason: why, in a few words that many files can share.
    """

    path: Path
    reason: str


def find_audio(folder: Path) -> Iterator[Path | LeftOut]:
    """Everything below a folder, sorted by folder and name.

    Links to folders are followed, each folder once. A file whose name ends like audio is audio, even where it
    is damaged: that is an error, not a reason to leave it out. Of other files the content decides.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                yield LeftOut(place, "a link to a folder that is taken already")
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(place.iterdir())
        except OSError as error:
            yield LeftOut(place, f"cannot be read ({error.strerror})")
            continue
        inner = []
        for path in entries:
            if path.name.startswith("."):
                yield LeftOut(path, "hidden")
            elif path.is_dir():
                inner.append(path)
            else:
                reason = _not_audio(path)
                yield path if reason is None else LeftOut(path, reason)
        waiting += reversed(inner)


def _not_audio(path: Path) -> str | None:
    """Why a file is not taken for audio; None where it is."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        if path.suffix.lower() in AUDIO_ENDINGS:
            return None
        if not status.st_size:
            return "empty"
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() else f"cannot be read ({error.strerror})"
    if _is_text(head):  # no audio, and no playlist that FFmpeg would follow to other files
        return "text"
    try:
        with open_audio(path) as source:
            return None if next(source.blocks(), None) is not None else "no audio in it"
    except TfxError:
        return "no audio in it"


def _is_text(head: bytes) -> bool:
    """Whether it reads as UTF-8, or as UTF-16 with its mark, which decoders take for the start of an MP3."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = head[: len(head) // 4 * 4].decode("utf-16" if wide else "utf-8", "strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:  # the last letter may be cut
            return False
        text = head[: error.start].decode("utf-16" if wide else "utf-8")
    return not any(ord(letter) < 9 or 14 <= ord(letter) < 27 for letter in text)
