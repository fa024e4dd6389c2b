"""``tfx separate``, ``parity``, ``inspect`` and ``models``: good inputs, every bad one, and Ctrl-C."""

import dataclasses
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from command_line import Done, Tfx
from numpy.typing import NDArray
from waiting import HANG_SECONDS, until

from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import METADATA, embed
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graph that is run here")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs that graph")

RATE = 8000
STEMS = ("vocals", "accompaniment")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("", "-o", "out"), "an empty path"),
        (("song.wav", "-o", ""), "an empty path"),
        (("song.wav", "--threads", "1000000"), "1000000 is not in the range"),
        (("song.wav", "--batch", "99999999999999999999"), "99999999999999999999 is not in the range"),
        (("song.wav", "--stems", ""), "demo has no stem ''"),
    ],
)
def test_what_is_empty_or_out_of_range_is_refused(
    tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tfx("separate", *arguments)
    assert (done.code, told in done.err) == (2, True), done.err
    assert list(tmp_path.iterdir()) == []


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tfswa.runtime", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def make_graph(
    path: Path, spec: ModelSpec, *, with_spec: bool = True, share: float = 0.5, fragile: bool = False
) -> None:
    """An ONNX graph whose stems are half the mixture each: exact in float32, and quick.

    A fragile one gives NaN where the mixture's planes are beyond 88: infinity times 0.
    """
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    _, planes, frames, bins = spec.input_shape(1)
    stems = len(spec.stems)
    shares = onnx.numpy_helper.from_array(np.full((1, stems, 1, 1, 1), share, np.float32), "shares")
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    nothing = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing")
    nodes = [
        helper.make_node("Unsqueeze", ["mixture", "axis"], ["one"]),
        helper.make_node("Mul", ["one", "shares"], ["shared" if fragile else "stems"]),
    ]
    if fragile:
        nodes += [
            helper.make_node("Exp", ["one"], ["power"]),
            helper.make_node("Mul", ["power", "nothing"], ["trap"]),
            helper.make_node("Add", ["shared", "trap"], ["stems"]),
        ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("mixture", kind, ["B", planes, frames, bins])],
        [helper.make_tensor_value_info("stems", kind, ["B", stems, planes, frames, bins])],
        [shares, axis, *([nothing] if fragile else [])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if with_spec:
        helper.set_model_props(made, {METADATA: embed(spec, "fp32", "digest")})
    onnx.save(made, path)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph of halves; read only."""
    folder = tmp_path_factory.mktemp("origin")
    spec = ModelSpec(
        family="none", stems=STEMS, stft=StftSpec(512, 128, RATE), chunk=ChunkSpec(16, 2, 2, 8), parameters=4
    )
    bundle = Bundle.create(folder / "halves.tfx", spec, {"w": np.zeros(4, np.float32)})
    bundle.add("model.onnx", lambda path: make_graph(path, spec), kind="onnx", precision="fp32")
    return bundle.path


@pytest.fixture
def bundle(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it beside which commands are run."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return Path(shutil.copytree(origin, tmp_path / "halves.tfx"))


def noise(samples: int, channels: int = 2) -> NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((samples, channels)) * 0.1).astype(np.float32)


def write(name: str, samples: int = 4000, rate: int = RATE, channels: int = 2) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(samples, channels), rate, subtype="FLOAT", format="WAV")
    return path


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def assert_refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr, ours, that says what it must; nothing on stdout; nothing written."""
    assert done.code == code, done.err
    assert len([line for line in done.lines if line.startswith("tfx: ")]) == 1, done.err
    assert "Traceback" not in done.err
    assert done.lines[-1].startswith("tfx: ")
    for word in words:
        assert word in done.lines[-1]
    assert done.out == ""
    assert not [name for name in everything() if "separated" in name or "partial" in name]


class TestSeparate:
    @pytest.mark.parametrize(
        ("samples", "rate", "channels", "written"),
        [(0, RATE, 2, 2), (1, RATE, 2, 2), (4001, RATE, 1, 1), (9600, 96_000, 2, 2), (4000, RATE, 6, 2)],
        ids=["empty", "one sample", "8 kHz mono", "96 kHz", "six channels"],
    )
    def test_a_song(
        self, tfx: Tfx, bundle: Path, samples: int, rate: int, channels: int, written: int
    ) -> None:
        write("song.wav", samples, rate, channels)
        done = tfx("separate", "song.wav", "-m", bundle)
        assert done.code == 0, done.err
        for stem in STEMS:
            info = soundfile.info(f"separated/song/{stem}.wav")
            assert (info.frames, info.samplerate, info.channels) == (samples, rate, written)
        assert done.out.startswith("song.wav -> separated/song/{vocals.wav, accompaniment.wav}")
        line, *notes = done.lines  # no bar in a pipe
        assert len(notes) == (channels > 2)
        assert all("mixed down to 2; LFE left out" in note for note in notes)
        assert "onnxruntime" in line
        assert line.endswith("no parity evidence here")  # its family is not installed: nothing to measure by

    def test_a_cut_mp3(self, tfx: Tfx, bundle: Path) -> None:
        soundfile.write("whole.mp3", noise(6 * 44_100), 44_100, format="MP3")
        data = Path("whole.mp3").read_bytes()
        Path("cut.mp3").write_bytes(data[: len(data) // 2])
        assert tfx("separate", "cut.mp3", "-m", bundle).code == 0
        assert 2 * 44_100 < soundfile.info("separated/cut/vocals.wav").frames < 4 * 44_100

    def test_damage_is_told_everywhere_and_strict_refuses_it(self, tfx: Tfx, bundle: Path) -> None:
        for name in ("whole.wav", "cut.wav"):
            write(name)
        data = Path("cut.wav").read_bytes()
        Path("cut.wav").write_bytes(data[: len(data) // 2])
        done = tfx("separate", "whole.wav", "cut.wav", "-m", bundle, "--json")
        assert done.code == 0
        whole, cut = json.loads(done.out)["files"]
        assert (whole["damaged"], whole["notes"]) == (False, [])
        assert cut["damaged"]
        (note,) = cut["notes"]
        assert "the rest is missing or damaged" in note
        assert done.lines == [f"tfx: cut.wav: {note}"]
        strict = tfx("separate", "whole.wav", "cut.wav", "-m", bundle, "-o", "strict", "--strict")
        assert strict.code == 1
        assert any("cut.wav is damaged: ends at" in line for line in strict.lines)
        assert sorted(path.name for path in Path("strict").rglob("*.wav")) == [
            "accompaniment.wav",
            "vocals.wav",
        ]
        assert not Path("strict/cut").exists()

    def test_a_track_that_is_not_there(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", bundle, "--track", "2")
        assert done.code == 2
        assert "audio track 2 is not there, the file has 1: use 1" in done.lines[-1]
        assert tfx("separate", "song.wav", "-m", bundle, "--track", "0").code == 2

    def test_the_stems_of_a_song_sum_to_it(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav", 12_345)
        assert tfx("separate", "song.wav", "-m", bundle, "--batch", 3, "--threads", 1).code == 0
        stems = [soundfile.read(f"separated/song/{stem}.wav")[0] for stem in STEMS]
        np.testing.assert_allclose(stems[0] + stems[1], noise(12_345), atol=1e-6)

    def test_some_stems_in_another_format(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        options = ("--stems", "vocals", "--format", "flac", "-o", "out", "--clip", "rescale")
        assert tfx("separate", "song.wav", "-m", bundle, *options).code == 0
        assert [name for name in everything() if name.startswith("out/song/")] == ["out/song/vocals.flac"]

    def test_an_exported_file_alone(self, tfx: Tfx, bundle: Path) -> None:
        shutil.copy(bundle / "model.onnx", "halves.onnx")
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", "halves.onnx")
        assert done.code == 0, done.err
        assert done.lines[0].endswith("no parity evidence here")  # parity needs the bundle

    def test_a_folder_and_what_an_earlier_run_left_in_it(self, tfx: Tfx, bundle: Path) -> None:
        write("music/a.wav")
        write("music/deep/b.wav")
        write("music/.hidden.wav")
        Path("music/notes.txt").write_text("notes")
        for options in ((), ("--force",)):
            done = tfx("separate", "music", "-m", bundle, "-o", "music/stems", *options)
            assert done.code == 0, done.err
            assert len(done.out.splitlines()) == 2
        found = [str(path.relative_to("music/stems")) for path in sorted(Path("music/stems").rglob("*.wav"))]
        assert found == [
            "a/accompaniment.wav",
            "a/vocals.wav",
            "deep/b/accompaniment.wav",
            "deep/b/vocals.wav",
        ]

    def test_a_folder_that_is_separated_into_itself(self, tfx: Tfx, bundle: Path) -> None:
        write("music/a.wav")
        write("music/a.mp3")
        for option in ("--quiet", "--force", "--skip-existing"):
            done = tfx("separate", "music", "-m", bundle, "-o", "music", option)
            assert done.code == 0, done.err
        assert "left out: 4 a stem of an earlier run (vocals.wav, accompaniment.wav, " in done.err.replace(
            "accompaniment.wav, vocals.wav", "vocals.wav, accompaniment.wav"
        )
        assert "skipped: 2 inputs whose stems are there already" in done.err
        assert done.out == ""
        assert [name for name in everything() if name.endswith("wav")] == [
            "music/a-2/accompaniment.wav",
            "music/a-2/vocals.wav",
            "music/a.wav",
            "music/a/accompaniment.wav",
            "music/a/vocals.wav",
        ]

    def test_two_inputs_of_one_name_get_numbers(self, tfx: Tfx, bundle: Path) -> None:
        write("a/song.wav")
        write("b/song.wav")
        done = tfx("separate", "a/song.wav", "b/song.wav", "-m", bundle)
        assert done.code == 0, done.err
        assert done.lines[0] == "b/song.wav goes to separated/song-2: another input has its name"
        assert sorted(path.name for path in Path("separated").iterdir()) == ["song", "song-2"]

    def test_what_is_left_out_is_said(self, tfx: Tfx, bundle: Path) -> None:
        write("music/a.xyz")
        Path("music/notes.txt").write_text("notes")
        done = tfx("separate", "music", "-m", bundle)
        assert done.lines[0] == "left out: 1 text (notes.txt)"
        done = tfx("separate", "music", "-m", bundle, "--skip-existing", "--json")
        assert done.json["left_out"] == [{"input": "music/notes.txt", "reason": "text"}]
        assert done.json["skipped"] == ["music/a.xyz"]

    def test_quiet_says_errors_alone(self, tfx: Tfx, bundle: Path) -> None:
        write("music/a.wav")
        Path("music/notes.txt").write_text("notes")
        assert tfx("separate", "music", "-m", bundle, "-q") == Done(0, "", "")
        done = tfx("separate", "music", "none.wav", "-m", bundle, "-q", "--force")
        assert (done.code, done.out) == (1, "")
        assert [line.partition(" ")[0] for line in done.lines] == ["tfx:", "tfx:"]

    @pytest.mark.parametrize("name", ["...wav", ".wav", "..wav", "....", ".hidden.wav"])
    def test_no_name_leads_out_of_the_output_folder(self, tfx: Tfx, bundle: Path, name: str) -> None:
        write(name)
        before = set(everything())
        assert tfx("separate", name, "-m", bundle, "-o", "out").code == 0
        new = set(everything()) - before
        assert {path for path in new if not path.startswith("out/")} == {"out"}
        assert len([path for path in new if path.endswith("vocals.wav")]) == 1
        assert len(new) == 4  # out, out/X, two stems

    def test_a_name_that_is_not_utf8(self, tfx: Tfx, bundle: Path) -> None:
        name = os.fsdecode(b"music/mod\x85\x1b[2J.wav")
        write("music/y.wav").rename(name)
        write("music/z.wav")
        done = tfx("separate", "music", "-m", bundle)
        assert done.code == 0, done.err
        assert done.out.splitlines()[0].startswith(
            "music/mod\\x85\\x1b[2J.wav -> separated/mod\\x85\\x1b[2J/{"
        )
        assert os.path.exists(b"separated/mod\x85\x1b[2J/vocals.wav")
        assert Path("separated/z/vocals.wav").exists()
        for kind in ("flac", "ogg", "mp3", "m4a"):
            done = tfx("separate", name, "-m", bundle, "--format", kind, "--json")
            assert done.json["files"][0]["input"] == "music/mod\\x85\x1b[2J.wav"
            assert len(os.listdir(b"separated/mod\x85\x1b[2J")) >= 2

    def test_a_broken_cover_costs_a_batch_of_m4a_nothing(self, tfx: Tfx, bundle: Path) -> None:
        write("album/2.wav", 20_000, 44_100)
        soundfile.write("album/1.mp3", noise(20_000), 44_100, format="MP3")
        picture = b"\x03image/jpeg\0\x03\0\xff\xd8\xff\xe0\0\x10JFIF" + bytes(300)  # the rest is missing
        size = bytes((0, 0, len(picture) >> 7, len(picture) & 0x7F))
        frame = b"APIC" + size + b"\0\0" + picture
        tag = b"ID3\x04\0\0" + bytes((0, 0, len(frame) >> 7, len(frame) & 0x7F)) + frame
        Path("album/1.mp3").write_bytes(tag + Path("album/1.mp3").read_bytes())
        done = tfx("separate", "album", "-m", bundle, "--format", "m4a", "--json")
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        assert [file["notes"] for file in done.json["files"]] == [
            ["its cover was left out: it is damaged"],
            [],
        ]
        found = sorted(path.name for path in Path("separated").rglob("*.m4a"))
        assert found == ["accompaniment.m4a", "accompaniment.m4a", "vocals.m4a", "vocals.m4a"]

    def test_a_fault_of_ours_costs_the_others_nothing_and_is_shown_last(
        self, tfx: Tfx, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tfswa.runtime.stream import files

        opened = files.open_audio

        def broken(path: Path, **options: Any) -> Any:
            if path.name == "b.wav":
                raise ValueError("an accident")
            return opened(path, **options)

        monkeypatch.setattr(files, "open_audio", broken)
        for name in ("a.wav", "b.wav", "c.wav"):
            write(name)
        done = tfx("separate", "a.wav", "b.wav", "c.wav", "-m", bundle)
        assert done.code == 1
        assert sorted(path.name for path in Path("separated").iterdir()) == ["a", "c"]
        told = [line for line in done.lines if line.startswith("tfx: ")]
        assert told[0] == "tfx: b.wav: ValueError: an accident: a fault in tfx"
        assert told[1] == "tfx: 1 of 3 files failed"
        assert "please report it" in told[2]
        assert done.err.index(told[1]) < done.err.index("Traceback")

    def test_memory_that_runs_out_for_one_costs_the_others_nothing(
        self, tfx: Tfx, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tfswa.runtime.backends.ort import OrtSession

        infer, calls = OrtSession.infer, []

        def short(self: OrtSession, mixture: Any) -> Any:
            calls.append(len(mixture))
            if len(calls) == 1:
                raise RuntimeError("bad allocation")
            return infer(self, mixture)

        monkeypatch.setattr(OrtSession, "infer", short)
        write("a.wav")
        write("b.wav")
        done = tfx("separate", "a.wav", "b.wav", "-m", bundle, "--batch", 4)
        assert done.code == 4
        assert "a.wav: backend ort ran out of memory with a batch of" in done.lines[-2]
        assert [path.name for path in Path("separated").iterdir()] == ["b"]

    def test_a_graph_of_a_fixed_batch_says_so_when_it_is_opened(self, tfx: Tfx, bundle: Path) -> None:
        graph = onnx.load(bundle / "model.onnx")
        for end in (graph.graph.input[0], graph.graph.output[0]):
            end.type.tensor_type.shape.dim[0].dim_value = 2
        onnx.save(graph, "fixed.onnx")
        write("song.wav", 9000)
        done = tfx("separate", "song.wav", "-m", "fixed.onnx", "--batch", 3)
        assert_refused(done, 2, "fixed.onnx takes batches of 2, asked for is --batch 3: use --batch 2")
        for batch in (1, 2):
            done = tfx("separate", "song.wav", "-m", "fixed.onnx", "--batch", batch, "-o", f"out{batch}")
            assert done.code == 0, done.err
            stems = [soundfile.read(f"out{batch}/song/{stem}.wav")[0] for stem in STEMS]
            np.testing.assert_allclose(stems[0] + stems[1], noise(9000), atol=1e-6)

    def test_an_exported_file_knows_its_only_precision(self, tfx: Tfx, bundle: Path) -> None:
        spec = Bundle.open(bundle).spec
        graph = onnx.load(bundle / "model.onnx")
        onnx.helper.set_model_props(graph, {METADATA: embed(spec, "int8", "digest")})
        onnx.save(graph, "model.int8.onnx")
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", "model.int8.onnx")
        assert done.code == 0, done.err
        assert "int8 on cpu" in done.lines[0]

    @pytest.mark.parametrize(
        ("options", "meant"),
        [
            (("--precision", "half"), "fp16"),
            (("--device", "gpu"), "cuda"),
            (("--backend", "onnx"), "ort"),
            (("--format", "wave"), "wav"),
            (("--stems", "vocal"), "vocals"),
        ],
    )
    def test_slips_of_the_pen_are_answered(
        self, tfx: Tfx, bundle: Path, options: tuple[str, str], meant: str
    ) -> None:
        write("song.wav")
        assert_refused(tfx("separate", "song.wav", "-m", bundle, *options), 2, f"did you mean '{meant}'?")

    def test_an_unknown_model_is_answered_with_the_nearest(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        assert_refused(tfx("separate", "song.wav", "-m", "dmeo"), 2, "no model 'dmeo', did you mean 'demo'?")

    def test_one_bad_file_costs_the_others_nothing(self, tfx: Tfx, bundle: Path) -> None:
        write("a.wav")
        Path("bad.wav").write_text("no audio at all")
        write("c.wav")
        done = tfx("separate", "a.wav", "bad.wav", "c.wav", "-m", bundle)
        assert done.code == 1
        assert [path.name for path in sorted(Path("separated").iterdir())] == ["a", "c"]
        assert done.lines[-2].startswith("tfx: bad.wav cannot be decoded as audio")
        assert done.lines[-1] == "tfx: 1 of 3 files failed"

    def test_an_error_that_names_no_file_is_given_its_name(self, tfx: Tfx, bundle: Path) -> None:
        write("a.wav")
        write("high.wav", rate=96_000)
        done = tfx("separate", "a.wav", "high.wav", "-m", bundle, "--format", "mp3")
        assert done.code == 2
        assert done.lines[-2].startswith("tfx: high.wav: mp3 cannot hold 96000 Hz")

    def test_the_same_file_twice_is_one(self, tfx: Tfx, bundle: Path) -> None:
        write("a.wav")
        assert tfx("separate", "a.wav", "./a.wav", "-m", bundle).code == 0

    def test_force_replaces(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        assert tfx("separate", "song.wav", "-m", bundle).code == 0
        Path("separated/song/vocals.wav").write_text("mine")
        done = tfx("separate", "song.wav", "-m", bundle)
        assert (done.code, done.out) == (2, "")
        assert "vocals.wav is there already: add --force" in done.lines[-1]
        assert Path("separated/song/vocals.wav").read_text() == "mine"
        assert tfx("separate", "song.wav", "-m", bundle, "--force").code == 0
        assert soundfile.info("separated/song/vocals.wav").frames == 4000

    def test_json_is_one_object_and_nothing_else(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", bundle, "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["files"][0]["outputs"]["vocals"] == "separated/song/vocals.wav"


LOUD = slice(6000, 6020)  # samples


@pytest.fixture
def fragile(bundle: Path) -> Path:
    """The bundle with a graph "in float16" beside the one in float32; NaN where a song is loud."""
    opened = Bundle.open(bundle)

    def write(path: Path) -> None:
        make_graph(path, opened.spec, share=0.25, fragile=True)

    opened.add("model.fp16.onnx", write, kind="onnx", precision="fp16")
    return bundle


def write_loud(name: str) -> NDArray[np.float32]:
    song = noise(16_000)
    song[LOUD] = 500.0
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(name, song, RATE, subtype="FLOAT")
    return song


class TestWiener:
    @pytest.mark.parametrize(
        ("iterations", "said"), [(0, []), (1, ["1 iteration after"]), (2, ["2 iterations after"])]
    )
    def test_is_said_and_keeps_the_sum(
        self, tfx: Tfx, bundle: Path, iterations: int, said: list[str]
    ) -> None:
        song = soundfile.read(write("song.wav"), dtype="float32")[0]
        done = tfx("separate", "song.wav", "-m", bundle, "--wiener", iterations)
        assert done.code == 0, done.err
        lines = [line for line in done.lines if line.startswith("multichannel Wiener filter: ")]
        assert len(lines) == len(said)
        assert all(words in line for words, line in zip(said, lines, strict=True))
        stems = [soundfile.read(f"separated/song/{stem}.wav", dtype="float32")[0] for stem in STEMS]
        np.testing.assert_allclose(stems[0] + stems[1], song, atol=1e-3)

    def test_a_model_of_one_stem_is_refused_in_one_line(self, tfx: Tfx, bundle: Path) -> None:
        spec = Bundle.open(bundle).spec
        one = dataclasses.replace(spec, stems=("all",), unseen_stem="all")
        Bundle.create(Path("one.tfx"), one, {"w": np.zeros(4, np.float32)})
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", "one.tfx", "--wiener", 1)
        assert_refused(done, 2, "wiener 1 shares the mixture", "the model has 1, all: leave it out")


class TestOnNonFinite:
    """The family of this bundle is not installed: float32 is its graph, in ONNX Runtime."""

    half = ("--backend", "ort", "--precision", "fp16")
    recompute = (*half, "--on-nonfinite", "recompute")

    def test_an_error_names_chunk_and_stems(self, tfx: Tfx, fragile: Path) -> None:
        write_loud("song.wav")
        done = tfx("separate", "song.wav", "-m", fragile, *self.half)
        assert done.code == 1
        assert "of vocals, accompaniment holds NaN or Inf: compute it in float32" in done.lines[-1]
        assert not Path("separated").exists()

    def test_a_song_is_mended_where_it_is_loud(self, tfx: Tfx, fragile: Path) -> None:
        song = write_loud("song.wav")
        done = tfx("separate", "song.wav", "-m", fragile, "--batch", 2, *self.recompute, "--json")
        assert (done.code, done.err) == (0, "")
        printed = json.loads(done.out)
        assert printed["recomputed_by"].startswith("onnxruntime ")
        assert printed["recomputed_by"].endswith(", fp32 on cpu (model.onnx)")
        vocals = soundfile.read("separated/song/vocals.wav", dtype="float32")[0]
        np.testing.assert_allclose(vocals[LOUD], 0.5 * song[LOUD], rtol=1e-4)
        (first, *_), (*_, last) = printed["files"][0]["recomputed"]
        assert first <= LOUD.start / RATE < LOUD.stop / RATE <= last
        rest = np.r_[0 : int(first * RATE) - 100, int(last * RATE) + 100 : len(song)]
        # The graph's own shares, but for the Nyquist bin, which the host gives to the other stem.
        np.testing.assert_allclose(vocals[rest], 0.25 * song[rest], atol=0.01)

    def test_a_folder_has_one_line_at_the_end(self, tfx: Tfx, fragile: Path) -> None:
        write_loud("music/a.wav")
        write("music/b.wav")
        write_loud("music/c.wav")
        done = tfx("separate", "music", "-m", fragile, *self.recompute)
        assert done.code == 0, done.err
        assert len(done.lines) == 2
        what, where = done.lines[1].split(": ")
        assert what.startswith("4 chunks that held NaN or Inf were computed again by onnxruntime ")
        assert what.endswith(", fp32 on cpu (model.onnx)")
        time = r"[\d.]+ to [\d.]+ s"
        assert re.fullmatch(f"music/a.wav {time}, {time}; music/c.wav {time} and 1 more", where)

    def test_a_song_without_any_has_none(self, tfx: Tfx, fragile: Path) -> None:
        write("song.wav")
        assert len(tfx("separate", "song.wav", "-m", fragile, *self.recompute).lines) == 1
        done = tfx("separate", "song.wav", "-m", fragile, *self.recompute, "--force", "--json")
        assert json.loads(done.out)["recomputed_by"] is None

    def test_an_exported_file_is_refused_at_once(self, tfx: Tfx, fragile: Path) -> None:
        shutil.copy(fragile / "model.onnx", "halves.onnx")
        write_loud("song.wav")
        done = tfx("separate", "song.wav", "-m", "halves.onnx", "--on-nonfinite", "recompute")
        assert_refused(done, 2, "halves.onnx is an exported file", "needs the bundle")

    def test_what_is_float32_already_is_refused_at_once(self, tfx: Tfx, fragile: Path) -> None:
        write_loud("song.wav")
        done = tfx("separate", "song.wav", "-m", fragile, "--on-nonfinite", "recompute")
        assert_refused(done, 2, "ort in fp32 runs already")

    def test_a_bundle_without_another_artifact_is_refused_at_once(self, tfx: Tfx, fragile: Path) -> None:
        opened = Bundle.open(fragile)
        bare = Bundle.create(Path("bare.tfx"), opened.spec, {"w": np.zeros(4, np.float32)})
        source = opened.file("model.fp16.onnx")
        bare.add("model.fp16.onnx", lambda to: shutil.copy(source, to), kind="onnx", precision="fp16")
        write_loud("song.wav")
        done = tfx("separate", "song.wav", "-m", "bare.tfx", *self.recompute)
        assert_refused(done, 4, "holds no onnx artifact in fp32", "tfx export bare.tfx --format onnx")


def nan_file() -> None:
    samples = noise(4000)
    samples[1234, 1] = np.nan
    soundfile.write("song.wav", samples, RATE, subtype="FLOAT")


def cut_header() -> None:
    write("whole.wav")
    Path("song.wav").write_bytes(Path("whole.wav").read_bytes()[:20])
    Path("whole.wav").unlink()


class TestBadInputs:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: None, ("song.wav cannot be opened",)),
            (lambda: Path("song.wav").touch(), ("song.wav is empty (0 bytes)",)),
            (lambda: Path("song.wav").write_text("some text"), ("song.wav cannot be decoded",)),
            (cut_header, ("song.wav cannot be decoded",)),
            (nan_file, ("song.wav", "channel 2 of 2 is nan")),
        ],
        ids=["missing", "empty", "text", "cut in its header", "NaN"],
    )
    def test_a_bad_file(self, tfx: Tfx, bundle: Path, make: Callable[[], object], words: Any) -> None:
        make()
        before = everything()
        assert_refused(tfx("separate", "song.wav", "-m", bundle), 1, *words)
        assert everything() == before

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (("-o", "file/out"), 2, ("file", "cannot be written")),
            (("--backend", "tvm"), 2, ("unknown backend 'tvm'", "ort")),
            (("--device", "cuda"), 4, ("device cuda asked for", "--device cpu")),
            (("--device", "npu"), 4, ("unknown device 'npu'",)),
            (("--precision", "fp16"), 4, ("holds no onnx artifact in fp16",)),
            (("--backend", "torchscript"), 4, ("holds no torchscript artifact", "tfx export")),
            (("--format", "aac"), 2, ("unknown format 'aac'", "flac")),
            (("--stems", "vocals,bass"), 2, ("no stem 'bass'", "vocals, accompaniment")),
            (("--stems", "vocals,"), 2, ("no stem ''",)),
            (("-m", "nothing.tfx"), 2, ("no model 'nothing.tfx'", "demo")),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_bad_option(self, tfx: Tfx, bundle: Path, options: Any, code: int, words: Any) -> None:
        if options == ("--device", "cuda"):
            import onnxruntime

            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                pytest.skip("this onnxruntime has CUDA: asking for it is no error")
        write("song.wav")
        Path("file").write_text("mine")
        before = everything()
        backend = () if "--backend" in options else ("--backend", "ort")
        assert_refused(tfx("separate", "song.wav", "-m", bundle, *backend, *options), code, *words)
        assert everything() == before

    def test_no_backend_at_all_names_each_reason(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", bundle, "--device", "cuda:63")
        assert_refused(done, 4, "no backend can run", "ort: ", "torchscript: ", "torch: ")

    def test_an_unknown_stem_is_said_once_for_all_inputs(self, tfx: Tfx, bundle: Path) -> None:
        write("a.wav")
        write("b.wav")
        assert_refused(tfx("separate", "a.wav", "b.wav", "-m", bundle, "--stems", "x"), 2, "no stem 'x'")

    def test_a_format_that_cannot_hold_the_rate(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav", rate=96_000)
        done = tfx("separate", "song.wav", "-m", bundle, "--format", "mp3")
        assert_refused(done, 2, "mp3 cannot hold 96000 Hz", "choose wav or flac")

    def test_places_that_cannot_be_written_are_found_before_the_work(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        Path("file").write_text("mine")
        for place in ("file", "file/deep/er"):
            done = tfx("separate", "song.wav", "-m", bundle, "-o", place)
            assert_refused(done, 2, f"{place} cannot be written", "Not a directory")
            assert len(done.lines) == 1  # no model was loaded

    def test_skip_existing_and_force_contradict(self, tfx: Tfx, bundle: Path) -> None:
        write("song.wav")
        done = tfx("separate", "song.wav", "-m", bundle, "--skip-existing", "--force")
        assert_refused(done, 2, "--skip-existing keeps what --force replaces")

    def test_a_folder_without_audio(self, tfx: Tfx, bundle: Path) -> None:
        Path("empty").mkdir()
        Path("empty/notes.txt").write_text("notes")
        Path("empty/cover.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        told = "empty holds no audio: 1 no audio in it (cover.png), 1 text (notes.txt)"
        assert_refused(tfx("separate", "empty", "-m", bundle), 2, told)

    def test_a_name_that_is_too_long(self, tfx: Tfx, bundle: Path) -> None:
        assert_refused(tfx("separate", "a" * 300 + ".wav", "-m", bundle), 1, "name too long")
        assert_refused(tfx("inspect", "a" * 300 + ".tfx"), 1, "name too long")


class TestBadModels:
    @pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
    def test_a_flipped_byte_is_named(self, tfx: Tfx, bundle: Path, name: str) -> None:
        write("song.wav")
        path = bundle / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert_refused(tfx("inspect", bundle), 1, f"{name} is damaged", "SHA-256")
        done = tfx("separate", "song.wav", "-m", bundle)
        if name == "model.onnx":
            assert_refused(done, 1, "model.onnx is damaged")
        else:
            assert done.code == 0  # the graph holds weights of its own

    def test_flipped_weights_stop_the_eager_network(self, tfx: Tfx, bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("torch", reason="torch is not installed: the eager network needs it")
        from tfswa.train.backend import new_bundle

        hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
        made = new_bundle("tfswa_lite", tmp_path / "net.tfx", hyper=hyper)
        data = bytearray((made.path / "model.safetensors").read_bytes())
        data[-5] ^= 1
        (made.path / "model.safetensors").write_bytes(data)
        write("song.wav")
        for command in (("separate", "song.wav", "-m", made.path), ("parity", made.path)):
            assert_refused(tfx(*command, "--backend", "torch"), 1, "model.safetensors is damaged")

    def test_a_manifest_that_was_edited(self, tfx: Tfx, bundle: Path) -> None:
        path = bundle / "manifest.json"
        path.write_text(path.read_text().replace('"channels": 2', '"channels": 1'))
        write("song.wav")
        assert_refused(tfx("separate", "song.wav", "-m", bundle), 1, "manifest.json is damaged")

    def test_an_onnx_file_without_our_spec(self, tfx: Tfx, bundle: Path) -> None:
        make_graph(Path("other.onnx"), Bundle.open(bundle).spec, with_spec=False)
        write("song.wav")
        assert_refused(
            tfx("separate", "song.wav", "-m", "other.onnx"), 1, "carries no tfx spec", "tfx export"
        )

    def test_a_graph_of_another_shape(self, tfx: Tfx, bundle: Path) -> None:
        opened = Bundle.open(bundle)
        other = ModelSpec(
            family="none", stems=("a", "b", "c"), stft=opened.spec.stft, chunk=opened.spec.chunk
        )
        opened.add("model.onnx", lambda path: make_graph(path, other), kind="onnx", precision="fp32")
        write("song.wav")
        assert_refused(tfx("separate", "song.wav", "-m", bundle), 1, "has shape", "its spec says")

    def test_a_folder_that_is_no_bundle(self, tfx: Tfx, bundle: Path) -> None:
        Path("folder").mkdir()
        assert_refused(tfx("inspect", "folder"), 1, "folder is a folder without manifest.json")


class TestParity:
    def test_auto_is_no_backend_to_measure(self, tfx: Tfx, bundle: Path) -> None:
        assert_refused(tfx("parity", bundle, "--backend", "auto"), 2, "name them with --backend")

    def test_an_exported_file_is_refused(self, tfx: Tfx, bundle: Path) -> None:
        done = tfx("parity", bundle / "model.onnx", "--backend", "ort")
        assert_refused(done, 2, "is an exported file: parity needs the bundle")

    def test_bad_gates(self, tfx: Tfx, bundle: Path) -> None:
        Path("gates.toml").write_text("[fp32]\nsnr = 3\n")
        for option in ("--gates", "--judge"):
            done = tfx("parity", bundle, "--backend", "ort", option, "gates.toml")
            assert_refused(done, 2, "gates gates.toml: unknown key 'snr'")
        done = tfx("parity", bundle, "--gates", "gates.toml", "--judge", "gates.toml")
        assert_refused(done, 2, "--judge and --gates both name gates")

    def test_nothing_to_judge(self, tfx: Tfx, bundle: Path) -> None:
        Path("gates.toml").write_text("[fp32]\nsnr_db = 3\n")
        assert_refused(
            tfx("parity", bundle, "--judge", "gates.toml"), 2, "holds no certificate of that: measure first"
        )

    def test_a_precision_without_a_gate(self, tfx: Tfx, bundle: Path) -> None:
        done = tfx("parity", bundle, "--backend", "ort:fp8")
        assert_refused(done, 2, "gates.toml has no gate for precision 'fp8'")

    def test_outputs_that_are_there(self, tfx: Tfx, bundle: Path) -> None:
        Path("out.xml").touch()
        for option in ("--junit", "--markdown"):
            assert_refused(tfx("parity", bundle, option, "out.xml"), 2, "out.xml is there already")
            done = tfx("parity", bundle, option, "out.xml/deep/er.xml")
            assert_refused(done, 2, "out.xml/deep cannot be written", "Not a directory")

    def test_of_several_models_one_that_cannot_be_costs_the_others_nothing(
        self, tfx: Tfx, bundle: Path, tmp_path: Path
    ) -> None:
        assert_refused(tfx("parity", bundle, bundle, "--junit", "x.xml"), 2, "are of one model, 2 are named")
        pytest.importorskip("torch", reason="torch is not installed: the reference needs it")
        from tfswa.train.backend import new_bundle

        hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
        hyper |= {"window": 4, "fold": 4}
        spec = Bundle.open(bundle).spec
        made = new_bundle("tfswa_lite", tmp_path / "net.tfx", hyper=hyper, stft=spec.stft, chunk=spec.chunk)
        done = tfx("parity", "none.tfx", made.path, "--backend", "torch", "--quick", "--markdown", "m.md")
        assert done.code == 2
        assert any(line.startswith("tfx: none.tfx: ") for line in done.lines)
        assert f"# Parity of {made.path}" in Path("m.md").read_text().replace("\\", "")
        assert Bundle.open(made.path).files["parity.json"].kind == "evidence"

    def test_a_bad_song_and_a_backend_that_cannot_run_cost_the_others_nothing(
        self, tfx: Tfx, bundle: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("torch", reason="torch is not installed: the reference needs it")
        from tfswa.train.backend import new_bundle

        hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
        hyper |= {"window": 4, "fold": 4}
        spec = Bundle.open(bundle).spec
        made = new_bundle("tfswa_lite", tmp_path / "net.tfx", hyper=hyper, stft=spec.stft, chunk=spec.chunk)
        write("songs/a.wav")
        Path("songs/broken.wav").write_text("no audio")
        measuring = ("parity", made.path, "--audio", "songs", "--quick", "--junit", "out.xml", "--force")
        done = tfx(*measuring, "--backend", "torch", "--json")
        assert (done.code, done.lines[-1]) == (1, "tfx: 1 of 3 songs and backends failed")
        found = json.loads(done.out)
        assert [list(one["corpus"]) for one in found["certificates"]] == [["a.wav"]]
        assert [error["input"] for error in found["errors"]] == ["broken.wav"]
        assert f"tfx: {found['errors'][0]['error']}" in done.lines
        assert "<error " in Path("out.xml").read_text()
        Path("songs/broken.wav").unlink()
        done = tfx(*measuring, "--backend", "torch", "--backend", "ort")
        assert (done.code, done.lines[-1]) == (4, "tfx: 1 of 3 songs and backends failed")
        assert "torch fp32 on cpu against " in done.out
        assert any(line.startswith("tfx: ort fp32: ") for line in done.lines)

    def test_missing_and_silent_audio(self, tfx: Tfx, bundle: Path) -> None:
        write("silent.wav", 0)
        for name, words in (("none.wav", "cannot be opened"), ("silent.wav", "holds no sound")):
            assert_refused(tfx("parity", bundle, "--backend", "ort", "--audio", name), 1, words)

    def test_passes_is_stored_and_separate_says_so(self, tfx: Tfx, bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("torch", reason="torch is not installed: the reference needs it")
        from tfswa.train.backend import new_bundle

        hyper: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "decoder_depths": [1], "heads": [1, 2]}
        hyper |= {"window": 4, "fold": 4}
        spec = Bundle.open(bundle).spec
        made = new_bundle("tfswa_lite", tmp_path / "net.tfx", hyper=hyper, stft=spec.stft, chunk=spec.chunk)
        write("song.wav", 8000)
        done = tfx("parity", made.path, "--backend", "torch", "--audio", "song.wav")
        assert done.code == 0, done.err
        assert "vocals" in done.out
        assert "passed" in done.out
        assert done.out.splitlines()[-1] == f"evidence: {made.path / 'parity.json'}"
        done = tfx("separate", "song.wav", "-m", made.path, "--backend", "torch", "--require-parity")
        assert done.code == 0
        assert "; parity passed (" in done.lines[0]
        gated = ("--require-parity", "--wiener", 1, "--force")  # the network's figures are those certified
        done = tfx("separate", "song.wav", "-m", made.path, "--backend", "torch", *gated)
        assert done.code == 0
        assert "1 iteration after the network, which parity does not cover" in done.lines[1]
        pytest.importorskip("cryptography", reason="cryptography is not installed: it signs")
        for order in (["genpkey", "-algorithm", "ed25519"], ["pkey", "-in", "key", "-pubout"]):
            place = "key" if order[0] == "genpkey" else "pub"
            subprocess.run(["openssl", *order, "-out", place], check=True, capture_output=True)
        signed = ("separate", "song.wav", "-m", made.path, "--backend", "torch", "--require-signed", "pub")
        done = tfx(*signed, "--force")
        assert done.code == 3
        assert "holds no parity.json.sig" in done.lines[-1]
        done = tfx("sign", made.path, "--key", "key")
        assert (done.code, done.out.count("passed, measured here")) == (0, 1)
        assert tfx(*signed, "--force").code == 0
        done = tfx("inspect", made.path, "--verify", "pub")
        assert "signed by the owner of pub: 1 of 1 certificates are of files that it holds" in done.out
        done = tfx("inspect", bundle, "--verify", "pub")
        assert done.code == 1
        assert "holds no parity.json: measure with `tfx parity`, then `tfx sign`" in done.lines[-1]
        Path("gates.toml").write_text("[fp32]\nsnr_db = 500\n")
        done = tfx("parity", made.path, "--judge", "gates.toml", "--junit", "j/out.xml", "--markdown", "m.md")
        assert done.code == 3
        assert "signal: SNR in dB of vocals on song.wav is" in done.lines[-1]
        done = tfx("parity", made.path, "--judge", "gates.toml", "--backend", "ort")
        assert (done.code, done.out) == (2, "")
        assert "holds no certificate of that: measure first" in done.lines[-1]
        suite = ElementTree.parse("j/out.xml").getroot()[0]
        assert int(suite.get("failures", 0)) >= 2
        assert len(suite) == int(suite.get("tests", 0)) > 40
        assert suite.find("testcase[@name='song.wav: vocals']/failure") is not None
        assert suite.find("testcase[@name='1 sample: vocals']/failure") is None
        assert "| torch | fp32 |" in Path("m.md").read_text()
        assert "| FAILED |" in Path("m.md").read_text()
        # A graph of halves is far from that network: exit 3, and the evidence says so.
        made = Bundle.open(made.path)
        shown = tfx("parity", made.path, "--judge", "gates.toml").out
        assert "torch fp32 on cpu" in shown
        made.add("model.onnx", lambda path: make_graph(path, made.spec), kind="onnx", precision="fp32")
        done = tfx("parity", made.path, "--backend", "ort", "--audio", "song.wav")
        assert done.code == 3
        assert done.lines[-1].startswith(
            "tfx: ort fp32: graph: SNR in dB of vocals on a chunk of song.wav is"
        )
        assert "FAILED" in done.out
        done = tfx("separate", "song.wav", "-m", made.path, "--backend", "ort", "-o", "again")
        assert "parity FAILED on " in done.lines[0]
        done = tfx(
            "separate", "song.wav", "-m", made.path, "--backend", "ort", "-o", "more", "--require-parity"
        )
        assert done.code == 3
        assert "holds no passing certificate" in done.lines[-1]
        assert not Path("more").exists()
        shown = tfx("inspect", made.path).out
        assert "parity  model.safetensors in torch on cpu: passed" in shown
        assert "parity  model.onnx in ort on cpu: FAILED" in shown


class TestInspectAndModels:
    def test_a_bundle(self, tfx: Tfx, bundle: Path) -> None:
        done = tfx("inspect", bundle)
        assert (done.code, done.err) == (0, "")
        assert "kind: bundle" in done.out
        assert "stems: vocals, accompaniment" in done.out
        assert "model.onnx" in done.out

    def test_a_configuration_has_a_line_for_each_value(self, tfx: Tfx) -> None:
        lines = tfx("inspect", "demo").out.splitlines()
        below = lines[lines.index("provenance") : lines.index("files (hashes checked)")]
        assert {"  config", "    augment", "      channel_swap: 0.5"} <= set(below)
        assert max(map(len, below)) <= 110

    def test_a_file(self, tfx: Tfx, bundle: Path) -> None:
        found = json.loads(tfx("inspect", bundle / "model.onnx", "--json").out)
        assert (found["kind"], found["precision"], found["stems"]) == ("onnx", "fp32", list(STEMS))

    def test_the_size_of_the_papers_network(self, tfx: Tfx, bundle: Path) -> None:
        pytest.importorskip("torch", reason="torch is not installed: families are made of it")
        found = json.loads(tfx("inspect", "tfswa_unet", "--json").out)
        assert 14.5e6 < found["parameters"] < 15.0e6
        assert found["gflop_per_second"] > 1.0
        shown = tfx("inspect", "tfswa_unet").out
        assert f"parameters: {found['parameters']:,} ({found['weights_mb']} MB in float32)" in shown
        assert f"GFLOP per second of audio: {found['gflop_per_second']}" in shown

    def test_a_family_without_torch(self, tfx: Tfx, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("tfswa.train")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "torch", None)
        assert_refused(tfx("inspect", "tfswa_lite"), 4, "needs torch: pip install 'tfswa[torch]'")

    def test_models_lists_what_is_there(
        self, tfx: Tfx, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tfswa.runtime.model import opening

        for place, lines in ((bundle, 2), (bundle / "gone", 1)):
            monkeypatch.setattr(opening, "model_names", lambda place=place: {"demo": place})
            Path("demo").mkdir(exist_ok=True)  # a folder of that name is not the model
            done = tfx("models")
            assert (done.code, done.err) == (0, "")
            assert len(done.out.splitlines()) == lines
            assert done.out.splitlines()[-1].startswith(
                "families     bandit, htdemucs, mdx23c, moises_light, open_unmix, roformer, scnet, spleeter, "
            )


class TestProcess:
    """As a shell sees it."""

    def test_a_song_and_its_json(self, bundle: Path) -> None:
        write("song.wav")
        out, err = start("separate", "song.wav", "-m", bundle, "--json").communicate(timeout=HANG_SECONDS)
        assert err == ""
        assert json.loads(out)["files"][0]["seconds"] == 0.5

    def test_a_bad_song(self, bundle: Path) -> None:
        process = start("separate", "nothing.wav", "-m", bundle)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert_refused(Done(process.returncode, out, err), 1, "nothing.wav cannot be opened")

    @pytest.mark.parametrize(
        ("number", "code", "last"),
        [
            (signal.SIGINT, 130, "tfx: interrupted"),
            (signal.SIGTERM, 143, None),
            (signal.SIGHUP, 129, None),
            (signal.SIGQUIT, 131, None),
        ],
    )
    def test_ctrl_c_a_stopped_service_and_a_closed_terminal_leave_nothing(
        self, bundle: Path, number: signal.Signals, code: int, last: str | None
    ) -> None:
        size = 2 * RATE * 3600  # an hour of silence, most of it a hole in the file
        with Path("long.wav").open("wb") as file:
            file.write(
                struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + size, b"WAVEfmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
            )
            file.write(struct.pack("<4sI", b"data", size))
            file.truncate(44 + size)
        before = everything()
        process = start("separate", "long.wav", "-m", bundle, "-o", "out/deep")
        until(lambda: process.poll() is not None or list(Path().rglob("*.partial-*")))
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code
        assert out == ""
        assert last is None or err.splitlines()[-1] == last
        assert "Traceback" not in err
        assert everything() == before


def test_peak_memory_is_not_that_of_the_parent() -> None:
    """What ``getrusage`` says of a new process starts at the size of the one that started it."""
    ballast = np.ones(60_000_000, np.float32)  # 240 MB, all touched
    code = "from tfswa.runtime.machine import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < ballast.nbytes / 1e6 / 2
