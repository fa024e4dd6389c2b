"""``tfx data``: what is wrong with songs, what a training would hear, and MUSDB18's excerpts."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, BackendUnavailable, UsageError
from tfswa.runtime.songs.finding import musdb_root, pick_songs
from tfswa.runtime.songs.loading import example_stem_file
from tfswa.train.data import check as check_module
from tfswa.train.data.check import check_songs

RATE = 8000
Audio = NDArray[np.float32]
WriteSong = Callable[..., Path]


def sine(hertz: float, seconds: float = 4.0, level: float = 0.25) -> Audio:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.stack((wave, wave)).astype(np.float32)


@pytest.fixture
def songs(tmp_path: Path, write_song: WriteSong) -> Path:
    """Two good songs; the first has its mixture."""
    parts = {"vocals": sine(440), "drums": sine(1000)}
    write_song(tmp_path / "songs" / "A", {**parts, "mixture": sine(440) + sine(1000)})
    return write_song(tmp_path / "songs" / "B", parts).parent


def findings(root: Path) -> dict[str, bool]:
    return {f"{found.song}: {found.what}": found.fatal for found in check_songs(root).findings}


class TestCheck:
    def test_good_songs(self, songs: Path) -> None:
        report = check_songs(songs)
        assert report.findings == ()
        assert report.trainable
        one, two = report.songs
        assert (one.song, two.song) == ("A", "B")
        vocals = next(source for source in one.sources if source.source == "vocals")
        assert (vocals.sample_rate, vocals.channels, vocals.seconds) == (RATE, 2, 4.0)
        assert vocals.level_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.01)
        assert vocals.silent_share == 0
        assert one.sum_db is not None
        assert one.sum_db > 100  # 24 bits
        assert two.sum_db is None  # no mixture file

    def test_share_of_silence(self, songs: Path, write_song: WriteSong) -> None:
        vocals = sine(440)
        vocals[:, RATE:] = 0
        write_song(songs / "A", {"vocals": vocals})
        source = next(one for one in check_songs(songs).songs[0].sources if one.source == "vocals")
        assert source.silent_share == pytest.approx(0.75, abs=0.04)

    def test_blocks_do_not_change_the_figures(self, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tfswa.runtime.audio import reading

        whole = check_songs(songs)
        original = reading.AudioSource.blocks
        sizes = iter([700, 1024, 1500, 333, 5000] * 20)
        monkeypatch.setattr(reading.AudioSource, "blocks", lambda self: original(self, next(sizes)))
        cut = check_songs(songs)
        for one, two in zip(whole.songs, cut.songs, strict=True):
            assert one.sum_db == pytest.approx(two.sum_db)
            for source, other in zip(one.sources, two.sources, strict=True):
                assert source.level_dbfs == pytest.approx(other.level_dbfs)
                assert source.silent_share == pytest.approx(other.silent_share)

    def test_a_mixture_that_is_not_the_sum(self, songs: Path, write_song: WriteSong) -> None:
        write_song(songs / "A", {"mixture": sine(440)})
        found = findings(songs)
        assert list(found.values()) == [False]
        assert "A: its mixture file is not the sum of its parts: 0.0 dB, the sum is trained on" in found

    @pytest.mark.parametrize(
        ("seconds", "fatal"),
        [
            ({"vocals": 3.0}, True),
            ({"mixture": 3.0}, False),
            ({"vocals": 3.95}, False),
            ({"vocals": 4 - 1 / RATE}, False),
            ({"mixture": 3.95}, None),
        ],
    )
    def test_lengths(
        self, songs: Path, write_song: WriteSong, seconds: dict[str, float], fatal: bool | None
    ) -> None:
        for source, length in seconds.items():
            write_song(songs / "A", {source: sine(440, length) + (source == "mixture") * sine(1000, length)})
        found = {what: bad for what, bad in findings(songs).items() if "length" in what}
        assert list(found.values()) == ([] if fatal is None else [fatal])
        if fatal:
            assert "vocals 3.000 s" in next(iter(found))
            assert "drums 4.000 s" in next(iter(found))

    def test_rates_and_channels_that_differ(self, songs: Path) -> None:
        soundfile.write(songs / "B" / "vocals.wav", sine(440)[0, ::2], RATE // 2, subtype="PCM_24")
        found = findings(songs)
        assert found == {
            "B: sources differ in sample rate: drums 8000 Hz, vocals 4000 Hz": False,
            "B: sources differ in channels: drums 2, vocals 1": False,
        }

    def test_silence_and_clipping(self, songs: Path, write_song: WriteSong) -> None:
        drums = np.clip(8 * sine(1000), -0.999, 0.999)
        write_song(songs / "A", {"vocals": 0 * sine(440), "drums": drums, "mixture": 0.5 * drums})
        found = findings(songs)
        assert found.pop("A: vocals is silent throughout") is False
        clipped = next(what for what in found if "drums is clipped" in what)
        share = float(clipped.split(": ")[-1].split(" %")[0])
        assert 20 < share < 70
        assert found.pop(clipped) is False
        write_song(songs / "B", {"vocals": 4 * sine(440, level=0.249)})  # loud, not clipped
        assert not any(what.startswith("B") for what in findings(songs))

    def test_nan_and_damage_and_nothing(self, songs: Path) -> None:
        broken = sine(440)
        broken[1, 12_345] = np.nan
        soundfile.write(songs / "A" / "vocals.wav", broken.T, RATE, subtype="FLOAT")
        (songs / "B" / "drums.wav").write_bytes(b"no audio")
        soundfile.write(songs / "B" / "vocals.wav", np.zeros((0, 2)), RATE)
        found = findings(songs)
        assert all(found.values())
        assert any(what.startswith("A: vocals:") and "channel 2 of 2 is nan" in what for what in found)
        assert any(what.startswith("B: drums:") and "cannot be decoded" in what for what in found)
        assert "B: vocals is empty" in found
        assert len(found) == 3

    def test_a_file_that_was_cut_is_named(self, songs: Path) -> None:
        song = sorted(path for path in songs.iterdir() if path.is_dir())[0]
        path = next(iter(sorted(song.glob("*.wav"))))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 3 // 4])
        (said,) = [what for what in findings(songs) if "the rest is missing" in what]
        assert f"{path.stem}: ends at 3." in said
        assert not findings(songs)[said]

    def test_a_source_that_a_song_lacks(self, songs: Path) -> None:
        (songs / "B" / "drums.wav").rename(songs / "B" / "bass.wav")
        assert findings(songs) == {
            "A: lacks bass (in 1 of 2 songs): add it, or train with data.partial = true": True,
            "B: lacks drums (in 1 of 2 songs): add it, or train with data.partial = true": True,
        }
        report = check_songs(songs, partial=True)
        assert {finding.what: finding.fatal for finding in report.findings} == {
            "lacks bass (in 1 of 2 songs)": False,
            "lacks drums (in 1 of 2 songs)": False,
        }

    def test_a_stem_file(self, tmp_path: Path) -> None:
        example = example_stem_file()
        if example is None:
            pytest.skip("stempeg is not installed: it holds the stem file")
        (tmp_path / "train").mkdir()
        shutil.copy(example, tmp_path / "train" / "One.stem.mp4")
        report = check_songs(tmp_path, "train")
        assert report.trainable
        assert [len(song.sources) for song in report.songs] == [5]
        assert report.songs[0].sum_db == pytest.approx(15.4, abs=0.1)

    def test_memory_is_bounded(self, tmp_path: Path, write_song: WriteSong) -> None:
        import tracemalloc

        write_song(tmp_path / "A", {"vocals": sine(440, 240.0), "mixture": sine(440, 240.0)})
        tracemalloc.start()
        try:
            assert check_songs(tmp_path).trainable
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 15e6  # the song is 31 MB

    def test_command(self, songs: Path, tfx: Tfx) -> None:
        code, out, err = tfx("data", "check", songs)
        assert code == 0
        assert out.splitlines()[0].split()[:2] == ["song", "source"]
        assert "songs: 2, findings: 0, training on all of them is possible" in out
        assert err == "reading A\nreading B\n"
        code, out, _ = tfx("data", "check", songs, "--json")
        printed = json.loads(out, parse_constant=pytest.fail)
        assert code == 0
        assert list(printed) == ["root", "songs", "findings", "trainable"]
        assert printed["trainable"] is True

    def test_command_where_training_is_impossible(self, songs: Path, tfx: Tfx, write_song: WriteSong) -> None:
        write_song(songs / "A", {"vocals": 0 * sine(440), "mixture": sine(1000)})
        (songs / "B" / "drums.wav").write_bytes(b"no audio")
        code, out, _ = tfx("data", "check", songs)
        assert code == 1
        assert "note   A: vocals is silent throughout" in out
        assert "ERROR  B: drums: " in out
        assert "1 of which make training impossible" in out
        code, out, _ = tfx("data", "check", songs, "--json")
        assert code == 1
        printed = json.loads(out, parse_constant=pytest.fail)
        assert printed["trainable"] is False
        assert [finding["fatal"] for finding in printed["findings"]] == [False, True]

    @pytest.mark.parametrize("arguments", [("nowhere",), (".", "--split", "test")])
    def test_command_on_nothing(
        self, tfx: Tfx, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, err = tfx("data", "check", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("tfx: ")
        assert err.count("\n") == 1
        with pytest.raises(AudioError):
            check_module.check_songs(tmp_path / "nowhere")


@pytest.fixture
def config(song_root: Path, tiny_family: str, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'[model]\nfamily = "{tiny_family}"\n'
        f'[data]\nroot = "{song_root}"\nvalidation = ["B"]\n'
        "[augment]\nremix = 0.5\nspeed = 0.5\n"
        "[optim]\nframes = 32\n"
    )
    return path


class TestPreview:
    SAMPLES = 31 * 128

    def test_a_name_that_is_not_utf8(self, song_root: Path, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        songs, out = tmp_path / "songs", tmp_path / "out"
        for name in "AC":
            shutil.copytree(song_root / name, os.fsdecode(os.fsencode(songs / name) + b"\x85"))
        shutil.copytree(song_root / "B", songs / "B")
        code, shown, told = tfx("data", "preview", config, f"data.root={songs}", "-o", out, "-n", 3)
        assert code == 0, told
        assert "'A\\x85' at" in shown or "'C\\x85' at" in shown
        assert shown == (out / "preview.txt").read_text(encoding="utf-8")
        text = (out / "preview.json").read_text(encoding="utf-8")
        assert "\\\\x85" in text
        assert "\\udc85" not in text

    def test_writes_what_a_training_hears(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        out = tmp_path / "out"
        code, shown, _ = tfx("data", "preview", config, "-o", out, "-n", 3)
        assert code == 0
        assert shown == (out / "preview.txt").read_text()
        assert sorted(path.name for path in out.iterdir()) == [
            *("chunk-0000", "chunk-0001", "chunk-0002", "preview.json", "preview.txt")
        ]
        written = json.loads((out / "preview.json").read_text())["chunks"]
        assert [chunk["index"] for chunk in written] == [0, 1, 2]

        from tfswa.train.config_files import load_config
        from tfswa.train.data.chunks import Chunks
        from tfswa.train.data.songs import load_training_songs

        settings = load_config(config)
        groups = list(settings.data.sources.values())
        songs = load_training_songs(settings.data, RATE, 2)[0]
        chunks = Chunks(songs, groups, settings.data, settings.augment, RATE, 0)
        for index in range(3):
            folder = out / f"chunk-{index:04d}"
            assert sorted(path.name for path in folder.iterdir()) == [
                *("accompaniment.wav", "mixture.wav", "vocals.wav")
            ]
            files = {}
            for path in folder.iterdir():
                assert soundfile.info(path).subtype == "FLOAT"
                files[path.stem], rate = soundfile.read(path, dtype="float32")
                assert rate == RATE
                assert files[path.stem].shape == (self.SAMPLES, 2)
            stems = chunks[index, self.SAMPLES].stems.numpy()
            np.testing.assert_array_equal(files["vocals"].T, stems[0])
            np.testing.assert_array_equal(files["accompaniment"].T, stems[1])
            np.testing.assert_array_equal(files["mixture"].T, stems.sum(axis=0))
            assert written[index]["files"]["mixture"] == str(folder / "mixture.wav")
            for source in chunks.plan(index, self.SAMPLES).sources:
                assert f"  {source}\n" in shown

    def test_json_and_overrides(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        arguments = ("-o", tmp_path / "out", "-n", 1, "optim.frames=64", "augment.remix=1.0", "--json")
        code, shown, _ = tfx("data", "preview", config, *arguments)
        assert code == 0
        printed = json.loads(shown)
        assert list(printed) == ["output", "chunks"]
        assert printed["chunks"][0]["samples"] == 63 * 128
        assert printed["chunks"][0]["remix"] is True
        assert printed["chunks"] == json.loads((tmp_path / "out" / "preview.json").read_text())["chunks"]

    def test_of_a_pre_training_has_one_signal(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        text = config.read_text()
        config.write_text(
            text.replace("[augment]", 'sources = {mixture = ["mixture"]}\n[augment]')
            + "[pretrain]\nshare=0.5\n"
        )
        code, _, err = tfx("data", "preview", config, "-o", tmp_path / "out", "-n", 1)
        assert (code, err) == (0, "")
        assert [path.name for path in (tmp_path / "out" / "chunk-0000").iterdir()] == ["mixture.wav"]

    def test_replaces_only_when_told(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        out = tmp_path / "out"
        assert tfx("data", "preview", config, "-o", out, "-n", 1)[0] == 0
        before = (out / "preview.json").read_bytes()
        code, _, err = tfx("data", "preview", config, "-o", out, "-n", 1, "optim.seed=5")
        assert code == 2
        assert "add --force" in err
        assert (out / "preview.json").read_bytes() == before
        assert tfx("data", "preview", config, "-o", out, "-n", 1, "optim.seed=5", "--force")[0] == 0
        assert (out / "preview.json").read_bytes() != before

    def test_replacing_leaves_what_the_listing_names(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        out = tmp_path / "out"
        assert tfx("data", "preview", config, "-o", out, "-n", 4)[0] == 0
        (out / "chunk-0001" / "bass.wav").touch()  # these two no preview made
        (out / "chunk-0002" / "notes.txt").touch()
        listing = json.loads((out / "preview.json").read_text())
        listing["chunks"][0]["files"]["../../mine"] = listing["chunks"][0]["files"]["/mine"] = ""
        (out / "preview.json").write_text(json.dumps(listing))
        (tmp_path / "mine.wav").touch()

        assert tfx("data", "preview", config, "-o", out, "-n", 1, "augment.remix=5.0", "--force")[0] == 2
        assert len(list(out.rglob("*.wav"))) == 13
        assert tfx("data", "preview", config, "-o", out, "-n", 1, "--force")[0] == 0
        (chunk,) = json.loads((out / "preview.json").read_text())["chunks"]
        there = {str(path) for path in out.rglob("*") if path.is_file() and path.parent != out}
        mine = {str(out / "chunk-0001" / "bass.wav"), str(out / "chunk-0002" / "notes.txt")}
        assert there == {*chunk["files"].values(), *mine}
        assert not (out / "chunk-0003").exists()
        assert (tmp_path / "mine.wav").exists()

    @pytest.mark.parametrize("listing", ["{", "[]", '{"chunks": [{"index": "x", "files": [3]}]}'])
    def test_replaces_a_damaged_listing(self, config: Path, tmp_path: Path, tfx: Tfx, listing: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "preview.json").write_text(listing)
        assert tfx("data", "preview", config, "-o", tmp_path / "out", "-n", 1, "--force")[0] == 0
        assert json.loads((tmp_path / "out" / "preview.json").read_text())["chunks"][0]["index"] == 0

    def test_writes_all_or_nothing(
        self, config: Path, tmp_path: Path, tfx: Tfx, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []
        original = soundfile.write

        def fails(path: Path, *arguments: Any, **more: Any) -> None:
            written.append(path)
            if len(written) == 5:
                raise AudioError("disk on fire")
            original(path, *arguments, **more)

        monkeypatch.setattr(soundfile, "write", fails)
        code, _, err = tfx("data", "preview", config, "-o", tmp_path / "out", "-n", 3)
        assert (code, err) == (1, "tfx: disk on fire\n")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (("data.root=nowhere",), "is not there"),
            (("optim.frames=1000",), "a chunk needs"),
            (("augment.tempoo=1.0",), "did you mean 'tempo'"),
            (("model.family=nothing",), "unknown family"),
            (("data.songs=['Z']",), "'Z' is not in"),
        ],
    )
    def test_bad_input_is_one_line(
        self, config: Path, tmp_path: Path, tfx: Tfx, overrides: tuple[str, ...], words: str
    ) -> None:
        code, out, err = tfx("data", "preview", config, *overrides, "-o", tmp_path / "out")
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_an_output_below_a_file(self, config: Path, tmp_path: Path, tfx: Tfx) -> None:
        code, _, err = tfx("data", "preview", config, "-o", config / "out", "-n", 1)
        assert code == 2
        assert err.count("\n") == 1


@pytest.fixture
def excerpts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes | Exception], None]:
    """``excerpts(content)``: what musdb's address answers with."""
    try:
        import musdb
    except ModuleNotFoundError:
        pytest.skip("musdb is not installed: it fetches the excerpts")
    except RuntimeError:
        pytest.skip("ffmpeg is not installed: musdb needs it")

    def serve(content: bytes | Exception) -> None:
        def urlopen(request: Any) -> Any:
            assert request.full_url.endswith(".zip")
            assert socket.getdefaulttimeout() == 30.0
            if isinstance(content, Exception):
                raise content
            return _Answer(content)

        monkeypatch.setattr(musdb, "urlopen", urlopen)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return serve


class _Answer(io.BytesIO):
    """As much of a response as the downloader uses."""

    class _Headers:
        def get_all(self, name: str) -> list[str]:
            return []

    def info(self) -> Any:
        return self._Headers()


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as files:
        for name in names:
            files.writestr(name, b"\0" * 1000)
    return content.getvalue()


GOOD = ("train/One.stem.mp4", "train/Two.stem.mp4", "test/Three.stem.mp4")


class TestMusdb:
    def test_fetches_and_unpacks(self, excerpts: Callable[..., None], tmp_path: Path, tfx: Tfx) -> None:
        excerpts(archive(*GOOD))
        out = tmp_path / "deep" / "musdb"
        code, shown, _ = tfx("data", "musdb", "--download", "-o", out)
        assert (code, shown) == (0, f"{out}: 3 songs\n")
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4")) == sorted(GOOD)
        assert [path.name for path in out.parent.iterdir()] == ["musdb"]
        assert socket.getdefaulttimeout() is None

    @pytest.mark.parametrize("variable", [True, False])
    def test_goes_where_evaluate_looks(
        self,
        excerpts: Callable[..., None],
        tmp_path: Path,
        tfx: Tfx,
        monkeypatch: pytest.MonkeyPatch,
        variable: bool,
    ) -> None:
        expected = tmp_path / ("mine" if variable else "MUSDB18/MUSDB18-7")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("MUSDB_PATH", str(expected) if variable else "")
        excerpts(archive(*GOOD))
        with pytest.raises(UsageError, match=re.escape(f"no MUSDB18 in {expected}: ")):
            musdb_root()
        assert tfx("data", "musdb")[2].endswith(f"from the network, to {expected}: say --download\n")
        assert tfx("data", "musdb", "--download")[:2] == (0, f"{expected}: 3 songs\n")
        assert musdb_root() == expected
        assert [song.name for song in pick_songs(Path("musdb"), None, (), ())] == ["Three"]
        code, _, err = tfx("data", "musdb", "--download")
        assert code == 2
        assert f"{expected} is there already, nothing was fetched" in err

    def test_json(self, excerpts: Callable[..., None], tmp_path: Path, tfx: Tfx) -> None:
        excerpts(archive(*GOOD))
        code, shown, _ = tfx("data", "musdb", "--download", "-o", tmp_path / "musdb", "--json")
        assert code == 0
        assert json.loads(shown) == {"root": str(tmp_path / "musdb"), "songs": 3}

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(OSError("Name or service not known"), id="no network"),
            pytest.param(TimeoutError("timed out"), id="timeout"),
            pytest.param(archive(*GOOD)[:-60], id="cut short"),
            pytest.param(b"<html>not found</html>", id="no zip"),
            pytest.param(archive("readme.txt"), id="other content"),
            pytest.param(archive("train/readme.txt"), id="no songs"),
        ],
    )
    def test_a_failure_is_one_line_and_leaves_nothing(
        self, excerpts: Callable[..., None], tmp_path: Path, tfx: Tfx, content: bytes | Exception
    ) -> None:
        excerpts(content)
        place = tmp_path / "place"
        place.mkdir()
        code, shown, err = tfx("data", "musdb", "--download", "-o", place / "musdb")
        assert (code, shown) == (1, "")
        assert err.splitlines()[-1].startswith("tfx: MUSDB18's excerpts could not be fetched (")
        assert "Traceback" not in err
        assert list(place.iterdir()) == []
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_what_is_there_stays(self, excerpts: Callable[..., None], tmp_path: Path, tfx: Tfx) -> None:
        excerpts(AssertionError("asked"))
        (tmp_path / "musdb").mkdir()
        code, _, err = tfx("data", "musdb", "--download", "-o", tmp_path / "musdb")
        assert code == 2
        assert "is there already" in err

    def test_a_place_that_cannot_be(self, excerpts: Callable[..., None], tmp_path: Path, tfx: Tfx) -> None:
        (tmp_path / "file").touch()
        code, _, err = tfx("data", "musdb", "--download", "-o", tmp_path / "file" / "musdb")
        assert code == 2
        assert err.count("\n") == 1

    def test_nothing_is_fetched_unasked(self, tfx: Tfx) -> None:
        code, shown, err = tfx("data", "musdb")
        assert (code, shown) == (2, "")
        assert "say --download" in err

    def test_without_ffmpeg_or_the_package(
        self, tmp_path: Path, tfx: Tfx, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "musdb", None)
        code, _, err = tfx("data", "musdb", "--download", "-o", tmp_path / "musdb")
        assert code == BackendUnavailable.exit_code
        assert "pip install 'tfswa[eval]'" in err
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "musdb.py").write_text("raise RuntimeError('ffmpeg could not be found!')")
        monkeypatch.delitem(sys.modules, "musdb")
        monkeypatch.syspath_prepend(tmp_path / "packages")
        code, _, err = tfx("data", "musdb", "--download", "-o", tmp_path / "musdb")
        assert code == BackendUnavailable.exit_code
        assert "needs ffmpeg and ffprobe on PATH" in err
        assert not (tmp_path / "musdb").exists()
