"""What people watch: tables that survive kills and resumes, TensorBoard, Weights & Biases, loss.png."""

from __future__ import annotations

import csv
import io
import logging
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import BackendUnavailable, NonFiniteError

torch = pytest.importorskip("torch", reason="torch is not installed: TensorBoard's writer is torch's")
pytest.importorskip("tensorboard", reason="tensorboard is not installed: the log is for it")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")

from tfswa.train import watch as module  # noqa: E402
from tfswa.train.watch import CURVES, LOG, VALIDATION, WANDB_ID, Watch  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    return place


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def events(out: Path) -> Any:
    """Everything that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out), size_guidance={"scalars": 0, "images": 0, "audio": 0}).Reload()


def scalars(out: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(out).Scalars(tag)]


class TestTables:
    def test_a_row_is_in_the_file_at_once(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.scalars(10, {"loss": 1.5, "lr": 1e-3})
            assert (out / LOG).read_text() == "step,loss,lr\n10,1.5,0.001\n"
            watch.scalars(20, {"lr": 1e-4, "loss": 1.0})  # columns are those of the first row
            assert (out / LOG).read_text() == "step,loss,lr\n10,1.5,0.001\n20,1.0,0.0001\n"
            assert not (out / VALIDATION).exists()
            watch.scores(20, {"vocals": np.float64(6.5)})
            assert (out / VALIDATION).read_text() == "step,vocals\n20,6.5\n"

    def test_new_names_are_added_at_the_right(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.scalars(1, {"loss": 1.0, "lr": 0.5})
            watch.scalars(2, {"loss": 0.9, "extra": 7.0, "a, comma": 8.0})
            watch.scalars(3, {"lr": 0.25})
        assert rows(out / LOG) == [
            ["step", "loss", "lr", "extra", "a, comma"],
            ["1", "1.0", "0.5", "", ""],
            ["2", "0.9", "", "7.0", "8.0"],
            ["3", "", "0.25", "", ""],
        ]

    def test_the_header_is_rewritten_at_once(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Watch(out, 0) as watch:
            watch.scalars(1, {"loss": 1.0})
            before = (out / LOG).read_text()
            with monkeypatch.context() as patch:
                patch.setattr("os.replace", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    watch.scalars(2, {"other": 1.0})
            assert (out / LOG).read_text() == before

    def test_resuming_drops_later_rows_and_a_torn_line(self, out: Path) -> None:
        for name in (LOG, VALIDATION):
            (out / name).write_text("step,loss\n10,1.0\n20,0.9\n30,0.8\n40,0.")
        (out / CURVES).write_bytes(b"old")
        with Watch(out, 20) as watch:
            assert (
                rows(out / LOG) == rows(out / VALIDATION) == [["step", "loss"], ["10", "1.0"], ["20", "0.9"]]
            )
            assert (out / CURVES).exists()
            watch.scalars(30, {"loss": 0.7})
        assert rows(out / LOG)[1:] == [["10", "1.0"], ["20", "0.9"], ["30", "0.7"]]

    @pytest.mark.parametrize(
        ("left", "kept"),
        [
            ("", []),
            ("step,lo", []),  # killed while the header was written
            ("step,loss\n", []),
            ("step,loss\n10,1.0\n20", ["10"]),
            ("step,loss\n10,1.0\n20\n", ["10"]),  # a cell short
            ("step,loss\n10,1.0\n\0\0\0\0,\0\n", ["10"]),  # zeros, after a power cut
            ("step,loss\r\n10,1.0\r\n20,1.0\r", ["10"]),
        ],
    )
    def test_damage_is_dropped(self, out: Path, left: str, kept: list[str]) -> None:
        (out / LOG).write_bytes(left.encode())
        with Watch(out, 50) as watch:
            watch.scalars(60, {"loss": 0.5})
        assert [row[0] for row in rows(out / LOG)] == ["step", *kept, "60"]

    def test_a_new_run_begins_with_nothing(self, out: Path) -> None:
        for name in (LOG, VALIDATION, CURVES, WANDB_ID):
            (out / name).write_text("step,loss\n10,1.0\n")
        Watch(out, 0).close()
        assert {path.name for path in out.iterdir() if not path.name.startswith("events")} == set()


class TestBoard:
    def test_figures_have_their_steps(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.scalars(10, {"loss": 1.5})
            watch.scores(10, {"vocals": 6.5})
        assert scalars(out, "loss") == [(10, 1.5)]
        assert scalars(out, "validation/vocals") == [(10, 6.5)]

    def test_figures_are_in_the_file_at_once_wherever_its_folder_went(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.scalars(10, {"loss": 1.5})
            assert scalars(out, "loss") == [(10, 1.5)]
            moved = out.rename(out.with_name("moved"))
            watch.look(10, {"layer": np.eye(4)})
            assert events(moved).Tags()["images"] == ["attention"]

    def test_resuming_drops_later_figures(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            for step in (10, 20, 30):
                watch.scalars(step, {"loss": float(step)})
        with Watch(out, 20) as watch:
            watch.scalars(30, {"loss": 0.5})
        assert scalars(out, "loss") == [(10, 10.0), (20, 20.0), (30, 0.5)]

    def test_sounds_share_one_gain(self, out: Path) -> None:
        time = np.arange(4000) / 8000
        loud = np.stack((np.sin(2000 * time), 0 * time)).astype(np.float32) * 4
        with Watch(out, 0) as watch:
            watch.listen(5, 8000, {"mixture": loud, "vocals": loud / 4})
        shown = events(out)
        peaks = {}
        for name in ("mixture", "vocals"):
            (sound,) = shown.Audio(f"audio/{name}")
            assert sound.step == 5
            with wave.open(io.BytesIO(sound.encoded_audio_string)) as stream:
                assert stream.getparams()[:4] == (2, 2, 8000, 4000)
                samples = np.frombuffer(stream.readframes(4000), "<i2").reshape(-1, 2)
            assert not samples[:, 1].any()  # channels are not mixed up
            peaks[name] = int(np.abs(samples).max())
            (picture,) = shown.Images(f"spectrogram/{name}")
            assert picture.encoded_image_string.startswith(PNG)
        assert peaks == {"mixture": 32767, "vocals": 8192}

    def test_long_sounds_are_cut_to_their_middle(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "LISTEN_SECONDS", 0.5)
        ramp = np.linspace(0, 1, 8000, dtype=np.float32)[None]
        with Watch(out, 0) as watch:
            watch.listen(1, 8000, {"ramp": ramp})
        (sound,) = events(out).Audio("audio/ramp")
        with wave.open(io.BytesIO(sound.encoded_audio_string)) as stream:
            samples = np.frombuffer(stream.readframes(8000), "<i2") / 32767
        assert len(samples) == 4000
        assert samples[0] / samples[-1] == pytest.approx(0.25 / 0.75, abs=1e-3)

    def test_silence_and_nothing_are_heard(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.listen(1, 8000, {"silence": np.zeros((1, 800), np.float32)})
            watch.listen(2, 8000, {"nothing": np.zeros((2, 0), np.float32)})
            watch.look(2, {})
        assert events(out).Tags()["audio"] == ["audio/silence"]

    def test_audio_that_is_not_finite_is_refused(self, out: Path) -> None:
        broken = np.full((2, 800), np.nan, np.float32)
        with Watch(out, 0) as watch, pytest.raises(NonFiniteError, match="'vocals' of step 7 holds NaN"):
            watch.listen(7, 8000, {"vocals": broken})

    def test_maps_are_one_picture(self, out: Path) -> None:
        with Watch(out, 0) as watch:
            watch.look(3, {"a.time": np.eye(4), "b.window": np.full((9, 9), 1 / 9)})
        (picture,) = events(out).Images("attention")
        assert picture.step == 3
        assert picture.encoded_image_string.startswith(PNG)


class TestCurves:
    def test_they_are_drawn_at_the_end_from_all_rows(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[Any] = []
        real = module.pictures.loss_curves
        monkeypatch.setattr(
            module.pictures,
            "loss_curves",
            lambda *tables, losses: drawn.append(tables) or real(*tables, losses=losses),
        )
        with Watch(out, 0) as watch:
            watch.scalars(10, {"loss": 3.0})
            watch.scores(10, {"vocals": 1.0})
        with Watch(out, 10) as watch:
            watch.scalars(20, {"loss": 2.0, "lr": 0.1})
            assert len(drawn) == 1
        assert (out / CURVES).read_bytes().startswith(PNG)
        train, scores = drawn[1]
        np.testing.assert_equal(train, {"step": [10, 20], "loss": [3, 2], "lr": [np.nan, 0.1]})
        assert scores == {"step": [10], "vocals": [1]}

    def test_they_are_drawn_when_interrupted_and_once(self, out: Path) -> None:
        with pytest.raises(KeyboardInterrupt), Watch(out, 0) as watch:  # noqa: PT012
            watch.scalars(10, {"loss": 3.0})
            raise KeyboardInterrupt
        assert (out / CURVES).read_bytes().startswith(PNG)
        (out / CURVES).unlink()
        watch.close()
        assert not (out / CURVES).exists()

    def test_a_run_without_rows_has_none(self, out: Path) -> None:
        Watch(out, 0).close()
        assert not (out / CURVES).exists()

    def test_without_matplotlib_the_run_ends_well(
        self, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with caplog.at_level(logging.WARNING), Watch(out, 0) as watch:
            watch.scalars(10, {"loss": 3.0})
            with pytest.raises(BackendUnavailable, match=r"tfswa\[plots\]"):
                watch.look(10, {"a": np.eye(2)})
        assert "no " in caplog.text
        assert "matplotlib" in caplog.text


WANDB = """
import sys
from pathlib import Path
from tfswa.train.watch import Watch
out, step = Path(sys.argv[1]), int(sys.argv[2])
with Watch(out, step, wandb="tfx-test", config={"optim": {"lr": 0.1}}) as watch:
    watch.scalars(step + 10, {"loss": 2.5})
    watch.scores(step + 10, {"vocals": 6.5})
"""


class TestWandb:
    def test_it_is_imported_only_where_a_project_is_named(self, out: Path) -> None:
        script = WANDB.replace('wandb="tfx-test"', 'wandb=""') + "assert 'wandb' not in sys.modules\n"
        subprocess.run([sys.executable, "-c", script, str(out), "0"], check=True, timeout=600)

    def test_missing_it_is_said_before_anything_is_lost(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        for name in (LOG, CURVES):
            (out / name).write_text("step,loss\n10,1.0\n")
        with pytest.raises(BackendUnavailable, match=r"needs wandb: pip install 'tfswa\[wandb\]'"):
            Watch(out, 0, wandb="tfx-test")
        assert (out / LOG).exists()
        assert (out / CURVES).exists()

    @pytest.mark.slow
    def test_a_run_and_its_resumption_offline(self, out: Path, tmp_path: Path) -> None:
        pytest.importorskip("wandb", reason="wandb is not installed: nothing to log to")
        home = tmp_path / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "XDG_"))}
        environment = {**kept, "HOME": str(home), "WANDB_MODE": "offline"}

        def run(step: int) -> str:
            command = [sys.executable, "-c", WANDB, str(out), str(step)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""  # results alone go there
            return (out / WANDB_ID).read_text().strip()

        first = run(0)
        assert run(10) == first
        assert len(list((out / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))) >= 1
        assert run(0) != first  # a new run
        data = next((out / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb")).read_bytes()
        for name in (b"loss", b"validation/vocals", b"tfx-test"):
            assert name in data
        assert {path.name for path in tmp_path.iterdir()} == {"run", "home"}
        assert [path for path in home.rglob("*") if "wandb" in path.name] == []

    @pytest.mark.slow
    def test_no_account_is_one_line(self, out: Path, tmp_path: Path) -> None:
        pytest.importorskip("wandb", reason="wandb is not installed: nothing to log to")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "XDG_"))}
        done = subprocess.run(
            [sys.executable, "-c", WANDB, str(out), "0"],
            capture_output=True,
            text=True,
            timeout=600,
            env={**kept, "HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
        )
        assert "BackendUnavailable: wandb project 'tfx-test' cannot be opened (No API key" in done.stderr
