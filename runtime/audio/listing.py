"""Which files of a folder are audio: by their endings, since content is looked at only on opening."""

from __future__ import annotations

from pathlib import Path

AUDIO_ENDINGS = frozenset(
    f".{name}"
    for name in (
        *("wav", "w64", "rf64", "aif", "aiff", "aifc", "au", "caf", "flac", "ogg", "oga", "opus", "mp3"),
        *("m4a", "m4b", "mp4", "aac", "ac3", "wma", "webm", "mka", "mkv", "mov"),
    )
)


def audio_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Audio files of a folder, sorted; hidden ones are left out, for systems keep notes in them."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if _is_audio(path))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_ENDINGS and not path.name.startswith(".") and path.is_file()
