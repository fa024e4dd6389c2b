"""``tfx calibrate`` from end to end: what it leaves in a bundle, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from numpy.typing import NDArray
from planes import infer_planes

onnx = pytest.importorskip("onnx", reason="onnx is not installed: calibration needs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("torch", reason="torch is not installed: calibration needs it")

from click.testing import CliRunner  # noqa: E402

from tfswa.calibration import calibrate as work  # noqa: E402
from tfswa.calibration import gather as gathering  # noqa: E402
from tfswa.calibration import search as searching  # noqa: E402
from tfswa.calibration.corpus import open_corpus  # noqa: E402
from tfswa.calibration.gather import gather  # noqa: E402
from tfswa.calibration.groups import groups  # noqa: E402
from tfswa.calibration.loss import HeldOut  # noqa: E402
from tfswa.calibration.ranges import METHODS, Collector  # noqa: E402
from tfswa.calibration.simulate import Simulator  # noqa: E402
from tfswa.export.onnx import PLAN, export_onnx  # noqa: E402
from tfswa.export.plan import PrecisionPlan  # noqa: E402
from tfswa.export.quantize import CALIBRATION, count_quantized, layers, load_ranges  # noqa: E402
from tfswa.runtime.backends import BackendOptions, open_session  # noqa: E402
from tfswa.runtime.backends.openvino import process_core  # noqa: E402
from tfswa.runtime.cli import tfx as group  # noqa: E402
from tfswa.runtime.errors import ConfigError, ExportError  # noqa: E402
from tfswa.runtime.machine import int8_instructions  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, open_model  # noqa: E402

RATE = 8000
CHUNK_SECONDS = 0.24
SHORT = ("--chunks", 4, "--held-out", 2)
PLANNED = ("--sensitivity", "--cost", "counted")
INT8_DB = 30.0  # an untrained network, its layers in 8 bits


@dataclass(frozen=True)
class Whole:
    """One run with everything, read only."""

    bundle: Path
    chart: Path
    report: Any
    said: str


@pytest.fixture(scope="module")
def whole(exported_bundle: Path, song_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A bundle that was calibrated and planned for."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copytree(exported_bundle, place / "whole.tfx")
    command = ["calibrate", place / "whole.tfx", "--audio", song_root, *SHORT, *PLANNED]
    command += ["--chart", place / "x.png", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        done = CliRunner().invoke(group, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return Whole(place / "whole.tfx", place / "x.png", json.loads(done.stdout), done.stderr)


@pytest.fixture
def calibrated(whole: Whole, tmp_path: Path) -> BundleModel:
    """A copy of its bundle."""
    shutil.copytree(whole.bundle, tmp_path / "calibrated.tfx")
    return bundle_at(tmp_path / "calibrated.tfx")


def bundle_at(path: Path) -> BundleModel:
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


def read(model: Path, name: str) -> Any:
    return json.loads((model / name).read_text())


def write(path: Path, audio: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, RATE, subtype="FLOAT", format="WAV")
    return path


def noise(seconds: float, level: float = 0.1) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return (random.standard_normal((2, round(seconds * RATE))) * level).astype(np.float32)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every chunk that ranges are taken from."""
    calls: list[int] = []
    inner = Collector.add

    def add(self: Collector, planes: Any) -> None:
        calls.append(self.chunks)
        inner(self, planes)

    monkeypatch.setattr(Collector, "add", add)
    return calls


class TestWhole:
    def test_files_are_in_the_bundle(self, whole: Whole) -> None:
        files = bundle_at(whole.bundle).bundle.files
        kinds = {name: (entry.kind, entry.precision) for name, entry in files.items()}
        assert kinds == {
            "model.safetensors": ("weights", "fp16"),
            "model.ts": ("torchscript", "fp32"),
            "model.onnx": ("onnx", "fp32"),
            CALIBRATION: ("calibration", ""),
            PLAN: ("plan", ""),
            "model.int8.onnx": ("onnx", "int8"),
        }
        for name in files:
            bundle_at(whole.bundle).bundle.file(name)  # hashes hold
        assert sorted(path.name for path in whole.bundle.iterdir()) == sorted([*files, "manifest.json"])

    def test_ranges_are_of_every_layer_and_of_these_weights(self, whole: Whole, full: Any) -> None:
        model = bundle_at(whole.bundle)
        ranges = load_ranges(model)
        assert list(ranges) == [layer.name for layer in layers(full)]
        assert all(0 < limit < 100 for limit in ranges.values())
        kept = read(whole.bundle, CALIBRATION)
        assert kept["source"] == model.bundle.digest
        assert kept["method"] == whole.report["method"]

    def test_the_method_is_the_one_that_loses_least(self, whole: Whole) -> None:
        losses = {name: min(loss["snr_db"].values()) for name, loss in whole.report["methods"].items()}
        assert list(losses) == list(METHODS)
        assert whole.report["method"] == max(losses, key=lambda name: losses[name])
        assert read(whole.bundle, CALIBRATION)["methods"] == whole.report["methods"]
        assert min(losses.values()) > INT8_DB

    def test_the_corpus_is_told_by_its_hash(self, whole: Whole, song_root: Path, tmp_path: Path) -> None:
        made = gather([song_root], bundle_at(whole.bundle).spec, tmp_path / "again.npz", chunks=4, held_out=2)
        told = whole.report["corpus"]
        assert told["sha256"] == made.sha256
        assert told == read(whole.bundle, CALIBRATION)["corpus"]
        assert read(whole.bundle, PLAN)["measured"]["corpus_sha256"] == made.sha256
        assert (told["chunks"], told["held_out"], told["seed"]) == (4, 2, 0)
        assert sorted(told["sources"]) == ["A", "B", "C"]

    def test_the_plan_is_what_was_found_and_what_was_exported(self, whole: Whole, full: Any) -> None:
        model = bundle_at(whole.bundle)
        plan = PrecisionPlan.load(whole.bundle / PLAN)
        assert plan.source == model.bundle.digest
        assert list(plan.int8 or ()) == whole.report["plan"]["int8"]
        assert list(plan.fp32) == whole.report["plan"]["fp32"]
        assert whole.report["plan"] in whole.report["plans"]
        members = groups(full)
        assert list(whole.report["groups"]) == list(members)
        count = sum(len(members[name].layers) for name in plan.int8 or ())
        assert count > 0
        details = model.bundle.files["model.int8.onnx"].details
        assert (details["quantized"], details["layers"]) == (count, len(layers(full)))
        made_with = model.bundle.files[PLAN].details["calibration"]
        assert made_with == model.bundle.files[CALIBRATION].sha256

    def test_the_plan_keeps_within_its_budget(self, whole: Whole) -> None:
        loss = whole.report["plan"]["loss"]
        assert max(map(abs, [*loss["drift_db"].values(), *loss["expected_db"].values()])) <= 0.05
        assert loss["known"] is True  # the songs have true stems
        measured = read(whole.bundle, PLAN)["measured"]
        assert (measured["budget_db"], measured["half"]) == (0.05, "bf16")
        assert (measured["cost_unit"], whole.report["cost_unit"]) == ("x float32", "x float32")
        assert measured["groups"] == whole.report["groups"]
        shares = [entry["cost"] for entry in whole.report["groups"].values()]
        assert sum(share["fp32"] for share in shares) == pytest.approx(1)
        assert whole.report["plan"]["cost"] <= sum(share["half"] for share in shares)

    def test_each_group_was_measured_alone(self, whole: Whole) -> None:
        alone = [entry["alone"]["int8"]["snr_db"] for entry in whole.report["groups"].values()]
        worst = min(min(loss["snr_db"].values()) for loss in whole.report["methods"].values())
        assert all(min(loss.values()) > worst for loss in alone)

    def test_what_the_search_said_is_what_the_artifact_does(
        self, whole: Whole, song_root: Path, tmp_path: Path
    ) -> None:
        """The exported graph computes float32 where the plan has half precision: it loses no more."""
        model = bundle_at(whole.bundle)
        made = gather([song_root], model.spec, tmp_path / "again.npz", chunks=4, held_out=2)
        full, int8 = (open_session("ort", model, BackendOptions(precision=p)) for p in ("fp32", "int8"))
        loss = HeldOut(made.held_out, model.spec, partial(infer_planes, full)).measure(
            partial(infer_planes, int8)
        )
        for stem, told in whole.report["plan"]["loss"]["snr_db"].items():
            assert loss.snr_db[stem] > told - 1.0
        if not set(whole.report["groups"]) - set(whole.report["plan"]["int8"]):  # all of it in 8 bits
            for stem, told in whole.report["plan"]["loss"]["snr_db"].items():
                assert loss.snr_db[stem] == pytest.approx(told, abs=0.5)

    def test_the_chart_is_a_picture(self, whole: Whole) -> None:
        assert whole.chart.read_bytes().startswith(b"\x89PNG")

    def test_progress_is_told_in_lines(self, whole: Whole) -> None:
        lines = whole.said.splitlines()
        assert "A: 6.0 s, chunks: 25" in lines
        assert any(line.startswith("4 chunks to calibrate on (") for line in lines)
        for phase in (
            "ranges: 4 steps",
            f"methods: {len(METHODS)} steps",
            "each group in int8 alone: 21 steps",
        ):
            assert phase in lines

    def test_where_it_is(self, whole: Whole) -> None:
        assert whole.report["file"] == str(whole.bundle / "model.int8.onnx")
        assert whole.report["model"] == str(whole.bundle)


class TestRuns:
    def test_the_same_seed_gives_the_same_bytes_and_the_graph_is_read_once(
        self,
        tfx: Tfx,
        whole: Whole,
        exported: BundleModel,
        song_root: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        read: list[str] = []
        load = onnx.load

        def counted(path: Path, *given: Any, **more: Any) -> Any:
            read.append(Path(path).name)
            return load(path, *given, **more)

        monkeypatch.setattr(onnx, "load", counted)
        command = ("calibrate", exported.name, "--audio", song_root, *SHORT)
        assert tfx(*command, *PLANNED).code == 0
        assert read.count("model.onnx") == 1  # ONNX Runtime's quantizer reads files of its own
        for name in (CALIBRATION, PLAN, "model.int8.onnx"):
            assert (exported.bundle.path / name).read_bytes() == (whole.bundle / name).read_bytes()

    def test_another_seed_draws_other_chunks(
        self, tfx: Tfx, whole: Whole, exported: BundleModel, song_root: Path
    ) -> None:
        command = ("calibrate", exported.name, "--audio", song_root, *SHORT, "--seed", 1, "--json")
        report = tfx(*command, "--method", whole.report["method"]).json
        assert report["corpus"]["seed"] == 1
        assert report["corpus"]["sha256"] != whole.report["corpus"]["sha256"]
        assert load_ranges(bundle_at(exported.bundle.path)) != load_ranges(bundle_at(whole.bundle))

    def test_without_sensitivity_every_layer_is_quantized(
        self, tfx: Tfx, exported: BundleModel, song_root: Path
    ) -> None:
        done = tfx("calibrate", exported.name, "--audio", song_root, *SHORT, "--method", "minmax")
        assert done.code == 0, done.err
        head, columns, _, row, file, bound = done.out.splitlines()
        assert bound.startswith("losses are those of exact sums; ")
        assert [len(figure.partition(".")[2]) for figure in row.split()[2:]] == [1, 1, 4, 4]  # SNR, drift
        assert head.startswith("ranges, every layer in int8, on held-out audio")
        assert columns.split()[:4] == ["method", "vocals", "SNR", "dB"]
        assert row.startswith("minmax *")
        assert file.startswith(str(exported.bundle.path / "model.int8.onnx"))
        files = bundle_at(exported.bundle.path).bundle.files
        assert files["model.int8.onnx"].details["quantized"] == 41
        assert PLAN not in files
        assert list(read(exported.bundle.path, CALIBRATION)["methods"]) == ["minmax"]

    def test_a_corpus_that_was_kept_gives_the_same_ranges(
        self, tfx: Tfx, whole: Whole, exported: BundleModel, song_root: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept.npz"
        options = ("--method", whole.report["method"], "--json")
        command = ("calibrate", exported.name, "--audio", song_root, *SHORT, "--keep", kept)
        first = tfx(*command, *options).json
        assert open_corpus(kept, exported.spec).sha256 == whole.report["corpus"]["sha256"]
        again = tfx("calibrate", exported.name, "--corpus", kept, "--force", *options).json
        assert again == {**first, "peak_memory_mb": again["peak_memory_mb"]}
        assert load_ranges(bundle_at(exported.bundle.path)) == load_ranges(bundle_at(whole.bundle))

    def test_a_plan_can_follow_later(
        self, tfx: Tfx, whole: Whole, calibrated: BundleModel, song_root: Path, added: list[int]
    ) -> None:
        before = (calibrated.bundle.path / CALIBRATION).read_bytes()
        command = ("calibrate", calibrated.name, "--audio", song_root, *SHORT, *PLANNED)
        done = tfx(*command, "--depth", 1, "--json")
        assert list(done.json["groups"]) == ["stem", "encoder", "down", "up", "skip", "decoder", "head"]
        assert (done.json["method"], done.json["methods"]) == (None, {})
        assert (calibrated.bundle.path / CALIBRATION).read_bytes() == before
        assert added == []
        assert PrecisionPlan.load(calibrated.bundle.path / PLAN) != PrecisionPlan.load(whole.bundle / PLAN)

    def test_the_tables_of_a_plan(self, tfx: Tfx, calibrated: BundleModel, song_root: Path) -> None:
        done = tfx("calibrate", calibrated.name, "--audio", song_root, *SHORT, *PLANNED, "--depth", 1)
        assert done.code == 0, done.err
        lines = done.out.splitlines()
        assert lines[0].startswith(
            "plans, the rest in bf16 (* taken; time of the network, the fastest without"
        )
        assert any("of 7 groups in int8" in line and "*" in line for line in lines)
        assert sum(" in int8 alone: " in line for line in lines) == 5
        assert lines[-3].startswith("losses are those of exact sums; ")
        assert lines[-2].endswith("MB, by precision-plan.json")
        assert lines[-1] == "run it with --backend openvino --precision mixed"

    def test_a_budget_of_almost_nothing_quantizes_nothing(
        self, tfx: Tfx, calibrated: BundleModel, song_root: Path
    ) -> None:
        command = ("calibrate", calibrated.name, "--audio", song_root, *SHORT, *PLANNED)
        before = (calibrated.bundle.path / "model.int8.onnx").read_bytes()
        done = tfx(*command, "--depth", 1, "--budget-db", 1e-12)
        assert done.code == 0, done.err
        assert "no layer is worth 8 bits here" in done.out
        model = bundle_at(calibrated.bundle.path)
        assert PrecisionPlan.load(model.file(PLAN)).int8 == ()
        assert (calibrated.bundle.path / "model.int8.onnx").read_bytes() == before
        assert tfx(*command, "--depth", 1, "--budget-db", 1e-12, "--json").json["file"] is None
        for precision in ("int8", "mixed"):  # nothing is called INT8 that has none
            done = tfx("export", calibrated.name, "--precision", precision, "--force")
            assert done.code == 2
            assert f"the precision plan has no layer in 8 bits, asked for is {precision}: use" in done.err

    @pytest.mark.parametrize("each", [-0.01, -0.0001, 0.01])
    def test_the_fastest_plan_within_the_budget_is_taken(
        self, tfx: Tfx, calibrated: BundleModel, song_root: Path, monkeypatch: pytest.MonkeyPatch, each: float
    ) -> None:
        """Each layer in 8 bits makes the network faster or slower, whatever groups say of themselves."""
        run: list[int] = []

        def ratio(one: tuple[Path, str], two: tuple[Path, str], spec: Any) -> float:
            assert (one[0].name, one[1], two[1]) == ("model.onnx", "bf16", "bf16")
            run.append(count_quantized(onnx.load(two[0])))
            return 1.0 + each * run[-1]

        monkeypatch.setattr(work.cost, "measured", lambda groups, *_: work.cost.counted(groups))
        monkeypatch.setattr(work.cost, "ratio", ratio)
        command = ("calibrate", calibrated.name, "--audio", song_root, *SHORT, "--sensitivity", "--json")
        report = tfx(*command, "--budget-db", 0.2).json
        assert len(run) > 2
        times = {len(plan["int8"]): plan["time"] for plan in report["plans"]}
        assert times[0] == 1.0
        assert sorted(time for time in times.values() if time is not None) == sorted(
            {1.0, *(1.0 + each * layers for layers in run)}
        )
        if each == -0.01:  # else nothing gains what measuring scatters by
            assert report["plan"]["time"] == 1.0 + each * max(run)
            model = bundle_at(calibrated.bundle.path)
            assert model.bundle.files["model.int8.onnx"].details["quantized"] == max(run)
        else:
            assert (report["plan"]["int8"], report["plan"]["time"], report["file"]) == ([], 1.0, None)

    def test_force_calibrates_again_and_the_old_plan_does_not_count(
        self, tfx: Tfx, calibrated: BundleModel, song_root: Path
    ) -> None:
        before = (calibrated.bundle.path / CALIBRATION).read_bytes()
        command = ("calibrate", calibrated.name, "--audio", song_root, *SHORT, "--seed", 5, "--force")
        assert tfx(*command, "--method", "mse").code == 0
        assert (calibrated.bundle.path / CALIBRATION).read_bytes() != before
        model = bundle_at(calibrated.bundle.path)
        assert model.bundle.files["model.int8.onnx"].details["quantized"] == 41
        with pytest.raises(ConfigError, match="was made with another calibration"):
            export_onnx(model, precision="int8", force=True)
        assert tfx(*command[:-1], *PLANNED, "--depth", 1).code == 0  # finds a new one, with the new ranges
        export_onnx(bundle_at(calibrated.bundle.path), precision="int8", force=True)


class TestGoingOn:
    LONG = ("--chunks", 12, "--held-out", 2, "--method", "minmax")

    def stopping(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        inner = Collector.add

        def add(self: Collector, planes: Any) -> None:
            if self.chunks == after:
                raise KeyboardInterrupt
            inner(self, planes)

        monkeypatch.setattr(Collector, "add", add)

    @pytest.mark.parametrize(("after", "kept"), [(3, 0), (8, 8), (11, 8)])
    def test_a_run_that_was_stopped_takes_the_rest_alone(
        self,
        tfx: Tfx,
        exported: BundleModel,
        song_root: Path,
        added: list[int],
        contents: Callable[[Path], dict[str, bytes]],
        after: int,
        kept: int,
    ) -> None:
        before = contents(exported.bundle.path)
        command = ("calibrate", exported.name, "--audio", song_root, *self.LONG)
        with pytest.MonkeyPatch.context() as patch:
            self.stopping(patch, after)
            done = tfx(*command)
        assert (done.code, done.out) == (130, "")
        assert done.err.splitlines()[-1] == "tfx: interrupted"
        assert contents(exported.bundle.path) == before
        added.clear()
        assert tfx(*command).code == 0
        assert added == list(range(kept, 12))
        stopped = (exported.bundle.path / CALIBRATION).read_bytes()
        added.clear()
        assert tfx(*command, "--force").code == 0
        assert added == []  # the songs are the same
        shutil.rmtree(work.user_cache() / "calibration")
        assert tfx(*command, "--force").code == 0
        assert added == list(range(12))
        assert (exported.bundle.path / CALIBRATION).read_bytes() == stopped

    def test_other_songs_begin_anew(
        self, tfx: Tfx, exported: BundleModel, song_root: Path, added: list[int]
    ) -> None:
        assert tfx("calibrate", exported.name, "--audio", song_root, *self.LONG).code == 0
        added.clear()
        command = ("calibrate", exported.name, "--audio", song_root / "A", "--force")
        assert tfx(*command, *self.LONG).code == 0
        assert added == list(range(12))

    def test_an_export_that_failed_is_made_good_without_force(
        self, tfx: Tfx, exported: BundleModel, song_root: Path, added: list[int]
    ) -> None:
        def fails(*arguments: Any, **options: Any) -> Any:
            raise ExportError("the graph is not what it should be")

        command = ("calibrate", exported.name, "--audio", song_root, *SHORT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "export_onnx", fails)
            assert tfx(*command).code == 1
        assert CALIBRATION in bundle_at(exported.bundle.path).bundle.files
        added.clear()
        assert tfx(*command).code == 0
        assert added == []  # ranges are kept too
        assert "model.int8.onnx" in bundle_at(exported.bundle.path).bundle.files

    def test_a_search_that_was_stopped_goes_on(
        self, tfx: Tfx, calibrated: BundleModel, song_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ("calibrate", calibrated.name, "--audio", song_root, *SHORT, *PLANNED)
        measured: list[int] = []
        inner = HeldOut.measure

        def measure(self: HeldOut, *arguments: Any) -> Any:
            if len(measured) == 6:
                raise KeyboardInterrupt
            measured.append(1)
            return inner(self, *arguments)

        plan = (calibrated.bundle.path / PLAN).read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(searching.HeldOut, "measure", measure)
            assert tfx(*command).code == 130
        assert (calibrated.bundle.path / PLAN).read_bytes() == plan
        plans: list[Any] = []
        infer = Simulator.infer

        def counted(self: Simulator, planes: Any, wanted: Any) -> Any:
            plans.append(wanted)
            return infer(self, planes, wanted)

        monkeypatch.setattr(Simulator, "infer", counted)
        assert tfx(*command).code == 0
        alone = [wanted for wanted in plans if len(wanted) == 1]
        assert len(alone) == (21 - 6) * 2  # of two chunks each
        assert (calibrated.bundle.path / PLAN).read_bytes() == plan
        plans.clear()
        assert tfx(*command).code == 0
        assert [wanted for wanted in plans if wanted] == []  # all that is left is float32's own answer


class TestRefusals:
    @pytest.fixture
    def refused(
        self, tfx: Tfx, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
    ) -> Callable[..., str]:
        """Run a command that must be refused: in one line, with nothing written anywhere."""

        def run(code: int, *arguments: object) -> str:
            before = contents(tmp_path)
            done = tfx("calibrate", *arguments)
            assert (done.code, done.out) == (code, ""), done.err
            assert "Traceback" not in done.err
            lines = done.err.splitlines()
            assert [line.startswith("tfx: ") for line in lines] == [False] * (len(lines) - 1) + [True]
            assert contents(tmp_path) == before
            return lines[-1]

        return run

    def test_no_audio(self, refused: Any, exported: BundleModel, tmp_path: Path) -> None:
        (tmp_path / "songs").mkdir()
        assert "holds no audio" in refused(1, exported.name, "--audio", tmp_path / "songs")
        assert "no such file" in refused(1, exported.name, "--audio", tmp_path / "nowhere")

    def test_audio_that_is_too_short(self, refused: Any, exported: BundleModel, tmp_path: Path) -> None:
        song = write(tmp_path / "song.wav", noise(0.8 * CHUNK_SECONDS))
        assert "is too short: the longest song has 0.19 s" in refused(1, exported.name, "--audio", song)

    def test_silence(self, refused: Any, exported: BundleModel, tmp_path: Path) -> None:
        song = write(tmp_path / "song.wav", noise(3, 1e-5))
        said = refused(1, exported.name, "--audio", song, "--keep", tmp_path / "kept.npz")
        assert "all 2.9 s of audio are silent" in said

    def test_neither_audio_nor_a_corpus_or_both(
        self, refused: Any, exported: BundleModel, song_root: Path, tmp_path: Path
    ) -> None:
        says = "give either --audio (songs) or --corpus (a file that --keep wrote)"
        assert says in refused(2, exported.name)
        assert says in refused(2, exported.name, "--audio", song_root, "--corpus", tmp_path / "c.npz")

    def test_a_bundle_that_was_calibrated(
        self, refused: Any, calibrated: BundleModel, song_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def early(*arguments: Any, **options: Any) -> Any:
            raise AssertionError("before the work, not after it")

        monkeypatch.setattr(gathering, "gather", early)
        said = refused(2, calibrated.name, "--audio", song_root, *SHORT)
        assert "holds model.int8.onnx already: replace it with --force" in said

    def test_an_exported_file(self, refused: Any, exported: BundleModel, song_root: Path) -> None:
        graph = exported.bundle.path / "model.onnx"
        for options in ((), PLANNED):
            said = refused(2, graph, "--audio", song_root, *options)
            assert "is an exported file, `tfx calibrate` needs a bundle: name that" in said

    @pytest.mark.parametrize("options", [(), PLANNED])
    def test_a_bundle_without_a_graph(
        self, refused: Any, network_bundle: Any, song_root: Path, options: tuple[Any, ...]
    ) -> None:
        said = refused(4, network_bundle.path, "--audio", song_root, *options)
        assert "holds no onnx artifact in fp32: make it with `tfx export" in said

    def test_no_such_model(self, refused: Any, song_root: Path) -> None:
        assert "no model 'nothing-here'" in refused(2, "nothing-here", "--audio", song_root)

    def test_a_chart_of_what_is_not_searched(
        self, refused: Any, exported: BundleModel, song_root: Path, tmp_path: Path
    ) -> None:
        command = (exported.name, "--audio", song_root, "--chart", tmp_path / "x.png")
        assert "--chart draws what --sensitivity finds: give both" in refused(2, *command)
        (tmp_path / "x.png").write_text("mine")
        assert "x.png is there already" in refused(2, *command, *PLANNED)

    def test_a_corpus_that_is_not_there_or_damaged(
        self, refused: Any, exported: BundleModel, tmp_path: Path
    ) -> None:
        assert "is not there" in refused(1, exported.name, "--corpus", tmp_path / "none.npz")
        (tmp_path / "none.npz").write_text("no corpus")
        assert "is damaged, or no calibration corpus" in refused(
            1, exported.name, "--corpus", tmp_path / "none.npz"
        )

    def test_a_corpus_of_another_contract(
        self, refused: Any, exported: BundleModel, song_root: Path, tmp_path: Path
    ) -> None:
        other = replace(exported.spec, stems=("vocals", "drums"), unseen_stem="drums")
        gather([song_root], other, tmp_path / "other.npz", chunks=4, held_out=2)
        said = refused(2, exported.name, "--corpus", tmp_path / "other.npz")
        assert "was gathered for stems" in said

    def test_ranges_of_other_weights(self, refused: Any, calibrated: BundleModel, song_root: Path) -> None:
        content = {**read(calibrated.bundle.path, CALIBRATION), "source": "c" * 64}
        text = json.dumps(content)

        def put(path: Path) -> None:
            path.write_text(text)

        calibrated.bundle.add(CALIBRATION, put, kind="calibration")
        said = refused(1, calibrated.name, "--audio", song_root, *SHORT, *PLANNED)
        assert f"is of the weights {'c' * 12}, these are" in said

    def test_a_network_that_gives_nan(
        self, refused: Any, exported: BundleModel, song_root: Path, full: Any
    ) -> None:
        broken = onnx.ModelProto()
        broken.CopyFrom(full)
        for tensor in broken.graph.initializer:
            if tensor.name == "encoder.0.conv.first.weight":
                weight = onnx.numpy_helper.to_array(tensor).copy()
                weight[0, 0, 0, 0] = np.nan
                tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))

        def put(path: Path) -> None:
            path.write_bytes(broken.SerializeToString())

        exported.bundle.add("model.onnx", put, kind="onnx", precision="fp32")
        said = refused(1, exported.name, "--audio", song_root, *SHORT)
        assert "is not finite in float32: there is no range for it" in said

    @pytest.mark.parametrize(
        "options",
        [
            ("--chunks", "0"),
            ("--held-out", "0"),
            ("--difficult", "2"),
            ("--seed", "-1"),
            ("--keep", "kept.txt"),
        ],
    )
    def test_nonsense(
        self, refused: Any, exported: BundleModel, song_root: Path, options: tuple[str, str]
    ) -> None:
        refused(2, exported.name, "--audio", song_root, *options)

    def test_costs_that_openvino_cannot_tell(
        self, tfx: Tfx, calibrated: BundleModel, song_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (calibrated.bundle.path / PLAN).read_bytes()
        monkeypatch.setitem(sys.modules, "openvino", None)
        done = tfx("calibrate", calibrated.name, "--audio", song_root, *SHORT, "--sensitivity")
        assert (done.code, done.out) == (4, "")
        assert "pip install 'tfswa[openvino]'" in done.err.splitlines()[-1]
        assert (calibrated.bundle.path / PLAN).read_bytes() == before


class TestWhatWasMade:
    def separate(self, tfx: Tfx, model: BundleModel, song: Path, backend: str, precision: str) -> Any:
        place = song.parent / f"{backend}-{precision}"
        options = ("--backend", backend, "--precision", precision, "--threads", 1)
        done = tfx("separate", song, "-m", model.name, *options, "-o", place, "--json")
        assert done.code == 0, done.err
        files = done.json["files"][0]["outputs"]
        return np.stack([soundfile.read(files[stem])[0].T for stem in model.spec.stems])

    def test_separate_runs_it(self, tfx: Tfx, calibrated: BundleModel, tmp_path: Path) -> None:
        pytest.importorskip("openvino", reason="openvino is not installed")
        song = write(tmp_path / "song.wav", noise(3))
        right = self.separate(tfx, calibrated, song, "ort", "fp32")
        one = self.separate(tfx, calibrated, song, "ort", "int8")
        assert INT8_DB < (snr_db(right, one) or 0) < 70
        if int8_instructions() == "saturating":  # openvino refuses it, see tests of its backend
            return
        two = self.separate(tfx, calibrated, song, "openvino", "int8")
        assert (snr_db(one, two) or 0) > (snr_db(right, one) or 0) - 3  # the sum of two roundings' losses
        if "BF16" in process_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            mixed = self.separate(tfx, calibrated, song, "openvino", "mixed")
            assert (snr_db(right, mixed) or 0) > INT8_DB
            assert (snr_db(one, mixed) or 0) > INT8_DB

    def test_parity_gives_a_certificate(self, tfx: Tfx, calibrated: BundleModel, song_root: Path) -> None:
        done = tfx(
            *("parity", calibrated.name, "--quick", "--backend", "ort:int8", "--audio", song_root / "A"),
            "--json",
        )
        assert done.code == 0, done.err
        (certificate,) = read(calibrated.bundle.path, "parity.json")["certificates"]
        graph = bundle_at(calibrated.bundle.path).bundle.files["model.int8.onnx"]
        assert certificate["artifact"] == "model.int8.onnx"
        assert certificate["artifact_sha256"] == graph.sha256
        assert (certificate["backend"], certificate["precision"]) == ("ort", "int8")
        assert {row["stem"] for row in certificate["quality"]} == set(calibrated.spec.stems)
        assert all(abs(row["drift_db"]) < 0.1 for row in certificate["quality"])
        assert all(INT8_DB < row["snr_db"] < 70 for row in certificate["graph"])

    def test_an_uncalibrated_bundle_is_told_how(
        self, tfx: Tfx, exported: BundleModel, tmp_path: Path
    ) -> None:
        song = write(tmp_path / "song.wav", noise(1))
        done = tfx("separate", song, "-m", exported.name, "--backend", "ort", "--precision", "int8")
        assert (done.code, done.out) == (4, "")
        assert f"make it with `tfx calibrate {exported.name} --audio FOLDER`" in done.err.splitlines()[-1]


def test_what_the_numbers_are_bound_to() -> None:
    from tfswa.calibration.cli import _bound_to

    assert "here avx512_vnni: tfx parity measures it" in _bound_to("avx512_vnni")
    assert _bound_to("saturating").endswith("this CPU has no VNNI, and OpenVINO's int8 is refused on it")
