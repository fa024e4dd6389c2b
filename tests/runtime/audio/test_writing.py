import contextlib
import itertools
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from waiting import full_disk

from tfswa.runtime.audio import encoders, tags
from tfswa.runtime.audio.encoders import FORMATS, check_format
from tfswa.runtime.audio.reading import open_audio, resampled
from tfswa.runtime.audio.source import open_source
from tfswa.runtime.audio.tags import Tags, read_tags
from tfswa.runtime.audio.writing import StemFiles, WriteReport
from tfswa.runtime.errors import AudioError, NonFiniteError, OutputExists, UsageError
from tfswa.runtime.files import publish, staging

Array = NDArray[np.float32]
LOSSLESS = [name for name, format in FORMATS.items() if format.lossless]
RATE = 44_100


def noise(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def read(path: Path) -> Array:
    with open_audio(path) as source:
        blocks = list(source.blocks())
        return np.concatenate([np.zeros((source.channels, 0), np.float32), *blocks], axis=1)


def destinations(folder: Path, format: str, stems: tuple[str, ...] = ("vocals", "other")) -> dict[str, Path]:
    return {stem: folder / f"{stem}{FORMATS[format].extension}" for stem in stems}


def write(
    paths: dict[str, Path],
    stems: Array,
    *,
    format: str = "wav",
    sample_rate: int = RATE,
    channels: int = 2,
    model_rate: int = RATE,
    samples: int | None = None,
    pieces: int = 3,
    **kwargs: Any,
) -> WriteReport:
    with StemFiles(
        paths, format=format, sample_rate=sample_rate, channels=channels, model_rate=model_rate, **kwargs
    ) as files:
        for piece in np.array_split(stems, pieces, axis=2):
            files.write(piece)
        return files.finish(stems.shape[2] if samples is None else samples)


def copied(song: Path) -> dict[str, Any]:
    """What copies a song's tags, and keeps it from being replaced."""
    return {"tags": read_tags(song), "source": song}


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_line(message: str) -> bool:
    return "\n" not in message and ": " in message


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "rate", "words"),
        [
            ("mp3", 96_000, r"mp3 cannot hold 96000 Hz; it holds 8000, .* and 48000 Hz: choose wav or flac"),
            ("m4a", 192_000, r"m4a cannot hold 192000 Hz; it holds 7350, .* and 96000 Hz"),
            ("ogg", 200_001, r"up to 200000 Hz"),
            ("flac", 65_537, r"up to 655350 Hz, multiples of 10 above 65535: choose wav$"),
            ("flac", 768_000, r"choose wav$"),
            ("aac", 44_100, r"format 'aac' is not known: choose one of wav, "),
        ],
    )
    def test_what_cannot_be(self, name: str, rate: int, words: str) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            check_format(name, rate)
        assert one_line(str(caught.value))

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_table_tells_the_truth(self, tmp_path: Path, name: str) -> None:
        """Rates that a format claims are written and read back; those just outside are refused."""
        format = FORMATS[name]
        rates = format.rates or (1000, 11_025, 48_000, 88_200, format.highest_rate or 768_000)
        for rate in rates:
            path = tmp_path / f"{rate}{format.extension}"
            write({"a": path}, noise(1, 1, 500), format=name, channels=1, sample_rate=rate, model_rate=rate)
            with open_audio(path) as source:
                assert (source.sample_rate, source.samples) == (rate, 500)
        if name in ("mp3", "flac"):
            for rate in (7000, 96_000) if name == "mp3" else (65_537, 655_360):
                assert not format.holds(rate)
                with pytest.raises(soundfile.LibsndfileError):
                    soundfile.write(
                        tmp_path / "no", np.zeros(9), rate, format.subtype, format=format.container
                    )
        if name == "m4a":
            assert set(format.rates or ()) == set(av.codec.Codec("aac", "w").audio_rates or ())


class TestExactness:
    @pytest.mark.parametrize("samples", [0, 1, 1000, 100_003])
    @pytest.mark.parametrize("format", LOSSLESS)
    def test_length_through_resampling(self, tmp_path: Path, format: str, samples: int) -> None:
        for rate in (8000, 44_100, 48_000, 96_000):
            signal = noise(2, samples)
            model = np.concatenate([np.zeros((2, 0), np.float32), *resampled([signal], rate, RATE)], axis=1)
            paths = destinations(tmp_path / str(rate), format)
            report = write(paths, np.stack([model, -model]), format=format, sample_rate=rate, samples=samples)
            assert (report.samples, report.sample_rate, report.notes) == (samples, rate, ())
            for path in paths.values():
                assert read(path).shape == (2, samples)
                with open_audio(path) as source:
                    assert source.sample_rate == rate

    @pytest.mark.parametrize("format", LOSSLESS)
    def test_samples_of_a_file_pass_through_unchanged(self, tmp_path: Path, format: str) -> None:
        bits = FORMATS[format].bits
        signal = noise(1, 2, 20_000)
        if bits:
            scale = 2.0 ** (bits - 1)
            signal = (np.rint(signal * scale) / scale).astype(np.float32)
        path = tmp_path / f"a{FORMATS[format].extension}"
        write({"a": path}, signal, format=format)
        np.testing.assert_array_equal(read(path), signal[0])
        assert soundfile.info(path).subtype == FORMATS[format].subtype

    @pytest.mark.parametrize("format", ["ogg", "mp3", "m4a"])
    def test_lossy_files_are_aligned_and_of_the_exact_length(self, tmp_path: Path, format: str) -> None:
        time = np.arange(50_001) / RATE
        signal = np.tile(0.5 * np.sin(2 * np.pi * 440 * time), (1, 2, 1)).astype(np.float32)
        path = tmp_path / f"a{FORMATS[format].extension}"
        write({"a": path}, signal, format=format)
        got = read(path)
        assert got.shape == (2, 50_001)
        error = got[:, 3000:-3000] - signal[0, :, 3000:-3000]
        assert 10 * np.log10(np.mean(error**2) / 0.125) < -30  # one sample off gives -24 dB

    @pytest.mark.parametrize("format", ["mp3", "m4a"])
    def test_empty_song_in_a_format_that_has_none(self, tmp_path: Path, format: str) -> None:
        path = tmp_path / f"a{FORMATS[format].extension}"
        report = write({"a": path}, noise(1, 2, 0), format=format)
        assert report.lines() == [f"{format} cannot hold 0 samples: one silent sample was written"]
        np.testing.assert_array_equal(read(path), np.zeros((2, 1)))

    def test_mono_files_hold_the_mean_of_the_model(self, tmp_path: Path) -> None:
        stems = noise(1, 2, 5000)
        write({"a": tmp_path / "a.wav"}, stems, channels=1)
        np.testing.assert_allclose(read(tmp_path / "a.wav"), stems[0].mean(axis=0, keepdims=True), atol=1e-7)

    def test_shortfall_is_padded_and_excess_cut(self, tmp_path: Path) -> None:
        stems = noise(1, 2, 10_000)
        for samples in (9000, 10_002):
            write({"a": tmp_path / "a.wav"}, stems, samples=samples, force=True)
            got = read(tmp_path / "a.wav")
            assert got.shape == (2, samples)
            np.testing.assert_array_equal(got[:, :10_000], stems[0, :, :samples])
            assert not got[:, 10_000:].any()

    def test_a_length_far_off_is_our_bug(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="more than resampling explains"):
            write({"a": tmp_path / "a.wav"}, noise(1, 2, 100), samples=100_000)
        assert everything(tmp_path) == []

    def test_24_bit_rounding(self) -> None:
        step = 2.0**-23
        block = np.array([[0.0, step, -step, 1.0, -1.0, 2.0, -2.0, 0.5 + step]], np.float32)
        expected = [0, 1, -1, 2**23 - 1, -(2**23), 2**23 - 1, -(2**23), 2**22 + 1]
        np.testing.assert_array_equal(encoders.to_integers(block, 24), [expected])

    @settings(max_examples=20, deadline=None)
    @given(cuts=st.lists(st.integers(0, 9000), max_size=5), rate=st.sampled_from([RATE, 48_000]))
    def test_the_cut_does_not_matter(
        self, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], rate: int
    ) -> None:
        folder = tmp_path_factory.mktemp("cut")
        stems = noise(2, 2, 9000)
        length = round(9000 * rate / RATE)
        whole = destinations(folder / "whole", "wav24")
        write(whole, stems, format="wav24", sample_rate=rate, samples=length, pieces=1)
        pieces = destinations(folder / "pieces", "wav24")
        with StemFiles(pieces, format="wav24", sample_rate=rate, channels=2, model_rate=RATE) as files:
            for piece in np.split(stems, sorted(cuts), axis=2):
                files.write(piece)
            files.finish(length)
        for stem in whole:
            assert whole[stem].read_bytes() == pieces[stem].read_bytes()


class TestRf64:
    @pytest.mark.parametrize("format", ["wav", "wav16", "wav24"])
    def test_a_file_beyond_the_limit_is_rf64(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
    ) -> None:
        monkeypatch.setattr(encoders, "RIFF_LIMIT", 10_000)
        source = tagged(tmp_path / "in.flac", "flac")
        stems = noise(1, 1, 9001)  # an odd number of bytes in 24 bits
        for samples, marker in ((9001, b"RF64"), (1000, b"RIFF")):
            path = tmp_path / f"{samples}.wav"
            write(
                {"a": path},
                stems[..., :samples],
                format=format,
                channels=1,
                tags=read_tags(source),
                source=source,
            )
            assert path.read_bytes()[:4] == marker
            assert soundfile.info(path).format == ("RF64" if marker == b"RF64" else "WAV")
            np.testing.assert_allclose(read(path), stems[0, :, :samples], atol=2.0**-15)
            with av.open(str(path)) as container:  # the other library agrees
                stream = container.streams.audio[0]
                assert sum(frame.samples for frame in container.decode(stream)) == samples
            assert read_tags(path).fields["title"] == "Süße Träume"

    def test_eight_hours(self) -> None:
        """The header of 10 GB, without the 10 GB."""
        samples = 8 * 3600 * RATE
        data = samples * 8
        encoder = encoders.WavEncoder(Path(os.devnull), RATE, 2, 0, b"")
        encoder._data_bytes = data
        header = encoder._header(data + 100, samples)
        encoder._file.close()
        assert header[:16] == b"RF64\xff\xff\xff\xffWAVEds64"
        assert struct.unpack("<QQQ", header[20:44]) == (data + 100, data, samples)
        assert header[-4:] == b"\xff\xff\xff\xff"

    def test_header_length_never_changes(self, tmp_path: Path) -> None:
        encoder = encoders.WavEncoder(tmp_path / "a.wav", RATE, 2, 0, b"")
        assert len(encoder._header(0, 0)) == len(encoder._header(1 << 33, 1 << 30))
        encoder.close()
        encoder.close()


class TestAtomicity:
    def files(self, folder: Path, **kwargs: Any) -> StemFiles:
        settings = {"format": "wav", "sample_rate": RATE, "channels": 2, "model_rate": RATE, **kwargs}
        return StemFiles(destinations(folder, settings["format"]), **settings)

    def test_nothing_is_visible_before_the_end(self, tmp_path: Path) -> None:
        with self.files(tmp_path) as files:
            files.write(noise(2, 2, 100_000))
            assert all(name.startswith(".") for name in everything(tmp_path))
            assert ".vocals.wav.partial-" in "".join(everything(tmp_path))
            files.finish(100_000)
        assert everything(tmp_path) == ["other.wav", "vocals.wav"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("clip", ["none", "rescale"])
    @pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3", "m4a"])
    def test_abort_leaves_nothing(
        self, tmp_path: Path, format: str, clip: Any, error: type[BaseException]
    ) -> None:
        (tmp_path / "kept.txt").write_text("mine")

        def interrupted() -> None:
            with self.files(tmp_path / "new" / "deep", format=format, clip=clip) as files:
                files.write(noise(2, 2, 100_000))
                raise error

        with pytest.raises(error):
            interrupted()
        assert everything(tmp_path) == ["kept.txt"]

    def test_leaving_without_finish_leaves_nothing(self, tmp_path: Path) -> None:
        with self.files(tmp_path / "new") as files:
            files.write(noise(2, 2, 10))
        files.abort()
        assert everything(tmp_path) == []

    def test_directories_of_others_stay(self, tmp_path: Path) -> None:
        with self.files(tmp_path / "new" / "deep"):
            (tmp_path / "new" / "theirs.txt").write_text("")
        assert everything(tmp_path) == ["new", "new/theirs.txt"]

    def test_existing_output_needs_force(self, tmp_path: Path) -> None:
        (tmp_path / "other.wav").write_text("old")
        with pytest.raises(OutputExists, match=r"other\.wav is there already: add --force"):
            self.files(tmp_path)
        assert everything(tmp_path) == ["other.wav"]
        write(destinations(tmp_path, "wav"), noise(2, 2, 10), force=True)
        assert read(tmp_path / "other.wav").shape == (2, 10)

    def test_force_keeps_the_old_file_until_the_end(self, tmp_path: Path) -> None:
        (tmp_path / "other.wav").write_text("old")
        with self.files(tmp_path, force=True) as files:
            files.write(noise(2, 2, 100_000))
        assert (tmp_path / "other.wav").read_text() == "old"

    def test_the_input_is_never_replaced(self, tmp_path: Path) -> None:
        source = tmp_path / "vocals.wav"
        soundfile.write(source, np.zeros(10), RATE)
        with pytest.raises(UsageError, match="is the input itself"):
            self.files(tmp_path, force=True, **copied(source))
        assert soundfile.info(source).frames == 10

    def test_places_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "vocals.wav").mkdir()
        for folder, words in (
            (tmp_path / "file", "no directory"),
            (tmp_path / "file" / "below", "no directory"),
            (tmp_path, "is a directory, not a place for a file"),
        ):
            with pytest.raises(UsageError, match=words) as caught:
                self.files(folder)
            assert one_line(str(caught.value))
        assert everything(tmp_path) == ["file", "vocals.wav"]

    def test_two_stems_in_one_file(self, tmp_path: Path) -> None:
        paths = {"a": tmp_path / "x.wav", "b": tmp_path / "x.wav"}
        with pytest.raises(UsageError, match="meant for both a and b"):
            StemFiles(paths, format="wav", sample_rate=RATE, channels=2, model_rate=RATE)

    def test_long_names(self, tmp_path: Path) -> None:
        path = tmp_path / ("ü" * 120 + ".wav")
        write({"a": path}, noise(1, 2, 10))
        assert everything(tmp_path) == [path.name]

    @pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3", "m4a"])
    @pytest.mark.parametrize("clip", ["none", "rescale"])
    def test_full_disk(self, tmp_path: Path, format: str, clip: Any) -> None:
        def job() -> None:
            with self.files(tmp_path / "new", format=format, clip=clip) as files:
                for _ in range(20):
                    files.write(noise(2, 2, 50_000))
                files.finish(1_000_000)

        with full_disk(50_000), pytest.raises(AudioError, match="nothing was left behind") as caught:
            job()
        assert one_line(str(caught.value))
        assert everything(tmp_path) == []

    def test_no_room_is_said_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        free = SimpleNamespace(free=1_000_000)
        monkeypatch.setattr(staging, "shutil", SimpleNamespace(disk_usage=lambda _: free))
        with pytest.raises(AudioError, match=r"1\.00 MB free, but .* 16\.00 MB"):
            self.files(tmp_path / "new", expected_samples=1_000_000)
        assert everything(tmp_path) == []
        with self.files(tmp_path, expected_samples=10_000):
            pass

    def test_failure_of_the_last_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = itertools.count()
        real = publish.rename_flagged

        def rename(*given: Any) -> bool:
            if next(calls):
                raise OSError(5, "Input/output error")
            return real(*given)

        monkeypatch.setattr(publish, "rename_flagged", rename)
        with pytest.raises(AudioError, match="Input/output error"):
            write(destinations(tmp_path, "wav"), noise(2, 2, 10))
        assert everything(tmp_path) == []

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_is_never_written(self, tmp_path: Path, bad: float) -> None:
        stems = noise(2, 2, 10_000)
        stems[1, 0, 77] = bad
        with pytest.raises(NonFiniteError, match=r"stem other holds NaN or Inf .* else check the model"):
            write(destinations(tmp_path, "wav"), stems)
        assert everything(tmp_path) == []

    def test_wrong_number_of_stems_is_our_bug(self, tmp_path: Path) -> None:
        with self.files(tmp_path) as files, pytest.raises(AssertionError, match="3 stems for 2 files"):
            files.write(noise(3, 2, 10))


class TestClip:
    def stems(self) -> Array:
        stems = np.zeros((2, 2, 20_000), np.float32)
        stems[0, 0, 5] = 1.5
        stems[0, 1, 15_000] = -1.25
        stems[1, 0, 6] = 0.75
        return stems

    def test_float_wav_keeps_everything(self, tmp_path: Path) -> None:
        paths = destinations(tmp_path, "wav")
        report = write(paths, self.stems())
        np.testing.assert_array_equal(read(paths["vocals"]), self.stems()[0])
        assert report.peaks == {"vocals": 1.5, "other": 0.75}
        assert report.clipped == {"vocals": 0, "other": 0}
        assert (report.gain, report.lines(), report.paths) == (1.0, [], paths)

    @pytest.mark.parametrize("format", ["wav16", "wav24", "flac"])
    def test_integers_limit_and_say_so(self, tmp_path: Path, format: str) -> None:
        paths = destinations(tmp_path, format)
        report = write(paths, self.stems(), format=format)
        assert report.clipped == {"vocals": 2, "other": 0}
        got = read(paths["vocals"])
        assert got[0, 5] == pytest.approx(1.0, abs=1e-4)
        assert got[1, 15_000] == -1.0
        assert report.lines() == [
            "2 samples of vocals beyond full scale clipped; "
            "--clip rescale keeps the shape, wav holds them as they are"
        ]

    def test_lossy_formats_say_so(self, tmp_path: Path) -> None:
        stems = self.stems()
        stems[0, 1] = 0
        report = write(destinations(tmp_path, "ogg"), stems, format="ogg")
        assert report.lines()[0].startswith("1 sample of vocals beyond full scale left to the player")

    def test_clip_limits(self, tmp_path: Path) -> None:
        paths = destinations(tmp_path, "wav")
        report = write(paths, self.stems(), clip="clip")
        np.testing.assert_array_equal(read(paths["vocals"]), np.clip(self.stems()[0], -1, 1))
        assert report.clipped["vocals"] == 2
        assert report.lines() == [
            "2 samples of vocals beyond full scale limited to [-1, 1], as --clip clip asks"
        ]

    @pytest.mark.parametrize("format", ["wav", "wav16", "flac", "ogg", "mp3", "m4a"])
    def test_rescale_turns_all_stems_down_alike(self, tmp_path: Path, format: str) -> None:
        paths = destinations(tmp_path, format)
        report = write(paths, self.stems(), format=format, clip="rescale")
        assert report.gain == pytest.approx(1 / 1.5)
        assert report.clipped == {"vocals": 0, "other": 0}
        assert report.lines() == ["rescaled all stems by 0.667 (peak 1.5)"]
        assert everything(tmp_path) == sorted(path.name for path in paths.values())
        if FORMATS[format].lossless:
            for path, stem in zip(paths.values(), self.stems(), strict=True):
                np.testing.assert_allclose(read(path), stem / 1.5, atol=1e-4)
                assert np.abs(read(path)).max() <= 1.0

    def test_rescale_leaves_quiet_stems_alone(self, tmp_path: Path) -> None:
        paths = destinations(tmp_path, "wav")
        stems = noise(2, 2, 20_000)
        report = write(paths, stems, clip="rescale")
        np.testing.assert_array_equal(read(paths["other"]), stems[1])
        assert (report.gain, report.lines()) == (1.0, [])


def png() -> bytes:
    """The smallest cover there is: one red pixel."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


FIELDS = {
    "title": "Süße Träume",
    "artist": "Jäger & Söhne",
    "album": "夜の歌",
    "date": "2024-05-17",
    "genre": "Dub",
    "track": "7/12",
    "comment": "first = best; second",
    "copyright": "CC BY",
}


def tagged(path: Path, format: str, cover: bytes | None = None) -> Path:
    """A song with tags, made by FFmpeg alone, so that our own writing of tags is not what is read."""
    codec = {"flac": "flac", "mp3": "libmp3lame", "m4a": "aac"}[format]
    with av.open(str(path), "w", format={"m4a": "mp4"}.get(format, format)) as output:
        output.metadata.update({**FIELDS, "encoder_options": "x", "replaygain_track_gain": "-3 dB"})
        stream = output.add_stream(codec, rate=RATE, layout="stereo")
        packet = None
        if cover is not None:
            picture = output.add_mux_stream("png", width=1, height=1)
            picture.disposition = av.stream.Disposition.attached_pic
            packet = av.Packet(cover)
            packet.stream, packet.pts, packet.dts = picture, 0, 0
        output.start_encoding()
        if packet is not None:
            output.mux(packet)
        layout, kind = "stereo", stream.format.name
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 4000), np.float32), format="fltp", layout=layout)
        silence.sample_rate, silence.pts = RATE, 0
        for frame in av.AudioResampler(format=kind, layout=layout, rate=RATE).resample(silence):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


class TestTags:
    def test_a_comment_that_no_flac_block_can_hold_is_told_and_the_stems_are_written(
        self, tmp_path: Path
    ) -> None:
        """Of a caller of the writer: ``read_tags`` leaves out what is long."""
        long = Tags({"title": "T", "comment": "x" * (1 << 24)})
        paths, stems = destinations(tmp_path / "out", "flac"), noise(2, 2, 5001)
        report = write(paths, stems, format="flac", tags=long)
        told = [str(note) for note in report.notes]
        assert len(told) == 2
        assert all("16777216" in line and "\n" not in line for line in told)
        for path, stem in zip(paths.values(), stems, strict=True):
            assert read(path).shape == stem.shape

    @pytest.mark.parametrize(
        ("source", "target"),
        [*itertools.product(["flac", "mp3", "m4a"], ["wav", "wav16", "flac", "mp3", "m4a", "ogg"])],
    )
    def test_text_survives(self, tmp_path: Path, source: str, target: str) -> None:
        song = tagged(tmp_path / f"in.{source}", source)
        paths = destinations(tmp_path / "out", target)
        stems = noise(2, 2, 5001)
        report = write(paths, stems, format=target, **copied(song))
        assert report.notes == ()
        for path, stem in zip(paths.values(), stems, strict=True):
            got = read_tags(path)
            kept = read_tags(song)
            assert {name: got.fields.get(name) for name in FIELDS} == kept.fields == FIELDS
            assert read(path).shape == stem.shape
            if FORMATS[target].is_float:
                np.testing.assert_array_equal(read(path), stem)

    @pytest.mark.parametrize("source", ["flac", "m4a"])
    @pytest.mark.parametrize("target", ["wav", "flac", "mp3", "m4a"])
    def test_cover_survives(self, tmp_path: Path, source: str, target: str) -> None:
        song = tagged(tmp_path / f"in.{source}", source, png())
        assert read_tags(song).cover == png()
        path = tmp_path / f"out{FORMATS[target].extension}"
        report = write({"a": path}, noise(1, 2, 5001), format=target, **copied(song))
        assert report.notes == ()
        got = read_tags(path)
        assert (got.cover, got.fields["title"]) == (png(), FIELDS["title"])
        assert read(path).shape == (2, 5001)

    @pytest.mark.parametrize("format", ["flac", "mp3"])
    def test_the_audio_is_the_same_with_and_without_tags(self, tmp_path: Path, format: str) -> None:
        song = tagged(tmp_path / "in.m4a", "m4a", png())
        stems = noise(1, 2, 30_000)
        plain, marked = (tmp_path / f"{name}.{format}" for name in ("plain", "marked"))
        write({"a": plain}, stems, format=format)
        write({"a": marked}, stems, format=format, **copied(song))
        np.testing.assert_array_equal(read(marked), read(plain))
        assert marked.read_bytes().endswith(plain.read_bytes()[-10_000:])

    def test_old_readers_see_the_title_of_a_wav(self, tmp_path: Path) -> None:
        song = tagged(tmp_path / "in.flac", "flac")
        write({"a": tmp_path / "a.wav"}, noise(1, 2, 100), **copied(song))
        with soundfile.SoundFile(tmp_path / "a.wav") as file:
            assert (file.title, file.artist, file.frames) == (FIELDS["title"], FIELDS["artist"], 100)

    def test_ogg_says_what_it_cannot_hold(self, tmp_path: Path) -> None:
        song = tagged(tmp_path / "in.flac", "flac", png())
        report = write({"a": tmp_path / "a.ogg"}, noise(1, 2, 100), format="ogg", **copied(song))
        assert report.lines() == ["not carried over, OGG cannot hold it here: cover"]
        extra = Tags({"composer": "C", "album_artist": "A", "title": "T"})
        assert tags.uncarried("OGG", extra) == (
            "not carried over, OGG cannot hold it here: composer, album artist"
        )

    def test_m4a_holds_png_and_jpeg_only(self, tmp_path: Path) -> None:
        gif = Tags({"title": "T"}, b"GIF89a and so on")
        report = write(
            {"a": tmp_path / "a.m4a"},
            noise(1, 2, 100),
            format="m4a",
            tags=gif,
        )
        assert report.notes == ("not carried over, MP4 cannot hold it here: cover",)
        assert read_tags(tmp_path / "a.m4a") == Tags({"title": "T"})

    def test_failure_to_tag_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        song = tagged(tmp_path / "in.flac", "flac")

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tags.shutil, "copyfileobj", fails)
        out = tmp_path / "out"
        report = write(destinations(out, "flac"), noise(2, 2, 100), format="flac", **copied(song))
        assert [("the tags of" in line, "No space" in line) for line in report.lines()] == [(True, True)] * 2
        assert everything(out) == ["other.flac", "vocals.flac"]
        assert read(out / "vocals.flac").shape == (2, 100)

    def test_flac_blocks_need_a_flac_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"RIFF and so on")
        with pytest.raises(ValueError, match="no FLAC stream"):
            tags.insert_flac_blocks(tmp_path / "a", Tags())

    def test_unreadable_and_missing_tags_are_no_failure(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("only words")
        for path in (tmp_path / "text", tmp_path / "none"):
            assert read_tags(path) == Tags()
            report = write({"a": tmp_path / f"{path.name}.wav"}, noise(1, 2, 9), **copied(path))
            assert report.notes == ()

    def test_a_cover_too_large_for_flac_is_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        song = tagged(tmp_path / "in.flac", "flac", png())
        monkeypatch.setattr(tags, "_LARGEST_COVER", 10)
        assert read_tags(song).cover is None

    def test_empty_flac_with_tags(self, tmp_path: Path) -> None:
        song = tagged(tmp_path / "in.flac", "flac", png())
        write({"a": tmp_path / "a.flac"}, noise(1, 2, 0), format="flac", **copied(song))
        assert read(tmp_path / "a.flac").shape == (2, 0)
        assert read_tags(tmp_path / "a.flac").fields == FIELDS

    def test_kinds_of_cover(self) -> None:
        assert Tags(cover=png()).cover_type == "image/png"
        assert Tags(cover=b"\xff\xd8\xff\xe0").cover_type == "image/jpeg"
        assert Tags(cover=b"what").cover_type == Tags().cover_type == ""


def test_reading_tags_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "junk.wav"
    path.write_bytes(bytes(range(100)))
    with contextlib.closing(open_source(path)) as source, tags._Budgeted(source, 10) as file:
        assert file.read(4) == bytes(range(4))
        assert file.read() == bytes(range(4, 10))
        assert file.read(1) == b""
