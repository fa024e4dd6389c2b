"""Parity: what passes, what must fail (faults of graph and host are planted), and what evidence is worth."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime import parity, separator
from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.bundle import MANIFEST, Bundle
from tfswa.runtime.errors import AudioError, BackendUnavailable, BundleError, UsageError
from tfswa.runtime.models import METADATA, BundleModel, embed, open_model
from tfswa.runtime.parity import (
    EVIDENCE,
    Gate,
    ParityReport,
    StemParity,
    compare,
    describe_evidence,
    gate_for,
    read_evidence,
    store,
)
from tfswa.runtime.spec import ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stft import Stft
from tfswa.runtime.truth import Song, synthetic_song

Audio = NDArray[np.float32]
Planes = NDArray[np.float32]

RATE = 8000
STFT = StftSpec(n_fft=512, hop=128, sample_rate=RATE)
CHUNK = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
HYPER: dict[str, Any] = {
    "dims": [8, 16],
    "depths": [1, 1],
    "decoder_depths": [1],
    "heads": [1, 2],
    "window": 4,
    "fold": 4,
}
STEMS = ("vocals", "accompaniment")


class Fixed:
    """A session whose answer a test decides: by default a third and two thirds of the mixture."""

    def __init__(
        self,
        spoil: Callable[[Planes], Planes] = lambda out: out,
        name: str = "fixed",
        artifact: tuple[str, str] = ("model.fixed", "a" * 64),
        versions: Mapping[str, str] | None = None,
    ):
        self.name, self.artifact, self.description = name, artifact, f"{name} 1.0"
        self.versions = {"fixed": "1.0"} if versions is None else versions
        self._spoil = spoil

    def infer(self, mixture: Planes) -> Planes:
        out = np.stack((mixture * np.float32(1 / 3), mixture * np.float32(2 / 3)), axis=1)
        return self._spoil(out)

    def close(self) -> None:
        pass


class Itself:
    """A reference that is the separator around ``Fixed``: what is left of a difference is the session's."""

    description = "itself"

    def __init__(self, model: Any):
        self.model = model

    def separate(self, mixture: Audio) -> NDArray[np.float64]:
        engine = separator.Separator.__new__(separator.Separator)
        engine.model, engine.spec, engine.batch = self.model, self.model.spec, 1
        engine.session, engine._stft = Fixed(), Stft(self.model.spec.stft)
        engine._network_thread_seconds = 0.0
        # A reference computes in float64: what it has beyond float32 is no difference.
        return engine.separate(mixture).astype(np.float64) * (1 + 1e-12)


@pytest.fixture
def model(tmp_path: Path) -> BundleModel:
    """A bundle without a network."""
    spec = ModelSpec(family="none", stems=STEMS, stft=STFT, chunk=CHUNK)
    path = tmp_path / "tiny.tfx"
    return BundleModel(str(path), Bundle.create(path, spec, {"w": np.zeros(1, np.float32)}))


@pytest.fixture
def song(model: BundleModel) -> Song:
    return synthetic_song(model.spec, seconds=0.5)


Measure = Callable[..., ParityReport]


@pytest.fixture
def measure(
    model: BundleModel, song: Song, monkeypatch: pytest.MonkeyPatch, register: Callable[..., None]
) -> Measure:
    """``measure(session, ...)``: a run of that session against ``Itself``."""
    register(parity, "itself", Itself)

    def run(session: Fixed, songs: list[Song] | None = None, **options: Any) -> ParityReport:
        monkeypatch.setattr(separator, "open_session", lambda *_: session)
        options = {"backend": session.name, "reference": "itself", **options}
        return compare(model, [song] if songs is None else songs, **options)

    return run


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """A tiny eager network."""
    pytest.importorskip("torch", reason="torch is not installed: the reference is an eager network")
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("network") / "tiny.tfx"
    return BundleModel(str(path), new_bundle("tfswa_lite", path, hyper=HYPER, stft=STFT, chunk=CHUNK))


class TestTheRealReference:
    def test_the_eager_network_passes_in_the_real_host(self, network: BundleModel) -> None:
        report = compare(network, [synthetic_song(network.spec, 1.0)], backend="torch")
        assert report.passed
        assert [stem.stem for stem in report.stems] == list(STEMS)
        for stem in report.stems:
            assert stem.snr_db is not None
            assert stem.snr_db > 100
            assert stem.drift_db is not None
            assert abs(stem.drift_db) < 1e-4
        assert (report.backend, report.precision, report.device) == ("torch", "fp32", "cpu")
        assert network.bundle.files["model.safetensors"].sha256 == report.artifact_sha256

    @pytest.mark.parametrize("fault", ["window", "hop", "nyquist", "fade"])
    def test_a_fault_of_the_host_fails_though_the_network_is_right(
        self, network: BundleModel, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        made = separator.Separator

        class Faulty(made):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)
                if fault == "window":
                    self._stft._analysis = np.roll(self._stft._analysis, 1)
                if fault == "hop":
                    real = self._stft.forward
                    self._stft.forward = lambda signal: real(np.roll(signal, 1, axis=-1))

            def _stems(self, chunk: Any, spectrum: Any, out: Any) -> Any:
                if fault == "nyquist":
                    spectrum = spectrum.copy()
                    spectrum[..., -1] += 1.0
                return super()._stems(chunk, spectrum, out)

            def stream(self) -> Any:
                engine = super().stream()
                if fault == "fade":
                    engine._fade_in = engine._fade_in[::-1].copy()
                return engine

        monkeypatch.setattr(parity, "Separator", Faulty)
        # Hard-panned full-band noise leaves no bin and no moment out.
        noise = np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32) * 0.2
        report = compare(network, [Song("noise", noise, {})], backend="torch")
        assert not report.passed
        assert not any(stem.passes(report.gate) for stem in report.stems[-1:])

    @pytest.mark.parametrize(
        "order", [[1, 0, 2, 3], [0, 2, 1, 3], [2, 3, 0, 1]], ids=["re im", "mixed", "l r"]
    )
    def test_planes_in_a_wrong_order_fail(
        self, network: BundleModel, monkeypatch: pytest.MonkeyPatch, order: list[int]
    ) -> None:
        from tfswa.train.backend import TorchSession

        real = TorchSession.infer
        monkeypatch.setattr(TorchSession, "infer", lambda session, planes: real(session, planes)[:, :, order])
        report = compare(network, [synthetic_song(network.spec, 0.5)], backend="torch")
        assert not any(stem.passes(report.gate) for stem in report.stems)

    def test_swapped_stems_fail(self, network: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
        from tfswa.train.backend import TorchSession

        real = TorchSession.infer
        monkeypatch.setattr(TorchSession, "infer", lambda session, planes: real(session, planes)[:, ::-1])
        report = compare(network, [synthetic_song(network.spec, 0.5)], backend="torch")
        assert not report.passed


class TestFigures:
    def test_what_is_identical_has_no_drift_at_all(self, measure: Measure) -> None:
        report = measure(Fixed())
        assert report.passed
        for stem in report.stems:
            assert stem.identical
            assert stem.snr_db is None
            assert stem.drift_db == 0.0
            assert stem.reference_sdr_db == stem.sdr_db

    def test_a_known_error_gives_the_snr_it_must(self, measure: Measure) -> None:
        report = measure(Fixed(lambda out: out * np.float32(1.001)))  # 60 dB below
        for stem in report.stems:
            assert stem.snr_db == pytest.approx(60.0, abs=0.5)
            assert not stem.identical
        assert not report.passed
        assert measure(Fixed(lambda out: out * np.float32(1.001)), gate=Gate(55.0, 0.1)).passed

    def test_drift_is_the_change_of_sdr_and_is_gated(self, measure: Measure) -> None:
        worse = measure(Fixed(lambda out: out * np.float32(0.9)), gate=Gate(0.0, 1e-6))
        drifts = [stem.drift_db for stem in worse.stems]
        for stem in worse.stems:
            assert stem.drift_db is not None
            assert stem.sdr_db is not None
            assert stem.reference_sdr_db is not None
            assert stem.drift_db == stem.sdr_db - stem.reference_sdr_db
        assert max(abs(drift) for drift in drifts if drift is not None) > 1e-3
        assert not worse.passed

    def test_a_song_without_truth_is_measured_by_snr_alone(self, measure: Measure, song: Song) -> None:
        report = measure(Fixed(), [dataclasses.replace(song, stems={})])
        assert report.passed
        assert all(stem.drift_db is None and stem.sdr_db is None for stem in report.stems)

    def test_nan_is_counted_and_fails_without_figures(self, measure: Measure) -> None:
        def spoil(out: Planes) -> Planes:
            out[0, 0, 0, 3, 4:7] = np.nan
            out[0, 1, 2, 3, 5] = np.inf
            return out

        report = measure(Fixed(spoil))
        assert not report.passed
        for stem in report.stems:
            assert stem.non_finite == 4
            assert not stem.identical
            assert stem.snr_db is stem.drift_db is stem.sdr_db is None

    def test_nan_that_the_inverse_never_looks_at_fails_too(self, measure: Measure) -> None:
        def spoil(out: Planes) -> Planes:
            out[0, 0, 1, 3, 0] = np.nan  # imaginary part of the first bin: no real signal has one
            return out

        report = measure(Fixed(spoil))
        assert [stem.identical for stem in report.stems] == [True, True]
        assert [stem.non_finite > 0 for stem in report.stems] == [True, True]
        assert not report.passed

    @pytest.mark.parametrize(
        ("snr_db", "drift_db", "passes"),
        [
            (80.0, None, True),
            (79.9, None, False),
            (None, None, False),
            (90.0, 0.01, True),
            (90.0, -0.01, True),
            (90.0, 0.011, False),
            (90.0, -0.011, False),
        ],
    )
    def test_a_gate_holds_both_ways(self, snr_db: Any, drift_db: Any, passes: bool) -> None:
        stem = StemParity("song", "vocals", snr_db, False, None, None, drift_db, 0)
        assert stem.passes(Gate(80.0, 0.01)) is passes

    def test_nan_in_one_song_does_not_count_for_the_next(self, measure: Measure, song: Song) -> None:
        calls = []

        def spoil(out: Planes) -> Planes:
            calls.append(1)
            if len(calls) == 1:
                out[:] = np.nan
            return out

        report = measure(Fixed(spoil), [song, dataclasses.replace(song, name="second")])
        assert [stem.non_finite > 0 for stem in report.stems] == [True, True, False, False]
        assert [stem.passes(report.gate) for stem in report.stems] == [False, False, True, True]
        assert not report.passed

    @pytest.mark.parametrize("samples", [0, 4000])
    def test_silence_is_no_proof(self, measure: Measure, samples: int) -> None:
        with pytest.raises(AudioError, match=r"empty\.wav holds no sound"):
            measure(Fixed(), [Song("empty.wav", np.zeros((2, samples), np.float32), {})])

    def test_no_song_is_no_proof(self, measure: Measure) -> None:
        with pytest.raises(AudioError, match="the corpus holds no sound"):
            measure(Fixed(), [])
        empty = dataclasses.replace(measure(Fixed()), stems=[])
        assert not empty.passed

    @pytest.mark.parametrize(
        ("precision", "snr_db", "drift_db", "gate"),
        [
            (None, None, None, Gate(80.0, 0.01)),
            ("fp16", None, None, Gate(45.0, 0.05)),
            ("fp16", 50.0, None, Gate(50.0, 0.05)),
            ("int8", 20.0, 0.2, Gate(20.0, 0.2)),
            ("fp32", None, 0.0, Gate(80.0, 0.0)),
        ],
    )
    def test_gates(self, precision: Any, snr_db: Any, drift_db: Any, gate: Gate) -> None:
        assert gate_for(precision, snr_db, drift_db) == gate

    def test_a_precision_without_a_gate_wants_one(self) -> None:
        with pytest.raises(UsageError, match="no default gate for precision 'int8'"):
            gate_for("int8", 20.0)

    @pytest.mark.parametrize(
        "limits", [(np.nan, 0.1), (np.inf, 0.1), (80.0, np.nan), (80.0, np.inf), (80, -1)]
    )
    def test_limits_are_finite(self, limits: tuple[float, float]) -> None:
        with pytest.raises(UsageError, match="give finite numbers"):
            Gate(*limits)


class TestRefusals:
    def test_an_exported_file_is_refused(self, model: BundleModel, tmp_path: Path, song: Song) -> None:
        path = tmp_path / "model.ts"
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/extra/{METADATA}.json", embed(model.spec, "fp32", "digest"))
        with pytest.raises(UsageError, match="parity needs the bundle"):
            compare(open_model(path), [song], backend="torchscript")

    def test_an_unknown_reference_is_named(self, model: BundleModel, song: Song) -> None:
        with pytest.raises(UsageError, match=r"unknown reference 'jax': choose one of .*torch"):
            compare(model, [song], backend="torch", reference="jax")

    def test_a_reference_without_its_library(
        self, model: BundleModel, song: Song, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Point:
            name = "torch"

            def load(self) -> None:
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(parity, "entry_points", lambda group: [Point()])
        with pytest.raises(BackendUnavailable, match=r"needs torch: pip install 'tfswa\[torch\]'"):
            compare(model, [song], backend="ort")


def seal(model: BundleModel) -> BundleModel:
    """The same bundle, sealed."""
    model.bundle.seal()
    return dataclasses.replace(model, bundle=Bundle.open(model.bundle.path))


def reopen(model: BundleModel) -> BundleModel:
    return dataclasses.replace(model, bundle=Bundle.open(model.bundle.path))


class TestEvidence:
    def test_is_stored_in_the_bundle_and_read_back(self, model: BundleModel, measure: Measure) -> None:
        report = measure(Fixed())
        path = store(model, report)
        assert path == model.bundle.path / EVIDENCE
        (run,) = read_evidence(reopen(model))
        assert run == json.loads(json.dumps(report.to_dict()))
        assert run["passed"] is True
        assert run["source"] == model.bundle.digest
        assert run["artifact_sha256"] == "a" * 64
        assert set(run["versions"]) == {"tfswa", "fixed"}

    def test_is_json_without_nan_even_for_nan(self, model: BundleModel, measure: Measure) -> None:
        def spoil(out: Planes) -> Planes:
            return out * np.float32(np.nan)

        path = store(model, measure(Fixed(spoil)))

        def refuse(name: str) -> None:
            raise AssertionError(name)

        (run,) = json.loads(path.read_text(), parse_constant=refuse)["runs"]
        assert run["passed"] is False
        assert run["stems"][0]["non_finite"] > 0
        assert run["stems"][0]["snr_db"] is None
        assert run["stems"][0]["passed"] is False

    def test_the_same_combination_replaces_and_others_stay(
        self, model: BundleModel, measure: Measure
    ) -> None:
        store(model, measure(Fixed()))
        store(model, measure(Fixed(name="other", artifact=("model.other", "b" * 64))))
        store(model, measure(Fixed(), options=BackendOptions(threads=2)))
        failed = measure(Fixed(lambda out: out[:, ::-1]))
        store(model, failed)
        runs = read_evidence(model)
        found = [(run["backend"], run["threads"], run["passed"]) for run in runs]
        assert found == [("other", None, True), ("fixed", 2, True), ("fixed", None, False)]

    def test_other_versions_and_songs_stay_beside_it(
        self, model: BundleModel, measure: Measure, song: Song
    ) -> None:
        store(model, measure(Fixed()))
        store(model, measure(Fixed(versions={"fixed": "2.0"})))
        store(model, measure(Fixed(), [dataclasses.replace(song, stems={})]))
        store(model, measure(Fixed(), batch=2))
        assert len(read_evidence(model)) == 4

    def test_a_file_has_none(self, model: BundleModel) -> None:
        assert read_evidence(model) == []

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}'])
    def test_damage_is_an_error_that_measuring_again_mends(
        self, model: BundleModel, measure: Measure, damage: str
    ) -> None:
        report = measure(Fixed())
        (store(model, report)).write_text(damage)
        with pytest.raises(BundleError, match=EVIDENCE):
            read_evidence(model)
        store(model, report)
        assert len(read_evidence(reopen(model))) == 1

    def test_damage_that_is_in_the_manifest_too(self, model: BundleModel) -> None:
        model.bundle.add(EVIDENCE, lambda path: path.write_text('{"schema": 1}') and None, kind="evidence")
        with pytest.raises(BundleError, match=r"damaged .*run `tfx parity` again"):
            read_evidence(model)

    def test_evidence_of_another_schema_is_not_ours_to_read(self, model: BundleModel) -> None:
        text = '{"schema": 99, "runs": [{}]}'
        model.bundle.add(EVIDENCE, lambda path: path.write_text(text) and None, kind="evidence")
        assert read_evidence(model) == []

    def test_that_of_a_sealed_bundle_goes_to_the_users_cache(
        self, model: BundleModel, song: Song, measure: Measure, private_cache: Path
    ) -> None:
        report = measure(Fixed())
        sealed = seal(model)
        before = {path.name: path.read_bytes() for path in sealed.bundle.path.iterdir()}
        path = store(sealed, report)
        assert private_cache in path.parents
        assert {path.name: path.read_bytes() for path in sealed.bundle.path.iterdir()} == before
        assert len(read_evidence(reopen(sealed))) == 1
        store(sealed, report)
        assert len(read_evidence(reopen(sealed))) == 1


class TestDescription:
    """What `tfx separate` says of the combination that it runs."""

    def test_of_a_combination_that_passed(self, model: BundleModel, measure: Measure) -> None:
        report = measure(Fixed(lambda out: out * np.float32(1.00001)))
        store(model, report)
        text = describe_evidence(model, Fixed(), BackendOptions())
        assert text == f"parity passed (100 dB SNR, {report.date[:10]})"
        store(model, measure(Fixed()))
        assert describe_evidence(model, Fixed(), BackendOptions()).startswith("parity passed (identical, ")

    def test_without_any(self, model: BundleModel) -> None:
        text = describe_evidence(model, Fixed(), BackendOptions())
        assert text == f"no passing parity evidence here: run `tfx parity {model.name} --backend fixed`"

    def test_of_one_that_failed(self, model: BundleModel, measure: Measure) -> None:
        store(model, measure(Fixed(lambda out: out[:, ::-1])))
        assert describe_evidence(model, Fixed(), BackendOptions()).startswith("no passing parity evidence")

    @pytest.mark.parametrize(
        ("session", "options"),
        [
            (Fixed(artifact=("model.fixed", "b" * 64)), BackendOptions()),
            (Fixed(artifact=("model.fp16", "a" * 64)), BackendOptions()),
            (Fixed(versions={"fixed": "1.1"}), BackendOptions()),
            (Fixed(versions={}), BackendOptions()),
            (Fixed(versions={"fixed": "1.0", "driver": "5"}), BackendOptions()),
            (Fixed(name="other"), BackendOptions()),
            (Fixed(), BackendOptions(device="cuda")),
            (Fixed(), BackendOptions(precision="fp16")),
        ],
        ids=["hash", "file", "version", "no version", "more versions", "backend", "device", "precision"],
    )
    def test_of_another_combination(
        self, model: BundleModel, measure: Measure, session: Fixed, options: BackendOptions
    ) -> None:
        store(model, measure(Fixed()))
        assert "passed (" in describe_evidence(model, Fixed(), BackendOptions(precision="fp32"))
        assert describe_evidence(model, session, options).startswith("no passing parity evidence")

    def test_of_another_chunking_of_the_same_weights(self, model: BundleModel, measure: Measure) -> None:
        store(model, measure(Fixed()))
        text = (model.bundle.path / EVIDENCE).read_text()
        spec = dataclasses.replace(model.spec, chunk=dataclasses.replace(CHUNK, context=0))
        weights = model.bundle.weights()
        other = Bundle.create(model.bundle.path, spec, weights, force=True)
        other.add(EVIDENCE, lambda path: path.write_text(text) and None, kind="evidence")
        changed = dataclasses.replace(model, bundle=other)
        assert describe_evidence(changed, Fixed(), BackendOptions()).startswith("no passing parity")

    def test_of_another_tfx(
        self, model: BundleModel, measure: Measure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store(model, measure(Fixed()))
        monkeypatch.setattr(parity, "version", lambda name: "99.0")
        assert describe_evidence(model, Fixed(), BackendOptions()).startswith("no passing parity")

    def test_damaged_evidence_is_no_reason_not_to_separate(
        self, model: BundleModel, measure: Measure
    ) -> None:
        store(model, measure(Fixed())).write_text("{")
        text = describe_evidence(model, Fixed(), BackendOptions())
        assert text == f"the parity evidence is damaged: run `tfx parity {model.name} --backend fixed`"


def test_the_manifest_knows_the_evidence(model: BundleModel, measure: Measure) -> None:
    store(model, measure(Fixed()))
    listed = json.loads((model.bundle.path / MANIFEST).read_text())["files"]
    assert listed[EVIDENCE]["kind"] == "evidence"
