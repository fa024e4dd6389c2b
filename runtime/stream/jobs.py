"""Which files a run separates, and into which folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tfswa.runtime.audio.listing import AUDIO_ENDINGS, audio_files
from tfswa.runtime.audio.source import STDIN
from tfswa.runtime.errors import UsageError


def plan_jobs(inputs: Iterable[Path], output: Path) -> list[tuple[Path, Path]]:
    """Pair each audio file with the folder of its stems.

    Of a folder, hidden files are left out, and so is what an earlier run wrote below ``output``.

    Raises:
        UsageError: a folder without audio, or two inputs that would write into one folder.
    """
    jobs: dict[Path, Path] = {}
    for given in inputs:
        found = [given]
        if given.is_dir():
            found = _audio_files(given, output)
            if not found:
                raise UsageError(
                    f"{given} holds no audio files: looked for {', '.join(sorted(AUDIO_ENDINGS))}"
                )
        for path in found:
            inside = path.relative_to(given).with_suffix("") if given.is_dir() else _folder_name(path)
            folder = output / inside
            if folder in jobs and jobs[folder] != path:
                raise UsageError(
                    f"{jobs[folder]} and {path} would both be written to {folder}: run them apart"
                )
            jobs[folder] = path
    return [(path, folder) for folder, path in jobs.items()]


def _folder_name(path: Path) -> Path:
    return Path("stdin") if path == STDIN else Path(path.stem)


def _audio_files(folder: Path, output: Path) -> list[Path]:
    found, written = audio_files(folder, recursive=True), output.resolve()
    if folder.resolve() not in written.parents:
        return found
    return [path for path in found if written not in path.resolve().parents]
