"""Every augmentation proven on a sine, or on clicks: what it does, how much, how often."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import model_blocks, open_audio
from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.songs.loading import example_stem_file

pytest.importorskip("torch", reason="torch is not installed: the training stage needs it")
pytest.importorskip("python_stretch", reason="python-stretch is not installed: tempo and pitch need it")

from tfswa.train.config import AugmentConfig, DataConfig
from tfswa.train.data.augment import (
    Change,
    Motion,
    changed,
    draw_change,
    draw_motion,
    moved,
    needed,
)
from tfswa.train.data.chunks import Chunks
from tfswa.train.data.songs import TrainingSong

RATE = 44_100
SAMPLES = RATE  # of a chunk
NOTHING = AugmentConfig(
    **dict.fromkeys(("remix", "tempo", "pitch", "speed", "gain", "frequency_mask", "time_mask"), 0.0),
    channel_swap=0.0,
    silence=0.0,
)
Audio = NDArray[np.float32]


def sine(hertz: float, seconds: float = 4.0, level: float = 0.25) -> Audio:
    """Left at full level, right at half."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.stack((wave, wave / 2)).astype(np.float32)


def clicks(every: float, seconds: float = 6.0) -> Audio:
    """Bursts of a decaying 1500 Hz, the first one half a period in."""
    time = np.arange(round(seconds * RATE)) / RATE
    since = (time - every / 2) % every
    wave = 0.5 * np.exp(-since * 200) * np.sin(2 * np.pi * 1500 * since) * (time >= every / 2)
    return np.stack((wave, wave)).astype(np.float32)


def pitch(wave: Audio) -> float:
    """The strongest frequency of a mono signal, in Hz, finer than a bin."""
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size))
    return float(np.argmax(spectrum)) * RATE / size


def level_db(audio: Audio) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-30))


def snr_db(true: Audio, other: Audio) -> float:
    return level_db(true) - level_db(true - other)


def onsets(wave: Audio) -> NDArray[np.int64]:
    """First samples of the bursts: where the level rises after 50 ms of quiet."""
    loud = np.flatnonzero(np.abs(wave) > 0.1)
    first: NDArray[np.int64] = loud[np.diff(loud, prepend=-RATE) > RATE // 20]
    return first


def play(audio: Audio, motion: Motion, start: int = RATE, samples: int = SAMPLES) -> Audio:
    """What a chunk at ``start`` makes of a song."""
    before, length = needed(motion, samples)
    padded = np.pad(audio, ((0, 0), (RATE, RATE)))
    cut = padded[:, RATE + start - before :][:, :length]
    return moved(cut, motion, samples, RATE)


def chunks(augment: AugmentConfig, samples: int = 4 * RATE, **sources: Audio) -> Chunks:
    """One song; every source is a stem."""
    song = TrainingSong("A", sources or {"s": sine(440, samples / RATE)})
    groups = [(name,) for name in song.sources]
    return Chunks([song], groups, DataConfig(), augment, RATE, 0)


def share(name: str, probability: float, happened: Any, count: int = 400) -> float:
    """How often a plan with this probability does something."""
    dataset = chunks(dataclasses.replace(NOTHING, **{name: probability}))
    return float(np.mean([bool(happened(dataset.plan(index, SAMPLES))) for index in range(count)]))


@pytest.mark.parametrize(
    ("name", "happened"),
    [
        ("remix", lambda plan: plan.remix),
        ("tempo", lambda plan: plan.sources[0].motion.tempo != 1),
        ("pitch", lambda plan: plan.sources[0].motion.semitones != 0),
        ("speed", lambda plan: plan.sources[0].motion.speed != 1),
        ("gain", lambda plan: plan.sources[0].change.gain != 1),
        ("frequency_mask", lambda plan: plan.sources[0].change.frequency_mask is not None),
        ("time_mask", lambda plan: plan.sources[0].change.time_mask is not None),
        ("channel_swap", lambda plan: plan.sources[0].change.channel_swap),
        ("silence", lambda plan: plan.sources[0].change.silence),
    ],
)
def test_each_happens_as_often_as_asked(name: str, happened: Any) -> None:
    assert share(name, 0.0, happened) == 0.0
    assert share(name, 1.0, happened) == 1.0
    assert 0.4 < share(name, 0.5, happened) < 0.6  # four standard deviations
    assert 0.03 < share(name, 0.1, happened) < 0.2


def test_nothing_leaves_the_song_as_it_is() -> None:
    song = sine(440)
    dataset = chunks(NOTHING, s=song)
    plan = dataset.plan(3, SAMPLES)
    start = plan.sources[0].start
    np.testing.assert_array_equal(dataset.render(plan)[0], song[:, start : start + SAMPLES])


def test_draws_fill_their_ranges_and_stay_in_them() -> None:
    augment = AugmentConfig(
        **dict.fromkeys(("tempo", "pitch", "speed", "gain", "frequency_mask", "time_mask"), 1.0)
    )
    random = np.random.default_rng(0)
    motions = [draw_motion(random, augment) for _ in range(2000)]
    changes = [draw_change(random, augment, SAMPLES, RATE) for _ in range(2000)]
    bands = np.array([change.frequency_mask for change in changes])
    spans = np.array([change.time_mask for change in changes])
    for values, low, high in (
        ([motion.tempo for motion in motions], 0.9, 1.1),
        ([motion.semitones for motion in motions], -2.0, 2.0),
        (np.log([motion.speed for motion in motions]), np.log(0.87), np.log(1.15)),
        ([change.gain for change in changes], 0.7, 1.3),
        (bands[:, 1] - bands[:, 0], 0.0, 2000.0),
        (bands.mean(axis=1), 0.0, RATE / 2),
        ((spans[:, 1] - spans[:, 0]) / RATE, 0.0, 0.3),
        (spans.mean(axis=1), 0.0, SAMPLES),
    ):
        margin = 0.02 * (high - low)
        assert low <= np.min(values) < low + margin
        assert high - margin < np.max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=2 * margin)  # uniform
    assert bands.min() >= 0
    assert bands.max() <= RATE / 2
    assert spans.min() >= 0
    assert spans.max() <= SAMPLES


def test_one_probability_does_not_move_the_other_draws() -> None:
    base = AugmentConfig(gain=1.0, channel_swap=0.5)
    one = chunks(base).plan(5, SAMPLES).sources[0]
    two = chunks(dataclasses.replace(base, time_mask=1.0, pitch=1.0)).plan(5, SAMPLES).sources[0]
    assert two.change.time_mask is not None
    assert (one.change.gain, one.change.channel_swap) == (two.change.gain, two.change.channel_swap)


@pytest.mark.parametrize("semitones", [-12.0, -2.0, -0.5, 0.5, 2.0, 12.0])
def test_pitch_moves_the_frequency_and_not_the_beat(semitones: float) -> None:
    out = play(sine(440), Motion(semitones=semitones))
    assert out.shape == (2, SAMPLES)
    assert pitch(out[0]) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.003)
    assert level_db(out[0]) == pytest.approx(level_db(sine(440)[0]), abs=0.5)
    beat = onsets(play(clicks(0.2), Motion(semitones=semitones))[0])
    assert np.diff(beat) == pytest.approx(0.2 * RATE, rel=0.02)


@pytest.mark.parametrize("tempo", [0.8, 0.9, 1.1, 1.25])
def test_tempo_moves_the_beat_and_not_the_pitch(tempo: float) -> None:
    out = play(sine(440), Motion(tempo=tempo))
    assert out.shape == (2, SAMPLES)
    assert pitch(out[0]) == pytest.approx(440, rel=0.003)
    assert level_db(out[0]) == pytest.approx(level_db(sine(440)[0]), abs=0.5)
    beat = onsets(play(clicks(0.2), Motion(tempo=tempo), samples=2 * RATE)[0])
    assert len(beat) in (int(2 / (0.2 / tempo)), int(2 / (0.2 / tempo)) + 1)
    assert np.diff(beat).mean() == pytest.approx(0.2 * RATE / tempo, rel=0.003)


@pytest.mark.parametrize("speed", [0.8, 0.87, 1.15, 1.3])
def test_speed_moves_both(speed: float) -> None:
    out = play(sine(440), Motion(speed=speed))
    assert out.shape == (2, SAMPLES)
    assert pitch(out[0]) == pytest.approx(440 * speed, rel=1e-4)
    assert level_db(out[0]) == pytest.approx(level_db(sine(440)[0]), abs=0.05)
    beat = onsets(play(clicks(0.2), Motion(speed=speed), samples=2 * RATE)[0])
    assert np.diff(beat) == pytest.approx(0.2 * RATE / speed, abs=3)


@pytest.mark.parametrize(
    "motion",
    [
        Motion(tempo=0.8),
        Motion(tempo=1.25),
        Motion(semitones=2.0),
        Motion(semitones=-7.0),
        Motion(speed=0.8),
        Motion(speed=1.25),
        Motion(speed=1.1, tempo=0.9, semitones=1.0),
    ],
)
def test_an_onset_stays_where_it_belongs(motion: Motion) -> None:
    song = np.zeros((2, 5 * RATE), np.float32)
    onset = 2 * RATE
    song[:, onset:] = sine(440)[0, : 3 * RATE] * 2
    out = play(song, motion, start=RATE, samples=2 * RATE)
    expected = (onset - RATE) / (motion.tempo * motion.speed)
    half = int(np.argmax(np.abs(out[0]) > 0.25))  # of its level: a stretched onset is a few ms long
    assert half == pytest.approx(expected, abs=0.002 * RATE)


@pytest.mark.parametrize("motion", [Motion(tempo=0.85), Motion(semitones=3.0), Motion(speed=1.2)])
def test_a_chunk_is_whole_from_its_first_sample_to_its_last(motion: Motion) -> None:
    out = play(sine(440), motion)
    for ten_ms in (out[0, : RATE // 100], out[0, -RATE // 100 :]):
        assert level_db(ten_ms) == pytest.approx(level_db(sine(440)[0]), abs=0.6)


@pytest.mark.parametrize("samples", [1, 100, 4321, SAMPLES])
@pytest.mark.parametrize(
    "motion", [Motion(), Motion(tempo=0.913), Motion(semitones=1.7), Motion(speed=1.093)]
)
def test_the_length_is_exact(motion: Motion, samples: int) -> None:
    assert play(sine(440), motion, samples=samples).shape == (2, samples)


def real_sources() -> list[Audio]:
    """The four sources of a real song, 3 s."""
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed: it holds the stem file")
    sources = []
    for stream in range(1, 5):
        with open_audio(path, stream=stream) as source:
            sources.append(np.concatenate(list(model_blocks(source, RATE, 2)), axis=1)[:, RATE : 4 * RATE])
    return sources


@pytest.mark.parametrize(
    ("motion", "least_db"),
    [
        (Motion(speed=1.07), 100.0),
        (Motion(tempo=0.93), 60.0),  # measured 96; phases between channels are kept
        (Motion(tempo=1.08), 60.0),
        (Motion(semitones=1.5), 25.0),  # measured 33: where bins meet, each channel rounds for itself
        (Motion(semitones=-1.5), 25.0),
    ],
)
def test_sources_that_belong_together_add_up_to_the_moved_mixture(motion: Motion, least_db: float) -> None:
    sources = real_sources()
    mixture = np.sum(sources, axis=0)
    out = play(np.concatenate((*sources, mixture)), motion).reshape(5, 2, -1)
    assert snr_db(out[4], out[:4].sum(axis=0)) > least_db


def test_chunks_move_sources_that_belong_together_as_one() -> None:
    """The mixture is a source of its own here, which only a common motion keeps equal to the sum."""
    sources = real_sources()
    song = dict(zip("abcd", sources, strict=True)) | {"mixture": np.sum(sources, axis=0)}
    augment = dataclasses.replace(NOTHING, tempo=1.0)
    together = chunks(augment, **song)[0, 2 * RATE].stems.numpy()
    assert snr_db(together[4], together[:4].sum(axis=0)) > 60
    motions = {source.motion for source in chunks(augment, **song).plan(0, RATE).sources}
    assert len(motions) == 1
    remixed = chunks(dataclasses.replace(augment, remix=1.0), **song).plan(0, RATE)
    assert len({source.motion for source in remixed.sources}) == 5


def test_motion_is_deterministic() -> None:
    motion = Motion(tempo=1.1, semitones=-1.0)
    np.testing.assert_array_equal(play(sine(440), motion), play(sine(440), motion))


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0, 1.3])
def test_gain_in_db(gain: float) -> None:
    out = changed(sine(440), Change(gain=gain), RATE)
    if gain:
        assert level_db(out) == pytest.approx(level_db(sine(440)) + 20 * np.log10(gain), abs=1e-3)
    else:
        assert not out.any()


def test_the_frequency_mask_removes_what_is_inside_and_nothing_else() -> None:
    band = (900.0, 1500.0)
    for hertz in (901.0, 1000.0, 1250.0, 1499.0):
        out = changed(sine(hertz), Change(frequency_mask=band), RATE)
        assert level_db(out[:, RATE:-RATE]) < level_db(sine(hertz)) - 40
        assert level_db(out) < level_db(sine(hertz)) - 20  # the ends, where a sine is not only one frequency
    for hertz in (50.0, 850.0, 1550.0, 8000.0, 20_000.0):
        out = changed(sine(hertz), Change(frequency_mask=band), RATE)
        assert level_db(out) == pytest.approx(level_db(sine(hertz)), abs=0.1)
        assert snr_db(sine(hertz)[:, RATE:-RATE], out[:, RATE:-RATE]) > 60  # phase, too
    edge = changed(sine(880.0), Change(frequency_mask=band), RATE)
    assert level_db(edge) - level_db(sine(880.0)) == pytest.approx(-6.0, abs=0.3)  # midway on the edge


@pytest.mark.parametrize("band", [(0.0, 200.0), (RATE / 2 - 2000, RATE / 2), (0.0, RATE / 2), (5.0, 5.0)])
@pytest.mark.parametrize("samples", [1, 2, 100, 4321])
def test_any_band_of_any_chunk_is_finite_and_of_its_length(band: tuple[float, float], samples: int) -> None:
    out = changed(sine(440)[:, :samples], Change(frequency_mask=band), RATE)
    assert out.shape == (2, samples)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_the_time_mask_is_silent_inside_and_whole_outside() -> None:
    first, after, fade = 10_000, 20_000, round(0.005 * RATE) + 1
    out = changed(sine(440), Change(time_mask=(first, after)), RATE)
    assert not out[:, first:after].any()
    np.testing.assert_array_equal(out[:, : first - fade], sine(440)[:, : first - fade])
    np.testing.assert_array_equal(out[:, after + fade :], sine(440)[:, after + fade :])
    steady = changed(np.ones((1, RATE), np.float32), Change(time_mask=(first, after)), RATE)[0]
    assert min(steady[first - 1], steady[after]) > 0  # not a sample more than asked
    assert np.abs(np.diff(steady)).max() < 0.01  # no click
    assert (np.diff(steady[: first + 1]) <= 0).all()
    assert (np.diff(steady[after:]) >= 0).all()
    ends = changed(sine(440), Change(time_mask=(0, sine(440).shape[1])), RATE)
    assert not ends.any()


def test_channels_change_places() -> None:
    out = changed(sine(440), Change(channel_swap=True), RATE)
    np.testing.assert_array_equal(out, sine(440)[::-1])
    mono = changed(sine(440)[:1], Change(channel_swap=True), RATE)
    np.testing.assert_array_equal(mono, sine(440)[:1])


def test_silence_leaves_a_source_out() -> None:
    assert not changed(sine(440), Change(silence=True), RATE).any()
    dataset = chunks(dataclasses.replace(NOTHING, silence=0.5), a=sine(440), b=sine(660))
    for index in range(20):
        plan = dataset.plan(index, SAMPLES)
        sounding = [bool(stem.any()) for stem in dataset.render(plan)]
        assert sounding == [not source.change.silence for source in plan.sources]


def test_a_change_leaves_its_input_alone() -> None:
    everything = Change(0.5, (100.0, 900.0), (500, 900), True, False)
    audio = sine(440)
    changed(audio, everything, RATE)
    np.testing.assert_array_equal(audio, sine(440))


def test_changes_are_drawn_for_each_source() -> None:
    dataset = chunks(dataclasses.replace(NOTHING, gain=1.0), a=sine(440), b=sine(440))
    for index in range(5):
        gains = {source.change.gain for source in dataset.plan(index, SAMPLES).sources}
        assert len(gains) == 2


def test_mono_songs_survive_everything() -> None:
    augment = dataclasses.replace(
        AugmentConfig(), **dict.fromkeys(("tempo", "pitch", "speed", "frequency_mask", "time_mask"), 1.0)
    )
    assert chunks(augment, s=sine(440)[:1])[0, SAMPLES].stems.shape == (1, 1, SAMPLES)


def test_without_the_library_tempo_and_pitch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    for name in ("tempo", "pitch"):
        with pytest.raises(BackendUnavailable, match=r"python_stretch: pip install 'tfswa\[train\]'"):
            chunks(dataclasses.replace(NOTHING, **{name: 0.1}))
    chunks(dataclasses.replace(NOTHING, speed=1.0))[0, SAMPLES]
