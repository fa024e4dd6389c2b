"""Damaged audio files, and what the reader makes of them: for the fuzz of the reader.

Twenty-one kinds of files of 0.7 s, in sixteen containers, are made by FFmpeg and libsndfile; a mutant is one
of them with flipped bits, its end or middle cut off, bytes of another, a run of zeros, or a file behind it.
What the reader gives is compared with FFmpeg's own decoding of the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import struct
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from tfswa.runtime.audio.reading import open_audio
from tfswa.runtime.errors import TfxError
from tfswa.runtime.machine import peak_memory_mb

RATE, SAMPLES = 22_050, 15_435
# FFmpeg's time stamps, the padding of a last frame, and delays that only one of the two takes off.
TOLERANCE_SAMPLES = 1200

SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav float": ("WAV", "FLOAT"),
    "wav adpcm": ("WAV", "IMA_ADPCM"),
    "rf64": ("RF64", "PCM_24"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg vorbis": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
FFMPEG = {  # container, codec, whether there is a picture
    "opus": ("ogg", "libopus", False),
    "m4a": ("ipod", "aac", False),
    "alac": ("ipod", "alac", False),
    "wma": ("asf", "wmav2", False),
    "mka": ("matroska", "flac", False),
    "webm": ("webm", "libopus", False),
    "avi": ("avi", "pcm_s16le", True),
    "mp4": ("mp4", "aac", True),
    "adts": ("adts", "aac", False),
    "mp2": ("mp2", "mp2", False),
}
KINDS = (*SNDFILE, *FFMPEG)
PAGES = {"page_duration": "50000"}  # of Ogg, in microseconds; by default one page would be all
CHANGES = ("flip", "flips", "head", "cut", "hole", "zeros", "join", "swap")
# The end of these is marked or counted: well cut, they must be called damaged, or refused.
TELLS_ITS_END = frozenset(KINDS) - {"adts", "mp2"}


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        name: kind, change and seed.
        kind: of its original.
        samples: that the reader gave; None where it refused the file.
        expected: that FFmpeg gave; None where it refused the file.
        notes: what the reader said, damage marked by an exclamation.
        fault: what must not be; empty where all is well.
        seconds: that the reader took.
    """

    name: str
    kind: str
    samples: int | None
    expected: int | None
    notes: tuple[str, ...]
    fault: str
    seconds: float


def signal() -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[N, 2]``: a gliding tone and noise."""
    random = np.random.default_rng(7)
    time = np.arange(SAMPLES) / RATE
    tone = 0.3 * np.sin(2 * np.pi * (300 * time + 200 * time**2))
    return (tone[:, None] + 0.05 * random.standard_normal((SAMPLES, 2))).astype(np.float32)


def original(kind: str) -> bytes:
    """A whole file of a kind."""
    if kind in SNDFILE:
        file = io.BytesIO()
        container, subtype = SNDFILE[kind]
        soundfile.write(file, signal(), RATE, format=container, subtype=subtype)
        return in_small_pages(file) if container == "OGG" else file.getvalue()
    container, codec, picture = FFMPEG[kind]
    rate = 48_000 if codec == "libopus" else 44_100 if codec in ("aac", "wmav2", "mp2") else RATE
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=PAGES if container == "ogg" else {}) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo")
        stream.bit_rate = 128_000
        if picture:
            video = output.add_stream("mpeg4", rate=25)
            video.width = video.height = 16
            video.pix_fmt = "yuv420p"
            for _ in range(25):
                blank = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
                output.mux(video.encode(blank))
            output.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal().T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate)
        for shaped in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(shaped))
        output.mux(stream.encode(None))
    return file.getvalue()


def in_small_pages(file: io.BytesIO) -> bytes:
    """An Ogg file whose packets lie in pages of 50 ms."""
    file.seek(0)
    out = io.BytesIO()
    with av.open(file) as source, av.open(out, "w", format="ogg", options=PAGES) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return out.getvalue()


def mutant(data: bytes, other: bytes, change: str, seed: int) -> bytes:
    """A file with one change, decided by a seed."""
    random = np.random.default_rng(seed)
    out = bytearray(data)
    size = len(out)
    if change == "flip":
        out[random.integers(size)] ^= 1 << random.integers(8)
    elif change == "flips":
        for place in random.integers(size, size=random.integers(2, 40)):
            out[place] = random.integers(256)
    elif change == "head":  # numbers in the header, often extreme ones
        place = int(random.integers(4, min(size - 8, 200)))
        value = int(random.choice([0, 1, 2, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, random.integers(1 << 32)]))
        out[place : place + 4] = struct.pack(random.choice(["<I", ">I"]), value)
    elif change == "cut":
        del out[int(size * random.uniform(0.02, 0.98)) :]
    elif change == "hole":
        start = int(random.integers(size))
        del out[start : start + int(random.integers(1, max(2, size // 3)))]
    elif change == "zeros":
        start = int(random.integers(size))
        length = min(size - start, int(random.integers(1, max(2, size // 3))))
        out[start : start + length] = bytes(length)
    elif change == "join":
        out += data if random.integers(2) else other
    else:
        start = int(random.integers(size))
        out[start : start + 400] = other[: min(400, size - start)]
    return bytes(out)


def reference_samples(path: Path) -> int | None:
    """How many samples FFmpeg decodes of the first audio track; None where it refuses the file."""
    count = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                return None
            for packet in container.demux(stream):
                with contextlib.suppress(av.error.FFmpegError):
                    count += sum(frame.samples for frame in packet.decode())
    except (av.error.FFmpegError, OverflowError, ValueError):
        return count or None
    return count or None


@dataclass(frozen=True)
class Original:
    """A whole file of a kind: its bytes, and how many samples the reader gives of it."""

    kind: str
    data: bytes
    samples: int


def judge(path: Path, name: str, change: str, whole: Original) -> Verdict:
    """Read a mutant.

    Args:
        path: the mutant.
        name: for the verdict.
        change: what was done to it.
        whole: what it was made of.
    """
    expected = reference_samples(path)
    samples, notes, fault, begin = None, (), "", time.perf_counter()
    try:
        with open_audio(path) as audio:
            _ = audio.tags
            samples = sum(block.shape[1] for block in audio.blocks())
            notes = tuple("!" * note.damaged + note.text for note in audio.notes)
    except TfxError as error:
        samples, notes, fault = None, (str(error),), "more than one line" * ("\n" in str(error))
    except Exception:
        fault = traceback.format_exc()
    seconds = time.perf_counter() - begin
    if samples is not None and not fault:
        fault = _silent_loss(samples, expected, notes, change, path.stat().st_size, whole)
    return Verdict(name, whole.kind, samples, expected, notes, fault, seconds)


def _silent_loss(
    samples: int, expected: int | None, notes: tuple[str, ...], change: str, size: int, whole: Original
) -> str:
    """What the reader should have told; empty where it told, or there is nothing to tell."""
    if expected is not None and abs(expected - samples) > TOLERANCE_SAMPLES and not notes:
        return f"{samples} samples where FFmpeg has {expected}, without a word"
    if change == "join" and samples < whole.samples + TOLERANCE_SAMPLES and not notes:
        return f"{samples} samples of a file of {whole.samples} and another, without a word"
    cut = change == "cut" and whole.kind in TELLS_ITS_END and size < 0.75 * len(whole.data)
    if cut and not any("!" in note for note in notes):
        return f"cut to {size} of {len(whole.data)} bytes: {samples} samples, not called damaged"
    return ""


def make(folder: Path, kind: str) -> Original:
    """The original of a kind, read once."""
    data, path = original(kind), folder / "original.bin"
    path.write_bytes(data)
    with open_audio(path) as audio:
        samples = sum(block.shape[1] for block in audio.blocks())
    path.unlink()
    return Original(kind, data, samples)


def run_one(folder: Path, seed: int, originals: dict[str, Original]) -> Verdict:
    """Make the mutant of a seed, and read it."""
    random = np.random.default_rng(seed)
    kind, change = kind_of(seed), CHANGES[seed // len(KINDS) % len(CHANGES)]
    other = originals[str(random.choice(KINDS))]
    path = folder / f"{seed}.bin"
    path.write_bytes(mutant(originals[kind].data, other.data, change, seed))
    try:
        return judge(path, f"{kind}, {change}, seed {seed}", change, originals[kind])
    finally:
        path.unlink()


def kind_of(seed: int) -> str:
    """Which kind of file the mutant of a seed is made of."""
    return KINDS[seed % len(KINDS)]


def serve(pipe: Any, folder: Path) -> None:
    """Read mutants whose seeds come through a pipe, and send back verdicts and the peak of memory in MB."""
    originals = {kind: make(folder, kind) for kind in KINDS}
    while (seed := pipe.recv()) is not None:
        verdict = run_one(folder, seed, originals)
        pipe.send((verdict, peak_memory_mb()))
