"""Figures that are true, runs that can be stopped and go on, and nothing left half done."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from separated import noise, write_arrays

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import BackendUnavailable, OutputExists, UsageError
from tfswa.runtime.evaluation import by_museval, evaluate, song_run
from tfswa.runtime.evaluation.bsseval import MEASURES
from tfswa.runtime.evaluation.choices import Choices, EvaluationProgress, Report
from tfswa.runtime.evaluation.records import audio_sha256
from tfswa.runtime.evaluation.scores import FIGURES, Score, score_song
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, Model, open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import find_songs
from tfswa.runtime.songs.loading import example_stem_file
from tfswa.runtime.stream.arrangement import One

Audio = NDArray[Any]

RATE = 8000
AGREEMENT_DB = 1e-6  # the same arithmetic in another order; measured 3e-11 dB

# The song's correlations have a condition of 4e12, so rounding may change what filters give by 4e-4 of the
# estimate; the smallest part of it here is 0.06 of it (24 dB down).
ILL_CONDITIONED_DB = 0.1


class Inline:
    """Workers that work at once, in this process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def quick_score(folder: Path, spec: ModelSpec, *, baselines: bool, method: str) -> list[Score]:
    """Global SDR alone."""
    references, estimates = np.load(folder / "references.npy"), np.load(folder / "estimates.npy")
    found = []
    for index, stem in enumerate(spec.stems):
        value = sdr_db(references[index], estimates[index])
        found.append(
            Score(stem, "model", {**dict.fromkeys(FIGURES), "sdr_u_db": value, "sdr_c_db": value}, {})
        )
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes and no BSSEval: what is tested is what goes on around them."""
    monkeypatch.setattr(song_run, "Workers", Inline)
    monkeypatch.setattr(song_run, "score_song", quick_score)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def model(network_bundle: Bundle) -> Model:
    return BundleModel("network", network_bundle)


@pytest.fixture
def measure(model: Model, song_root: Path, tmp_path: Path) -> Callable[..., evaluate.Evaluation]:
    """``measure(songs=..., force=...)``: an evaluation into ``tmp_path / "out"``."""

    def run(
        root: Path = song_root,
        report: Report = lambda _: None,
        threads: int | None = 1,
        precision: str | None = None,
        **chosen: Any,
    ) -> evaluate.Evaluation:
        return evaluate.evaluate(
            One(model),
            find_songs(root),
            tmp_path / "out",
            backend="torch",
            options=BackendOptions(precision=precision, threads=threads),
            choices=Choices(**chosen),
            report=report,
        )

    return run


Measure = Callable[..., evaluate.Evaluation]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("quick")
class TestRuns:
    def test_files(self, measure: Measure, tmp_path: Path) -> None:
        found = measure(estimates=tmp_path / "est")
        out = tmp_path / "out"
        songs = [f"songs/{name}.json" for name in "ABC"]
        assert tree(out) == ["boxplot.png", "results.csv", "results.json", *songs]
        assert [song.song for song in found.songs] == ["A", "B", "C"]
        whole = json.loads((out / "results.json").read_text())
        assert whole["identity"] == found.identity
        mean = np.mean([song["scores"][0]["sdr_u_db"] for song in whole["songs"]])
        assert whole["scores"][0]["sdr_u_db"] == pytest.approx(mean)
        with (out / "results.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 6
        assert float(rows[0]["sdr_u_db"]) == whole["songs"][0]["scores"][0]["sdr_u_db"]
        assert rows[0]["sir_c_db"] == ""
        assert (out / "boxplot.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "boxplot.png").stat().st_size > 5000
        assert tree(tmp_path / "est") == [f"{s}/{n}.wav" for s in "ABC" for n in ("accompaniment", "vocals")]

    def test_estimates_are_what_was_measured(self, measure: Measure, tmp_path: Path, song_root: Path) -> None:
        found = measure(estimates=tmp_path / "est", plot=False)
        estimate, rate = soundfile.read(tmp_path / "est" / "A" / "vocals.wav", dtype="float32")
        truth, _ = soundfile.read(song_root / "A" / "vocals.wav", dtype="float32")
        assert rate == RATE
        value = found.songs[0].scores[0].figures["sdr_u_db"]
        # The same samples in another memory layout: NumPy sums in another order. A float64 sum of n squares
        # is off by at most n * 2**-53: 1e-11 for 96,000 samples, 1e-10 dB for the ratio of two sums.
        assert sdr_db(truth.T, estimate.T) == pytest.approx(value, rel=0, abs=1e-9)

    def test_a_second_run_computes_nothing(
        self, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = measure()
        monkeypatch.setattr(song_run, "load", lambda *_: pytest.fail("decoded again"))
        second = measure(threads=2)  # decides no number
        assert second.summaries == first.summaries
        assert [song.reused for song in second.songs] == [True] * 3

    def test_a_run_goes_on_where_one_was_stopped(self, measure: Measure, tmp_path: Path) -> None:
        def stop(now: EvaluationProgress) -> None:
            if now.song == "C":
                raise KeyboardInterrupt

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            measure(report=stop, jobs=1, estimates=tmp_path / "est")
        assert tree(out) == ["songs/A.json"]  # B was being measured
        assert sorted(path.name for path in out.iterdir()) == ["songs"]
        assert tree(tmp_path / "est") == ["A/accompaniment.wav", "A/vocals.wav"]
        found = measure(jobs=1, estimates=tmp_path / "est")
        assert [song.reused for song in found.songs] == [True, False, False]

    def test_another_setting_is_refused_and_named(self, measure: Measure, tmp_path: Path) -> None:
        measure()
        before = (tmp_path / "out" / "songs" / "A.json").read_bytes()
        with pytest.raises(OutputExists, match=r"baselines True, now False: add --force"):
            measure(baselines=False)
        assert (tmp_path / "out" / "songs" / "A.json").read_bytes() == before
        found = measure(baselines=False, force=True)
        assert not any(song.reused for song in found.songs)
        assert all(song.reused for song in measure(baselines=False, force=True).songs)

    def test_other_weights_are_refused(self, measure: Measure) -> None:
        measure()
        before = evaluate.identify
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                evaluate, "identify", lambda *a, **k: {**before(*a, **k), "artifact_sha256": "0" * 64}
            )
            with pytest.raises(OutputExists, match=r"artifact_sha256 [0-9a-f]{12}\.\.\., now 000000000000"):
                measure()

    def test_other_audio_is_refused(self, measure: Measure, tmp_path: Path, song_root: Path) -> None:
        root = tmp_path / "data"
        shutil.copytree(song_root, root)
        measure(root)
        soundfile.write(root / "B" / "drums.wav", noise(6 * RATE, 2), RATE)
        with pytest.raises(OutputExists, match=r"B\.json is of another evaluation: audio_sha256"):
            measure(root)
        found = measure(root, force=True)
        assert [song.reused for song in found.songs] == [True, False, True]

    @pytest.mark.parametrize("content", ["{", "[]", '{"identity": {}}', '{"identity": [1]}', "[" * 100_000])
    def test_a_damaged_record_is_refused(self, measure: Measure, tmp_path: Path, content: str) -> None:
        (tmp_path / "out" / "songs").mkdir(parents=True)
        (tmp_path / "out" / "songs" / "A.json").write_text(content)
        with pytest.raises(OutputExists, match=r"A\.json is of another evaluation"):
            measure()
        assert len(measure(force=True).songs) == 3

    def test_a_record_that_was_changed_is_not_believed(self, measure: Measure, tmp_path: Path) -> None:
        measure()
        path = tmp_path / "out" / "songs" / "A.json"
        whole = json.loads(path.read_text())
        better = {**whole["scores"][0], "sdr_u_db": 99.0}
        without = {key: value for key, value in whole.items() if key != "sha256"}
        for other in (
            {**whole, "scores": [better, *whole["scores"][1:]]},
            {**whole, "notes": ["x"]},
            without,
        ):
            path.write_text(json.dumps(other))
            with pytest.raises(OutputExists, match=r"A\.json is of another evaluation: it is damaged"):
                measure()
        path.write_text(json.dumps(whole))
        assert all(song.reused for song in measure().songs)

    def test_a_record_with_wrong_types_is_refused(self, measure: Measure, tmp_path: Path) -> None:
        measure()
        path = tmp_path / "out" / "songs" / "A.json"
        whole = json.loads(path.read_text())
        (tmp_path / "out" / "results.json").unlink()
        score = whole["scores"][0]
        changed = [
            {**whole, key: value} for key in ("identity", "scores", "seconds") for value in ("x", [3], {})
        ]
        changed += [{**whole, "scores": [{**score, key: value}]} for key in score for value in (True, [3])]
        for wrong in changed:
            if wrong["scores"] == {}:  # no scores: of another song, perhaps
                continue
            del wrong["sha256"]
            path.write_text(json.dumps({**wrong, "sha256": sha256_of_json(wrong)}))
            with pytest.raises(OutputExists, match=r"A\.json is of another evaluation") as error:
                measure()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"identity": [1]}', "[" * 100_000])
    def test_results_of_others_are_refused(self, measure: Measure, tmp_path: Path, text: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "results.json").write_text(text)
        with pytest.raises(OutputExists, match=r"results\.json .*no evaluation of tfx"):
            measure()

    def test_a_file_in_the_place_of_the_folder(self, measure: Measure, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        with pytest.raises(UsageError, match="is a file, the results need a folder"):
            measure()

    def test_estimates_of_others_are_refused(self, measure: Measure, tmp_path: Path) -> None:
        (tmp_path / "est" / "B").mkdir(parents=True)
        (tmp_path / "est" / "B" / "vocals.wav").write_text("mine")
        with pytest.raises(OutputExists, match=r"vocals\.wav is there already"):
            measure(estimates=tmp_path / "est")
        assert not (tmp_path / "out").exists()
        measure(estimates=tmp_path / "est", force=True)
        assert (tmp_path / "est" / "B" / "vocals.wav").stat().st_size > 1000

    def test_estimates_that_are_wanted_later_are_made(self, measure: Measure, tmp_path: Path) -> None:
        measure()
        found = measure(estimates=tmp_path / "est")
        assert not any(song.reused for song in found.songs)
        assert len(tree(tmp_path / "est")) == 6

    def test_progress(self, measure: Measure) -> None:
        told: list[EvaluationProgress] = []
        measure(report=told.append)
        assert [now.finished.song for now in told if now.finished] == ["A", "B", "C"]
        assert all(now.total == 3 for now in told)
        assert {now.song for now in told} == {"", "A", "B", "C"}
        assert (told[-1].done, told[0].done) == (3, 0)

    def test_songs_in_flight_are_bounded(self, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
        most = []
        depart = song_run.SongRun._depart

        def count(self: Any, *arguments: Any) -> None:
            depart(self, *arguments)
            most.append(len(self._flights))

        monkeypatch.setattr(song_run.SongRun, "_depart", count)
        measure(jobs=1)
        assert most == [1, 2, 2]


def told(found: evaluate.Evaluation) -> list[str]:
    return [failure.told for failure in found.failures]


@pytest.mark.usefixtures("quick")
class TestBadSongs:
    """One bad song is one failure; the others are measured, and the report says what is missing."""

    @pytest.fixture
    def data(self, song_root: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(song_root, tmp_path / "data"))

    def check(self, found: evaluate.Evaluation, bad: str, why: str, out: Path) -> None:
        """Only ``bad`` failed, and that is all over the report."""
        good = [name for name in "ABC" if name != bad]
        assert [song.song for song in found.songs] == good
        (failure,) = found.failures
        assert failure.item == bad
        assert why in failure.told
        assert "\n" not in failure.told
        assert bad in failure.told
        assert tree(out / "songs") == [f"{name}.json" for name in good]
        assert {path.name for path in out.iterdir()} <= {
            "songs",
            "results.json",
            "results.csv",
            "boxplot.png",
        }
        whole = json.loads((out / "results.json").read_text())
        assert whole["errors"] == [{"input": bad, "error": failure.told}]
        assert [song["song"] for song in whole["songs"]] == good
        mean = np.mean([song.scores[0].figures["sdr_u_db"] for song in found.songs])
        assert found.summaries[0].figures["sdr_u_db"] == pytest.approx(mean)

    def test_nan_names_song_and_stem(
        self, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tfswa.runtime.stream.separator import Stream

        separate, calls = Stream._separate_chunks, []

        def broken(self: Stream, chunks: Audio) -> Audio:
            out = separate(self, chunks)
            calls.append(0)
            if len(calls) == 51:  # a song has 42
                out[:, 1] = math.nan
            return out

        monkeypatch.setattr(Stream, "_separate_chunks", broken)
        found = measure(estimates=tmp_path / "est")
        self.check(found, "B", "of accompaniment holds NaN or Inf", tmp_path / "out")
        assert told(found)[0].startswith("B: chunk")
        assert tree(tmp_path / "est") == [f"{s}/{n}.wav" for s in "AC" for n in ("accompaniment", "vocals")]

    @pytest.mark.parametrize("bad", "ABC")
    def test_a_file_that_cannot_be_decoded(
        self, measure: Measure, tmp_path: Path, data: Path, bad: str
    ) -> None:
        (data / bad / "vocals.wav").write_text("no audio")
        self.check(measure(data), bad, "vocals.wav cannot be decoded", tmp_path / "out")

    def test_a_file_that_cannot_be_read(
        self, measure: Measure, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(files: Any, names: Any) -> str:
            if files.name == "B":
                raise PermissionError(13, "Permission denied", str(data / "B" / "drums.wav"))
            return audio_sha256(files, names)

        monkeypatch.setattr(song_run, "audio_sha256", refuse)
        found = measure(data)
        self.check(found, "B", f"{data}/B/drums.wav: Permission denied", tmp_path / "out")

    def test_a_stem_that_is_missing(self, measure: Measure, tmp_path: Path, data: Path) -> None:
        (data / "B" / "vocals.wav").unlink()
        self.check(measure(data), "B", "B lacks vocals, though it holds", tmp_path / "out")

    def test_a_fault_of_ours(
        self, measure: Measure, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(folder: Path, spec: ModelSpec, **chosen: Any) -> list[Score]:
            if folder.name == "1":
                raise ZeroDivisionError("an accident")
            return quick_score(folder, spec, **chosen)

        monkeypatch.setattr(song_run, "score_song", broken)
        found = measure(data)
        self.check(found, "B", "B: ZeroDivisionError: an accident: a fault in tfx", tmp_path / "out")

    def test_a_song_that_is_mended_is_measured_by_the_next_run(
        self, measure: Measure, data: Path, song_root: Path
    ) -> None:
        (data / "B" / "vocals.wav").write_text("no audio")
        measure(data)
        shutil.copy(song_root / "B" / "vocals.wav", data / "B" / "vocals.wav")
        found = measure(data)
        assert [song.reused for song in found.songs] == [True, False, True]
        assert not found.failures

    def test_songs_without_truth_write_nothing(self, measure: Measure, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "song.wav", noise(RATE, 2), RATE)
        found = measure(tmp_path / "song.wav")
        assert (found.songs, found.files) == ((), {})
        assert told(found)[0].startswith("song.wav has no true stems, the model makes vocals, acc")
        assert not (tmp_path / "out").exists()

    def test_a_song_of_no_samples(self, measure: Measure, tmp_path: Path) -> None:
        for name in ("drums", "vocals"):
            (tmp_path / "data" / "D").mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "data" / "D" / f"{name}.wav", noise(0, 2), RATE)
        found = measure(tmp_path / "data")
        assert told(found) == ["D holds no samples, measuring needs some: take it away"]
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_folder_that_becomes_a_link_meanwhile_is_noticed(measure: Measure, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()

    def report(progress: EvaluationProgress) -> None:
        if progress.finished is not None and not out.is_symlink():
            out.rename(tmp_path / "moved")
            out.symlink_to(outside)

    with pytest.raises(UsageError, match=r"cannot write .*/out: (the folder was replaced|No such file)"):
        measure(report=report)
    assert list(outside.iterdir()) == []
    assert len(list((tmp_path / "moved" / "songs").iterdir())) == 1  # what was finished before


def test_jobs_decide_nothing(measure: Measure, tmp_path: Path) -> None:
    first = measure(jobs=1, plot=False)
    assert all(value is not None for value in first.summaries[0].figures.values())
    shutil.rmtree(tmp_path / "out")
    assert measure(jobs=2, plot=False).summaries == first.summaries


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[evaluate.Evaluation, Audio, Audio]:
    """The demo on a real song; truth and estimates, ``[S, C, N]``, as they lie in WAV files.

    The song is laid out as WAV by the program ffmpeg, since decoders of AAC differ by 2e-7, which moves a
    quiet window by 1e-5 dB.
    """
    try:
        by_museval.require_museval()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed: its example stem file is the real one")
    place = tmp_path_factory.mktemp("real")
    (place / "song").mkdir()
    sources = dict.fromkeys(("drums", "bass", "other", "vocals"), np.zeros((0, 2)))
    for stream, name in enumerate(sources, 1):
        wav = place / "song" / f"{name}.wav"
        command = ["ffmpeg", "-v", "error", "-i", path, "-map", f"0:a:{stream}", "-c:a", "pcm_f32le", wav]
        subprocess.run(list(map(str, command)), check=True)
        sources[name] = soundfile.read(wav, dtype="float32")[0]
    found = evaluate.evaluate(
        One(open_model("demo")),
        find_songs(place / "song"),
        place / "out",
        backend="ort",
        options=BackendOptions(threads=1),
        choices=Choices(estimates=place / "est", plot=False, jobs=1),
    )
    rest = np.sum([sources[name] for name in ("drums", "bass", "other")], axis=0, dtype=np.float64)
    truth = np.stack((sources["vocals"].T, rest.astype(np.float32).T))
    files = [place / "est" / "song" / f"{name}.wav" for name in ("vocals", "accompaniment")]
    estimates = np.stack([soundfile.read(file, dtype="float32")[0].T for file in files])
    return found, truth, estimates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
class TestRealAudio:
    def test_figures_are_musevals_or_not_defined(self, real: Any) -> None:
        import museval

        found, truth, estimates = real
        for seconds, added in ((1, ""), (10, "_10s")):
            window = seconds * 44_100
            expected = museval.evaluate(
                truth.transpose(0, 2, 1).astype(np.float64),
                estimates.transpose(0, 2, 1).astype(np.float64),
                win=window,
                hop=window,
            )
            for measure, values in zip(MEASURES, expected, strict=True):
                for index, stem in enumerate(("vocals", "accompaniment")):
                    score = found.songs[0].scores[index]
                    assert (score.stem, score.estimator) == (stem, "model")
                    listed = [math.nan if v is None else v for v in score.windows[f"{measure}_{seconds}s_db"]]
                    median, name = np.nanmedian(values[index]), f"{measure}{added}_c_db"
                    if name in score.undefined:
                        assert (measure, seconds) in {("sir", 1), ("sar", 1)}
                        assert score.figures[name] is None
                        assert found.summaries[index].undefined_songs[name] == 1
                        why = r"cutting stems into windows changes its \w+ by [-+]\d+\.\d dB"
                        assert re.fullmatch(why, score.undefined[name])
                        continue
                    within = AGREEMENT_DB if measure == "sdr" else ILL_CONDITIONED_DB
                    np.testing.assert_allclose(listed, values[index], rtol=0, atol=within)
                    assert np.isfinite(listed).any()
                    assert score.figures[name] == pytest.approx(median, abs=within)
                    assert found.summaries[index].figures[name] == pytest.approx(median, abs=within)

    def test_musevals_own_store_says_the_same_sdr(self, real: Any) -> None:
        """By way of its dictionaries and data frames, which round to 1e-5 dB and drop what is infinite."""
        import museval

        found, truth, estimates = real
        stems = ("vocals", "accompaniment")
        targets = {stem: SimpleNamespace(audio=t.T) for stem, t in zip(stems, truth, strict=True)}
        track = SimpleNamespace(name="song", rate=44_100, targets=targets)
        made = {stem: estimate.T for stem, estimate in zip(stems, estimates, strict=True)}
        store = museval.EvalStore()
        store.add_track(museval.eval_mus_track(track, made))
        table = store.agg_frames_tracks_scores()
        for summary in found.summaries[:2]:
            assert summary.figures["sdr_c_db"] == pytest.approx(float(table[summary.stem]["SDR"]), abs=1e-5)

    @pytest.mark.parametrize("fault", ["swapped", "shifted"])
    def test_a_fault_is_seen(self, real: Any, tmp_path: Path, fault: str) -> None:
        found, truth, estimates = real
        if fault == "swapped":
            estimates = estimates[::-1]
        else:
            estimates = np.pad(estimates, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        spec = open_model("demo").spec
        folder = write_arrays(tmp_path, truth, estimates)
        broken = score_song(folder, spec, baselines=False)
        for good, bad in zip(found.songs[0].scores, broken, strict=False):
            for name in ("sdr_c_db", "sdr_10s_c_db", "sdr_u_db", "isr_10s_c_db"):
                value, other = good.figures[name], bad.figures[name]
                assert value is not None
                assert other is not None
                assert abs(value - other) > 1000 * AGREEMENT_DB, (name, value, other)

    def test_baselines_are_in_order(self, real: Any) -> None:
        figures = {(s.estimator, s.stem): s.figures["sdr_u_db"] or 0.0 for s in real[0].summaries}
        for stem in ("vocals", "accompaniment"):
            assert figures["mixture", stem] < figures["model", stem] < figures["oracle", stem]
            assert figures["silence", stem] == 0.0
