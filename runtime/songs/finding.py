"""Songs on disk: which files hold which source. Names alone decide; nothing is opened.

A song that has a fault is listed too, so that it costs the others nothing; see ``SongFiles``.

root/train/*.stem.mp4, root/test/*.stem.mp4            MUSDB18
root/train/SONG/{mixture,vocals,drums,bass,other}.wav  MUSDB18-HQ
root/SONG/SOURCE.<audio>, root/*.stem.mp4              folders without splits; any source names
SONG/SOURCE.<audio>, one.stem.mp4, one.<audio>         a single song
root/*.<audio>                                         songs without known sources
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from tfswa.runtime.audio.listing import audio_files
from tfswa.runtime.errors import AudioError, UsageError

STEM_FILE_STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # Native Instruments' order
STEM_FILE_ENDING = ".stem.mp4"
MIXTURE = "mixture"
MIXTURES = frozenset((MIXTURE, "linear_mixture"))  # sources that are sums of the others
REST = "accompaniment"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class SongFiles:
    """A song that lies on disk.

    Attributes:
        name: of its folder; of its stem file without ``.stem.mp4``; of any other file with its ending.
        split: ``train`` or ``test``; empty where the folder has no splits.
        sources: file and audio stream by source name. ``mixture`` is what the disk holds as the mixture,
            which need not be the sum of the other sources.
        fault: why the song cannot be taken; empty as a rule. ``sources`` are empty then.
    """

    name: str
    split: str
    sources: Mapping[str, tuple[Path, int]]
    fault: str = ""

    def check(self) -> None:
        """Refuse a song that has a fault.

        Raises:
            AudioError: it has.
        """
        if self.fault:
            raise AudioError(self.fault)


def find_songs(root: Path, split: str | None = None, *, names: Collection[str] = ()) -> list[SongFiles]:
    """List the songs below a folder, or the one that a file is, those with a fault too.

    Faults are a source that is there twice, several songs of one name in a split, and a folder that cannot be
    listed.

    A ``.mp4`` that lies among songs is taken for a stem file; whether it has the streams is seen when it
    is opened. Hidden files and folders are left out.

    Args:
        root: a folder in one of the layouts above, or a file.
        split: ``train`` or ``test``; None for all there are.
        names: sources that tell a song's folder from a folder of songs, beside the usual ones.

    Returns:
        Songs sorted by name; with several splits, ``train`` comes first.

    Raises:
        AudioError: nothing there, or no such split.
    """
    if not root.is_dir():
        if not root.is_file():
            raise AudioError(f"{root} cannot be opened: there is no such file or folder: check the path")
        _refuse_split(root, split, ())
        return [_song_of_file(root, "")]
    there = [name for name in SPLITS if (root / name).is_dir()]
    _refuse_split(root, split, there)
    usual = {*STEM_FILE_STREAMS, REST, *names}
    places = [(root / name, name) for name in there if split in (None, name)] or [(root, "")]
    songs: list[SongFiles] = []
    for folder, name in places:
        songs += _once(sorted(_songs_in(folder, name, usual), key=lambda song: song.name), folder)
    if not songs:
        where = " or ".join(str(folder) for folder, _ in places)
        raise AudioError(f"{where} holds no audio: name an audio file, a song's folder, or a folder of songs")
    return songs


def pick_songs(
    data: Path, split: str | None, wanted: tuple[str, ...], stems: tuple[str, ...]
) -> list[SongFiles]:
    """Find songs by what a user says: a folder or the word ``musdb``, a split, names.

    Args:
        data: as for ``find_songs``; ``musdb`` where no such folder is there, for that of MUSDB18.
        split: ``train`` or ``test``; None for ``test`` where the folder has it, else all.
        wanted: names of songs; empty for all.
        stems: see ``names`` of ``find_songs``.

    Raises:
        UsageError: no such song, or no MUSDB here.
        AudioError: no songs, or no such split.
    """
    root = musdb_root() if str(data) == "musdb" and not data.exists() else data
    has_test = (root / "test").is_dir()
    found = find_songs(root, split or ("test" if has_test else None), names=stems)
    names = [song.name for song in found]
    for name in wanted:
        if name not in names:
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UsageError(f"no song {name!r} in {root}, it holds {listed}: choose one of those")
    found = [song for song in found if not wanted or song.name in wanted]
    if len({song.name for song in found}) < len(found):
        raise UsageError(f"{root} has songs of one name in two splits: choose one with --split")
    return found


def musdb_folder() -> Path:
    """Where MUSDB18 belongs: the folder in ``MUSDB_PATH``, else where the package musdb puts its excerpts."""
    return Path(os.environ.get("MUSDB_PATH") or "~/MUSDB18/MUSDB18-7").expanduser()


def musdb_root() -> Path:
    """``musdb_folder``, once something is there.

    Raises:
        UsageError: it is no folder.
    """
    root = musdb_folder()
    if not root.is_dir():
        raise UsageError(
            f"no MUSDB18 in {root}: fetch excerpts of 7 s to there with `tfx data musdb --download`, "
            "or set MUSDB_PATH to the folder that holds train and test"
        )
    return root


def _refuse_split(root: Path, split: str | None, there: Collection[str]) -> None:
    if split is not None and split not in there:
        has = f"has {', '.join(there)}" if there else "has no splits"
        raise AudioError(f"{root} {has}, asked for is {split!r}: choose another split, or none")


def _songs_in(folder: Path, split: str, usual: Collection[str]) -> list[SongFiles]:
    """A folder is one song if two of its files have usual names; otherwise it holds songs."""
    files = audio_files(folder)
    if len(_named(files, usual)) > 1:
        return [_song_of_folder(folder, split)]
    stem_files = [path for path in files if path.name.lower().endswith(STEM_FILE_ENDING)]
    least = 2 if len(stem_files) < len(files) else 0  # beside loose audio, other folders are albums or notes
    songs = []
    for child in sorted(folder.iterdir()):
        try:
            if _is_song_folder(child) and len(_named(audio_files(child), usual)) >= least:
                songs.append(_song_of_folder(child, split))
        except OSError as error:
            fault = f"{child} cannot be listed ({error.strerror}): see to its permissions, or take it away"
            songs.append(SongFiles(child.name, split, {}, fault))
    # Loose audio is material only where there is nothing with known sources.
    loose = stem_files if songs or stem_files else files
    return songs + [_song_of_file(path, split) for path in loose]


def _named(files: Collection[Path], usual: Collection[str]) -> set[str]:
    return {path.stem for path in files if path.stem in usual}


def _is_song_folder(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    files = audio_files(folder)
    return bool(files) and not any(path.name.lower().endswith(STEM_FILE_ENDING) for path in files)


def _once(songs: Sequence[SongFiles], folder: Path) -> Iterator[SongFiles]:
    """Songs by name; those that share theirs are one with a fault."""
    for name, group in groupby(songs, key=attrgetter("name")):
        first, *others = group
        fault = f"{folder} holds the song {name!r} {1 + len(others)} times: rename all but one"
        yield SongFiles(name, first.split, {}, fault) if others else first


def _song_of_folder(folder: Path, split: str) -> SongFiles:
    name = folder.resolve().name if folder.name in ("", "..") else folder.name
    sources: dict[str, tuple[Path, int]] = {}
    for path in audio_files(folder):
        other = sources.setdefault(path.stem, (path, 0))[0]
        if other != path:
            both = f"{other.name} and {path.name}"
            fault = f"{folder} holds {path.stem} twice, {both}: take one of them away"
            return SongFiles(name, split, {}, fault)
    return SongFiles(name, split, sources)


def _song_of_file(path: Path, split: str) -> SongFiles:
    name = path.name
    if name.lower().endswith(STEM_FILE_ENDING):
        name = name[: -len(STEM_FILE_ENDING)]
    if path.suffix.lower() == ".mp4":
        return SongFiles(name, split, {source: (path, i) for i, source in enumerate(STEM_FILE_STREAMS)})
    return SongFiles(name, split, {MIXTURE: (path, 0)})
