"""Parity: what passes and what every level finds; faults of graph and host are in tests/parity."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_fakes import CHUNK, RATE, STEMS, STFT, Fixed, Itself, Planes

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.errors import AudioError, BackendUnavailable, UsageError
from tfswa.runtime.gates import default_gates
from tfswa.runtime.model.opening import METADATA, BundleModel, embed, open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity import reference as reference_module
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.compare import certify, compare
from tfswa.runtime.parity.corpus import Item, adversaries, seam_samples, songs
from tfswa.runtime.parity.figures import by_second_db
from tfswa.runtime.parity.judge import judge
from tfswa.runtime.songs.loading import Song
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream import separator


@pytest.fixture
def song(model: BundleModel) -> Song:
    return synthetic_song(model.spec, seconds=0.5)


Measure = Callable[..., Certificate]


@pytest.fixture
def measure(
    model: BundleModel, song: Song, monkeypatch: pytest.MonkeyPatch, register: Callable[..., None]
) -> Measure:
    """``measure(session, ...)``: a run of that session against ``Itself``."""
    register(reference_module, "itself", Itself)

    def run(session: Fixed, songs: list[Song] | None = None, **options: Any) -> Certificate:
        monkeypatch.setattr(separator, "open_session", lambda *_: session)
        options = {"backend": session.name, "reference": "itself", **options}
        return compare(model, [Item.of(song) for song in ([song] if songs is None else songs)], **options)

    return run


@pytest.fixture
def measured(
    model: BundleModel, monkeypatch: pytest.MonkeyPatch, register: Callable[..., None]
) -> Callable[..., Any]:
    """``measured(corpus, sessions)``: certificates, and what failed."""
    register(reference_module, "itself", Itself)

    def run(corpus: list[Item], sessions: list[Fixed], **options: Any) -> tuple[list[Certificate], Any]:
        by_name = {session.name: session for session in sessions}
        monkeypatch.setattr(separator, "open_session", lambda name, *_: by_name[name])
        options = {"failures": [], **options}
        runs = [Candidate(name) for name in by_name]
        return certify(model, corpus, runs, reference="itself", axes=False, **options), options["failures"]

    return run


def breaches(certificate: Certificate) -> list[Any]:
    return judge(certificate, default_gates())


class TestTheRealReference:
    def test_the_eager_network_passes_every_level_in_the_real_host(self, network: BundleModel) -> None:
        corpus = [Item.of(synthetic_song(network.spec, 1.0)), *adversaries(network.spec)]
        found = compare(network, corpus, backend="torch")
        assert breaches(found) == []
        assert [row.stem for row in found.graph] == list(STEMS)
        assert all(row.identical for row in found.graph)  # the same program on the same planes
        real = [row for row in found.signal if row.kind == "real"]
        assert [row.stem for row in real] == list(STEMS)
        for row in real:
            assert row.snr_db is not None
            assert row.si_sdr_db is not None
            assert min(row.snr_db, row.si_sdr_db) > 100
            assert len(row.by_second_db) == 1
            assert row.worst_second == 0
        for row in found.quality:
            assert row.drift_db is not None
            assert abs(row.drift_db) < 1e-4
            assert row.worst_window == 0
        assert len(found.signal) == 2 * len(corpus)
        tiny = {row.item for row in found.signal if row.kind == "tiny"}
        assert tiny == {"silence", "music at -80 dBFS", "1 sample", *(f"{n} samples" for n in (2, 3, 4, 5))}
        assert set(found.corpus) == {item.name for item in corpus}
        assert {axis.axis for axis in found.axes} >= {"again", "batch", "push"}
        assert set(found.non_finite.values()) == {0}
        assert (found.backend, found.precision, found.device) == ("torch", "fp32", "cpu")
        assert network.bundle.files["model.safetensors"].sha256 == found.artifact_sha256

    def test_float64_tells_how_much_is_rounding_of_the_reference(self, network: BundleModel) -> None:
        corpus = [Item.of(synthetic_song(network.spec, 1.0))]
        found = compare(network, corpus, backend="torch", reference="float64")
        assert "float64" in found.reference
        assert list(found.reference_rounding_db) == list(STEMS)
        for row, value in zip(found.signal, found.reference_rounding_db.values(), strict=True):
            assert value is not None
            assert 100 < value < 200
            assert row.snr_db == pytest.approx(value, abs=10)  # the artifact is a float32 program too
        assert compare(network, corpus, backend="torch").reference_rounding_db == {}

    def test_several_artifacts_are_measured_beside_one_reference(self, network: BundleModel) -> None:
        runs = [Candidate("torch"), Candidate("torch", BackendOptions("bf16")), Candidate("ort")]
        missing: dict[str, str] = {}
        seen: list[tuple[str, str]] = []
        found = certify(
            network,
            [Item.of(synthetic_song(network.spec, 0.5))],
            runs,
            missing=missing,
            listener=lambda song, run, right, found: seen.append((song.name, run)),
        )
        assert [certificate.name for certificate in found] == ["torch fp32", "torch bf16"]
        assert list(missing) == ["ort fp32"]
        assert "holds no onnx artifact" in missing["ort fp32"]
        assert seen == [("synthetic, seed 0", "torch fp32"), ("synthetic, seed 0", "torch bf16")]
        full, low = (certificate.worst_snr_db for certificate in found)
        assert full is not None
        assert low is not None
        assert full > 100 > 60 > low
        with pytest.raises(BackendUnavailable, match="holds no onnx artifact"):
            certify(network, [Item.of(synthetic_song(network.spec, 0.5))], runs)


class TestWhatFails:
    """A song or an artifact that fails costs the others nothing."""

    @staticmethod
    def bad(name: str = "bad") -> Item:
        def load() -> Song:
            raise AudioError(f"{name} cannot be decoded: use another")

        return Item(name, "real", load)

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_song_that_cannot_be_loaded_is_in_no_figures(
        self, measured: Callable[..., Any], song: Song, place: int
    ) -> None:
        corpus = [Item.of(song), Item.of(dataclasses.replace(song, name="other"))]
        corpus.insert(place, self.bad())
        (found,), failures = measured(corpus, [Fixed()])
        assert list(found.corpus) == [song.name, "other"]
        assert [failure.told for failure in failures] == ["bad cannot be decoded: use another"]
        assert breaches(found) == []
        with pytest.raises(AudioError, match="bad cannot be decoded"):
            measured(corpus, [Fixed()], failures=None)

    def test_of_bad_songs_alone_there_is_no_certificate(self, measured: Callable[..., Any]) -> None:
        with pytest.raises(AudioError, match=r"^bad cannot be decoded: use another \(and 1 more\)$"):
            measured([self.bad(), self.bad("worse")], [Fixed()])

    def test_an_artifact_that_fails_on_the_way(self, measured: Callable[..., Any], song: Song) -> None:
        def full(out: Planes) -> Planes:
            raise MemoryError

        (found,), failures = measured([Item.of(song)], [Fixed(full, "weak"), Fixed()])
        assert found.backend == "fixed"
        assert [(failure.item, failure.told) for failure in failures] == [
            ("weak fp32", "weak fp32: out of memory: use a smaller --batch, or close other programs")
        ]


class TestFigures:
    def test_what_is_identical_has_no_drift_at_all(self, measure: Measure) -> None:
        found = measure(Fixed())
        assert breaches(found) == []
        assert all(row.identical and row.snr_db is None for row in (*found.graph, *found.signal))
        assert all(row.peak_error == 0.0 for row in found.signal)
        assert [row.drift_db for row in found.quality] == [0.0, 0.0]
        assert [row.worst_drift_db for row in found.quality] == [0.0, 0.0]
        assert all(dict(row.reference) == dict(row.artifact) for row in found.quality)
        assert found.worst_snr_db is None
        assert found.worst_drift_db == 0.0

    def test_a_known_error_gives_the_snr_it_must(self, measure: Measure) -> None:
        found = measure(Fixed(lambda out: out * np.float32(1.001)))  # 60 dB below
        for row in (*found.graph, *found.signal):
            assert row.snr_db == pytest.approx(60.0, abs=0.5)
            assert not row.identical
        for row in found.graph:
            assert row.relative_error == pytest.approx(1e-3, rel=0.01)
        for row in found.signal:
            assert row.si_sdr_db is None or row.si_sdr_db > 80  # a scale is all that is wrong
        assert {breach.level for breach in breaches(found)} >= {"graph", "signal"}

    def test_the_worst_second_is_found_with_its_time(self, measure: Measure, model: BundleModel) -> None:
        song = synthetic_song(model.spec, seconds=3.0)
        calls = []

        def spoil(out: Planes) -> Planes:
            calls.append(1)
            return out * np.float32(1.01 if 12 < len(calls) < 15 else 1.0001)

        found = measure(Fixed(spoil), [song], axes=False)
        _, step = seam_samples(model.spec)
        second = 11 * step // RATE  # the graph is asked first, then chunk after chunk
        for row in found.signal:
            assert len(row.by_second_db) == 3
            assert row.worst_second == second
        assert {row.worst_window for row in found.quality} == {second}

    def test_the_last_second_is_a_whole_one(self) -> None:
        right = np.ones((2, 308), np.float32)
        found = right.copy()
        found[:, 300:] += 0.1  # 8 of the 100 samples that are the last second
        *before, last = by_second_db(right, found, 100)
        assert before == [None] * 3
        assert last == pytest.approx(20 - 10 * np.log10(0.08), abs=1e-4)
        assert by_second_db(right[:, :30], found[:, :30], 100) == [None]

    def test_drift_is_the_change_of_sdr(self, measure: Measure) -> None:
        found = measure(Fixed(lambda out: out * np.float32(0.9)))
        for row in found.quality:
            assert row.drift_db is not None
            assert row.drift_db == row.artifact["sdr_u_db"] - row.reference["sdr_u_db"]
        worst = max((row.drift_db for row in found.quality), key=abs)
        assert found.worst_drift_db == worst
        assert any(breach.level == "quality" for breach in breaches(found))

    def test_bsseval_measures_songs_of_a_second_and_more(self, measure: Measure, model: BundleModel) -> None:
        found = measure(Fixed(), [synthetic_song(model.spec, seconds=2.0)])
        for row in found.quality:
            assert all(row.reference[f"{name}_c_db"] is not None for name in ("sdr", "sir", "sar"))
            assert row.drift_c_db == 0.0

    def test_a_song_without_truth_is_measured_by_snr_alone(self, measure: Measure, song: Song) -> None:
        found = measure(Fixed(), [dataclasses.replace(song, stems={})])
        assert breaches(found) == []
        assert found.quality == []
        assert found.worst_drift_db is None

    def test_nan_is_counted_and_fails_without_figures(self, measure: Measure, song: Song) -> None:
        def spoil(out: Planes) -> Planes:
            out[0, 0, 0, 3, 4:7] = np.nan
            out[0, 1, 2, 3, 5] = np.inf
            return out

        found = measure(Fixed(spoil))
        assert found.non_finite == {f"a chunk of {song.name}": 4, song.name: 4}
        assert found.signal == found.quality == []
        assert [row.snr_db for row in found.graph] == [None, None]
        assert {breach.level for breach in breaches(found)} == {"finite", "graph"}

    def test_nan_that_the_inverse_never_looks_at_fails_too(self, measure: Measure, song: Song) -> None:
        def spoil(out: Planes) -> Planes:
            out[0, 0, 1, 3, 0] = np.nan  # imaginary part of the first bin: no real signal has one
            return out

        found = measure(Fixed(spoil))
        assert all(row.identical for row in found.signal)
        assert found.non_finite[song.name] > 0
        assert any(breach.level == "finite" for breach in breaches(found))

    def test_nan_in_one_song_does_not_count_for_the_next(self, measure: Measure, song: Song) -> None:
        calls = []

        def spoil(out: Planes) -> Planes:
            calls.append(1)
            if len(calls) == 2:  # the first is the graph alone
                out[:] = np.nan
            return out

        found = measure(Fixed(spoil), [song, dataclasses.replace(song, name="second")])
        assert found.non_finite[song.name] > 0 == found.non_finite["second"]
        assert {row.item for row in found.signal} == {"second"}
        assert {breach.item for breach in breaches(found)} == {song.name}

    def test_what_is_measured_is_never_computed_again(
        self, measure: Measure, song: Song, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spoil(out: Planes) -> Planes:
            out[:] = np.nan
            return out

        monkeypatch.setattr(
            separator, "Fallback", lambda *_: pytest.fail("parity measures the artifact alone")
        )
        assert measure(Fixed(spoil)).non_finite[song.name] > 0

    def test_two_songs_of_one_name_are_two_items(self, measure: Measure, song: Song) -> None:
        found = measure(Fixed(), [song, song])
        assert list(found.corpus) == [song.name, f"{song.name} (2)"]
        assert {row.item for row in found.signal} == set(found.corpus) == {row.item for row in found.quality}

    def test_a_silent_song_among_others_is_judged_by_its_error(self, measure: Measure, song: Song) -> None:
        silent = Song("silent", np.zeros_like(song.mixture), {})
        found = measure(Fixed(), [song, silent])
        assert {row.kind for row in found.signal if row.item == "silent"} == {"tiny"}
        assert breaches(found) == []

    @pytest.mark.parametrize("samples", [0, 100, 4000])
    def test_silence_is_no_proof(self, measure: Measure, samples: int) -> None:
        with pytest.raises(AudioError, match=r"empty\.wav holds no sound"):
            measure(Fixed(), [Song("empty.wav", np.zeros((2, samples), np.float32), {})])

    def test_no_song_is_no_proof(self, measure: Measure) -> None:
        with pytest.raises(AudioError, match="the corpus holds no sound"):
            measure(Fixed(), [])
        assert [str(b) for b in breaches(dataclasses.replace(measure(Fixed()), signal=[]))] == [
            "signal: count of real songs on the corpus is 0, the limit is 1"
        ]


class TestAxes:
    def test_an_item_that_leaks_into_the_next_of_its_batch(self, measure: Measure) -> None:
        def spoil(out: Planes) -> Planes:
            out[1:] += np.float32(1e-2) * out[:-1]
            return out

        found = measure(Fixed(spoil))
        wrong = [(axis.axis, axis.value) for axis in found.axes if not axis.identical]
        assert wrong == [("batch", 2), ("batch", 4)]
        assert {breach.level for breach in breaches(found)} == {"axes"}

    def test_one_that_gives_something_else_each_time(self, measure: Measure) -> None:
        random = np.random.default_rng(0)
        found = measure(Fixed(lambda out: out * np.float32(1 + 1e-6 * random.standard_normal())))
        again = found.axes[0]
        assert (again.axis, again.identical) == ("again", False)
        assert again.snr_db is not None
        assert again.snr_db > 100
        assert breaches(found) == []  # stated, and within the gate

    def test_one_thread_is_for_that_run_alone(self, network: BundleModel) -> None:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            found = compare(
                network,
                [Item.of(synthetic_song(network.spec, 0.5))],
                backend="torch",
                options=BackendOptions(threads=2),
            )
            assert [axis.value for axis in found.axes if axis.axis == "threads"] == [1]
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_they_can_be_left_out(self, measure: Measure) -> None:
        assert measure(Fixed(), axes=False).axes == []


class TestCorpus:
    def test_it_covers_the_difficult_and_is_the_same_each_time(self, model: BundleModel) -> None:
        first, second = (adversaries(model.spec) for _ in range(2))
        assert [item.load().sha256 for item in first] == [item.load().sha256 for item in second]
        assert len({item.name for item in first}) == len(first) >= 20
        other = {item.name: item.load().sha256 for item in adversaries(model.spec, seed=1)}
        assert any(other[item.name] != item.load().sha256 for item in first)
        kept, step = seam_samples(model.spec)
        lengths = {item.load().mixture.shape[-1] for item in first}
        assert {
            1,
            2,
            3,
            4,
            5,
            kept - 1,
            kept,
            kept + 1,
            kept + step - 1,
            kept + step,
            kept + step + 1,
        } <= lengths
        for item in first:
            mixture = item.load().mixture
            assert mixture.dtype == np.float32
            assert np.abs(mixture).max() <= 1.0
            assert item.kind == "adversarial"

    def test_their_lengths_are_those_at_which_a_chunk_is_added(
        self, model: BundleModel, measure: Measure
    ) -> None:
        counted = []

        def spoil(out: Planes) -> Planes:
            counted.append(len(out))
            return out

        kept, step = seam_samples(model.spec)
        noise = np.random.default_rng(0).standard_normal((2, kept + step + 1)).astype(np.float32)
        chunks = []
        for samples in (kept, kept + 1, kept + step, kept + step + 1):
            counted.clear()
            measure(Fixed(spoil), [Song("noise", noise[:, :samples], {})], axes=False)
            chunks.append(sum(counted) - 1)  # one was the graph alone
        assert chunks == [1, 2, 2, 3]

    def test_a_mono_model_has_no_left_and_right(self) -> None:
        spec = ModelSpec(family="none", stems=("a",), channels=1, stft=STFT, chunk=CHUNK)
        names = [item.name for item in adversaries(spec)]
        assert "left only" not in names
        assert {item.load().mixture.shape[0] for item in adversaries(spec)} == {1}

    def test_songs_are_read_when_their_turn_comes(self, model: BundleModel, tmp_path: Path) -> None:
        import soundfile

        for name in ("a", "b"):
            soundfile.write(tmp_path / f"{name}.wav", np.full((800, 2), 0.1), RATE)
        items = songs(tmp_path, model.spec)
        (tmp_path / "b.wav").unlink()
        assert [item.name for item in items] == ["a.wav", "b.wav"]
        assert items[0].load().mixture.any()
        with pytest.raises(AudioError, match=r"b\.wav cannot be opened"):
            items[1].load()
        (only,) = songs(None, model.spec)
        assert only.name.startswith("synthetic")


class TestRefusals:
    def test_an_exported_file_is_refused(self, model: BundleModel, tmp_path: Path, song: Song) -> None:
        path = tmp_path / "model.ts"
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/extra/{METADATA}.json", embed(model.spec, "fp32", "digest"))
        with pytest.raises(UsageError, match="parity needs the bundle"):
            compare(open_model(path), [Item.of(song)], backend="torchscript")

    def test_an_unknown_reference_is_named(self, model: BundleModel, song: Song) -> None:
        with pytest.raises(UsageError, match=r"unknown reference 'jax': choose one of .*torch"):
            compare(model, [Item.of(song)], backend="torch", reference="jax")

    def test_a_reference_without_its_library(
        self, model: BundleModel, song: Song, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Point:
            name = "torch"

            def load(self) -> None:
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(reference_module, "entry_points", lambda group: [Point()])
        with pytest.raises(BackendUnavailable, match=r"needs torch: pip install 'tfswa\[torch\]'"):
            compare(model, [Item.of(song)], backend="ort")
