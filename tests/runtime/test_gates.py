"""Gates: what is read from a file, what passes, and what a breach says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from parity_fakes import certificate, quality, signal

from tfswa.runtime.errors import ConfigError, UsageError
from tfswa.runtime.gates import DEFAULTS, Gate, Gates, default_gates, gate_for, load_gates
from tfswa.runtime.parity.certificate import AxisFigures, GraphFigures
from tfswa.runtime.parity.judge import judge

ROOT = Path(__file__).resolve().parents[2]


GATES = Gates("test", {"fp32": Gate(80.0, 0.01, 1e-3, 1e-2)})


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, None),
        ({"signal": [signal(80.0)]}, None),
        ({"signal": [signal(79.9)]}, "signal"),
        ({"signal": [signal(None, identical=True)]}, None),
        ({"signal": [signal(None, peak_error=1e-4)]}, None),  # the reference is silent
        ({"signal": [signal(None, peak_error=1e-2)]}, "signal"),
        ({"signal": [signal(None, peak_error=None)]}, "signal"),
        ({"signal": [signal(), signal(5.0, "tiny", peak_error=1e-3)]}, None),
        ({"signal": [signal(), signal(5.0, "tiny", peak_error=2e-3)]}, "signal"),
        ({"signal": [signal(), signal(5.0, "adversarial", peak_error=1e-2)]}, None),
        ({"signal": [signal(), signal(5.0, "adversarial", peak_error=2e-2)]}, "signal"),
        ({"signal": [signal(), signal(None, "adversarial", peak_error=None)]}, "signal"),
        ({"graph": [GraphFigures("song", "vocals", 1e-2, 79.0, False)]}, "graph"),
        ({"graph": [GraphFigures("song", "vocals", None, None, False)]}, "graph"),
        ({"graph": [GraphFigures("song", "vocals", 0.0, None, True)]}, None),
        ({"quality": [quality(0.01)]}, None),
        ({"quality": [quality(-0.011)]}, "quality"),
        ({"quality": [quality(0.011)]}, "quality"),
        ({"quality": [quality(None)]}, None),
        ({"axes": [AxisFigures("batch", 2, False, 80.0)]}, None),
        ({"axes": [AxisFigures("batch", 2, False, 79.0)]}, "axes"),
        ({"axes": [AxisFigures("batch", 2, False, None)]}, "axes"),
        ({"non_finite": {"song": 1}}, "finite"),
        ({"signal": []}, "signal"),
        ({"signal": [signal(kind="adversarial")]}, "signal"),
    ],
)
def test_each_gate_holds(changes: dict[str, Any], level: str | None) -> None:
    found = judge(certificate(**changes), GATES)
    assert [breach.level for breach in found] == ([] if level is None else [level])


def test_a_breach_says_what_the_two_values_are() -> None:
    (breach,) = judge(certificate(signal=[signal(12.345)]), GATES)
    assert str(breach) == "signal: SNR in dB of vocals on song is 12.35, the limit is 80"
    (breach,) = judge(certificate(axes=[AxisFigures("batch", 2, False, None)]), GATES)
    assert str(breach) == "axes: SNR in dB on batch 2 is undefined, the limit is 80"


def test_a_stem_may_have_a_gate_of_its_own_and_a_bad_one_be_ignored(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(
        "non_finite = 2\n[fp32]\nsnr_db = 80\ndrift_db = 0.01\nerror = 1e-3\n"
        "[fp32.stems.vocals]\nsnr_db = 100\nignore_below_sdr_db = 3.0\n"
    )
    gates = load_gates(path)
    assert gates.of("fp32", "vocals") == Gate(100, 0.01, 1e-3, ignore_below_sdr_db=3.0)
    assert gates.of("fp32", "bass") == gates.of("fp32") == Gate(80, 0.01, 1e-3)
    assert [b.level for b in judge(certificate(signal=[signal(90.0)]), gates)] == ["signal"]
    assert judge(certificate(quality=[quality(0.5, sdr_db=2.9)]), gates) == []
    assert [b.level for b in judge(certificate(quality=[quality(0.5, sdr_db=3.1)]), gates)] == ["quality"]
    assert judge(certificate(non_finite={"song": 2}), gates) == []


def test_the_defaults_are_those_of_the_file_alone() -> None:
    assert default_gates() == load_gates(DEFAULTS)
    assert {"fp32", "fp16", "bf16", "int8", "mixed"} == set(default_gates().precisions)
    assert gate_for(None) == gate_for("fp32")
    assert (gate_for("fp32").snr_db, gate_for("fp16").snr_db, gate_for("bf16").snr_db) == (80, 45, 36)
    assert gate_for("fp16").drift_db == gate_for("bf16").drift_db == 0.05
    assert gate_for("int8").drift_db == gate_for("mixed").drift_db == 0.10
    assert gate_for("int8").snr_db == gate_for("mixed").snr_db == 6
    assert default_gates().non_finite == 0
    limits = re.compile(r"(45|36|80) ?dB.{0,40}gate|gate.{0,40}(45|36|80) ?dB", re.IGNORECASE)
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert [path.name for path in texts if limits.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fp32]\nsnr = 80\n", "unknown key 'snr', known are snr_db, drift_db, error, loud_error, ignore"),
        ("[fp32]\nsnr_db = 'high'\n", "gate snr_db is 'high': give a number"),
        ("[fp32]\nsnr_db = nan\n", "gate snr_db is nan: give a number"),
        ("[fp32]\nsnr_db = true\n", "gate snr_db is True: give a number"),
        ("[fp32]\ndrift_db = -1\n", "give 0 or more"),
        ("fp32 = 80\n", "'fp32' is no table of limits"),
        ("[fp32]\nstems = 3\n", "fp32.stems is 3, it must be a table"),
        ("[fp32.stems]\nvocals = 3\n", "fp32.stems.vocals is 3, it must be a table"),
        ("non_finite = -1\n", "non_finite is -1, it must be a whole number"),
        ("non_finite = 0.5\n", "non_finite is 0.5, it must be a whole number"),
        ("[fp32\n", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_gates(path)
    assert "\n" not in str(caught.value)
    assert "gates.toml" in str(caught.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_gates(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gates(tmp_path / "binary.toml")


def test_a_precision_without_a_gate_is_said() -> None:
    with pytest.raises(UsageError, match="test has no gate for precision 'fp8', it has fp32: add a table"):
        judge(certificate(precision="fp8", signal=[]), GATES)
