"""Files joined by `cat`: what is not read is told; what FFmpeg's containers declare is compared."""

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tfswa.runtime.audio.reading import model_blocks, open_audio

N = 44_100


def encoded(
    container: str, codec: str, *, options: dict[str, str] | None = None, layout: str = "stereo"
) -> bytes:
    channels = av.AudioLayout(layout).nb_channels
    signal = (0.1 * np.random.default_rng(0).standard_normal((channels, N))).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=44_100, layout=layout)
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(signal, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = 44_100, 0
        shaped = av.AudioResampler(format=stream.format.name, layout=layout, rate=44_100)
        for piece in shaped.resample(frame):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def read(path: Path, data: bytes) -> tuple[int, list[str], bool]:
    path.write_bytes(data)
    with open_audio(path) as audio:
        samples = sum(block.shape[1] for block in audio.blocks())
        return samples, [note.text for note in audio.notes], audio.damaged


class TestJoined:
    @pytest.mark.parametrize(
        ("container", "codec", "options"),
        [
            ("ipod", "aac", {}),
            ("mp4", "aac", {"movflags": "frag_keyframe+default_base_moof"}),
            ("mov", "pcm_s16le", {}),
            ("asf", "wmav2", {}),
        ],
    )
    def test_the_second_of_two_is_told(
        self, tmp_path: Path, container: str, codec: str, options: dict[str, str]
    ) -> None:
        data = encoded(container, codec, options=options)
        samples, notes, damaged = read(tmp_path / "a", data)
        assert (notes, damaged) == ([], False)
        twice, notes, damaged = read(tmp_path / "a", data + data)
        assert twice == samples
        assert damaged
        assert f"{len(data)} bytes after the end of its container" in notes[0]

    def test_a_second_that_ffmpeg_reads_is_told(self, tmp_path: Path) -> None:
        data = encoded("matroska", "flac")
        samples, notes, damaged = read(tmp_path / "a", data + data)
        assert samples == 2 * N
        assert not damaged
        assert notes == ["another recording lies behind the end of its container, read after the first"]

    def test_a_second_avi_is_told(self, tmp_path: Path) -> None:
        """FFmpeg reads some of these and leaves out others."""
        data = encoded("avi", "pcm_s16le")
        _, notes, damaged = read(tmp_path / "a", data + data)
        assert damaged
        assert f"{len(data)} bytes after the end of its container" in notes[0]

    def test_fragments_go_on_after_a_second_index(self, tmp_path: Path) -> None:
        """As a recorder writes that begins anew: no file of its own begins there."""
        data = encoded("mp4", "aac", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
        at = data.index(b"moof") - 4
        _, notes, damaged = read(tmp_path / "a", data[:at] + data)
        assert (notes, damaged) == ([], False)


@pytest.mark.parametrize(
    ("layout", "note"),
    [
        ("2.1", "3 channels (FL FR FC{0}) mixed down to 2; if one of them is an LFE, it is in the mix"),
        ("4.0", "4 channels (FL FR BL BR{0}) mixed down to 2; if one of them is an LFE, it is in the mix"),
        ("5.1", "6 channels (FL FR FC LFE BL BR{0}) mixed down to 2; LFE left out"),
    ],
)
def test_matroska_does_not_name_the_channels_of_pcm(tmp_path: Path, layout: str, note: str) -> None:
    path = tmp_path / "a.mka"
    path.write_bytes(encoded("matroska", "pcm_s16le", layout=layout))
    with open_audio(path) as audio:
        assert audio.layout == ()
        for _ in model_blocks(audio, 44_100, 2):
            pass
        usual = ", in the usual order, for the file does not name them"
        assert [str(found) for found in audio.notes] == [note.format(usual)]


def test_no_library_prints_what_it_thinks_of_a_damaged_mp3(tmp_path: Path) -> None:
    """As a process, for libraries write past Python to the terminal."""
    data = bytearray(encoded("mp3", "libmp3lame"))
    for place in np.random.default_rng(0).integers(1000, len(data), 60):
        data[place] ^= 0x5A
    (tmp_path / "a.mp3").write_bytes(data)
    code = (
        "import pathlib; from tfswa.runtime.audio.reading import open_audio\n"
        f"with open_audio(pathlib.Path({os.fspath(tmp_path / 'a.mp3')!r})) as audio:\n"
        "    audio.tags; print(sum(block.shape[1] for block in audio.blocks()), audio.damaged)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout.split()[0]) > N - 3000
