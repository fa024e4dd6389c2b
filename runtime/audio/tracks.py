"""Which of a file's audio tracks is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfswa.runtime.audio.notes import Note
from tfswa.runtime.errors import UsageError
from tfswa.runtime.escape import shown

Track = int | str | None
"""A track by its number from 0, by its language, or None for the default one."""


def parse_track(text: str) -> int | str:
    """A track as a user names it: a number from 1, or a language such as ``eng``.

    Raises:
        UsageError: neither.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text) - 1
    if text.isalpha():
        return text
    raise UsageError(f"track {text!r} is neither a number from 1 nor a language: give, say, 2 or eng")


def pick(path: Path, track: Track, languages: Sequence[str], default: int) -> tuple[int, Note | None]:
    """Choose a track; whether its number is there is checked elsewhere.

    Args:
        path: for the error.
        track: what was asked for.
        languages: of each audio track, as the file gives them; empty where it does not.
        default: the track that the file marks as the default, or the first.

    Returns:
        Its number from 0, and a note about those left out unless a number was asked for.

    Raises:
        UsageError: no track, or more than one, has that language.
    """
    if isinstance(track, int):
        return track, None
    index = default
    if track is not None:
        found = [i for i, language in enumerate(languages) if _same(language, track)]
        if len(found) != 1:
            has = ", ".join(f"{i + 1} {shown(name) or '(no language)'}" for i, name in enumerate(languages))
            what = f"{len(found)} audio tracks" if found else "no audio track"
            raise UsageError(f"{path}: {what} of language {track!r} among {has}: give a number")
        index = found[0]
    if len(languages) < 2:
        return index, None
    of = f" ({shown(languages[index])})" if languages[index] else ""
    text = f"audio track {index + 1} of {len(languages)}{of} was read, the others were left out"
    return index, Note("track", text)


def _same(language: str, wanted: str) -> bool:
    """ISO 639 codes of two and three letters begin alike, most of the time: ``en`` is ``eng``."""
    language, wanted = language.lower(), wanted.lower()
    return bool(language) and (language == wanted or (len(wanted) == 2 and language[:2] == wanted))
