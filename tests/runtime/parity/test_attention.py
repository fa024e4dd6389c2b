"""``tfx inspect MODEL --attention SONG``: which pictures, of which chunk, on which axes; every refusal."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Done, Tfx

from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity import attention
from tfswa.runtime.parity.attention import module_kind, plan_pictures, scale_of

RATE = 8000
MODULES = [
    "encoder.0.blocks.0.window",
    "encoder.1.blocks.0.time",
    "encoder.1.blocks.0.frequency",
    "encoder.1.blocks.0.window",
    "decoder.0.blocks.0.window",
]


@pytest.fixture
def drawing() -> None:
    pytest.importorskip("torch", reason="torch is not installed: attention is seen in the eager network")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """A second of noise, loud from 0.5 s on."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    noise[: RATE // 2] *= 0.01
    soundfile.write(path, noise, RATE)
    return path


def refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("tfx: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def test_options_without_a_song_are_refused(tfx: Tfx, tmp_path: Path) -> None:
    refused(tfx("inspect", "demo", "-o", tmp_path), 2, "add --attention SONG")
    refused(tfx("inspect", "demo", "--force"), 2, "add --attention SONG")


def test_without_matplotlib_the_extra_is_named(
    tfx: Tfx,
    network_bundle: Bundle,
    song: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = tfx("inspect", network_bundle.path, "--attention", song, "-o", tmp_path / "p")
    refused(done, 4, "matplotlib: pip install 'tfswa[plots]'")


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("encoder.1.blocks.0.time", "time"),
        ("blocks.0.fusion.frequency", "frequency"),
        ("a.window.2", "window"),
        ("layers.3", "layers"),
        ("7", "7"),
    ],
)
def test_the_kind_is_the_last_word(module: str, kind: str) -> None:
    assert module_kind(module) == kind


def test_every_picture_has_a_file_of_its_own(tmp_path: Path) -> None:
    maps = {name: np.eye(4, dtype=np.float32) for name in ("Attention", "a.time", "a.time.2", "b.time")}
    pictures = plan_pictures(maps, tmp_path)
    assert len({picture.path for picture in pictures}) == len(pictures)
    assert {m for picture in pictures for m in picture.modules} == set(maps)
    assert [(picture.path.name, picture.overview) for picture in pictures][:2] == [
        ("Attention.png", True),
        ("time.png", True),
    ]


def test_scales(tiny_spec: ModelSpec) -> None:
    frame = 128 / RATE
    assert scale_of("time", 8, tiny_spec, 2.0) == ("time / s", 2 - frame / 2, 2 + 15.5 * frame, 0.0)
    assert scale_of("frequency", 32, tiny_spec, 2.0) == ("frequency / kHz", 0.0, 4.0, 0.0)
    contiguous = dataclasses.replace(tiny_spec, hyper={**tiny_spec.hyper, "fold_layout": "contiguous"})
    label, start, end, _ = scale_of("frequency", 32, contiguous, 0.0)
    assert "each of 4 sub-bands" in label
    assert (start, end) == (0.0, 1.0)
    label, start, end, tick = scale_of("window", 16, tiny_spec, 0.0)
    assert "4 frames of 4 bins" in label
    assert (start, end, tick) == (0.0, 16.0, 4.0)
    assert scale_of("window", 15, tiny_spec, 0.0) == scale_of("other", 15, tiny_spec, 0.0)


def test_the_runtime_reaches_pictures_and_torch_by_name_alone() -> None:
    source = Path(attention.__file__).read_text()
    assert not re.search(r"^\s*(from|import) (torch|matplotlib|tfswa\.train)", source, re.MULTILINE)
