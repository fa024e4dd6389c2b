"""Signals at their own rate and channels, block by block: the bits that ``separate_file`` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import PlainModel

from tfswa.runtime.errors import AudioError, TfxError, UsageError
from tfswa.runtime.stream.transit import Transit

Audio = NDArray[np.float32]


def noise(channels: int, samples: int, seed: int = 0) -> Audio:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, samples), np.float32)


def through(transit: Transit, signal: Audio, sizes: Iterator[int]) -> Audio:
    parts, start = [], 0
    while start < signal.shape[1]:
        size = next(sizes, signal.shape[1])
        parts.append(transit.push(signal[:, start : start + size]))
        start += size
    parts.append(transit.flush())
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("model_channels", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 6000])
def test_stems_are_those_of_a_file(tmp_path: Path, rate: int, channels: int, model_channels: int) -> None:
    signal = noise(channels, round(1.7 * rate))
    model = PlainModel(channels=model_channels)
    soundfile.write(tmp_path / "song.wav", signal.T, rate, subtype="FLOAT")
    model.separate_file(tmp_path / "song.wav", tmp_path / "stems", format="wav")
    transit = Transit(model, sample_rate=rate, channels=channels)
    found = through(transit, signal, iter([1, 0, 700, 13, 5000]))
    assert transit.stems == ("vocals", "other")
    assert transit.received == transit.returned == signal.shape[1] == found.shape[2]
    for stem, audio in zip(transit.stems, found, strict=True):
        file = soundfile.read(tmp_path / "stems" / f"{stem}.wav", dtype="float32", always_2d=True)[0].T
        assert file.shape == audio.shape == (transit.channels, signal.shape[1])
        np.testing.assert_array_equal(audio, file)
        assert np.abs(audio).max() > 0.01


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from((8000, 7350, 44_100)),
    samples=st.integers(0, 4000),
    sizes=st.lists(st.integers(0, 900)),
)
def test_blocks_change_no_bit(rate: int, samples: int, sizes: list[int]) -> None:
    model, signal = PlainModel(), noise(2, samples)
    once = through(Transit(model, sample_rate=rate, channels=2), signal, iter(()))
    assert once.shape == (2, 2, samples)
    found = through(Transit(model, sample_rate=rate, channels=2), signal, iter(sizes))
    np.testing.assert_array_equal(found, once)


def test_stems_are_those_asked_for_in_their_order() -> None:
    model, signal = PlainModel(), noise(2, 900)
    both = through(Transit(model, sample_rate=8000, channels=2), signal, iter(()))
    turned = Transit(model, sample_rate=8000, channels=2, stems=("other", "vocals"))
    np.testing.assert_array_equal(through(turned, signal, iter(())), both[::-1])
    one = through(Transit(model, sample_rate=8000, channels=2, stems=("other",)), signal, iter(()))
    np.testing.assert_array_equal(one, both[1:])


def test_what_comes_out_comes_as_soon_as_it_is_finished() -> None:
    transit = Transit(PlainModel(), sample_rate=8000, channels=2)
    for _ in range(100):
        transit.push(noise(2, 10))
    assert transit.received - transit.returned <= 64  # a chunk


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sample_rate": 10}, "sample rate 10 must be from 1000 to 3000000 Hz"),
        ({"channels": 0}, "0 channels: give 1 to 8"),
        ({"channels": 9}, "9 channels: give 1 to 8"),
        ({"stems": ("drums",)}, "has no stem 'drums': it has vocals, other"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Transit(PlainModel(), **{"sample_rate": 8000, "channels": 2, **options})  # type: ignore[arg-type]


def test_bad_samples_are_refused_and_the_signal_goes_on() -> None:
    signal = noise(2, 500)
    transit = Transit(PlainModel(), sample_rate=8000, channels=2)
    bad = signal[:, :100].copy()
    bad[1, 7] = np.nan
    with pytest.raises(AudioError, match="holds nan at sample 7 of channel 2 of 2"):
        transit.push(bad)
    with pytest.raises(UsageError, match="C = 2"):
        transit.push(signal[:1])
    found = through(transit, signal, iter([100]))
    np.testing.assert_array_equal(
        found, through(Transit(PlainModel(), sample_rate=8000, channels=2), signal, iter(()))
    )
    with pytest.raises(TfxError, match="this signal ended"):
        transit.push(signal)
    with pytest.raises(TfxError, match="this signal ended"):
        transit.flush()


def test_nothing_in_nothing_out() -> None:
    assert Transit(PlainModel(), sample_rate=44_100, channels=1).flush().shape == (2, 1, 0)
