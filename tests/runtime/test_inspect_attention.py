"""``tfx inspect MODEL --attention SONG``: which pictures, of which chunk, on which axes; every refusal."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tfswa.runtime import attention
from tfswa.runtime.attention import kind_of, loudest_chunk, plan_pictures, scale_of
from tfswa.runtime.bundle import Bundle
from tfswa.runtime.cli import main
from tfswa.runtime.errors import AudioError
from tfswa.runtime.models import METADATA, embed
from tfswa.runtime.spec import ModelSpec
from tfswa.runtime.truth import example_stem_file

DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"
RATE = 8000
MODULES = [
    "encoder.0.blocks.0.window",
    "encoder.1.blocks.0.time",
    "encoder.1.blocks.0.frequency",
    "encoder.1.blocks.0.window",
    "decoder.0.blocks.0.window",
]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def tfx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tfx", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def drawing() -> None:
    pytest.importorskip("torch", reason="torch is not installed: attention is seen in the eager network")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """A second of noise, loud from 0.5 s on."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    noise[: RATE // 2] *= 0.01
    soundfile.write(path, noise, RATE)
    return path


def refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("tfx: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


@pytest.mark.usefixtures("drawing")
class TestCommand:
    def test_pictures_of_every_module_and_kind(
        self, tfx: Callable[..., Done], network_bundle: Bundle, song: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "new" / "pictures"
        done = tfx("inspect", network_bundle.path, "--attention", song, "-o", out, "--json")
        assert done.code == 0, done.err
        printed = json.loads(done.out)
        assert printed["model"] == str(network_bundle.path)
        assert printed["song"] == "song.wav"
        assert printed["seconds"] == 0.24
        assert 0.5 <= printed["start_seconds"] <= 0.76
        files = {Path(file["path"]).name: file for file in printed["files"]}
        overviews = {"time.png", "frequency.png", "window.png"}
        assert (
            set(files) == {path.name for path in out.iterdir()} == overviews | {f"{m}.png" for m in MODULES}
        )
        assert {name for name, file in files.items() if file["overview"]} == overviews
        assert files["window.png"]["modules"] == [m for m in MODULES if m.endswith("window")]
        assert files["encoder.1.blocks.0.time.png"]["kind"] == "time"
        for path in out.iterdir():
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_the_printed_list(
        self,
        tfx: Callable[..., Done],
        network_bundle: Bundle,
        song: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = tfx("inspect", network_bundle.path, "--attention", song)  # into ./attention
        assert done.code == 0, done.err
        assert re.search(r"attention of .* in song.wav, 0\.\d+ to 0\.\d+ s", done.out)
        assert "  attention/window.png  (3 modules)\n" in done.out
        assert "  attention/encoder.1.blocks.0.time.png\n" in done.out
        assert (tmp_path / "attention" / "time.png").is_file()

    def test_axes_and_titles(
        self,
        tfx: Callable[..., Done],
        network_bundle: Bundle,
        song: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from tfswa.train import pictures

        drawn: dict[str, Any] = {}

        def grid(maps: Any, *, title: str, scale: Any) -> Any:
            drawn[" ".join(maps)] = (title, scale)
            return None

        monkeypatch.setattr(pictures, "attention_grid", grid)
        monkeypatch.setattr(pictures, "save_png", lambda figure, path: path.write_bytes(b""))
        assert tfx("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p").code == 0
        title, scale = drawn["encoder.1.blocks.0.time"]
        assert title == "network.tfx: attention along time (TSA)"
        assert scale.label == "time / s"
        assert scale.end - scale.start == pytest.approx(16 * 128 / RATE)
        assert drawn["encoder.1.blocks.0.frequency"][1] == pictures.Scale("frequency / kHz", 0.0, 4.0)
        assert len(drawn) == len(MODULES) + 1  # the two kinds with one module share its key with its picture

    def test_what_is_there_is_kept_without_force(
        self, tfx: Callable[..., Done], network_bundle: Bundle, song: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "pictures"
        out.mkdir()
        (out / "time.png").write_bytes(b"mine")
        call = ("inspect", network_bundle.path, "--attention", song, "-o", out)
        refused(tfx(*call), 2, "holds pictures already", "--force")
        assert [path.name for path in out.iterdir()] == ["time.png"]
        assert (out / "time.png").read_bytes() == b"mine"
        assert tfx(*call, "--force").code == 0
        assert (out / "time.png").read_bytes() != b"mine"

    def test_all_pictures_or_none(
        self,
        tfx: Callable[..., Done],
        network_bundle: Bundle,
        song: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from tfswa.train import pictures

        real, calls = pictures.save_png, []

        def interrupted(figure: Any, path: Path) -> None:
            calls.append(path)
            if len(calls) == 3:
                raise KeyboardInterrupt
            real(figure, path)

        monkeypatch.setattr(pictures, "save_png", interrupted)
        done = tfx("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p")
        assert done.code == 130
        assert not (tmp_path / "p").exists()

    def test_an_exported_file_has_no_network(
        self, tfx: Callable[..., Done], network_bundle: Bundle, song: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.ts"
        with zipfile.ZipFile(path, "w") as archive:
            text = embed(network_bundle.spec, "fp32", network_bundle.digest)
            archive.writestr(f"model/extra/{METADATA}.json", text)
        refused(tfx("inspect", path, "--attention", song, "-o", tmp_path / "p"), 4, "exported file", "bundle")

    def test_refusals(
        self, tfx: Callable[..., Done], network_bundle: Bundle, song: Path, tmp_path: Path
    ) -> None:
        silent = tmp_path / "silent.wav"
        soundfile.write(silent, np.zeros((RATE, 2)), RATE)
        several = tmp_path / "several"
        several.mkdir()
        for name in ("a.wav", "b.wav"):
            (several / name).write_bytes(song.read_bytes())
        blocked = tmp_path / "blocked"
        blocked.write_text("a file")

        def draw(what: Path, out: Path = tmp_path / "p") -> Done:
            return tfx("inspect", network_bundle.path, "--attention", what, "-o", out)

        refused(draw(tmp_path / "none.wav"), 1, "none.wav cannot be opened")
        refused(draw(silent), 1, "no sound")
        refused(draw(several), 2, "holds 2 songs")
        refused(draw(song, blocked), 2, "cannot be written")
        refused(tfx("inspect", "nothing", "--attention", song), 2, "no model 'nothing'")
        assert not (tmp_path / "p").exists()

    def test_a_network_without_attention(
        self,
        tfx: Callable[..., Done],
        network_bundle: Bundle,
        song: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from tfswa.train.reference import TorchReference

        call = ("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p")
        monkeypatch.setattr(TorchReference, "attention_maps", lambda *_: {})
        refused(tfx(*call), 2, "nothing to draw")
        broken = {"a.time": np.full((2, 2), np.nan, np.float32)}
        monkeypatch.setattr(TorchReference, "attention_maps", lambda *_: broken)
        refused(tfx(*call), 1, "a.time is not finite")

    def test_the_keys_are_documented(
        self, tfx: Callable[..., Done], network_bundle: Bundle, song: Path, tmp_path: Path
    ) -> None:
        section = DOCUMENT.read_text().split("### With `--attention SONG`")[1].split("\n## ")[0]
        documented = dict(re.findall(r"^- `([^`]+)` \((\w+)\): .", section, re.MULTILINE))
        kinds = {"string": str, "number": (int, float), "boolean": bool}
        printed = json.loads(
            tfx("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p", "--json").out
        )
        found: dict[str, Any] = {key: value for key, value in printed.items() if key != "files"}
        for file in printed["files"]:
            found |= {f"files[].{key}": value for key, value in file.items() if key != "modules"}
            found["files[].modules[]"] = file["modules"][0]
        assert list(found) == list(documented)
        for key, value in found.items():
            assert isinstance(value, kinds[documented[key]]), key

    @pytest.mark.slow
    def test_the_demo_on_music(self, tfx: Callable[..., Done], tmp_path: Path) -> None:
        path = example_stem_file()
        if path is None:
            pytest.skip("stempeg is not installed: it holds the song")
        done = tfx("inspect", "demo", "--attention", path, "-o", tmp_path / "p", "--json")
        assert done.code == 0, done.err
        kinds = [file["kind"] for file in json.loads(done.out)["files"] if not file["overview"]]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == {"time": 7, "frequency": 7, "window": 9}


def test_options_without_a_song_are_refused(tfx: Callable[..., Done], tmp_path: Path) -> None:
    refused(tfx("inspect", "demo", "-o", tmp_path), 2, "add --attention SONG")
    refused(tfx("inspect", "demo", "--force"), 2, "add --attention SONG")


def test_without_matplotlib_the_extra_is_named(
    tfx: Callable[..., Done],
    network_bundle: Bundle,
    song: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = tfx("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p")
    refused(done, 4, "matplotlib: pip install 'tfswa[plots]'")


def test_the_loudest_chunk(tiny_spec: ModelSpec) -> None:
    length, hop = tiny_spec.chunk_samples, tiny_spec.stft.hop
    mixture = np.full((2, 10 * length), 0.01, np.float32)
    mixture[:, 40 * hop : 40 * hop + length] = 0.5
    start, chunk = loudest_chunk(mixture, tiny_spec)
    assert start == 40 * hop
    np.testing.assert_array_equal(chunk, mixture[:, start : start + length])
    mixture[:, -1] = 100.0  # the last samples that a chunk can hold
    start, chunk = loudest_chunk(mixture[:, : length + 3 * hop + 5], tiny_spec)
    assert start <= 3 * hop
    assert chunk.shape == (2, length)


@pytest.mark.parametrize("samples", [1, 100, 1919])
def test_a_short_song_is_followed_by_silence(tiny_spec: ModelSpec, samples: int) -> None:
    start, chunk = loudest_chunk(np.ones((2, samples), np.float32), tiny_spec)
    assert start == 0
    assert chunk.shape == (2, tiny_spec.chunk_samples)
    assert chunk[:, :samples].all()
    assert not chunk[:, samples:].any()


@pytest.mark.parametrize("samples", [0, 100])
def test_silence_has_no_loudest_chunk(tiny_spec: ModelSpec, samples: int) -> None:
    with pytest.raises(AudioError, match="no sound"):
        loudest_chunk(np.zeros((2, samples), np.float32), tiny_spec)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("encoder.1.blocks.0.time", "time"),
        ("blocks.0.fusion.frequency", "frequency"),
        ("a.window.2", "window"),
        ("layers.3", "layers"),
        ("7", "7"),
    ],
)
def test_the_kind_is_the_last_word(module: str, kind: str) -> None:
    assert kind_of(module) == kind


def test_every_picture_has_a_file_of_its_own(tmp_path: Path) -> None:
    maps = {name: np.eye(4, dtype=np.float32) for name in ("Attention", "a.time", "a.time.2", "b.time")}
    pictures = plan_pictures(maps, tmp_path)
    assert len({picture.path for picture in pictures}) == len(pictures)
    assert {m for picture in pictures for m in picture.modules} == set(maps)
    assert [(picture.path.name, picture.overview) for picture in pictures][:2] == [
        ("Attention.png", True),
        ("time.png", True),
    ]


def test_scales(tiny_spec: ModelSpec) -> None:
    frame = 128 / RATE
    assert scale_of("time", 8, tiny_spec, 2.0) == ("time / s", 2 - frame / 2, 2 + 15.5 * frame, 0.0)
    assert scale_of("frequency", 32, tiny_spec, 2.0) == ("frequency / kHz", 0.0, 4.0, 0.0)
    contiguous = dataclasses.replace(tiny_spec, hyper={**tiny_spec.hyper, "fold_layout": "contiguous"})
    label, start, end, _ = scale_of("frequency", 32, contiguous, 0.0)
    assert "each of 4 sub-bands" in label
    assert (start, end) == (0.0, 1.0)
    label, start, end, tick = scale_of("window", 16, tiny_spec, 0.0)
    assert "4 frames of 4 bins" in label
    assert (start, end, tick) == (0.0, 16.0, 4.0)
    assert scale_of("window", 15, tiny_spec, 0.0) == scale_of("other", 15, tiny_spec, 0.0)


def test_the_runtime_reaches_pictures_and_torch_by_name_alone() -> None:
    source = Path(attention.__file__).read_text()
    assert not re.search(r"^\s*(from|import) (torch|matplotlib|tfswa\.train)", source, re.MULTILINE)
