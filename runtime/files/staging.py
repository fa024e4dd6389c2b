"""Where files are while they are being written: in a work folder beside their destination.

prepare   directories made, work folder made: out/.vocals.wav.partial-5f0c96a1d3e2b784/0.wav, 1.wav ...
publish   all of them get their names, or none, see ``publish.py``
discard   the work folder, and directories that were made here: gone
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tfswa.runtime.errors import AudioError, OutputExists, UsageError, reason
from tfswa.runtime.files import register
from tfswa.runtime.files.partial import WorkFolder, beside, undone_with
from tfswa.runtime.files.publish import Move, publish, sweep
from tfswa.runtime.files.signals import held_back


class Staging:
    """A set of files that appear together or not at all.

    A destination that is a link is replaced, its target stays as it is. Folders on the way may be links as
    far as the user named them: up to ``below``, or all of them where it is None.

    Args:
        paths: final file by name.
        force: allow destinations that exist.
        source: a file that must not be replaced, or None.
        below: the folder that the user named; between it and a file no link is followed.

    Attributes:
        partials: where to write each file, in order; from ``prepare`` on.

    Raises:
        UsageError: two names for one file, a directory in its place, or the source itself.
        OutputExists: a destination is there and ``force`` is false.
    """

    def __init__(
        self, paths: Mapping[str, Path], *, force: bool, source: Path | None, below: Path | None = None
    ) -> None:
        _check_free(paths, source, force)
        self._finals, self._force, self._below = [path.absolute() for path in paths.values()], force, below
        self._work: WorkFolder | None = None
        self._made = ExitStack()
        self._end = undone_with(self, self._made)
        self.partials: list[Path] = []

    def prepare(self, bytes_each: int) -> None:
        """Make the directories, see that there is room, and sweep what a killed process left here.

        Raises:
            UsageError: a directory cannot be made, or is a link below the folder that the user named.
            AudioError: fewer bytes are free than the files need; said now rather than after hours.
        """
        try:
            for path in self._finals:
                self._make_parents(path)
            self._check_room(bytes_each)
            parent = Path(os.path.commonpath([path.parent for path in self._finals]))
            for folder in {parent, *(path.parent for path in self._finals)}:
                sweep(folder)
            with held_back():
                self._work = beside(parent / self._finals[0].name)
                self._made.callback(self._work.remove)
        except OSError as error:
            raise UsageError(
                f"{self._finals[0].parent} cannot be written ({reason(error)}): choose another place"
            ) from error
        # Short names: of a long one, with something added, a file system would take none.
        self.partials = [self._work.path / f"{index}{path.suffix}" for index, path in enumerate(self._finals)]

    def publish(self) -> None:
        """Give all files their names; ``discard`` does nothing from then on.

        Raises:
            OutputExists: a file came to be meanwhile, and ``force`` is false.
            OSError: the file system refuses; what was there is there.
        """
        assert self._work is not None, "prepare comes first"
        parent = self._work.parent
        moves = [
            Move(partial.name, str(final.relative_to(parent)))
            for partial, final in zip(self.partials, self._finals, strict=True)
        ]
        try:
            publish(self._work, moves, force=self._force)
        except FileExistsError as error:
            raise OutputExists(
                f"{parent / str(error.filename)} came to be there meanwhile: add --force to replace it, or "
                "choose another place"
            ) from error
        self._end.detach()

    def discard(self) -> None:
        """Remove whatever there is, unless all was published."""
        self._end()

    def _make_parents(self, path: Path) -> None:
        folders = (path.parent, *path.parents[1:])
        self._refuse_links(folders)
        place = path.parent
        try:
            for place in reversed([place for place in folders if not place.exists()]):
                with held_back():
                    place.mkdir(exist_ok=True)
                    self._made.callback(_remove_empty, place)
                    register.note_made(place)
            if not path.parent.is_dir():
                raise NotADirectoryError(20, "a file is in its place")
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written, {place} is no directory ({reason(error)}): choose another place"
            ) from error

    def _refuse_links(self, folders: Sequence[Path]) -> None:
        """See that no folder below the one that the user named is a link."""
        if self._below is None or self._below.absolute() not in folders:
            return
        for place in folders[: folders.index(self._below.absolute())]:
            if place.is_symlink():
                raise UsageError(
                    f"{place} is a link to {os.readlink(place)}, files would be written there: remove it, or "
                    "choose another place"
                )

    def _check_room(self, bytes_each: int) -> None:
        for path in self._finals:
            device = path.parent.stat().st_dev
            needed = bytes_each * sum(other.parent.stat().st_dev == device for other in self._finals)
            free = shutil.disk_usage(path.parent).free
            if needed > free:
                raise AudioError(
                    f"{path.parent} has {_size(free)} free, but the files need {_size(needed)}: "
                    "free some space there, or choose flac"
                )


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something else has come to live in it
        folder.rmdir()


def _size(count: int) -> str:
    """Bytes in the unit that leaves figures to compare."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


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
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"{path} is a directory, not a place for a file: choose another name")
        if not os.path.lexists(path):
            continue
        if not force:
            raise OutputExists(f"{path} is there already: add --force to replace it, or choose another place")
        if source is not None and source.exists() and path.exists() and path.samefile(source):
            raise UsageError(f"{path} is the input itself, {name} would replace it: choose another place")
