"""Pictures: what is drawn is what was given, on axes with units; no window system, no half files."""

from __future__ import annotations

import html
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.escape import shown
from tfswa.runtime.plots import pictures
from tfswa.runtime.plots.pictures import Scale, attention_grid, loss_curves, save_png, to_pixels
from tfswa.runtime.plots.spectrograms import spectrograms

RATE = 8000


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")


def panels(figure: Any) -> list[Any]:
    """Axes that hold data, color bars left out."""
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]


def test_loss_curves_hold_losses_scores_and_the_rate() -> None:
    train = {
        "step": [10, 20, 30],
        "loss": [3.0, 2.0, float("nan")],
        "waveform_l1": [1.0, 0.5, 0.2],
        "lr": [1e-3, 1e-3, 1e-4],
        "gradient_norm": [5.0, 5.0, 5.0],
    }
    figure = loss_curves(train, {"step": [30], "vocals": [6.5]}, losses=("loss", "waveform_l1", "mse"))
    losses, scores, rate = panels(figure)
    assert [line.get_label() for line in losses.lines] == ["loss", "waveform_l1"]
    assert [line.get_label() for line in scores.lines] == ["vocals"]
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), train["lr"])
    np.testing.assert_array_equal(losses.lines[1].get_xdata(), train["step"])
    assert losses.get_yscale() == "log"
    assert rate.get_xlabel() == "optimizer step"
    to_pixels(figure)


@pytest.mark.parametrize(
    ("train", "validation", "count"),
    [
        ({"step": [1], "loss": [-2.0]}, {}, 1),  # below 0: no logarithm
        ({}, {"step": [1, 2], "vocals": [1.0, 2.0]}, 1),
        ({"step": [], "loss": []}, {}, 1),
        ({}, {}, 1),
    ],
)
def test_loss_curves_of_little(train: Any, validation: Any, count: int) -> None:
    figure = loss_curves(train, validation)
    assert len(panels(figure)) == count
    to_pixels(figure)


def test_attention_is_drawn_against_the_uniform_weight() -> None:
    found = np.full((4, 4), 0.25)
    found[1] = [0.5, 0.25, 0.125, 0.125]
    figure = attention_grid({"a.time": found}, title="over all", scale=Scale("time / s", 2.0, 3.0))
    (axis,) = panels(figure)
    (image,) = axis.images
    np.testing.assert_allclose(image.get_array(), found * 4)
    assert image.get_extent() == [2.0, 3.0, 2.0, 3.0]
    assert axis.get_title() == "a.time"
    assert figure.get_suptitle() == "over all"
    assert figure.get_supxlabel() == "attended to: time / s"
    assert figure.get_supylabel() == "attending: time / s"
    assert image.norm.vmin * image.norm.vmax == pytest.approx(1)  # white is uniform
    assert "uniform" in figure.axes[-1].get_ylabel()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 23])
def test_a_grid_holds_every_map(count: int) -> None:
    maps = {f"block.{index}": np.full((3, 5), 0.2) for index in range(count)}
    maps["block.0"] = np.eye(3, 5)  # zeros have no logarithm
    figure = attention_grid(maps)
    assert [axis.get_title() for axis in panels(figure)] == [f"{name}\n3 x 5" for name in maps]
    to_pixels(figure)


def test_ticks_are_those_of_the_scale() -> None:
    figure = attention_grid({"w": np.full((16, 16), 1 / 16)}, scale=Scale("token", 0, 16, 4))
    (axis,) = panels(figure)
    ticks = [tick for tick in axis.get_xticks() if 0 <= tick <= 16]
    assert ticks == [0, 4, 8, 12, 16]


def test_pixels_are_the_figure() -> None:
    figure = loss_curves({"step": [1], "loss": [1.0]}, {})
    pixels = to_pixels(figure)
    width, height = figure.get_size_inches() * pictures.DPI
    assert pixels.shape == (round(height), round(width), 3)
    assert pixels.dtype == np.uint8
    assert 0 <= pixels.min() < 50 < 250 < pixels.max()


def test_a_png_replaces_the_old_one_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    figure = loss_curves({"step": [1], "loss": [1.0]}, {})

    class Full(Exception):
        pass

    def fail(*_: Any, **__: Any) -> None:
        assert path.read_bytes() == b"old"
        raise Full

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(Full):
            save_png(figure, path)
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    assert path.read_bytes() == b"old"
    save_png(figure, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        pictures.require_matplotlib,
        lambda: loss_curves({}, {}),
    ):
        with pytest.raises(BackendUnavailable, match=r"matplotlib: pip install 'tfswa\[plots\]'"):
            draw()


def test_neither_pyplot_nor_torch_is_imported() -> None:
    script = (
        "import sys, numpy as np\n"
        "from tfswa.runtime.plots import pictures as p\n"
        "assert not any('matplotlib' in name for name in sys.modules)\n"
        "p.to_pixels(p.attention_grid({'a': np.eye(2)}))\n"
        "p.to_pixels(p.loss_curves({'step': [1], 'loss': [1.0]}, {}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_curves_share_an_axis_and_marks_are_in_every_panel() -> None:
    drawn = [
        pictures.Panel("SNR / dB", {"vocals": [1.0, math.inf, 3.0]}, level=2.0),
        pictures.Panel("loss / dB", {"vocals": [0.0, 0.1, 0.2], "drums": [0.0, 0.0, 0.0]}),
    ]
    figure = pictures.panels([0.0, 1.0, 2.0], drawn, title="t", label="frames", marks={"context": 1.0})
    top, bottom = panels(figure)
    assert (top.get_ylabel(), bottom.get_xlabel()) == ("SNR / dB", "frames")
    assert np.isnan(top.lines[0].get_ydata()[1])  # a gap
    assert [line.get_label() for line in bottom.lines] == ["vocals", "drums", "context"]
    assert len(top.lines) == 3  # a curve, the level, the mark


NAMES = ("a $b$ c", r"$\frac", r"\$5", "$", "two\x1b[2Jlines\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_formula(name: str) -> None:
    """matplotlib takes ``$...$`` for one, and raises where it is none."""
    lines = {name: np.arange(3.0)}
    figures = [
        spectrograms(RATE, {name: np.ones((1, RATE), np.float32)}),
        attention_grid({name: np.full((4, 4), 0.25)}, title=name),
        pictures.bars({name: 1.0}, name),
        pictures.panels(
            np.arange(3.0), [pictures.Panel(name, lines)], title=name, label=name, marks={name: 1.0}
        ),
    ]
    for figure in figures:
        to_pixels(figure)
        drawn = pictures.to_svg(figure).decode()
        assert shown(name).replace("\\n", "") in html.unescape(drawn)
