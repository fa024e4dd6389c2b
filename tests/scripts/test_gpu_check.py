"""scripts/gpu_check: what it could not do is named, and what cannot run is not tried again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.model.bundle import Bundle

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import gpu_check  # noqa: E402
from gpu_check import BATCHES, Check  # noqa: E402


def test_with_no_time_left_every_part_says_so(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "out" / "gpu"
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--model", str(tiny_bundle.path)]
    done = subprocess.run(
        [*command, "--seconds", "0", "-o", str(output)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().endswith("nothing could be measured: see the reasons above")
    result = json.loads(output.with_suffix(".json").read_text())
    assert result["speed"] == result["files"] == result["engines"] == []
    reasons = {row["what"]: row["reason"] for row in result["failures"]}
    assert reasons["engine rtx fp16"] == "no ONNX graph in fp16"
    assert reasons["speed, batch 1"] == "left out: the time is up"
    assert "| speed, batch 8 | left out: the time is up |" in output.with_suffix(".md").read_text()


def test_a_command_that_fails_is_kept_with_its_reason(tiny_bundle: Bundle) -> None:
    check = Check(str(tiny_bundle.path), "cuda", None, time.monotonic() + 100)
    assert check.tfx("nonsense", "separate", "nowhere.wav", "--backend", "none") is None
    ((failure),) = check.failures
    assert failure["what"] == "nonsense"
    assert "unknown backend 'none'" in failure["reason"]


def test_one_whose_time_is_up_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    waits = f"import signal, time; signal.signal(15, lambda *_: exit(open({str(told)!r}, 'w').close())); "
    monkeypatch.setattr(gpu_check, "TFX", [sys.executable, "-c", waits + "time.sleep(60)"])
    check = Check("demo", "cuda", None, time.monotonic() + 2)
    assert check.tfx("a long one") is None
    assert check.failures == [{"what": "a long one", "reason": "ended: the time is up"}]
    assert told.exists()  # by SIGTERM, which lets it end its own


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere.tfx", "neither a path nor one of"), ("model.onnx", "is an exported file")]
)
def test_a_model_that_is_no_bundle_is_one_line(name: str, said: str) -> None:
    model = SCRIPTS.parent / "runtime" / "demo.tfx" / name
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    *notes, line = done.stderr.splitlines()
    assert all("carries no digest of itself" in note for note in notes)
    assert done.returncode == 2
    assert line.startswith("gpu_check: ")
    assert said in line


def test_what_cannot_run_is_not_tried_again_and_what_compiles_comes_last(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    torch, compiled, openvino = (
        {"backend": backend, "precision": "fp32", "median_ms": speed, "note": note}
        for backend, speed, note in (
            ("torch", 1.0, ""),
            ("torch-compile", 0.5, ""),
            ("openvino", None, "no GPU"),
        )
    )

    def tfx(self: Check, what: str, *arguments: str) -> dict[str, Any]:
        asked.append([word for word in arguments if ":" in word])
        if what == "torch-compile":
            return {"rows": [torch, compiled]}
        return {"rows": [torch, openvino] if len(asked) == 1 else [torch]}

    monkeypatch.setattr(Check, "tfx", tfx)
    check = Check(str(tiny_bundle.path), "cuda", None, 0.0)
    check.measure()
    assert asked == [[], ["torch:fp32"], ["torch:fp32"], ["torch:fp32", "torch-compile:fp32"]]
    assert [(row["batch"], row["backend"]) for row in check.speed] == [
        *((batch, "torch") for batch in BATCHES),
        (1, "torch-compile"),
    ]
    assert check.failures == [{"what": "openvino:fp32, batch 1", "reason": "no GPU"}]
    columns = dict.fromkeys(gpu_check.SPEED)
    result = {"machine": {"gpu": "none"}, "model": "tiny", "engines": [], "files": [], "failures": []}
    page = gpu_check.page({**result, "speed": [{**columns, **row} for row in check.speed]}, text=False)
    assert "| 4 | torch | fp32 | 1.0 |" in page
