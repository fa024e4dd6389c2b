"""Where files are while they are being written: beside their destination, under a name of their own.

prepare   directories made, partial names chosen: .vocals.wav.partial-<pid>-<n>
publish   partial -> final, all of them, once all are complete
discard   partials, scratch files, and directories that were made here: gone
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tfswa.runtime.audio.decoders import one_line
from tfswa.runtime.errors import AudioError, OutputExists, UsageError

_serial = itertools.count()  # two jobs of one process may write to the same place


class Staging:
    """A set of files that appear together or not at all.

    Args:
        paths: final file by name.
        force: allow destinations that exist.
        source: a file that must not be replaced, or None.

    Raises:
        UsageError: two names for one file, a directory in its place, or the source itself.
        OutputExists: a destination is there and ``force`` is false.
    """

    def __init__(self, paths: Mapping[str, Path], *, force: bool, source: Path | None) -> None:
        _check_free(paths, source, force)
        self._finals = [path.absolute() for path in paths.values()]
        self._made: list[Path] = []  # directories, outermost first
        self._published: list[Path] = []
        self._done = False
        # Of a long name only a part, or the suffix would make it longer than a name may be.
        self.partials = [
            path.with_name(f".{path.name[:40]}.partial-{os.getpid()}-{next(_serial)}")
            for path in self._finals
        ]

    def prepare(self, bytes_each: int) -> None:
        """Make the directories, and see that there is room.

        Raises:
            UsageError: a directory cannot be made.
            AudioError: fewer bytes are free than the files need; said now rather than after hours.
        """
        for path in self._finals:
            place = path.parent
            missing = [place for place in (path.parent, *path.parents[1:]) if not place.exists()]
            try:
                for place in reversed(missing):
                    place.mkdir(exist_ok=True)
                    self._made.append(place)
                if not path.parent.is_dir():
                    raise NotADirectoryError(20, "a file is in its place")
            except OSError as error:
                raise UsageError(
                    f"{path} cannot be written, {place} is no directory ({one_line(error.strerror)}): "
                    "choose another place"
                ) from error
        for path in self._finals:
            device = path.parent.stat().st_dev
            needed = bytes_each * sum(other.parent.stat().st_dev == device for other in self._finals)
            free = shutil.disk_usage(path.parent).free
            if needed > free:
                raise AudioError(
                    f"{path.parent} has {free / 1e9:.2f} GB free, but the files need {needed / 1e9:.2f} GB: "
                    "free some space there, or choose flac"
                )

    def publish(self) -> None:
        """Give all files their names; ``discard`` does nothing from then on."""
        for partial, final in zip(self.partials, self._finals, strict=True):
            os.replace(partial, final)
            self._published.append(final)
        for partial in self.partials:
            scratch_path(partial).unlink(missing_ok=True)
        self._done = True

    def discard(self) -> None:
        """Remove whatever there is, unless all was published."""
        if self._done:
            return
        self._done = True
        for path in (*self._published, *self.partials, *map(scratch_path, self.partials)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for directory in reversed(self._made):
            with suppress(OSError):  # something else has come to live in it
                directory.rmdir()


def scratch_path(partial: Path) -> Path:
    """Name of the float samples of a file whose gain is not known yet."""
    return partial.with_name(partial.name + ".f32")


def _check_free(paths: Mapping[str, Path], source: Path | None, force: bool) -> None:
    """See that every destination is a file of its own that may be written."""
    owners: dict[Path, str] = {}
    for name, path in paths.items():
        owner = owners.setdefault(path.absolute(), name)
        if owner != name:
            raise UsageError(f"{path} is meant for both {owner} and {name}: give each its own file")
        if path.is_dir():
            raise UsageError(f"{path} is a directory, not a place for a file: choose another name")
        if not os.path.lexists(path):
            continue
        if not force:
            raise OutputExists(f"{path} is there already: add --force to replace it, or choose another place")
        if source is not None and source.exists() and path.exists() and path.samefile(source):
            raise UsageError(f"{path} is the input itself, {name} would replace it: choose another place")
