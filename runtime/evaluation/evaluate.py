"""Quality on songs with true stems: the model, song by song, beside baselines, measured by BSSEval v4.

                   this process                                        --jobs processes
decode -> model(s) -> estimates, references as .npy files ──> BSSEval, global figures, baselines
  ^                                                                         │
  '── next song, at most jobs + 1 ahead     songs/<song>.json <─────────────'
                                            (+ estimates) all at once, in order of completion
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import AudioError, UsageError
from tfswa.runtime.evaluation import boxplot, by_museval, results
from tfswa.runtime.evaluation.choices import Choices, Report
from tfswa.runtime.evaluation.records import Records, SongResult, identify
from tfswa.runtime.evaluation.scores import Summary, summarize
from tfswa.runtime.evaluation.song_run import SongRun, Tally
from tfswa.runtime.failures import Failure
from tfswa.runtime.files.atomic import folder
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import SongFiles
from tfswa.runtime.songs.loading import true_sources
from tfswa.runtime.stream.arrangement import Arrangement, song_spec
from tfswa.runtime.stream.separator import Separator


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
        identity: all that decided the numbers, the audio apart.
        songs: those that were measured, in the order asked for.
        summaries: figures over them.
        files: what was written, by kind: ``json``, ``csv``, maybe ``plot``; empty where all songs failed.
        failures: the songs that are missing from all that, and why.
    """

    identity: Mapping[str, Any]
    songs: Sequence[SongResult]
    summaries: Sequence[Summary]
    files: Mapping[str, Path]
    failures: Sequence[Failure] = ()


def evaluate(
    model: Arrangement,
    songs: Sequence[SongFiles],
    output: Path,
    *,
    backend: str = "auto",
    options: BackendOptions = BackendOptions(),  # noqa: B008  frozen
    batch: int = 1,
    wiener: int = 0,
    overlap: int | str = 1,
    choices: Choices = Choices(),  # noqa: B008  frozen
    report: Report = lambda _: None,
) -> Evaluation:
    """Separate songs and measure the stems; songs that an earlier run finished are not computed again.

    A song that fails, for whatever reason, costs the others nothing: it is in ``failures``.

    Args:
        model: what to measure: a model, or several that work together.
        songs: from ``finding.find_songs``, of different names.
        output: folder for the results, see ``results``.
        backend: which backend runs the model.
        options: precision, device, threads.
        batch: chunks at once.
        wiener: see ``Separator``.
        overlap: likewise.
        choices: see there.
        report: called as it goes on.

    Raises:
        OutputExists: results of other circumstances are there; ``choices.force`` replaces them.
        BackendUnavailable: matplotlib or the backend is missing, or museval where it is asked for.
    """
    tally, spec = Tally(len(songs), report), song_spec(model)
    sources: dict[str, list[str]] = {}
    for song in songs:
        with tally.spared(song.name):
            sources[song.name] = _sources(song, spec)
    if choices.plot:
        boxplot.require_boxplot()
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, the results need a folder: choose another place")
    if not sources:
        return Evaluation({}, (), (), {}, tuple(tally.failures))
    how: dict[str, Any] = {"batch": batch, "wiener": wiener, "overlap": overlap}
    with model.load(lambda one: Separator(one, backend=backend, options=options, **how)) as separator:
        identity = identify(separator, spec, options, baselines=choices.baselines, method=choices.method)
        results.check_results(output, identity, force=choices.force)
        records = Records(output, identity, spec.stems, choices.estimates, choices.force)
        if todo := _unfinished(songs, sources, records, tally):
            if choices.method == "museval":
                by_museval.require_museval()
            with folder(output):
                SongRun(separator, spec, records, choices, sources, tally).compute(todo)
    return _written(output, model, identity, songs, tally, plot=choices.plot)


def _unfinished(
    songs: Sequence[SongFiles], sources: Mapping[str, Sequence[str]], records: Records, tally: Tally
) -> list[SongFiles]:
    """Songs with sources that no earlier run has finished; those that one has are put into the tally."""
    todo = []
    for song in songs:
        if song.name in sources:
            with tally.spared(song.name):
                found = records.find(song, sources[song.name])
                if found is None:
                    todo.append(song)
                else:
                    tally.finished[song.name] = found
    return todo


def _written(
    output: Path,
    model: Arrangement,
    identity: Mapping[str, Any],
    songs: Sequence[SongFiles],
    tally: Tally,
    *,
    plot: bool,
) -> Evaluation:
    """The report of what could be measured, on disk; nothing is written where that is no song."""
    failures = tuple(tally.failures)
    ordered = [tally.finished[song.name] for song in songs if song.name in tally.finished]
    if not ordered:
        return Evaluation(identity, (), (), {}, failures)
    summaries = summarize([song.scores for song in ordered])
    heading = {"model": model.name, "errors": [failure.to_dict() for failure in failures]}
    files = results.write_results(output, heading, identity, ordered, summaries, plot=plot)
    return Evaluation(identity, ordered, summaries, files, failures)


def _sources(song: SongFiles, spec: ModelSpec) -> list[str]:
    names = true_sources(song, spec)
    if not names:
        raise AudioError(
            f"{song.name} has no true stems, the model makes {', '.join(spec.stems)}: "
            "point --data at songs with one file for each source, or at stem files"
        )
    return names
