"""Which files a run separates, and into which folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfswa.runtime.audio.source import STDIN
from tfswa.runtime.errors import UsageError
from tfswa.runtime.stream.folders import LeftOut, find_audio

# Stems that other models than the one at hand may have left behind.
_USUAL_STEMS = frozenset(("vocals", "accompaniment", "drums", "bass", "other", "piano", "guitar"))


@dataclass(frozen=True)
class JobPlan:
    """What a run does.

    Attributes:
        jobs: inputs, and the folder that the stems of each go to; no folder twice.
        left_out: what the inputs hold beside these, hidden files included.
        renamed: inputs whose folder has a number, as another input has the same name.
    """

    jobs: tuple[tuple[Path, Path], ...]
    left_out: tuple[LeftOut, ...]
    renamed: tuple[tuple[Path, Path], ...]


def plan_jobs(inputs: Sequence[Path], output: Path, stems: Sequence[str] = ()) -> JobPlan:
    """Pair each audio file with the folder of its stems.

    A file's folder has its name without the ending; below an input folder it lies as the file does there. The
    second input of one name gets ``-2`` behind it. Nothing is written, and no folder lies outside ``output``.

    Args:
        inputs: files, and folders of which all audio is taken, see ``find_audio``. What an earlier run wrote
            is left out: below ``output``, or where ``output`` is the folder itself, what has a stem's name
            and lies in the folder of another input.
        output: where the folders are to be.
        stems: names of the stems, beside the usual ones.

    Raises:
        UsageError: folders without any audio, and nothing else.
    """
    found: dict[str, tuple[Path, Path]] = {}  # absolute path -> input, place below output
    left_out: list[LeftOut] = []
    for given in inputs:
        if not given.is_dir():
            found.setdefault(_key(given), (given, Path(_folder_name(given))))
            continue
        for path, place in _audio_below(given, output, {*stems, *_USUAL_STEMS}, left_out):
            found.setdefault(_key(path), (path, place))
    if not found:
        raise UsageError(f"{_names(inputs)} holds no audio: {reasons(left_out) or 'it is empty'}")
    jobs, renamed = _numbered(list(found.values()), output)
    return JobPlan(tuple(jobs), tuple(left_out), tuple(renamed))


def reasons(left_out: Iterable[LeftOut], named: int = 3) -> str:
    """What was left out, by reason, a few names each: ``2 text (a.txt, b.cue), 1 hidden (.DS_Store)``."""
    groups: dict[str, list[str]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(one.path.name)
    return ", ".join(
        f"{len(names)} {reason} ({', '.join(names[:named])}{', ...' if len(names) > named else ''})"
        for reason, names in groups.items()
    )


def _audio_below(
    folder: Path, output: Path, stems: set[str], left_out: list[LeftOut]
) -> Iterator[tuple[Path, Path]]:
    """Audio of a folder, and its place; the rest is added to ``left_out``."""
    written, own = output.resolve(), folder.resolve()
    count: Counter[Path] = Counter()
    taken: set[Path] = set()  # folders, below the input, that stems of this run go to
    for one in find_audio(folder):
        if isinstance(one, LeftOut):
            left_out.append(one)
            continue
        inside = one.relative_to(folder)
        if own in written.parents and written in one.resolve().parents:
            left_out.append(LeftOut(one, "in the output folder"))
        elif written == own and one.stem in stems and not taken.isdisjoint(inside.parents):
            left_out.append(LeftOut(one, "a stem of an earlier run"))
        else:
            place = inside.with_name(_folder_name(one))
            count[place] += 1
            taken.add(_number(place, count[place]))
            yield one, place


def _numbered(
    found: Sequence[tuple[Path, Path]], output: Path
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """A folder of its own for each; those that are alone in having a name keep it."""
    wanted = {place for _, place in found}
    used: set[Path] = set()
    jobs, renamed = [], []
    for path, place in found:
        number, free = 1, place
        while free in used or (number > 1 and free in wanted):
            number += 1
            free = _number(place, number)
        used.add(free)
        jobs.append((path, output / free))
        if free != place:
            renamed.append(jobs[-1])
    return jobs, renamed


def _number(place: Path, number: int) -> Path:
    return place if number == 1 else place.with_name(f"{place.name}-{number}")


def _folder_name(path: Path) -> str:
    """A file's name without its ending; one that is all dots before it, such as ``...wav``, is its ending."""
    if path == STDIN:
        return "stdin"
    return path.stem.lstrip(".") or path.name.strip(".") or "input"


def _key(path: Path) -> str:
    return os.path.normpath(path.absolute())


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)
