"""Make the data set of the embedded model: songs that may have only some sources, one folder each.

    OUT/free-1.Hydrogen/{vocals,drums,bass,other}.flac      real songs, all sources
    OUT/sung-trance_a/vocals.flac, OUT/spoken-shouts/...    voice alone
    OUT/sectoid-Feelings/other.flac                         a band without a singer, in one piece
    OUT/freedoom-e1m1/{drums,bass,other}.flac               MIDI songs, rendered by fluidsynth
    OUT/dev-house_e-War_of_freedom/{vocals,other}.flac      held out, as free-5.Rubidium is
    OUT/SOURCES.md                                          where each set is from, and its license

A song that is there is not made again, so a run that was stopped goes on where it was. Runs at the lowest
priority. Nothing of it belongs into the repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from midi_stems import MidiError, read_midi, stems, wad_songs, write_midi
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
RATE = 44_100
APT = ("freedoom", "fluidsynth", "musescore-general-soundfont")
WADS = tuple(Path(f"/usr/share/games/doom/freedoom{part}.wad") for part in (1, 2))
SOUNDFONT = Path("/usr/share/sounds/sf3/MuseScore_General_Full.sf3")
RENDERED_DBFS = -17.0  # RMS of a rendered song, about that of the others
LEAST_SECONDS = 20.0  # of a rendered song
HELD_OUT = ("free-5.Rubidium", "dev-house_e-War_of_freedom")
SPOKEN = frozenset(("shouts", "spoken"))

Audio = NDArray[np.float32]
Make = Callable[[], dict[str, Audio]]


@dataclass(frozen=True)
class Source:
    """A row of the table.

    Attributes:
        sets: names of its songs begin with one of these.
        what: title and makers.
        license: of the audio, and where it is stated.
        notice: what goes with weights that were trained on it, followed by the text of ``terms``; empty for
            nothing.
        terms: SPDX name of that text, in scripts/notices.
    """

    sets: str
    what: str
    license: str
    notice: str = ""
    terms: str = ""


SOURCES = (
    Source(
        "free-",
        '"Everything is Free" by Software-Entwicklungskit; public repository '
        "ichbinsoftware/everythingisremixed at 6a6fbe3a; five songs",
        "CC0-1.0, LICENSE-CC0.txt beside the songs",
    ),
    Source(
        "sung-, spoken-",
        "Producer Space sample packs, dry voice; public repository neshanjo/strudel-producer-space-samples "
        "at a117eab0",
        "CC0-1.0, LICENSE.txt of the repository; who put it there believes that passing it on is fine",
    ),
    Source(
        "sectoid-",
        "four songs by Carlos Viola Iborra; Debian package fretsonfire-songs-sectoid",
        "MIT, the package's copyright file",
        "Copyright (c) 2006/2007 Carlos Viola Iborra",
        "MIT",
    ),
    Source(
        "freedoom-",
        "music of Freedoom, by its contributors; Debian package freedoom, lumps D_* of the two WADs",
        "BSD-3-Clause, /usr/share/doc/freedoom/copyright; authors in CREDITS",
        "Copyright (c) 2001-2003 Contributors to the Freedoom project. All rights reserved.",
        "BSD-3-Clause",
    ),
    Source(
        "freedoom-",
        "played on MuseScore_General_HQ by S. Christian Collins, after Fluid (R3) by Frank Wen and Michael "
        "Cowgill; Debian package musescore-general-soundfont",
        "MIT, parts CC0 or public domain, /usr/share/doc/musescore-general-soundfont/copyright",
        "Copyright (c) 2018-2021 S. Christian Collins; 2014-2017 Michael Cowgill; 2002 Ethan Winer; "
        "2016 Michael Schorsch; 2000-2002, 2008 Frank Wen",
        "MIT",
    ),
    Source("dev-", "held out: house_e (Producer Space) over War of freedom (sectoid)", "as above"),
)


def main() -> None:
    """Make what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        prog="scripts/make_demo_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to fill, outside the repository")
    parser.add_argument(
        "--shared",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of everything-is-remixed, producer-space-vocals and sectoid (default: ../shared/data)",
    )
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="songs at a time (1)")
    given = parser.parse_args()
    out = given.out.resolve()
    if out.is_relative_to(ROOT):
        parser.error(f"{out} is inside the repository, and audio is never committed: name a folder elsewhere")
    require_packages()
    os.nice(19)
    songs = recorded(given.shared) | rendered()
    missing = {name: make for name, make in songs.items() if not (out / name).is_dir()}
    print(f"{out}: {len(songs)} songs, {len(missing)} to make", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    with ThreadPoolExecutor(given.workers) as pool:
        for done in pool.map(lambda item: write_song(out, *item), missing.items()):
            print(done, file=sys.stderr)
    (out / "SOURCES.md").write_text(table(sorted(songs)))
    print(out / "SOURCES.md")


def sweep(out: Path) -> None:
    """Take away what a run that was killed had begun."""
    for work in out.glob(".*.partial-*"):
        shutil.rmtree(work, ignore_errors=True)


def require_packages() -> None:
    """See that what renders is installed, or end with the line that installs it."""
    there = [*(path.exists() for path in (*WADS, SOUNDFONT)), shutil.which("fluidsynth") is not None]
    if not all(there):
        print(
            f"the music of {APT[0]} cannot be rendered: install\n"
            f"  apt-get install --no-install-recommends {' '.join(APT)}",
            file=sys.stderr,
        )
        sys.exit(4)


def recorded(shared: Path) -> dict[str, Make]:
    """Songs that exist as audio, by name; a set whose folder is absent is named and left out."""
    folders = {}
    for name in ("everything-is-remixed", "producer-space-vocals", "sectoid"):
        folder = shared / name
        folders[name] = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        if not folders[name]:
            print(f"{folder} is not there: the set goes on without it", file=sys.stderr)
    songs: dict[str, Make] = {}
    for song in folders["everything-is-remixed"]:
        parts = {source: [song / f"{source}.ogg"] for source in ("vocals", "drums", "bass", "other")}
        songs[f"free-{song.name}"] = partial(read, parts)
    voices = {song.name: [song / "vocals.ogg"] for song in folders["producer-space-vocals"]}
    bands = {song.name: [song / "rest.ogg", song / "guitar.ogg"] for song in folders["sectoid"]}
    if "house_e" in voices and "War_of_freedom" in bands:
        both = {"vocals": voices.pop("house_e"), "other": bands.pop("War_of_freedom")}
        songs["dev-house_e-War_of_freedom"] = partial(read, both)
    for name, paths in voices.items():
        songs[f"{'spoken' if name in SPOKEN else 'sung'}-{name}"] = partial(read, {"vocals": paths})
    for name, paths in bands.items():
        songs[f"sectoid-{name}"] = partial(read, {"other": paths})
    return songs


def rendered() -> dict[str, Make]:
    """Songs of Freedoom by name."""
    songs: dict[str, Make] = {}
    for wad in WADS:
        for name, data in wad_songs(wad).items():
            songs[f"freedoom-{name}"] = partial(render, data)
    return songs


def read(parts: dict[str, list[Path]]) -> dict[str, Audio]:
    """Sources ``[N, C]``, each the sum of its files; all as long as the shortest."""
    sources = {
        source: [soundfile.read(path, dtype="float32")[0] for path in paths]
        for source, paths in parts.items()
    }
    length = min(len(audio) for files in sources.values() for audio in files)
    return {source: np.sum([audio[:length] for audio in files], axis=0) for source, files in sources.items()}


def render(data: bytes) -> dict[str, Audio]:
    """Play a MIDI song, role by role, at the level of the other sets; nothing where it is short or broken."""
    try:
        cut = stems(read_midi(data))
    except MidiError as error:
        print(f"left out: {error}", file=sys.stderr)
        return {}
    played = {}
    with tempfile.TemporaryDirectory() as folder:
        for role, midi in cut.items():
            score, audio = Path(folder) / "song.mid", Path(folder) / f"{role}.wav"
            score.write_bytes(write_midi(midi))
            quiet = ("-ni", "-q", "-o", "synth.dynamic-sample-loading=1", "-g", "0.4")
            form = ("-T", "wav", "-O", "float", "-r", str(RATE), "-F", str(audio))
            subprocess.run(
                ["fluidsynth", *quiet, *form, str(SOUNDFONT), str(score)], check=True, capture_output=True
            )
            played[role] = soundfile.read(audio, dtype="float32")[0]
    # A role that still rings at the end is longer: the others are silent there.
    length = max(len(audio) for audio in played.values())
    if length < LEAST_SECONDS * RATE:
        return {}
    played = {role: np.pad(audio, ((0, length - len(audio)), (0, 0))) for role, audio in played.items()}
    level = float(np.sqrt(np.mean(np.square(sum(played.values()), dtype=np.float64))))
    peak = max(float(np.abs(audio).max()) for audio in played.values())
    gain = min(10 ** (RENDERED_DBFS / 20) / max(level, 1e-9), 0.99 / max(peak, 1e-9))
    return {role: audio * np.float32(gain) for role, audio in played.items()}


def write_song(out: Path, name: str, make: Make) -> str:
    """Make a song and write its folder, which appears when it is complete; returns what was done."""
    sources = make()
    if not sources:
        return f"{name}: left out"
    work = out / f".{name}.partial-{os.getpid()}"
    try:
        work.mkdir()
        for source, audio in sources.items():
            soundfile.write(work / f"{source}.flac", audio, RATE, subtype="PCM_16")
        work.rename(out / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = len(next(iter(sources.values()))) / RATE
    return f"{name}: {', '.join(sources)}, {seconds:.0f} s"


def table(names: list[str]) -> str:
    """The page that goes with the audio."""
    lines = [
        "# Sources of the demo data",
        "",
        "Made by `scripts/make_demo_data` of tfx. Weights that were trained on it are shipped with the",
        "notices of the last column, and their terms.",
        "",
        "| songs | what | license | notice |",
        "| --- | --- | --- | --- |",
        *(f"| {row.sets} | {row.what} | {row.license} | {row.notice or 'none'} |" for row in SOURCES),
        "",
        f"Held out: {', '.join(HELD_OUT)}.",
        "",
        f"Songs, of which those under {LEAST_SECONDS:.0f} s are left out: {', '.join(names)}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
