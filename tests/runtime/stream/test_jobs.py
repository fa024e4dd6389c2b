"""Which files of which folders, and where their stems go."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfswa.runtime.errors import UsageError
from tfswa.runtime.stream.folders import LeftOut, find_audio
from tfswa.runtime.stream.jobs import plan_jobs, reasons

OUT = Path("/out")


def sound(path: Path, kind: str = "WAV") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((800, 1), np.float32), 8000, format=kind)
    return path


def places(*inputs: Path, output: Path = OUT) -> dict[str, str]:
    """Input's name -> folder below the output."""
    plan = plan_jobs(inputs, output, ("speech",))
    assert len({folder for _, folder in plan.jobs}) == len(plan.jobs)
    return {str(path.name): str(folder.relative_to(output)) for path, folder in plan.jobs}


def left_out(folder: Path) -> dict[str, str]:
    return {one.path.name: one.reason for one in find_audio(folder) if isinstance(one, LeftOut)}


class TestFolders:
    def test_content_decides_and_the_rest_is_listed(self, tmp_path: Path) -> None:
        sound(tmp_path / "a.wav")
        sound(tmp_path / "b.wave")
        sound(tmp_path / "no ending", "FLAC")
        sound(tmp_path / "deep" / "d.xyz", "OGG")
        (tmp_path / "damaged.wav").write_bytes(b"\xff" * 100)  # an error when it is separated, not silence
        (tmp_path / "notes.txt").write_text("Schön\n" * 2000)
        (tmp_path / "wide.txt").write_bytes("Schön\n".encode("utf-16") * 2000)
        (tmp_path / "list.m3u8").write_text("#EXTM3U\na.wav\n")
        (tmp_path / "nothing").touch()
        (tmp_path / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
        (tmp_path / ".hidden.wav").touch()
        (tmp_path / "gone").symlink_to("nowhere")
        os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
        assert places(tmp_path) == {
            "a.wav": "a",
            "b.wave": "b",
            "damaged.wav": "damaged",
            "no ending": "no ending",
            "d.xyz": "deep/d",
        }
        assert left_out(tmp_path) == {
            ".hidden.wav": "hidden",
            "cover.png": "no audio in it",
            "gone": "a link to nothing",
            "list.m3u8": "text",
            "nothing": "empty",
            "notes.txt": "text",
            "pipe.wav": "not a file",
            "wide.txt": "text",
        }

    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        sound(tmp_path / "real" / "b.wav")
        sound(tmp_path / "lib" / "a.wav")
        (tmp_path / "lib" / "album").symlink_to("../real")
        (tmp_path / "lib" / "again").symlink_to("../real")
        (tmp_path / "lib" / "loop").symlink_to(".")
        (tmp_path / "real" / "back").symlink_to("../lib")
        assert places(tmp_path / "lib") == {"a.wav": "a", "b.wav": "again/b"}
        taken = "a link to a folder that is taken already"
        assert left_out(tmp_path / "lib") == {"album": taken, "loop": taken, "back": taken}

    def test_reasons_are_told_together(self) -> None:
        some = [LeftOut(Path(f"x/{i}.txt"), "text") for i in range(5)] + [LeftOut(Path(".a"), "hidden")]
        assert reasons(some) == "5 text (0.txt, 1.txt, 2.txt, ...), 1 hidden (.a)"


class TestPlaces:
    def test_names_that_meet_are_numbered(self, tmp_path: Path) -> None:
        for name in ("a.flac", "a.mp3", "a.wav", "a-2.wav", "deep/a.wav"):
            sound(tmp_path / name, "WAV")
        plan = plan_jobs([tmp_path], OUT)
        found = {str(path.relative_to(tmp_path)): str(folder) for path, folder in plan.jobs}
        assert found == {
            "a-2.wav": "/out/a-2",
            "a.flac": "/out/a",
            "a.mp3": "/out/a-3",
            "a.wav": "/out/a-4",
            "deep/a.wav": "/out/deep/a",
        }
        assert [path.name for path, _ in plan.renamed] == ["a.mp3", "a.wav"]

    def test_one_file_named_in_many_ways_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sound(tmp_path / "a.wav")
        monkeypatch.chdir(tmp_path)
        assert len(plan_jobs([Path("a.wav"), Path("./a.wav"), Path("x/../a.wav"), tmp_path], OUT).jobs) == 1

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(st.lists(st.text("./a \udc85", min_size=1, max_size=6), min_size=1, max_size=4))
    def test_no_name_leads_outside(self, names: list[str]) -> None:
        paths = [Path(f"{name}.wav") for name in names]
        for _, folder in plan_jobs(paths, OUT).jobs:
            assert Path(os.path.normpath(folder)).parent == OUT

    def test_what_an_earlier_run_wrote_is_left_out(self, tmp_path: Path) -> None:
        for name in ("a.wav", "a.mp3", "a/vocals.wav", "a/speech.wav", "a-2/vocals.wav"):
            sound(tmp_path / name, "WAV")
        sound(tmp_path / "a" / "vocals" / "vocals.wav")  # two runs ago
        sound(tmp_path / "a" / "01 a song of album a.wav")
        sound(tmp_path / "b" / "vocals.wav")  # no input has this folder
        assert places(tmp_path, output=tmp_path) == {
            "a.mp3": "a",
            "a.wav": "a-2",
            "01 a song of album a.wav": "a/01 a song of album a",
            "vocals.wav": "b/vocals",
        }
        sound(tmp_path / "out" / "x" / "vocals.wav")
        plan = plan_jobs([tmp_path], tmp_path / "out")
        assert LeftOut(tmp_path / "out" / "x" / "vocals.wav", "in the output folder") in plan.left_out

    def test_nothing_at_all_says_what_there_was(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no audio: it is empty"):
            plan_jobs([tmp_path], OUT)
        (tmp_path / "a.txt").write_text("notes")
        with pytest.raises(UsageError, match=r"holds no audio: 1 text \(a\.txt\)"):
            plan_jobs([tmp_path], OUT)
