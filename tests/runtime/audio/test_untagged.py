"""Files without tags are known without FFmpeg, and no tag is lost by that."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.audio import tags
from tfswa.runtime.audio.source import open_source
from tfswa.runtime.audio.tags import Tags, read_tags
from tfswa.runtime.audio.untagged import is_untagged

FMT = struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16)
TITLE = b"INAM" + struct.pack("<I", 2) + b"T\0"


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks: bytes, form: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body)) + body


def block(kind: int, body: bytes, *, last: bool = False) -> bytes:
    return bytes([kind | 128 * last]) + len(body).to_bytes(3) + body


def comment(*fields: bytes) -> bytes:
    packed = b"".join(struct.pack("<I", len(one)) + one for one in fields)
    return struct.pack("<I", 3) + b"abc" + struct.pack("<I", len(fields)) + packed


def flac(tmp_path: Path, *blocks: bytes) -> bytes:
    """A FLAC file with these blocks after STREAMINFO, and the sound that libsndfile wrote."""
    soundfile.write(tmp_path / "plain.flac", np.zeros(100), 8000)
    whole = (tmp_path / "plain.flac").read_bytes()
    at, last = 4, False
    while not last:
        last = bool(whole[at] & 128)
        at += 4 + int.from_bytes(whole[at + 1 : at + 4])
    return b"fLaC" + block(0, whole[8:42], last=not blocks) + b"".join(blocks) + whole[at:]


def looked_at(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    source = open_source(path)
    try:
        return is_untagged(source)
    finally:
        source.close()


SOUND = (chunk(b"fmt ", FMT), chunk(b"data", bytes(201)))
BARE = {
    "two chunks": riff(*SOUND),
    "padding": riff(chunk(b"JUNK", bytes(28)), *SOUND, chunk(b"PAD ", bytes(7))),
    "cut": riff(*SOUND)[:-50],
    "of a pipe": riff(SOUND[0], b"data\xff\xff\xff\xff" + bytes(200)),
}
NOT_KNOWN = {
    "LIST behind": riff(*SOUND, chunk(b"LIST", b"INFO" + TITLE)),
    "LIST in front": riff(chunk(b"LIST", b"INFO" + TITLE), *SOUND),
    "LIST behind all": riff(*SOUND) + chunk(b"LIST", b"INFO" + TITLE),
    "id3": riff(*SOUND, chunk(b"id3 ", b"ID3\x04\0\0\0\0\0\x0d" + b"TIT2\0\0\0\x03\0\0\x03T\0")),
    "bext": riff(chunk(b"bext", bytes(602)), *SOUND),
    "RF64": riff(*SOUND, form=b"RF64"),
    "no padding": riff(SOUND[0], b"data\x03\0\0\0abc", chunk(b"LIST", b"INFO" + TITLE)),
    "countless": riff(*SOUND, *[chunk(b"JUNK", b"")] * 2000),
    "another": b"ID3\x04\0\0\0\0\0\0" + riff(*SOUND),
    "words": b"RIFF only",
}


class TestWave:
    @pytest.mark.parametrize("name", BARE)
    def test_without(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert looked_at(tmp_path / "a.wav", BARE[name])
        monkeypatch.setattr(tags, "is_untagged", lambda source: False)
        assert read_tags(tmp_path / "a.wav") == Tags()  # by FFmpeg

    @pytest.mark.parametrize("name", NOT_KNOWN)
    def test_not_known(self, name: str, tmp_path: Path) -> None:
        assert not looked_at(tmp_path / "a.wav", NOT_KNOWN[name])

    @pytest.mark.parametrize("name", ["LIST behind", "LIST in front", "id3"])
    def test_a_title_is_found(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "a.wav").write_bytes(NOT_KNOWN[name])
        assert read_tags(tmp_path / "a.wav").fields == {"title": "T"}


class TestFlac:
    def test_without(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.flac"
        last = block(1, bytes(20), last=True)
        for blocks in ((), (last,), (block(3, bytes(18)), block(4, comment()), last)):
            assert looked_at(path, flac(tmp_path, *blocks))
            with monkeypatch.context() as patch:
                patch.setattr(tags, "is_untagged", lambda source: False)
                assert read_tags(path) == Tags()  # by FFmpeg
        soundfile.write(path, np.zeros(100), 8000)
        assert looked_at(path, path.read_bytes())

    def test_a_title_is_found(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        assert not looked_at(path, flac(tmp_path, block(4, comment(b"TITLE=T"), last=True)))
        assert read_tags(path).fields == {"title": "T"}

    def test_not_known(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        for kind, body in ((6, bytes(32)), (2, b"abcd"), (4, b""), (4, b"\xff\xff\xff\xff")):
            assert not looked_at(path, flac(tmp_path, block(kind, body, last=True)))
        assert not looked_at(path, b"fLaC" + block(0, bytes(34)))  # and no other block follows


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_ffmpeg_is_not_loaded_to_separate_a_file_without_tags(format: str, tmp_path: Path) -> None:
    """Its libraries take some 40 ms to load."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the embedded model")
    soundfile.write(tmp_path / f"sång.{format}", np.zeros((4000, 2)), 44_100)
    probe = (
        "import sys\nfrom tfswa.runtime.cli import main\n"
        f"sys.argv = ['tfx', 'separate', 'sång.{format}', '-o', 'out']\n"
        "try:\n    main()\n"
        "finally:\n    print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sång" / "vocals.wav").exists()
    assert not {"av", "rich", "torch"} & set(done.stdout.partition("MODULES")[2].split())
