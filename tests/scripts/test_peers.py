"""``scripts/peers``: commands measured, sides in turns, and the page."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

pytest.importorskip("torch", reason="torch is not installed: the script needs it")

import peers

SIDE = """
import json, os, sys
from pathlib import Path
import numpy as np
side, folder = sys.argv[1], Path(sys.argv[2])
if side == "openvino:fp32":
    sys.exit("openvino is not installed")
print("loaded", flush=True)
for turn, _ in enumerate(sys.stdin):
    if side == "openvino:bf16" and turn == 2:
        os.kill(os.getpid(), 9)
    song = np.load(sys.argv[3])
    stems = np.stack((song, -song)) * (1.0 if ":" not in side else 1.001)
    np.save(folder / (side.replace(":", "-") + ".npy"), stems)
    seconds = 100.0 if turn == 0 else {"htdemucs": 6.0, "ort:fp32": 2.0}.get(side, 3.0) * turn
    print(json.dumps({"seconds": seconds, "memory_mb": 1500.0}), flush=True)
"""


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What sides say that need no network."""
    side = tmp_path / "side.py"
    side.write_text(SIDE)
    monkeypatch.setattr(peers, "SIDE", side)
    np.save(tmp_path / "song.npy", np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32))
    return peers.in_turns("htdemucs", tmp_path, sys.executable, 3)


def test_sides_take_turns_and_the_first_is_not_counted(spoken: dict[str, Any]) -> None:
    assert spoken["htdemucs"]["seconds"] == [6.0, 12.0, 18.0]
    assert spoken["ort:fp32"]["seconds"] == [2.0, 4.0, 6.0]
    assert spoken["ort:fp32"]["snr_db"] == pytest.approx(60.0, abs=0.1)
    assert "snr_db" not in spoken["htdemucs"]


def test_a_side_that_cannot_run_costs_the_others_nothing(spoken: dict[str, Any]) -> None:
    assert spoken["openvino:fp32"] == {"seconds": [], "refused": "openvino is not installed"}
    found = {
        "package": "demucs",
        "audio_seconds": 24.0,
        "steps": {},
        "speed": spoken,
        "machine": {"cpu": "x", "commit": "y"},
    }
    (row,) = [line for line in peers.page({"htdemucs": found}).splitlines() if "| demucs |" in line]
    assert "| 2.00, 1.5 GB | 4.00, 1.5 GB (2.00), 60 dB |" in row  # 24 s in 12 s; torch in 6 s
    assert "| 6.00, 1.5 GB (3.00), 60 dB | refused: openvino is not installed |" in row


def test_a_side_that_is_killed_is_a_line(spoken: dict[str, Any]) -> None:
    assert spoken["openvino:bf16"]["refused"] == "ended by signal 9"


def test_in_fresh_processes_every_first_turn_counts(
    spoken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        peers.NETWORKS, "htdemucs", dataclasses.replace(peers.NETWORKS["htdemucs"], fresh=True)
    )
    found = peers.in_turns("htdemucs", tmp_path, sys.executable, 2)
    assert found["htdemucs"]["seconds"] == found["openvino:bf16"]["seconds"] == [100.0, 100.0]
    assert found["openvino:fp32"]["refused"] == "openvino is not installed"
    assert found["ort:fp32"]["snr_db"] == spoken["ort:fp32"]["snr_db"]


def test_commands_are_measured(tmp_path: Path) -> None:
    say = "import json; print(json.dumps({'bytes': 7, 'snr_db': {'a': 81.4, 'b': None}, 'x': 1}))"
    found = peers.ran("a step", [sys.executable, "-c", say], tmp_path)
    assert found["bytes"] == 7
    assert found["snr_db"] == {"a": 81.4, "b": None}
    assert found["seconds"] > 0
    assert 1 < found["memory_mb"] < 10_000
    assert "x" not in found
    why = "import sys; sys.exit('tfx: model.th is damaged: fetch it again')"
    failed = peers.ran("another", [sys.executable, "-c", why], tmp_path)
    assert failed["refused"] == "model.th is damaged: fetch it again"


def test_the_page_of_what_was_measured_is_what_the_figures_make() -> None:
    kept = json.loads(peers.PAGE.with_suffix(".json").read_text())["networks"]
    assert peers.page(kept) == peers.PAGE.with_suffix(".md").read_text()
    for name, found in kept.items():
        assert name in peers.NETWORKS
        for step, row in found["steps"].items():
            assert row["memory_mb"] < 12_000, (name, step)
