"""scripts/families: the table says what the JSON says, and what fails is a line and ends nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: families need it")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # the scripts are no package

import families  # noqa: E402
from families import BACKENDS, COLUMNS, EAGER, EXPORTS, Options  # noqa: E402

from tfswa.train import families as registry  # noqa: E402

TINY = ("dims=[8,16]", "depths=[1,1]", "decoder_depths=[1]", "heads=[1,2]", "fold=32")
FAMILY = "tfswa_lite"


def result(**changed: Any) -> dict[str, Any]:
    """What a measuring might have found."""
    rows = [
        {
            "backend": backend,
            "precision": precision,
            "median_ms": 10.0 * (place + 1),
            "x_realtime": 30.0 / (place + 1),
            "x_first": 1 / (place + 1),
            "snr_db": 100.0 - place if place else None,
            "identical": not place,
            "memory_mb": 400.0 + place,
            "note": "",
        }
        for place, (backend, precision) in enumerate(BACKENDS)
    ]
    found = {
        "quick": False,
        "seconds": 90.0,
        "machine": {"cpu": "a processor", "cores": 2, "commit": "abc", "date": "2026-01-02T03:04:05+00:00"},
        "parameters": 1010,
        "published": 1000,
        "difference_percent": 1.0,
        "gflop_per_second": 2.5,
        "exports": {export: {} for export in EXPORTS},
        "engine": {"seconds": 12.34, "bytes": 5_000_000},
        "rows": rows,
        "refused": {},
    }
    return {**found, **changed}


def cells(found: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(COLUMNS, ("one", *families.cells(found)), strict=True))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["families", *map(str, arguments)])
    families.main()


def test_a_row_of_figures() -> None:
    row = cells(result())
    assert row["difference"] == "+1.00 %"
    assert (row["eager"], row["ONNX Runtime"]) == ("30.00", "15.00 (0.50)")
    assert (row["MB eager"], row["ONNX dB"], row["fp16 dB"]) == ("400", "99.0", "95.0")
    assert row["engine fp16"] == "12.3 s, 5.00 MB"


def test_what_was_refused_is_said_in_its_cell_and_nowhere_else() -> None:
    found = result(engine=None, refused={"onnx fp16": "it overflows", "torch:fp32": "it died"})
    found["rows"] = [row for row in found["rows"] if (row["backend"], row["precision"]) != ("ort", "fp16")]
    (bf16,) = [row for row in found["rows"] if row["precision"] == "bf16"]
    bf16.update(median_ms=None, note="this processor has no bf16")
    row = cells(found)
    assert row["OpenVINO bf16"] == "refused: this processor has no bf16"
    assert row["fp16 dB"] == row["engine fp16"] == "refused: it overflows"
    assert [name for name, cell in row.items() if "refused" in str(cell)] == [
        "OpenVINO bf16",
        "fp16 dB",
        "engine fp16",
    ]


def test_without_eager_there_are_no_ratios() -> None:
    found = result()
    found["rows"][0].update(median_ms=None, note="it died")
    assert found["rows"][0]["backend"] == EAGER[0]
    row = cells(found)
    assert (row["eager"], row["ONNX Runtime"]) == ("refused: it died", "15.00")


def test_a_family_that_fails_is_a_row_with_its_reason(register: Callable[..., None]) -> None:
    def network(*arguments: object) -> None:
        raise ZeroDivisionError("of two\nlines")

    broken = registry.Family("broken", "for tests", registry.get_family(FAMILY).hyper, network)
    register(registry, "broken", broken)
    found = families.measured("broken", (), Options(quick=True))
    assert "ZeroDivisionError: of two lines" in found["refused"]["network"]
    text = "\n".join(families.table({"broken": found, "one": result()}))
    assert text.count("\n") == 3
    assert "| broken | refused: " in text
    assert "1010" in text
    assert families.page({"broken": found}).endswith("\n")


def test_what_is_measured_is_kept_and_more_is_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def measured(name: str, hyper: list[str], options: Options) -> dict[str, Any]:
        asked.append(name)
        return result(quick=options.quick)

    names = ["one", "two"]
    monkeypatch.setattr(families, "measured", measured)
    monkeypatch.setattr(families, "family_names", lambda: names)
    output = tmp_path / "a folder" / "families"
    run(monkeypatch, "two", "--quick", "-o", output)
    run(monkeypatch, "--quick", "-o", output)
    assert asked == ["two", "one"]
    run(monkeypatch, "-o", output)  # what was measured in a hurry is measured anew
    run(monkeypatch, "-o", output)
    assert asked == ["two", "one", "one", "two"]
    names.append("a third")
    run(monkeypatch, "-o", output)
    run(monkeypatch, "one", "--again", "-o", output)
    assert asked[4:] == ["a third", "one"]
    assert list(json.loads(output.with_suffix(".json").read_text())["families"]) == ["a third", "one", "two"]
    with pytest.raises(SystemExit):
        run(monkeypatch, "four", "-o", output)


@pytest.mark.slow
def test_a_tiny_family_is_measured_and_the_table_is_that_of_the_json(tmp_path: Path) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: families are exported to ONNX")
    output = tmp_path / "out" / "families"
    words = [part for value in TINY for part in ("--hyper", value)]
    command = [sys.executable, str(SCRIPTS / "families.py"), FAMILY, "--quick", "-o", str(output), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    ((label, found),) = json.loads(output.with_suffix(".json").read_text())["families"].items()
    lines = output.with_suffix(".md").read_text().splitlines()
    header, _, line = [line for line in lines if line.startswith("|")]
    row = dict(zip(split(header), split(line), strict=True))
    assert row["family"].replace("\\", "") == label == " ".join((FAMILY, *TINY))
    assert int(row["parameters"]) == found["parameters"] > 1000
    assert float(row["GFLOP"]) == found["gflop_per_second"] > 0
    rows = {(each["backend"], each["precision"]): each for each in found["rows"]}
    assert rows[EAGER]["snr_db"] is None
    assert float(row["eager"]) == rows[EAGER]["x_realtime"] > 0
    ort = rows["ort", "fp32"]
    assert row["ONNX Runtime"] == f"{ort['x_realtime']:.2f} ({ort['x_first']:.2f})"
    assert float(row["ONNX dB"]) == ort["snr_db"] >= 80
    assert float(row["fp16 dB"]) == rows["ort", "fp16"]["snr_db"] >= 45
    assert float(row["MB eager"]) == pytest.approx(rows[EAGER]["memory_mb"], abs=0.5)
    if found["engine"]:
        assert row["engine fp16"].endswith(f"{found['engine']['bytes'] / 1e6:.2f} MB")
    else:  # tensorrt_rtx is not installed, or refuses
        assert row["engine fp16"].startswith("refused: ")
    assert found["machine"]["date"] in "\n".join(lines)


def split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
