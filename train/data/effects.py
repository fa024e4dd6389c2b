"""What a studio does to a source: drawn here as numbers, done here to audio.

    formant ─> equalizer ─> compression ─> clipping ─> doubling ─> delay ─> reverb ─> width ─> codec

None of it changes the length, and none moves the sound in time, so a source stays with the others of its
chunk. Before a chunk there is silence: a reverb has no tail of what was earlier.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from tfswa.train.config import AugmentConfig

Audio = NDArray[np.float32]

EQUALIZER_HZ = (80.0, 250.0, 800.0, 2500.0, 8000.0)  # the gain is constant beyond the first and the last
DOUBLING_SECONDS = (0.008, 0.035)
DOUBLING_DB = (-9.0, -2.0)
CODECS = ("libmp3lame", "aac")

_LEVEL_SECONDS = 0.05  # of the compressor's meter
_ECHOES = 6
_WOBBLE_SECONDS = 0.002  # that the copy of a doubling comes earlier and later, once a second or so
_FRAME, _LIFTER_SECONDS = 2048, 0.0015  # of the spectral envelope: up to 660 Hz of pitch stay out of it
_SILENT = 1e-8
_CODEC_MARGIN = 4096  # samples of silence around what is encoded: no codec delays by more


@dataclass(frozen=True)
class Effects:
    """What is done to one source; None where a thing is not done. See ``AugmentConfig``.

    Attributes:
        formant: semitones that the spectral envelope moves, the pitch does not.
        equalizer: gains at ``EQUALIZER_HZ``, in dB.
        compression: ratio above the source's own RMS.
        clipping: dB below its peak.
        doubling: seconds that the copy is late, and its gain in dB.
        delay: seconds between echoes, and gain of each to the one before.
        reverb: seconds to -60 dB, share of the reverberated sound, seed of the room.
        width: gain of the difference between left and right; 0 is mono.
        codec: encoder, and bits per second.
    """

    formant: float | None = None
    equalizer: tuple[float, ...] | None = None
    compression: float | None = None
    clipping: float | None = None
    doubling: tuple[float, float] | None = None
    delay: tuple[float, float] | None = None
    reverb: tuple[float, float, int] | None = None
    width: float | None = None
    codec: tuple[str, int] | None = None

    def words(self) -> list[str]:
        """What is done, for people."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return [f"{name} {_text(value)}" for name, value in values.items() if value is not None]


# Everything is drawn, used or not: one probability changed leaves the other draws as they were.


def draw_effects(random: np.random.Generator, augment: AugmentConfig) -> Effects:
    """Draw what is done to one source."""
    names = (
        *("formant", "equalizer", "compression", "clipping", "doubling", "delay", "reverb", "width"),
        *("mono", "codec"),
    )
    on = dict(zip(names, random.random(len(names)) < [getattr(augment, name) for name in names], strict=True))
    formant = random.uniform(-augment.formant_semitones, augment.formant_semitones)
    gains = random.uniform(-augment.equalizer_db, augment.equalizer_db, len(EQUALIZER_HZ))
    ratio = random.uniform(*augment.compression_ratio)
    clipping = random.uniform(*augment.clipping_db)
    doubling = (random.uniform(*DOUBLING_SECONDS), random.uniform(*DOUBLING_DB))
    delay = (random.uniform(*augment.delay_seconds), random.uniform(0.15, 0.5))
    room = int(random.integers(1 << 31))
    reverb = (random.uniform(*augment.reverb_seconds), random.uniform(*augment.reverb_share), room)
    width = random.uniform(*augment.width_range)
    codec = (CODECS[int(random.integers(len(CODECS)))], round(1000 * random.uniform(*augment.codec_kbits)))
    return Effects(
        formant if on["formant"] else None,
        tuple(float(gain) for gain in gains) if on["equalizer"] else None,
        ratio if on["compression"] else None,
        clipping if on["clipping"] else None,
        doubling if on["doubling"] else None,
        delay if on["delay"] else None,
        reverb if on["reverb"] else None,
        0.0 if on["mono"] else width if on["width"] else None,
        codec if on["codec"] else None,
    )


def affected(audio: Audio, effects: Effects, sample_rate: int) -> Audio:
    """Do effects to a source ``[C, N]``, which stays as it is; returns another, or the same for none."""
    if effects == Effects() or float(np.abs(audio).max(initial=0.0)) ** 2 < _SILENT:
        return audio
    if effects.formant is not None:
        audio = _formants_moved(audio, effects.formant, sample_rate)
    if effects.equalizer is not None:
        audio = _equalized(audio, effects.equalizer, sample_rate)
    if effects.compression is not None:
        audio = _compressed(audio, effects.compression, sample_rate)
    if effects.clipping is not None:
        limit = float(np.abs(audio).max()) * 10 ** (-effects.clipping / 20)
        audio = np.clip(audio, -limit, limit)
    if effects.doubling is not None:
        audio = _doubled(audio, *effects.doubling, sample_rate)
    if effects.delay is not None:
        audio = _echoing(audio, *effects.delay, sample_rate)
    if effects.reverb is not None:
        audio = _reverberated(audio, *effects.reverb, sample_rate)
    if effects.width is not None and len(audio) == 2:
        middle, side = (audio[0] + audio[1]) / 2, (audio[0] - audio[1]) / 2 * effects.width
        audio = np.stack((middle + side, middle - side))
    if effects.codec is not None:
        audio = _coded(audio, *effects.codec, sample_rate)
    return np.ascontiguousarray(audio, np.float32)


def _formants_moved(audio: Audio, semitones: float, sample_rate: int) -> Audio:
    """Move the envelope of each frame's spectrum along frequency; the fine structure stays.

    The envelope is the low part of the cepstrum (Oppenheim and Schafer, Discrete-Time Signal Processing,
    chapter on the cepstrum).
    """
    samples = audio.shape[1]
    short = min(_FRAME, samples)
    if short < 64:
        return audio  # too few bins for an envelope
    spectrum = signal.stft(audio, nperseg=short, noverlap=short - max(1, short // 4))[2]  # [C, F, T]
    power = np.log(np.abs(spectrum) + 1e-6)
    cepstrum = fft.irfft(power, axis=1)
    kept = max(2, round(_LIFTER_SECONDS * sample_rate))
    cepstrum[:, kept : cepstrum.shape[1] - kept + 1] = 0
    envelope = fft.rfft(cepstrum, axis=1).real[:, : power.shape[1]]
    bins = np.arange(power.shape[1]) / 2 ** (semitones / 12)
    low = np.minimum(bins.astype(int), power.shape[1] - 1)
    high = np.minimum(low + 1, power.shape[1] - 1)
    part = (bins - low)[None, :, None]
    moved = envelope[:, low] * (1 - part) + envelope[:, high] * part
    gain = np.exp(np.clip(moved - envelope, -3.0, 3.0))  # 26 dB either way
    out = signal.istft(spectrum * gain, nperseg=short, noverlap=short - max(1, short // 4))[1]
    return _as_loud(np.asarray(out[:, :samples], np.float32), audio)


def _equalized(audio: Audio, gains: tuple[float, ...], sample_rate: int) -> Audio:
    """Gains in dB, linear over the logarithm of frequency, without a change of phase."""
    samples = audio.shape[1]
    pad = min(samples - 1, sample_rate // 20)  # mirrored ends keep the filter from going around
    padded = np.pad(audio, ((0, 0), (pad, pad)), mode="reflect")
    size = fft.next_fast_len(padded.shape[1], real=True)
    hertz = np.maximum(np.arange(size // 2 + 1) * (sample_rate / size), 1.0)
    decibels = np.interp(np.log(hertz), np.log(EQUALIZER_HZ), gains)
    filtered = fft.irfft(fft.rfft(padded, size) * (10 ** (decibels / 20)).astype(np.float32), size)
    return np.asarray(filtered[:, pad : pad + samples], np.float32)


def _compressed(audio: Audio, ratio: float, sample_rate: int) -> Audio:
    """Lower what is louder than the source's RMS, as one gain for all channels; the RMS stays."""
    power = np.mean(np.square(audio, dtype=np.float64), axis=0)
    keep = np.exp(-1 / (_LEVEL_SECONDS * sample_rate))
    level = signal.lfilter([1 - keep], [1, -keep], power)
    over = np.maximum(level / power.mean(), 1.0)
    return _as_loud((audio * over ** ((1 / ratio - 1) / 2)).astype(np.float32), audio)


def _doubled(audio: Audio, seconds: float, decibels: float, sample_rate: int) -> Audio:
    """Add a copy that comes later and wobbles, as a second take does, with its channels exchanged."""
    place = np.arange(audio.shape[1])
    late = seconds + _WOBBLE_SECONDS * np.sin(2 * np.pi * place / sample_rate)
    copy = [np.interp(place - late * sample_rate, place, one, left=0.0) for one in audio[::-1]]
    return audio + np.float32(10 ** (decibels / 20)) * np.asarray(copy, np.float32)


def _echoing(audio: Audio, seconds: float, gain: float, sample_rate: int) -> Audio:
    out = audio.copy()
    for echo in range(1, _ECHOES + 1):
        late = round(echo * seconds * sample_rate)
        if late >= audio.shape[1]:
            break
        out[:, late:] += np.float32(gain**echo) * audio[:, : audio.shape[1] - late]
    return out


def _reverberated(audio: Audio, seconds: float, share: float, seed: int, sample_rate: int) -> Audio:
    """Convolve with noise that decays by 60 dB, darker as it decays, of its own for each channel."""
    random = np.random.default_rng(seed)
    time = np.arange(min(round(1.2 * seconds * sample_rate), audio.shape[1])) / sample_rate
    noise = random.standard_normal((len(audio), len(time))).astype(np.float32)
    dull = signal.lfilter([0.3], [1, -0.7], noise)
    faded = np.exp(-time / (seconds / 4))
    room = (noise * faded + dull * (1 - faded)) * 10 ** (-3 * time / seconds)
    room = room * (time >= random.uniform(0.002, 0.03))  # the walls are meters away
    wet = signal.fftconvolve(audio, room, axes=1)[:, : audio.shape[1]].astype(np.float32)
    wet = _as_loud(wet, audio)
    return _as_loud(np.float32(1 - share) * audio + np.float32(share) * wet, audio)


def _coded(audio: Audio, codec: str, bits: int, sample_rate: int) -> Audio:
    """Encode and decode, at the place in time where it was."""
    import av
    from av.audio.stream import AudioStream

    padded = np.pad(audio, ((0, 0), (_CODEC_MARGIN, _CODEC_MARGIN)))
    peak = max(1.0, float(np.abs(padded).max()))  # an encoder clips
    layout = "mono" if len(audio) == 1 else "stereo"
    samples = np.ascontiguousarray(padded / np.float32(peak))
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as writer:
        stream = cast(AudioStream, writer.add_stream(codec, rate=sample_rate, layout=layout))
        stream.bit_rate = bits
        for packet in (*stream.encode(frame), *stream.encode(None)):
            writer.mux(packet)
    file.seek(0)
    with av.open(file, "r") as reader:
        decoded = np.concatenate([block.to_ndarray() for block in reader.decode(audio=0)], axis=1)
    # Of a codec's delay the container tells some and the decoder drops some: it is measured.
    late = _lag(padded.mean(axis=0), decoded.mean(axis=0))
    start = _CODEC_MARGIN + late
    out = np.zeros_like(audio)
    found = decoded[:, max(start, 0) : start + audio.shape[1]]
    out[:, : found.shape[1]] = found
    return out * np.float32(peak)


def _lag(first: Audio, second: Audio) -> int:
    """Samples that the second signal is later than the first, of which it is a copy."""
    size = fft.next_fast_len(len(first) + len(second), real=True)
    likeness = fft.irfft(fft.rfft(second, size) * np.conj(fft.rfft(first, size)), size)
    near = np.concatenate((likeness[-_CODEC_MARGIN:], likeness[:_CODEC_MARGIN]))
    return int(np.argmax(near)) - _CODEC_MARGIN


def _as_loud(audio: Audio, other: Audio) -> Audio:
    """Audio with the RMS of another; silence stays."""
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    wanted = float(np.mean(np.square(other, dtype=np.float64)))
    return audio * np.float32(np.sqrt(wanted / power)) if power > 0 else audio


def _text(value: float | str | tuple[object, ...]) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{part:.3g}" if isinstance(part, float) else str(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
