"""What an evaluation leaves on disk.

<output>/songs/<song>.json   one a song: all windows, and everything that decided the numbers
<output>/results.json        all songs, and the figures over all of them
<output>/results.csv         a row for each song, stem and estimator
<output>/boxplot.png
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.escape import json_text, shown
from tfswa.runtime.evaluation.boxplot import box_plot
from tfswa.runtime.evaluation.records import SCHEMA, Identity, SongResult, another, differences
from tfswa.runtime.evaluation.scores import FIGURES, Summary
from tfswa.runtime.files.staging import Staging

JSON, CSV, PLOT = "results.json", "results.csv", "boxplot.png"


def check_results(output: Path, identity: Identity, *, force: bool) -> None:
    """See that results which lie in a folder may be replaced.

    Raises:
        OutputExists: they are of other circumstances, and ``force`` is false.
    """
    path = output / JSON
    if force or not path.exists():
        return
    try:
        different = differences(parse_json(read_document(path))["identity"], identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        different = ["it is no evaluation of tfx, or damaged"]
    if different:
        raise another(path, different)


def write_results(
    output: Path,
    heading: Mapping[str, Any],
    identity: Identity,
    songs: Sequence[SongResult],
    summaries: Sequence[Summary],
    *,
    plot: bool,
) -> dict[str, Path]:
    """Write all files of an evaluation, together or not at all; their paths by name.

    Args:
        output: folder.
        heading: ``model``, and ``errors``, the songs that failed.
        identity: what decided the numbers.
        songs: that were measured.
        summaries: figures over them.
        plot: draw a box plot too.
    """
    names = {"json": JSON, "csv": CSV, **({"plot": PLOT} if plot else {})}
    paths = {name: output / file for name, file in names.items()}
    staging = Staging(paths, force=True, source=None, below=output)
    try:
        staging.prepare(1 << 20)
        partials = dict(zip(paths, staging.partials, strict=True))
        partials["json"].write_text(_results_text(heading, identity, songs, summaries))
        _write_csv(partials["csv"], songs)
        if plot:
            failed = len(heading["errors"])
            missing = f" of {len(songs) + failed}, the others failed" if failed else ""
            title = f"{heading['model']}, {len(songs)} song{'s' if len(songs) > 1 else ''}{missing}"
            box_plot([song.scores for song in songs], title, partials["plot"])
        staging.publish()
    finally:
        staging.discard()
    return paths


def _results_text(
    heading: Mapping[str, Any],
    identity: Identity,
    songs: Sequence[SongResult],
    summaries: Sequence[Summary],
) -> str:
    listed = [
        {
            "song": song.song,
            "split": song.split,
            "seconds": song.seconds,
            "audio_sha256": song.audio_sha256,
            "scores": [{k: v for k, v in score.to_dict().items() if k != "windows"} for score in song.scores],
        }
        for song in songs
    ]
    whole = {
        "schema": SCHEMA,
        **heading,
        "identity": identity,
        "scores": [summary.to_dict() for summary in summaries],
        "songs": listed,
    }
    return json_text(whole, indent=1, allow_nan=False) + "\n"


def _write_csv(path: Path, songs: Sequence[SongResult]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("song", "split", "seconds", "stem", "estimator", *FIGURES))
        for song in songs:
            for score in song.scores:
                figures = [score.figures[name] for name in FIGURES]  # None becomes an empty cell
                named = (shown(song.song), song.split, song.seconds, shown(score.stem), score.estimator)
                writer.writerow((*named, *figures))
