"""Figures of separations whose answer is known; the recipe against the data that it is made for."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed: training needs it")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import demo_model  # noqa: E402
import make_demo_data  # noqa: E402

from tfswa.train.config_files import load_config  # noqa: E402
from tfswa.train.families import get_family, hyper_of  # noqa: E402

RATE = 44_100
Audio = NDArray[np.float32]


def tone(hertz: float, level: float, seconds: float = 20.0) -> Audio:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.stack((wave, wave)).astype(np.float32)


def test_figures_of_a_separation_that_bleeds_and_is_dull() -> None:
    vocals = tone(1000, 0.2) + tone(12_000, 0.02)
    vocals[:, : 5 * RATE] = 0
    rest = tone(300, 0.1)
    estimate = tone(1000, 0.2) + tone(12_000, 0.01)
    estimate[:, : 5 * RATE] = 0.1 * rest[:, : 5 * RATE]
    found = demo_model.figures(np.stack((vocals, rest)), np.stack((estimate, vocals + rest - estimate)), RATE)
    assert found["vocals below mixture where none are"] == pytest.approx(20, abs=0.01)
    # Filtered at 8 kHz of order 6, the tone of 1 kHz is below -100 dB.
    assert found["vocals above 8 kHz, against the truth"] == pytest.approx(-6.02, abs=0.05)
    assert found["vocals SDR (u)"] == pytest.approx(found["worst 10 s of vocals"], abs=3)
    signal, error = 15 * (0.2**2 + 0.02**2) / 2, 15 * 0.01**2 / 2 + 5 * 0.01**2 / 2
    assert found["vocals SDR (u)"] == pytest.approx(10 * np.log10(signal / error), abs=0.01)


def test_what_has_no_answer_is_none() -> None:
    found = demo_model.figures(np.zeros((2, 2, RATE), np.float32), np.zeros((2, 2, RATE), np.float32), RATE)
    assert set(found.values()) == {None}


def test_the_recipe_names_the_sets_that_the_data_script_makes() -> None:
    config = load_config(demo_model.CONFIG)
    assert config.data.validation == make_demo_data.HELD_OUT
    patterns = [pattern for one in config.data.sets for pattern in one.songs]
    made = {name for row in make_demo_data.SOURCES for name in row.sets.split(", ")} - {"dev-"}
    assert {pattern.removesuffix("*") for pattern in patterns} == made
    assert not any(fnmatchcase("dev-house_e-War_of_freedom", pattern) for pattern in patterns)


def test_the_page_keeps_its_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "PAGE", tmp_path / "page.md")
    run = tmp_path / "runs" / "five-waveform-0"
    run.mkdir(parents=True)
    config = load_config(demo_model.CONFIG).to_dict()
    (run / "config.json").write_text(json.dumps(config))
    (run / "validation.csv").write_text("step,vocals,accompaniment\n40,1.5,18\n80,2.25,\n")
    (run / "log.csv").write_text("step,x_realtime\n10,3\n20,5\n")
    demo_model.write_page(tmp_path / "runs")
    text = (tmp_path / "page.md").read_text()
    assert "| five-waveform-0 | 1 waveform_l1 | 5 | 0 | 2.95 | 1.50 | 2.25 |" in text
    (tmp_path / "page.md").write_text(text + "what was tried\n")
    demo_model.write_page(tmp_path / "runs")
    again = (tmp_path / "page.md").read_text()
    assert again.endswith("## Notes\nwhat was tried\n")
    assert again.count("## Notes") == 1
    figures = json.loads((tmp_path / "page.json").read_text())["five-waveform-0"]
    # 4 chunks of 127 * 1024 samples, at a median of 4 s of audio a second.
    assert figures["seconds_per_step"] == pytest.approx(127 * 1024 / RATE)


def test_every_run_is_a_configuration_that_differs_from_the_others() -> None:
    found = []
    for name in demo_model.ARMS:
        config = load_config(demo_model.CONFIG, demo_model.arm(name, Path("/songs"), 1000, 1))
        hyper_of(get_family(config.model.family), config.model.hyper)  # keys that the network has
        assert (config.optim.length, config.optim.seed, config.run.validate_every) == (1000, 1, 250)
        assert [phase.until for phase in config.curriculum] == ([200] if name == "late-resolutions" else [])
        assert config not in found
        found.append(config)
