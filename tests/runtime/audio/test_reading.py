import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.runtime.audio import decoders, ffmpeg, layouts, packets, reading
from tfswa.runtime.audio.layouts import output_channels, to_channels
from tfswa.runtime.audio.notes import Note
from tfswa.runtime.audio.reading import model_blocks, open_audio, resampled
from tfswa.runtime.audio.source import open_source
from tfswa.runtime.errors import AudioError, UsageError

HALF_POWER = float(np.sqrt(0.5))
Array = NDArray[np.float32]


def noise(channels: int, samples: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1).astype(np.float32)


def sine(rate: int, samples: int, hertz: float = 1000.0) -> Array:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)[None]


def tones(channels: int, rate: int = 48_000) -> Array:
    """Channel k is a sine of 200 * (k + 1) Hz: its name tag."""
    return np.concatenate([sine(rate, rate, 200.0 * (k + 1)) for k in range(channels)]) * np.float32(0.4)


def tone_of(signal: Array, rate: int = 48_000) -> int:
    middle = signal[rate // 4 : 3 * rate // 4]
    return round(float(np.argmax(np.abs(np.fft.rfft(middle)))) * 2 / 200)


def save(path: Path, signal: Array, rate: int = 44_100, **kwargs: Any) -> Path:
    soundfile.write(path, signal.T, rate, **kwargs)
    return path


def encode(
    path: Path,
    signals: list[Array],
    codec: str = "aac",
    *,
    rate: int = 44_100,
    layout: str = "stereo",
    container: str | None = None,
    options: dict[str, str] | None = None,
    video: bool = False,
) -> Path:
    """A file made by FFmpeg: one audio stream per signal, and a tiny video if asked for."""
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        streams = [output.add_stream(codec, rate=rate, layout=layout) for _ in signals]
        picture = output.add_stream("mpeg4", rate=25) if video else None
        if picture is not None:
            picture.width = picture.height = 16
            picture.pix_fmt = "yuv420p"
            blank = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
            output.mux(picture.encode(blank))
            output.mux(picture.encode(None))
        for stream, signal in zip(streams, signals, strict=True):
            whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal), format="fltp", layout=layout)
            whole.sample_rate, whole.pts = rate, 0
            # Codecs other than AAC want other sample formats.
            shaped = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate).resample(whole)
            for frame in shaped:
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def read_noted(path: Path, block_samples: int = 65_536, stream: int = 0) -> tuple[Array, str]:
    """What ``read`` gives, and all notes as one text; those that mean damage begin with an exclamation."""
    signal = read(path, block_samples, stream)
    with open_audio(path, stream=stream) as source:
        for _ in source.blocks(block_samples):
            pass
        return signal, "; ".join("!" * note.damaged + note.text for note in source.notes)


def read(path: Path, block_samples: int = 65_536, stream: int = 0) -> Array:
    with open_audio(path, stream=stream) as source:
        blocks = list(source.blocks(block_samples))
        assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
        assert source.samples_read == sum(block.shape[1] for block in blocks)
        return np.concatenate([np.zeros((source.channels, 0), np.float32), *blocks], axis=1)


def error_db(got: Array, expected: Array) -> float:
    return float(10 * np.log10(np.sum((got - expected) ** 2) / np.sum(expected**2) + 1e-30))


def one_line(message: str) -> bool:
    return "\n" not in message and ": " in message


class TestGoodFiles:
    @pytest.mark.parametrize("samples", [0, 1, 1000, 100_003])
    def test_float_wav_comes_back_bit_for_bit(self, tmp_path: Path, samples: int) -> None:
        signal = noise(2, samples)
        path = save(tmp_path / "a.wav", signal, subtype="FLOAT")
        np.testing.assert_array_equal(read(path), signal)
        with open_audio(path) as source:
            assert (source.path, source.sample_rate, source.channels) == (path, 44_100, 2)
            assert (source.samples, source.streams, source.samples_read) == (samples, 1, 0)

    @pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (96_000, 2), (44_100, 6)])
    def test_rates_and_channels(self, tmp_path: Path, rate: int, channels: int) -> None:
        signal = noise(channels, 5000)
        for name, kwargs in (("a.wav", {"subtype": "FLOAT"}), ("a.flac", {}), ("a.aiff", {})):
            path = save(tmp_path / name, signal, rate, **kwargs)
            np.testing.assert_allclose(read(path), signal, atol=2.0**-15)
            with open_audio(path) as source:
                assert (source.sample_rate, source.channels) == (rate, channels)

    def test_blocks_do_not_change_the_samples(self, tmp_path: Path) -> None:
        signal = noise(2, 50_000)
        for name in ("a.mp3", "a.ogg", "a.flac"):
            path = save(tmp_path / name, signal)
            whole = read(path, 1 << 20)
            assert whole.shape == signal.shape
            np.testing.assert_array_equal(read(path, 777), whole)

    @pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.m4a", "a.mp4", "a.mka"])
    def test_lossy_formats_are_aligned_and_of_the_right_length(self, tmp_path: Path, name: str) -> None:
        signal = np.repeat(sine(44_100, 44_100, 440.0), 2, axis=0)
        make = save if name in ("a.mp3", "a.ogg") else lambda path, signal: encode(path, [signal])
        got = read(make(tmp_path / name, signal))
        assert 0 <= got.shape[1] - 44_100 < 2048 if name == "a.mka" else got.shape[1] == 44_100
        assert error_db(got[:, 2000:42_000], signal[:, 2000:42_000]) < -30  # one sample off gives -24 dB

    @pytest.mark.parametrize("name", ["a.webm", "a.opus"])
    def test_opus(self, tmp_path: Path, name: str) -> None:
        signal = np.repeat(sine(48_000, 48_000, 440.0), 2, axis=0)
        got = read(encode(tmp_path / name, [signal], "libopus", rate=48_000))
        assert got.shape == signal.shape
        assert error_db(got[:, 2000:46_000], signal[:, 2000:46_000]) < -25

    def test_alac_is_exact(self, tmp_path: Path) -> None:
        signal = (np.round(noise(2, 10_000) * 2**15) / 2**15).astype(np.float32)
        path = encode(tmp_path / "a.m4a", [signal], "alac")
        np.testing.assert_array_equal(read(path), signal)

    def test_content_decides_not_the_name(self, tmp_path: Path) -> None:
        signal = noise(1, 3000)
        save(tmp_path / "a.flac", signal, subtype="PCM_24").rename(tmp_path / "a.mp4")
        assert read(tmp_path / "a.mp4").shape == (1, 3000)
        encode(tmp_path / "b.m4a", [noise(2, 3000)]).rename(tmp_path / "b.wav")
        assert read(tmp_path / "b.wav").shape[0] == 2

    def test_streams_of_a_stem_file(self, tmp_path: Path) -> None:
        signals = [tones(2)[:1].repeat(2, axis=0), tones(2)[1:].repeat(2, axis=0)]
        path = encode(tmp_path / "a.stem.mp4", signals, rate=48_000)
        with open_audio(path) as source:
            assert source.streams == 2
        assert [tone_of(read(path, stream=k)[0]) for k in range(2)] == [1, 2]
        with pytest.raises(UsageError, match=r"audio track 3 .* has 2: choose 1 to 2"):
            open_audio(path, stream=2)

    def test_a_sound_file_has_one_stream(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", noise(1, 10))
        with pytest.raises(UsageError, match=r"audio track 2 .* has 1: use 1"):
            open_audio(path, stream=1)

    def test_sound_of_a_video(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "a.mp4", [noise(2, 44_100)], video=True)
        assert read(path).shape == (2, 44_100)

    def test_raw_aac_declares_no_length(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "a.aac", [noise(2, 44_100)], container="adts")
        with open_audio(path) as source:
            assert source.samples is None
            assert sum(block.shape[1] for block in source.blocks()) >= 44_100

    def test_flac_that_leaves_its_length_open(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.flac", noise(2, 30_000))
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0  # the 36 bits of "total samples" in STREAMINFO, at byte 21
        data[22:26] = bytes(4)
        path.write_bytes(data)
        with open_audio(path) as source:
            assert source.samples is None
        assert read(path).shape == (2, 30_000)

    def test_streamed_wav_with_no_length_in_its_header(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", noise(2, 5000), subtype="PCM_16")
        data = bytearray(path.read_bytes())
        at = data.index(b"data") + 4
        data[4:8] = data[at : at + 4] = b"\xff" * 4
        path.write_bytes(data)
        got, notes = read_noted(path)
        assert got.shape == (2, 5000)
        assert "its header gives no length" in notes
        assert "!" not in notes


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.wav", b"", r"empty \(0 bytes\)"),
            ("a.wav", b"not a wav at all, only words\n" * 40, "cannot be decoded"),
            ("a.bin", bytes(range(256)) * 40, "cannot be decoded"),
            ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n", "cannot be decoded"),
            ("a.txt", b"ffconcat version 1.0\nfile a.wav\n", "cannot be decoded"),
        ],
    )
    def test_what_is_not_audio(self, tmp_path: Path, name: str, content: bytes, words: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=words) as caught:
            open_audio(tmp_path / name)
        assert one_line(str(caught.value))

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        for path, words in ((tmp_path / "none.wav", "No such file"), (tmp_path, "is a directory")):
            with pytest.raises(AudioError, match=words) as caught:
                open_audio(path)
            assert one_line(str(caught.value))

    def test_wav_cut_inside_its_header(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", noise(2, 1000))
        for keep in (3, 12, 20, 30, 39):
            (tmp_path / "cut.wav").write_bytes(path.read_bytes()[:keep])
            with pytest.raises(AudioError, match="cannot be decoded"):
                open_audio(tmp_path / "cut.wav")

    def test_wav_cut_in_its_data(self, tmp_path: Path) -> None:
        signal = noise(2, 44_100)
        path = save(tmp_path / "a.wav", signal, subtype="FLOAT")
        path.write_bytes(path.read_bytes()[: -4 * 44_100])
        got, notes = read_noted(path)
        np.testing.assert_array_equal(got, signal[:, : got.shape[1]])
        assert 22_000 < got.shape[1] <= 22_050
        assert "declares 1.000 s" in notes

    def test_mp3_cut_in_the_middle(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.mp3", noise(2, 44_100))
        whole = read(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        got, notes = read_noted(path)
        assert 15_000 < got.shape[1] < 25_000
        # Whole files go to another decoder, whose last bits of float32 are others.
        np.testing.assert_allclose(got[:, :10_000], whole[:, :10_000], atol=1e-5)
        assert "its recording declares 1." in notes

    def test_hole_in_ogg_is_named(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.ogg", noise(2, 44_100))
        flip(path, 40)
        _, notes = read_noted(path)
        assert "damaged at" in notes

    def test_broken_flac_frame(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.flac", noise(2, 44_100))
        whole = read(path)
        flip(path, 40)
        got, notes = read_noted(path, 4096)
        assert got.shape == whole.shape
        wrong = (got != whole).any(axis=0)
        assert 0 < wrong.sum() <= 2 * 4096, "more than the frames that are damaged"
        assert not got[:, wrong].any(), "noise instead of silence"
        assert "!damaged at 0." in notes

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_inf_are_named_by_time_and_channel(self, tmp_path: Path, bad: float) -> None:
        signal = noise(2, 100_000)
        signal[1, 88_200] = bad
        path = save(tmp_path / "a.wav", signal, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"2\.000000 s in channel 2 of 2 is -?(nan|inf)"):
            read(path)

    def test_double_that_overflows_a_float(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.full((10, 1), 1e300), 8000, subtype="DOUBLE")
        with pytest.raises(AudioError, match="is inf"):
            read(tmp_path / "a.wav")

    def test_video_without_sound(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "a.mp4", [], video=True)
        with pytest.raises(AudioError, match="0 audio streams"):
            open_audio(path)

    def test_lost_packets_become_silence_of_the_same_length(self, tmp_path: Path) -> None:
        signal = sine(44_100, 200_000).repeat(2, axis=0)  # of noise, AAC makes up a part at random
        path = encode(tmp_path / "a.m4a", [signal])
        whole = read(path)
        flip(path, 400)
        got, notes = read_noted(path)
        assert got.shape == whole.shape
        assert error_db(got[:, -50_000:], whole[:, -50_000:]) < -40
        assert "silence put in their place" in notes
        assert "damaged at 2." in notes

    @pytest.mark.parametrize(
        ("limit", "value", "said"),
        [("MAX_DAMAGE", 1, "more than 1 places"), ("MAX_GAP_S", 0.001, "are missing at")],
    )
    def test_too_much_damage_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, said: str
    ) -> None:
        path = encode(tmp_path / "a.m4a", [noise(2, 200_000)])
        flip(path, 400)
        monkeypatch.setattr(decoders, limit, value)
        with pytest.raises(AudioError, match=said):
            read(path)

    def test_nothing_decodes(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "a.m4a", [noise(2, 20_000)])
        flip(path, 20_000, start=60)
        with pytest.raises(AudioError) as caught:
            read(path)
        assert one_line(str(caught.value))

    def test_m4a_cut_in_the_middle(self, tmp_path: Path) -> None:
        signal = noise(2, 200_000)
        tail = encode(tmp_path / "a.m4a", [signal])
        tail.write_bytes(tail.read_bytes()[: tail.stat().st_size // 2])
        with pytest.raises(AudioError, match="cannot be decoded"):  # its index was at the end
            open_audio(tail)
        front = encode(tmp_path / "b.m4a", [signal], options={"movflags": "faststart"})
        front.write_bytes(front.read_bytes()[: front.stat().st_size // 2])
        got, notes = read_noted(front)
        assert 50_000 < got.shape[1] < 150_000
        assert "the rest is missing or damaged" in notes


def flip(path: Path, count: int, start: int | None = None) -> None:
    """Damage ``count`` bytes in place, from the middle on."""
    data = bytearray(path.read_bytes())
    first = len(data) // 2 if start is None else start
    for index in range(first, min(first + count, len(data))):
        data[index] ^= 0x5A
    path.write_bytes(data)


class FakeFrame:
    """As much of an av.AudioFrame as the decoder looks at."""

    def __init__(self, rate: int = 8000, *, time: float | None = None, corrupt: bool = False) -> None:
        whole = av.AudioFrame.from_ndarray(np.ones((1, 800), np.float32), format="fltp", layout="mono")
        self.sample_rate, self.samples, self.time, self.is_corrupt = rate, 800, time, corrupt
        self.layout, self.format, self.to_ndarray = whole.layout, whole.format, whole.to_ndarray


class TestFFmpegDecoder:
    @pytest.fixture
    def notes(self) -> list[Note]:
        return []

    @pytest.fixture
    def feed(
        self, tmp_path: Path, notes: list[Note], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Array]:
        """Decode made-up frames in place of a file's own."""
        path = encode(tmp_path / "a.mka", [noise(1, 2400)], "flac", rate=8000, layout="mono")

        def run(*frames: FakeFrame | Exception) -> Array:
            class Packet:
                pts = 0

                def __init__(self, frame: FakeFrame | Exception) -> None:
                    self.frame = frame

                def decode(self) -> list[FakeFrame]:
                    return [self.frame]  # type: ignore[list-item]

            class Container:
                def __init__(self, inner: Any) -> None:
                    self.inner = inner
                    self.streams, self.format, self.duration = inner.streams, inner.format, inner.duration
                    self.start_time = inner.start_time
                    self.close = inner.close

                def demux(self, _: Any) -> Iterator[Packet]:
                    for frame in frames:
                        if isinstance(frame, Exception):
                            raise frame
                        yield Packet(frame)

            inner_open = ffmpeg.open_container
            with monkeypatch.context() as patched:
                patched.setattr(ffmpeg, "open_container", lambda file: Container(inner_open(file)))
                with (
                    contextlib.closing(open_source(path)) as source,
                    contextlib.closing(ffmpeg.FFmpegDecoder(source, 0)) as decoder,
                ):
                    got = np.concatenate(list(decoder.blocks(4096)), axis=1)
                    notes[:] = decoder.notes
                    return got

        return run

    def test_a_jump_of_time_stamps_is_filled(self, feed: Callable[..., Array], notes: list[Note]) -> None:
        got = feed(FakeFrame(time=5.0), FakeFrame(time=5.1), FakeFrame(time=5.3))
        np.testing.assert_array_equal(got[0], np.repeat(np.float32([1, 1, 0, 1]), 800))
        assert "damaged at 0.200 s: 0.100 s missing" in notes[0].text

    def test_rounded_time_stamps_are_not_gaps(self, feed: Callable[..., Array], notes: list[Note]) -> None:
        assert feed(FakeFrame(time=0.0), FakeFrame(time=0.103), FakeFrame()).shape == (1, 2400)
        assert not notes

    def test_corrupt_frames_are_named(self, feed: Callable[..., Array], notes: list[Note]) -> None:
        feed(FakeFrame(time=0.0), FakeFrame(time=0.1, corrupt=True))
        assert "damaged at 0.100 s: a frame is marked as corrupt" in notes[0].text

    def test_change_of_rate(self, feed: Callable[..., Array]) -> None:
        with pytest.raises(AudioError, match=r"at 0\.100 s it changes from 8000 Hz, 1 channels to 16000 Hz"):
            feed(FakeFrame(), FakeFrame(16_000))

    def test_failure_to_read_on(self, feed: Callable[..., Array]) -> None:
        with pytest.raises(AudioError, match="cannot read on"):
            feed(FakeFrame(), av.error.InvalidDataError(1, "broken"))

    def test_sample_formats(self) -> None:
        for dtype, full in ((np.uint8, 0), (np.int16, -(2**15)), (np.int32, -(2**31)), (np.float64, -1.0)):
            got = packets.to_float(np.full((1, 6), full, dtype), 2, planar=False)
            np.testing.assert_array_equal(got, np.full((2, 3), -1, np.float32))
            assert got.dtype == np.float32
        packed = np.arange(6, dtype=np.float32)[None]
        np.testing.assert_array_equal(packets.to_float(packed, 2, planar=False), [[0, 2, 4], [1, 3, 5]])


class TestChannels:
    def test_same_count_is_untouched(self) -> None:
        block = noise(2, 10)
        assert to_channels(block, 2) is block

    def test_mono_and_stereo(self) -> None:
        mono, stereo = noise(1, 10), noise(2, 10)
        np.testing.assert_array_equal(to_channels(mono, 2), np.stack([mono[0], mono[0]]))
        np.testing.assert_allclose(to_channels(stereo, 1), (stereo[:1] + stereo[1:]) / 2, atol=1e-7)

    @pytest.mark.parametrize(
        ("count", "left", "right"),
        [
            (3, {0: 1, 2: HALF_POWER}, {1: 1, 2: HALF_POWER}),
            (4, {0: 1, 2: HALF_POWER}, {1: 1, 3: HALF_POWER}),
            (5, {0: 1, 2: HALF_POWER, 3: HALF_POWER}, {1: 1, 2: HALF_POWER, 4: HALF_POWER}),
            (6, {0: 1, 2: HALF_POWER, 4: HALF_POWER}, {1: 1, 2: HALF_POWER, 5: HALF_POWER}),
            (7, {0: 1, 2: HALF_POWER, 4: 0.5, 5: HALF_POWER}, {1: 1, 2: HALF_POWER, 4: 0.5, 6: HALF_POWER}),
            (
                8,
                {0: 1, 2: HALF_POWER, 4: HALF_POWER, 6: HALF_POWER},
                {1: 1, 2: HALF_POWER, 5: HALF_POWER, 7: HALF_POWER},
            ),
        ],
    )
    def test_downmix(self, count: int, left: dict[int, float], right: dict[int, float]) -> None:
        weights = to_channels(np.eye(count, dtype=np.float32), 2)
        expected = np.zeros((2, count))
        for row, entries in zip(expected, (left, right), strict=True):
            for channel, weight in entries.items():
                row[channel] = weight
        np.testing.assert_allclose(weights, expected, atol=1e-7)
        mono = to_channels(np.eye(count, dtype=np.float32), 1)
        np.testing.assert_allclose(mono, expected.mean(axis=0, keepdims=True), atol=1e-7)

    def test_names_of_channels_come_first(self) -> None:
        """AAC's 4.0 is L R C Cs, not the L R Ls Rs of WAV."""
        weights = to_channels(np.eye(4, dtype=np.float32), 2, ("FL", "FR", "FC", "BC"))
        np.testing.assert_allclose(weights, [[1, 0, HALF_POWER, 0.5], [0, 1, HALF_POWER, 0.5]], atol=1e-7)
        unknown = to_channels(np.eye(4, dtype=np.float32), 2, ("FL", "FR", "TFL", "TFR"))
        np.testing.assert_array_equal(unknown, to_channels(np.eye(4, dtype=np.float32), 2))

    def test_too_many(self) -> None:
        with pytest.raises(AudioError, match=r"9 channels are more than the 8 .* to 2: mix"):
            to_channels(noise(9, 4), 2)

    @pytest.mark.parametrize(
        ("source", "model", "files"), [(1, 2, 1), (1, 1, 1), (2, 2, 2), (2, 1, 1), (6, 2, 2)]
    )
    def test_output_channels(self, source: int, model: int, files: int) -> None:
        assert output_channels(source, model) == files

    @pytest.mark.parametrize("layout", ["3.0", "4.0", "quad", "5.0", "5.1"])
    def test_names_match_the_samples_through_ffmpeg(self, tmp_path: Path, layout: str) -> None:
        names = [channel.name for channel in av.AudioLayout(layout).channels]
        path = encode(tmp_path / "a.m4a", [tones(len(names))], rate=48_000, layout=layout)
        got = read(path)
        with open_audio(path) as source:
            assert [name.replace("S", "B") for name in source.layout] == [n.replace("S", "B") for n in names]
        for index, name in enumerate(names):
            if name != "LFE":  # its low-pass takes the tone away
                assert tone_of(got[index]) == index + 1

    def test_surround_ogg_is_put_into_wav_order(self, tmp_path: Path) -> None:
        """Vorbis has L C R Ls Rs LFE; soundfile writes and reads that order as it stands."""
        path = save(tmp_path / "a.ogg", tones(6), 48_000)
        got = read(path)
        with open_audio(path) as source:
            assert source.layout == ("FL", "FR", "FC", "LFE", "BL", "BR")
        assert [tone_of(got[k]) for k in (0, 1, 2, 4, 5)] == [1, 3, 2, 4, 5]


class TestResampling:
    def test_equal_rates_pass_untouched(self) -> None:
        block = noise(2, 100)
        assert next(iter(resampled([block], 44_100, 44_100))) is block

    def test_no_blocks(self) -> None:
        assert list(resampled([], 48_000, 44_100)) == []

    @pytest.mark.parametrize(("from_rate", "to_rate"), [(48_000, 44_100), (44_100, 96_000), (8000, 44_100)])
    def test_an_impulse_stays_where_it_was(self, from_rate: int, to_rate: int) -> None:
        signal = np.zeros((1, from_rate), np.float32)
        signal[0, from_rate // 3] = 1.0
        out = np.concatenate(list(resampled(np.array_split(signal, 7, axis=1), from_rate, to_rate)), axis=1)
        assert abs(int(np.argmax(out[0])) - from_rate // 3 * to_rate / from_rate) <= 1
        assert abs(out.shape[1] - to_rate) <= 1

    def test_round_trip_of_a_sine(self) -> None:
        signal = sine(48_000, 48_000)
        there = resampled(np.array_split(signal, 11, axis=1), 48_000, 44_100)
        back = np.concatenate(list(resampled(there, 44_100, 48_000)), axis=1)
        assert back.shape == signal.shape
        assert error_db(back[:, 2000:-2000], signal[:, 2000:-2000]) < -80

    @settings(max_examples=25, deadline=None)
    @given(
        cuts=st.lists(st.integers(0, 5000), max_size=6),
        rates=st.sampled_from([(48_000, 44_100), (8000, 44_100)]),
    )
    def test_the_cut_does_not_matter(self, cuts: list[int], rates: tuple[int, int]) -> None:
        signal = noise(2, 5000)
        whole = np.concatenate(list(resampled([signal], *rates)), axis=1)
        pieces = np.split(signal, sorted(cuts), axis=1)
        np.testing.assert_array_equal(np.concatenate(list(resampled(pieces, *rates)), axis=1), whole)


class TestModelBlocks:
    def test_rate_channels_and_count(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", noise(6, 48_000), 48_000, subtype="FLOAT")
        with open_audio(path) as source:
            blocks = list(model_blocks(source, 44_100, 2))
            assert source.samples_read == 48_000
        assert {block.shape[0] for block in blocks} == {2}
        assert sum(block.shape[1] for block in blocks) == 44_100

    def test_surround_m4a_uses_the_names(self, tmp_path: Path) -> None:
        signal = np.zeros((4, 44_100), np.float32)
        signal[3] = sine(44_100, 44_100, 440.0)
        path = encode(tmp_path / "a.m4a", [signal], layout="4.0")
        with open_audio(path) as source:
            left, right = np.concatenate(list(model_blocks(source, 44_100, 2)), axis=1)
        np.testing.assert_allclose(left, right, atol=1e-6)  # the one surround goes to both sides alike
        assert abs(float(np.abs(left[5000:-5000]).max()) - 0.25) < 0.03

    def test_nan_stops_it(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", np.float32([[0, np.nan]]), subtype="FLOAT")
        with open_audio(path) as source, pytest.raises(AudioError, match="is nan"):
            list(model_blocks(source, 44_100, 2))

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.wav", noise(1, 500_000), subtype="PCM_16")
        with open_audio(path) as source:
            assert max(block.shape[1] for block in source.blocks()) <= reading.BLOCK_SAMPLES
        path = encode(tmp_path / "a.m4a", [noise(2, 500_000)])
        with open_audio(path) as source:
            assert max(block.shape[1] for block in source.blocks(8192)) <= 8192


def test_ffmpeg_is_not_loaded_for_sound_files(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = save(tmp_path / "a.wav", noise(1, 10))
    code = (
        "import sys, pathlib; import tfswa.runtime.audio.writing;"
        "from tfswa.runtime.audio.reading import open_audio;"
        f"list(open_audio(pathlib.Path({str(path)!r})).blocks()); assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layouts_are_complete() -> None:
    assert all(len(names) == count for count, names in layouts.LAYOUTS.items())
