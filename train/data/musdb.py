"""MUSDB18's free excerpts, 7 s of each song, fetched by the package ``musdb``."""

from __future__ import annotations

import os
import socket
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tfswa.runtime.audio.decoders import one_line
from tfswa.runtime.errors import BackendUnavailable, OutputExists, TfxError, UsageError
from tfswa.runtime.files.atomic import new_folder
from tfswa.runtime.songs.finding import find_songs

TIMEOUT_SECONDS = 30.0


def download(out: Path) -> int:
    """Fetch and unpack the excerpts into a new folder, which appears when it is complete.

    Returns:
        Songs there.

    Raises:
        BackendUnavailable: musdb, or the ffmpeg that it needs, is missing.
        OutputExists: ``out`` is there already.
        UsageError: ``out`` cannot be made.
        TfxError: the download failed.
    """
    musdb = _musdb()
    out = out.absolute()
    if os.path.lexists(out):
        raise OutputExists(f"{out} is there already, nothing was fetched: choose another -o, or take it away")
    try:
        # musdb speaks to stdout, which is for results. No subset: it would look at each song by ffprobe.
        with (
            new_folder(out, force=False, named=True) as work,
            redirect_stdout(sys.stderr),
            _socket_timeout(),
            _fetched(),
        ):
            musdb.DB(root=str(work), download=True, subsets=[])
            songs = len(find_songs(work))
    except OSError as error:
        raise UsageError(f"{out} cannot be made ({error.strerror}): choose another -o") from error
    return songs


def _musdb() -> Any:
    try:
        import musdb
    except RuntimeError as error:  # of stempeg, on import
        raise BackendUnavailable(
            f"musdb needs ffmpeg and ffprobe on PATH ({one_line(error)}): install ffmpeg"
        ) from error
    return musdb


@contextmanager
def _fetched() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException, zipfile.BadZipFile, EOFError, RuntimeError, TfxError) as error:
        raise TfxError(
            f"MUSDB18's excerpts could not be fetched ({one_line(error) or type(error).__name__}): "
            "see to the network, or fetch MUSDB18-7-STEMS.zip by hand and unpack it"
        ) from error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """The package waits for ever otherwise."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
