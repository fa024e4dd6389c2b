"""What is decoded is counted, what is declared is compared: lengths, joins, holes, masks, pipes, tracks."""

import io
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.audio.headers import find_pcm
from tfswa.runtime.audio.layouts import core_audio_layout, downmix, mask_layout, to_channels
from tfswa.runtime.audio.notes import NOTE_KINDS, Note
from tfswa.runtime.audio.pages import checksum, read_pages
from tfswa.runtime.audio.pcm import to_floats
from tfswa.runtime.audio.reading import HIGHEST_RATE, LOWEST_RATE, model_blocks, open_audio
from tfswa.runtime.audio.source import open_source
from tfswa.runtime.audio.tags import Tags, read_tags
from tfswa.runtime.audio.tracks import parse_track
from tfswa.runtime.errors import AudioError, UsageError

Array = NDArray[np.float32]
N = 30_000


def noise(channels: int = 2, samples: int = N, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    return (random.standard_normal((channels, samples)) * 0.1).astype(np.float32)


def sound(format: str, subtype: str | None = None, signal: Array | None = None, rate: int = 44_100) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, (noise() if signal is None else signal).T, rate, format=format, subtype=subtype)
    return file.getvalue()


def encoded(
    container: str,
    codec: str,
    signals: list[Array],
    *,
    rate: int = 44_100,
    picture_s: float = 0.0,
    languages: tuple[str, ...] = (),
    start_s: float = 0.0,
    options: dict[str, str] | None = None,
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        streams = [output.add_stream(codec, rate=rate, layout="stereo") for _ in signals]
        for stream in streams:
            stream.bit_rate = 128_000
        for stream, language in zip(streams, languages, strict=False):
            stream.metadata["language"] = language
        if picture_s:
            video = output.add_stream("mpeg4", rate=25)
            video.width = video.height = 16
            video.pix_fmt = "yuv420p"
            for _ in range(int(25 * picture_s)):
                blank = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
                output.mux(video.encode(blank))
            output.mux(video.encode(None))
        for stream, signal in zip(streams, signals, strict=True):
            frame = av.AudioFrame.from_ndarray(signal, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, round(start_s * rate)
            shaped = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate)
            for piece in shaped.resample(frame):
                output.mux(stream.encode(piece))
            output.mux(stream.encode(None))
    return file.getvalue()


def read(path: Path, data: bytes | None = None) -> tuple[Array, tuple[Note, ...]]:
    if data is not None:
        path.write_bytes(data)
    with open_audio(path) as audio:
        blocks = [np.zeros((audio.channels, 0), np.float32), *audio.blocks()]
        assert audio.damaged == any(note.damaged for note in audio.notes)
        return np.concatenate(blocks, axis=1), audio.notes


def kinds(notes: tuple[Note, ...]) -> list[str]:
    return [("!" if note.damaged else "") + note.kind for note in notes]


def patched(data: bytes, at: int, raw: bytes) -> bytes:
    return data[:at] + raw + data[at + len(raw) :]


def without_xing(mp3: bytes) -> bytes:
    """An MP3 whose frame of information is left out, as in any that was written to a pipe."""
    at = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    start = mp3.rfind(b"\xff", 0, at)
    following = mp3.find(mp3[start : start + 2], at)
    return mp3[following:]


class TestLengthsOfMpeg:
    def test_without_a_count_every_frame_is_read(self, tmp_path: Path) -> None:
        """The estimate from a first frame's bit rate gave half of such a file."""
        loud_first = noise()
        loud_first[:, 6000:] *= 0.01
        for signal in (loud_first, loud_first[:, ::-1]):
            data = without_xing(sound("MP3", signal=signal))
            got, notes = read(tmp_path / "a.mp3", data)
            expected = sum(frame.samples for frame in av.open(io.BytesIO(data)).decode(audio=0))
            assert got.shape[1] == expected
            assert N <= got.shape[1] < N + 4000
            assert notes == ()

    def test_joined_files_are_read_in_a_row(self, tmp_path: Path) -> None:
        one, other = noise(seed=1), noise(seed=2)
        for format, subtype, bound in (
            ("MP3", None, 0.05),
            ("FLAC", "PCM_16", 1e-4),
            ("WAV", "PCM_16", 1e-4),
        ):
            data = sound(format, subtype, one) + sound(format, subtype, other)
            got, notes = read(tmp_path / "a", data)
            assert got.shape == (2, 2 * N)
            assert kinds(notes) == ["joined"]
            alone = np.concatenate(
                [read(tmp_path / "b", sound(format, subtype, x))[0] for x in (one, other)], 1
            )
            assert np.abs(got - alone)[:, 2000:].max() < bound

    def test_joined_with_tags_in_between(self, tmp_path: Path) -> None:
        mp3 = sound("MP3")
        tag = b"TAG" + b"x" * 125
        id3 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
        got, notes = read(tmp_path / "a.mp3", id3 + mp3 + tag + id3 + mp3 + tag)
        assert got.shape == (2, 2 * N)
        assert kinds(notes) == ["joined"]

    def test_a_recording_of_another_rate_is_named(self, tmp_path: Path) -> None:
        _, notes = read(tmp_path / "a", sound("FLAC") + sound("FLAC", rate=48_000))
        assert kinds(notes) == ["!rest"]
        with pytest.raises(AudioError, match="it changes from 44100 Hz, 2 channels to 48000 Hz"):
            read(tmp_path / "a", sound("MP3") + sound("MP3", rate=48_000))

    def test_a_broken_frame_keeps_what_follows_in_place(self, tmp_path: Path) -> None:
        data = bytearray(encoded("mp2", "mp2", [noise()]))
        whole, _ = read(tmp_path / "a", bytes(data))
        at = data.find(data[:2], len(data) // 2)
        data[at] = 0
        got, notes = read(tmp_path / "b", bytes(data))
        assert got.shape == whole.shape
        assert kinds(notes) == ["!hole"]
        np.testing.assert_array_equal(got[:, -5000:], whole[:, -5000:])

    def test_a_last_frame_that_is_cut(self, tmp_path: Path) -> None:
        for data in (without_xing(sound("MP3")), encoded("adts", "aac", [noise()])):
            assert kinds(read(tmp_path / "a", data[:-50])[1]) == ["!cut"]

    def test_one_frame_of_what_was_a_song(self, tmp_path: Path) -> None:
        got, notes = read(tmp_path / "a", sound("MP3")[:1700])
        assert got.shape[1] < 3000
        assert kinds(notes) == ["!cut"]


class TestHeaders:
    @pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
    def test_a_wav_whose_length_was_left_open(self, tmp_path: Path, size: int) -> None:
        data = sound("WAV", "PCM_16")
        raw = struct.pack("<I", size)
        data = patched(patched(data, data.index(b"data") + 4, raw), 4, raw)
        got, notes = read(tmp_path / "a.wav", data)
        assert got.shape == (2, N)
        assert kinds(notes) == ["length"]

    def test_an_empty_wav_is_empty(self, tmp_path: Path) -> None:
        data = sound("WAV", "PCM_16", noise(samples=0)) + b"LIST\x04\0\0\0INFO"
        assert read(tmp_path / "a.wav", data)[0].shape == (2, 0)

    def test_rf64_written_to_a_pipe(self, tmp_path: Path) -> None:
        data = sound("RF64", "PCM_16")
        at = data.index(b"ds64") + 8
        got, notes = read(tmp_path / "a.wav", patched(data, at, bytes(24)))
        assert got.shape == (2, N)
        assert kinds(notes) == ["length"]

    def test_a_size_that_wrapped_around(self, tmp_path: Path) -> None:
        """More than 4 GiB of samples, in a file of holes; 32 bits of the size are in its header."""
        data = sound("WAV", "PCM_16", noise(samples=10))
        at = data.index(b"data") + 4
        length = (1 << 32) + 400_000
        path = tmp_path / "a.wav"
        path.write_bytes(patched(data, at, struct.pack("<I", length & 0xFFFF_FFFF)))
        os.truncate(path, at + 4 + length)
        with open_audio(path) as audio:
            assert audio.samples == length // 4
            assert kinds(audio.notes) == ["length"]

    @pytest.mark.parametrize(
        ("format", "subtype"),
        [
            *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ALAW")),
            *(("AIFF", kind) for kind in ("PCM_16", "PCM_24", "ULAW", "PCM_S8", "FLOAT")),
            *(("AU", kind) for kind in ("PCM_16", "ULAW", "DOUBLE")),
            *(("CAF", kind) for kind in ("PCM_16", "FLOAT", "ALAW")),
            *(("W64", "PCM_16"), ("W64", "PCM_32"), ("RF64", "PCM_24"), ("WAVEX", "PCM_16")),
        ],
    )
    def test_samples_are_those_of_libsndfile_and_half_a_file_is_called_cut(
        self, tmp_path: Path, format: str, subtype: str
    ) -> None:
        data = sound(format, subtype)
        got, notes = read(tmp_path / "a", data)
        expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].T
        np.testing.assert_array_equal(got, expected)
        assert notes == ()
        half, notes = read(tmp_path / "b", data[: len(data) // 2])
        assert 0.4 * N < half.shape[1] < 0.6 * N
        np.testing.assert_array_equal(half, expected[:, : half.shape[1]])
        assert kinds(notes) == ["!cut"]

    def test_laws_are_those_of_libsndfile(self) -> None:
        codes = bytes(range(256))
        for coding, subtype in (("alaw", "ALAW"), ("ulaw", "ULAW")):
            expected, _ = soundfile.read(
                io.BytesIO(codes), format="RAW", subtype=subtype, samplerate=8000, channels=1, dtype="float32"
            )
            np.testing.assert_array_equal(to_floats(codes, coding), expected)

    def test_bytes_behind_the_sound_are_named(self, tmp_path: Path) -> None:
        data = sound("WAV", "PCM_16")
        short = patched(data, data.index(b"data") + 4, struct.pack("<I", 40_000))
        got, notes = read(tmp_path / "a.wav", short)
        assert got.shape[1] == 10_000
        assert kinds(notes) == ["!rest"]
        assert kinds(read(tmp_path / "b.wav", data + b"LIST\x04\0\0\0INFO")[1]) == []

    def test_an_unknown_codec_is_one_clear_line(self, tmp_path: Path) -> None:
        data = sound("WAV", "PCM_16")
        data = patched(data, data.index(b"fmt ") + 8, b"\x34\x12")
        with pytest.raises(AudioError, match="cannot be decoded") as caught:
            read(tmp_path / "a.wav", data)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("rate", [0, 3, LOWEST_RATE - 1, HIGHEST_RATE + 1, 2**31 - 1])
    def test_absurd_rates_are_refused_by_name(self, tmp_path: Path, rate: int) -> None:
        data = sound("WAV", "PCM_16")
        data = patched(data, data.index(b"fmt ") + 12, struct.pack("<I", rate))
        with pytest.raises(AudioError, match=rf"a sample rate of {rate} Hz, read are 1000 to 3000000 Hz"):
            read(tmp_path / "a.wav", data)

    def test_blocks_are_bounded_in_seconds_and_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(sound("WAV", "PCM_16", noise(1, 200_000), rate=LOWEST_RATE))
        with open_audio(path) as audio:
            assert max(block.shape[1] for block in model_blocks(audio, 44_100, 2)) < 5 * 44_100
        path.write_bytes(sound("WAV", "PCM_16", noise(400, 20_000)))
        with open_audio(path) as audio:
            assert max(block.nbytes for block in audio.blocks()) <= 8 << 20


class TestContainers:
    @pytest.mark.parametrize(
        ("container", "codec"),
        [("avi", "pcm_s16le"), ("asf", "wmav2"), ("matroska", "aac"), ("webm", "libopus")],
    )
    def test_half_a_file_is_called_cut(self, tmp_path: Path, container: str, codec: str) -> None:
        data = encoded(container, codec, [noise(samples=90_000)], rate=48_000)
        assert read(tmp_path / "a", data)[1] == ()
        assert "!cut" in kinds(read(tmp_path / "b", data[: len(data) // 2])[1])

    @pytest.mark.parametrize(("container", "codec"), [("matroska", "aac"), ("mp4", "aac"), ("avi", "mp2")])
    def test_a_picture_that_lasts_longer_is_no_damage(
        self, tmp_path: Path, container: str, codec: str
    ) -> None:
        got, notes = read(tmp_path / "a", encoded(container, codec, [noise(samples=88_200)], picture_s=4))
        assert got.shape[1] >= 88_200
        assert notes == ()

    def test_a_cover_is_no_damage(self, tmp_path: Path) -> None:
        size = 300_000
        picture = b"\x03image/jpeg\0\x03\0\xff\xd8\xff" + os.urandom(size)
        frame = b"APIC" + syncsafe(len(picture)) + b"\0\0" + picture
        tag = b"ID3\x04\0\0" + syncsafe(len(frame)) + frame
        got, notes = read(tmp_path / "a.mp3", tag + without_xing(sound("MP3")))
        assert N <= got.shape[1] < N + 4000
        assert notes == ()

    def test_tracks(self, tmp_path: Path) -> None:
        signals = [noise(seed=k, samples=44_100 * (k + 1)) for k in range(2)]
        path = tmp_path / "a.mka"
        path.write_bytes(encoded("matroska", "flac", signals, languages=("eng", "ger")))
        for track, seconds in ((None, 1), (0, 1), (1, 2), ("eng", 1), ("ger", 2), ("de", None), ("GER", 2)):
            if seconds is None:
                with pytest.raises(UsageError, match="no audio track of language 'de' among 1 eng, 2 ger"):
                    open_audio(path, stream=track)
                continue
            with open_audio(path, stream=track) as audio:
                assert sum(block.shape[1] for block in audio.blocks()) == 44_100 * seconds
                assert kinds(audio.notes) == ([] if isinstance(track, int) else ["track"])
        assert (parse_track("2"), parse_track("eng")) == (1, "eng")
        for wrong in ("0", "-1", "e n"):
            with pytest.raises(UsageError, match="neither a number from 1 nor a language"):
                parse_track(wrong)

    def test_a_track_that_starts_late_is_noted(self, tmp_path: Path) -> None:
        data = encoded("matroska", "flac", [noise()], picture_s=2, start_s=0.5)
        got, notes = read(tmp_path / "a.mkv", data)
        assert got.shape[1] == N
        assert kinds(notes) == ["offset"]
        assert "0.500 s" in notes[0].text


def syncsafe(size: int) -> bytes:
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


class TestOgg:
    def vorbis(self, seed: int = 0, rate: int = 44_100) -> bytes:
        return sound("OGG", "VORBIS", noise(samples=3 * N, seed=seed), rate)

    @pytest.mark.parametrize("codec", ["vorbis", "opus"])
    def test_after_a_damaged_page_all_is_in_place(self, tmp_path: Path, codec: str) -> None:
        song = noise(samples=8 * N)
        data = (
            sound("OGG", "VORBIS", song)
            if codec == "vorbis"
            else encoded("ogg", "libopus", [song], rate=48_000)
        )
        whole, notes = read(tmp_path / "a", data)
        assert notes == ()
        at = data.find(b"OggS", len(data) // 2) + 400
        got, notes = read(tmp_path / "b", patched(data, at, bytes([data[at] ^ 0xFF])))
        assert got.shape == whole.shape
        assert kinds(notes) == ["!hole"]
        # Opus's decoder needs a while to agree again after a loss.
        end = slice(-4800, None)
        assert np.abs(got[:, end] - whole[:, end]).max() < 1e-3
        np.testing.assert_array_equal(got[:, :1000], whole[:, :1000])

    @pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
    def test_the_beginning_is_not_shifted(self, tmp_path: Path, rate: int) -> None:
        """Vorbis begins with short blocks or long ones; both must start at sample 0."""
        for seed in range(3):
            signal = noise(1, rate, seed) * np.float32(0.2)
            if seed:
                signal[:, : rate // 4 * seed] = 0
            got, _ = read(tmp_path / "a.ogg", sound("OGG", "VORBIS", signal, rate))
            assert got.shape == signal.shape
            spectrum = np.fft.rfft(got[0], 2 * rate) * np.conj(np.fft.rfft(signal[0], 2 * rate))
            assert int(np.argmax(np.fft.irfft(spectrum))) == 0

    def test_chained_recordings(self, tmp_path: Path) -> None:
        one, other = self.vorbis(1, 16_000), self.vorbis(2, 16_000)
        alone = [read(tmp_path / "a", data)[0] for data in (one, other)]
        got, notes = read(tmp_path / "a", one + other)
        np.testing.assert_array_equal(got, np.concatenate(alone, axis=1))
        assert kinds(notes) == ["joined"]

    def test_half_a_file(self, tmp_path: Path) -> None:
        for data in (self.vorbis(), encoded("ogg", "libopus", [noise(samples=4 * N)], rate=48_000)):
            assert kinds(read(tmp_path / "a", data[: len(data) // 2])[1]) == ["!cut"]

    def test_a_beginning_that_was_cut_off_starts_with_the_sound(self, tmp_path: Path) -> None:
        """As when a stream is recorded from its middle on: headers, then pages from later on."""
        data = self.vorbis()
        pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
        whole, _ = read(tmp_path / "a", data)
        sounding = [at for at in pages if struct.unpack("<q", data[at + 6 : at + 14])[0] > 0]
        late = data[: sounding[0]] + data[sounding[2] :]
        got, _ = read(tmp_path / "b", late)
        assert 0 < got.shape[1] < whole.shape[1]
        np.testing.assert_array_equal(got[:, -2000:], whole[:, -2000:])

    def test_the_checksum_is_that_of_the_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ogg"
        path.write_bytes(self.vorbis())
        source = open_source(path)
        assert len(list(read_pages(source))) > 3
        source.close()
        assert checksum(b"123456789") == 0x89A1897F  # CRC-32 without reflection or inversion


class TestChannels:
    def wavex(self, signal: Array, mask: int) -> bytes:
        channels = len(signal)
        guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
        sizes = (44_100 * 2 * channels, 2 * channels, 16, 22, 16, mask)
        form = struct.pack("<HHIIHHHHI", 0xFFFE, channels, 44_100, *sizes) + guid
        data = (signal.T * 32_767).astype("<i2").tobytes()
        body = (
            b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
        )
        return b"RIFF" + struct.pack("<I", len(body)) + body

    @pytest.mark.parametrize(
        ("mask", "channels", "sounding", "left", "right"),
        [
            (0xB, 3, 2, 0, 0),  # 2.1: LFE
            (0xF, 4, 3, 0, 0),  # 3.1: LFE
            (0xF, 4, 2, 0.7071, 0.7071),  # 3.1: center
            (0x107, 4, 2, 0.7071, 0.7071),  # 4.0: center
            (0x107, 4, 3, 0.5, 0.5),  # 4.0: back
            (0x33, 4, 2, 0.7071, 0),  # quad: back left
            (0x3B, 5, 2, 0, 0),  # 4.1: LFE
            (0x3F, 6, 3, 0, 0),
            (0x60F, 6, 3, 0, 0),
            (0, 6, 3, 0, 0),  # no names: the usual order
            (0x7, 4, 3, 0, 0.7071),  # names for three of four: the usual order
        ],
    )
    def test_the_mask_decides(
        self, tmp_path: Path, mask: int, channels: int, sounding: int, left: float, right: float
    ) -> None:
        signal = np.zeros((channels, 4000), np.float32)
        signal[sounding] = noise(1, 4000)[0]
        path = tmp_path / "a.wav"
        path.write_bytes(self.wavex(signal, mask))
        with open_audio(path) as audio:
            got = np.concatenate(list(model_blocks(audio, 44_100, 2)), axis=1)
            (note,) = audio.notes
        np.testing.assert_allclose(got, np.outer([left, right], signal[sounding]), atol=1e-4)
        assert note.kind == "channels"
        assert ("does not name them" in note.text) == (mask in (0, 7))
        assert ("LFE left out" in note.text) == ("LFE" in note.text.partition(")")[0])

    def test_masks_of_flac_and_core_audio(self, tmp_path: Path) -> None:
        data = sound("FLAC", "PCM_16", noise(3))
        comment = b"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0xB"
        block = struct.pack("<I", 0) + struct.pack("<II", 1, len(comment)) + comment
        last = data[4] & 0x80
        assert not last, "libsndfile writes more than one block"
        data = data[:42] + b"\x04" + len(block).to_bytes(3) + block + data[42:]
        (tmp_path / "a.flac").write_bytes(data)
        with open_audio(tmp_path / "a.flac") as audio:
            assert audio.layout == ("FL", "FR", "LFE")
        assert core_audio_layout(124 << 16 | 6, 0, 6)[:2] == ("FC", "FL")
        assert core_audio_layout(1 << 16, 0xB, 3) == ("FL", "FR", "LFE")
        assert core_audio_layout(1 << 16, 0xB, 4) == mask_layout(0xB, 4) == ()

    @pytest.mark.parametrize("channels", range(1, 9))
    @pytest.mark.parametrize("model_channels", [1, 2])
    def test_a_mix_is_the_same_bits_however_it_is_cut(self, channels: int, model_channels: int) -> None:
        signal = noise(channels, 1000)
        whole = to_channels(signal, model_channels)
        for size in (1, 3, 7, 64, 333):
            parts = [to_channels(signal[:, at : at + size], model_channels) for at in range(0, 1000, size)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole, err_msg=str(size))

    def test_heights_count_with_their_side(self) -> None:
        got = to_channels(np.eye(3, dtype=np.float32), 2, ("TFL", "TFR", "TC"))
        np.testing.assert_allclose(got, [[0.7071, 0, 0.5], [0, 0.7071, 0.5]], atol=1e-4)
        assert downmix(2, 1, ("FL", "FR")) is None


class TestSources:
    def test_a_fifo_is_opened_once(self, tmp_path: Path) -> None:
        data = encoded("mp4", "aac", [noise()])  # its index is at the end
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=fifo.write_bytes, args=(data,))
        writer.start()
        got, notes = read(fifo)
        writer.join()
        np.testing.assert_array_equal(got, read(tmp_path / "a.m4a", data)[0])
        assert notes == ()

    @pytest.mark.parametrize("again", [False, True], ids=["open", "header again"])
    def test_core_audio_that_was_written_to_a_pipe(self, tmp_path: Path, again: bool) -> None:
        """Its length is left open, and sox writes the header once more behind the sound."""
        file = io.BytesIO()
        with av.open(file, "w", format="caf") as output:
            stream = output.add_stream("pcm_s16le", rate=44_100, layout="stereo")
            stored = (noise().T * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(stored.reshape(1, -1), format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 44_100, 0
            output.mux(stream.encode(frame))
        data = file.getvalue()
        start = data.index(b"data") + 16
        data = patched(data, start - 12, b"\xff" * 8)[: start + stored.nbytes]
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        sent = data + data[:start] if again else data
        writer = threading.Thread(target=fifo.write_bytes, args=(sent,))
        writer.start()
        got, notes = read(fifo)
        writer.join()
        np.testing.assert_array_equal(got, stored.T / np.float32(32_768))
        assert kinds(notes) == ["length"]

    def test_standard_input(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path; from tfswa.runtime.audio.reading import open_audio\n"
            "with open_audio(Path('-')) as a: print(a.path, sum(b.shape[1] for b in a.blocks()))"
        )
        done = subprocess.run([sys.executable, "-c", code], input=sound("WAV"), capture_output=True)
        assert done.stdout.split() == [b"stdin", str(N).encode()], done.stderr
        empty = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True)
        assert b"stdin is empty (0 bytes)" in empty.stderr

    def test_standard_input_that_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(AudioError, match="standard input is closed"):
            open_audio(Path("-"))

    def test_file_objects(self) -> None:
        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False

        for file in (io.BytesIO(sound("FLAC")), Pipe(sound("FLAC"))):
            with open_audio(file) as audio:
                assert sum(block.shape[1] for block in audio.blocks()) == N

    def test_a_device_is_refused(self) -> None:
        with pytest.raises(AudioError, match="is a device or a socket"):
            open_audio(Path("/dev/zero"))


class TestTags:
    def with_tags(self, tmp_path: Path, **fields: str) -> Path:
        path = tmp_path / "a.flac"
        with soundfile.SoundFile(path, "w", 44_100, 1) as file:
            for name, text in fields.items():
                setattr(file, name, text)
            file.write(np.zeros(100))
        return path

    def test_control_characters_are_taken_out_and_noted(self, tmp_path: Path) -> None:
        path = self.with_tags(tmp_path, title="\x1b]0;owned\x07 Song", artist="A\nB")
        tags = read_tags(path)
        assert tags.fields == {"title": "]0;owned Song", "artist": "A B"}
        assert [note.kind for note in tags.notes] == ["tags"]
        assert "its title" in tags.notes[0].text

    def test_a_field_that_is_absurdly_long_is_left_out(self, tmp_path: Path) -> None:
        tags = read_tags(self.with_tags(tmp_path, comment="x" * 100_000, title="T"))
        assert tags.fields == {"title": "T"}
        assert "its comment was left out" in tags.notes[0].text

    @pytest.mark.parametrize("cover", [b"\xff\xd8\xff\xe0" + bytes(300), b"no image at all" * 20])
    def test_a_broken_cover_costs_nothing_but_itself(self, tmp_path: Path, cover: bytes) -> None:
        picture = b"\x03image/jpeg\0\x03\0" + cover
        frame = b"APIC" + syncsafe(len(picture)) + b"\0\0" + picture
        path = tmp_path / "a.mp3"
        path.write_bytes(b"ID3\x04\0\0" + syncsafe(len(frame)) + frame + sound("MP3"))
        with open_audio(path) as audio:
            assert audio.tags == Tags()
            assert sum(block.shape[1] for block in audio.blocks()) == N
            (note,) = audio.notes
        assert (note.kind, note.damaged) == ("tags", False)
        assert "its cover was left out" in note.text


def test_header_of_another_file_is_unsuitable(tmp_path: Path) -> None:
    from tfswa.runtime.audio.decoders import UnsuitableFile

    path = tmp_path / "a"
    path.write_bytes(b"RIFF\0\0\0\0WAVEdata\x10\0\0\0" + bytes(16))
    source = open_source(path)
    with pytest.raises(UnsuitableFile, match="no fmt chunk"):
        find_pcm(source)
    source.close()


def test_the_page_explains_every_kind_of_note() -> None:
    page = Path(__file__).parents[3] / "docs" / "audio.md"
    explained = re.findall(r"^\| `(\w+)` \| (?:yes|no) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(explained) == sorted(NOTE_KINDS)
