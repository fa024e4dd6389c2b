"""Spectrograms: a tone is where its frequency is, at its level, whatever its length."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.plots.pictures import small_png, to_pixels
from tfswa.runtime.plots.spectrograms import COLUMNS, RANGE_DB, loudest_db, spectrogram, spectrograms

RATE = 8000


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")


def tone(hertz: float, seconds: float = 1.0, amplitude: float = 1.0, channels: int = 2) -> Any:
    time = np.arange(int(seconds * RATE)) / RATE
    return np.tile(amplitude * np.sin(2 * np.pi * hertz * time), (channels, 1)).astype(np.float32)


def panels(figure: Any) -> list[Any]:
    """Axes that hold data, color bars left out."""
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_where_its_frequency_is_at_its_level(channels: int) -> None:
    figure = spectrograms(RATE, {"tone": tone(1000, amplitude=0.1, channels=channels)})
    (axis,) = panels(figure)
    (image,) = axis.images
    level = image.get_array()
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0, 1.0, 0, 4.0)  # seconds, kHz
    middle = level[:, level.shape[1] // 2]
    assert np.argmax(middle) / (len(middle) - 1) * top == pytest.approx(1.0, abs=0.01)
    assert middle.max() == pytest.approx(-20, abs=0.1)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time / s", "frequency / kHz")
    assert figure.axes[-1].get_ylabel() == "level / dB"


def test_spectrograms_share_one_range() -> None:
    audio = {"loud": tone(500), "quiet": tone(500, amplitude=0.01), "silent": 0 * tone(500)}
    figure = spectrograms(RATE, audio)
    limits = [axis.images[0].get_clim() for axis in panels(figure)]
    assert len(set(limits)) == 1
    assert limits[0][1] == pytest.approx(0, abs=0.1)
    assert limits[0][1] - limits[0][0] == RANGE_DB
    apart = spectrograms(RATE, {"quiet": audio["quiet"]}, loudest_db=loudest_db(audio.values()))
    assert panels(apart)[0].images[0].get_clim() == pytest.approx(limits[0])


@pytest.mark.parametrize("samples", [1, 100, 400_000])
def test_any_length_has_a_spectrogram(samples: int) -> None:
    figure = spectrograms(RATE, {"noise": np.ones((1, samples), np.float32)})
    assert panels(figure)[0].images[0].get_array().shape[1] <= COLUMNS + 1
    to_pixels(figure)


def test_a_small_spectrogram_of_what_lies_below_the_floor() -> None:
    figure = spectrogram(RATE, tone(1000, amplitude=1e-8), start=3.0)  # -160 dB
    (axis,) = panels(figure)
    (image,) = axis.images
    level = image.get_array()
    assert level[:, level.shape[1] // 2].max() == pytest.approx(-160, abs=0.1)
    assert image.get_extent() == [3.0, 4.0, 0, 4.0]
    assert image.get_clim()[1] == pytest.approx(float(level.max()))
    beside = spectrogram(RATE, 0 * tone(1000), loudest_db=-10.0, colors="viridis")
    assert panels(beside)[0].images[0].get_clim() == (-10.0 - RANGE_DB, -10.0)


def test_a_small_png_is_the_figure_in_256_colors() -> None:
    image_of = pytest.importorskip("PIL.Image", reason="pillow is not installed: it codes small pictures")
    figure = spectrogram(RATE, tone(1000))
    coded = small_png(figure)
    image = image_of.open(io.BytesIO(coded))
    assert (image.mode, image.size) == ("P", (360, 270))
    apart = np.abs(np.asarray(image.convert("RGB"), float) - to_pixels(figure))
    assert apart.mean() < 4
    assert len(coded) < 60_000
