"""scripts/family_training: it goes on where it was, and its figures are those of known estimates."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: training needs it")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import family_page  # noqa: E402
import family_training  # noqa: E402
from family_training import Network, Plan  # noqa: E402
from gpu_check import Check  # noqa: E402

from tfswa.train import families as registry  # noqa: E402
from tfswa.train.config_files import load_config  # noqa: E402

SMALL = "example"  # a configuration with a network of 54 thousand weights


def plan(**changed: Any) -> Plan:
    given = {"data": Path("/songs"), "held_out": "B", "minutes": None, "steps": 2, "seed": 3, "batch": 2}
    return Plan(**{**given, "threads": 1, **changed})


def check() -> Check:
    return Check("any", "cpu", None, time.monotonic() + 600)


def test_every_family_and_a_configuration_make_a_recipe_that_differs_in_the_network_alone() -> None:
    found = {}
    for name in (*registry.family_names(), SMALL):
        network = Network.named(name)
        config = load_config(family_training.RECIPE, plan().overrides(network, 40))
        registry.hyper_of(registry.get_family(config.model.family), config.model.hyper)
        assert (config.optim.length, config.optim.warmup, config.optim.seed) == (40, 4, 3)
        stft = registry.get_family(config.model.family).stft
        seconds = (config.optim.frames - 1) * stft.hop / stft.sample_rate
        assert seconds == pytest.approx(family_training.CHUNK_SECONDS, rel=0.5)  # T has to be a multiple
        found[name] = config.loss, config.augment, config.data
    assert len({repr(recipe) for recipe in found.values()}) == 1


def test_figures_of_known_estimates() -> None:
    random = np.random.default_rng(0)
    true = random.standard_normal((2, 44_100)).astype(np.float32)
    same, half = family_training.figures(true, true), family_training.figures(true, 0.5 * true)
    assert same == {"sdr_db": None, "mse": 0.0}  # JSON has no infinity
    assert half["sdr_db"] == pytest.approx(6.02, abs=0.01)
    # A bin of unit noise has the energy of the window, 3/8 of 2048, half of it in each of two parts.
    silent = family_training.figures(true, np.zeros_like(true))["mse"]
    assert silent == pytest.approx(0.375 * 2048 / 2, rel=0.1)
    assert half["mse"] == pytest.approx(silent / 4, rel=1e-5)


def test_steps_of_a_time_follow_from_a_short_run_that_is_made_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = []
    monkeypatch.setattr(family_training, "train", lambda run, *rest: ran.append(run.name))
    seconds = [9.0, 5.0, 5.0, 2.0, 2.0, 2.0, 4.0, 2.0]  # the first ones are slow
    monkeypatch.setattr(family_training, "step_seconds", lambda run: ([1] * 8, seconds))
    timed = plan(minutes=1.5, steps=None)
    assert timed.budget == "1.5min"
    for _ in range(2):
        assert family_training.planned(tmp_path, Network.named(SMALL), timed, check()) == 45
    assert ran == ["pilot"]


def test_one_that_is_refused_is_a_line_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, register: Callable[..., None]
) -> None:
    def network(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    hyper = registry.get_family(load_config(family_training.RECIPE).model.family).hyper
    register(registry, "broken", registry.Family("broken", "for tests", hyper, network))
    networks = [Network("broken", "broken", {})]
    for _ in range(2):
        family_training.train_all(networks, plan(), tmp_path / "runs", tmp_path / "page")
    text = (tmp_path / "page.md").read_text()
    assert text.count("| broken | broken | - | refused: ") == 1
    assert "ZeroDivisionError: by zero" in text
    assert [path.name for path in (tmp_path / "runs" / "broken-2steps").iterdir()] == ["refused.json"]


def test_the_best_comes_first_and_other_folders_stay_in_the_page(tmp_path: Path) -> None:
    for folder, name, sdr in (("one", "worse", 1.0), ("two", "better", 2.0)):
        place = tmp_path / folder / f"{name}-2steps"
        place.mkdir(parents=True)
        found = {
            **{"name": name, "family": name, "budget": "2steps", "seed": 0, "threads": 1, "parameters": 10},
            **{"steps": 2, "seconds": 3.4, "scores": {"B": {"sdr_db": sdr, "mse": 0.5}}},
            "baselines": {"B": {"silence as the estimate": {"sdr_db": 0.0, "mse": 1.0}}},
            "machine": {"cpu": "a processor", "torch": "2", "commit": "abc", "date": "today"},
        }
        (place / "score.json").write_text(json.dumps(found))
        family_page.write_page(tmp_path / folder, tmp_path / "page")
    rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| better | better | 10 | 2 | 3 | 2.00 | 0.5000 |",
        "| worse | worse | 10 | 2 | 3 | 1.00 | 0.5000 |",
        "| silence as the estimate | - | - | - | - | 0.00 | 1.0000 |",
    ]


def test_a_training_of_as_many_steps_whose_time_was_given_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network, there = Network.named(SMALL), tmp_path / f"{SMALL}-15min"
    there.mkdir()
    (there / "score.json").write_text(
        json.dumps({"name": SMALL, "steps": 2, "threads": 1, "budget": "15min"})
    )
    monkeypatch.setattr(
        family_training, "load_run_config", lambda run: load_config(family_training.RECIPE, made_by)
    )
    made_by = plan().overrides(network, 2)
    assert family_training.same_training(tmp_path, network, plan()) == there / "score.json"
    for other in (
        plan(seed=4),
        plan(steps=3),
        plan(threads=2),
        plan(batch=1),
        plan(minutes=15.0, steps=None),
    ):
        assert family_training.same_training(tmp_path, network, other) is None


@pytest.mark.slow
def test_two_steps_are_trained_scored_and_not_trained_again(song_root: Path, tmp_path: Path) -> None:
    runs, page = tmp_path / "the runs", tmp_path / "page"
    command = [sys.executable, str(SCRIPTS / "family_training.py"), SMALL, "--data", str(song_root)]
    command += ["--held-out", "B", "--steps", "2", "--batch", "2", "--threads", "1"]
    command += ["-o", str(runs), "--page", str(page)]

    def run() -> tuple[str, dict[str, Any]]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        ((name, found),) = json.loads(page.with_suffix(".json").read_text())["runs"].items()
        assert name == f"{SMALL}-2steps"
        return done.stderr, found

    _, first = run()
    assert (first["steps"], first["family"], first["batch"]) == (2, Network.named(SMALL).family, 2)
    assert first["seconds"] > 0
    assert next(iter(first["scores"])) == "B"
    text = page.with_suffix(".md").read_text()
    assert f"| {SMALL} | {first['family']} | {first['parameters']} | 2 | " in text
    assert f"| {first['scores']['B']['sdr_db']:.2f} | " in text

    said, again = run()
    assert "trained and scored already" in said
    assert again == first

    # Stopped between training and scoring: the weights are taken as they are.
    folder = runs / f"{SMALL}-2steps"
    (folder / "score.json").unlink()
    checkpoint = next((folder / "run" / "checkpoints").glob("*2.ckpt"))
    written = checkpoint.stat().st_mtime_ns
    _, resumed = run()
    assert checkpoint.stat().st_mtime_ns == written
    assert resumed["scores"] == first["scores"]
