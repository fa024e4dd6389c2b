"""Folders that tfx makes for itself: the user says where the first one lies, and below it none is a link.

    $XDG_CACHE_HOME/          the user's: may be a link to another disk
      tfswa/                  ours, with all folders below it: a link in the place of one is not followed,
        downloads/            as files would be written, and removed, somewhere else

Without what such a folder would hold a command goes on where it can. It says so in one line.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from pathlib import Path

from tfswa.runtime.machine import user_cache, user_state

logger = logging.getLogger(__name__)


def link_in(path: Path, below: Path | None = None) -> str:
    """What to say of a link in the place of a folder of ours, on the way to a path or at it; or nothing.

    Args:
        path: of a folder, which need not exist; one that is not ours has none.
        below: the folder that the user chose; None for those of the cache and the state.
    """
    roots = {
        user_cache().parent: "; XDG_CACHE_HOME moves all",
        user_state().parent: "; XDG_STATE_HOME moves all",
    }
    for chosen, more in roots.items() if below is None else ((below, ""),):
        if path.is_relative_to(chosen):
            ours = path.relative_to(chosen).parts
            for place in (chosen.joinpath(*ours[: depth + 1]) for depth in range(len(ours))):
                if place.is_symlink():
                    return (
                        f"{place} is a link to {os.readlink(place)}, and tfx follows none in a folder of its "
                        f"own: remove it{more}"
                    )
    return ""


def check_own(path: Path, below: Path | None = None) -> None:
    """See that there is no such link.

    Raises:
        OSError: there is one.
    """
    if problem := link_in(path, below):
        raise OSError(errno.ELOOP, problem, str(path))


def make_own(path: Path, below: Path | None = None, mode: int = 0o777) -> None:
    """Make a folder of ours, and those above it.

    Args:
        path: the folder.
        below: see ``link_in``.
        mode: of the last one, less what the umask takes.

    Raises:
        OSError: it cannot be made, or a link is in the way.
    """
    check_own(path, below)
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    check_own(path, below)


def usable(path: Path) -> bool:
    """Whether there is no such link; one that is there is named in the log, once."""
    if problem := link_in(path):
        _warn_once(problem)
    return not problem


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
