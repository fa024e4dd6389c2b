"""Every effect of a studio proven on a signal whose answer is known: what it does, how much, how often."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")

from tfswa.train.config import AugmentConfig, DataConfig
from tfswa.train.data.chunks import Chunks
from tfswa.train.data.effects import (
    CODECS,
    EQUALIZER_HZ,
    Effects,
    affected,
    draw_effects,
)
from tfswa.train.data.songs import TrainingSong

RATE = 44_100
NAMES = ("formant", "equalizer", "compression", "clipping", "doubling", "delay", "reverb", "width", "codec")
EVERYTHING = AugmentConfig(**dict.fromkeys(NAMES, 1.0))
Audio = NDArray[np.float32]


def noise(seconds: float = 1.0, channels: int = 2) -> Audio:
    random = np.random.default_rng(0)
    return 0.1 * random.standard_normal((channels, round(seconds * RATE))).astype(np.float32)


def sine(hertz: float, level: float = 0.25, seconds: float = 1.0) -> Audio:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.stack((wave, wave / 2)).astype(np.float32)


def voice(hertz: float = 150.0, formant: float = 900.0) -> Audio:
    """Harmonics under one broad resonance."""
    time = np.arange(2 * RATE) / RATE
    tones = hertz * np.arange(1, 60)
    gains = np.exp(-0.5 * (np.log(tones / formant) / 0.35) ** 2)
    wave = sum(gain * np.sin(2 * np.pi * tone * time) for tone, gain in zip(tones, gains, strict=True))
    return np.stack((0.05 * wave, 0.05 * wave)).astype(np.float32)


def click(place: int = 1000) -> Audio:
    audio = np.zeros((2, RATE), np.float32)
    audio[0, place], audio[1, place] = 1.0, 0.5
    return audio


def level_db(audio: Audio) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-30))


def after(audio: Audio, **effects: Any) -> Audio:
    return affected(audio, Effects(**effects), RATE)


def tones(audio: Audio) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies and magnitudes of the first channel."""
    spectrum = np.abs(np.fft.rfft(audio[0] * np.hanning(audio.shape[1])))
    return np.arange(len(spectrum)) * RATE / audio.shape[1], spectrum


@pytest.mark.parametrize("semitones", [-4.0, 4.0])
def test_formants_move_and_the_pitch_does_not(semitones: float) -> None:
    def center(audio: Audio) -> float:
        hertz, spectrum = tones(audio)
        power = spectrum**2 * (hertz > 100)
        return float(np.exp(np.sum(power * np.log(np.maximum(hertz, 1))) / power.sum()))

    before, moved = voice(), after(voice(), formant=semitones)
    # Four semitones are 26 %; harmonics that are 150 Hz apart show the move of the envelope coarsely.
    shift = 12 * np.log2(center(moved) / center(before))
    assert 0.5 * abs(semitones) < shift * np.sign(semitones) < 1.5 * abs(semitones)
    hertz, spectrum = tones(moved)
    strongest = hertz[np.argsort(spectrum)[-5:]]
    np.testing.assert_allclose(strongest / 150, np.round(strongest / 150), atol=0.02)
    assert level_db(moved) == pytest.approx(level_db(before), abs=0.01)


def test_bands_get_their_gains() -> None:
    gains = (3.0, -6.0, 0.0, 6.0, -3.0)
    for hertz, gain in zip(EQUALIZER_HZ, gains, strict=True):
        change = level_db(after(sine(hertz), equalizer=gains)) - level_db(sine(hertz))
        assert change == pytest.approx(gain, abs=0.3)
    flat = after(noise(), equalizer=(2.0,) * 5)
    np.testing.assert_allclose(flat, noise() * 10 ** (2 / 20), atol=1e-5)


def test_compression_brings_loud_and_quiet_together() -> None:
    audio = np.concatenate((sine(440, 0.5), sine(440, 0.05)), axis=1)

    def apart(audio: Audio) -> float:  # past the first quarter second of each half
        return level_db(audio[:, RATE // 4 : RATE]) - level_db(audio[:, RATE + RATE // 4 :])

    small, large = apart(after(audio, compression=2.0)), apart(after(audio, compression=8.0))
    assert large < small < apart(audio) == pytest.approx(20, abs=0.01)
    # The loud half is 3 dB above the RMS: that much of it is divided by the ratio.
    assert apart(audio) - small == pytest.approx(3 / 2, abs=0.3)
    assert level_db(after(audio, compression=4.0)) == pytest.approx(level_db(audio), abs=0.01)


def test_clipping_cuts_at_its_level_and_leaves_the_rest() -> None:
    audio = sine(440, 0.8)
    clipped, limit = after(audio, clipping=6.0), 0.8 * 10 ** (-6 / 20)
    assert np.abs(clipped).max() == pytest.approx(limit, rel=1e-3)
    inside = np.abs(audio) < 0.99 * limit
    np.testing.assert_array_equal(clipped[inside], audio[inside])


def test_doubling_adds_a_later_copy_with_its_channels_exchanged() -> None:
    out = after(click(), doubling=(0.02, -6.0))
    np.testing.assert_array_equal(out[:, :1001], click()[:, :1001])
    late = np.flatnonzero(np.abs(out[1, 1001:]) > 0.01) / RATE
    assert 0.017 < late.min() <= late.max() < 0.023  # wobbles by 2 ms
    # Interpolated between samples, so its energy is at most that of a click at -6 dB.
    assert 0.25 < np.abs(out[1, 1001:]).max() <= 0.502


def test_echoes_are_where_and_as_loud_as_asked() -> None:
    out = after(click(), delay=(0.1, 0.4))
    places = np.flatnonzero(out[0])
    np.testing.assert_array_equal(places, 1000 + 4410 * np.arange(7))
    np.testing.assert_allclose(out[0, places], 0.4 ** np.arange(7), rtol=1e-5)
    np.testing.assert_allclose(out[1], out[0] / 2, rtol=1e-5)


def test_a_room_decays_by_60_db_in_its_time_and_keeps_the_level() -> None:
    out = after(click(), reverb=(0.5, 0.3, 7))
    assert np.abs(out[:, :1000]).max() < 1e-6  # a convolution by FFT spreads its rounding
    first, second = (out[0, 1000 + start : 1000 + start + 4410] for start in (4410, 4410 + 8820))
    # 0.2 s are 24 dB of 60 in 0.5 s; the sound gets duller meanwhile, which is some more.
    assert 20 < level_db(first) - level_db(second) < 36
    assert level_db(out) == pytest.approx(level_db(click()), abs=0.01)
    assert abs(np.corrcoef(out[0, 6000:20_000], out[1, 6000:20_000])[0, 1]) < 0.1  # a room is wide
    np.testing.assert_array_equal(out, after(click(), reverb=(0.5, 0.3, 7)))
    assert not np.array_equal(out, after(click(), reverb=(0.5, 0.3, 8)))


def test_width_changes_the_difference_alone() -> None:
    audio, out = noise(), after(noise(), width=0.5)
    np.testing.assert_allclose(out.sum(axis=0), audio.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(out[0] - out[1], 0.5 * (audio[0] - audio[1]), atol=1e-6)
    mono = after(audio, width=0.0)
    np.testing.assert_array_equal(mono[0], mono[1])
    np.testing.assert_array_equal(after(audio[:1], width=0.0), audio[:1])


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_costs_quality_and_no_time(codec: str) -> None:
    # Tones in bursts: what has no structure no codec keeps.
    time = np.arange(RATE) / RATE
    audio = (sine(440) + sine(1234) + sine(3000)) * (np.sin(2 * np.pi * 3 * time) > 0).astype(np.float32)

    def quality(bits: int) -> float:
        return level_db(audio) - level_db(after(audio, codec=(codec, bits)) - audio)

    low, high = quality(40_000), quality(160_000)
    assert low < high
    # A shift by one sample of 3 kHz alone would leave less than 10 dB.
    assert high > 15


@pytest.mark.parametrize("name", NAMES)
def test_an_effect_keeps_length_type_and_input_and_is_finite(name: str) -> None:
    effects = dataclasses.replace(Effects(), **{name: getattr(draw(EVERYTHING), name)})
    assert effects != Effects()
    for samples, channels in ((1, 1), (63, 2), (1000, 1), (30_000, 2)):
        audio = noise(samples / RATE, channels)
        before = audio.copy()
        out = affected(audio, effects, RATE)
        assert out.shape == audio.shape
        assert out.dtype == np.float32
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(audio, before)
        np.testing.assert_array_equal(out, affected(audio, effects, RATE))
    silence = np.zeros((2, 1000), np.float32)
    np.testing.assert_array_equal(affected(silence, effects, RATE), silence)


def draw(augment: AugmentConfig, seed: int = 0) -> Effects:
    return draw_effects(np.random.default_rng(seed), augment)


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    audio = noise()
    assert draw(AugmentConfig()) == Effects()
    assert affected(audio, Effects(), RATE) is audio


@pytest.mark.parametrize("name", [*NAMES, "mono"])
def test_each_happens_as_often_as_asked_and_moves_no_other_draw(name: str) -> None:
    field = "width" if name == "mono" else name
    some = [draw(AugmentConfig(**{name: 0.3}), seed) for seed in range(800)]
    happened = [getattr(effects, field) is not None for effects in some]
    assert np.mean(happened) == pytest.approx(0.3, abs=5 * 0.46 / 800**0.5)  # five standard deviations
    assert all(dataclasses.replace(effects, **{field: None}) == Effects() for effects in some)
    if name != "mono":
        full = [getattr(draw(EVERYTHING, seed), name) for seed in range(800)]
        assert all(
            getattr(effects, name) == value
            for effects, value, on in zip(some, full, happened, strict=True)
            if on
        )


def test_draws_stay_in_their_ranges() -> None:
    augment = dataclasses.replace(
        EVERYTHING, formant_semitones=3.0, equalizer_db=5.0, reverb_share=(0.1, 0.2), codec_kbits=(32.0, 64.0)
    )
    found = [draw(augment, seed) for seed in range(500)]
    assert {effects.codec[0] for effects in found if effects.codec} == set(CODECS)
    for values, low, high in (
        ([effects.formant for effects in found], -3.0, 3.0),
        ([effects.equalizer for effects in found], -5.0, 5.0),
        ([effects.reverb[1] for effects in found if effects.reverb], 0.1, 0.2),
        ([effects.codec[1] for effects in found if effects.codec], 32_000, 64_000),
        ([effects.width for effects in found], *augment.width_range),
        ([effects.compression for effects in found], *augment.compression_ratio),
        ([effects.clipping for effects in found], *augment.clipping_db),
        ([effects.delay[0] for effects in found if effects.delay], *augment.delay_seconds),
        ([effects.reverb[0] for effects in found if effects.reverb], *augment.reverb_seconds),
    ):
        assert low <= np.min(values) < low + 0.1 * (high - low)  # type: ignore[operator]
        assert high - 0.1 * (high - low) < np.max(values) <= high  # type: ignore[operator]


def test_a_chunk_is_the_sum_of_its_affected_sources_and_says_what_was_done() -> None:
    song = TrainingSong("A", {"voice": noise(3.0), "band": sine(440, seconds=3.0)})
    plain = AugmentConfig(remix=0.0, gain=0.0, channel_swap=0.0)
    augment = dataclasses.replace(plain, delay=1.0, width=1.0)
    dataset = Chunks([song], [("voice",), ("band",)], DataConfig(draws=1), augment, RATE, 0)
    plan = dataset.plan(4, RATE)
    stems = dataset.render(plan)
    for source, stem in zip(plan.sources, stems, strict=True):
        cut = song.sources[source.source][:, source.start : source.start + RATE]
        np.testing.assert_allclose(stem, affected(cut, source.effects, RATE), atol=1e-6)
        assert source.effects.delay is not None
        assert f"delay {source.effects.delay[0]:.3g}" in str(source)
    assert plan.sources[0].effects != plan.sources[1].effects
